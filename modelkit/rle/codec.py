"""COCO run lengths as strings, counts and edges, for many masks at once.

Three forms of one binary mask on an (H, W) canvas, all in column-major order (down the first column, then the next):

*counts*  lengths of alternating runs, background first (so the first may be 0); they sum to H * W;
*edges*   the strictly increasing positions at which the mask changes value: the running sum of counts without the last;
*bytes*   COCO's compressed counts: from the fourth count on, the difference to the count two before; each number in
          groups of 5 bits, low group first, bit 5 = "more follows", the highest group's bit 4 = sign, plus 48 (ASCII).

Many masks travel as one flat array plus the number of values of each ("ragged").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MAX_GROUPS = 7  # 7 * 5 bits hold every signed difference of 32-bit counts


class RleError(ValueError):
    """Raised for bytes that are no COCO run lengths, or that do not fit the canvas they are said to cover."""


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each ragged part begins: (n,) int64 from (n,) lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])[:-1]


def _places(lengths: np.ndarray) -> np.ndarray:
    """Position of each value within its own part: 0, 1, ... for every part."""
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts_of(lengths), lengths)


def counts_from_edges(edges: np.ndarray, lengths: np.ndarray, area: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged counts from ragged edges.

    Args:
        edges: (sum of lengths,) int64, each part strictly increasing within [0, area].
        lengths: (n,) int64, edges per mask.
        area: H * W, the same for all.

    Returns:
        (counts, lengths): flat int64 counts and how many belong to each mask.
    """
    lengths = np.asarray(lengths, np.int64)
    part = np.repeat(np.arange(len(lengths)), lengths)
    inside = edges < area  # an edge at the very end opens no run
    if not inside.all():
        edges, part = edges[inside], part[inside]
        lengths = np.bincount(part, minlength=len(lengths)).astype(np.int64)
    slots = np.arange(len(edges)) + part  # each mask's list grows by one
    begin = np.zeros(len(edges) + len(lengths), np.int64)
    end = np.full(len(edges) + len(lengths), area, np.int64)
    begin[slots + 1] = edges
    end[slots] = edges
    return end - begin, lengths + 1


def compress_ragged(counts: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """COCO's compressed form of many masks; the inverse of :func:`counts_ragged`."""
    counts = np.asarray(counts, np.int64)
    lengths = np.asarray(lengths, np.int64)
    if len(counts) == 0:
        return [b""] * len(lengths)
    values = _differences(counts, lengths)
    # n groups hold -2**(5n-1) ... 2**(5n-1)-1; negative x needs as many as ~x
    magnitude = values ^ (values >> 63)
    groups = np.ones(len(values), np.int64)
    longer = np.flatnonzero(magnitude >= 1 << 4)
    while len(longer):
        longer = longer[magnitude[longer] >= 1 << (5 * groups[longer[0]] - 1)]
        groups[longer] += 1
    total = np.cumsum(groups)
    characters = np.empty(int(total[-1]), np.uint8)
    first = total - groups
    for group in range(int(groups.max())):
        more = groups > group + 1
        characters[first + group] = (values & 0x1F | more.astype(np.int64) << 5) + 48
        if not more.all():
            values, groups, first = values[more] >> 5, groups[more], first[more]
        else:
            values = values >> 5
    text = characters.tobytes()
    stops = np.concatenate([np.zeros(1, np.int64), total])[np.cumsum(lengths)].tolist()
    return [text[start:stop] for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def _differences(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Every count minus the count two before, from the fourth of each part on."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    starts = starts_of(lengths)
    for place in range(3):
        alone = (starts + place)[lengths > place]
        values[alone] = counts[alone]
    return values


def counts_ragged(rles: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Flat int64 counts of many masks and how many belong to each.

    Raises:
        RleError: when a string holds other characters than COCO's or ends within a number.
    """
    sizes = np.fromiter(map(len, rles), np.int64, len(rles))
    raw = np.frombuffer(b"".join(rles), np.uint8)
    if len(raw) == 0:
        return np.zeros(0, np.int64), np.zeros(len(rles), np.int64)
    characters = raw.astype(np.int64) - 48
    last = (characters & 0x20) == 0
    _check_characters(raw, last, sizes)
    stops = np.flatnonzero(last)
    groups = np.diff(stops, prepend=-1)
    if groups.max() > _MAX_GROUPS:
        raise RleError(f"a run length of {int(groups.max())} groups of 5 bits is longer than any mask")
    shift = 5 * _places(groups)
    values = np.add.reduceat((characters & 0x1F) << shift, np.concatenate([[0], stops[:-1] + 1]))
    values -= ((characters[stops] & 0x10) != 0).astype(np.int64) << (5 * groups)
    lengths = np.diff(np.concatenate([[0], np.cumsum(last)])[np.cumsum(sizes)], prepend=0)
    return _undo_differences(values, lengths), lengths


def _check_characters(raw: np.ndarray, last: np.ndarray, sizes: np.ndarray) -> None:
    ends = np.cumsum(sizes)[sizes > 0] - 1
    if raw.min() < 48 or raw.max() > 111 or not last[ends].all():
        raise RleError("not compressed COCO run lengths: foreign characters, or cut off within a number")


def _undo_differences(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sums over every second value of each part, from the second value on (the first stands alone)."""
    place = _places(lengths)
    counts = values.copy()
    for parity in (1, 0):
        chain = np.flatnonzero((place % 2 == parity) & (place > 0))
        if len(chain) == 0:
            continue
        sums = np.cumsum(values[chain])
        begins = place[chain] == 2 - parity
        before = (sums - values[chain])[begins]  # what the parts before contributed
        counts[chain] = sums - np.repeat(before, np.diff(np.append(np.flatnonzero(begins), len(chain))))
    return counts


def compress(counts: np.ndarray | Sequence[int]) -> bytes:
    """The compressed form of one mask's counts (alternating run lengths, background first)."""
    flat = np.asarray(counts, np.int64)
    return compress_ragged(flat, np.array([len(flat)]))[0]


def foreground_runs(rles: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Non-empty foreground runs of all masks: (mask, start, end) per run and the canvas' pixels per mask."""
    counts, lengths = counts_ragged(rles)
    first = starts_of(lengths)
    part = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(counts)
    stop_of = np.concatenate([np.zeros(1, np.int64), ends])
    canvas = stop_of[first + lengths] - stop_of[first]
    ends = ends - np.repeat(stop_of[first], lengths)
    solid = ((np.arange(len(counts)) - first[part]) % 2 == 1) & (counts > 0)
    return part[solid], ends[solid] - counts[solid], ends[solid], canvas


def counts_of(rle: bytes) -> np.ndarray:
    """The (k,) int64 run lengths of one mask, background first. Raises RleError for bytes that are none."""
    return counts_ragged([rle])[0]


def areas(rles: Sequence[bytes]) -> np.ndarray:
    """(n,) int64 foreground pixels of n masks."""
    counts, lengths = counts_ragged(rles)
    part = np.repeat(np.arange(len(lengths)), lengths)
    foreground = _places(lengths) % 2 == 1
    sums = np.zeros(len(lengths), np.int64)
    np.add.at(sums, part[foreground], counts[foreground])
    return sums
