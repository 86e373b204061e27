"""Training targets of detectors: the checks, the three bands, and the sampling of proposals into training examples.

Targets made by a teacher need three bands: objects that are believed, background, and *ignored* regions where something
may be that nobody is sure of (``ignore_boxes``). What lies in an ignored region and matches no object is no
background: it gives no gradient at all. Each object may also weigh less than 1 in the class, box and mask loss, or
nothing in one of them (``class_weights``, ``box_weights``, ``mask_weights``), since a sure class does not make a sure
outline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from modelkit.errors import TargetError

WEIGHT_KEYS = ("class_weights", "box_weights", "mask_weights")
IGNORED_SHARE = 0.5  # of a region's area inside an ignored box, from which on it is ignored, whatever their IoU


@dataclass(frozen=True, slots=True)
class Samples:
    """Proposals picked for training, one list entry per image, with what they were matched to.

    Args:
        boxes: (s, 4) float xyxy in resized pixels.
        labels: (s,) long; 0 = background.
        matched: (s,) long index of the matched ground truth; 0 where there is none.
        targets: target dicts in resized pixels.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    matched: list[Tensor]
    targets: Sequence[Mapping[str, Any]]

    def positive(self, teaching: str | None = None) -> Samples:
        """Only the samples that were matched to an object; with ``teaching``, one whose weight of that key is not 0."""
        keep = [labels > 0 for labels in self.labels]
        if teaching is not None:
            taught = self.weights(teaching).split([len(labels) for labels in self.labels])
            keep = [here & (weights > 0) for here, weights in zip(keep, taught, strict=True)]
        return self.kept(keep)

    def kept(self, keep: Sequence[Tensor]) -> Samples:
        """Some of the samples: one mask (s,) bool for each image."""
        return Samples(
            [boxes[k] for boxes, k in zip(self.boxes, keep, strict=True)],
            [labels[k] for labels, k in zip(self.labels, keep, strict=True)],
            [matched[k] for matched, k in zip(self.matched, keep, strict=True)],
            self.targets,
        )

    def weights(self, key: str) -> Tensor:
        """(r,) float: the weight of each sample of all images; that of its object, and 1 on background."""
        pieces = [
            torch.where(labels > 0, object_weights(target, key).to(boxes)[matched], 1.0)
            if len(target["boxes"])
            else boxes.new_ones(len(boxes))
            for boxes, labels, matched, target in zip(self.boxes, self.labels, self.matched, self.targets, strict=True)
        ]
        return torch.cat(pieces)


def object_weights(target: Mapping[str, Any], key: str) -> Tensor:
    """(n,) float: ``target[key]``, or ones where a target has none (human labels)."""
    weights: Tensor = target[key] if key in target else target["boxes"].new_ones(len(target["boxes"]))
    return weights


def mask_pixel_weights(target: Mapping[str, Any]) -> Tensor:
    """(n,) float: how much the pixels of each object's mask count for a class by pixel: both must be believed."""
    return torch.minimum(object_weights(target, "class_weights"), object_weights(target, "mask_weights"))


def in_ignored_region(boxes: Tensor, target: Mapping[str, Any], iou_threshold: float) -> Tensor:
    """(b,) bool: whether a box lies in an ignored region.

    A box does when at least half of it is inside an ignored one (small boxes on parts of an unsure object) or when
    their IoU reaches ``iou_threshold``, from which on it could have been matched to an object there.

    Args:
        boxes: (b, 4) xyxy.
        target: with ``ignore_boxes`` (k, 4) in the same pixels, or without.
        iou_threshold: of the caller's matcher: below it a box is background.
    """
    ignored = target.get("ignore_boxes")
    if ignored is None or len(ignored) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    ignored = ignored.to(boxes)
    top_left = torch.maximum(boxes[:, None, :2], ignored[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], ignored[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).prod(-1)
    inside = (overlap / area[:, None]).amax(1) >= IGNORED_SHARE
    return inside | (box_iou(boxes, ignored).amax(1) >= iou_threshold)


class ProposalSampler:
    """Match proposals to ground truth by IoU and draw a balanced sample; the ground-truth boxes join the proposals.

    Proposals in ignored regions are never drawn as background.

    Args:
        iou_threshold: at or above: foreground; below: background.
        per_image: how many samples an image gives.
        positive_fraction: upper bound on the share of foreground.
    """

    def __init__(self, iou_threshold: float, per_image: int, positive_fraction: float) -> None:
        self.iou_threshold = iou_threshold
        self._matcher = Matcher(iou_threshold, iou_threshold, allow_low_quality_matches=False)
        self._draw = BalancedPositiveNegativeSampler(per_image, positive_fraction)

    @torch.no_grad()
    def __call__(self, proposals: list[Tensor], targets: Sequence[Mapping[str, Any]]) -> Samples:
        """Proposals (p, 4) per image in resized pixels to at most ``per_image`` samples per image."""
        boxes = [
            torch.cat([found, target["boxes"].to(found)]) for found, target in zip(proposals, targets, strict=True)
        ]
        pairs = [self._match(found, target) for found, target in zip(boxes, targets, strict=True)]
        labels, matched = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        for found, label, target in zip(boxes, labels, targets, strict=True):
            label[(label == 0) & in_ignored_region(found, target, self.iou_threshold)] = -1  # the draw skips these
        positive, negative = self._draw(labels)
        chosen = [torch.where(p | n)[0] for p, n in zip(positive, negative, strict=True)]
        return Samples(
            [values[k] for values, k in zip(boxes, chosen, strict=True)],
            [values[k] for values, k in zip(labels, chosen, strict=True)],
            [values[k] for values, k in zip(matched, chosen, strict=True)],
            targets,
        )

    def _match(self, boxes: Tensor, target: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if len(target["boxes"]) == 0:
            labels, matched = torch.zeros((2, len(boxes)), dtype=torch.int64, device=boxes.device)
            return labels, matched
        matches = self._matcher(box_iou(target["boxes"].to(boxes), boxes))
        matched = matches.clamp(min=0)
        labels = target["labels"][matched]
        return torch.where(matches == Matcher.BELOW_LOW_THRESHOLD, 0, labels), matched


def check_targets(targets: Sequence[Mapping[str, Any]], num_images: int, num_classes: int) -> None:
    """Refuse targets that would train nonsense.

    Raises:
        TargetError: names the image's index, the key and the offending value.
    """
    if len(targets) != num_images:
        raise TargetError(f"{num_images} images need as many targets, got {len(targets)}")
    for index, target in enumerate(targets):
        _check_target(target, f"target {index}", num_classes)


def _check_target(target: Mapping[str, Any], where: str, num_classes: int) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise TargetError(f"{where}: boxes must be (n, 4) float xyxy, got {tuple(boxes.shape)} {boxes.dtype}")
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        raise TargetError(f"{where}: labels must be ({len(boxes)},) long, got {tuple(labels.shape)} {labels.dtype}")
    degenerate = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if degenerate.any():
        raise TargetError(f"{where}: boxes need x1 < x2 and y1 < y2, got {boxes[degenerate][0].tolist()}")
    if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise TargetError(f"{where}: labels must lie in 1 .. {num_classes - 1}, got {sorted(set(labels.tolist()))}")
    if "masks" in target and (target["masks"].dim() != 3 or len(target["masks"]) != len(boxes)):
        raise TargetError(f"{where}: masks must be ({len(boxes)}, H, W), got {tuple(target['masks'].shape)}")
    ignored = target.get("ignore_boxes")
    if ignored is not None and (ignored.dim() != 2 or ignored.shape[1] != 4 or not ignored.is_floating_point()):
        raise TargetError(
            f"{where}: ignore_boxes must be (k, 4) float xyxy, got {tuple(ignored.shape)} {ignored.dtype}"
        )
    for key in WEIGHT_KEYS:
        if key not in target:
            continue
        weights = target[key]
        if weights.shape != labels.shape or not bool((weights.isfinite() & (weights >= 0)).all()):
            raise TargetError(f"{where}: {key} must be ({len(boxes)},) finite and not negative, got {weights.tolist()}")
