"""One registry for models and their parts; a model is a name plus a plain-JSON config.

A *part* (backbone, neck, dense_head, roi_head) is a class or function whose **positional** parameters are wired by
the model that owns it (input channels, number of classes) and whose **keyword-only** parameters are its config.
``complete`` fills in every default, so the config kept on a model says everything needed to build it again, whatever
the defaults become later. ``(config, state_dict)`` is the whole serial form of a model.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from modelkit.base import VisionModel
from modelkit.brought import brought_models
from modelkit.catalogue import ENTRY_POINTS
from modelkit.errors import ConfigError, DuplicateNameError, UnknownNameError

if TYPE_CHECKING:
    from modelkit.records import Weights  # it needs this module to build models again

Config = Mapping[str, Any]
Source = Callable[[str], "tuple[VisionModel, Weights]"]
_Builder = TypeVar("_Builder", bound=Callable[..., Any])

# A family is a package of modelkit with this module: importing the package registers its models and parts.
_FAMILY_MODULE = "models.py"


@dataclass(frozen=True, slots=True)
class _Part:
    """A registered builder; ``parts`` maps its config keys that hold further parts to the roles of these."""

    build: Callable[..., Any]
    parts: Mapping[str, str]
    defaults: Config


@dataclass(frozen=True, slots=True)
class _Model:
    build: Callable[..., VisionModel]
    parts: Mapping[str, str]
    architecture: str
    kind: str
    weights: tuple[str, ...]
    listed: bool
    defaults: Config


_ABSENT = object()
_parts: dict[tuple[str, str], _Part] = {}
_models: dict[str, _Model] = {}
_sources: dict[str, Source] = {}


def register(role: str, name: str, *, parts: Mapping[str, str] | None = None) -> Callable[[_Builder], _Builder]:
    """Decorator: make a part available to configs as ``{"name": name, ...}`` wherever its role is expected.

    Args:
        role: what it is to its owner: "backbone", "neck", "dense_head", "roi_head", ...
        name: unique within its role.
        parts: config keys of this part that hold further parts, with their roles.

    Raises:
        DuplicateNameError: when the name is taken.
    """

    def decorate(builder: _Builder) -> _Builder:
        if (role, name) in _parts:
            raise DuplicateNameError(f"{role} {name!r} is registered already, by {_parts[role, name].build!r}")
        _parts[role, name] = _Part(builder, dict(parts or {}), {})
        return builder

    return decorate


def register_model(
    name: str,
    *,
    architecture: str,
    kind: str,
    parts: Mapping[str, str] | None = None,
    weights: tuple[str, ...] = (),
    listed: bool = True,
) -> Callable[[_Builder], _Builder]:
    """Decorator: make ``create_model(name, **config)`` call the decorated function with a completed config.

    Args:
        name: unique among models.
        architecture: the meta-architecture the function builds.
        kind: what the model does, as a plain word: "instance", "detection" (boxes only), "semantic", "panoptic", ...
        parts: config keys that hold parts, with their roles; a mapping of names to parts is fine as well.
        weights: names of published weights that ``load`` knows how to get for it.
        listed: False for models that only exist with the weights of somebody else; ``model_names`` leaves them out.

    Raises:
        DuplicateNameError: when the name is taken.
    """

    def decorate(builder: _Builder) -> _Builder:
        if name in _models:
            raise DuplicateNameError(f"model {name!r} is registered already, by {_models[name].build!r}")
        _models[name] = _Model(builder, dict(parts or {}), architecture, kind, weights, listed, {})
        return builder

    return decorate


def register_variant(name: str, base: str, *, weights: tuple[str, ...] = (), **defaults: Any) -> None:
    """Give a registered model another name and other defaults: a published size or combination.

    Args:
        name: unique among models.
        base: registered name whose builder and options it shares.
        weights: names of published weights.
        defaults: options that differ; nested ones are merged as in ``create_model``.

    Raises:
        DuplicateNameError: when the name is taken.
        UnknownNameError: when the base is not registered.
    """
    if base not in _models:
        raise UnknownNameError(f"unknown model {base!r}; register it before its variants")
    origin = _models[base]
    if name in _models:
        raise DuplicateNameError(f"model {name!r} is registered already, by {_models[name].build!r}")
    _models[name] = replace(origin, weights=weights, defaults=merge_options(origin.defaults, defaults))


def register_source(prefix: str, load: Source) -> None:
    """Make ``modelkit.load("<prefix>:LOCATION")`` call ``load`` with the whole name, for a model and its record.

    Raises:
        DuplicateNameError: when the prefix is taken.
    """
    if prefix in _sources:
        raise DuplicateNameError(f"names that begin with {prefix!r} are loaded already, by {_sources[prefix]!r}")
    _sources[prefix] = load


def find_source(name: str) -> Source | None:
    """What loads models whose names begin like this one's, if anything does."""
    prefix, colon, _ = name.partition(":")
    if not colon:
        return None
    import_families()
    return _sources.get(prefix)


def source_names() -> list[str]:
    """What such names begin with."""
    import_families()
    return sorted(_sources)


def build(role: str, config: Config, *wired: Any) -> Any:
    """Build a part from ``{"name": ..., **options}``; ``wired`` are the values its owner passes on.

    Raises:
        UnknownNameError: when no part of that role has the name.
        ConfigError: when an option is unknown or refused by the part.
    """
    completed = complete(role, config)
    options = {key: value for key, value in completed.items() if key != "name"}
    return _find_part(role, completed["name"]).build(*wired, **options)


def complete(role: str, config: Config) -> dict[str, Any]:
    """The config of a part with every default filled in, recursively; a deep copy of plain JSON values."""
    if not isinstance(config, Mapping) or "name" not in config:
        raise ConfigError(f"a {role} config must be a mapping with a 'name', got {config!r}")
    part = _find_part(role, config["name"])
    return {"name": config["name"], **_complete(part, f"{role} {config['name']!r}", config)}


def create_model(name: str, **config: Any) -> VisionModel:
    """Build a registered model with fresh weights.

    Args:
        name: a name from ``list_models``.
        config: options of that model; whatever is left out takes the model's default. A nested mapping with a "name"
            replaces the default part, one without is merged into it.

    Returns:
        The module, with ``config`` (completed, plain JSON, including "name"), so that
        ``create_model(**model.config)`` builds the same model.

    Raises:
        UnknownNameError: lists the known models.
        ConfigError: an unknown option, or a value that is not plain JSON.
    """
    entry = find_model(name)
    completed = _complete(entry, f"model {name!r}", config)
    model = entry.build(**copy.deepcopy(completed))
    model.config = {"name": name, **completed}
    return model


def find_model(name: str) -> _Model:
    """The registered model of that name; raises UnknownNameError with the known ones."""
    import_families()
    if name not in _models:
        raise UnknownNameError(f"unknown model {name!r}; known: {', '.join(model_names())}")
    return _models[name]


def model_names() -> list[str]:
    """Sorted names that ``create_model`` accepts, but for models that only exist with somebody else's weights."""
    import_families()
    return sorted(name for name, model in _models.items() if model.listed)


def count_parameters(name: str, **config: Any) -> int:
    """Number of parameters of a model, without allocating them (meta device); buffers are not counted."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name, **config).parameters())


@contextmanager
def temporary_registrations() -> Iterator[None]:
    """Forget, on leaving, what was registered inside; for tests and notebooks."""
    import_families()
    tables: tuple[dict[Any, Any], ...] = (_parts, _models, _sources)
    saved = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, before in zip(tables, saved, strict=True):
            table.clear()
            table.update(before)


def _find_part(role: str, name: str) -> _Part:
    import_families()
    if (role, name) not in _parts:
        known = sorted(other for other_role, other in _parts if other_role == role)
        raise UnknownNameError(f"unknown {role} {name!r}; known: {', '.join(known) or 'none'}")
    return _parts[role, name]


def _complete(entry: _Part | _Model, where: str, config: Config) -> dict[str, Any]:
    options = {
        key: parameter
        for key, parameter in inspect.signature(entry.build).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    unknown = sorted(set(config) - set(options) - {"name"})
    if unknown:
        raise ConfigError(f"{where} has no option {', '.join(map(repr, unknown))}; known: {', '.join(sorted(options))}")
    completed: dict[str, Any] = {}
    for key, parameter in options.items():
        value = merge_options(
            merge_options(parameter.default, entry.defaults.get(key, _ABSENT)), config.get(key, _ABSENT)
        )
        if value is inspect.Parameter.empty:
            raise ConfigError(f"{where} needs the option {key!r}")
        completed[key] = _complete_parts(entry.parts[key], value) if key in entry.parts else value
    return _as_json(where, completed)


def merge_options(default: Any, given: Any) -> Any:
    """``given`` over ``default``; mappings are merged unless the given one names a part of its own."""
    if given is _ABSENT:
        return default
    if not isinstance(default, Mapping) or not isinstance(given, Mapping) or "name" in given:
        return given
    return {**default, **{key: merge_options(default.get(key, _ABSENT), value) for key, value in given.items()}}


def _complete_parts(role: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"a {role} config must be a mapping with a 'name', got {value!r}")
    if "name" in value:
        return complete(role, value)
    return {name: None if part is None else complete(role, part) for name, part in value.items()}


def _as_json(where: str, value: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config of {where} must be plain JSON: {error}") from error


def import_families() -> None:
    """Register what comes with modelkit, with installed packages and with products, before anything is looked up.

    Raises:
        ConfigError: when the models of an installed package or of a product cannot be imported.
    """
    import_installed()
    for module in brought_models():
        _import(module, functools.partial(importlib.import_module, module))


@functools.cache
def import_installed() -> None:
    """Register what comes with modelkit and with installed packages, once. Raises as :func:`import_families` does."""
    here = Path(__file__).parent
    for family in sorted(path.parent.name for path in here.glob(f"*/{_FAMILY_MODULE}")):
        importlib.import_module(f"{__package__}.{family}")
    for point in entry_points(group=ENTRY_POINTS):
        _import(f"{point.value} ({ENTRY_POINTS})", point.load)


def _import(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:
        raise ConfigError(f"the models of {name} cannot be imported: {error}") from error
