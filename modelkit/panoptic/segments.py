"""What panoptic models pass on: the regions of a detector, and a map in which every pixel has at most one segment.

Class ids: things are 1 .. T, stuff is T + 1 .. T + S; 0 and 255 of a target mean "nobody labelled this".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from modelkit.carriers import Instances, SizeHW
from modelkit.rle import bboxes, encode_label_map
from modelkit.semantic.segmentor import stretch_nearest

NOT_TRACKED = -1  # track id of stuff, which has no identity; see ``Instances``


@dataclass(frozen=True, slots=True)
class Regions:
    """Objects that a detector found in one image.

    Args:
        boxes: (n, 4) float32 xyxy, resized pixels.
        scores: (n,) float32 in [0, 1].
        labels: (n,) long, from 1.
        mask_logits: (n, M, M) float32 of each object's own class, on the grid of its box.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    mask_logits: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Tensor) -> Regions:
        """Some of them: a bool mask (n,) or an index (m,) long, whose order is kept."""
        return Regions(self.boxes[chosen], self.scores[chosen], self.labels[chosen], self.mask_logits[chosen])

    def to(self, device: torch.device | str) -> Regions:
        """The same on another device."""
        return Regions(*(values.to(device) for values in (self.boxes, self.scores, self.labels, self.mask_logits)))


@dataclass(frozen=True, slots=True)
class PanopticMap:
    """A segment, or none, for every pixel of one image.

    Args:
        size_hw: of the source image.
        segment_map: (h, w) int16 or int32 at any resolution: k + 1 on the pixels of segment k, 0 where there is none;
            stretched over the source by nearest neighbour.
        labels: (s,) long class ids.
        scores: (s,) float32: of a thing its detection's, of stuff the mean probability of the class over its pixels.
        is_thing: (s,) bool; things come first, best first, then stuff by class.
        track_ids: (s,) long, ``NOT_TRACKED`` for stuff; None when the model does not track.
    """

    size_hw: SizeHW
    segment_map: Tensor
    labels: Tensor
    scores: Tensor
    is_thing: Tensor
    track_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def cpu(self) -> PanopticMap:
        """The same on the host."""
        return replace(
            self,
            segment_map=self.segment_map.cpu(),
            labels=self.labels.cpu(),
            scores=self.scores.cpu(),
            is_thing=self.is_thing.cpu(),
            track_ids=None if self.track_ids is None else self.track_ids.cpu(),
        )

    def with_track_ids(self, track_ids: Tensor) -> PanopticMap:
        """The same with the identities (n,) of its n things; stuff has none."""
        ids = torch.full_like(self.labels, NOT_TRACKED)
        ids[self.is_thing] = track_ids.to(ids)
        return replace(self, track_ids=ids)

    def full_size(self) -> np.ndarray:
        """(H, W) segment numbers from 1 on the source canvas, 0 where there is none."""
        return stretch_nearest(self.segment_map.numpy(force=True), self.size_hw)

    def finish(self, min_score: float = 0.0) -> Instances:
        """One entry per segment that has pixels of the source; boxes are tight around them.

        All run lengths come from one pass over the map: no mask is ever drawn for a single segment.
        """
        rles = encode_label_map(self.full_size(), ignore=(0,))
        if not rles:
            empty = Instances.empty(self.size_hw)
            return empty if self.track_ids is None else replace(empty, track_ids=np.zeros(0, np.int64))
        chosen = np.array(list(rles), np.int64) - 1
        found = Instances(
            size_hw=self.size_hw,
            boxes_xyxy=bboxes(list(rles.values()), self.size_hw).astype(np.float32),
            scores=self.scores.float().numpy(force=True)[chosen],
            labels=self.labels.numpy(force=True)[chosen].astype(np.int32),
            rles=list(rles.values()),
            is_thing=self.is_thing.numpy(force=True)[chosen],
            track_ids=None if self.track_ids is None else self.track_ids.numpy(force=True)[chosen].astype(np.int64),
        )
        return found.at_least(min_score)
