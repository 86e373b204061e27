"""Which prior learns which object (Liu et al. 2016, SSD; thresholds and crowds as in Bolya et al. 2019, YOLACT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from modelkit.detection.targets import in_ignored_region
from modelkit.errors import ConfigError

NEUTRAL = -1


class SSDMatcher:
    """Priors to objects by IoU; every object gets at least one prior, however small their overlap.

    Args:
        positive_iou: at or above: the prior learns its best object.
        negative_iou: below: background. Between the two: neutral, no loss.
        crowd_iou: a prior that is no positive and lies in a crowd by more than this share of its area is neutral.
    """

    def __init__(self, positive_iou: float = 0.5, negative_iou: float = 0.4, crowd_iou: float = 0.7) -> None:
        if not 0 <= negative_iou <= positive_iou <= 1:
            raise ConfigError(
                f"matching needs 0 <= negative_iou <= positive_iou <= 1, got {negative_iou}, {positive_iou}"
            )
        self.positive_iou, self.negative_iou, self.crowd_iou = positive_iou, negative_iou, crowd_iou

    @torch.no_grad()
    def __call__(self, priors_xyxy: Tensor, target: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Match the priors (P, 4) of one image.

        Args:
            priors_xyxy: in the unit of the target's boxes.
            target: ``boxes`` (n, 4), ``labels`` (n,) from 1, optionally ``iscrowd`` (n,) bool, ``ignore_boxes``.

        Returns:
            (labels, matched): (P,) long; the object's label, 0 = background, -1 = neutral; and the object's index in
            the target, which means nothing where the label is not positive. Priors in ignored regions that would be
            background are neutral.
        """
        crowd = crowd_of(target)
        objects = torch.nonzero(~crowd)[:, 0]
        if len(objects) == 0:
            labels = torch.zeros(len(priors_xyxy), dtype=torch.int64, device=priors_xyxy.device)
            matched = torch.zeros_like(labels)
        else:
            labels, matched = self._match(priors_xyxy, target["boxes"][objects], target["labels"][objects])
            matched = objects[matched]
        if crowd.any():
            inside = _share_inside(priors_xyxy, target["boxes"][crowd].to(priors_xyxy)).amax(1)
            labels[(labels <= 0) & (inside > self.crowd_iou)] = NEUTRAL
        labels[(labels == 0) & in_ignored_region(priors_xyxy, target, self.negative_iou)] = NEUTRAL
        return labels, matched

    def _match(self, priors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        overlaps = box_iou(boxes.to(priors), priors)
        best, matched = overlaps.max(0)
        for _ in range(len(boxes)):  # most certain pair first; neither side of a pair is given away again
            pair = int(overlaps.argmax())
            row, prior = divmod(pair, len(priors))
            overlaps[:, prior] = -1
            overlaps[row] = -1
            best[prior], matched[prior] = 2.0, row
        found = labels[matched]
        found = torch.where(best < self.positive_iou, NEUTRAL, found)
        return torch.where(best < self.negative_iou, 0, found), matched


class FaceMatcher(SSDMatcher):
    """RetinaFace's rule (biubug6/Pytorch_Retinaface): an object that no prior fits at all is left alone.

    Args:
        positive_iou: at or above: the prior learns its best object; below: background.
        forced_iou: an object's best prior learns it whatever ``positive_iou`` says, if they overlap by so much. Of
            objects with the same best prior the last one gets it.
        crowd_iou: see ``SSDMatcher``.
    """

    def __init__(self, positive_iou: float = 0.35, forced_iou: float = 0.2, crowd_iou: float = 0.7) -> None:
        super().__init__(positive_iou, positive_iou, crowd_iou)
        self.forced_iou = forced_iou

    def _match(self, priors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        overlaps = box_iou(boxes.to(priors), priors)
        best, matched = overlaps.max(0)
        for row, (overlap, prior) in enumerate(zip(*(each.tolist() for each in overlaps.max(1)), strict=True)):
            if overlap >= self.forced_iou:
                best[prior], matched[prior] = 2.0, row
        return torch.where(best < self.positive_iou, 0, labels[matched]), matched


def crowd_of(target: Mapping[str, Any]) -> Tensor:
    """(n,) bool: which of a target's boxes hold a crowd instead of one object; all False where nothing says so."""
    if "iscrowd" in target:
        return target["iscrowd"].bool()
    return torch.zeros(len(target["boxes"]), dtype=torch.bool, device=target["boxes"].device)


def _share_inside(a: Tensor, b: Tensor) -> Tensor:
    """(len(a), len(b)): intersection over the area of a."""
    sides = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    return sides.prod(2) / box_area(a)[:, None]
