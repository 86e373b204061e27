"""UPSNet's fusion (Xiong et al. 2019, 3.3): one softmax over stuff, objects and "unknown", without parameters.

With X the semantic logits (stuff channels first, then things) and regions i of class c_i, box b_i and mask logits m_i:

    Z = [X of every stuff class,  S_i + M_i of every region,  unknown]
    S_i      X[c_i] inside b_i, 0 elsewhere
    M_i      m_i stretched to b_i, 0 elsewhere
    unknown  max over thing classes of X, minus max over regions of S_i: a thing that no region accounts for

With no region at all S is taken as 0, so unknown is the best thing score and every pixel of a thing becomes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from modelkit.carriers import SizeHW
from modelkit.carriers.targets import IGNORE
from modelkit.detection.targets import mask_pixel_weights
from modelkit.errors import ConfigError
from modelkit.panoptic.fusion import FusionHead, MaskLogits, Window, clip_to_canvas, full_size
from modelkit.panoptic.segments import PanopticMap, Regions
from modelkit.registry import register
from modelkit.transform import Geometry

_ROI_CELLS = 28
_UNCOUNTED = -100  # of cross_entropy; 255 could be a channel here


@register("fusion_head", "panoptic_fusion")
class PanopticFusionHead(FusionHead):
    """Pixel-wise classification over stuff, regions and unknown.

    Args:
        num_things, num_stuff, stuff_area: see ``FusionHead``.
        unknown: whether there is the unknown channel; VPSNet has none.
        score_threshold: regions at or below it are dropped.
        nms_iou: suppression threshold, across classes.
        max_regions: kept at most.
        overlap: a region is dropped when more than this share of its mask lies on masks of its own class.
        stuff_share: a region whose pixels the semantic head gives mostly (at least this share) to one stuff class
            becomes that stuff.
        kept_share: of the true objects in training; the pixels of the others are to be unknown. Without the unknown
            channel all are kept.
        roi_semantic: whether the semantic scores inside the true boxes are trained once more, each box at one size, so
            that small objects count as much as large ones.
    """

    def __init__(
        self,
        num_things: int,
        num_stuff: int,
        *,
        unknown: bool = True,
        score_threshold: float = 0.6,
        nms_iou: float = 0.5,
        max_regions: int = 100,
        overlap: float = 0.3,
        stuff_area: int = 4096,
        stuff_share: float = 0.5,
        kept_share: float = 0.7,
        roi_semantic: bool = False,
    ) -> None:
        super().__init__(num_things, num_stuff, stuff_area)
        if not unknown and not num_stuff:
            raise ConfigError("panoptic_fusion needs stuff classes or the unknown channel, got neither")
        self.num_channels = num_stuff + num_things
        self.unknown, self.kept_share, self.roi_semantic = unknown, kept_share, roi_semantic
        self.score_threshold, self.nms_iou, self.max_regions = score_threshold, nms_iou, max_regions
        self.overlap, self.stuff_share = overlap, stuff_share

    def channels(self) -> list[int]:
        """Stuff first, then things."""
        return list(range(self.num_stuff, self.num_stuff + self.num_things)) + list(range(self.num_stuff))

    def loss(
        self,
        logits: Tensor,
        wanted: Tensor,
        weights: Tensor | None,
        targets: Sequence[Mapping[str, Any]],
        mask_logits: MaskLogits,
    ) -> dict[str, Tensor]:
        """``loss_panoptic``: mean cross-entropy of Z on the logits' own grid, from the true boxes and classes.

        With ``roi_semantic`` also ``loss_semantic_roi``: that of semantic scores on 28 x 28 cells of every true box.
        Pooling the scores equals scoring the pooled features, as UPSNet does it, for scores are linear in them.

        Cells count as ``weights`` says, in a mean over all that are labelled; objects that weigh nothing take no part.
        """
        kept = [
            self._draw(len(target["labels"])).to(logits.device) & (mask_pixel_weights(target) > 0).to(logits.device)
            for target in targets
        ]
        boxes = [target["boxes"][k] for target, k in zip(targets, kept, strict=True)]
        labels = [target["labels"][k] for target, k in zip(targets, kept, strict=True)]
        total, count = logits.sum() * 0, 0
        for index, found in enumerate(mask_logits(boxes, labels)):
            regions = Regions(boxes[index], torch.ones_like(boxes[index][:, 0]), labels[index], found)
            z = panoptic_logits(
                logits[index].float(), self.num_stuff, self._scaled(regions, logits, wanted), self.unknown
            )
            target = self.panoptic_target(wanted[index], targets[index]["masks"], kept[index], logits.shape[-2:])
            count += int((target != _UNCOUNTED).sum())
            on_grid = None if weights is None else at_cells(weights[index], logits.shape[-2:])
            if on_grid is not None:  # objects that weigh nothing have no channel, and cells of theirs no place
                target[on_grid == 0] = _UNCOUNTED
            total = total + _summed_cross_entropy(z[None], target[None], _UNCOUNTED, on_grid)
        losses = {"loss_panoptic": total / max(1, count)}
        if self.roi_semantic:
            boxes = [target["boxes"] for target in targets]
            losses["loss_semantic_roi"] = _roi_loss(logits.float(), wanted, boxes, weights)
        return losses

    def _draw(self, n: int) -> Tensor:
        """(n,) bool: which true objects are kept; at least one, if there is any."""
        count = max(1, int(n * self.kept_share)) if self.unknown and n else n
        kept = torch.zeros(n, dtype=torch.bool)
        kept[torch.randperm(n)[:count]] = True
        return kept

    @staticmethod
    def _scaled(regions: Regions, logits: Tensor, wanted: Tensor) -> Regions:
        """Boxes on the grid of the logits instead of the padded canvas."""
        scale = [logits.shape[-1] / wanted.shape[-1], logits.shape[-2] / wanted.shape[-2]] * 2
        return Regions(
            regions.boxes * regions.boxes.new_tensor(scale), regions.scores, regions.labels, regions.mask_logits
        )

    def panoptic_target(self, wanted: Tensor, masks: Tensor, kept: Tensor, size_hw: Sequence[int]) -> Tensor:
        """The channel of Z that every cell of the grid should have.

        Args:
            wanted: (H, W) long semantic channels on the padded canvas, 255 unlabelled.
            masks: (n, h', w') of the true objects, resized pixels.
            kept: (n,) bool; the others are to be unknown.
            size_hw: of the grid.

        Returns:
            (*size_hw) long; thing pixels without an object, and unlabelled ones, are not counted.
        """
        target = torch.where(wanted < self.num_stuff, wanted, _UNCOUNTED)
        target[wanted == IGNORE] = _UNCOUNTED
        content = target[: masks.shape[-2], : masks.shape[-1]]
        channel, unknown = self.num_stuff, self.num_stuff + int(kept.sum())
        for mask, is_kept in zip(masks.bool(), kept.tolist(), strict=True):
            content[mask] = channel if is_kept else unknown
            channel += is_kept
        return at_cells(target, size_hw)

    def decode(self, logits: Tensor, regions: Regions, geometry: Geometry) -> tuple[PanopticMap, Regions]:
        """See ``FusionHead``."""
        regions = self.select(regions, geometry.resized_hw)
        scores = full_size(logits, geometry)
        slots = panoptic_argmax(scores, self.num_stuff, regions, self.unknown)
        return self.finish(self._return_to_stuff(slots, scores, len(regions)), regions, logits, geometry)

    def select(self, regions: Regions, size_hw: SizeHW) -> Regions:
        """The regions that take part, best first: confident, not twice the same, not on top of their own kind."""
        regions = regions[regions.scores > self.score_threshold]
        regions = regions[nms(regions.boxes, regions.scores, self.nms_iou)[: self.max_regions]]
        placed: dict[int, Tensor] = {}
        kept = []
        for index, (label, window) in enumerate(
            zip(regions.labels.tolist(), _mask_windows(regions, size_hw), strict=True)
        ):
            mask = window.values > 0
            if label not in placed:
                placed[label] = torch.zeros(size_hw, dtype=torch.bool, device=mask.device)
            taken = placed[label]
            size, shared = int(mask.sum()), int((mask & taken[window.area]).sum())
            if size and shared <= self.overlap * size:
                taken[window.area] |= mask
                kept.append(index)
        return regions[torch.tensor(kept, dtype=torch.int64, device=regions.labels.device)]

    def _return_to_stuff(self, slots: Tensor, scores: Tensor, n: int) -> Tensor:
        """Slots in which regions that the semantic head mostly sees as one stuff class are that class."""
        stuff, channels = self.num_stuff, len(scores)
        if n == 0 or stuff == 0:
            return slots
        semantic = scores.argmax(0)
        inside = (slots >= stuff) & (slots < stuff + n)
        votes = torch.bincount((slots[inside] - stuff) * channels + semantic[inside], minlength=n * channels)
        votes = votes.view(n, channels)
        most, winner = votes.max(1)
        turned = (winner < stuff) & (most >= self.stuff_share * votes.sum(1)) & (most > 0)
        table = torch.arange(stuff + n + 1, device=slots.device)
        table[stuff : stuff + n][turned] = winner[turned]
        return table[slots]


def at_cells(values: Tensor, size_hw: Sequence[int]) -> Tensor:
    """(H, W) to (*size_hw): each cell takes the value at its centre."""
    rows, columns = (
        (2 * torch.arange(cells, device=values.device) + 1) * side // (2 * cells)
        for cells, side in zip(size_hw, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _summed_cross_entropy(logits: Tensor, target: Tensor, ignored: int, weights: Tensor | None) -> Tensor:
    """Of (N, C, ...) against (N, ...), each place times its weight, if there are any."""
    if weights is None:
        return F.cross_entropy(logits, target, ignore_index=ignored, reduction="sum")
    return (F.cross_entropy(logits, target, ignore_index=ignored, reduction="none") * weights).sum()


def _roi_loss(logits: Tensor, wanted: Tensor, boxes: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits (N, C, h, w) pooled from boxes against the map (N, H, W) at the cells' centres."""
    # Aligned, as the cells' centres are: else logits would be asked for half a cell (two pixels) beside their place.
    if not sum(map(len, boxes)):
        return logits.sum() * 0
    scale = logits.shape[-1] / wanted.shape[-1]
    found = roi_align(logits, [each.to(logits) for each in boxes], _ROI_CELLS, scale, 2, aligned=True)
    share = (torch.arange(_ROI_CELLS, device=logits.device) + 0.5) / _ROI_CELLS
    crops, counts = [], []
    for index, each in enumerate(boxes):
        image = wanted[index]
        columns, rows = (
            (low[:, None] + share * (high - low)[:, None]).long().clamp(0, side - 1)
            for low, high, side in ((each[:, 0], each[:, 2], image.shape[1]), (each[:, 1], each[:, 3], image.shape[0]))
        )
        crops.append(image[rows[:, :, None], columns[:, None, :]])
        if weights is not None:
            counts.append(weights[index][rows[:, :, None], columns[:, None, :]])
    target = torch.cat(crops)
    total = _summed_cross_entropy(found, target, IGNORE, torch.cat(counts) if counts else None)
    return total / (target != IGNORE).sum().clamp(min=1)


def _score_windows(scores: Tensor, num_stuff: int, regions: Regions) -> list[Window]:
    """S_i of every region: the scores (C, H, W) of its class from the truncated first to the rounded last pixel."""
    height, width = scores.shape[-2:]
    windows = []
    for box, label in zip(regions.boxes.tolist(), regions.labels.tolist(), strict=True):
        x0, y0, x1, y1 = box
        rows = slice(max(0, min(int(y0), height)), max(0, min(round(y1) + 1, height)))
        columns = slice(max(0, min(int(x0), width)), max(0, min(round(x1) + 1, width)))
        windows.append(Window(rows, columns, scores[num_stuff + label - 1, rows, columns]))
    return windows


def _mask_windows(regions: Regions, size_hw: SizeHW) -> list[Window]:
    """M_i of every region: its logits stretched over the whole pixels that its box touches."""
    windows = []
    for box, logits in zip(regions.boxes.tolist(), regions.mask_logits, strict=True):
        x0, y0, x1, y1 = (int(value) for value in box)
        windows.append(clip_to_canvas(logits[None, None], (y0, x0), (y1 - y0 + 1, x1 - x0 + 1), size_hw))
    return windows


def panoptic_logits(scores: Tensor, num_stuff: int, regions: Regions, unknown: bool = True) -> Tensor:
    """Z (S + n + 1, H, W), or without the last channel, see the module; differentiable.

    Args:
        scores: (C, H, W) semantic logits X, stuff first.
        num_stuff: S.
        regions: boxes on the grid of ``scores``.
        unknown: whether the last channel is there.
    """
    size_hw = (scores.shape[-2], scores.shape[-1])
    score_planes = [_plane(window, size_hw) for window in _score_windows(scores, num_stuff, regions)]
    planes = [
        plane + _plane(window, size_hw)
        for plane, window in zip(score_planes, _mask_windows(regions, size_hw), strict=True)
    ]
    if unknown:
        best = scores[num_stuff:].amax(0)
        planes.append(best - torch.stack(score_planes).amax(0) if score_planes else best)
    return torch.cat([scores[:num_stuff], torch.stack(planes)]) if planes else scores[:num_stuff]


def _plane(window: Window, size_hw: SizeHW) -> Tensor:
    rows, columns = window.area
    return F.pad(window.values, (columns.start, size_hw[1] - columns.stop, rows.start, size_hw[0] - rows.stop))


def panoptic_argmax(scores: Tensor, num_stuff: int, regions: Regions, unknown: bool = True) -> Tensor:
    """(H, W) argmax of Z, the first of equals, without ever holding Z: a hundred regions cost a hundred small windows.

    A region counts 0 outside of its box, so there the first region that leaves a pixel out stands for all of these.
    """
    n, size_hw = len(regions), (scores.shape[-2], scores.shape[-1])
    best, index = scores[:num_stuff].max(0) if num_stuff else _nothing(scores)
    thing = torch.full_like(best, -torch.inf)
    outside = torch.zeros_like(index)  # the first region that leaves the pixel out
    pairs = zip(_score_windows(scores, num_stuff, regions), _mask_windows(regions, size_hw), strict=True)
    for position, (score, mask) in enumerate(pairs):
        value = score.values.clone()
        value[_inside(mask, score)] += mask.values
        better = value > best[score.area]
        best[score.area] = torch.where(better, value, best[score.area])
        index[score.area] = torch.where(better, num_stuff + position, index[score.area])
        thing[score.area] = torch.maximum(thing[score.area], score.values)
        outside[score.area] += outside[score.area] == position
    left_out = outside < n
    first = num_stuff + outside
    wins = left_out & ((best < 0) | ((best == 0) & (first < index)))
    best, index = torch.where(wins, 0, best), torch.where(wins, first, index)
    if unknown:
        covered = torch.where(left_out, thing.clamp(min=0), thing) if n else torch.zeros_like(thing)
        index = torch.where(scores[num_stuff:].amax(0) - covered > best, num_stuff + n, index)
    return index


def _nothing(scores: Tensor) -> tuple[Tensor, Tensor]:
    """What the maximum over no stuff class is."""
    return torch.full_like(scores[0], -torch.inf), torch.zeros_like(scores[0], dtype=torch.int64)


def _inside(inner: Window, outer: Window) -> tuple[slice, slice]:
    """Where the window of a mask lies within the window of its scores: never wider, for truncating is not rounding."""
    rows, columns = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner.area, outer.area, strict=True))
    return rows, columns
