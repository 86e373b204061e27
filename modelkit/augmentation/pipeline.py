"""Pipelines: a row of operations as plain JSON, the weak one for human labels and the strong one for students."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from modelkit.augmentation.operations import (
    Blur,
    ColourJitter,
    Cutout,
    Greyscale,
    HorizontalFlip,
    ObjectJitter,
    Operation,
    RandomCrop,
    ScaleJitter,
    StacGeometric,
)
from modelkit.augmentation.randaugment import RandAugment
from modelkit.augmentation.sample import Sample
from modelkit.errors import ConfigError

OPERATIONS: dict[str, type[Any]] = {
    "horizontal_flip": HorizontalFlip,
    "scale_jitter": ScaleJitter,
    "random_crop": RandomCrop,
    "stac_geometric": StacGeometric,
    "object_jitter": ObjectJitter,
    "rand_augment": RandAugment,
    "colour_jitter": ColourJitter,
    "greyscale": Greyscale,
    "blur": Blur,
    "cutout": Cutout,
}
Config = Mapping[str, Any]

NONE: tuple[Config, ...] = ()
WEAK: tuple[Config, ...] = ({"name": "horizontal_flip"},)
STRONG: tuple[Config, ...] = (
    {"name": "horizontal_flip"},
    {"name": "scale_jitter", "low": 0.8, "high": 1.25},
    {"name": "rand_augment", "num_ops": 2, "magnitude": 10, "photometric_only": True},
    {"name": "stac_geometric"},
    {"name": "cutout"},
)
"""Noise on the student (Xie et al. 2020, Sohn et al. 2020): colours by RandAugment, one geometric change, patches."""


class Pipeline:
    """Operations one after the other.

    Args:
        configs: each {"name": ..., options}; see ``OPERATIONS``.

    Raises:
        ConfigError: for unknown names and options.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        self.configs = tuple(dict(config) for config in configs)
        self.operations: tuple[Operation, ...] = tuple(_build(config) for config in self.configs)

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The changed sample; its ``matrix`` holds where every source pixel went."""
        for operation in self.operations:
            sample = operation(sample, generator)
        return sample


def _build(config: Mapping[str, Any]) -> Operation:
    options = {key: value for key, value in config.items() if key != "name"}
    kind = OPERATIONS.get(str(config.get("name")))
    if kind is None:
        raise ConfigError(f"unknown augmentation {config.get('name')!r}; known: {', '.join(OPERATIONS)}")
    unknown = sorted(options.keys() - inspect.signature(kind).parameters.keys())
    if unknown:
        raise ConfigError(f"augmentation {config['name']} has no option {', '.join(unknown)}")
    operation: Operation = kind(**options)
    return operation
