"""Points on objects, as files of labels name and place them.

A label set has one set of points: what the K points of each of its objects are. Where a file's classes have different
ones, that of most objects counts. Pixels are counted as ``modelkit.carriers`` says; readers of formats that count from
the centres of pixels (COCO) add half a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelkit.carriers.landmarks import ABSENT, HIDDEN, VISIBLE, KeypointSet, mirrored_pairs
from tasks.labels.shapes import ShapeError

Point = tuple[float, float, float]
"""x, y and v: 0 not given, 1 given though something covers it, 2 given and seen."""

NOT_GIVEN: Point = (0.0, 0.0, float(ABSENT))
OF_ANOTHER_SET = "points of a class whose points are others than those of most objects"
BROKEN_POINTS = "points that are not x, y and v for each name (the object is kept)"


def point_set(
    names: Sequence[str],
    *,
    skeleton: Iterable[tuple[str, str]] = (),
    flip_pairs: Iterable[tuple[str, str]] | None = None,
    sigmas: Sequence[float] = (),
) -> KeypointSet:
    """The set of these names; lines and pairs that name no point are left out.

    Args:
        names: in the order of the points.
        skeleton: names of the ends of each line.
        flip_pairs: names of points that change places in a mirror; None: those whose names say so.
        sigmas: see ``KeypointSet``; those of another number are left out.

    Raises:
        ValueError: a name that occurs twice.
    """
    place = {name: k for k, name in enumerate(names)}
    pairs = mirrored_pairs(names) if flip_pairs is None else _places(flip_pairs, place)
    known = tuple(float(each) for each in sigmas) if len(sigmas) == len(names) else ()
    return KeypointSet(tuple(names), pairs, _places(skeleton, place), known)


def _places(pairs: Iterable[tuple[str, str]], place: Mapping[str, int]) -> tuple[tuple[int, int], ...]:
    return tuple((place[one], place[other]) for one, other in pairs if one in place and other in place)


def set_of_category(category: Mapping[str, Any], names: Sequence[Any]) -> KeypointSet | None:
    """The points of a COCO category: of their ``names``, ``skeleton`` has pairs of numbers, from 1 on.

    Beside it may stand ``flip_pairs``, pairs of such numbers, as our own exports write it, or of names; and ``sigmas``.
    None where the category has no points, or two of one name.
    """
    names = [str(name) for name in names]
    if not names:
        return None
    lines, pairs = category.get("skeleton") or (), category.get("flip_pairs")
    try:
        first = 0 if any(0 in pair for pair in [*lines, *(pairs or ())]) else 1  # some tools count from 0
        named = {k + first: name for k, name in enumerate(names)}
        return point_set(
            names,
            skeleton=_named(lines, named),
            flip_pairs=None if pairs is None else _named(pairs, named),
            sigmas=category.get("sigmas") or (),
        )
    except (TypeError, ValueError):
        return None


def _named(pairs: Iterable[Sequence[Any]], names: Mapping[int, str]) -> list[tuple[str, str]]:
    """Pairs of numbers or of names as pairs of names; "" for a number that is no point's."""
    return [(names.get(one, "") if isinstance(one, int) else str(one),
             names.get(other, "") if isinstance(other, int) else str(other)) for one, other in pairs]  # fmt: skip


def coco_points(values: Any, count: int) -> tuple[Point, ...] | None:
    """COCO's flat x, y, v of ``count`` points, half a pixel to the right and down; None where none is given.

    Raises:
        ShapeError: another number of values, no numbers, or a v that is none of 0, 1 and 2.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ShapeError(f"points are made of numbers: {error}") from error
    if len(numbers) != 3 * count:
        raise ShapeError(f"{count} points need {3 * count} numbers, got {len(numbers)}")
    return placed(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True), shift=0.5)


def placed(points: Iterable[Point], shift: float = 0.0) -> tuple[Point, ...] | None:
    """Points moved to the right and down, those that are not given at (0, 0); None where none is given.

    Raises:
        ShapeError: a place that is no number, or a v that is none of 0, 1 and 2.
    """
    found = [(x + shift, y + shift, float(v)) if v != ABSENT else NOT_GIVEN for x, y, v in points]
    if any(v not in (ABSENT, HIDDEN, VISIBLE) or not (math.isfinite(x) and math.isfinite(y)) for x, y, v in found):
        raise ShapeError("a point needs a place, and a v of 0, 1 or 2")
    return tuple(found) if any(v for _, _, v in found) else None


def box_around(points: Iterable[Point]) -> tuple[float, float, float, float]:
    """The tight box of the points that are given, xyxy. Raises ShapeError where there is none."""
    places = [(x, y) for x, y, v in points if v]
    if not places:
        raise ShapeError("no point is given")
    xs, ys = zip(*places, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
