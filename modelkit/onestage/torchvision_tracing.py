"""The decoding of torchvision's one-stage detectors as a graph for one image; see ``VisionModel.traced``.

What is found is the same as by ``postprocess_detections``; nothing branches on how much that is: a candidate that is
not sure enough stays with a score of -1 until all have been counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modelkit.detection.tracing import clipped, suppressed
from modelkit.exporting.canvas import Canvas


def traced_classes(network: Any, outputs: Mapping[str, Tensor], anchors: Tensor, canvas: Canvas) -> dict[str, Tensor]:
    """SSD's: the best boxes of each class, then suppression.

    Args:
        network: of torchvision.
        outputs: of its head for one image: ``cls_logits`` (1, A, classes) and ``bbox_regression`` (1, A, 4).
        anchors: (A, 4) in pixels of the network's input.
        canvas: the way back.

    Returns:
        ``boxes_xyxy`` (n, 4) in source pixels, ``scores`` (n,) and ``labels`` (n,), best first.
    """
    boxes = clipped(network.box_coder.decode_single(outputs["bbox_regression"][0], anchors), canvas)
    scores = outputs["cls_logits"][0].softmax(-1)[:, 1:].T
    scores = torch.where(scores > network.score_thresh, scores, -1.0)
    best, place = scores.topk(min(network.topk_candidates, scores.shape[1]), dim=1)
    labels = torch.arange(1, scores.shape[0] + 1)[:, None].expand_as(place)
    return _best(network, boxes[place.flatten()], best.flatten(), labels.flatten(), canvas)


def traced_levels(
    network: Any, outputs: Mapping[str, Tensor], anchors: Tensor, per_level: Sequence[int], canvas: Canvas
) -> dict[str, Tensor]:
    """RetinaNet's and FCOS's: the best pairs of box and class of each map, then suppression.

    Args:
        network, anchors, canvas: as in ``traced_classes``.
        outputs: the same, with FCOS's ``bbox_ctrness`` (1, A, 1).
        per_level: how many of the anchors are of each map.
    """
    decode = getattr(network.box_coder, "decode_single", network.box_coder.decode)
    scores = outputs["cls_logits"][0].sigmoid()
    if "bbox_ctrness" in outputs:
        scores = (scores * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
    found = []
    for deltas, of_level, seen in zip(
        outputs["bbox_regression"][0].split(list(per_level)),
        anchors.split(list(per_level)),
        scores.split(list(per_level)),
        strict=True,
    ):
        sure = torch.where(seen > network.score_thresh, seen, -1.0).flatten()
        best, pair = sure.topk(min(network.topk_candidates, sure.numel()))
        anchor = pair // seen.shape[1]
        found.append((clipped(decode(deltas[anchor], of_level[anchor]), canvas), best, pair % seen.shape[1]))
    boxes, scores, labels = (torch.cat(each) for each in zip(*found, strict=True))
    return _best(network, boxes, scores, labels, canvas)


def _best(network: Any, boxes: Tensor, scores: Tensor, labels: Tensor, canvas: Canvas) -> dict[str, Tensor]:
    sure = torch.nonzero(scores >= 0)[:, 0]
    boxes, scores, labels = boxes[sure], scores[sure], labels[sure]
    keep = suppressed(boxes, scores, labels.float(), network.nms_thresh, canvas)[: network.detections_per_img]
    return {"boxes_xyxy": canvas.boxes_to_source(boxes[keep]), "scores": scores[keep], "labels": labels[keep]}
