"""The region proposal network (Ren et al. 2015): torchvision's module, split into forward, loss and decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import box_iou

from modelkit.carriers import SizeHW
from modelkit.detection.targets import in_ignored_region
from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.registry import register
from modelkit.transform import Geometry


@register("dense_head", "rpn")
class ProposalHead(nn.Module):
    """Objectness and box deltas for every anchor of every pyramid map.

    Args:
        neck: whose maps come in.
        anchor_sizes: one list of sides (pixels of the resized image) per map, fine to coarse.
        aspect_ratios: height over width, the same for every map.
        conv_depth: 3x3 convolutions before the predictors.
        foreground_iou, background_iou: anchors at or above / below are positive / negative; between is ignored.
        samples_per_image, positive_fraction: of anchors, for the loss.
        pre_nms_train, pre_nms_test: best anchors kept per map before suppression.
        post_nms_train, post_nms_test: proposals kept per image.
        nms_iou: suppression threshold, per map.
        score_threshold: proposals below it are dropped.
    """

    def __init__(
        self,
        neck: Backbone,
        *,
        anchor_sizes: Sequence[Sequence[int]] = ((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        conv_depth: int = 1,
        foreground_iou: float = 0.7,
        background_iou: float = 0.3,
        samples_per_image: int = 256,
        positive_fraction: float = 0.5,
        pre_nms_train: int = 2000,
        pre_nms_test: int = 1000,
        post_nms_train: int = 2000,
        post_nms_test: int = 1000,
        nms_iou: float = 0.7,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.levels = tuple(neck.out_channels)
        self.background_iou = background_iou
        if len(anchor_sizes) != len(self.levels):
            raise ConfigError(f"rpn needs anchor_sizes for the maps {self.levels}, got {anchor_sizes}")
        anchors = AnchorGenerator(
            tuple(tuple(sizes) for sizes in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes)
        )
        per_cell = set(anchors.num_anchors_per_location())
        if len(per_cell) != 1:
            raise ConfigError(f"rpn needs the same number of anchor sizes on every map, got {anchor_sizes}")
        self.head = RPNHead(neck.out_channels[self.levels[0]], per_cell.pop(), conv_depth)
        # The network below is used for everything but its convolutions, which must run alone to be compiled.
        self.proposer = RegionProposalNetwork(
            anchors,
            nn.Identity(),
            foreground_iou,
            background_iou,
            samples_per_image,
            positive_fraction,
            {"training": pre_nms_train, "testing": pre_nms_test},
            {"training": post_nms_train, "testing": post_nms_test},
            nms_iou,
            score_threshold,
        )

    def give_proposals(self, least: int) -> None:
        """Raise the limits that hold in use, where they are lower, so that so many proposals an image may be left."""
        for limits in (self.proposer._pre_nms_top_n, self.proposer._post_nms_top_n):
            limits["testing"] = max(limits["testing"], least)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raw maps: ``objectness.<map>`` (N, A, h, w) logits and ``deltas.<map>`` (N, 4 A, h, w)."""
        logits, deltas = self.head([features[level] for level in self.levels])
        raw = {f"objectness.{level}": logit for level, logit in zip(self.levels, logits, strict=True)}
        raw.update({f"deltas.{level}": delta for level, delta in zip(self.levels, deltas, strict=True)})
        return raw

    def _flatten(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]
    ) -> tuple[Tensor, Tensor, list[Tensor], list[int]]:
        logits = [raw[f"objectness.{level}"].float() for level in self.levels]
        deltas = [raw[f"deltas.{level}"].float() for level in self.levels]
        sizes = [geometry.resized_hw for geometry in geometries]
        # Only the shape of the batch matters to the anchors, so no pixels are carried.
        canvas = torch.empty((len(sizes), 3, *geometries[0].padded_hw), device="meta")
        anchors = self.proposer.anchor_generator(ImageList(canvas, sizes), logits)
        per_level = [logit[0].numel() for logit in logits]
        flat_logits, flat_deltas = concat_box_prediction_layers(logits, deltas)
        return flat_logits, flat_deltas, anchors, per_level

    def every_box(self, raw: Mapping[str, Tensor], padded_hw: SizeHW) -> tuple[Tensor, Tensor, list[int]]:
        """Of one image: logits (A,) and boxes (A, 4) of every anchor, and how many anchors each map has."""
        logits, deltas, anchors, per_level = self._flatten(raw, [Geometry(padded_hw, padded_hw, padded_hw)])
        return logits.flatten(), self.proposer.box_coder.decode_single(deltas, anchors[0]), per_level

    @torch.no_grad()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Tensor]:
        """Proposals (p, 4) xyxy in resized pixels per image, best first; no gradient flows through them."""
        logits, deltas, anchors, per_level = self._flatten(raw, geometries)
        boxes = self.proposer.box_coder.decode(deltas, anchors).view(len(geometries), -1, 4)
        sizes = [geometry.resized_hw for geometry in geometries]
        return self.proposer.filter_proposals(boxes, logits, sizes, per_level)[0]

    def loss(
        self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """``loss_objectness`` (mean BCE) and ``loss_rpn_box_reg`` (smooth L1, beta 1/9, per sampled anchor).

        Both sums are weighted by ``class_weights`` and ``box_weights`` of the matched objects and divided by the number
        of sampled anchors. Anchors in ignored regions that match no object are never sampled.
        """
        logits, deltas, anchors, _ = self._flatten(raw, geometries)
        labels, matched = self.proposer.assign_targets_to_anchors(anchors, [dict(target) for target in targets])
        for label, boxes, target in zip(labels, anchors, targets, strict=True):
            # torchvision's labels: 1 object, 0 background, -1 neither
            label[(label == 0) & in_ignored_region(boxes, target, self.background_iou)] = -1
        wanted = torch.cat(list(self.proposer.box_coder.encode(matched, anchors)))
        positive, negative = (torch.where(torch.cat(drawn))[0] for drawn in self.proposer.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        logits, flat_labels = logits.flatten(), torch.cat(labels)
        weights = self._anchor_weights(anchors, labels, targets)
        objectness = F.binary_cross_entropy_with_logits(
            logits[sampled], flat_labels[sampled], weight=weights["class_weights"][sampled], reduction="sum"
        )
        boxes = F.smooth_l1_loss(deltas[positive], wanted[positive], beta=1 / 9, reduction="none").sum(1)
        count = max(1, len(sampled))
        return {
            "loss_objectness": objectness / count,
            "loss_rpn_box_reg": (boxes * weights["box_weights"][positive]).sum() / count,
        }

    def _anchor_weights(
        self, anchors: Sequence[Tensor], labels: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """(all anchors,) per key: the weight of the matched object, 1 elsewhere."""
        found: dict[str, list[Tensor]] = {"class_weights": [], "box_weights": []}
        for boxes, label, target in zip(anchors, labels, targets, strict=True):
            weighted = [key for key in found if key in target and len(target["boxes"])]
            nearest = box_iou(target["boxes"].to(boxes), boxes).argmax(0) if weighted else None
            for key, pieces in found.items():
                ones = torch.ones_like(label)
                if key in weighted:
                    ones = torch.where(label > 0, target[key].to(label)[nearest], ones)
                pieces.append(ones)
        return {key: torch.cat(pieces) for key, pieces in found.items()}
