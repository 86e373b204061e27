"""What augmentations take and give: an image, its target, and the matrix that says where each source pixel went.

What a target may hold, and how it moves, is said in ``modelkit.carriers.targets``. Entries that are absent stay absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modelkit.carriers import SizeHW
from modelkit.errors import TargetError


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example.

    Args:
        image: (3, H, W) float32 in [0, 1].
        target: see the module; nothing in it is ever changed in place.
        matrix: (3, 3) float64, from pixels (x, y, 1) of the image as it was read to pixels of ``image``.
        source_hw: of the image as it was read.
    """

    image: Tensor
    target: Mapping[str, Any]
    matrix: Tensor
    source_hw: SizeHW

    @classmethod
    def fresh(cls, image: Tensor, target: Mapping[str, Any]) -> Sample:
        """As read; raises TargetError for anything but (3, H, W) float."""
        if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise TargetError(f"an image must be (3, H, W) float in [0, 1], got {tuple(image.shape)} {image.dtype}")
        return cls(image, target, torch.eye(3, dtype=torch.float64), (image.shape[-2], image.shape[-1]))

    @property
    def size_hw(self) -> SizeHW:
        """Rows and columns of ``image``."""
        return self.image.shape[-2], self.image.shape[-1]

    def with_image(self, image: Tensor) -> Sample:
        """The same with other colours; the size must not change."""
        return replace(self, image=image)

    def with_target(self, **changes: Any) -> Sample:
        """The same with other entries of the target."""
        return replace(self, target={**self.target, **changes})
