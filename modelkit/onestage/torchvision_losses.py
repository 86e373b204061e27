"""The losses of torchvision's one-stage detectors, with ignored regions and weights by object, which its own lack.

Formulas and means are torchvision's: without weights and ignored regions the values are the same. Which anchor learns
which object is left to torchvision itself. A positive anchor counts as much as its object's weights say; anchors in
ignored regions that match no object are neutral. What weighs less stays in the number that a sum is divided by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from modelkit.detection.targets import in_ignored_region, object_weights

_BACKGROUND, _NEUTRAL = -1, -2  # of torchvision's matchers
Outputs = dict[str, Tensor]
Targets = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Assigned:
    """What the anchors of a batch shall learn.

    Args:
        anchors: (N, A, 4) xyxy in resized pixels.
        labels: (N, A) long; 0 is the background, -1 neutral.
        boxes: (N, A, 4) of the matched objects; mean nothing where the label is not positive.
        class_weights, box_weights: (N, A) float; 1 on background.
    """

    anchors: Tensor
    labels: Tensor
    boxes: Tensor
    class_weights: Tensor
    box_weights: Tensor

    @property
    def positive(self) -> Tensor:
        """(N, A) bool."""
        return self.labels > 0


def assign(network: Any, outputs: Outputs, anchors: list[Tensor], per_level: list[int], targets: Targets) -> Assigned:
    """Which anchor learns what.

    Args:
        network: RetinaNet, FCOS or SSD.
        outputs: of its head.
        anchors: (A, 4) per image.
        per_level: anchors on each map.
        targets: in resized pixels.
    """
    found = _matched(network, outputs, anchors, per_level, targets)
    parts = [_of_image(network, *each) for each in zip(anchors, found, targets, strict=True)]
    return Assigned(torch.stack(anchors), *(torch.stack(each) for each in zip(*parts, strict=True)))


def _matched(
    network: Any, outputs: Outputs, anchors: list[Tensor], per_level: list[int], targets: Targets
) -> list[Tensor]:
    """(A,) long per image: the object of each anchor, or torchvision's -1 and -2.

    RetinaNet and FCOS match inside of ``compute_loss`` and hand the result to their head; here a head that gives it
    back stands in its place.
    """
    if isinstance(network, SSD):
        return [_matched_by_iou(network, *each) for each in zip(anchors, targets, strict=True)]
    matching: Any = SimpleNamespace(head=SimpleNamespace(compute_loss=lambda *given: given[-1]))
    found: Any
    if isinstance(network, FCOS):
        matching.center_sampling_radius = network.center_sampling_radius
        found = FCOS.compute_loss(matching, targets, outputs, anchors, per_level)
    else:
        matching.proposal_matcher = network.proposal_matcher
        found = RetinaNet.compute_loss(matching, targets, outputs, anchors)
    return list(found)


def _matched_by_iou(network: Any, anchors: Tensor, target: Mapping[str, Any]) -> Tensor:
    if len(target["boxes"]) == 0:
        return torch.full((len(anchors),), _BACKGROUND, dtype=torch.int64, device=anchors.device)
    found: Tensor = network.proposal_matcher(box_iou(target["boxes"].to(anchors), anchors))
    return found


def _of_image(network: Any, anchors: Tensor, matched: Tensor, target: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Labels, boxes, class and box weights of the anchors of one image."""
    matched = matched.clone()
    matched[(matched == _BACKGROUND) & _ignored(network, anchors, target)] = _NEUTRAL
    labels = torch.zeros_like(matched)
    labels[matched == _NEUTRAL] = -1
    boxes, weights = torch.zeros_like(anchors), anchors.new_ones((2, len(anchors)))
    positive = matched >= 0
    objects = matched[positive]
    labels[positive] = target["labels"][objects].to(labels)
    boxes[positive] = target["boxes"][objects].to(boxes)
    for slot, key in zip(weights, ("class_weights", "box_weights"), strict=True):
        slot[positive] = object_weights(target, key).to(slot)[objects]
    return labels, boxes, weights[0], weights[1]


def _ignored(network: Any, anchors: Tensor, target: Mapping[str, Any]) -> Tensor:
    """(A,) bool. An anchor of FCOS is a point, so it lies in a region when its middle does; others by their area."""
    if not isinstance(network, FCOS):
        return in_ignored_region(anchors, target, network.proposal_matcher.low_threshold)
    regions = target.get("ignore_boxes", anchors.new_zeros((0, 4))).to(anchors)
    middles = ((anchors[:, :2] + anchors[:, 2:]) / 2)[:, None]
    return ((middles >= regions[:, :2]) & (middles < regions[:, 2:])).all(-1).any(-1)


def losses_of(network: Any, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
    """Named by torchvision's names, unweighted."""
    return next(loss for kind, loss in _LOSSES.items() if isinstance(network, kind))(network, outputs, assigned)


def _retinanet(network: Any, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
    """Focal loss of anchors that are not neutral, and L1 or GIoU of positive ones, per positive of their image."""
    positive, count = assigned.positive, assigned.positive.sum(1).clamp(min=1)
    head, given = network.head.regression_head, outputs["bbox_regression"][positive]
    anchors, wanted = assigned.anchors[positive], assigned.boxes[positive]
    if head._loss_type == "l1":
        each = F.l1_loss(given, head.box_coder.encode_single(wanted, anchors), reduction="none").sum(1)
    else:
        each = generalized_box_iou_loss(head.box_coder.decode_single(given, anchors), wanted, reduction="none")
    share = (assigned.box_weights / count[:, None])[positive]
    return {
        "classification": (_focal(outputs["cls_logits"], assigned).sum(1) / count).mean(),
        "bbox_regression": (each * share).sum() / len(count),
    }


def _fcos(network: Any, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
    """Focal loss, GIoU and the cross-entropy of centreness, per positive of the batch."""
    positive, count = assigned.positive, assigned.positive.sum().clamp(min=1)
    coder, weights = network.head.box_coder, assigned.box_weights[positive]
    found = coder.decode(outputs["bbox_regression"], assigned.anchors)[positive]
    boxes = generalized_box_iou_loss(found, assigned.boxes[positive], reduction="none")
    sides = coder.encode(assigned.anchors[positive], assigned.boxes[positive])
    pairs = sides[:, [0, 2]], sides[:, [1, 3]]  # left and right, top and bottom
    centreness = torch.stack([pair.amin(1) / pair.amax(1) for pair in pairs]).prod(0).sqrt()
    given = outputs["bbox_ctrness"].squeeze(2)[positive]
    centre = F.binary_cross_entropy_with_logits(given, centreness, reduction="none")
    return {
        "classification": _focal(outputs["cls_logits"], assigned).sum() / count,
        "bbox_regression": (boxes * weights).sum() / count,
        "bbox_ctrness": (centre * weights).sum() / count,
    }


def _focal(logits: Tensor, assigned: Assigned) -> Tensor:
    """(N, A) focal loss summed over classes; neutral anchors are 0."""
    wanted = torch.zeros_like(logits)
    wanted[assigned.positive, assigned.labels[assigned.positive]] = 1.0
    each = sigmoid_focal_loss(logits, wanted, reduction="none").sum(2)
    return each * (assigned.class_weights * (assigned.labels >= 0))


def _ssd(network: Any, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
    """Cross-entropy of positives and of each image's hardest negatives, and smooth L1, per positive of the batch."""
    logits, positive, background = outputs["cls_logits"], assigned.positive, assigned.labels == 0
    count = positive.sum().clamp(min=1)
    each = F.cross_entropy(logits.flatten(0, 1), assigned.labels.clamp(min=0).flatten(), reduction="none")
    each = each.view(assigned.labels.shape)
    hardness = torch.where(background, each.detach(), -torch.inf)
    rank = hardness.sort(1, descending=True).indices.sort(1).indices
    negative = background & (rank < network.neg_to_pos_ratio * positive.sum(1, keepdim=True))
    wanted = network.box_coder.encode_single(assigned.boxes[positive], assigned.anchors[positive])
    boxes = F.smooth_l1_loss(outputs["bbox_regression"][positive], wanted, reduction="none").sum(1)
    return {
        "classification": ((each * assigned.class_weights)[positive].sum() + each[negative].sum()) / count,
        "bbox_regression": (boxes * assigned.box_weights[positive]).sum() / count,
    }


_LOSSES: dict[type, Callable[[Any, Outputs, Assigned], dict[str, Tensor]]] = {
    SSD: _ssd,
    FCOS: _fcos,
    RetinaNet: _retinanet,
}
