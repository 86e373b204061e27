"""Masks of queries to segments: what DETR-like models decode (Cheng et al. 2021, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import Instances, SizeHW
from modelkit.rle import bboxes, encode, encode_label_map

_MAX_INSTANCES = 100
_MIN_VISIBLE = 0.8  # a panoptic segment that loses more than a fifth of its mask to others is dropped
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class QueryMasks:
    """Each query's class and mask for one image.

    Args:
        size_hw: of the source image.
        probabilities: (Q, C); what is missing to 1 is that there is nothing.
        logits: (Q, h, w) of masks, stretched over the source bilinearly.
        things: class ids of single objects; stuff segments of one class are merged.
        is_panoptic: every pixel belongs to at most one segment; else instances may overlap.
        min_score: of queries that may own pixels; panoptic only.
    """

    size_hw: SizeHW
    probabilities: Tensor
    logits: Tensor
    things: frozenset[int]
    is_panoptic: bool
    min_score: float

    def cpu(self) -> QueryMasks:
        """The same on the host."""
        return replace(self, probabilities=self.probabilities.cpu(), logits=self.logits.cpu())

    def finish(self, min_score: float = 0.0) -> Instances:
        """Panoptic: segments by ascending class id, then query. Instances: by falling score, at most a hundred."""
        found = self._panoptic() if self.is_panoptic else self._instances()
        return found.at_least(min_score)

    def _masks(self, queries: Tensor) -> Tensor:
        """Probabilities (n, H, W) of some queries' masks at the source size."""
        chosen = self.logits[queries][None]
        return F.interpolate(chosen, size=self.size_hw, mode="bilinear", align_corners=False)[0].sigmoid()

    def _instances(self) -> Instances:
        scores = self.probabilities.flatten()
        best = scores.topk(min(_MAX_INSTANCES, len(scores)))
        num_classes = self.probabilities.shape[1]
        kept: list[tuple[float, int, bytes]] = []
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            query, label = divmod(place, num_classes)
            mask = self._masks(torch.tensor([query]))[0]
            inside = mask > 0.5
            if label in self.things and inside.any():
                # The score of the paper: the class's times the mean certainty of the mask's own pixels.
                kept.append((score * float(mask[inside].mean()), label, encode(inside.numpy(force=True))))
        kept.sort(key=lambda each: -each[0])
        return self._collect([each[0] for each in kept], [each[1] for each in kept], [each[2] for each in kept])

    def _panoptic(self) -> Instances:
        scores, labels = self.probabilities.max(-1)
        queries = (scores > self.min_score).nonzero()[:, 0]
        if not len(queries):
            return Instances.empty(self.size_hw)
        masks = self._masks(queries)
        owner = (masks * scores[queries, None, None]).argmax(0)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, query in enumerate(queries.tolist()):
            whole = masks[index] >= 0.5
            own = (owner == index) & whole
            if not own.any() or float(own.sum() / whole.sum()) < _MIN_VISIBLE:
                continue
            label = int(labels[query])
            groups.setdefault((label, index if label in self.things else _NOBODY), []).append(index)
        segment = torch.zeros(self.size_hw, dtype=torch.int32)
        ordered = sorted(groups.items())
        for number, (_, members) in enumerate(ordered, 1):
            for index in members:
                segment[(owner == index) & (masks[index] >= 0.5)] = number
        rles = encode_label_map(segment.numpy(), ignore=(0,))
        best = [max(float(scores[queries[index]]) for index in members) for _, members in ordered]
        return self._collect(best, [label for (label, _), _ in ordered], [rles[n + 1] for n in range(len(ordered))])

    def _collect(self, scores: list[float], labels: list[int], rles: list[bytes]) -> Instances:
        if not rles:
            return Instances.empty(self.size_hw)
        return Instances(
            size_hw=self.size_hw,
            boxes_xyxy=bboxes(rles, self.size_hw).astype(np.float32),
            scores=np.array(scores, np.float32),
            labels=np.array(labels, np.int32),
            rles=rles,
            is_thing=np.array([label in self.things for label in labels]),
        )
