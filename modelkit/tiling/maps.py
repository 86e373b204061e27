"""Classes of pixels of a picture from its tiles: blended where tiles overlap, or taken from the tile that owns a pixel.

Probabilities of all tiles would be classes times pixels in float32: gigabytes. So the picture is divided where tiles
begin and end; a field of that division lies in the same tiles everywhere, and is decided once the last of them has been
looked at. What waits is one row of strips.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit import rle
from modelkit.carriers import Instances, SizeHW
from modelkit.tiling.windows import Window, domains

TileMap = tuple[Window, np.ndarray, Tensor]
"""A tile, the class of each of its pixels (h, w), and probabilities (C, a, b) float at any resolution."""


@dataclass(frozen=True, slots=True)
class BlendedMap:
    """A class for every pixel of a picture.

    Args:
        size_hw: of the picture.
        class_map: (H, W) uint8 or int16.
        scores: (C,) mean probability of each class over its pixels; NaN of a class that has none.
    """

    size_hw: SizeHW
    class_map: np.ndarray
    scores: np.ndarray

    def instances(self, background: int | None) -> Instances:
        """One entry per class present but the background, by class id; boxes are tight around the pixels."""
        rles = rle.encode_label_map(self.class_map, ignore=() if background is None else (background,))
        masks, labels = list(rles.values()), np.array(list(rles), np.int32)
        return Instances(
            size_hw=self.size_hw,
            boxes_xyxy=rle.bboxes(masks, self.size_hw).astype(np.float32),
            scores=self.scores[labels].astype(np.float32),
            labels=labels,
            rles=masks,
            is_thing=np.zeros(len(masks), bool),
        )


class _Field:
    """A part of the picture that the same tiles cover everywhere, so many of them."""

    def __init__(self, window: Window, tiles: int) -> None:
        self.window, self.tiles = window, tiles
        self._seen = 0
        self._total: Tensor | None = None

    def add(self, probabilities: Tensor, weights: Tensor) -> bool:
        """What one tile says (C, h, w), and how much it counts at each pixel (h, w); whether it was the last one."""
        share = probabilities * weights
        self._total = share if self._total is None else self._total.add_(share)
        self._seen += 1
        return self._seen == self.tiles

    def most_probable(self) -> tuple[Tensor, Tensor]:
        """Classes (h, w) and their probabilities; the field forgets what it was told."""
        total, self._total = self._total, None
        assert total is not None
        best = total.max(0)
        return best.indices, best.values / total.sum(0)


def blend(tiles: Iterable[TileMap], windows: Sequence[Window], size_hw: SizeHW) -> BlendedMap:
    """The map of a picture.

    Where one tile alone looked, its classes are taken as they are. Where several did, their probabilities are averaged,
    each weighing as the pixel's distance from the tile's border, and the most probable class is taken.

    Args:
        tiles: made one after the other, in the order of ``windows``.
        windows: of all tiles.
        size_hw: of the picture.
    """
    fields = [_Field(each, sum(each.common(one) is not None for one in windows)) for each in _fields(windows)]
    picture: _Picture | None = None
    for window, classes, probabilities in tiles:
        full = F.interpolate(probabilities[None].float(), window.size_hw, mode="bilinear", align_corners=False)[0].cpu()
        picture = picture or _Picture.empty(size_hw, len(full))
        weights = _weights(window.size_hw)
        for each in (each for each in fields if each.window.common(window)):
            inner = _slices(each.window, window.corner_yx)
            if each.tiles == 1:
                own = torch.from_numpy(classes[inner].astype(np.int64))
                picture.decide(each.window, own, full[:, *inner].gather(0, own[None])[0])
            elif each.add(full[:, *inner], weights[inner]):
                picture.decide(each.window, *each.most_probable())
    assert picture is not None  # a picture has a tile
    return picture.finished()


class _Picture:
    """The map under way: classes, and sums of their probabilities."""

    def __init__(self, class_map: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> None:
        self._class_map, self._sums, self._counts = class_map, sums, counts

    @classmethod
    def empty(cls, size_hw: SizeHW, classes: int) -> _Picture:
        kind = np.uint8 if classes <= 256 else np.int16
        return cls(np.zeros(size_hw, kind), np.zeros(classes), np.zeros(classes, np.int64))

    def decide(self, window: Window, classes: Tensor, probabilities: Tensor) -> None:
        """The classes (h, w) long of a window, and how probable each is there."""
        flat, n = classes.flatten().numpy(), len(self._sums)
        self._class_map[_slices(window, (0, 0))] = classes.numpy()
        self._sums += np.bincount(flat, probabilities.flatten().numpy(), minlength=n)
        self._counts += np.bincount(flat, minlength=n)

    def finished(self) -> BlendedMap:
        """The map, all of which is decided."""
        size_hw = (self._class_map.shape[0], self._class_map.shape[1])
        with np.errstate(invalid="ignore"):
            return BlendedMap(size_hw, self._class_map, self._sums / self._counts)


def _fields(windows: Sequence[Window]) -> list[Window]:
    """The division of a picture by all borders of its tiles."""
    rows = sorted({edge for each in windows for edge in (each.top, each.bottom)})
    columns = sorted({edge for each in windows for edge in (each.left, each.right)})
    return [Window(top, left, bottom, right) for top, bottom in pairwise(rows) for left, right in pairwise(columns)]


def _slices(window: Window, corner_yx: tuple[int, int]) -> tuple[slice, slice]:
    """Index of a window into an array whose first pixel is at a corner."""
    y, x = corner_yx
    return slice(window.top - y, window.bottom - y), slice(window.left - x, window.right - x)


def _weights(size_hw: SizeHW) -> Tensor:
    """(h, w) float: distance of a pixel's centre from the nearest border, along rows times along columns."""
    rows, columns = (
        torch.minimum(torch.arange(side) + 0.5, side - torch.arange(side) - 0.5).double() for side in size_hw
    )
    return (rows[:, None] * columns[None]).float()


def stitch(parts: Sequence[tuple[Window, Instances]], size_hw: SizeHW, *, by_score: bool = False) -> Instances:
    """Regions of classes from tiles: of each tile what lies in its own part of the picture, see ``domains``.

    Args:
        parts: all tiles with what was found there, in pixels of the tile; masks of one tile do not overlap.
        size_hw: of the picture.
        by_score: regions of one class and different scores stay apart (levels of confidence); else they are one region,
            whose score is the mean over its pixels.
    """
    masks, scores = defaultdict[tuple[int, float], list[bytes]](list), defaultdict[int, list[tuple[int, float]]](list)
    for label, score, mask in _own_regions(parts, size_hw):
        masks[label, score if by_score else 0.0].append(mask)
        scores[label].append((rle.area(mask), score))
    keys = sorted(masks)
    united = [rle.union(masks[key]) for key in keys]
    found = [score if by_score else _mean(scores[label]) for label, score in keys]
    return Instances(
        size_hw=size_hw,
        boxes_xyxy=rle.bboxes(united, size_hw).astype(np.float32) if united else np.zeros((0, 4), np.float32),
        scores=np.array(found, np.float32),
        labels=np.array([label for label, _ in keys], np.int32),
        rles=united,
        is_thing=np.zeros(len(keys), bool),
    )


def _own_regions(parts: Sequence[tuple[Window, Instances]], size_hw: SizeHW) -> Iterator[tuple[int, float, bytes]]:
    own = domains([window for window, _ in parts])
    for (window, found), part in zip(parts, own, strict=True):
        assert found.rles is not None  # maps of classes have masks
        offset = window.top - part.top, window.left - part.left
        cropped = rle.moved(found.rles, window.size_hw, offset, part.size_hw)
        placed = rle.moved(cropped, part.size_hw, part.corner_yx, size_hw)
        for label, score, mask, area in zip(
            found.labels.tolist(), found.scores.tolist(), placed, rle.areas(placed).tolist(), strict=True
        ):
            if area:
                yield label, score, mask


def _mean(areas_and_scores: Sequence[tuple[int, float]]) -> float:
    total = sum(area for area, _ in areas_and_scores)
    return sum(area * score for area, score in areas_and_scores) / total
