"""From two opinions to one map: how the objects of a detector and the classes of its semantic head become segments.

Contract of a fusion_head: it is wired with (number of thing classes, number of stuff classes), and

* ``num_channels``, ``semantic_target``: how the semantic head's channels are laid out;
* ``loss``: named scalars beyond those of the two branches, or none;
* ``decode``: the segments of one image, and the region that each thing came from.

A *slot* map says for every pixel: 0 .. S - 1 stuff, S .. S + n - 1 one of n regions, S + n nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import expand_boxes

from modelkit.carriers import SizeHW
from modelkit.carriers.targets import IGNORE
from modelkit.panoptic.segments import PanopticMap, Regions
from modelkit.registry import register
from modelkit.transform import Geometry

MaskLogits = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""Boxes (n, 4) in resized pixels and labels (n,) per image to mask logits (n, M, M) of those classes."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a canvas and what belongs there.

    Args:
        rows, columns: the part of the canvas.
        values: (rows, columns) of that part.
    """

    rows: slice
    columns: slice
    values: Tensor

    @property
    def area(self) -> tuple[slice, slice]:
        """Index of the canvas."""
        return self.rows, self.columns


class FusionHead(nn.Module, ABC):
    """What every fusion head has, see the module's contract.

    Args:
        num_things: thing classes, ids 1 .. T.
        num_stuff: stuff classes, ids T + 1 .. T + S.
        stuff_area: stuff segments of fewer pixels of the network's input are dropped.
    """

    num_channels: int

    def __init__(self, num_things: int, num_stuff: int, stuff_area: int) -> None:
        super().__init__()
        self.num_things, self.num_stuff, self.stuff_area = num_things, num_stuff, stuff_area

    @abstractmethod
    def channels(self) -> list[int]:
        """Semantic channel of class id 1 .. T + S."""

    def semantic_target(self, semantic: Tensor) -> Tensor:
        """Class ids (...) long to channels of the semantic head; unlabelled pixels (0, 255) to 255."""
        table = torch.full((256,), IGNORE, device=semantic.device)
        table[1 : 1 + len(self.channels())] = torch.tensor(self.channels(), device=semantic.device)
        return table[semantic]

    def loss(
        self,
        logits: Tensor,
        wanted: Tensor,
        weights: Tensor | None,
        targets: Sequence[Mapping[str, Any]],
        mask_logits: MaskLogits,
    ) -> dict[str, Tensor]:
        """Named scalars, unweighted; none for a head without parameters in the game.

        Args:
            logits: (N, C, h, w) of the semantic head.
            wanted: (N, H, W) long, as ``semantic_target`` gives it, on the padded canvas.
            weights: (N, H, W) float, how much each pixel counts, or None: all fully.
            targets: target dicts in resized pixels.
            mask_logits: runs the mask head.
        """
        return {}

    @abstractmethod
    def decode(self, logits: Tensor, regions: Regions, geometry: Geometry) -> tuple[PanopticMap, Regions]:
        """The segments of one image.

        Args:
            logits: (C, h, w) of the semantic head, for the padded canvas.
            regions: what the detector found, best first.
            geometry: of the image.

        Returns:
            The map, and the region of each of its things, in their order.
        """

    def finish(
        self, slots: Tensor, regions: Regions, logits: Tensor, geometry: Geometry
    ) -> tuple[PanopticMap, Regions]:
        """A slot map (H, W) of the resized image to segments without gaps; small stuff is dropped, scores are found."""
        stuff, n = self.num_stuff, len(regions)
        sizes = torch.bincount(slots.flatten(), minlength=stuff + n + 1)
        present = sizes > 0
        present[:stuff] &= sizes[:stuff] >= self.stuff_area
        present[stuff + n] = False
        order = torch.cat([torch.arange(stuff, stuff + n), torch.arange(stuff)]).to(slots.device)
        order = order[present[order]]
        number = torch.zeros(stuff + n + 1, dtype=torch.int32, device=slots.device)
        number[order] = torch.arange(1, len(order) + 1, dtype=torch.int32, device=slots.device)
        is_thing = order >= stuff
        things = regions[order[is_thing] - stuff]
        segment_map = number[slots]
        stuff_labels = order[~is_thing] + self.num_things + 1
        channel_of = torch.tensor(self.channels(), device=slots.device)[stuff_labels - 1]
        stuff_scores = mean_probability(segment_map, len(things), channel_of, logits, geometry)
        found = PanopticMap(
            geometry.source_hw,
            segment_map.to(torch.int16) if len(order) < 1 << 15 else segment_map,
            torch.cat([things.labels, stuff_labels]),
            torch.cat([things.scores, stuff_scores.to(things.scores)]),
            is_thing,
        )
        return found, things


def full_size(logits: Tensor, geometry: Geometry) -> Tensor:
    """Logits (C, h, w) of the padded canvas to (C, H, W) of the resized image, bilinear."""
    padded = F.interpolate(logits[None], size=geometry.padded_hw, mode="bilinear", align_corners=False)[0]
    return padded[:, : geometry.resized_hw[0], : geometry.resized_hw[1]]


def mean_probability(segment_map: Tensor, first: int, channel_of: Tensor, logits: Tensor, geometry: Geometry) -> Tensor:
    """(k,) mean probability over the pixels of segments ``first + 1 .. first + k``.

    Args:
        segment_map: (H, W) segment numbers of the resized image.
        first: segments before the first of interest.
        channel_of: (k,) semantic channel of each.
        logits: (C, h, w) on the coarse grid of the padded canvas; a pixel takes the cell that it lies in.
        geometry: of the image.
    """
    count = len(channel_of)
    rows, columns = torch.nonzero(segment_map > first, as_tuple=True)
    which = segment_map[rows, columns].long() - first - 1
    cells = [
        position * cells // padded
        for position, cells, padded in zip((rows, columns), logits.shape[-2:], geometry.padded_hw, strict=True)
    ]
    chosen = logits.softmax(0)[channel_of[which], cells[0], cells[1]]
    sums = torch.zeros(count, device=logits.device).index_add_(0, which, chosen.float())
    return sums / torch.bincount(which, minlength=count).clamp(min=1)


def paste(mask: Tensor, box: Tensor, size_hw: SizeHW) -> Window:
    """Probabilities (M, M) of a box (4,) on the pixels of a canvas, by torchvision's rule, without drawing the canvas.

    The mask gets a ring of zeros, the box is widened accordingly and truncated to whole pixels (at least one a side).
    """
    padded = F.pad(mask[None, None], (1, 1, 1, 1))
    wide = expand_boxes(box[None], padded.shape[-1] / mask.shape[-1])[0]
    x0, y0, x1, y1 = (int(value) for value in wide.tolist())
    return clip_to_canvas(padded, (y0, x0), (max(1, y1 - y0 + 1), max(1, x1 - x0 + 1)), size_hw)


def clip_to_canvas(mask: Tensor, corner: tuple[int, int], box_hw: SizeHW, size_hw: SizeHW) -> Window:
    """Stretch (1, 1, M, M) to a box at ``corner`` (row, column) and keep what lies on the canvas."""
    rows, columns = (
        slice(min(max(0, low), side), min(max(0, low + extent), side))
        for low, extent, side in zip(corner, box_hw, size_hw, strict=True)
    )
    if rows.start == rows.stop or columns.start == columns.stop:
        return Window(rows, columns, mask.new_zeros(rows.stop - rows.start, columns.stop - columns.start))
    stretched = F.interpolate(mask, size=box_hw, mode="bilinear", align_corners=False)[0, 0]
    top, left = corner
    return Window(
        rows, columns, stretched[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    )


@register("fusion_head", "panoptic_merge")
class PanopticMerge(FusionHead):
    """The heuristic of Panoptic FPN (Kirillov et al. 2019): objects by score, each on what is still free; then stuff.

    The semantic head has channel 0 for all things together and k for the k-th stuff class.

    Args:
        num_things, num_stuff, stuff_area: see ``FusionHead``.
        score_threshold: objects below it are dropped.
        overlap: an object is dropped when more than this share of it is taken already.
        mask_threshold: pixels above this probability belong to the object.
    """

    def __init__(
        self,
        num_things: int,
        num_stuff: int,
        *,
        score_threshold: float = 0.5,
        overlap: float = 0.5,
        mask_threshold: float = 0.5,
        stuff_area: int = 4096,
    ) -> None:
        super().__init__(num_things, num_stuff, stuff_area)
        self.num_channels = 1 + num_stuff
        self.score_threshold, self.overlap, self.mask_threshold = score_threshold, overlap, mask_threshold

    def channels(self) -> list[int]:
        """Things share channel 0."""
        return [0] * self.num_things + list(range(1, self.num_stuff + 1))

    def decode(self, logits: Tensor, regions: Regions, geometry: Geometry) -> tuple[PanopticMap, Regions]:
        """See ``FusionHead``."""
        regions = regions[regions.scores >= self.score_threshold]
        regions = regions[regions.scores.argsort(descending=True, stable=True)]
        nothing = self.num_stuff + len(regions)
        channel = full_size(logits, geometry).argmax(0)
        slots = torch.where(channel == 0, nothing, channel - 1)
        free = torch.ones_like(slots, dtype=torch.bool)
        for index, (logit, box) in enumerate(zip(regions.mask_logits, regions.boxes, strict=True)):
            window = paste(logit.sigmoid(), box, geometry.resized_hw)
            mask, unclaimed = window.values > self.mask_threshold, free[window.area]
            size, left = int(mask.sum()), int((mask & unclaimed).sum())
            if size == 0 or size - left > self.overlap * size:
                continue
            slots[window.area][mask & unclaimed] = self.num_stuff + index
            free[window.area] &= ~mask
        return self.finish(slots, regions, logits, geometry)
