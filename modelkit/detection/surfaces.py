"""DensePose R-CNN (Gueler et al. 2018): a two-stage detector that tells which point of a surface each pixel shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads
from torchvision.ops import box_iou

from modelkit.base import VisionModel
from modelkit.carriers.fields import join_points
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.detection.pooling import PyramidRoIAlign
from modelkit.detection.roi_heads import RoIHead, pooled_levels
from modelkit.detection.surface_charts import COARSE, PARTS, U, V, coarse_loss, coarse_targets, paste, point_losses
from modelkit.detection.targets import Samples
from modelkit.detection.two_stage import TwoStageDetector
from modelkit.errors import ConfigError, TargetError
from modelkit.layers.backbones import Backbone
from modelkit.layers.initialisation import kaiming_initialise
from modelkit.layers.stretching import stretch
from modelkit.registry import Config, build, register
from modelkit.transform import Geometry

_DECODER = {"name": "semantic_fpn", "channels": 256, "norm": None}
_MAP = "surface_map"  # the decoder's one map, among the outputs of the dense part


@register("roi_head", "surface_head", parts={"decoder": "dense_head"})
class SurfaceHead(RoIHead):
    """detectron2's chart head: 3x3 convolutions, four deconvolutions, bilinear doubling; see ``surface_charts``.

    Args:
        neck: whose maps come in.
        num_classes: not looked at: all classes have the same parts.
        num_parts: of the surface, without background.
        coarse_channels: 2: object or not, learnt from ``masks``; more (DensePose: 15): coarse parts and background,
            learnt from ``coarse_parts``.
        decoder: a dense head that makes one map of the pyramid's, from which all regions are pooled; None: each region
            is pooled from the map of its size, as in the paper.
        resolution: of the pooled features; charts have 4 * resolution cells a side.
        sampling_ratio, canonical_scale, canonical_level: of the pooling.
        channels: of the 3x3 convolutions.
        iou_threshold: regions that overlap their object by less learn nothing.
    """

    needs = "positive"
    teaches = "mask_weights"

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        *,
        num_parts: int = 24,
        coarse_channels: int = 2,
        decoder: Config | None = _DECODER,
        resolution: int = 28,
        sampling_ratio: int = 2,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        channels: Sequence[int] = (512,) * 8,
        iou_threshold: float = 0.7,
    ) -> None:
        super().__init__()
        if not (1 <= num_parts <= 255 and coarse_channels >= 2):
            raise ConfigError(f"a surface head needs 1 to 255 parts and 2 or more coarse channels, got {num_parts} "
                              f"and {coarse_channels}")  # fmt: skip
        levels = pooled_levels(neck)
        width = neck.out_channels[levels[0]]
        self.num_parts, self.coarse_channels, self.iou_threshold = num_parts, coarse_channels, iou_threshold
        self.decoder = None if decoder is None else build("dense_head", decoder, neck, width)
        self.levels = levels if decoder is None else levels[:1]
        self.pool = PyramidRoIAlign(neck, self.levels, resolution, sampling_ratio, canonical_scale, canonical_level)
        self.body = KeypointRCNNHeads(width, tuple(channels))
        outputs = {COARSE: coarse_channels, PARTS: num_parts + 1, U: num_parts + 1, V: num_parts + 1}
        self.predictor = nn.ModuleDict(
            {name: nn.ConvTranspose2d(channels[-1], count, 4, stride=2, padding=1) for name, count in outputs.items()}
        )
        kaiming_initialise(self.predictor)

    def decoded(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What it makes of the pyramid's maps before there are regions: of fixed shape, part of the dense part."""
        return {} if self.decoder is None else {_MAP: self.decoder(features)["semantic_logits"]}

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """Charts of all r regions, see ``surface_charts``; ``features`` hold what ``decoded`` gave."""
        maps = features if self.decoder is None else {self.levels[0]: features[_MAP]}
        x = self.body(self.pool(maps, boxes))
        cells = 4 * self.pool.output_size
        return {name: stretch(layer(x), (cells, cells)).float() for name, layer in self.predictor.items()}

    def wanted(self, samples: Samples) -> Samples:
        """Regions of believed objects that overlap them well."""
        near = super().wanted(samples)
        keep = [
            box_iou(boxes, target["boxes"].to(boxes)).gather(1, matched[:, None])[:, 0] >= self.iou_threshold
            if len(boxes)
            else torch.zeros(0, dtype=torch.bool, device=boxes.device)
            for boxes, matched, target in zip(near.boxes, near.matched, near.targets, strict=True)
        ]
        return near.kept(keep)

    def loss(self, raw: Mapping[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """``loss_coarse``, ``loss_part``, ``loss_u``, ``loss_v``; regions weigh as ``mask_weights`` of their objects.

        Raises:
            TargetError: when a target with objects has no ``surface_points`` or ``masks`` (``coarse_parts``).
        """
        points, coarse = [], []
        for boxes, matched, target in zip(samples.boxes, samples.matched, samples.targets, strict=True):
            if len(boxes):
                points.append(self._points(target).to(boxes)[matched])
                coarse.append(
                    coarse_targets(self._coarse(target).to(boxes.device), boxes, matched, raw[COARSE].shape[-1])
                )
        if not points:
            nothing = torch.stack([value.sum() for value in raw.values()]).sum() * 0
            return dict.fromkeys(LOSS_WEIGHTS, nothing)  # keeps the graph: parameters get a zero gradient, not none
        boxes, weights = torch.cat(samples.boxes), samples.weights("mask_weights")
        losses = point_losses(raw, join_points(points), boxes, weights)
        return {"loss_coarse": coarse_loss(raw[COARSE], torch.cat(coarse), weights), **losses}

    def _points(self, target: Mapping[str, Any]) -> Tensor:
        points: Tensor | None = target.get("surface_points")
        count = len(target["boxes"])
        if points is None or points.dim() != 3 or points.shape[0] != count or points.shape[2] != 5:
            raise TargetError(f"the surface head needs 'surface_points' ({count}, P, 5) in every target that has boxes")
        if points.numel() and float(points[..., 2].max()) > self.num_parts:
            raise TargetError(f"parts must be at most {self.num_parts}, got {float(points[..., 2].max()):.0f}")
        return points

    def _coarse(self, target: Mapping[str, Any]) -> Tensor:
        name = "masks" if self.coarse_channels == 2 else "coarse_parts"
        if name not in target:
            raise TargetError(f"the surface head needs {name!r} in every target that has boxes")
        maps: Tensor = target[name]
        if self.coarse_channels == 2:
            return maps > 0
        if maps.numel() and int(maps.max()) >= self.coarse_channels:
            raise TargetError(f"coarse parts must be below {self.coarse_channels}, got {int(maps.max())}")
        return maps


LOSS_WEIGHTS = {"loss_coarse": 5.0, "loss_part": 1.0, "loss_u": 0.01, "loss_v": 0.01}
"""detectron2's, of which the coordinates' belong to sums over points."""


class DensePoseRCNN(TwoStageDetector):
    """A two-stage detector with a head named "surface": boxes, each with a ``Surface``; there are no keypoints.

    Args:
        options: of ``TwoStageDetector``.
    """

    gives_soft_masks = False
    traced = VisionModel.traced  # refused: each object's charts are enlarged to the size of its box

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if set(self.roi_heads) != {"box", "surface"}:
            raise ConfigError(f"DensePose R-CNN needs the heads 'box' and 'surface', got {list(self.roi_heads)}")
        self.loss_weights = {**LOSS_WEIGHTS, **self.loss_weights}
        self.surface_parts = self.surface_head.num_parts

    @property
    def surface_head(self) -> SurfaceHead:
        """The head of charts."""
        return cast(SurfaceHead, self.roi_heads["surface"])

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """As in ``TwoStageDetector``, with the map that regions of the surface are pooled from."""
        raw = super().dense(batch)
        return {**raw, **self.surface_head.decoded(raw)}

    @torch.inference_mode()
    def decode(  # type: ignore[override]  # objects with surfaces in the place of objects with masks
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]
    ) -> list[LandmarkDetections]:
        """As in ``TwoStageDetector``; boxes and surfaces come back in source pixels."""
        raw = {name: maps.float().contiguous() for name, maps in raw.items()}
        found = self.detect(raw, geometries)
        charts = self.surface_head(raw, [boxes for boxes, _, _ in found])
        split = {name: value.split([len(boxes) for boxes, _, _ in found]) for name, value in charts.items()}
        return [
            self._decode_one(each, {name: value[k] for name, value in split.items()}, geometry)
            for k, (each, geometry) in enumerate(zip(found, geometries, strict=True))
        ]

    @staticmethod
    def _decode_one(
        found: tuple[Tensor, Tensor, Tensor], charts: Mapping[str, Tensor], geometry: Geometry
    ) -> LandmarkDetections:
        boxes, scores, labels = geometry.boxes_to_source(found[0]), found[1], found[2]
        surfaces = [
            paste({name: value[k] for name, value in charts.items()}, box, geometry.source_hw)
            for k, box in enumerate(boxes)
        ]
        points = boxes.new_zeros((len(boxes), 0, 2))
        return LandmarkDetections(geometry.source_hw, boxes, scores, labels, points, points[..., 0], surfaces=surfaces)
