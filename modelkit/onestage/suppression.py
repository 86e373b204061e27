"""Fast NMS (Bolya et al. 2019, YOLACT, section 4.2): all classes at once, no loop."""

from __future__ import annotations

import torch
from torch import Tensor


def fast_nms(
    boxes_xyxy: Tensor, scores: Tensor, iou_threshold: float = 0.5, top_k: int = 200, keep: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress, class by class, boxes that overlap a better one; a suppressed box still suppresses others.

    That is what makes it one matrix operation, and why it removes slightly more than the classic rule.

    Args:
        boxes_xyxy: (m, 4), shared by the classes.
        scores: (C, m), every class without the background.
        iou_threshold: boxes that overlap a better one by more are dropped.
        top_k: only so many of each class are looked at.
        keep: so many come out, over all classes.

    Returns:
        (index, label, score) of the d <= keep that stay, best first: index into the boxes, label from 0.
    """
    scores, order = scores.topk(min(top_k, scores.shape[1]), dim=1)
    overlap = pairwise_iou(boxes_xyxy[order])
    stays = ~(overlap.triu_(diagonal=1) > iou_threshold).any(1)
    label, place = torch.nonzero(stays, as_tuple=True)
    score, best = scores[label, place].sort(dim=0, descending=True, stable=True)
    best = best[:keep]
    return order[label[best], place[best]], label[best], score[:keep]


def pairwise_iou(boxes_xyxy: Tensor) -> Tensor:
    """(C, m, 4) to (C, m, m); torchvision's ``box_iou`` for a batch of lists."""
    left, top, right, bottom = boxes_xyxy.unbind(-1)
    shared = _shared(left, right).mul_(_shared(top, bottom))
    area = (right - left) * (bottom - top)
    return shared / (area[:, :, None] + area[:, None, :]).sub_(shared)


def _shared(first: Tensor, last: Tensor) -> Tensor:
    """(C, m) starts and ends along one axis to the lengths (C, m, m) that each two of a list have in common."""
    begin = torch.maximum(first[:, :, None], first[:, None, :])
    return torch.minimum(last[:, :, None], last[:, None, :]).sub_(begin).clamp_(min=0)
