"""Errors in labels, planted on purpose: which objects of a COCO file are wrong then is known exactly.

Errors of objects with masks:

    class       another class, each as likely
    shifted     the mask moved by .3 to .6 of its box's longer side, in any direction
    shrunk      the mask at half its size, about the same centre
    replaced    the mask of another object of the picture (where there is none, of another picture)
    made up     one more object: the mask of another picture's object, where nobody labelled anything

and of objects with points, of which the box stays:

    swapped     two points that are .3 of the box's diagonal or more apart have changed places
    moved       one point moved by .3 to .6 of the box's diagonal
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from modelkit import rle

Annotation = dict[str, Any]
LEAST, MOST = 0.3, 0.6
"""How far things are moved, in shares of an object's size."""
_LEAST_PIXELS = 20
_TRIES = 200
_FREE = 0.1  # of a made-up mask: the most that any labelled box may cover of it


@dataclass(frozen=True, slots=True)
class Planted:
    """A COCO file with errors.

    Args:
        content: the file.
        errors: id of each annotation that is wrong -> its kind.
    """

    content: dict[str, Any]
    errors: dict[int, str]


@dataclass(slots=True)
class _Planter:
    """A file under change, and what draws."""

    content: dict[str, Any]
    rng: np.random.Generator

    def size_hw(self, each: Annotation) -> tuple[int, int]:
        image = next(image for image in self.content["images"] if image["id"] == each["image_id"])
        return image["height"], image["width"]

    def mask(self, each: Annotation) -> np.ndarray:
        return rle.decode(each["segmentation"]["counts"].encode(), tuple(each["segmentation"]["size"]))

    def with_mask(self, each: Annotation, mask: np.ndarray) -> bool:
        """Give an object another mask; False where nearly nothing of it would be left."""
        if mask.sum() < _LEAST_PIXELS:
            return False
        counts = rle.encode(mask)
        x0, y0, x1, y1 = (float(value) for value in rle.bbox(counts, mask.shape))
        each["segmentation"] = {"size": list(mask.shape), "counts": counts.decode()}
        each["bbox"], each["area"] = [x0, y0, x1 - x0, y1 - y0], int(mask.sum())
        return True

    def step(self, size: float) -> tuple[float, float]:
        """A move by a share of ``size`` in a direction that is drawn."""
        angle, length = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(LEAST, MOST) * size
        return length * np.cos(angle), length * np.sin(angle)

    def other(self, each: Annotation, *, same_image: bool) -> Annotation | None:
        others = [
            one
            for one in self.content["annotations"]
            if one is not each and (one["image_id"] == each["image_id"]) == same_image
        ]
        return others[self.rng.integers(len(others))] if others else None


def _another_class(planter: _Planter, each: Annotation) -> bool:
    others = [one["id"] for one in planter.content["categories"] if one["id"] != each["category_id"]]
    each["category_id"] = int(planter.rng.choice(others))
    return True


def _shifted(planter: _Planter, each: Annotation) -> bool:
    dx, dy = planter.step(max(each["bbox"][2:]))
    return planter.with_mask(each, _moved(planter.mask(each), round(dx), round(dy)))


def _moved(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    moved = np.zeros_like(mask)
    ys, xs = np.nonzero(mask)
    inside = (ys + dy >= 0) & (ys + dy < mask.shape[0]) & (xs + dx >= 0) & (xs + dx < mask.shape[1])
    moved[ys[inside] + dy, xs[inside] + dx] = 1
    return moved


def _shrunk(planter: _Planter, each: Annotation) -> bool:
    mask = planter.mask(each)
    x, y, width, height = (round(value) for value in each["bbox"])
    half = ndimage.zoom(mask[y : y + height, x : x + width].astype(float), 0.5, order=1) >= 0.4
    small = np.zeros_like(mask)
    top, left = y + (height - half.shape[0]) // 2, x + (width - half.shape[1]) // 2
    small[top : top + half.shape[0], left : left + half.shape[1]] = half
    return planter.with_mask(each, small)


def _replaced(planter: _Planter, each: Annotation) -> bool:
    other = planter.other(each, same_image=True) or planter.other(each, same_image=False)
    if other is None or other["segmentation"]["size"] != each["segmentation"]["size"]:
        return False
    return planter.with_mask(each, planter.mask(other))


def _made_up(planter: _Planter, each: Annotation) -> bool:
    """``each`` is a copy that becomes an object of its own."""
    source = planter.other(each, same_image=False)
    if source is None or source["segmentation"]["size"] != list(planter.size_hw(each)):
        return False
    taken = np.zeros(planter.size_hw(each), bool)
    for one in planter.content["annotations"]:
        if one["image_id"] == each["image_id"]:
            x, y, width, height = (round(value) for value in one["bbox"])
            taken[y : y + height, x : x + width] = True
    mask, (x, y, width, height) = planter.mask(source), source["bbox"]
    for _ in range(_TRIES):
        dx = int(planter.rng.integers(-x, max(-x, taken.shape[1] - x - width) + 1))
        dy = int(planter.rng.integers(-y, max(-y, taken.shape[0] - y - height) + 1))
        moved = _moved(mask, dx, dy)
        if (moved.astype(bool) & taken).sum() <= _FREE * moved.sum():
            each["category_id"] = source["category_id"]
            return planter.with_mask(each, moved)
    return False


def _diagonal(each: Annotation) -> float:
    return float(np.hypot(*each["bbox"][2:]))


def _swapped(planter: _Planter, each: Annotation) -> bool:
    points = np.array(each["keypoints"], float).reshape(-1, 3)
    apart = np.linalg.norm(points[:, None, :2] - points[None, :, :2], axis=2) >= LEAST * _diagonal(each)
    pairs = np.argwhere(np.triu(apart, 1) & (points[:, 2] > 0)[:, None] & (points[:, 2] > 0)[None])
    if not len(pairs):
        return False
    one, other = pairs[planter.rng.integers(len(pairs))]
    points[[one, other]] = points[[other, one]]
    each["keypoints"] = points.ravel().tolist()
    return True


def _moved_point(planter: _Planter, each: Annotation) -> bool:
    points = np.array(each["keypoints"], float).reshape(-1, 3)
    given = np.flatnonzero(points[:, 2] > 0)
    if not len(given):
        return False
    points[planter.rng.choice(given), :2] += planter.step(_diagonal(each))
    each["keypoints"] = points.ravel().tolist()
    return True


MADE_UP = "made up"
Plant = Callable[[_Planter, Annotation], bool]
OBJECT_ERRORS: dict[str, Plant] = {
    "class": _another_class, "shifted": _shifted, "shrunk": _shrunk, "replaced": _replaced, MADE_UP: _made_up,
}  # fmt: skip
POINT_ERRORS: dict[str, Plant] = {"swapped": _swapped, "moved": _moved_point}


def plant(content: dict[str, Any], errors: dict[str, Plant], share: float, seed: int) -> Planted:
    """A COCO file of which a share of the objects is wrong, each kind of error about as often.

    Args:
        content: right labels; stays as it is.
        errors: what is planted: ``OBJECT_ERRORS`` or ``POINT_ERRORS``.
        share: of the objects of the result, those that were made up among them.
        seed: the same gives the same errors.
    """
    planter = _Planter(copy.deepcopy(content), np.random.default_rng(seed))
    annotations, kinds = planter.content["annotations"], list(errors)
    victims = planter.rng.permutation(len(annotations)).tolist()
    planted: dict[int, str] = {}
    while victims and len(planted) < round(share * len(annotations)):
        kind, each = kinds[len(planted) % len(kinds)], annotations[victims.pop()]
        if kind == MADE_UP:
            each = {**copy.deepcopy(each), "id": max(one["id"] for one in annotations) + 1}
        if errors[kind](planter, each):
            planted[each["id"]] = kind
            if kind == MADE_UP:
                annotations.append(each)
    return Planted(planter.content, planted)


def without_some(content: dict[str, Any], share: float, seed: int) -> tuple[dict[str, Any], list[Annotation]]:
    """A COCO file that lacks a share of its objects, and these."""
    annotations = content["annotations"]
    gone = set(np.random.default_rng(seed).permutation(len(annotations))[: round(share * len(annotations))].tolist())
    kept = [each for k, each in enumerate(annotations) if k not in gone]
    return {**content, "annotations": kept}, [annotations[k] for k in sorted(gone)]
