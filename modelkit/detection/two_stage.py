"""Two-stage detectors: proposals first, then heads on regions (Ren et al. 2015, He et al. 2017).

One skeleton for Faster and Mask R-CNN and for every later head: torchvision's ``RoIHeads`` hard-codes its heads and
hides its samples, so this is written anew around torchvision's parts; with the same weights it gives the same
detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from modelkit.base import PairedLogits, VisionModel
from modelkit.carriers import Instances, SizeHW
from modelkit.carriers.geometry import mirror_boxes
from modelkit.detection.proposals import ProposalHead
from modelkit.detection.roi_heads import BoxHead, MaskHead, RoIHead
from modelkit.detection.targets import ProposalSampler, check_targets
from modelkit.detection.tracing import traced_detections
from modelkit.errors import ConfigError, TargetError
from modelkit.exporting.canvas import Canvas
from modelkit.layers.backbones import Backbone
from modelkit.layers.watching import watched
from modelkit.registry import Config, build
from modelkit.rle.boxes import encode_box_masks
from modelkit.transform import Geometry, ImageTransform

LOSS_NAMES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one image, as tensors on the model's device, best first.

    Args:
        size_hw: of the source image.
        boxes_xyxy: (n, 4) float32, source pixels.
        scores: (n,) float32.
        labels: (n,) long, from 1.
        masks: (n, M, M) float32 probabilities on the grid of each box, or None.
    """

    size_hw: SizeHW
    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None

    def cpu(self) -> Detections:
        """The same on the host."""
        masks = None if self.masks is None else self.masks.cpu()
        return Detections(self.size_hw, self.boxes_xyxy.cpu(), self.scores.cpu(), self.labels.cpu(), masks)

    def mirrored(self) -> Detections:
        """The same with left and right exchanged."""
        masks = None if self.masks is None else self.masks.flip(-1)
        return replace(self, boxes_xyxy=mirror_boxes(self.boxes_xyxy, self.size_hw[1]), masks=masks)

    def finish(self, min_score: float = 0.0, *, threshold: float = 0.5) -> Instances:
        """With masks as run lengths on the source canvas, straight from the small masks; pixels > ``threshold``."""
        keep = self.scores >= min_score
        if not keep.all():
            masks = None if self.masks is None else self.masks[keep]
            kept = Detections(self.size_hw, self.boxes_xyxy[keep], self.scores[keep], self.labels[keep], masks)
            return kept.finish(threshold=threshold)
        boxes = self.boxes_xyxy.float().numpy(force=True)
        rles = None if self.masks is None else encode_box_masks(self.masks, self.boxes_xyxy, self.size_hw, threshold)
        return Instances(
            size_hw=self.size_hw,
            boxes_xyxy=boxes,
            scores=self.scores.float().numpy(force=True),
            labels=self.labels.numpy(force=True).astype(np.int32),
            rles=rles,
            is_thing=np.ones(len(boxes), bool),
        )


class TwoStageDetector(VisionModel):
    """Backbone, neck, region proposals, and any number of heads on regions, the first of which is the box head.

    Args:
        num_classes: background included; labels run from 1.
        backbone, neck, rpn: part configs.
        heads: part configs by name; "box" is required and decides what is detected.
        transform: options of ``ImageTransform``.
        sampler: options of ``ProposalSampler``: iou_threshold, per_image, positive_fraction.
        loss_weights: by loss name; missing ones weigh 1. The losses themselves come back unweighted.
    """

    gives_soft_masks = True

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Config,
        neck: Config,
        rpn: Config,
        heads: Mapping[str, Config | None],
        transform: Config,
        sampler: Mapping[str, Any],
        loss_weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.transform = ImageTransform.from_config(transform)
        self.backbone: Backbone = build("backbone", backbone)
        self.neck: Backbone = build("neck", neck, self.backbone)
        self.rpn: ProposalHead = build("dense_head", rpn, self.neck)
        self.roi_heads = nn.ModuleDict(
            {name: build("roi_head", head, self.neck, num_classes) for name, head in heads.items() if head is not None}
        )
        if "box" not in self.roi_heads:
            raise ConfigError(f"a two-stage detector needs a head named 'box', got {list(self.roi_heads)}")
        self.sample = ProposalSampler(**_checked_sampler(sampler))
        self.loss_weights = {name: 1.0 for name in LOSS_NAMES if name != "loss_mask" or "mask" in self.roi_heads}
        self.loss_weights.update(loss_weights)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted, named losses of a training batch; ``predict`` is for everything else.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image: ``boxes`` (n, 4) float xyxy in pixels of the image, ``labels`` (n,) long from
                1, and for a mask head ``masks`` (n, H, W) uint8. n may be 0. Optional: ``ignore_boxes`` (k, 4) float
                and ``class_weights``, ``box_weights``, ``mask_weights`` (n,) float, see ``modelkit.detection.targets``.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for detections")
        check_targets(targets, len(images), self.num_classes)
        batch, geometries = self.transform.batch(images, training=self.training)
        resized = [
            self.transform.target(t, g, aligned=self.aligned_targets) for t, g in zip(targets, geometries, strict=True)
        ]
        return self.loss(self.dense(batch), geometries, resized)

    @property
    def aligned_targets(self) -> bool:
        """Whether masks are resized and cropped where their pixels are, see ``MaskHead``."""
        return all(getattr(head, "aligned_targets", True) for head in self.roi_heads.values())

    def loss(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Unweighted, named losses of raw maps; ``targets`` in resized pixels, as ``transform.target`` gives them."""
        losses = self.rpn.loss(raw, geometries, targets)
        samples = self.sample(self.rpn.decode(raw, geometries), targets)
        for module in self.roi_heads.values():
            head = cast(RoIHead, module)
            wanted = head.wanted(samples)
            losses.update(head.loss(head(raw, wanted.boxes), wanted))
        return losses

    @property
    def most_detections(self) -> int:
        """See ``VisionModel``."""
        return cast(BoxHead, self.roi_heads["box"]).detections_per_image

    def limit_detections(self, most: int) -> None:
        """See ``VisionModel``; there are at least twice as many proposals, of which most are suppressed."""
        cast(BoxHead, self.roi_heads["box"]).detections_per_image = most
        self.rpn.give_proposals(2 * most)

    def can_learn_from(self, teacher: VisionModel) -> bool:
        """From another two-stage detector."""
        return isinstance(teacher, TwoStageDetector)

    def paired_logits(
        self, teacher: VisionModel, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]
    ) -> PairedLogits:
        """Region by region of those that this model samples; both look at the very same pixels."""
        detector = cast(TwoStageDetector, teacher)
        with watched(self.backbone) as whole, watched(self.roi_heads["box"]) as seen:
            losses = self(images, targets)
        (batch,), _ = whole
        (_, boxes), raw = seen
        with torch.no_grad():
            theirs = cast(BoxHead, detector.roi_heads["box"])(detector.dense(batch), boxes)["class_logits"]
        return PairedLogits(losses, "loss_classifier", raw["class_logits"], theirs)

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """The part with fixed shapes, fit to be compiled: (N, 3, H, W) normalised to pyramid maps and proposal maps."""
        features = self.neck(self.backbone(batch))
        return {**features, **self.rpn(features)}

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Detections]:
        """The eager rest, in float32: proposals, regions, suppression. Boxes come back in source pixels."""
        raw = {name: maps.float().contiguous() for name, maps in raw.items()}  # once, not once for every head
        found = self.detect(raw, geometries)
        masks = self._decode_masks(raw, found)
        return [
            Detections(geometry.source_hw, geometry.boxes_to_source(boxes), scores, labels, mask)
            for geometry, (boxes, scores, labels), mask in zip(geometries, found, masks, strict=True)
        ]

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """See ``traced_detections``."""
        return traced_detections(self, raw, canvas)

    def detect(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per image: boxes (n, 4) in *resized* pixels, scores (n,) and labels (n,) from 1, best first; float32 maps."""
        proposals = self.rpn.decode(raw, geometries)
        box_head = cast(BoxHead, self.roi_heads["box"])
        return box_head.decode(box_head(raw, proposals), proposals, geometries)

    def mask_logits(self, raw: Mapping[str, Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Per image: logits (n, M, M) of each region's own class on the grid of its box, in resized pixels.

        Raises:
            ConfigError: when there is no mask head.
        """
        if "mask" not in self.roi_heads:
            raise ConfigError(f"masks need a head named 'mask', the detector has {list(self.roi_heads)}")
        head = cast(MaskHead, self.roi_heads["mask"])
        return head.of_class(head(raw, boxes), labels)

    def _decode_masks(
        self, raw: Mapping[str, Tensor], found: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Sequence[Tensor | None]:
        if "mask" not in self.roi_heads:
            return [None] * len(found)
        head = cast(MaskHead, self.roi_heads["mask"])
        return head.decode(head(raw, [boxes for boxes, _, _ in found]), [labels for _, _, labels in found])


def _checked_sampler(options: Mapping[str, Any]) -> Mapping[str, Any]:
    known = {"iou_threshold", "per_image", "positive_fraction"}
    if set(options) != known:
        raise ConfigError(f"sampler needs exactly the options {sorted(known)}, got {sorted(options)}")
    return options
