"""Two samples become one: CutMix with boxes, masks and maps, and simple copy-paste.

torchvision's ``CutMix`` mixes whole batches with one class an image and refuses boxes and masks; here a region of the
donor replaces that of the host, pixels and labels alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelkit.augmentation.draws import chance, integer, uniform
from modelkit.augmentation.geometry import MIN_VISIBLE
from modelkit.augmentation.sample import Sample
from modelkit.carriers import SizeHW
from modelkit.carriers.fields import box_pixels
from modelkit.carriers.geometry import tight_boxes
from modelkit.carriers.targets import cover_target, drop_hidden, mix_targets, select
from modelkit.errors import TargetError


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
        host, donor: of one size, with the same entries in their targets (weights and ignored regions may differ).
        where: (H, W) bool.
        whole_objects: the donor's objects lie inside ``where`` completely.

    Raises:
        TargetError: for other sizes, or when only one of them has masks or a semantic map.
    """
    if host.size_hw != donor.size_hw:
        raise TargetError(f"only samples of one size can be mixed, got {host.size_hw} and {donor.size_hw}")
    below = _remaining(host.target, ~where, min_visible=MIN_VISIBLE)
    above = _remaining(donor.target, where, min_visible=0.0 if whole_objects else MIN_VISIBLE)
    image = torch.where(where, donor.image, host.image)
    return Sample(image, mix_targets(below, above, where), host.matrix, host.source_hw)


def _remaining(target: Mapping[str, Any], area: Tensor, min_visible: float) -> dict[str, Any]:
    """A target with its objects and ignored regions as far as they lie in ``area``."""
    covered = cover_target(target, area)
    if "boxes" not in target:
        return covered
    if "masks" in target:
        before, after = (each["masks"].flatten(1).sum(1) for each in (target, covered))
        covered["boxes"], visible = tight_boxes(covered["masks"]), after / before.clamp(min=1)
    else:
        shares = [float(area[box_pixels(box)].float().mean().nan_to_num()) for box in target["boxes"]]
        visible = torch.tensor(shares)
    return drop_hidden(covered, visible, min_visible)
