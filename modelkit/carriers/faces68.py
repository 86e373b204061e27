"""The 68 points of faces of iBUG's 300-W (Sagonas et al. 2013), which most sets of faces with 68 points share.

Files often number these points instead of naming them; ``is_ibug`` tells them by that.
"""

from __future__ import annotations

from collections.abc import Sequence

COUNT = 68
OUTER_EYE_CORNERS = (36, 45)
"""Ends of the inter-ocular distance, the usual normaliser of errors."""

_JAW = tuple((k, 16 - k) for k in range(8))
_BROWS = tuple((17 + k, 26 - k) for k in range(5))
_NOSE = ((31, 35), (32, 34))
_EYES = ((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46))
_MOUTH = ((48, 54), (49, 53), (50, 52), (59, 55), (58, 56), (60, 64), (61, 63), (67, 65))
FLIP_PAIRS = (*_JAW, *_BROWS, *_NOSE, *_EYES, *_MOUTH)
"""Points that change places in a mirror."""


def is_ibug(names: Sequence[str]) -> bool:
    """Whether these are 68 points that have numbers instead of names: p00, point 1, 1."""
    stems = {name.rstrip("0123456789").strip(" _-").lower() for name in names}
    return len(names) == COUNT and len(stems) == 1 and len(stems.pop()) <= len("keypoint")
