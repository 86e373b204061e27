"""What a training target may hold: its entries by name, and what moves, covers, mixes and chooses whole targets.

A target is a plain dict, so that losses, recipes and notebooks can write one down; what its keys mean is said here
once, in ``FIELDS``. A key that nobody registered raises ``TargetError`` wherever a target is moved: an entry that stays
behind while the pixels go elsewhere trains nonsense in silence. A family registers its further entries where it reads
them (``register_field``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelkit.carriers.fields import (
    Boxes,
    Field,
    Keypoints,
    Labels,
    Masks,
    PairedFlow,
    PairedImage,
    PartMaps,
    PixelMap,
    Regions,
    Resize,
    SurfacePoints,
    Value,
    Warp,
)
from modelkit.carriers.geometry import have_area
from modelkit.errors import DuplicateNameError, TargetError

IGNORE = 255  # of semantic maps: pixels that nobody labelled
FLIP_PAIRS = "flip_pairs"

FIELDS: dict[str, Field] = {
    "boxes": Boxes(per_object=True),
    "labels": Value(per_object=True),
    "masks": Masks(per_object=True),
    "keypoints": Keypoints(per_object=True),
    "surface_points": SurfacePoints(per_object=True),
    "coarse_parts": PartMaps(per_object=True),
    "track_ids": Value(per_object=True),
    "iscrowd": Value(per_object=True, default=0),
    "class_weights": Value(per_object=True, default=1),
    "box_weights": Value(per_object=True, default=1),
    "mask_weights": Value(per_object=True, default=1),
    "ignore_boxes": Regions(),
    "semantic": PixelMap(fill=IGNORE),
    "semantic_weights": PixelMap(fill=0, default=1),
    "abstaining": Labels(),
    FLIP_PAIRS: Value(),
    "reference_image": PairedImage(),
    "flow": PairedFlow(),
}
"""By key of a target. Human labels need no weights: where one of two mixed samples has none, it weighs 1."""


def register_field(name: str, field: Field) -> None:
    """Make a further entry of targets known; raises DuplicateNameError when the name is taken."""
    if name in FIELDS:
        raise DuplicateNameError(f"targets have an entry {name!r} already: {type(FIELDS[name]).__name__}")
    FIELDS[name] = field


def field_of(name: str) -> Field:
    """The field of an entry; raises TargetError for one that nobody knows how to move."""
    if name not in FIELDS:
        raise TargetError(
            f"a target has an entry {name!r}, and nobody said how it moves with the pixels; known: "
            f"{', '.join(sorted(FIELDS))}; a family makes others known with modelkit.carriers.targets.register_field"
        )
    return FIELDS[name]


def resize_target(target: Mapping[str, Any], resize: Resize) -> dict[str, Any]:
    """The target of the same image at another size. Like all functions here, raises TargetError for unknown entries."""
    return {name: field_of(name).resized(value, resize) for name, value in target.items()}


def warp_target(target: Mapping[str, Any], warp: Warp) -> dict[str, Any]:
    """The target of the moved image; objects keep their rows."""
    return {name: field_of(name).warped(value, warp) for name, value in target.items()}


def cover_target(target: Mapping[str, Any], area: Tensor) -> dict[str, Any]:
    """What is left of the objects and regions when everything outside of ``area``, (H, W) bool, is covered."""
    return {name: field_of(name).within(value, area) for name, value in target.items()}


def select(target: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """The target with some of its objects: ``keep`` is a bool mask or an index."""
    return {name: field_of(name).chosen(value, keep) for name, value in target.items()}


def mix_targets(below: Mapping[str, Any], above: Mapping[str, Any], where: Tensor) -> dict[str, Any]:
    """One target of two samples of one size: objects of both, those below first, and maps as ``where`` says.

    Args:
        below: shows where ``where``, (H, W) bool, is False; what is covered has been taken away already.
        above: shows where it is True.
        where: see above.

    Raises:
        TargetError: an entry that only one of them has, without a default; or that cannot be mixed.
    """
    mixed = {}
    for name in dict.fromkeys([*below, *above]):
        field = field_of(name)
        under, over = _entry(name, field, below, above, where), _entry(name, field, above, below, where)
        mixed[name] = field.mixed(under, over, where)
    return mixed


def _entry(name: str, field: Field, part: Mapping[str, Any], other: Mapping[str, Any], where: Tensor) -> Any:
    if name in part:
        return part[name]
    if isinstance(field, Regions):
        return other[name][:0]
    if field.default is None:
        raise TargetError(f"only samples that both have {name!r}, or both have none, can be mixed")
    shape = (len(part["boxes"]),) if field.per_object else where.shape
    return other[name].new_full(shape, field.default)


def drop_hidden(target: Mapping[str, Any], visible: Tensor, min_visible: float) -> dict[str, Any]:
    """Without objects of which too little is left; a part that still shows becomes an ignored region, not background.

    Args:
        target: its boxes are those of what is visible.
        visible: (n,) float, visible share of each object.
        min_visible: objects with a smaller share go.
    """
    boxes, has_area = target["boxes"], have_area(target["boxes"])
    stays = (visible >= min_visible) & has_area
    slivers = boxes[~stays & has_area & (visible > 0)]
    kept = select(target, stays)
    if len(slivers) or "ignore_boxes" in target:
        kept["ignore_boxes"] = torch.cat([target.get("ignore_boxes", boxes.new_zeros((0, 4))), slivers])
    return kept
