"""YOLACT's head (Bolya et al. 2019): boxes, classes and mask coefficients of priors; prototypes for them to combine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.layers.backbones import Backbone
from modelkit.onestage.losses import (
    box_loss,
    boxes_to_grid,
    check_masks,
    classification_loss,
    mask_loss,
    prior_weights,
    semantic_loss,
)
from modelkit.onestage.masks import assemble_masks
from modelkit.onestage.matching import SSDMatcher
from modelkit.onestage.priors import as_tuples, corners, decode_boxes, prior_boxes
from modelkit.onestage.pyramid import initialise
from modelkit.onestage.suppression import fast_nms
from modelkit.registry import register
from modelkit.transform import Geometry


@dataclass(frozen=True, slots=True)
class Found:
    """Detections of one image in resized pixels, best first.

    Args:
        boxes_xyxy: (n, 4), may leave the image.
        scores: (n,).
        labels: (n,) long from 1.
        masks: (n, h, w) probabilities on a grid that covers the padded batch.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


class ProtoNet(nn.Module):
    """Prototypes (N, k, 2 h, 2 w) from the finest map: not negative, so that a coefficient's sign adds or subtracts.

    Args:
        channels: of the map and of every convolution.
        num_prototypes: k.
    """

    def __init__(self, channels: int, num_prototypes: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.after = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, num_prototypes, 1)

    def forward(self, finest: Tensor) -> Tensor:
        for convolution in self.before:
            finest = F.relu(convolution(finest))
        finest = F.interpolate(finest, scale_factor=2.0, mode="bilinear", align_corners=False)
        return F.relu(self.last(F.relu(self.after(finest))))


@register("dense_head", "yolact_head")
class YolactHead(nn.Module):
    """One head for all maps of the pyramid, and the prototypes.

    Args:
        neck: whose maps come in, all of one width.
        num_classes: background included.
        anchor_scales: sides in pixels of the resized image, one list a map, fine to coarse.
        aspect_ratios: width over height.
        square_anchors: see ``prior_boxes``.
        num_prototypes: k.
        positive_iou, negative_iou, crowd_iou: see ``SSDMatcher``.
        negatives_per_positive: see ``classification_loss``.
        masks_to_train: at most so many masks an image are trained at once.
        score_threshold: priors whose best class is not above it are dropped.
        nms_iou, nms_top_k, detections_per_image: see ``fast_nms``.
    """

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        *,
        anchor_scales: Sequence[Sequence[float]] = ((24,), (48,), (96,), (192,), (384,)),
        aspect_ratios: Sequence[float] = (1.0, 0.5, 2.0),
        square_anchors: bool = True,
        num_prototypes: int = 32,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        crowd_iou: float = 0.7,
        negatives_per_positive: int = 3,
        masks_to_train: int = 100,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        nms_top_k: int = 200,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__()
        self.levels, self.strides = tuple(neck.out_channels), tuple(neck.strides.values())
        self.scales, self.ratios, self.square = as_tuples(anchor_scales), tuple(aspect_ratios), square_anchors
        per_cell = {len(sides) * len(self.ratios) for sides in self.scales}
        if len(self.scales) != len(self.levels) or len(per_cell) != 1:
            raise ConfigError(f"yolact_head needs as many anchor_scales on each of {self.levels}, got {anchor_scales}")
        priors, channels = per_cell.pop(), neck.out_channels[self.levels[0]]
        self.num_classes, self.num_prototypes = num_classes, num_prototypes
        self.shared = nn.Conv2d(channels, channels, 3, padding=1)
        self.deltas = nn.Conv2d(channels, 4 * priors, 3, padding=1)
        self.logits = nn.Conv2d(channels, num_classes * priors, 3, padding=1)
        self.coefficients = nn.Conv2d(channels, num_prototypes * priors, 3, padding=1)
        self.prototypes = ProtoNet(channels, num_prototypes)
        self.semantic = nn.Conv2d(channels, num_classes - 1, 1)  # in training only
        self.match = SSDMatcher(positive_iou, negative_iou, crowd_iou)
        self.negatives_per_positive, self.masks_to_train = negatives_per_positive, masks_to_train
        self.score_threshold = score_threshold
        self.suppression: dict[str, Any] = {"iou_threshold": nms_iou, "top_k": nms_top_k, "keep": detections_per_image}
        initialise(self)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``deltas`` (N, P, 4), ``logits`` (N, P, C), ``coefficients`` (N, P, k) and ``prototypes`` (N, k, h, w)."""
        shared = [F.relu(self.shared(features[level])) for level in self.levels]
        return {
            "deltas": flatten_maps([self.deltas(x) for x in shared], 4),
            "logits": flatten_maps([self.logits(x) for x in shared], self.num_classes),
            "coefficients": flatten_maps([self.coefficients(x) for x in shared], self.num_prototypes).tanh(),
            "prototypes": self.prototypes(features[self.levels[0]]),
        }

    def priors(self, padded_hw: SizeHW, device: torch.device) -> Tensor:
        """(P, 4) centre and size in resized pixels, in the order of ``forward``."""
        return prior_boxes(padded_hw, self.strides, self.scales, self.ratios, self.square, device)

    def loss(
        self,
        raw: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
        geometries: Sequence[Geometry],
        targets: Sequence[Mapping[str, Any]],
    ) -> dict[str, Tensor]:
        """``loss_classifier, loss_box_reg, loss_mask, loss_semantic``, unweighted; see ``modelkit.onestage.losses``.

        Args:
            raw: of ``forward``.
            features: the pyramid; the semantic branch, which exists for training alone, looks at its finest map.
            geometries: all of one padded size.
            targets: in resized pixels.

        Raises:
            TargetError: when a target with objects has no masks.
        """
        check_masks(targets)
        raw = {name: maps.float() for name, maps in raw.items()}
        padded_hw = geometries[0].padded_hw
        priors = self.priors(padded_hw, raw["deltas"].device)
        pairs = [self.match(corners(priors), target) for target in targets]
        labels, matched = (torch.stack(each) for each in zip(*pairs, strict=True))
        boxes = torch.stack([take_matched(t["boxes"].to(priors), m) for t, m in zip(targets, matched, strict=True)])
        semantic = self.semantic(features[self.levels[0]]).float()
        class_weights, box_weights = (
            prior_weights(key, labels, matched, targets) for key in ("class_weights", "box_weights")
        )
        return {
            "loss_classifier": classification_loss(raw["logits"], labels, self.negatives_per_positive, class_weights),
            "loss_box_reg": box_loss(raw["deltas"], labels, boxes, priors, box_weights),
            "loss_mask": mask_loss(
                raw["prototypes"], raw["coefficients"], labels, matched, targets, padded_hw, self.masks_to_train
            ),
            "loss_semantic": semantic_loss(semantic, targets, padded_hw),
        }

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Found]:
        """Detections of every image of a batch of one padded size."""
        padded_hw = geometries[0].padded_hw
        priors = self.priors(padded_hw, raw["deltas"].device)
        return [
            self._decode_one({name: maps[k].float() for name, maps in raw.items()}, priors, padded_hw)
            for k in range(len(geometries))
        ]

    def _decode_one(self, raw: Mapping[str, Tensor], priors: Tensor, padded_hw: SizeHW) -> Found:
        logits, prototypes = raw["logits"], raw["prototypes"]
        best = logits[:, 1:].amax(1) - logits.logsumexp(1)
        above = torch.nonzero(best.exp() > self.score_threshold)[:, 0]  # few: only these go through a softmax
        boxes = decode_boxes(raw["deltas"][above], priors[above])
        scores = logits[above].softmax(1)[:, 1:].T
        kept, label, score = fast_nms(boxes, scores, **self.suppression)
        on_grid = boxes_to_grid(boxes[kept], padded_hw, prototypes)
        masks = assemble_masks(prototypes, raw["coefficients"][above[kept]], on_grid)
        return Found(boxes[kept], score, label + 1, masks)


def flatten_maps(maps: Sequence[Tensor], width: int) -> Tensor:
    """Maps (N, A * width, h, w) to (N, P, width): map, row, column, prior of the cell."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, width) for x in maps], dim=1)


def take_matched(boxes: Tensor, matched: Tensor) -> Tensor:
    """The matched boxes (P, 4); without any box zeros, which nothing looks at."""
    return boxes[matched] if len(boxes) else boxes.new_zeros(len(matched), 4)
