"""The two-stage detectors' decoding as a graph for one image; see ``modelkit.base.VisionModel.traced``.

What is found is the same as by ``decode``; nothing branches on how much that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torchvision.ops import nms

from modelkit.detection.proposals import ProposalHead
from modelkit.detection.roi_heads import MIN_BOX_SIDE, BoxHead, MaskHead
from modelkit.exporting.canvas import Canvas, boxes_on

if TYPE_CHECKING:
    from modelkit.detection.two_stage import TwoStageDetector

_MASK_THRESHOLD = 0.5


def traced_detections(model: TwoStageDetector, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
    """``boxes_xyxy`` (n, 4) in source pixels, ``scores`` (n,), ``labels`` (n,), best first; with a mask head
    ``masks`` (n, H, W) bool.
    """
    proposals = _proposals(model.rpn, raw, canvas)
    boxes, scores, labels = _boxes(cast(BoxHead, model.roi_heads["box"]), raw, proposals, canvas)
    found = {"boxes_xyxy": canvas.boxes_to_source(boxes), "scores": scores, "labels": labels}
    if "mask" in model.roi_heads:
        head = cast(MaskHead, model.roi_heads["mask"])
        masks = head.of_labels(head(raw, [boxes])["mask_logits"], labels).sigmoid()
        found["masks"] = boxes_on(canvas.source_hw, found["boxes_xyxy"], masks) > _MASK_THRESHOLD
    return found


def _proposals(rpn: ProposalHead, raw: Mapping[str, Tensor], canvas: Canvas) -> Tensor:
    """(p, 4) in pixels of the network's input, best first."""
    proposer = rpn.proposer
    logits, boxes, per_level = rpn.every_box(raw, canvas.padded_hw)
    chosen, levels = [], []
    for level, (start, count) in enumerate(zip(_starts(per_level), per_level, strict=True)):
        most = min(proposer.pre_nms_top_n(), count)
        chosen.append(logits[start : start + count].topk(most).indices + start)
        levels.append(torch.full((most,), float(level)))
    index, level_of = torch.cat(chosen), torch.cat(levels)
    boxes, scores = clipped(boxes[index], canvas), logits[index].sigmoid()
    keep = torch.nonzero(_wide(boxes, proposer.min_size) & (scores >= proposer.score_thresh))[:, 0]
    boxes, scores, level_of = boxes[keep], scores[keep], level_of[keep]
    return boxes[suppressed(boxes, scores, level_of, proposer.nms_thresh, canvas)[: proposer.post_nms_top_n()]]


def _boxes(
    head: BoxHead, raw: Mapping[str, Tensor], proposals: Tensor, canvas: Canvas
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4) in pixels of the network's input, scores and labels, best first."""
    seen = head(raw, [proposals])
    decoded = head.coder.decode_single(seen["box_deltas"], proposals).unflatten(1, (head.num_classes, 4))
    boxes = clipped(decoded[:, 1:], canvas).flatten(0, 1)
    scores = seen["class_logits"].softmax(-1)[:, 1:]
    labels = torch.arange(1, head.num_classes).expand_as(scores).flatten()
    scores = scores.flatten()
    keep = torch.nonzero((scores > head.score_threshold) & _wide(boxes, MIN_BOX_SIDE))[:, 0]
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    best = suppressed(boxes, scores, labels.float(), head.nms_iou, canvas)[: head.detections_per_image]
    return boxes[best], scores[best], labels[best]


def _starts(counts: list[int]) -> list[int]:
    return [sum(counts[:index]) for index in range(len(counts))]


def clipped(boxes: Tensor, canvas: Canvas) -> Tensor:
    """Boxes (n, 4) in pixels of the network's input, cut to its content."""
    return torch.minimum(boxes.clamp(min=0), canvas.limits)


def _wide(boxes: Tensor, least: float) -> Tensor:
    """(n,) bool: both sides are at least that long."""
    return (boxes[:, 2] - boxes[:, 0] >= least) & (boxes[:, 3] - boxes[:, 1] >= least)


def suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, canvas: Canvas) -> Tensor:
    """Indices of those that stay, best first; boxes of different groups are moved apart, so that none meet."""
    return nms(boxes + groups[:, None] * (max(canvas.padded_hw) + 1.0), scores, iou)
