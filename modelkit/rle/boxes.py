"""Instance masks to run lengths without ever drawing the full image.

A detector's mask is a small probability map (28 x 28) that belongs into a box. The usual way stretches it to the box
(bilinear), pastes it into an image of zeros, thresholds a million pixels and looks for runs. Only the runs are
wanted, so here they are computed directly:

1. Every image column inside the box sees the mask as a polyline over the source rows (bilinear interpolation is
   separable): 30 knots instead of hundreds of pixels.
2. Between two knots the values are monotone, so the pixels of a segment split at most once, where the line crosses the
   threshold. Knots on the same side: no split, nothing to compute.
3. The splits, in order, are the run starts. Two at the same position cancel out, which also takes care of clipping at
   the image border and of runs that continue at the top of the next column.

Float rounding decides pixels that lie on the threshold, and the result must equal torch's. So interpolation weights
are computed with torch's own float32 arithmetic (whether its kernel fuses multiply and add is found out once per
device), and where a value is closer to the threshold than rounding can reach, the whole mask is stretched by torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.rle.codec import compress_ragged, counts_from_edges

_PADDING = 1  # as torchvision's paste: a ring of zeros, so that the outline is interpolated as well
_COLUMNS_AT_ONCE = 1 << 14  # bounds the working memory: 30 knots * 4 bytes * a few temporaries per column
_MAX_STRETCHED_PIXELS = 1 << 28  # beyond this torch could not stretch the mask either (1 GiB)


@dataclass(frozen=True, slots=True)
class Axis:
    """Where pixels along one axis of the boxes fall between the knots of the padded mask; flat over all instances."""

    instance: Tensor  # (p,) int64
    pixel: Tensor  # (p,) int64, position inside the box
    knot: Tensor  # (p,) int64, the knot before
    before: Tensor  # (p,) float32 weight of that knot
    after: Tensor  # (p,) float32 weight of the next
    step: Tensor  # (n,) float64, knots per pixel of each instance


def encode_box_masks(
    masks: np.ndarray | Tensor,
    boxes_xyxy: np.ndarray | Tensor,
    size_hw: tuple[int, int],
    threshold: float = 0.5,
) -> list[bytes]:
    """Compressed COCO run lengths of mask probabilities that belong into boxes.

    Equals, byte for byte, torchvision's ``paste_masks_in_image`` (pad by one, widen the box accordingly, truncate it
    to whole pixels, stretch bilinearly, clip to the image), then ``> threshold``, then ``pycocotools.mask.encode``,
    wherever torchvision gives an answer; a box wholly outside the image, where it fails, gives an empty mask. On a GPU
    everything up to the run starts happens there.

    Args:
        masks: (n, M, M) probabilities in [0, 1]; float32 (others are converted), array or tensor on any device.
        boxes_xyxy: (n, 4) float32, image pixels.
        size_hw: rows and columns of the image.
        threshold: pixels above it belong to the mask; in [0, 1).

    Returns:
        n byte strings (``counts`` of pycocotools; ``size`` is ``size_hw``).

    Raises:
        ValueError: for shapes that do not fit, boxes or masks that are not finite, a threshold outside [0, 1).
    """
    device = masks.device if isinstance(masks, Tensor) else None
    masks = torch.as_tensor(masks, dtype=torch.float32).detach()
    boxes = torch.as_tensor(boxes_xyxy, dtype=torch.float32, device=device).detach()
    _check(masks, boxes, size_hw, threshold)
    n, area = len(masks), size_hw[0] * size_hw[1]
    if n == 0:
        return []
    padded = F.pad(masks, (_PADDING,) * 4)
    pixel_boxes = _pixel_boxes(boxes, masks.shape[-1])
    parts = []
    for chunk in _chunks(pixel_boxes, size_hw):
        edges, lengths, doubtful = _edges(padded[chunk], pixel_boxes[chunk], size_hw, threshold)
        parts.append(_settle(edges, lengths, doubtful, padded[chunk], pixel_boxes[chunk], size_hw, threshold))
    flat, lengths = (np.concatenate(each) for each in zip(*parts, strict=True))
    return compress_ragged(*counts_from_edges(flat, lengths, area))


def _check(masks: Tensor, boxes: Tensor, size_hw: tuple[int, int], threshold: float) -> None:
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or masks.shape[1] == 0:
        raise ValueError(f"masks must have shape (n, M, M), got {tuple(masks.shape)}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes_xyxy must have shape ({len(masks)}, 4), got {tuple(boxes.shape)}")
    if min(size_hw) < 1:
        raise ValueError(f"size_hw must be positive, got {size_hw}")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
    if not bool(torch.isfinite(boxes).all() & torch.isfinite(masks).all() & (boxes.abs() < 1e9).all()):
        raise ValueError("masks and boxes must be finite, and boxes below 1e9 pixels")


def _pixel_boxes(boxes: Tensor, mask_size: int) -> Tensor:
    """(n, 4) int64: first column, first row, columns, rows of the padded mask in the image (torchvision's arithmetic).

    A box that is inside out may have no or negative columns and rows: nothing of it is seen.
    """
    scale = (mask_size + 2 * _PADDING) / mask_size
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    half *= scale
    first, last = (centre - half).to(torch.int64), (centre + half).to(torch.int64)
    return torch.cat([first, last - first + 1], dim=1)


def _chunks(pixel_boxes: Tensor, size_hw: tuple[int, int]) -> list[slice]:
    """Consecutive instances whose columns fit the working memory together."""
    columns = pixel_boxes[:, 2].clamp(min=0, max=size_hw[1]).cpu().numpy()
    chunk = np.cumsum(columns) // _COLUMNS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(columns)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def pixel_axis(first: Tensor, size: Tensor, limit: int, knots: int, fused: bool) -> Axis:
    """The pixels of [first, first + size) that lie within [0, limit), for every instance, and their weights."""
    begin = (-first).clamp(min=0)
    count = (torch.minimum(size, limit - first) - begin).clamp(min=0)
    instance = torch.repeat_interleave(torch.arange(len(first), device=first.device), count)
    offset = torch.cumsum(count, 0) - count - begin
    pixel = torch.arange(len(instance), device=first.device) - offset[instance]
    stretched = size.clamp(min=1)
    scale = (torch.full_like(size, knots, dtype=torch.float32) / stretched.to(torch.float32))[instance]
    centre = pixel.to(torch.float32) + 0.5
    if fused:  # one rounding: the product of two float32 and the difference are exact in float64
        source = (centre.double() * scale.double() - 0.5).to(torch.float32)
    else:
        source = centre * scale - 0.5
    source = source.clamp(min=0)
    knot = source.to(torch.int64).clamp(max=knots - 1)
    after = source - knot
    return Axis(instance, pixel, knot, 1 - after, after, knots / stretched.double())


@lru_cache(maxsize=16)
def fused_rounding(device: torch.device) -> bool | None:
    """Whether torch's bilinear kernels here round ``scale * x - 0.5`` once (True) or twice (False); None: neither."""
    knots = 30
    sizes = torch.tensor([37, 61, 90, 127, 131, 333, 800], device=device)
    onehots = torch.eye(knots, device=device).reshape(knots, 1, knots, 1)
    measured = [
        F.interpolate(onehots, size=(int(size), 1), mode="bilinear", align_corners=False)[:, 0, :, 0].T
        for size in sizes
    ]
    for fused in (True, False):
        axis = pixel_axis(torch.zeros_like(sizes), sizes, 1 << 30, knots, fused)
        weights = torch.zeros(len(axis.pixel), knots, device=device)
        rows = torch.arange(len(axis.pixel), device=device)
        weights.index_put_((rows, axis.knot), axis.before, accumulate=True)
        weights.index_put_((rows, (axis.knot + 1).clamp(max=knots - 1)), axis.after, accumulate=True)
        if torch.equal(weights, torch.cat(measured)):
            return fused
    return None


def reach_of_rounding(knots: int, fused: bool | None) -> float:
    """How far torch's float32 value of a pixel can lie from ours, for masks of magnitude 1.

    Torch rounds at most five times a value (weight, product, three sums), our profiles three times; a rounding moves a
    value of at most 1 by 2**-24 at most. The rest is slack.
    """
    if fused is None:  # weights unknown: the source position itself may be rounded otherwise
        return knots * 2.0**-21
    return 12 * 2.0**-24


def _edges(
    padded: Tensor, pixel_boxes: Tensor, size_hw: tuple[int, int], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ragged edges of one chunk on the host: (edges, edges per instance, instances that rounding could decide)."""
    height, width = size_hw
    n, knots = padded.shape[0], padded.shape[-1]
    fused = fused_rounding(padded.device)
    reach = reach_of_rounding(knots, fused) * padded.abs().amax(dim=(1, 2)).clamp(min=threshold)
    columns = pixel_axis(pixel_boxes[:, 0], pixel_boxes[:, 2], width, knots, fused is not False)
    rows = pixel_axis(pixel_boxes[:, 1], pixel_boxes[:, 3], height, knots, fused is not False)

    level = _profiles(padded, columns).sub_(threshold)
    above = level > 0
    column, segment = torch.nonzero(above[:, 1:] != above[:, :-1], as_tuple=True)
    instance = columns.instance.index_select(0, column)
    doubtful = torch.zeros(n, dtype=torch.bool, device=padded.device)
    doubtful[columns.instance[level.abs().amin(dim=1) <= reach.index_select(0, columns.instance)]] = True

    upper_at = column * knots + segment
    flat = level.reshape(-1)
    ends = flat.index_select(0, upper_at).double(), flat.index_select(0, upper_at + 1).double()
    split, sure = _splits(rows, n, knots, instance, segment, ends, reach)
    doubtful[instance[~sure]] = True

    per_instance = height * width + 1  # one more than positions: an edge at the very end stays with its instance
    first_row = pixel_boxes[:, 1].clamp(min=0, max=height)
    corner = torch.arange(n, device=padded.device) * per_instance + pixel_boxes[:, 0] * height + first_row
    begin = columns.pixel * height + corner.index_select(0, columns.instance)
    position, times = torch.unique_consecutive(begin.index_select(0, column) + split, return_counts=True)
    position = position[(times & 1).bool()].cpu().numpy()
    bases = np.arange(n + 1, dtype=np.int64) * per_instance
    lengths = np.diff(np.searchsorted(position, bases))
    return position - np.repeat(bases[:-1], lengths), lengths, np.flatnonzero(doubtful.cpu().numpy())


def _profiles(padded: Tensor, columns: Axis) -> Tensor:
    """(columns, knots) float32: the mask as every image column sees it."""
    n, knots = padded.shape[0], padded.shape[-1]
    by_column = padded.transpose(1, 2).reshape(n * knots, knots)
    left = columns.instance * knots + columns.knot
    right = left + (columns.knot + 1 < knots)
    profile = by_column.index_select(0, left).mul_(columns.before[:, None])
    return profile.addcmul_(by_column.index_select(0, right), columns.after[:, None])


def _splits(
    rows: Axis,
    n: int,
    knots: int,
    instance: Tensor,
    segment: Tensor,
    ends: tuple[Tensor, Tensor],
    reach: Tensor,
) -> tuple[Tensor, Tensor]:
    """The first visible row (counted within the instance's visible rows) on the far side of the threshold.

    ``ends`` are the levels above the threshold at the segments' two knots. Returns (split, sure): where a segment holds
    no such row, the split lies where the next segment begins.
    """
    if len(rows.pixel) == 0 or len(segment) == 0:
        return torch.zeros_like(segment), torch.ones_like(segment, dtype=torch.bool)
    per_segment = torch.bincount(rows.instance * knots + rows.knot, minlength=n * knots)
    stop_of = torch.cumsum(per_segment, 0)
    cell = instance * knots + segment
    stop = stop_of.index_select(0, cell)
    start = stop - per_segment.index_select(0, cell)
    reach = reach.index_select(0, instance)
    upper, lower = ends

    # where the line crosses, up to rounding: source position back to pixels
    source = segment + upper / (upper - lower) + 0.5
    pixel = torch.ceil(source / rows.step.index_select(0, instance) - 0.5).to(torch.int64)
    guess = start + pixel - rows.pixel.index_select(0, start.clamp(max=len(rows.pixel) - 1))
    split, sure = settle_splits(rows, guess, start, stop, upper, lower, reach)
    begin_of = torch.cat([stop_of.new_zeros(1), stop_of[knots - 1 :: knots]])
    return split - begin_of.index_select(0, instance), sure


def settle_splits(
    rows: Axis, guess: Tensor, start: Tensor, stop: Tensor, upper: Tensor, lower: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    """The guess, or a neighbour, as the first row of [start, stop) on the far side, and whether that is certain."""
    split = guess.clamp(min=start, max=stop)
    right, sure = _is_split(rows, split, start, stop, upper, lower, reach)
    wrong = torch.nonzero(~right)[:, 0]
    if len(wrong):
        some = start[wrong], stop[wrong], upper[wrong], lower[wrong], reach[wrong]
        for shift in (-1, 1):
            other = split[wrong] + shift
            fits, certain = _is_split(rows, other, *some)
            fits &= (other >= some[0]) & (other <= some[1])
            split[wrong[fits]], sure[wrong[fits]], right[wrong[fits]] = other[fits], certain[fits], fits[fits]
    return split, right & sure


def _is_split(
    rows: Axis, split: Tensor, start: Tensor, stop: Tensor, upper: Tensor, lower: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether ``split`` is the first row of [start, stop) on the far side (stop: none is), and beyond rounding."""
    rising = lower > upper
    right, sure = torch.ones_like(rising), torch.ones_like(rising)
    for row, far_side in ((split - 1, False), (split, True)):
        absent = (row < start) | (row >= stop)
        inside = row.clamp(0, len(rows.pixel) - 1)
        level = upper * rows.before.index_select(0, inside) + lower * rows.after.index_select(0, inside)
        right &= (((level > 0) == rising) == far_side) | absent
        sure &= (level.abs() > reach) | absent
    return right, sure


def _settle(
    edges: np.ndarray,
    lengths: np.ndarray,
    doubtful: np.ndarray,
    padded: Tensor,
    pixel_boxes: Tensor,
    size_hw: tuple[int, int],
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the edges of doubtful instances by those of the mask that torch itself stretches."""
    if len(doubtful) == 0:
        return edges, lengths
    parts = np.split(edges, np.cumsum(lengths)[:-1])
    for index in doubtful.tolist():
        stretched = edges_by_stretching(padded[index], pixel_boxes[index].tolist(), size_hw, threshold)
        if stretched is not None:
            parts[index] = stretched
    return np.concatenate(parts), np.fromiter(map(len, parts), np.int64, len(parts))


def edges_by_stretching(
    padded: Tensor, pixel_box: list[int], size_hw: tuple[int, int], threshold: float
) -> np.ndarray | None:
    """Edges of one mask from all pixels of its box; None where the box is too large to hold them."""
    x, y, columns, rows = pixel_box
    height, width = size_hw
    if columns * rows > _MAX_STRETCHED_PIXELS:
        return None
    stretched_hw = max(rows, 1), max(columns, 1)
    values = F.interpolate(padded[None, None], size=stretched_hw, mode="bilinear", align_corners=False)[0, 0]
    seen_rows = slice(max(-y, 0), max(min(height - y, rows), 0))
    seen_columns = slice(max(-x, 0), max(min(width - x, columns), 0))
    visible = values[seen_rows, seen_columns] > threshold
    inside = F.pad(visible.T.to(torch.int8), (1, 1))
    column, row = torch.nonzero(inside[:, 1:] != inside[:, :-1], as_tuple=True)
    position = (column + max(x, 0)) * height + row + max(y, 0)
    position, times = torch.unique_consecutive(position, return_counts=True)
    return position[times % 2 == 1].cpu().numpy()
