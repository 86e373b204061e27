"""YOLACT's decoding as a graph for one image; see ``modelkit.base.VisionModel.traced``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modelkit.exporting.canvas import Canvas, stretched
from modelkit.onestage.head import YolactHead
from modelkit.onestage.losses import boxes_to_grid
from modelkit.onestage.masks import assemble_masks
from modelkit.onestage.priors import decode_boxes
from modelkit.onestage.suppression import pairwise_iou

_MASK_THRESHOLD = 0.5


def traced_grid_detections(head: YolactHead, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
    """``boxes_xyxy`` (n, 4) in source pixels, ``scores``, ``labels``, ``masks`` (n, H, W) bool, best first.

    ``decode`` leaves out the priors of which no class is sure enough; here they stay and score -1, so that shapes do
    not depend on how many there are, and go at the end.
    """
    logits, deltas = raw["logits"][0].float(), raw["deltas"][0].float()
    boxes = decode_boxes(deltas, head.priors(canvas.padded_hw, deltas.device))
    best = logits[:, 1:].amax(1) - logits.logsumexp(1)
    scores = torch.where(best[:, None].exp() > head.score_threshold, logits.softmax(1)[:, 1:], -1.0).T
    place, label, score = _suppressed(boxes, scores, head)
    keep = torch.nonzero(score >= 0)[:, 0]
    boxes, label, score = boxes[place[keep]], label[keep], score[keep]
    prototypes, coefficients = raw["prototypes"][0].float(), raw["coefficients"][0].float()[place[keep]]
    masks = assemble_masks(prototypes, coefficients, boxes_to_grid(boxes, canvas.padded_hw, prototypes))
    return {
        "boxes_xyxy": canvas.clipped_to_source(boxes),
        "scores": score,
        "labels": label + 1,
        "masks": stretched(masks, canvas) > _MASK_THRESHOLD,
    }


def _suppressed(boxes: Tensor, scores: Tensor, head: YolactHead) -> tuple[Tensor, Tensor, Tensor]:
    """``fast_nms`` with a fixed number of results: index, label from 0 and score, the last ones perhaps below 0."""
    options = head.suppression
    scores, order = scores.topk(min(options["top_k"], scores.shape[1]), dim=1)
    overlap = pairwise_iou(boxes[order]).triu(diagonal=1)
    scores = torch.where((overlap > options["iou_threshold"]).any(1), -1.0, scores)
    score, chosen = scores.flatten().topk(min(options["keep"], scores.numel()))
    return order.flatten()[chosen], chosen // scores.shape[1], score
