"""Two samples become one: CutMix with boxes, masks and maps, and simple copy-paste.

torchvision's ``CutMix`` mixes whole batches with one class an image and refuses boxes and masks; here a region of the
donor replaces that of the host, pixels and labels alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelkit.augmentation.draws import chance, integer, uniform
from modelkit.augmentation.geometry import MIN_VISIBLE
from modelkit.augmentation.sample import PER_OBJECT, Sample, drop_hidden, select, tight_boxes
from modelkit.errors import TargetError
from modelkit.transform import SizeHW


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of whole pixels; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.bottom - self.top) * (self.right - self.left)

    def mask(self, size_hw: SizeHW) -> Tensor:
        """(H, W) bool."""
        mask = torch.zeros(size_hw, dtype=torch.bool)
        mask[self.top : self.bottom, self.left : self.right] = True
        return mask


def cutmix_region(size_hw: SizeHW, share: float, centre_yx: tuple[int, int]) -> Region:
    """The rectangle of CutMix (Yun et al. 2019): sides sqrt(1 - share) of the image's, cut off at its borders.

    Args:
        size_hw: of the image.
        share: of the host that would stay if nothing were cut off, in [0, 1].
        centre_yx: of the rectangle.
    """
    sides = [int(side * math.sqrt(1 - share)) for side in size_hw]
    spans = [
        (max(0, centre - cut // 2), min(side, centre + cut // 2))
        for centre, cut, side in zip(centre_yx, sides, size_hw, strict=True)
    ]
    return Region(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def cutmix(host: Sample, donor: Sample, generator: torch.Generator) -> Sample:
    """Replace a random rectangle of the host by the donor's; the share is drawn from Beta(1, 1)."""
    rows, columns = host.size_hw
    share = uniform(generator, 0.0, 1.0)
    centre = integer(generator, 0, rows - 1), integer(generator, 0, columns - 1)
    region = cutmix_region(host.size_hw, share, centre)
    return paste(host, donor, region.mask(host.size_hw))


def copy_paste(
    host: Sample, donor: Sample, generator: torch.Generator, *, labels: Collection[int] | None = None
) -> Sample:
    """Put a random half of the donor's objects upon the host (Ghiasi et al. 2021); needs masks.

    Args:
        host, donor: of one size.
        generator: decides which objects.
        labels: only objects of these classes (rare ones); default: of any.
    """
    if "masks" not in donor.target or "masks" not in host.target:
        raise TargetError("copy-paste needs the masks of both samples")
    chosen = torch.tensor([chance(generator, 0.5) for _ in range(len(donor.target["boxes"]))], dtype=torch.bool)
    if labels is not None:
        chosen &= torch.isin(donor.target["labels"], torch.tensor(sorted(labels), dtype=torch.int64))
    if not chosen.any():
        return host
    objects = Sample(donor.image, select(donor.target, chosen), donor.matrix, donor.source_hw)
    return paste(host, objects, objects.target["masks"].bool().any(0), whole_objects=True)


def paste(host: Sample, donor: Sample, where: Tensor, *, whole_objects: bool = False) -> Sample:
    """The host with the donor's pixels, objects and maps where ``where`` says.

    Objects of either that lose too much become ignored regions (``drop_hidden``); with ``whole_objects`` the donor's
    are all kept.

    Args:
        host, donor: of one size, with the same keys in their targets (weights and ignored regions may differ).
        where: (H, W) bool.
        whole_objects: the donor's objects lie inside ``where`` completely.

    Raises:
        TargetError: for other sizes, or when only one of them has masks or a semantic map.
    """
    if host.size_hw != donor.size_hw:
        raise TargetError(f"only samples of one size can be mixed, got {host.size_hw} and {donor.size_hw}")
    if ("masks" in host.target) != ("masks" in donor.target):
        raise TargetError("only samples that both have masks, or both have none, can be mixed")
    if ("semantic" in host.target) != ("semantic" in donor.target):
        raise TargetError("only samples that both have semantic maps, or both have none, can be mixed")
    image = torch.where(where, donor.image, host.image)
    target: dict[str, Any] = {k: v for k, v in host.target.items() if k not in PER_OBJECT and k != "ignore_boxes"}
    for key in ("semantic", "semantic_weights"):
        if key in host.target or key in donor.target:
            one, other = (s.target.get(key, torch.ones(host.size_hw)) for s in (host, donor))  # human pixels weigh 1
            target[key] = torch.where(where, other, one)
    if "boxes" in host.target:
        below = _remaining(host, ~where, min_visible=MIN_VISIBLE)
        above = _remaining(donor, where, min_visible=0.0 if whole_objects else MIN_VISIBLE)
        target |= _joined(below, above)
    return Sample(image, target, host.matrix, host.source_hw)


def _remaining(sample: Sample, area: Tensor, min_visible: float) -> dict[str, Any]:
    """Objects and ignored regions of a sample, as far as they lie in ``area``."""
    target = dict(sample.target)
    if "ignore_boxes" in target:
        target["ignore_boxes"] = _cut_boxes(target["ignore_boxes"], area)
    if "masks" in target:
        before = target["masks"].flatten(1).sum(1)
        target["masks"] = target["masks"] * area.to(target["masks"].dtype)
        visible = target["masks"].flatten(1).sum(1) / before.clamp(min=1)
        target["boxes"] = tight_boxes(target["masks"])
    else:
        boxes = target["boxes"]
        visible = torch.tensor([float(area[_pixels(box)].float().mean().nan_to_num()) for box in boxes])
        target["boxes"] = _cut_boxes(boxes, area, keep_empty=True)
    if "keypoints" in target:
        target["keypoints"] = _hide_keypoints(target["keypoints"], area)
    return drop_hidden(target, visible, min_visible)


def _pixels(box: Tensor) -> tuple[slice, slice]:
    x1, y1, x2, y2 = box.round().int().clamp(min=0).tolist()
    return slice(y1, max(y2, y1 + 1)), slice(x1, max(x2, x1 + 1))


def _cut_boxes(boxes: Tensor, area: Tensor, *, keep_empty: bool = False) -> Tensor:
    """Boxes tightened around what of them lies in ``area``."""
    inside = torch.zeros((len(boxes), *area.shape), dtype=torch.bool)
    for slot, box in zip(inside, boxes, strict=True):
        slot[_pixels(box)] = area[_pixels(box)]
    cut = tight_boxes(inside).to(boxes)
    return cut if keep_empty else cut[inside.flatten(1).any(1)]


def _hide_keypoints(keypoints: Tensor, area: Tensor) -> Tensor:
    """Points outside of ``area`` are no longer labelled."""
    rows, columns = area.shape
    x = keypoints[..., 0].round().long().clamp(0, columns - 1)
    y = keypoints[..., 1].round().long().clamp(0, rows - 1)
    shown = keypoints.clone()
    shown[..., 2] = torch.where(area[y, x], keypoints[..., 2], 0.0)
    return shown


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Objects of both, those below first; what only one of them weighs, weighs 1 in the other."""
    joined: dict[str, Any] = {}
    for key in PER_OBJECT:
        if key in below or key in above:
            joined[key] = torch.cat(
                [_entries(part, key, like=(above if part is below else below)) for part in (below, above)]
            )
    ignored = [part["ignore_boxes"] for part in (below, above) if "ignore_boxes" in part]
    if ignored:
        joined["ignore_boxes"] = torch.cat(ignored)
    return joined


def _entries(part: dict[str, Any], key: str, like: dict[str, Any]) -> Tensor:
    if key in part:
        entries: Tensor = part[key]
        return entries
    if not key.endswith("_weights"):
        raise TargetError(f"only samples that both have {key!r} can be mixed")
    return like[key].new_ones(len(part["boxes"]))
