"""One-stage detectors with priors: backbone, neck and one dense head that is the whole detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelkit.base import VisionModel
from modelkit.carriers import Instances, SizeHW
from modelkit.carriers.geometry import mirror_boxes
from modelkit.detection.targets import check_targets
from modelkit.errors import TargetError
from modelkit.exporting.canvas import Canvas
from modelkit.layers.backbones import Backbone
from modelkit.onestage.head import Found, YolactHead
from modelkit.onestage.tracing import traced_grid_detections
from modelkit.registry import Config, build
from modelkit.rle.grids import encode_grid_masks
from modelkit.transform import Geometry, ImageTransform

LOSS_WEIGHTS = {"loss_classifier": 1.0, "loss_box_reg": 1.5, "loss_mask": 6.125, "loss_semantic": 1.0}


@dataclass(frozen=True, slots=True)
class GridDetections:
    """What was found in one image, as tensors on the model's device, best first.

    Args:
        size_hw: of the source image.
        boxes_xyxy: (n, 4) float32, source pixels, within the image.
        scores: (n,) float32.
        labels: (n,) long, from 1.
        masks: (n, h, w) float32 probabilities on a grid over the whole image.
    """

    size_hw: SizeHW
    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def cpu(self) -> GridDetections:
        """The same on the host."""
        tensors = (self.boxes_xyxy, self.scores, self.labels, self.masks)
        return GridDetections(self.size_hw, *(tensor.cpu() for tensor in tensors))

    def mirrored(self) -> GridDetections:
        """The same with left and right exchanged."""
        boxes = mirror_boxes(self.boxes_xyxy, self.size_hw[1])
        return replace(self, boxes_xyxy=boxes, masks=self.masks.flip(-1))

    def finish(self, min_score: float = 0.0, *, threshold: float = 0.5) -> Instances:
        """With masks as run lengths on the source canvas, straight from the grid; pixels > ``threshold``."""
        keep = self.scores >= min_score
        if not keep.all():
            tensors = (self.boxes_xyxy, self.scores, self.labels, self.masks)
            return GridDetections(self.size_hw, *(each[keep] for each in tensors)).finish(threshold=threshold)
        return Instances(
            size_hw=self.size_hw,
            boxes_xyxy=self.boxes_xyxy.float().numpy(force=True),
            scores=self.scores.float().numpy(force=True),
            labels=self.labels.numpy(force=True).astype(np.int32),
            rles=encode_grid_masks(self.masks, self.size_hw, threshold),
            is_thing=np.ones(len(self.scores), bool),
        )


class AnchorDetector(VisionModel):
    """Backbone, neck and a dense head on priors that gives boxes, classes and masks in one pass.

    Args:
        num_classes: background included; labels run from 1.
        backbone, neck, head: part configs.
        transform: options of ``ImageTransform``.
        loss_weights: by loss name, over YOLACT's own.
    """

    gives_soft_masks = True

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Config,
        neck: Config,
        head: Config,
        transform: Config,
        loss_weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.transform = ImageTransform.from_config(transform)
        self.backbone: Backbone = build("backbone", backbone)
        self.neck: Backbone = build("neck", neck, self.backbone)
        self.head: YolactHead = build("dense_head", head, self.neck, num_classes)
        self.loss_weights = {**LOSS_WEIGHTS, **loss_weights}

    @property
    def most_detections(self) -> int:
        """See ``VisionModel``."""
        return int(self.head.suppression["keep"])

    def limit_detections(self, most: int) -> None:
        """See ``VisionModel``; twice as many priors go into the suppression."""
        suppression = self.head.suppression
        suppression["keep"], suppression["top_k"] = most, max(suppression["top_k"], 2 * most)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted, named losses of a training batch; ``predict`` is for everything else.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image: ``boxes`` (n, 4) float xyxy in pixels of the image, ``labels`` (n,) long from
                1, ``masks`` (n, H, W) uint8, optionally ``iscrowd`` (n,) bool. n may be 0. Optional: ``ignore_boxes``
                and weights by object, see ``modelkit.detection.targets``.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        batch, geometries, resized = self.prepare_training(images, targets)
        features = self.neck(self.backbone(batch))
        return self.head.loss(self.head(features), features, geometries, resized)

    def prepare_training(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None
    ) -> tuple[Tensor, list[Geometry], list[dict[str, Any]]]:
        """The batch, the way back, and the targets in resized pixels; raises as ``forward`` does."""
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for detections")
        check_targets(targets, len(images), self.num_classes)
        batch, geometries = self.transform.batch(images, training=self.training)
        return batch, geometries, [self.transform.target(t, g) for t, g in zip(targets, geometries, strict=True)]

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised to ``deltas``, ``logits``, ``coefficients`` and ``prototypes`` of the head."""
        return self.head(self.neck(self.backbone(batch)))

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[GridDetections]:
        """Score threshold, fast NMS, masks from prototypes; boxes come back in source pixels."""
        found = self.head.decode(raw, geometries)
        return [to_source(each, geometry) for each, geometry in zip(found, geometries, strict=True)]

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """See ``traced_grid_detections``."""
        return traced_grid_detections(self.head, raw, canvas)


def to_source(found: Found, geometry: Geometry) -> GridDetections:
    """Detections in resized pixels to source pixels: boxes clipped, padding cut off the masks' grid."""
    rows, columns = (
        max(1, round(cells * resized / padded))
        for cells, resized, padded in zip(found.masks.shape[-2:], geometry.resized_hw, geometry.padded_hw, strict=True)
    )
    boxes = geometry.clipped_boxes_to_source(found.boxes_xyxy)
    return GridDetections(geometry.source_hw, boxes, found.scores, found.labels, found.masks[:, :rows, :columns])
