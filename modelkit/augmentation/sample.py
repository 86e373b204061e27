"""What augmentations take and give: an image, its target, and the matrix that says where each source pixel went.

Boxes are xyxy with (0, 0) the corner of the first pixel; keypoints have pixel *centres* at integers, as COCO has them.
Targets hold what the losses know: ``boxes, labels, masks, keypoints, track_ids, iscrowd`` and the weights by object,
``ignore_boxes``, ``semantic``, ``semantic_weights``. Keys that are absent stay absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modelkit.errors import TargetError
from modelkit.transform import SizeHW

PER_OBJECT = (
    "boxes",
    "labels",
    "masks",
    "keypoints",
    "track_ids",
    "iscrowd",
    "class_weights",
    "box_weights",
    "mask_weights",
)
IGNORE = 255  # of semantic maps
GREY = 0.5  # what shows where there is no picture


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


def select(target: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """The target with some of its objects: ``keep`` is a bool mask or an index."""
    return {key: value[keep] if key in PER_OBJECT else value for key, value in target.items()}


def tight_boxes(masks: Tensor) -> Tensor:
    """(n, H, W) to the boxes (n, 4) float32 around their pixels, exclusive at the right and bottom; zeros if empty."""
    if len(masks) == 0:
        return torch.zeros((0, 4))
    columns, rows = masks.bool().any(1), masks.bool().any(2)
    sides = []
    for used in (columns, rows):
        first = used.int().argmax(1)
        last = used.shape[1] - used.flip(1).int().argmax(1)
        present = used.any(1)
        sides.append((first * present, last * present))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], 1).float()


def drop_hidden(target: Mapping[str, Any], visible: Tensor, min_visible: float) -> dict[str, Any]:
    """Without objects of which too little is left; a part that still shows becomes an ignored region, not background.

    Args:
        target: its boxes are those of what is visible.
        visible: (n,) float, visible share of each object.
        min_visible: objects with a smaller share go.
    """
    boxes = target["boxes"]
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    stays = (visible >= min_visible) & has_area
    slivers = boxes[~stays & has_area & (visible > 0)]
    kept = select(target, stays)
    if len(slivers) or "ignore_boxes" in target:
        kept["ignore_boxes"] = torch.cat([target.get("ignore_boxes", boxes.new_zeros((0, 4))), slivers])
    return kept
