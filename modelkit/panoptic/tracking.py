"""Identities across frames (Yang et al. 2019, Kim et al. 2020): embeddings of regions, and who is whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from modelkit.detection.pooling import PyramidRoIAlign
from modelkit.detection.roi_heads import RoIHead, pooled_levels
from modelkit.detection.targets import Samples, object_weights
from modelkit.errors import TargetError
from modelkit.layers.backbones import Backbone
from modelkit.registry import register


@register("roi_head", "track_head")
class TrackHead(RoIHead):
    """An embedding for each region; the product of two says how much they are the same object.

    Args:
        neck: whose maps come in.
        num_classes: not needed; every head is wired with it.
        resolution: of the pooled features.
        sampling_ratio, canonical_scale, canonical_level: of the pooling, see ``PyramidRoIAlign``.
        channels: of both fully connected layers.
    """

    needs = "positive"
    teaches = "class_weights"

    def __init__(
        self,
        neck: Backbone,
        num_classes: int,
        *,
        resolution: int = 7,
        sampling_ratio: int = 2,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        channels: int = 1024,
    ) -> None:
        super().__init__()
        levels = pooled_levels(neck)
        self.pool = PyramidRoIAlign(neck, levels, resolution, sampling_ratio, canonical_scale, canonical_level)
        layers = [nn.Linear(neck.out_channels[levels[0]] * resolution**2, channels), nn.Linear(channels, channels)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.body = nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1])

    def forward(self, features: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """``embeddings`` (r, channels) of all r regions, images concatenated."""
        return {"embeddings": self.body(self.pool(features, boxes).flatten(1)).float()}

    def loss(self, raw: Mapping[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """``loss_track``: mean cross-entropy of each region over "new" and the m objects of the reference frame.

        A region counts as much as the class weight of its object says; those of weight 0 are not looked at.

        The targets hold ``track_ids`` (n,) long, ``reference_embeddings`` (m, channels) and ``reference_track_ids``.

        Raises:
            TargetError: when a target has no reference.
        """
        embeddings = raw["embeddings"]
        total, count = embeddings.sum() * 0, 0
        parts = embeddings.split([len(boxes) for boxes in samples.boxes])
        for found, matched, target in zip(parts, samples.matched, samples.targets, strict=True):
            if "reference_embeddings" not in target:
                raise TargetError("the track head needs 'reference_embeddings' in every target; a VPSNet adds them")
            reference = target["reference_embeddings"]
            total = total + reference.sum() * 0  # the reference frame gets a gradient even when nothing is matched
            if len(found) == 0:
                continue
            same = target["track_ids"][matched][:, None] == target["reference_track_ids"][None]
            wanted = F.pad(same.int(), (1, 0)).argmax(1)  # 0, "new", where nothing is the same
            each = F.cross_entropy(match_logits(found, reference), wanted, reduction="none")
            total = total + (each * object_weights(target, self.teaches).to(each)[matched]).sum()
            count += len(found)
        return {"loss_track": total / max(1, count)}


def match_logits(found: Tensor, memory: Tensor) -> Tensor:
    """(n, 1 + m): column 0, "new", is 0; the others are products of embeddings (n, C) and (m, C)."""
    return torch.cat([found.new_zeros(len(found), 1), found @ memory.T], dim=1)


@dataclass(frozen=True, slots=True)
class Tracked:
    """Objects with what identifies them.

    Args:
        embeddings: (n, C).
        boxes: (n, 4) xyxy, any pixels common to all frames.
        labels: (n,) long.
    """

    embeddings: Tensor
    boxes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor) -> Tracked:
        """Some of them, by mask or index."""
        return Tracked(self.embeddings[chosen], self.boxes[chosen], self.labels[chosen])


def match_scores(
    found: Tracked, scores: Tensor, memory: Tracked, weights: tuple[float, float, float] = (1.0, 2.0, 10.0)
) -> Tensor:
    """(n, 1 + m): how well each object goes with "new" and with each of the memory.

    The log-probability of the match, plus weighted: log of the class score, IoU, and whether the classes agree. "New"
    has no overlap and agrees with every class.

    Args:
        found: objects of this frame.
        scores: (n,) class scores.
        memory: objects of the frames before.
        weights: of the three terms.
    """
    same = (found.labels[:, None] == memory.labels[None]).float()
    overlap = box_iou(found.boxes, memory.boxes)
    extra = weights[1] * overlap + weights[2] * same
    new = extra.new_full((len(found), 1), weights[2])
    likelihood = match_logits(found.embeddings, memory.embeddings).log_softmax(1)
    confidence = weights[0] * scores.clamp(min=1e-12).log()[:, None]
    return likelihood + confidence + torch.cat([new, extra], dim=1)


def assign(composite: Tensor) -> Tensor:
    """(n,) long: for each object its entry of the memory, or -1 for a new one.

    Every object takes its best column of ``composite`` (n, 1 + m). Of several that want one entry the one with the
    highest score has it and the others are new; of equal ones the first.
    """
    best, column = composite.max(1)
    entry = column - 1
    order = torch.argsort(best, descending=True, stable=True)
    taken: set[int] = set()
    for index, wanted in zip(order.tolist(), entry[order].tolist(), strict=True):
        if wanted in taken:
            entry[index] = -1
        elif wanted >= 0:
            taken.add(wanted)
    return entry


def canonical_order(scores: Tensor, boxes: Tensor) -> Tensor:
    """(n,) long: best first, ties by position, so that new identities don't depend on the order of detections."""
    keys = torch.cat([-scores[:, None], boxes], dim=1).tolist()
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64, device=scores.device)
