"""What models there are: every registered one, and every set of weights that comes with the package."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from modelkit.registry import count_parameters, find_model, model_names
from modelkit.weights import shipped_records


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


def list_models() -> list[ModelInfo]:
    """Every model that can be created, and every shipped set of trained weights, sorted by name."""
    infos = []
    for name in model_names():
        entry = find_model(name)
        count = _count(name, entry.build)
        infos.append(ModelInfo(name, entry.architecture, entry.kind, count, False, entry.weights))
    for record in shipped_records():
        architecture = find_model(record.architecture).architecture
        infos.append(ModelInfo(record.name, architecture, record.kind, record.num_parameters, True, (record.name,)))
    return sorted(infos, key=lambda info: info.name)


@functools.cache
def _count(name: str, build: object) -> int:
    """Parameters of the default config; ``build`` tells a name registered anew from the one before."""
    return count_parameters(name)
