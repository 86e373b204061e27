"""RetinaFace's head (Deng et al. 2019): class, box, points and, on request, a mesh of every prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from modelkit.carriers import SizeHW
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.detection.tracing import suppressed
from modelkit.errors import ConfigError
from modelkit.exporting.canvas import Canvas
from modelkit.faces.losses import decode_points, point_loss
from modelkit.faces.targets import MESHES
from modelkit.layers.backbones import Backbone
from modelkit.onestage.head import flatten_maps, take_matched
from modelkit.onestage.losses import box_loss, classification_loss, prior_weights
from modelkit.onestage.matching import FaceMatcher
from modelkit.onestage.priors import as_tuples, corners, decode_boxes, prior_boxes
from modelkit.points.detector import PointHead, check_rows
from modelkit.registry import register
from modelkit.transform import Geometry


@register("dense_head", "face_head")
class FaceHead(PointHead):
    """A 1x1 convolution of its own for each map and each thing it says of the priors, which are squares.

    Args:
        neck: whose maps come in, all of one width.
        num_classes: background included.
        num_keypoints: K, of every object; 0 for boxes alone.
        anchor_scales: sides in pixels of the resized image, one list a map, fine to coarse.
        num_vertices: V of the mesh; 0 for none.
        positive_iou, forced_iou: see ``FaceMatcher``.
        negatives_per_positive: see ``modelkit.onestage.losses.classification_loss``.
        score_threshold: what does not score above it is dropped.
        nms_top_k: so many of an image, best first, are looked at.
        nms_iou: boxes of a class that overlap a better one by more are dropped.
        detections_per_image: so many stay.
    """

    loss_weights: ClassVar = {"loss_classifier": 1.0, "loss_box_reg": 2.0, "loss_keypoint": 1.0, "loss_mesh": 0.01}

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        num_keypoints: int,
        *,
        anchor_scales: Sequence[Sequence[float]] = ((16, 32), (64, 128), (256, 512)),
        num_vertices: int = 0,
        positive_iou: float = 0.35,
        forced_iou: float = 0.2,
        negatives_per_positive: int = 7,
        score_threshold: float = 0.02,
        nms_top_k: int = 5000,
        nms_iou: float = 0.4,
        detections_per_image: int = 750,
    ) -> None:
        super().__init__()
        self.levels, self.strides = tuple(neck.out_channels), tuple(neck.strides.values())
        self.scales, self.num_vertices = as_tuples(anchor_scales), num_vertices
        per_cell = {len(sides) for sides in self.scales}
        if len(self.scales) != len(self.levels) or len(per_cell) != 1:
            raise ConfigError(f"face_head needs as many anchor_scales on each of {self.levels}, got {anchor_scales}")
        widths = {"logits": num_classes, "deltas": 4, "points": 2 * num_keypoints, MESHES: 3 * num_vertices}
        self.widths = {name: width for name, width in widths.items() if width}
        channels, priors = neck.out_channels[self.levels[0]], per_cell.pop()
        self.branches = nn.ModuleDict(
            {
                name: nn.ModuleDict({level: nn.Conv2d(channels, priors * width, 1) for level in self.levels})
                for name, width in self.widths.items()
            }
        )
        self.match, self.negatives_per_positive = FaceMatcher(positive_iou, forced_iou), negatives_per_positive
        self.score_threshold, self.nms_top_k, self.nms_iou = score_threshold, nms_top_k, nms_iou
        self.detections_per_image = detections_per_image

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``logits`` (N, P, C), ``deltas`` (N, P, 4), ``points`` (N, P, 2 K) and ``meshes`` (N, P, 3 V)."""
        return {name: flatten_maps(self._maps(name, features), width) for name, width in self.widths.items()}

    def _maps(self, name: str, features: Mapping[str, Tensor]) -> list[Tensor]:
        branch: Any = self.branches[name]
        return [branch[level](features[level]) for level in self.levels]

    def priors(self, padded_hw: SizeHW, device: torch.device) -> Tensor:
        """(P, 4) centre and size in resized pixels, in the order of ``forward``."""
        return prior_boxes(padded_hw, self.strides, self.scales, (1.0,), True, device, spread=False)

    def loss(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """``loss_classifier, loss_box_reg, loss_keypoint`` and ``loss_mesh``; see ``PointHead.loss``.

        Objects whose points nobody labelled count for class and box alone; ``box_weights`` weigh points, too. A target
        may have ``meshes`` (n, V, 4) of x, y, depth and v.
        """
        check_rows(targets, MESHES, (self.num_vertices, 4))
        raw = {name: maps.float() for name, maps in raw.items()}
        priors = self.priors(geometries[0].padded_hw, raw["deltas"].device)
        pairs = [self.match(corners(priors), target) for target in targets]
        labels, matched = (torch.stack(each) for each in zip(*pairs, strict=True))
        boxes = torch.stack([take_matched(t["boxes"].to(priors), m) for t, m in zip(targets, matched, strict=True)])
        weights = {key: prior_weights(key, labels, matched, targets) for key in ("class_weights", "box_weights")}
        losses = {
            "loss_classifier": classification_loss(
                raw["logits"], labels, self.negatives_per_positive, weights["class_weights"]
            ),
            "loss_box_reg": box_loss(raw["deltas"], labels, boxes, priors, weights["box_weights"]),
        }
        for name, output, key in (("loss_keypoint", "points", "keypoints"), ("loss_mesh", MESHES, MESHES)):
            if output in raw:
                losses[name] = point_loss(raw[output], key, labels, matched, targets, priors, weights["box_weights"])
        return losses

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        """What is found in every image of a batch of one padded size, in source pixels."""
        priors = self.priors(geometries[0].padded_hw, raw["deltas"].device)
        return [
            self._decode_one({name: maps[k].float() for name, maps in raw.items()}, priors, geometry)
            for k, geometry in enumerate(geometries)
        ]

    def _decode_one(self, raw: Mapping[str, Tensor], priors: Tensor, geometry: Geometry) -> LandmarkDetections:
        scores = raw["logits"].softmax(1)[:, 1:]
        above = torch.nonzero(scores > self.score_threshold)
        best = scores[above[:, 0], above[:, 1]].topk(min(self.nms_top_k, len(above))).indices
        place, label = above[best].unbind(1)
        score, boxes = scores[place, label], decode_boxes(raw["deltas"][place], priors[place])
        kept = batched_nms(boxes, score, label, self.nms_iou)[: self.detections_per_image]
        place, label, score = place[kept], label[kept], score[kept]
        points = _places(raw.get("points"), place, priors, 2)
        points = points if points is not None else boxes.new_zeros((len(kept), 0, 2))
        meshes = _places(raw.get(MESHES), place, priors, 3)
        return LandmarkDetections(
            geometry.source_hw,
            geometry.clipped_boxes_to_source(boxes[kept]),
            score,
            label + 1,
            geometry.points_to_source(points),
            score[:, None].expand(points.shape[:2]),
            None if meshes is None else _mesh_to_source(meshes, geometry),
        )

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """See ``PointHead``; meshes are left out."""
        raw = {name: maps[0].float() for name, maps in raw.items()}
        priors, scores = self.priors(canvas.padded_hw, raw["deltas"].device), raw["logits"].softmax(1)[:, 1:]
        sure = torch.where(scores > self.score_threshold, scores, -1.0).flatten()
        score, pair = sure.topk(min(self.nms_top_k, sure.numel()))
        kept = torch.nonzero(score >= 0)[:, 0]
        score, place, label = score[kept], pair[kept] // scores.shape[1], pair[kept] % scores.shape[1]
        boxes = decode_boxes(raw["deltas"][place], priors[place])
        best = suppressed(boxes, score, label.float(), self.nms_iou, canvas)[: self.detections_per_image]
        found = {
            "boxes_xyxy": canvas.clipped_to_source(boxes[best]), "scores": score[best], "labels": label[best] + 1,
        }  # fmt: skip
        points = _places(raw.get("points"), place[best], priors, 2)
        if points is None:
            return found
        sureness = score[best][:, None].expand(points.shape[:2])
        return {**found, "keypoints_xy": canvas.points_to_source(points), "keypoint_scores": sureness}


def _places(codes: Tensor | None, place: Tensor, priors: Tensor, width: int) -> Tensor | None:
    """(n, K, width) in resized pixels of the priors at ``place``."""
    return None if codes is None else decode_points(codes[place].unflatten(1, (-1, width)), priors[place])


def _mesh_to_source(meshes: Tensor, geometry: Geometry) -> Tensor:
    """Depth is scaled by the root of the two ratios' product."""
    (height, width), (rows, columns) = geometry.source_hw, geometry.resized_hw
    growth = (height * width / (rows * columns)) ** 0.5
    return torch.cat([geometry.points_to_source(meshes[..., :2]), meshes[..., 2:] * growth], -1)
