"""The plug: what a product and a kind bring, so that everything else names neither.

A *product* is what a job writes (``segments``): its columns, views, exports, pictures. A *kind* is what a model does
(``instance``): what it learns from, how it is judged, how the loop teaches it. Each is one record of typed callables,
made in a folder below ``tasks/products`` (see the README there) or in any installed package that names its record in an
entry point of the group ``visionmill.products``, and found here by name. A kind for a product that is there already is
named by an entry point of the group ``visionmill.kinds``: its name, and the module that holds its ``KIND``.

The command line asks for every product before it knows what to do. So a record names its code instead of importing it:
what :func:`infra.by_name.lazily` names is imported when a record is first asked for it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from infra.by_name import Lazy
from infra.errors import UsageError, VisionmillError
from modelkit.brought import bring_models, temporary_models

if TYPE_CHECKING:  # types only: this module is imported by every command and must cost nothing
    import duckdb
    import numpy as np
    import pyarrow as pa

    from modelkit import ClassInfo, Predictor, VisionModel
    from tasks.parameters import JobParameters

ENTRY_POINTS, KIND_ENTRY_POINTS = "visionmill.products", "visionmill.kinds"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an item, as its row names it: ``key`` below the output, and what must be found there."""

    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileSink(Lazy):
    """Files of a product whose result is more than a row; ``tasks.output.files`` tells when and where they are written.

    Args:
        files: carrier -> ending ("png") -> content, never empty; what it raises costs the item its result.
        stored: (carrier, ending -> the file as it was stored) -> carrier that names the files, for its row, and has let
            go of what they hold.
        columns: in which a row names its files.
        named: row with these columns -> its files; none for an item that failed.
    """

    files: Callable[[Any], Mapping[str, bytes]]
    stored: Callable[[Any, Mapping[str, StoredFile]], Any]
    columns: tuple[str, ...]
    named: Callable[[Mapping[str, Any]], Sequence[StoredFile]]


@dataclass(frozen=True, slots=True)
class Exporter(Lazy):
    """Another tool's form of a product.

    Args:
        words: what it writes, for ``--help``.
        write: (views, store) -> (things, files) that were written; of one file (views, store, key) -> things.
        file_name: of a form that is one file, to be proposed; None: a folder.
        takes_images: whether ``write`` takes ``images=True`` and writes those of the items, too.
    """

    words: str
    write: Callable[..., Any]
    file_name: str | None = None
    takes_images: bool = False


@dataclass(frozen=True, slots=True)
class Things:
    """What a product finds, as it is chosen from (``tasks.output.narrowing``).

    All lists among the product's columns are parallel: one entry per thing.

    Args:
        view: the one of the product's views that has a row per thing, with ``uri`` and ``frame``.
        place: its column that says where in the lists the thing stands, from 0.
        sure: a condition over it, true where a thing is at least ``{min_score}`` sure.
    """

    view: str
    place: str
    sure: str


@dataclass(frozen=True, slots=True)
class Demo:
    """What ``visionmill demo`` shows of a product.

    Args:
        options: of its command, by parameter; ``{default}`` is the output of the default product's job, which is
            carried out before all others.
        query: SQL that is asked afterwards.
    """

    options: Mapping[str, str]
    query: str


@dataclass(frozen=True, slots=True)
class Product(Lazy):
    """What a job writes. Callables get whole batches where that is faster, and never see another product's data.

    Args:
        name: of the folder below an output (``segments``); verb: of the command (``segment``); doing: for progress.
        unit: what is counted in an item (``instances``), also the name of the count in footers and run records.
        schema: the id of the schema that plain jobs write.
        schemas: id (``segments.v1``) -> its own columns, which follow the common ones; every id ever published.
        parameters: of the job: a class derived from ``tasks.parameters.JobParameters``, which tells how a field is
            marked that changes rows.
        columns: (carriers by row, None for a failed row; class id -> name) -> column name -> Arrow array or list.
        kinds: name -> module that holds its ``KIND``, or None where models of the kind are neither trained nor judged;
            what models of these kinds find, this product stores.
        models: module that registers models of the product's own, imported when models are first looked up; "" where
            modelkit or an entry point brings them.
        options: parameters -> keywords of ``modelkit.load``.
        predictor: parameters -> ``tasks.engine.job.PredictorSpec`` of who looks at items, or None: the model alone.
        check: a table of ok rows -> one line per thing that cannot be.
        categories: column paths with a dictionary. encodings: column path -> Parquet encoding.
        views: name -> SELECT over ``items``, which has the columns of all schemas (null where a version has none).
        things: how exports and pictures choose from what was found; None: they take all of it.
        functions: registers SQL functions. function_words: how each is called.
        query: an example, for people who have just run a job.
        exporters: name -> form.
        overlay: (image, row, in_strip=) -> picture with what was found drawn upon it; both (H, W, 3) uint8, and the
            picture's size is the product's choice. In a strip of frames scores and the like would only flicker.
        panels: open views -> what of the report's page is its own, as ``tasks.report.panels.Panels``.
        sink: writes files beside the rows; None for products that are rows alone.
        demo: what is shown of it, without a download; None: it is left out.
    """

    name: str
    verb: str
    doing: str
    unit: str
    schema: str
    schemas: Callable[[], Mapping[str, Sequence[pa.Field]]]
    parameters: type[JobParameters]
    columns: Callable[[Sequence[Any], Mapping[int, str]], Mapping[str, Any]]
    kinds: Mapping[str, str | None] = field(default_factory=dict)
    models: str = ""
    options: Callable[[Any], dict[str, Any]] | None = None
    predictor: Callable[[Any], Any] | None = None
    check: Callable[[pa.Table], Iterator[str]] | None = None
    categories: tuple[str, ...] = ()
    encodings: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, str] = field(default_factory=dict)
    things: Things | None = None
    functions: Callable[[duckdb.DuckDBPyConnection], None] | None = None
    function_words: tuple[str, ...] = ()
    query: str = "SELECT status, count(*) AS n FROM items GROUP BY status"
    exporters: Mapping[str, Exporter] = field(default_factory=dict)
    overlay: Callable[..., np.ndarray] | None = None
    panels: Callable[..., Any] | None = None
    sink: FileSink | None = None
    demo: Demo | None = None


@dataclass(frozen=True, slots=True)
class Resampled:
    """Values of the main figure in b resamples of the images; NaN where there is no truth.

    Args:
        overall: (b,).
        by_class: (b, classes), in the order of ``Judgement.class_names``.
        by_size: (b, sizes). size_names: of its columns; empty where the figure is not told by size.
    """

    overall: np.ndarray
    by_class: np.ndarray
    by_size: np.ndarray
    size_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label that may be wrong, or an object that may lack one.

    Args:
        image_id, uri: of the item. frame: of a video; None for an image.
        object: which labelled object of the item, from 0 in the order of the label set; None: nobody labelled it.
        origin_id: the object's id in the file it came from; "" where it has none.
        name: its class as labelled; of an object that nobody labelled, as the model says.
        wrong: what seems wrong, the same words for all suspects of a sort: "wrong class".
        words: what the model says, for people.
        probability: that the label is wrong or lacking, by the model's calibrated disagreement.
        box_xyxy: where it is, source pixels.
        facts: what ``words`` says, plain JSON.
    """

    image_id: str
    uri: str
    frame: int | None
    object: int | None
    origin_id: str
    name: str
    wrong: str
    words: str
    probability: float
    box_xyxy: tuple[float, float, float, float]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Suspects:
    """What a model disagrees with in labels; both lists begin with the most probable.

    Args:
        labelled: labelled objects, at most one entry each; those that the model does not question are not among them.
        missing: objects that nobody labelled.
        notes: sentences about what was not looked at.
    """

    labelled: tuple[Suspect, ...]
    missing: tuple[Suspect, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """A model against labels.

    Args:
        kind: of the model.
        figures: group -> figure -> value, plain JSON. The first figure of the first group is the main one, by which
            models are compared; a group may hold ``by_class``, class name -> value of its first figure.
        image_ids: the images that were judged, in the order of ``resample``'s weights.
        class_names: in the order of ``Resampled.by_class``.
        num_objects: labelled ones.
        resample: (b, images) non-negative weights -> the main figure, in which an image of weight n counts as if it
            were there n times.
        notes: sentences about what the figures leave out.
        evidence: labels and what was found of them, for ``Kind.suspects`` and ``Kind.panels``; None of kinds that have
            neither.
    """

    kind: str
    figures: dict[str, dict[str, Any]]
    image_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    num_objects: int
    resample: Callable[[np.ndarray], Resampled]
    notes: tuple[str, ...] = ()
    evidence: Any = None

    @property
    def main_figure(self) -> float:
        """What models are compared by."""
        group = next(iter(self.figures.values()))
        return float(next(iter(group.values())))


@dataclass(frozen=True, slots=True)
class LoopKind:
    """What a kind brings to the self-training loop; all else is the same for every kind (``tasks.loop``).

    A candidate is one thing that a teacher found: a row with the columns of ``tasks.loop.schemas.CANDIDATES`` and the
    kind's own. Where several are taken, they are of one item.

    Args:
        columns: a candidate's own columns.
        decided: the columns that the rule adds to them.
        features: those of ``columns`` that say how good the geometry is, each in [0, 1] and rising with it.
        candidates: (row of the product's items, least score) -> seq, label, name, score and own columns of each.
        item: candidates of one item -> what the product's row of it would hold of them, for drawing.
        rule: all candidates of a round with what is known of them -> ``Decided``; see ``tasks.loop.selection.select``.
        open: (training recipe, names of views beside the plain one) -> ``tasks.loop.methods.LoopMethods``: how teachers
            look, are calibrated, and what they teach.
        iou: (n candidates, m others) -> (n, m) how much each two are the same thing, in [0, 1].
        kept: (accepted before, accepted now) -> how many are in both, how many in either.
        disagreements: ``tasks.loop.findings.Disagreement`` by item -> files for labelling tools by name.
        read_disagreements: (name -> content of such a file or None) -> the same again, as far as it is to be drawn.
        confidence: (n,) scores -> the probability of being right that the teacher states by them.
        amount: the column that says how much a candidate counts for; None: one each.
        unit, pieces: what is counted ("labels", "pixels"), and what candidates are called ("labels", "regions").
    """

    columns: tuple[pa.Field, ...]
    decided: tuple[pa.Field, ...]
    features: tuple[str, ...]
    candidates: Callable[[Mapping[str, Any], float], list[dict[str, Any]]]
    item: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    rule: Callable[[Any], Any]
    open: Callable[[Any, Sequence[str]], Any]
    iou: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], np.ndarray]
    kept: Callable[[pa.Table, pa.Table], tuple[float, float]]
    disagreements: Callable[[Sequence[Any]], dict[str, bytes]]
    read_disagreements: Callable[[Callable[[str], bytes | None]], list[Any]]
    confidence: Callable[[np.ndarray], np.ndarray] = lambda scores: scores
    amount: str | None = None
    unit: str = "labels"
    pieces: str = "labels"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a model does.

    Args:
        name: as weights state it.
        product: where its results go.
        target_of: model -> (example -> target of its losses).
        judge: (predictor, label set) -> how good it is.
        suspects: the ``evidence`` of such a judgement -> which labels are probably wrong; ``tasks.evaluation.suspects``
            has what all kinds need for it. None: the kind finds none.
        panels: (such a judgement, how many pictures at most) -> what of the page about it is the kind's own, as
            ``tasks.report.judged_panels.JudgedPanels``; None: figures and bars by class alone.
        recipes: name -> (classes -> values of ``TrainingRecipe`` by field; what is left out is the default).
        default_recipe: where none is named.
        class_counts: classes -> the options of a model's config that say how many there are, such as ``num_classes``.
        suits: what ``tasks.training.inspection`` saw of a label set -> whether its labels are of this kind. Where no
            recipe is named, the first of a product's kinds that they suit is trained.
        meant_for: (the same) -> whether they may be meant for the kind, where its recipe is named, though they suit
            another: then nobody is told of that.
        derived: (the same, "small" or "usual") -> values of a recipe for these labels, which says how large its model
            is; None where no recipe can be derived.
        fitted: (the same, a whole recipe as plain JSON) -> values that labels give any recipe of the kind, whoever
            wrote it, such as how many points objects have; None: the classes say it all.
        pieces_of: model -> (picture as ``Example`` -> what of it is learnt from one by one); None: the picture itself,
            or its tiles.
        remarks: (the same, recipe) -> sentences on how the two fit, for ``visionmill inspect``.
        numbered: classes -> old id -> the id that models of the kind know it by, where they want an order; None: any.
        words: figure -> its name as people write it, where ``tasks.evaluation.figures`` would not guess it.
        loop: None where the loop cannot teach it.
    """

    name: str
    product: str
    target_of: Callable[[VisionModel], Callable[[Any], dict[str, Any]]]
    judge: Callable[[Predictor, Any], Judgement]
    recipes: Mapping[str, Callable[[Sequence[ClassInfo]], Mapping[str, Any]]]
    default_recipe: str
    class_counts: Callable[[Sequence[ClassInfo]], dict[str, int]]
    suits: Callable[[Any], bool] = lambda seen: False
    meant_for: Callable[[Any], bool] = lambda seen: False
    derived: Callable[[Any, str], Mapping[str, Any]] | None = None
    fitted: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None
    pieces_of: Callable[[VisionModel], Callable[[Any], Iterable[Any]]] | None = None
    remarks: Callable[[Any, Any], Sequence[str]] = lambda seen, recipe: ()
    numbered: Callable[[Sequence[ClassInfo]], Mapping[int, int]] | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    suspects: Callable[[Any], Suspects] | None = None
    panels: Callable[[Judgement, int], Any] | None = None
    loop: LoopKind | None = None


_PRODUCTS: dict[str, Product] = {}
_KINDS: dict[str, Kind] = {}
_KIND_MODULES: dict[str, str | None] = {}
_FOREIGN_KINDS: set[str] = set()  # of installed packages, for products that are there already


def register(product: Product) -> Product:
    """Make a product known. Raises UsageError when another one has its name or its verb."""
    for other in _PRODUCTS.values():
        if other is not product and (other.name == product.name or other.verb == product.verb):
            raise UsageError(f"two products are called {product.name!r} ({product.verb!r})")
    if not product.verb.isidentifier():
        raise UsageError(f"the verb {product.verb!r} of the product {product.name!r} is no identifier")
    _PRODUCTS[product.name] = product
    _KIND_MODULES.update(product.kinds)  # imported once somebody asks for the kind
    if product.models:
        bring_models(product.models)
    return product


def register_kind(kind: Kind) -> Kind:
    """Make a kind known that no module of a product's ``kinds`` holds. Raises UsageError for a name that is taken."""
    if _KINDS.setdefault(kind.name, kind) is not kind:
        raise UsageError(f"two kinds are called {kind.name!r}")
    return kind


@contextmanager
def called(product: Product, part: str) -> Iterator[None]:
    """Around a call of a product's own code: whatever it raises says whose it is.

    Raises:
        VisionmillError: names product and part; what was raised is its cause.
    """
    try:
        yield
    except VisionmillError:
        raise
    except Exception as error:
        said = f"{part} of the product {product.name!r} failed: {type(error).__name__}: {error}"
        raise VisionmillError(said, hint="--debug shows where it happened") from error


def products() -> dict[str, Product]:
    """All products by name: those that come along, those of installed packages, those that were registered."""
    _discover()
    return dict(sorted(_PRODUCTS.items()))


@functools.cache
def _discover() -> None:
    package = importlib.import_module("tasks.products")
    for module in pkgutil.iter_modules(package.__path__):
        brought = getattr(importlib.import_module(f"tasks.products.{module.name}"), "PRODUCT", None)
        if isinstance(brought, Product):
            register(brought)
        else:
            logger.warning("tasks.products.%s has no PRODUCT: nothing is registered", module.name)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            product = point.load()
        except Exception as error:  # noqa: BLE001 - somebody else's code; what it spoils is its own product alone
            logger.warning("%s of an installed package (%s) cannot be imported: %s", point.value, ENTRY_POINTS, error)
            continue
        if isinstance(product, Product):
            register(product)
    for point in entry_points(group=KIND_ENTRY_POINTS):
        _FOREIGN_KINDS.add(point.name)
        _KIND_MODULES.setdefault(point.name, point.value)  # imported once somebody asks for the kind


def find_product(name: str) -> Product:
    """The product of a name. Raises UsageError, which names those that exist."""
    if name not in _PRODUCTS:
        _discover()
    if name not in _PRODUCTS:
        raise UsageError(f"there is no product {name!r}", hint=f"products: {', '.join(sorted(_PRODUCTS))}")
    return _PRODUCTS[name]


def default_product() -> Product:
    """What commands mean that name none; its first kind is what they mean that name no kind."""
    return find_product(importlib.import_module("tasks.products").DEFAULT)


def kind_names() -> list[str]:
    """Names of all kinds; none of their modules is imported for it."""
    _discover()
    return sorted(_KIND_MODULES.keys() | _KINDS)


def kinds() -> dict[str, Kind]:
    """Kinds that are trained and judged, by name. This imports their modules, and with them torch."""
    return {name: find_kind(name) for name in kind_names() if name in _KINDS or _KIND_MODULES[name] is not None}


def find_kind(name: str) -> Kind:
    """The kind of a name. Raises UsageError, which names those that exist."""
    if name not in kind_names():
        raise UsageError(f"there is no kind of model {name!r}", hint=f"kinds: {', '.join(kind_names())}")
    if name not in _KINDS:
        place = _KIND_MODULES[name]
        if place is None:
            raise UsageError(f"models of the kind {name!r} are neither trained nor judged")
        module, _, attribute = place.partition(":")
        kind = getattr(importlib.import_module(module), attribute or "KIND", None)
        if not isinstance(kind, Kind):
            raise UsageError(f"{place} is to be the kind {name!r}, but is none")
        register_kind(kind)
    return _KINDS[name]


def stores(product: Product, kind: str) -> bool:
    """Whether a product stores what models of a kind find; a kind from elsewhere says itself whose it is."""
    if kind in product.kinds:
        return True
    return (kind in _KINDS or kind in _FOREIGN_KINDS) and find_kind(kind).product == product.name


@contextmanager
def temporary_registrations() -> Iterator[None]:
    """Forget, on leaving, which products and kinds were registered inside; for tests and notebooks."""
    _discover()
    registries: tuple[dict[str, Any], ...] = (_PRODUCTS, _KINDS, _KIND_MODULES)
    saved = [dict(each) for each in registries]
    try:
        with temporary_models():
            yield
    finally:
        for each, before in zip(registries, saved, strict=True):
            each.clear()
            each.update(before)
