"""What models there are and what is known of their weights, told without torch as long as that is possible.

Torch and torchvision take seconds to import, and most questions about models need neither. So what the registry says of
modelkit's own models is kept in ``catalogue.json``; ``make catalogue`` writes it, a test compares it with the registry.
The registry itself is asked once it is loaded, or where an installed package brings models of its own.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from modelkit.brought import brought_models
from modelkit.downloads import PublishedFile, cache_folder, fetch
from modelkit.errors import ConfigError, UnknownNameError
from modelkit.records import RECORD, TENSORS, Weights, find_files, read_record, shipped_folder, shipped_records

CATALOGUE = Path(__file__).with_name("catalogue.json")
ENTRY_POINTS = "visionmill.models"
"""Installed packages name a module that registers their models as an entry point of this group."""
_RANDOM = re.compile(r"random:(\d+)")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What ``list_models`` says of one model.

    Args:
        name: what ``create_model`` and ``load`` accept.
        architecture: the meta-architecture, e.g. "TwoStageDetector".
        kind: what it does: "instance", "detection" (boxes only), "semantic", "panoptic", ...
        num_parameters: of the default config; buffers such as running statistics are not counted.
        embedded: whether trained weights come with this package.
        weights: names of weights known for it, usable as "<name>:<weights>".
    """

    name: str
    architecture: str
    kind: str
    num_parameters: int
    embedded: bool
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalogue keeps of a registered model.

    Args:
        published: name of weights -> address of their file.
        is_video: whether it carries a state from frame to frame.
    """

    architecture: str
    kind: str
    num_parameters: int
    published: Mapping[str, str]
    is_video: bool

    def file(self, model: str, weights: str) -> PublishedFile:
        """The checkpoint of some of its published weights."""
        return PublishedFile(model, weights, self.published[weights])


@functools.cache
def catalogue() -> dict[str, Known]:
    """modelkit's own models by name."""
    content: dict[str, Any] = json.loads(CATALOGUE.read_text("utf-8"))
    return {name: Known(**each) for name, each in content["models"].items()}


def list_models() -> list[ModelInfo]:
    """Every model that can be created, and every shipped set of trained weights, sorted by name."""
    infos = [
        ModelInfo(name, each.architecture, each.kind, each.num_parameters, False, tuple(each.published))
        for name, each in catalogue().items()
    ]
    if _needs_registry():
        from modelkit.listing import registered_models

        infos += registered_models(without=catalogue().keys())
    architectures = {info.name: info.architecture for info in infos}
    for record in shipped_records():
        architecture = architectures[record.architecture]
        infos.append(ModelInfo(record.name, architecture, record.kind, record.num_parameters, True, (record.name,)))
    return sorted(infos, key=lambda info: info.name)


def come_along(model: str) -> str:
    """The end of a sentence: shipped models that do what this one does, and all that they find; empty if none does."""
    known = catalogue().get(model)
    alike = [each for each in shipped_records() if known is not None and each.kind == known.kind]
    found = (f"{each.name}, which finds only {', '.join(one.name for one in each.classes)}" for each in alike)
    return f"; or take what comes along: {'; '.join(found)}" if alike else ""


def describe(name_or_path: str | Path, *, weights: str | Path | None = None) -> Weights:
    """The record of what ``load`` would load; reads only the record where one lies ready.

    Published weights that are not here yet are downloaded and translated.

    Raises: as ``load`` does.
    """
    name, chosen = str(name_or_path), None if weights is None else str(weights)
    location = files_of(name)
    if location is not None:
        refuse_weights(chosen, name)
        return read_record(find_files(location)[1])
    check_known(name)
    if chosen is not None and (file := files_of(chosen)) is not None:
        find_files(file)  # what is wrong with it shows now, and torch costs seconds
    ready = _published_here(name, chosen)
    if ready is not None:
        return read_record(ready.with_suffix(RECORD))
    from modelkit.loading import resolve

    return resolve(name, chosen, None)[1]


def is_video_model(record: Weights) -> bool:
    """Whether the model of a record carries a state from frame to frame; nothing is allocated (meta device)."""
    known = catalogue().get(record.architecture)
    if known is not None:
        return known.is_video
    from modelkit.loading import builds_video_model

    return builds_video_model(record)


def files_of(name_or_path: str) -> Path | None:
    """Where weights of that name or path lie, if they lie in files."""
    if any(record.name == name_or_path for record in shipped_records()):
        return shipped_folder() / f"{name_or_path}{TENSORS}"
    path = Path(name_or_path)
    return path if path.exists() or path.suffix in (TENSORS, RECORD) else None


def refuse_weights(weights: str | None, where: str) -> None:
    """Raises ConfigError where weights are given to a model that lies in files: those are its weights."""
    if weights is not None:
        raise ConfigError(f"{where} brings its own weights; leave out weights={weights!r}")


def check_known(name: str) -> None:
    """Raises UnknownNameError, which names what is close, for a name that no model has, with its weights or without."""
    prefix, _, _ = name.partition(":")
    sources, models = _names()
    if prefix in models or prefix in sources:
        return
    shipped = [record.name for record in shipped_records()]
    close = difflib.get_close_matches(prefix, [*shipped, *models])
    known = f"shipped with weights: {', '.join(shipped)}; known models: {', '.join(models)}"
    raise UnknownNameError(
        f"{name!r} is neither a known model nor an existing file or folder; "
        + (f"did you mean {' or '.join(close)}?" if close else known)
    )


def translated(model: str, weights: str) -> Path:
    """Where published weights lie once they are translated."""
    return cache_folder() / f"{model}-{weights}{TENSORS}"


def _published_here(name: str, weights: str | None) -> Path | None:
    """Translated published weights, if that is what is meant and they are here.

    Raises:
        WeightsUnavailableError: they are meant, are not here, and cannot be downloaded.
    """
    file = _published_file(name, weights)
    if file is None:
        return None
    place = translated(file.model, file.weights)
    if not place.exists():
        fetch(file)
    return place if place.exists() and place.with_suffix(RECORD).exists() else None


def to_be_fetched(name: str) -> PublishedFile | None:
    """The published weights that a name means, where they are not here: ``describe`` and ``load`` would fetch them."""
    file = None if files_of(name) is not None else _published_file(name, None)
    is_here = file is None or file.path.exists() or translated(file.model, file.weights).exists()
    return None if is_here else file


def _published_file(name: str, weights: str | None) -> PublishedFile | None:
    if weights is None:
        name, _, chosen = name.partition(":")
        weights = chosen or None
    known = catalogue().get(name)
    if known is None or not known.published:
        return None
    weights = weights or next(iter(known.published))
    return known.file(name, weights) if weights in known.published else None


def _names() -> tuple[list[str], list[str]]:
    """What names begin with that are loaded from elsewhere ("hf"), and the names of all models."""
    if _needs_registry():
        from modelkit.registry import model_names, source_names

        return source_names(), model_names()
    return json.loads(CATALOGUE.read_text("utf-8"))["sources"], list(catalogue())


def _needs_registry() -> bool:
    """Whether there may be models that the catalogue does not know."""
    return "modelkit.registry" in sys.modules or bool(brought_models()) or bool(entry_points(group=ENTRY_POINTS))
