"""How one system's tensor names translate, as data.

A rule is a regular expression for a foreign name and what to write instead; the first that matches counts, names that
match none stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.errors import WeightsError

State = dict[str, Tensor]
# The transform of systems that look at images as they are; the limit keeps one picture from taking all memory.
OWN_SIZE: Mapping[str, Any] = {"scale": 1.0, "padding": "none", "size_divisible": 1, "max_size": 4096}


@dataclass(frozen=True, slots=True)
class KeyTable:
    """How one system's checkpoints translate.

    Args:
        rules: (regular expression, replacement) pairs.
        drop: regular expressions of entries that our models do not keep; these need not be tensors.
        reverse_channels: regular expressions of foreign names of first convolutions that were trained on BGR; their
            input channels are reversed, because our models see RGB.
        infer: what the tensors say about the config (number of classes, kind of normalisation).
        config: what the system's own computation needs and no tensor says: above all how it prepares images.
        classes: what its checkpoints find, where that is always the same; ids of another number are only numbered.
        keypoints: what their points are; points of another number are only numbered.
    """

    rules: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    reverse_channels: tuple[str, ...] = ()
    infer: Callable[[State], dict[str, Any]] = lambda state: {}
    config: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[ClassInfo, ...] = ()
    keypoints: KeypointSet | None = None

    def drops(self, name: str) -> bool:
        """Whether an entry of that name is left behind."""
        return _matches(self.drop, name)

    def rename(self, state: Mapping[str, Tensor]) -> State:
        """The tensors under our names; raises WeightsError when two get the same one."""
        renamed: State = {}
        for name, tensor in state.items():
            if self.drops(name):
                continue
            target = self._target(name)
            if target in renamed:
                raise WeightsError(f"two tensors of the checkpoint translate to {target!r}, the second is {name!r}")
            renamed[target] = tensor.flip(1) if _matches(self.reverse_channels, name) else tensor
        return renamed

    def _target(self, name: str) -> str:
        for pattern, replacement in self.rules:
            target, count = re.subn(pattern, replacement, name, count=1)
            if count:
                return target
        return name


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
