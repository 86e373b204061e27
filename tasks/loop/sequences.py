"""Which pictures are frames of one sequence: told by names that count, and by what the pictures look like.

Frames of a video that lie about as pictures (``0006R0_f00930.png``, ``0006R0_f00960.png``) must not be divided between
splits, and a folder of unrelated pictures called ``IMG_0001`` to ``IMG_0999`` must not become one group. The rule:

1. Pictures of one folder whose names differ in their last number alone are a *series*, in the order of that number;
   those of a folder that have no such sibling are one, too, in the order of all their numbers.
2. A series of 6 or more is a *sequence* if neighbours look more alike than pictures that are half the series or more
   apart: the median distance of their perceptual hashes is at most .8 of the others', and a rank test (Mann and Whitney
   1947) finds that at a level of .05.
3. A sequence ends where numbers jump by more than 5 usual steps and none of the three pictures before the jump is as
   like one of the three behind it as neighbours usually are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.stats import mannwhitneyu

from tasks.loop.fingerprints import hamming

FEWEST = 6
ALIKE = 0.8  # of the median distance of pictures that are far apart
LEVEL = 0.05
JUMP = 5  # usual steps
_LAGS = 20
_SIDE = 3  # pictures on either side of a jump
_NUMBER = re.compile(r"\d+")
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, its place in a series, and its perceptual hash (None where it has no structure)."""

    image_id: str
    series: tuple[str, str]  # folder, and the name without its last number
    order: tuple[int, ...]
    phash64: int | None

    @classmethod
    def of(cls, image_id: str, uri: str, phash64: int | None) -> Picture:
        """By its name."""
        folder, _, file_name = uri.rpartition("/")
        name = file_name.rpartition(".")[0] or file_name
        found = _LAST_NUMBER.search(name)
        if found is None:
            return cls(image_id, (folder, name), (), phash64)
        stem = f"{name[: found.start()]}#{name[found.end() :]}"
        return cls(image_id, (folder, stem), (int(found[0]),), phash64)


@dataclass(frozen=True, slots=True)
class Sequences:
    """What was found of labelled pictures and others.

    Args:
        together: ids of labelled pictures that are of one sequence, by sequence.
        next_to: id of another picture -> that of the labelled one of its sequence that is next to it.
    """

    together: tuple[tuple[str, ...], ...]
    next_to: dict[str, str]


def find_sequences(labelled: Iterable[Picture], others: Iterable[Picture] = ()) -> Sequences:
    """Sequences of labelled pictures, and what of others goes on with them.

    A sequence of which some frames are labelled may lie in two folders, so the names of others count without theirs.
    Where there are others they decide, too: with them between, few pictures that are far apart can be seen to be one.
    """
    series = list(_series_of(labelled))
    by_stem: dict[str, list[list[Picture]]] = defaultdict(list)
    for (_, stem), members in _by_series(others).items():
        by_stem[stem].append(members)
    together: list[tuple[str, ...]] = []
    next_to: dict[str, str] = {}
    for mine in series:
        ids = {each.image_id for each in mine}
        for more in by_stem.get(mine[0].series[1]) or [[]]:
            for part in parts_of([*mine, *more]):
                places = [place for place, each in enumerate(part) if each.image_id in ids]
                if places:
                    together.append(tuple(part[place].image_id for place in places))
                    next_to |= _nearest(part, places)
    return Sequences(tuple(each for each in together if len(each) > 1), next_to)


def parts_of(series: Sequence[Picture]) -> list[list[Picture]]:
    """The sequences of a series, each in order; none where its neighbours look no more alike than others."""
    ordered = sorted(series, key=lambda each: (each.order, each.image_id))
    hashes = np.array([each.phash64 for each in ordered if each.phash64 is not None], np.int64)
    limit = _alike_from(hashes)
    if limit is None:
        return []
    numbers = [each.order[0] if len(each.order) == 1 else place for place, each in enumerate(ordered)]
    steps = np.diff(numbers)
    usual = max(float(np.median(steps)), 1.0)
    cuts = [int(k) + 1 for k in np.flatnonzero(steps > JUMP * usual) if not _look_alike(ordered, int(k) + 1, limit)]
    edges = [0, *cuts, len(ordered)]
    return [ordered[first:last] for first, last in pairwise(edges)]


def _nearest(part: Sequence[Picture], places: Sequence[int]) -> dict[str, str]:
    """The labelled picture that is next to each other one; ``places`` are those of the labelled."""
    known, taken = np.array(places, np.int64), set(places)
    return {
        each.image_id: part[known[np.abs(known - place).argmin()]].image_id
        for place, each in enumerate(part)
        if place not in taken
    }


def _by_series(pictures: Iterable[Picture]) -> dict[tuple[str, str], list[Picture]]:
    found: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    for each in pictures:
        found[each.series].append(each)
    return found


def _series_of(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Pictures whose names count together; those without any sibling by folder."""
    alone: dict[str, list[Picture]] = defaultdict(list)
    for (folder, _), members in _by_series(pictures).items():
        if len(members) > 1:
            yield members
        else:
            alone[folder].append(_by_all_numbers(members[0]))
    yield from alone.values()


def _by_all_numbers(each: Picture) -> Picture:
    name = each.image_id.rpartition("/")[2]
    return replace(each, order=(0, *map(int, _NUMBER.findall(name))))


def _alike_from(hashes: np.ndarray) -> float | None:
    """The usual distance of neighbours in a sequence; None where the series is none."""
    n = len(hashes)
    if n < FEWEST:
        return None
    near = hamming(hashes[:-1], hashes[1:])
    lags = np.unique(np.linspace(n // 2, n - 1, _LAGS).astype(int))
    far = np.concatenate([hamming(hashes[:-lag], hashes[lag:]) for lag in lags.tolist()])
    usual = float(np.median(near))
    is_one = usual <= ALIKE * np.median(far) and mannwhitneyu(near, far, alternative="less").pvalue <= LEVEL
    return usual if is_one else None


def _look_alike(ordered: Sequence[Picture], cut: int, limit: float) -> bool:
    sides = (ordered[max(cut - _SIDE, 0) : cut], ordered[cut : cut + _SIDE])
    before, behind = (np.array([each.phash64 for each in side if each.phash64 is not None], np.int64) for side in sides)
    return bool((hamming(before[:, None], behind[None]) <= limit).any())
