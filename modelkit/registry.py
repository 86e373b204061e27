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
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch

from modelkit.base import VisionModel
from modelkit.errors import ConfigError, DuplicateNameError, UnknownNameError

Config = Mapping[str, Any]
Task = Literal["instance", "detection", "semantic", "panoptic"]
_Builder = TypeVar("_Builder", bound=Callable[..., Any])

# Importing these registers every model and part that comes with modelkit; a new family adds its package here.
_FAMILIES = ("modelkit.layers", "modelkit.detection", "modelkit.onestage", "modelkit.semantic", "modelkit.panoptic")
# Its models are registered once one of them is asked for: they need an optional package and are not to be listed.
_ADAPTER, _ADAPTER_PREFIX = "modelkit.huggingface", "huggingface_"


@dataclass(frozen=True, slots=True)
class _Part:
    """A registered builder; ``parts`` maps its config keys that hold further parts to their kind."""

    build: Callable[..., Any]
    parts: Mapping[str, str]
    defaults: Config


@dataclass(frozen=True, slots=True)
class _Model:
    build: Callable[..., VisionModel]
    parts: Mapping[str, str]
    architecture: str
    task: Task
    weights: tuple[str, ...]
    defaults: Config


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What ``list_models`` says of one model.

    Args:
        name: what ``create_model`` and ``load`` accept.
        architecture: the meta-architecture, e.g. "TwoStageDetector".
        task: "instance", "detection" (boxes only), "semantic" or "panoptic".
        num_parameters: of the default config; buffers such as running statistics are not counted.
        embedded: whether trained weights come with this package.
        weights: names of weights known for it, usable as "<name>:<weights>".
    """

    name: str
    architecture: str
    task: Task
    num_parameters: int
    embedded: bool
    weights: tuple[str, ...]


_ABSENT = object()
_parts: dict[tuple[str, str], _Part] = {}
_models: dict[str, _Model] = {}


def register(kind: str, name: str, *, parts: Mapping[str, str] | None = None) -> Callable[[_Builder], _Builder]:
    """Decorator: make a part available to configs as ``{"name": name, ...}`` wherever ``kind`` is expected.

    Args:
        kind: "backbone", "neck", "dense_head", "roi_head", ...
        name: unique within its kind.
        parts: config keys of this part that hold further parts, with their kinds.

    Raises:
        DuplicateNameError: when the name is taken.
    """

    def decorate(builder: _Builder) -> _Builder:
        if (kind, name) in _parts:
            raise DuplicateNameError(f"{kind} {name!r} is registered already, by {_parts[kind, name].build!r}")
        _parts[kind, name] = _Part(builder, dict(parts or {}), {})
        return builder

    return decorate


def register_model(
    name: str,
    *,
    architecture: str,
    task: Task,
    parts: Mapping[str, str] | None = None,
    weights: tuple[str, ...] = (),
) -> Callable[[_Builder], _Builder]:
    """Decorator: make ``create_model(name, **config)`` call the decorated function with a completed config.

    Args:
        name: unique among models.
        architecture: the meta-architecture the function builds.
        task: what the model finds.
        parts: config keys that hold parts, with their kinds; a mapping of names to parts is fine as well.
        weights: names of published weights that ``load`` knows how to get for it.

    Raises:
        DuplicateNameError: when the name is taken.
    """

    def decorate(builder: _Builder) -> _Builder:
        if name in _models:
            raise DuplicateNameError(f"model {name!r} is registered already, by {_models[name].build!r}")
        _models[name] = _Model(builder, dict(parts or {}), architecture, task, weights, {})
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
    register_model(name, architecture=origin.architecture, task=origin.task, parts=origin.parts, weights=weights)(
        origin.build
    )
    _models[name] = replace(_models[name], defaults=merge_options(origin.defaults, defaults))


def build(kind: str, config: Config, *wired: Any) -> Any:
    """Build a part from ``{"name": ..., **options}``; ``wired`` are the values its owner passes on.

    Raises:
        UnknownNameError: when no part of that kind has the name.
        ConfigError: when an option is unknown or refused by the part.
    """
    completed = complete(kind, config)
    options = {key: value for key, value in completed.items() if key != "name"}
    return _find_part(kind, completed["name"]).build(*wired, **options)


def complete(kind: str, config: Config) -> dict[str, Any]:
    """The config of a part with every default filled in, recursively; a deep copy of plain JSON values."""
    if not isinstance(config, Mapping) or "name" not in config:
        raise ConfigError(f"a {kind} config must be a mapping with a 'name', got {config!r}")
    part = _find_part(kind, config["name"])
    return {"name": config["name"], **_complete(part, f"{kind} {config['name']!r}", config)}


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
    if name not in _models and name.startswith(_ADAPTER_PREFIX):
        importlib.import_module(_ADAPTER).register_models()  # so that weights saved from one load in a new process
    if name not in _models:
        raise UnknownNameError(f"unknown model {name!r}; known: {', '.join(sorted(_models))}")
    return _models[name]


def model_names() -> list[str]:
    """Sorted names that ``create_model`` accepts."""
    import_families()
    return sorted(_models)


def list_models() -> list[ModelInfo]:
    """Every model that can be created, and every shipped set of trained weights, sorted by name."""
    from modelkit.weights import shipped_records  # the record module needs this one to rebuild models

    infos = [_describe(name) for name in model_names()]
    for record in shipped_records():
        architecture = find_model(record.architecture).architecture
        infos.append(ModelInfo(record.name, architecture, record.task, record.num_parameters, True, (record.name,)))
    return sorted(infos, key=lambda info: info.name)


@functools.cache
def _describe(name: str) -> ModelInfo:
    entry = _models[name]
    return ModelInfo(name, entry.architecture, entry.task, count_parameters(name), False, entry.weights)


def count_parameters(name: str, **config: Any) -> int:
    """Number of parameters of a model, without allocating them (meta device); buffers are not counted."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name, **config).parameters())


@contextmanager
def temporary_registrations() -> Iterator[None]:
    """Forget, on leaving, what was registered inside; for tests and notebooks."""
    import_families()
    saved_parts, saved_models = dict(_parts), dict(_models)
    try:
        yield
    finally:
        _parts.clear()
        _parts.update(saved_parts)
        _models.clear()
        _models.update(saved_models)
        _describe.cache_clear()


def _find_part(kind: str, name: str) -> _Part:
    import_families()
    if (kind, name) not in _parts:
        known = sorted(other for other_kind, other in _parts if other_kind == kind)
        raise UnknownNameError(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}")
    return _parts[kind, name]


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


def _complete_parts(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError(f"a {kind} config must be a mapping with a 'name', got {value!r}")
    if "name" in value:
        return complete(kind, value)
    return {name: None if part is None else complete(kind, part) for name, part in value.items()}


def _as_json(where: str, value: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the config of {where} must be plain JSON: {error}") from error


def import_families() -> None:
    """Register what comes with modelkit: before a public name is handed out and before anything is looked up."""
    for family in _FAMILIES:
        if family not in sys.modules:
            importlib.import_module(family)
