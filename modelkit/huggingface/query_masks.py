"""What transformers reads from queries that each know a class and a mask: instances, panoptic segments, a class map.

Results are those of its ``post_process_*_segmentation`` on the same outputs, by its own default thresholds. It holds
the masks of all queries at the size of the image at once; here one after the other is looked at, so that large images
do not take all memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import Instances, SizeHW
from modelkit.rle import bboxes, encode, encode_label_map

# A segment that owns less than this share of its mask is dropped. Exactly four fifths are enough, for the authors as in
# the float32 of transformers.
_OVERLAP = 0.8
_INSIDE = 0.5  # probability from which on a pixel belongs to a mask


@dataclass(frozen=True, slots=True)
class QueryMasks(ABC):
    """Each query's class and mask for one image.

    Args:
        size_hw: of the source image.
        probabilities: (Q, C + 1), the last for nothing.
        logits: (Q, h, w) of masks, over the whole image.
        things: class ids of single objects; stuff segments of one class are merged.
        min_score: queries at or below it own no pixels; of panoptic and disjoint segments only.
        grid: masks are brought to this size first (Mask2Former: 384 x 384, whatever the image's).
    """

    size_hw: SizeHW
    probabilities: Tensor
    logits: Tensor
    things: frozenset[int]
    min_score: float = 0.5
    grid: SizeHW | None = None

    def cpu(self) -> Self:
        """The same on the host."""
        return replace(self, probabilities=self.probabilities.cpu(), logits=self.logits.cpu())

    @abstractmethod
    def finish(self, min_score: float = 0.0) -> Instances:
        """What is read from the queries, in source pixels; results below ``min_score`` are dropped."""

    def on_grid(self, queries: Tensor) -> Tensor:
        """Mask logits (n, a, b) of some queries where transformers thresholds them."""
        chosen = self.logits[queries]
        return chosen if self.grid is None else _stretched(chosen, self.grid)

    def collect(self, scores: list[float], labels: list[int], rles: list[bytes]) -> Instances:
        """The carrier of what was found."""
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


class QueryInstances(QueryMasks):
    """Things that may overlap; as many pairs of query and class as there are queries."""

    def finish(self, min_score: float = 0.0) -> Instances:
        """By falling score: that of the class times the mean certainty of the mask's own pixels."""
        scores = self.probabilities[:, :-1].flatten()
        best = scores.topk(min(len(self.logits), len(scores)))
        kept: list[tuple[float, int, bytes]] = []
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            query, label = divmod(place, self.probabilities.shape[1] - 1)
            if label in self.things:
                mask, certainty = self._mask(query)
                if mask.any() and score * certainty >= min_score:
                    kept.append((score * certainty, label, encode(mask)))
        kept.sort(key=lambda each: -each[0])
        return self.collect([each[0] for each in kept], [each[1] for each in kept], [each[2] for each in kept])

    def _mask(self, query: int) -> tuple[np.ndarray, float]:
        """A query's mask (H, W) and the mean probability of the pixels inside it."""
        logits = self.on_grid(torch.tensor([query], device=self.logits.device))[0]
        inside = logits > 0
        certainty = (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
        mask = F.interpolate(inside[None, None].float(), size=self.size_hw)[0, 0] > 0
        return mask.numpy(force=True), float(certainty)


class QueryPanoptic(QueryMasks):
    """At most one segment for every pixel; stuff of one class is one segment.

    A pixel belongs to the query with the highest probability times score, however low that is, as in transformers;
    Mask2Former's authors leave those out where no mask reaches a half.
    """

    def finish(self, min_score: float = 0.0) -> Instances:
        """By ascending class id, then query. Of merged queries the best score counts."""
        scores, labels = self.probabilities.max(-1)
        nothing = self.probabilities.shape[1] - 1
        queries = ((labels != nothing) & (scores > self.min_score)).nonzero()[:, 0]
        owner, whole = self._owners(queries, scores)
        groups: dict[tuple[int, int], list[int]] = {}
        owned = torch.bincount(owner.flatten(), minlength=len(queries)).tolist()
        for index, query in enumerate(queries.tolist()):
            if owned[index] and whole[index] and owned[index] / whole[index] >= _OVERLAP:
                groups.setdefault(self._segment_of(int(labels[query]), index), []).append(index)
        ordered = sorted(groups.items())
        number = torch.zeros(len(queries) + 1, dtype=torch.int32)
        for k, (_, members) in enumerate(ordered, 1):
            number[members] = k
        rles = encode_label_map(number[owner.cpu()].numpy(), ignore=(0,)) if ordered else {}
        best = [max(float(scores[queries[index]]) for index in members) for _, members in ordered]
        found = self.collect(best, [label for (label, _), _ in ordered], [rles[k + 1] for k in range(len(ordered))])
        return found.at_least(min_score)

    def _segment_of(self, label: int, index: int) -> tuple[int, int]:
        """What the queries of one segment have in common."""
        return label, index if label in self.things else -1

    def _owners(self, queries: Tensor, scores: Tensor) -> tuple[Tensor, list[int]]:
        """(H, W) long: the query, by its place, whose probability times score is the highest, and the pixels of each
        where that product reaches a half; without any query nobody owns anything.
        """
        best = torch.zeros(self.size_hw, device=self.logits.device)
        owner = torch.full(self.size_hw, len(queries), device=self.logits.device)
        whole = []
        for index, query in enumerate(queries):
            mask = _stretched(self.on_grid(query[None]).sigmoid(), self.size_hw)[0] * scores[query]
            whole.append(int((mask >= _INSIDE).sum()))
            better = mask > best if index else torch.ones_like(owner, dtype=torch.bool)
            best, owner = torch.where(better, mask, best), torch.where(better, index, owner)
        return owner, whole


class QueryDisjoint(QueryPanoptic):
    """Things, at most one for every pixel, as transformers reads instances from DETR; stuff covers, but is left out."""

    def finish(self, min_score: float = 0.0) -> Instances:
        """By ascending class id, then query."""
        found = super().finish(min_score)
        return found.chosen(np.flatnonzero(found.is_thing))

    def _segment_of(self, label: int, index: int) -> tuple[int, int]:
        return label, index


class QuerySemantic(QueryMasks):
    """A class for every pixel: the one with the largest sum over queries of its probability times the mask's."""

    def finish(self, min_score: float = 0.0) -> Instances:
        """One region for each class that is present, all stuff; the score is its mean share of what all classes get."""
        every = torch.arange(len(self.logits), device=self.logits.device)
        votes = torch.einsum("qc,qhw->chw", self.probabilities[:, :-1], self.on_grid(every).sigmoid())
        best = torch.full(self.size_hw, -torch.inf, device=votes.device)
        label_map = torch.zeros(self.size_hw, dtype=torch.int32, device=votes.device)
        total = torch.zeros(self.size_hw, device=votes.device)
        for label, vote in enumerate(votes):
            here = _stretched(vote[None], self.size_hw)[0]
            better = here > best
            best, total = torch.where(better, here, best), total + here
            label_map[better] = label
        rles = encode_label_map(label_map.numpy(force=True))
        share = (best / total.clamp(min=1e-12)).numpy(force=True)
        scores = [float(share[label_map.numpy(force=True) == label].mean()) for label in rles]
        return self.collect(scores, list(rles), list(rles.values())).at_least(min_score)


def _stretched(maps: Tensor, size_hw: SizeHW) -> Tensor:
    """(n, h, w) to (n, *size_hw), bilinear."""
    return F.interpolate(maps[None], size=size_hw, mode="bilinear", align_corners=False)[0]
