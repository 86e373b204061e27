"""Objects that were found in the tiles of a picture, each once and whole.

The strip that two tiles share is seen by both, so both must have seen the same objects there. What is compared is
therefore only what lies *in the strip*:

1. Objects of two tiles are one object where their parts in the strip have an IoU of at least one half, and they are of
   one class, or both tiles are sure of theirs: then one of them is wrong, for what a border leaves of a thing often
   looks like another one. Each has one partner at most in the other tile, and those of which both are sure find theirs
   first. Objects that touch, or of which one lies upon the other, have little in common there and stay apart. (Merging
   by intersection over the smaller box or mask, as most tools do, makes one of such two.)
2. Of the views of one object the surest that the border of no tile cuts is taken as it is; where all are cut, their
   masks (or boxes) are united, and the class is the one that has most of score times area.
3. An object that no tile saw whole is a remnant, and dropped, where a surer one lies on it that another tile saw than
   those which cut it: on half of it, if that tile saw it whole, else on three quarters.

Limits: an object that is longer than the overlap and that one of the two tiles misses stays a part; two views of it
that differ much in the strip stay two. Objects without masks are compared by their boxes, also where they lie across
each other. The overlap should be at least as wide as the usual object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pycocotools import mask as coco_mask

from modelkit import rle
from modelkit.carriers import Instances, SizeHW
from modelkit.tiling.windows import Window

SAME_IOU = 0.5
"""Above one half a partner is the only one, as long as what a tile found does not overlap (Kirillov et al. 2019)."""
_SURE = 0.5  # score from which on two classes of one thing contradict each other; below they are alternatives
_COVERED_BY_WHOLE, _COVERED = 0.5, 0.75  # share of a remnant that another object covers
_WHOLE = 0.8  # share of all that its views cover, that one which no border cuts covers at least
_BORDER = 0.04  # of a tile's side: what ends so near to a border inside the picture may go on behind it

Match = tuple[float, int, int]  # how good it is, and the two views


@dataclass(frozen=True, slots=True)
class _View:
    """An object as one tile saw it."""

    tile: int
    place: int  # among the tile's
    is_cut: bool


class _Seen:
    """All views of all tiles of a picture."""

    def __init__(self, parts: Sequence[tuple[Window, Instances]], size_hw: SizeHW) -> None:
        self.size_hw, self.parts = size_hw, parts
        self.views = [
            _View(tile, place, bool(cut))
            for tile, (window, found) in enumerate(parts)
            for place, cut in enumerate(_is_cut(window, found.boxes_xyxy, size_hw))
        ]
        self.first = np.cumsum([0, *(len(found) for _, found in parts)])
        self.scores, self.labels = (
            np.concatenate([getattr(found, name) for _, found in parts]) for name in ("scores", "labels")
        )
        shifts = [np.array([window.left, window.top] * 2, np.float32) for window, _ in parts]
        self.boxes = np.concatenate([found.boxes_xyxy + shift for (_, found), shift in zip(parts, shifts, strict=True)])
        self.has_masks = all(found.rles is not None for _, found in parts)
        self.masks = [mask for part in parts for mask in self._placed(*part)] if self.has_masks else []

    def within(self, tile: int, strip: Window) -> tuple[np.ndarray, list[bytes]]:
        """Views of a tile that reach into a strip, and the parts of their masks there (none where there are none)."""
        window, found = self.parts[tile]
        boxes = found.boxes_xyxy + np.array([window.left, window.top] * 2, np.float32)
        x0, y0, x1, y1 = boxes.T
        near = (x1 > strip.left) & (x0 < strip.right) & (y1 > strip.top) & (y0 < strip.bottom)
        places = np.flatnonzero(near)
        if not self.has_masks:
            return self.first[tile] + places, []
        masks = [found.rles[k] for k in places.tolist()]  # type: ignore[index]  # has_masks
        corner = window.top - strip.top, window.left - strip.left
        cropped = rle.moved(masks, window.size_hw, corner, strip.size_hw)
        there = np.flatnonzero(rle.areas(cropped) > 0)
        return self.first[tile] + places[there], [cropped[k] for k in there.tolist()]

    def _placed(self, window: Window, found: Instances) -> list[bytes]:
        """The masks of a tile on the picture."""
        return rle.moved(found.rles or [], window.size_hw, window.corner_yx, self.size_hw)


def merge_objects(parts: Sequence[tuple[Window, Instances]], size_hw: SizeHW) -> Instances:
    """The objects of a picture, best first.

    Args:
        parts: every tile with what was found there, in pixels of the tile.
        size_hw: of the picture.
    """
    seen = _Seen(parts, size_hw)
    if not seen.views:
        empty = Instances.empty(size_hw)
        return empty if seen.has_masks else replace(empty, rles=None)
    objects = [_object(seen, views) for views in _groups(seen)]
    boxes, scores = np.stack([each.box for each in objects]), np.array([each.score for each in objects])
    kept = []
    for place, each in enumerate(objects):
        surer = (_box_common(each.box[None], boxes)[0] > 0) & (scores >= each.score)
        surer[place] = False
        if not _is_remnant(each, [objects[k] for k in np.flatnonzero(surer).tolist()], seen):
            kept.append(each)
    kept.sort(key=lambda each: (-each.score, each.views))
    qualities = _qualities(seen, kept)
    return Instances(
        size_hw=size_hw,
        boxes_xyxy=np.stack([each.box for each in kept]),
        scores=np.array([each.score for each in kept], np.float32),
        labels=np.array([each.label for each in kept], np.int32),
        rles=[each.rle for each in kept] if seen.has_masks else None,
        is_thing=np.ones(len(kept), bool),
        qualities=qualities,
    )


@dataclass(frozen=True, slots=True)
class _Object:
    """One object of the picture.

    Args:
        views: of it. whole: the view that stands for it, if there is one that no border cuts.
        rle: on the picture; empty where there are no masks.
    """

    views: tuple[int, ...]
    whole: int | None
    label: int
    score: float
    box: np.ndarray
    rle: bytes


def _object(seen: _Seen, views: Sequence[int]) -> _Object:
    masks = [seen.masks[view] for view in views] if seen.has_masks else []
    if len(views) == 1:
        return _as_seen(seen, views, views[0])
    together, areas = rle.union(masks) if masks else b"", _areas(seen, views, masks)
    boxes = seen.boxes[list(views)]
    hull = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    total = rle.area(together) if masks else float(np.prod(hull[2:] - hull[:2]))
    is_whole = [not seen.views[view].is_cut and area >= _WHOLE * total for view, area in zip(views, areas, strict=True)]
    whole = [k for k, yes in enumerate(is_whole) if yes]
    if whole:
        best = max(whole, key=lambda k: (seen.scores[views[k]], -k))
        return _as_seen(seen, views, views[best])
    label = _label(seen, views, areas)
    score = max(float(seen.scores[view]) for view in views if seen.labels[view] == label)
    return _Object(tuple(views), None, label, score, hull, together)


def _as_seen(seen: _Seen, views: Sequence[int], view: int) -> _Object:
    """An object as one of its views has it."""
    whole, mask = None if seen.views[view].is_cut else view, seen.masks[view] if seen.has_masks else b""
    return _Object(tuple(views), whole, int(seen.labels[view]), float(seen.scores[view]), seen.boxes[view], mask)


def _areas(seen: _Seen, views: Sequence[int], masks: Sequence[bytes]) -> np.ndarray:
    if masks:
        return rle.areas(masks)
    boxes = seen.boxes[list(views)]
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1))


def _label(seen: _Seen, views: Sequence[int], areas: np.ndarray) -> int:
    votes: dict[int, float] = {}
    for view, area in zip(views, areas, strict=True):
        label = int(seen.labels[view])
        votes[label] = votes.get(label, 0.0) + float(seen.scores[view]) * float(area)
    return max(votes, key=lambda label: (votes[label], -label))


def _qualities(seen: _Seen, kept: Sequence[_Object]) -> dict[str, np.ndarray] | None:
    """Of a whole view its own, else the least of the views: their masks are no better than the worst part."""
    names = {name for _, found in seen.parts for name in found.qualities or {}}
    if not names:
        return None
    measured = {
        name: np.concatenate([(found.qualities or {}).get(name, np.zeros(len(found))) for _, found in seen.parts])
        for name in names
    }
    return {
        name: np.array(
            [values[[each.whole] if each.whole is not None else list(each.views)].min() for each in kept], np.float32
        )
        for name, values in sorted(measured.items())
    }


def _is_cut(window: Window, boxes: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(n,) bool: the box, in pixels of the tile, ends at a border of the tile that is none of the picture."""
    rows, columns = window.size_hw
    near_y, near_x = (max(2.0, _BORDER * side) for side in (rows, columns))
    x0, y0, x1, y1 = boxes.T
    return np.asarray(
        ((x0 < near_x) & (window.left > 0))
        | ((y0 < near_y) & (window.top > 0))
        | ((x1 > columns - near_x) & (window.right < size_hw[1]))
        | ((y1 > rows - near_y) & (window.bottom < size_hw[0]))
    )


def _groups(seen: _Seen) -> list[list[int]]:
    """Views by the object that they are of, in order."""
    parent = list(range(len(seen.views)))

    def root(view: int) -> int:
        while parent[view] != view:
            parent[view] = parent[parent[view]]
            view = parent[view]
        return view

    for one, other in _pairs(seen):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for view in range(len(parent)):
        groups.setdefault(root(view), []).append(view)
    return list(groups.values())


def _pairs(seen: _Seen) -> Iterator[tuple[int, int]]:
    """Views of two tiles that are one object."""
    for one in range(len(seen.parts)):
        for other in range(one + 1, len(seen.parts)):
            strip = seen.parts[one][0].common(seen.parts[other][0])
            if strip is not None:
                yield from _partners(_matches(seen, one, other, strip))


def _matches(seen: _Seen, one: int, other: int, strip: Window) -> list[Match]:
    mine, my_masks = seen.within(one, strip)
    theirs, their_masks = seen.within(other, strip)
    if not len(mine) or not len(theirs):
        return []
    if seen.has_masks:
        sides = [[{"size": list(strip.size_hw), "counts": each} for each in masks] for masks in (my_masks, their_masks)]
        ious = np.asarray(coco_mask.iou(*sides, [0] * len(theirs)))
    else:
        ious = _box_shares(seen.boxes[mine], seen.boxes[theirs], strip)
    one_class = seen.labels[mine][:, None] == seen.labels[theirs][None]
    scores = seen.scores[mine][:, None], seen.scores[theirs][None]
    found = np.argwhere((ious >= SAME_IOU) & (one_class | (np.minimum(*scores) >= _SURE)))
    goodness = ious * scores[0] * scores[1]
    return [(float(goodness[a, b]), int(mine[a]), int(theirs[b])) for a, b in found.tolist()]


def _partners(matches: Sequence[Match]) -> Iterator[tuple[int, int]]:
    """Pairs in which nobody is twice, the best first."""
    taken: set[int] = set()
    for _, one, other in sorted(matches, key=lambda match: (-match[0], *match[1:])):
        if one not in taken and other not in taken:
            taken |= {one, other}
            yield one, other


def _box_shares(one: np.ndarray, other: np.ndarray, strip: Window) -> np.ndarray:
    """(n, m) IoU of what lies of boxes in a strip."""
    low, high = np.array([strip.left, strip.top]), np.array([strip.right, strip.bottom])
    a, b = (np.concatenate([np.clip(x[:, :2], low, high), np.clip(x[:, 2:], low, high)], 1) for x in (one, other))
    common = _box_common(a, b)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return np.asarray(common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9))


def _box_common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.asarray(np.maximum(sides, 0).prod(2))


def _is_remnant(one: _Object, surer: Sequence[_Object], seen: _Seen) -> bool:
    """Whether an object is nothing but what a border left of another one, of those whose boxes lie on it."""
    if not surer or one.whole is not None:
        return False
    tiles = {seen.views[view].tile for view in one.views if seen.views[view].is_cut}
    whole = [each for each in surer if each.whole is not None and seen.views[each.whole].tile not in tiles]
    helped = [each for each in surer if not {seen.views[view].tile for view in each.views} <= tiles]
    return _covered(one, whole, seen) >= _COVERED_BY_WHOLE or _covered(one, helped, seen) >= _COVERED


def _covered(one: _Object, others: Sequence[_Object], seen: _Seen) -> float:
    """Largest share of an object that one of the others covers."""
    if not others:
        return 0.0
    if not seen.has_masks:
        area = float(np.prod(one.box[2:] - one.box[:2]))
        return float(_box_common(one.box[None], np.stack([each.box for each in others])).max()) / max(area, 1e-9)
    size = list(seen.size_hw)
    masks = [{"size": size, "counts": each.rle} for each in others]
    # To a crowd pycocotools gives the intersection over the area of the first mask alone.
    return float(np.max(coco_mask.iou([{"size": size, "counts": one.rle}], masks, [1] * len(masks))))
