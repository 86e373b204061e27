"""Keypoint R-CNN (He et al. 2017): a two-stage detector whose objects have points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from modelkit.base import VisionModel
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.carriers.landmarks import KeypointSet
from modelkit.detection.pooling import PyramidRoIAlign
from modelkit.detection.roi_heads import RoIHead, pooled_levels
from modelkit.detection.targets import Samples
from modelkit.detection.two_stage import TwoStageDetector
from modelkit.errors import ConfigError, TargetError
from modelkit.layers.backbones import Backbone
from modelkit.metrics.keypoints import COCO_PERSON_SIGMAS
from modelkit.registry import register
from modelkit.transform import Geometry

COCO_PERSON = KeypointSet(
    (
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    skeleton=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    sigmas=COCO_PERSON_SIGMAS,
)


def target_cells(keypoints: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which cell of a box's grid each point lies in, (r, K) long, row by row; and (r, K) bool whether that is known.

    Args:
        keypoints: (r, K, 3) of x, y and v, pixels of the boxes.
        boxes: (r, 4) xyxy; a point exactly on the right or lower edge belongs to the last cell.
        side: rows and columns of the grid.
    """
    start, end = boxes[:, None, :2], boxes[:, None, 2:]
    places = keypoints[..., :2]
    cells = ((places - start) * (side / (end - start))).floor()
    cells = torch.where(places == end, side - 1, cells)
    known = ((cells >= 0) & (cells < side)).all(-1) & (keypoints[..., 2] > 0)
    x, y = cells.long().unbind(-1)
    return (y * side + x).where(known, 0), known


def keypoint_loss(logits: Tensor, keypoints: Tensor, boxes: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy over the cells of each point (r, K, M, M) that is labelled and inside of its region.

    The mean over such points; each is weighted by that of its region, (r,), and those of weight 0 are not counted.
    """
    cells, known = target_cells(keypoints, boxes, logits.shape[-1])
    known = known & (weights > 0)[:, None]
    if not known.any():
        return logits.sum() * 0  # keeps the graph: parameters get a zero gradient, not none
    errors = F.cross_entropy(logits.flatten(2)[known], cells[known], reduction="none")
    return (errors * weights[:, None].expand_as(known)[known]).mean()


def peaks_in_boxes(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Places (r, K, 2) of the peaks of grids (r, K, M, M) stretched over boxes (r, 4), and the logits there (r, K).

    The grid is enlarged by cubic curves to whole pixels; the middle of the highest one is the place.
    """
    places, values = logits.new_zeros((*logits.shape[:2], 2)), logits.new_zeros(logits.shape[:2])
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    for place, value, grid, box, side in zip(places, values, logits, boxes, sides, strict=True):
        columns, rows = (math.ceil(each) for each in side.tolist())
        shown = F.interpolate(grid[:, None], size=(rows, columns), mode="bicubic", align_corners=False).flatten(1)
        index = shown.argmax(1)
        pixels = torch.stack([index % columns, index // columns], -1) + 0.5
        place.copy_(pixels * (side / side.ceil()) + box[:2])
        value.copy_(shown.gather(1, index[:, None])[:, 0])
    return places, values


@register("roi_head", "keypoint_head")
class KeypointHead(RoIHead):
    """A grid of logits for each region and point: which cell the point lies in.

    Args:
        neck: whose maps come in.
        num_classes: not looked at: all classes have the same points.
        num_keypoints: K.
        resolution: of the pooled features; grids have 4 * resolution cells a side.
        sampling_ratio, canonical_scale, canonical_level: of the pooling.
        channels: of the 3x3 convolutions.
    """

    needs = "positive"
    teaches = "box_weights"

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        *,
        num_keypoints: int = 17,
        resolution: int = 14,
        sampling_ratio: int = 2,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        channels: Sequence[int] = (512,) * 8,
    ) -> None:
        super().__init__()
        levels = pooled_levels(neck)
        self.num_keypoints = num_keypoints
        self.pool = PyramidRoIAlign(neck, levels, resolution, sampling_ratio, canonical_scale, canonical_level)
        self.body = KeypointRCNNHeads(neck.out_channels[levels[0]], tuple(channels))
        self.predictor = KeypointRCNNPredictor(channels[-1], num_keypoints)

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """``keypoint_logits`` (r, K, M, M) with M = 4 * resolution."""
        return {"keypoint_logits": self.predictor(self.body(self.pool(features, boxes))).float()}

    def loss(self, raw: Mapping[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """``loss_keypoint``, see ``keypoint_loss``; regions weigh as the ``box_weights`` of their objects.

        Raises:
            TargetError: when a target with objects has no ``keypoints``, or of another number.
        """
        wanted = []
        for boxes, matched, target in zip(samples.boxes, samples.matched, samples.targets, strict=True):
            if len(boxes) == 0:
                continue
            shape = (len(target["boxes"]), self.num_keypoints, 3)
            if "keypoints" not in target or target["keypoints"].shape != shape:
                raise TargetError(f"the keypoint head needs 'keypoints' {shape} in every target that has boxes")
            wanted.append(target["keypoints"].to(boxes)[matched])
        logits = raw["keypoint_logits"]
        if not wanted:
            return {"loss_keypoint": logits.sum() * 0}
        weights = samples.weights("box_weights")
        return {"loss_keypoint": keypoint_loss(logits, torch.cat(wanted), torch.cat(samples.boxes), weights)}

    def decode(self, raw: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per image: points (n, K, 2) in resized pixels and their logits (n, K)."""
        counts = [len(found) for found in boxes]
        places, values = peaks_in_boxes(raw["keypoint_logits"], torch.cat(list(boxes)))
        return list(zip(places.split(counts), values.split(counts), strict=True))


class KeypointRCNN(TwoStageDetector):
    """A two-stage detector with a head named "keypoint". A point's score is the sigmoid of its logit.

    Args:
        options: of ``TwoStageDetector``.
    """

    gives_soft_masks = False
    traced = VisionModel.traced  # refused: each object's grid is enlarged to the size of its box

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if "keypoint" not in self.roi_heads or "mask" in self.roi_heads:
            raise ConfigError(f"Keypoint R-CNN needs the heads 'box' and 'keypoint', got {list(self.roi_heads)}")
        self.loss_weights = {"loss_keypoint": 1.0, **self.loss_weights}
        self.num_keypoints = self.keypoint_head.num_keypoints

    @property
    def keypoint_head(self) -> KeypointHead:
        """The head of points."""
        return cast(KeypointHead, self.roi_heads["keypoint"])

    @torch.inference_mode()
    def decode(  # type: ignore[override]  # objects with points in the place of objects with masks
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]
    ) -> list[LandmarkDetections]:
        """As in ``TwoStageDetector``; boxes and points come back in source pixels."""
        raw = {name: maps.float().contiguous() for name, maps in raw.items()}
        found = self.detect(raw, geometries)
        boxes = [each for each, _, _ in found]
        points = self.keypoint_head.decode(self.keypoint_head(raw, boxes), boxes)
        return [
            LandmarkDetections(
                geometry.source_hw,
                geometry.boxes_to_source(box),
                scores,
                labels,
                geometry.points_to_source(places),
                logits.sigmoid(),
            )
            for geometry, (box, scores, labels), (places, logits) in zip(geometries, found, points, strict=True)
        ]
