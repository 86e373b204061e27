"""YOLACT's four losses (Bolya et al. 2019), unweighted; the detector's ``loss_weights`` are 1, 1.5, 6.125 and 1.

Sums over positive priors are divided by the number of positives in the batch (by 1 where there are none). Each positive
counts as much as the weight of its object in that loss says (``class_weights``, ``box_weights``, ``mask_weights``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.detection.targets import mask_pixel_weights, object_weights
from modelkit.errors import TargetError
from modelkit.onestage.masks import crop_window, mask_logits
from modelkit.onestage.matching import crowd_of
from modelkit.onestage.priors import encode_boxes


def classification_loss(
    logits: Tensor, labels: Tensor, negatives_per_positive: int, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the positives and of the hardest negatives of each image.

    Args:
        logits: (N, P, C); class 0 is the background.
        labels: (N, P) long; -1 is neutral.
        weights: (N, P) of the priors, 1 on background; None: 1 everywhere.
        negatives_per_positive: an image with p positives brings at most this times p negatives: those whose
            background probability is lowest.
    """
    chosen = labels > 0
    doubt = (logits.logsumexp(2) - logits[:, :, 0]).detach()
    for image_chosen, image_labels, image_doubt in zip(chosen, labels, doubt, strict=True):
        background = torch.nonzero(image_labels == 0)[:, 0]
        wanted = min(negatives_per_positive * int(image_chosen.sum()), len(background))
        image_chosen[background[image_doubt[background].topk(wanted).indices]] = True
    total = _summed(F.cross_entropy, logits[chosen], labels[chosen], None if weights is None else weights[chosen])
    return total / _positives(labels)


def box_loss(
    deltas: Tensor, labels: Tensor, boxes_xyxy: Tensor, priors_cxcywh: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Smooth L1 (beta 1) between the code of the matched boxes (N, P, 4) and the deltas (N, P, 4) of positives.

    ``weights`` (N, P) of the priors; None: 1 everywhere.
    """
    positive = labels > 0
    priors = priors_cxcywh.expand_as(deltas)[positive]
    wanted = encode_boxes(boxes_xyxy[positive], priors)
    total = _summed(F.smooth_l1_loss, deltas[positive], wanted, None if weights is None else weights[positive, None])
    return total / _positives(labels)


def mask_loss(
    prototypes: Tensor,
    coefficients: Tensor,
    labels: Tensor,
    matched: Tensor,
    targets: Sequence[Mapping[str, Any]],
    padded_hw: SizeHW,
    at_most: int,
) -> Tensor:
    """Binary cross-entropy of every positive's mask inside its object's box, divided by the area of the box.

    Args:
        prototypes: (N, k, h, w).
        coefficients: (N, P, k).
        labels, matched: (N, P) of ``SSDMatcher``.
        targets: with ``boxes`` and ``masks`` (n, H, W) in resized pixels.
        padded_hw: what the prototypes' grid covers.
        at_most: masks trained per image; of more a random sample, scaled up to the whole.

    Positives whose object has a mask weight of 0 are left out before anything is drawn, and do not count in the mean.
    """
    teaching = torch.zeros((), dtype=torch.int64, device=labels.device)
    total = (prototypes.sum() + coefficients.sum()) * 0  # keeps the graph where no image has an object
    for image, target in enumerate(targets):
        weights = object_weights(target, "mask_weights").to(coefficients)
        positive = torch.nonzero(labels[image] > 0)[:, 0]
        positive = positive[weights[matched[image, positive]] > 0]
        teaching = teaching + len(positive)
        if len(positive) == 0:
            continue
        kept = positive
        if len(positive) > at_most:
            kept = positive[torch.randperm(len(positive), device=positive.device)[:at_most]]
        objects = matched[image, kept]
        logits = mask_logits(prototypes[image], coefficients[image, kept])
        wanted = shrink_masks(target["masks"], padded_hw, (logits.shape[1], logits.shape[2]))[objects]
        per_mask = _mean_over_box(logits, wanted, boxes_to_grid(target["boxes"][objects], padded_hw, logits))
        total = total + (per_mask * weights[objects]).sum() * (len(positive) / len(kept))
    return total / teaching.clamp(min=1)


def _mean_over_box(logits: Tensor, wanted: Tensor, boxes_on_grid: Tensor) -> Tensor:
    window = crop_window(boxes_on_grid, (logits.shape[1], logits.shape[2]))
    summed = (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * window).sum((1, 2))
    return summed / (boxes_on_grid[:, 2:] - boxes_on_grid[:, :2]).prod(1)


def semantic_loss(logits: Tensor, targets: Sequence[Mapping[str, Any]], padded_hw: SizeHW) -> Tensor:
    """Binary cross-entropy against the union of each class's masks: mean over cells and images, sum over classes.

    Cells in ignored boxes that no object covers count nothing; those of an object count the lesser of its class and
    mask weight. All cells stay in the number that the sum is divided by.

    Args:
        logits: (N, C - 1, h, w); channel c is label c + 1.
        targets: with ``labels`` and ``masks`` in resized pixels; crowds are left out.
        padded_hw: what the logits' grid covers.
    """
    wanted = torch.zeros_like(logits)
    counts = logits.new_ones((len(logits), 1, *logits.shape[2:]))
    for image_wanted, count, target in zip(wanted, counts[:, 0], targets, strict=True):
        _ignore_cells(count, target, padded_hw)
        single = ~crowd_of(target)
        if not single.any():
            continue
        masks = shrink_masks(target["masks"][single], padded_hw, (logits.shape[2], logits.shape[3]))
        index = (target["labels"][single] - 1)[:, None, None].expand_as(masks)
        image_wanted.scatter_reduce_(0, index, masks, "amax")
        _weigh_cells(count, masks, target, single)
    weights = None if bool((counts == 1).all()) else counts
    total = _summed(F.binary_cross_entropy_with_logits, logits, wanted, weights)
    return total / (logits.shape[0] * logits.shape[2] * logits.shape[3])


def _ignore_cells(count: Tensor, target: Mapping[str, Any], padded_hw: SizeHW) -> None:
    """Set the cells (h, w) whose centres lie in ignored boxes to 0, in place."""
    rows, columns = (torch.arange(side, device=count.device) + 0.5 for side in count.shape)
    for x1, y1, x2, y2 in boxes_to_grid(target.get("ignore_boxes", count.new_zeros((0, 4))), padded_hw, count).tolist():
        inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
        count[inside] = 0


def _weigh_cells(count: Tensor, masks: Tensor, target: Mapping[str, Any], single: Tensor) -> None:
    """Set the cells (h, w) of objects to their weights, in place; where objects overlap, to the least of these."""
    count[masks.amax(0) > 0] = torch.inf
    for mask, weight in zip(masks > 0, mask_pixel_weights(target)[single].tolist(), strict=True):
        count[mask] = count[mask].clamp(max=weight)


def shrink_masks(masks: Tensor, padded_hw: SizeHW, grid_hw: tuple[int, int]) -> Tensor:
    """Target masks (n, H, W) to the grid that covers the padded batch: bilinear, then above a half; float 0 or 1."""
    rows, columns = padded_hw[0] - masks.shape[-2], padded_hw[1] - masks.shape[-1]
    padded = F.pad(masks.float(), (0, columns, 0, rows))
    return (F.interpolate(padded[None], grid_hw, mode="bilinear", align_corners=False)[0] > 0.5).float()


def boxes_to_grid(boxes_xyxy: Tensor, padded_hw: SizeHW, grid: Tensor) -> Tensor:
    """Boxes (n, 4) in resized pixels to cells of a grid (..., h, w) that covers the padded batch."""
    across, down = grid.shape[-1] / padded_hw[1], grid.shape[-2] / padded_hw[0]
    return boxes_xyxy * boxes_xyxy.new_tensor([across, down, across, down])


def prior_weights(key: str, labels: Tensor, matched: Tensor, targets: Sequence[Mapping[str, Any]]) -> Tensor | None:
    """(N, P) float: the weight of each positive prior's object, 1 elsewhere; None where no target has such weights.

    Args:
        key: "class_weights" or "box_weights".
        labels, matched: (N, P) long; the object's index in the target means nothing where the label is not positive.
        targets: one an image.
    """
    if not any(key in target for target in targets):
        return None
    weights = torch.ones_like(labels, dtype=torch.float32)
    for slot, positive, objects, target in zip(weights, labels > 0, matched, targets, strict=True):
        slot[positive] = object_weights(target, key).to(slot)[objects[positive]]
    return weights


def check_masks(targets: Sequence[Mapping[str, Any]]) -> None:
    """Raises TargetError when a target with objects has no masks."""
    for index, target in enumerate(targets):
        if "masks" not in target and len(target["boxes"]):
            raise TargetError(f"target {index}: prototype masks need 'masks' beside the boxes")


def _summed(loss: Callable[..., Tensor], given: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of a loss, each term times its weight, if there are any."""
    if weights is None:
        return loss(given, wanted, reduction="sum")
    return (loss(given, wanted, reduction="none") * weights).sum()


def _positives(labels: Tensor) -> Tensor:
    return (labels > 0).sum().clamp(min=1)
