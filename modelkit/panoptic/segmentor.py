"""Panoptic segmentation (Kirillov et al. 2019): a detector and a semantic head on one pyramid, and a fusion head."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.base import VisionModel
from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.targets import IGNORE
from modelkit.detection.targets import check_targets
from modelkit.detection.two_stage import TwoStageDetector
from modelkit.errors import TargetError
from modelkit.exporting.canvas import Canvas, classes_at_source
from modelkit.panoptic.fusion import FusionHead
from modelkit.panoptic.segments import PanopticMap, Regions
from modelkit.panoptic.targets import complete_target, pixel_weights
from modelkit.registry import Config, build
from modelkit.semantic.losses import pixel_loss
from modelkit.semantic.targets import check_semantic, padded
from modelkit.transform import Geometry


class PanopticSegmentor(VisionModel):
    """A two-stage detector with a mask head, a semantic head beside it, and what makes one map of both.

    Args:
        num_things: thing classes, ids 1 .. T.
        num_stuff: stuff classes, ids T + 1 .. T + S.
        detector: options of ``TwoStageDetector`` but for ``num_classes`` and ``loss_weights``.
        semantic: config of a dense_head that gives ``semantic_logits``.
        fusion: config of a fusion_head.
        loss_weights: by loss name; missing ones weigh 1. The losses themselves come back unweighted.
    """

    def __init__(
        self,
        *,
        num_things: int,
        num_stuff: int,
        detector: Mapping[str, Any],
        semantic: Config,
        fusion: Config,
        loss_weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.num_things, self.num_stuff = num_things, num_stuff
        self.detector = TwoStageDetector(num_classes=num_things + 1, loss_weights={}, **detector)
        self.transform = self.detector.transform
        self.fusion: FusionHead = build("fusion_head", fusion, num_things, num_stuff)
        self.semantic: nn.Module = build("dense_head", semantic, self.detector.neck, self.fusion.num_channels)
        own = {"loss_semantic": 1.0, "loss_semantic_roi": 1.0, "loss_panoptic": 1.0}
        self.loss_weights = {**self.detector.loss_weights, **own, **loss_weights}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted, named losses: those of the detector, ``loss_semantic`` and what the fusion head adds.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image: those of a detector with masks, and ``semantic`` (H, W) long class ids, 0 and
                255 unlabelled; or ``panoptic`` and ``segments``, see ``complete_target``. Optional: what detectors
                take, and ``semantic_weights`` (H, W). A pixel counts the least of these and of the class and mask
                weights of the objects that it belongs to.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        batch, geometries, resized = self.prepare_training(images, targets)
        return self.loss(self.dense(batch), geometries, resized)

    @property
    def most_detections(self) -> int:
        """See ``VisionModel``: of things, before fusion."""
        return self.detector.most_detections

    def limit_detections(self, most: int) -> None:
        """See ``VisionModel``."""
        self.detector.limit_detections(most)

    def anonymous_classes(self) -> tuple[ClassInfo, ...]:
        """Things, then stuff."""
        labels = range(1, 1 + self.num_things + self.num_stuff)
        return tuple(ClassInfo(label, f"class {label}", label <= self.num_things) for label in labels)

    def prepare_training(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None
    ) -> tuple[Tensor, list[Geometry], list[dict[str, Any]]]:
        """The batch, its geometries, and complete targets in resized pixels; raises TargetError."""
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for panoptic maps")
        whole = [complete_target(target) for target in targets]
        check_targets(whole, len(images), self.num_things + 1)
        check_semantic(images, whole, 1 + self.num_things + self.num_stuff)
        batch, geometries = self.transform.batch(images, training=self.training)
        return batch, geometries, [self.transform.target(t, g) for t, g in zip(whole, geometries, strict=True)]

    def loss(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Unweighted, named losses of raw maps; complete ``targets`` in resized pixels."""
        losses = self.detector.loss(raw, geometries, targets)
        semantic = padded([target["semantic"] for target in targets], geometries[0].padded_hw, IGNORE)
        wanted = self.fusion.semantic_target(semantic)
        logits = raw["semantic_logits"]
        weights = self._pixel_weights(targets, wanted)
        losses["loss_semantic"] = pixel_loss(logits, wanted, weights)
        run_masks = functools.partial(self.detector.mask_logits, raw)
        losses.update(self.fusion.loss(logits, wanted, weights, targets, run_masks))
        return losses

    @staticmethod
    def _pixel_weights(targets: Sequence[Mapping[str, Any]], wanted: Tensor) -> Tensor | None:
        """(N, H, W) on the padded canvas, or None where every pixel of every image counts fully."""
        maps = [pixel_weights(target) for target in targets]
        if all(each is None for each in maps):
            return None
        full = [
            torch.ones_like(target["semantic"], dtype=torch.float32) if each is None else each
            for target, each in zip(targets, maps, strict=True)
        ]
        return padded(full, wanted.shape[-2:], 0.0).to(wanted.device)

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised to pyramid maps, proposal maps and ``semantic_logits`` (N, C, h, w)."""
        return self.heads(self.pyramid(batch))

    def pyramid(self, batch: Tensor) -> dict[str, Tensor]:
        """The maps that every head looks at."""
        return self.detector.neck(self.detector.backbone(batch))

    def heads(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pyramid maps, and what the heads with fixed shapes make of them."""
        return {**features, **self.detector.rpn(features), **self.semantic(features)}

    left_to_caller: ClassVar[str] = (
        "one segment for every pixel: objects are laid upon each other by score, each where enough of it is free, "
        "and stuff fills the rest; that goes object by object, which a graph cannot"
    )

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """What the two branches say: objects as of the detector, and ``stuff_map`` (H, W) int16, the class of
        stuff of every source pixel, 0 where the semantic head sees a thing or nothing.
        """
        logits = F.interpolate(raw["semantic_logits"].float(), canvas.padded_hw, mode="bilinear", align_corners=False)
        stuff = {channel: label for label, channel in enumerate(self.fusion.channels(), 1) if label > self.num_things}
        class_of = torch.tensor([stuff.get(channel, 0) for channel in range(logits.shape[1])], dtype=torch.int16)
        return {
            **self.detector.traced(raw, canvas),
            "stuff_map": class_of[classes_at_source(logits[0].argmax(0), canvas.content_hw, canvas)],
        }

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[PanopticMap]:
        """The eager rest, in float32: detection, then one map per image."""
        return [found for found, _ in self.decode_with_regions(raw, geometries)[1]]

    def decode_with_regions(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]
    ) -> tuple[dict[str, Tensor], list[tuple[PanopticMap, Regions]]]:
        """The raw maps in float32, and per image its map with the region of each thing."""
        raw = {name: maps.float().contiguous() for name, maps in raw.items()}
        found = self.detector.detect(raw, geometries)
        masks = self.detector.mask_logits(raw, [boxes for boxes, _, _ in found], [labels for _, _, labels in found])
        return raw, [
            self.fusion.decode(logits, Regions(*one, mask), geometry)
            for logits, one, mask, geometry in zip(raw["semantic_logits"], found, masks, geometries, strict=True)
        ]
