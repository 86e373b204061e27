"""Masks on a coarse grid over the whole image to run lengths, without stretching them to the image.

A prototype model's masks (138 x 138) cover the image; the usual way stretches every one of them to a million pixels.
But a bilinear surface lies between the four knots around it: where these are on one side of the threshold no pixel
changes sides. So only the *mixed* cells, along the outlines, are looked at, each with the few image columns that run
through it. In such a column the surface is a straight line from the upper to the lower pair of knots, and crosses the
threshold at most once; the crossings, in order, are the run starts (see :mod:`modelkit.rle.boxes`, whose arithmetic
and whose rule about rounding are used: a mask that rounding could decide is stretched by torch itself).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.rle.boxes import Axis, edges_by_stretching, fused_rounding, pixel_axis, reach_of_rounding, settle_splits
from modelkit.rle.codec import compress_ragged, counts_from_edges

_CROSSINGS_AT_ONCE = 1 << 20  # bounds the working memory of masks that are mixed everywhere


def encode_grid_masks(masks: np.ndarray | Tensor, size_hw: tuple[int, int], threshold: float = 0.5) -> list[bytes]:
    """Compressed COCO run lengths of mask probabilities on a grid over the image.

    Equals, byte for byte, ``interpolate(mask, size_hw, mode="bilinear", align_corners=False) > threshold``, then
    ``pycocotools.mask.encode``. On a GPU everything up to the run starts happens there.

    Args:
        masks: (n, h, w) probabilities in [0, 1]; float32 (others are converted), array or tensor on any device.
        size_hw: rows and columns of the image.
        threshold: pixels above it belong to the mask; in [0, 1).

    Returns:
        n byte strings (``counts`` of pycocotools; ``size`` is ``size_hw``).

    Raises:
        ValueError: for shapes that do not fit, masks that are not finite, a threshold outside [0, 1).
    """
    masks = torch.as_tensor(masks, dtype=torch.float32).detach()
    _check(masks, size_hw, threshold)
    if len(masks) == 0:
        return []
    grid = _Grid.over_image(masks, size_hw, threshold)
    near = ((masks - threshold).abs() <= grid.reach[:, None, None]) & (masks != 0)  # zeros interpolate exactly
    doubtful = set(torch.nonzero(near.flatten(1).any(1))[:, 0].tolist())
    parts: list[np.ndarray] = []
    for chunk in _chunks(grid):
        edges, unsure = _edges(grid, chunk)
        parts += edges
        doubtful |= unsure
    for index in sorted(doubtful):
        stretched = edges_by_stretching(masks[index], [0, 0, size_hw[1], size_hw[0]], size_hw, threshold)
        parts[index] = parts[index] if stretched is None else stretched
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return compress_ragged(*counts_from_edges(np.concatenate(parts), lengths, size_hw[0] * size_hw[1]))


def _check(masks: Tensor, size_hw: tuple[int, int], threshold: float) -> None:
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"masks must have shape (n, h, w), got {tuple(masks.shape)}")
    if min(size_hw) < 1:
        raise ValueError(f"size_hw must be positive, got {size_hw}")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
    if not bool(torch.isfinite(masks).all()):
        raise ValueError("masks must be finite")


@dataclass(frozen=True, slots=True)
class _Grid:
    """Masks as knots of bilinear cells, and where image pixels fall between them.

    A knot more on the right and below repeats the last one, as torch clamps there. A row of zeros above and one below
    hold no pixels: they open and close the runs of masks that touch the image's border.
    """

    knots: Tensor  # (n, h + 3, w + 1)
    mixed: Tensor  # (n, h + 2, w) bool: cells with corners on both sides of the threshold
    columns: Axis
    rows: Axis
    size_hw: tuple[int, int]
    threshold: float
    reach: Tensor  # (n,) of rounding

    @classmethod
    def over_image(cls, masks: Tensor, size_hw: tuple[int, int], threshold: float) -> _Grid:
        fused = fused_rounding(masks.device)
        columns, rows = (
            pixel_axis(
                torch.tensor([0], device=masks.device),
                torch.tensor([size], device=masks.device),
                size,
                knots,
                fused is not False,
            )
            for size, knots in zip(size_hw[::-1], (masks.shape[2], masks.shape[1]), strict=True)
        )
        knots = F.pad(F.pad(masks[:, None], (0, 1, 0, 1), mode="replicate")[:, 0], (0, 0, 1, 1))
        above = knots > threshold
        across_any, across_all = above[:, :, 1:] | above[:, :, :-1], above[:, :, 1:] & above[:, :, :-1]
        mixed = (across_any[:, 1:] | across_any[:, :-1]) & ~(across_all[:, 1:] & across_all[:, :-1])
        reach = reach_of_rounding(max(masks.shape[1:]), fused) * masks.abs().amax(dim=(1, 2)).clamp(min=threshold)
        return cls(knots, mixed, columns, rows, size_hw, threshold, reach)


def _chunks(grid: _Grid) -> list[slice]:
    """Consecutive instances whose crossings fit the working memory together."""
    per_cell = torch.bincount(grid.columns.knot, minlength=grid.mixed.shape[2])
    crossings = (grid.mixed.sum(1) * per_cell).sum(1).cpu().numpy()
    chunk = np.cumsum(crossings) // _CROSSINGS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(crossings)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def _edges(grid: _Grid, chunk: slice) -> tuple[list[np.ndarray], set[int]]:
    """The edges of every instance of a chunk on the host, and the instances that rounding could decide."""
    height, width = grid.size_hw
    instance, segment, column, upper, lower = _crossings(grid, chunk)
    reach = grid.reach.index_select(0, instance)
    clear = torch.minimum(upper.abs(), lower.abs()) > reach
    crosses = torch.nonzero((upper > 0) != (lower > 0))[:, 0]
    unsure = [instance[~clear]]
    instance, segment, column, upper, lower, reach = (
        each.index_select(0, crosses) for each in (instance, segment, column, upper, lower, reach)
    )
    split, sure = _splits(grid, segment, upper, lower, reach)
    unsure.append(instance[~sure])
    per_instance = height * width + 1  # one more than positions: an edge at the very end stays with its instance
    keys = ((instance - chunk.start) * per_instance + column * height + split).cpu().numpy()
    keys.sort()
    position, times = np.unique(keys, return_counts=True)
    position = position[times % 2 == 1]  # two at one place cancel out
    owner = position // per_instance
    bounds = np.searchsorted(owner, np.arange(1, chunk.stop - chunk.start))
    return np.split(position - owner * per_instance, bounds), set(torch.cat(unsure).tolist())


def _crossings(grid: _Grid, chunk: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(instance, segment, image column, level above, level below) of every image column in every mixed cell.

    The levels are the mask's above the threshold at the upper and the lower end of the segment.
    """
    instance, segment, cell = torch.nonzero(grid.mixed[chunk], as_tuple=True)
    instance = instance + chunk.start
    per_cell = torch.bincount(grid.columns.knot, minlength=grid.mixed.shape[2])
    times = per_cell.index_select(0, cell)
    part = torch.repeat_interleave(torch.arange(len(cell), device=cell.device), times)
    within = torch.arange(len(part), device=cell.device) - (torch.cumsum(times, 0) - times).index_select(0, part)
    first = torch.cumsum(per_cell, 0) - per_cell
    column = first.index_select(0, cell.index_select(0, part)) + within
    stride = grid.knots.shape[2]
    at = ((instance * grid.knots.shape[1] + segment) * stride + cell).index_select(0, part)
    before, after = (weight.index_select(0, column) for weight in (grid.columns.before, grid.columns.after))
    flat = grid.knots.reshape(-1)
    levels = []
    for corner in (at, at + stride):
        left, right = flat.index_select(0, corner), flat.index_select(0, corner + 1)
        levels.append(left.mul_(before).addcmul_(right, after).sub_(grid.threshold))
    return instance.index_select(0, part), segment.index_select(0, part), column, levels[0], levels[1]


def _splits(grid: _Grid, segment: Tensor, upper: Tensor, lower: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """The first image row on the far side of the threshold, or where the next segment begins; and whether for sure."""
    segments = grid.mixed.shape[1]
    per_segment = torch.bincount(grid.rows.knot + 1, minlength=segments)  # none in the rows of zeros
    stop_of = torch.cumsum(per_segment, 0)
    stop = stop_of.index_select(0, segment)
    start = stop - per_segment.index_select(0, segment)
    source = segment - 1 + upper.double() / (upper.double() - lower.double()) + 0.5
    guess = torch.ceil(source / grid.rows.step - 0.5).to(torch.int64)
    return settle_splits(grid.rows, guess, start, stop, upper.double(), lower.double(), reach)
