"""Heads on regions: boxes and masks (He et al. 2017).

Contract of a roi_head: ``needs`` says which boxes it wants in training ("sampled" or "positive"), ``teaches`` whose
weight must not be 0, ``wanted(samples)`` picks them; ``forward(features, boxes) -> raw``; ``loss(raw, samples) -> dict
of scalars``; ``decode(raw, ...)`` gives predictions.
The box head decodes first and decides what is detected; the others are then run on the detected boxes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes, roi_align

from modelkit.detection.pooling import PyramidRoIAlign
from modelkit.detection.targets import Samples
from modelkit.errors import ConfigError, TargetError
from modelkit.layers.backbones import Backbone
from modelkit.layers.norms import norm_layer
from modelkit.registry import register
from modelkit.transform import Geometry

FINE_LEVELS = ("p2", "p3", "p4", "p5")
MIN_BOX_SIDE = 1e-2  # pixels of the resized image, as in torchvision


def pooled_levels(neck: Backbone) -> list[str]:
    """The maps that regions are pooled from: p2 .. p5, as far as the neck has them."""
    return [level for level in neck.out_channels if level in FINE_LEVELS]


class RoIHead(nn.Module, ABC):
    """What every head on regions has, see the module's contract; ``decode`` differs by what a head predicts."""

    needs: Literal["sampled", "positive"]
    teaches: ClassVar[str | None] = None
    """Key of the objects' weights in its loss, if regions of weight 0 are not even to be looked at."""

    def wanted(self, samples: Samples) -> Samples:
        """The samples that it learns from."""
        if self.needs == "sampled":
            return samples
        return samples.positive(self.teaches)

    @abstractmethod
    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps and regions (n_i, 4) per image, resized pixels, to raw outputs of all regions."""

    @abstractmethod
    def loss(self, raw: Mapping[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """Named scalars, unweighted."""


@register("roi_head", "box_head")
class BoxHead(RoIHead):
    """Class scores and per-class box deltas for each region.

    Args:
        neck: whose maps come in.
        num_classes: background included.
        resolution: of the pooled features.
        sampling_ratio, canonical_scale, canonical_level: of the pooling, see ``PyramidRoIAlign``.
        conv_channels: 3x3 convolutions before the fully connected layers; empty as in the paper.
        fc_channels: widths of the fully connected layers; without convolutions two equal ones.
        norm: after the convolutions.
        score_threshold: detections at or below it are dropped.
        nms_iou: suppression threshold, per class.
        detections_per_image: kept at most.
        box_weights: of the box coder (Ren et al. 2015): scale of dx, dy, dw, dh.
        focal: exponent g of the factor (1 - p)^g on the cross-entropy of a region, p the probability of its class (Lin
            et al. 2017); 0 = none.
    """

    needs = "sampled"

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        *,
        resolution: int = 7,
        sampling_ratio: int = 2,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        conv_channels: Sequence[int] = (),
        fc_channels: Sequence[int] = (1024, 1024),
        norm: str | None = None,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        detections_per_image: int = 100,
        box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        focal: float = 0.0,
    ) -> None:
        super().__init__()
        if focal < 0:
            raise ConfigError(f"a box head needs focal >= 0, got {focal}")
        self.focal = focal
        levels = pooled_levels(neck)
        self.pool = PyramidRoIAlign(neck, levels, resolution, sampling_ratio, canonical_scale, canonical_level)
        self.body = _box_body(neck.out_channels[levels[0]], resolution, conv_channels, fc_channels, norm)
        self.predictor = FastRCNNPredictor(fc_channels[-1], num_classes)
        self.coder = BoxCoder(tuple(box_weights))
        self.num_classes = num_classes
        self.score_threshold, self.nms_iou = score_threshold, nms_iou
        self.detections_per_image = detections_per_image

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """``class_logits`` (r, C) and ``box_deltas`` (r, 4 C) of all r regions, images concatenated."""
        logits, deltas = self.predictor(self.body(self.pool(features, boxes)))
        return {"class_logits": logits.float(), "box_deltas": deltas.float()}

    def loss(self, raw: Mapping[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """``loss_classifier`` (mean cross-entropy) and ``loss_box_reg`` (smooth L1, beta 1/9, per sampled region).

        Both sums are weighted by ``class_weights`` and ``box_weights`` of the matched objects and divided by the
        number of samples.
        """
        labels = torch.cat(samples.labels)
        wanted = torch.cat(self.coder.encode(self._matched_boxes(samples), samples.boxes))
        positive = torch.where(labels > 0)[0]
        deltas = raw["box_deltas"].unflatten(1, (-1, 4))[positive, labels[positive]]
        box_loss = F.smooth_l1_loss(deltas, wanted[positive], beta=1 / 9, reduction="none").sum(1)
        class_loss = F.cross_entropy(raw["class_logits"], labels, reduction="none")
        if self.focal:
            class_loss = (1 - (-class_loss).exp()) ** self.focal * class_loss
        count = max(1, len(labels))
        return {
            "loss_classifier": (class_loss * samples.weights("class_weights")).sum() / count,
            "loss_box_reg": (box_loss * samples.weights("box_weights")[positive]).sum() / count,
        }

    @staticmethod
    def _matched_boxes(samples: Samples) -> list[Tensor]:
        """Ground truth of each sample; for images without any, the sample itself (its delta is never used)."""
        triples = zip(samples.boxes, samples.matched, samples.targets, strict=True)
        return [
            target["boxes"].to(boxes)[matched] if len(target["boxes"]) else boxes for boxes, matched, target in triples
        ]

    def decode(
        self, raw: Mapping[str, Tensor], proposals: Sequence[Tensor], geometries: Sequence[Geometry]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per image: boxes (n, 4) in resized pixels, scores (n,), labels (n,) from 1, best first."""
        counts = [len(found) for found in proposals]
        boxes = self.coder.decode(raw["box_deltas"], list(proposals)).split(counts)
        scores = raw["class_logits"].softmax(-1).split(counts)
        return [self._decode_one(b, s, g) for b, s, g in zip(boxes, scores, geometries, strict=True)]

    def _decode_one(self, boxes: Tensor, scores: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        boxes = clip_boxes_to_image(boxes, geometry.resized_hw)[:, 1:].reshape(-1, 4)
        scores = scores[:, 1:]
        labels = torch.arange(1, self.num_classes, device=scores.device).expand_as(scores).reshape(-1)
        scores = scores.reshape(-1)
        keep = torch.where(scores > self.score_threshold)[0]
        keep = keep[remove_small_boxes(boxes[keep], MIN_BOX_SIDE)]
        keep = keep[batched_nms(boxes[keep], scores[keep], labels[keep], self.nms_iou)[: self.detections_per_image]]
        return boxes[keep], scores[keep], labels[keep]


def _box_body(
    channels: int, resolution: int, conv_channels: Sequence[int], fc_channels: Sequence[int], norm: str | None
) -> nn.Module:
    if conv_channels:
        return FastRCNNConvFCHead(
            (channels, resolution, resolution), list(conv_channels), list(fc_channels), norm_layer(norm)
        )
    if len(fc_channels) != 2 or fc_channels[0] != fc_channels[1]:
        raise ConfigError(f"a box head without convolutions needs two equal fc_channels, got {list(fc_channels)}")
    return TwoMLPHead(channels * resolution**2, fc_channels[0])


def cropped_masks(masks: Tensor, boxes: Tensor, matched: Tensor, cells: int, aligned: bool) -> Tensor:
    """True masks (n, H, W) of matched objects on the grids of boxes (r, 4): (r, cells, cells) in [0, 1].

    Args:
        matched: (r,) int64 object of each box.
        aligned: the middle of pixel i is at i + 0.5, as boxes, images and the pasting of masks have it; without, at i,
            as in torchvision's ``project_masks_on_boxes``.
    """
    rois = torch.cat([matched.to(boxes)[:, None], boxes], dim=1)
    return roi_align(masks[:, None].to(rois), rois, (cells, cells), 1.0, aligned=aligned)[:, 0]


@register("roi_head", "mask_head")
class MaskHead(RoIHead):
    """A mask of twice the pooled resolution for each region and class.

    Args:
        neck: whose maps come in.
        num_classes: background included.
        resolution: of the pooled features; masks have 2 * resolution cells a side.
        sampling_ratio, canonical_scale, canonical_level: of the pooling.
        channels: of the 3x3 convolutions.
        predictor_channels: of the 2x2 deconvolution.
        norm: after the convolutions.
        class_agnostic: one mask per region instead of one per class.
        aligned_targets: true masks are resized and cropped where their pixels are. torchvision's own crops lie half a
            pixel up and to the left: perfect masks of digits of 28 to 60 px, put back, then have a mean IoU of .82 in
            place of .91.
    """

    needs = "positive"
    teaches = "mask_weights"

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        *,
        resolution: int = 14,
        sampling_ratio: int = 2,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        channels: Sequence[int] = (256, 256, 256, 256),
        predictor_channels: int = 256,
        norm: str | None = None,
        class_agnostic: bool = False,
        aligned_targets: bool = True,
    ) -> None:
        super().__init__()
        levels = pooled_levels(neck)
        self.pool = PyramidRoIAlign(neck, levels, resolution, sampling_ratio, canonical_scale, canonical_level)
        self.body = MaskRCNNHeads(neck.out_channels[levels[0]], list(channels), 1, norm_layer(norm))
        self.predictor = MaskRCNNPredictor(channels[-1], predictor_channels, 1 if class_agnostic else num_classes)
        self.class_agnostic, self.aligned_targets = class_agnostic, aligned_targets

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """``mask_logits`` (r, C, M, M) with M = 2 * resolution; C = 1 when class-agnostic."""
        return {"mask_logits": self.predictor(self.body(self.pool(features, boxes))).float()}

    def loss(self, raw: Mapping[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """``loss_mask``: mean BCE on the channel of the true class against the true mask cropped by the region.

        Regions are weighted by ``mask_weights`` of their objects; those of weight 0 take no part in the mean, and
        ``wanted`` leaves them out: pseudo-labels often teach no masks, and this head is dear.

        Raises:
            TargetError: when a target with objects has no ``masks``.
        """
        logits = raw["mask_logits"]
        wanted = []
        for boxes, matched, target in zip(samples.boxes, samples.matched, samples.targets, strict=True):
            if len(boxes) == 0:
                continue
            if "masks" not in target:
                raise TargetError("the mask head needs 'masks' in every target that has boxes")
            wanted.append(cropped_masks(target["masks"], boxes, matched, logits.shape[-1], self.aligned_targets))
        if not wanted:
            return {"loss_mask": logits.sum() * 0}  # keeps the graph: parameters get a zero gradient, not none
        chosen = self.of_labels(logits, torch.cat(samples.labels))
        per_region = F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted), reduction="none").mean((1, 2))
        weights = samples.weights("mask_weights")
        return {"loss_mask": (per_region * weights).sum() / (weights > 0).sum().clamp(min=1)}

    def decode(self, raw: Mapping[str, Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Per image: probabilities (n, M, M) of each detection's own class, on the grid of its box."""
        return [logits.sigmoid() for logits in self.of_class(raw, labels)]

    def of_class(self, raw: Mapping[str, Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Per image: logits (n, M, M) of each region's own class."""
        chosen = self.of_labels(raw["mask_logits"], torch.cat(list(labels)))
        return list(chosen.split([len(found) for found in labels]))

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (r, C, M, M) to those (r, M, M) of each region's own class, by labels (r,) from 1."""
        channel = torch.zeros_like(labels) if self.class_agnostic else labels
        return logits[torch.arange(labels.shape[0], device=labels.device), channel]
