"""Pairs of hashes that differ in few bits, without comparing everything with everything.

If two hashes differ in at most k bits, then of k + 1 bands of bits at least one is equal in both. So hashes are sorted
once per band, candidates with an equal band are looked up, and only these are counted bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tasks.loop.fingerprints import HASH_BITS, hamming

MAX_DISTANCE = 6  # bits of 64 in which a copy may differ
_CHUNK = 65_536
_PAIRS = 1 << 22  # candidate pairs in memory at once


def near_pairs(left: np.ndarray, right: np.ndarray, max_distance: int = MAX_DISTANCE) -> np.ndarray:
    """All pairs of two (n,) and (m,) int64 arrays of hashes that differ in at most ``max_distance`` bits.

    Returns:
        (p, 3) int64: position in ``left``, position in ``right``, distance; sorted, each pair once.
    """
    found = [np.zeros((0, 3), np.int64)]
    for start in range(0, len(left), _CHUNK):
        part = left[start : start + _CHUNK]
        for band in _bands(max_distance + 1):
            for i, j in _equal_in(part, right, *band):
                distance = hamming(part[i], right[j])
                near = distance <= max_distance
                found.append(np.stack([i[near] + start, j[near], distance[near]], axis=1).astype(np.int64))
    return np.unique(np.concatenate(found), axis=0)


def _bands(count: int) -> list[tuple[int, int]]:
    """(shift, mask) of ``count`` bands that share the bits as evenly as possible."""
    edges = np.linspace(0, HASH_BITS, count + 1).round().astype(int).tolist()
    return [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]


def _equal_in(left: np.ndarray, right: np.ndarray, shift: int, mask: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of pairs whose bits of one band are equal, a bounded number at a time."""
    keys = (left.view(np.uint64) >> np.uint64(shift)) & np.uint64(mask)
    others = (right.view(np.uint64) >> np.uint64(shift)) & np.uint64(mask)
    order = np.argsort(others, kind="stable")
    first = np.searchsorted(others[order], keys, "left")
    counts = np.searchsorted(others[order], keys, "right") - first
    total = np.cumsum(counts)
    begin = 0
    while begin < len(left):
        before = total[begin - 1] if begin else 0
        end = max(int(np.searchsorted(total, before + _PAIRS, "right")), begin + 1)
        n = counts[begin:end]
        i = np.repeat(np.arange(begin, end), n)
        place = np.arange(len(i)) - np.repeat(np.cumsum(n) - n, n)
        yield i, order[np.repeat(first[begin:end], n) + place]
        begin = end


class Clusters:
    """Union-find over positions 0 .. n - 1."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, i: int) -> int:
        """The smallest position of the cluster."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        """Make two clusters one."""
        i, j = sorted((self.find(i), self.find(j)))
        self._parent[j] = i
