"""Digitscape: scenes composed from real handwritten digits over real photographs and textures, with exact truth."""

from __future__ import annotations

from modelkit.digitscape.composer import STYLES, Digitscape, SceneStyle
from modelkit.digitscape.errors import DigitscapeError
from modelkit.digitscape.glyphs import LANDMARK_NAMES
from modelkit.digitscape.scene import Scene
from modelkit.digitscape.sources import (
    CLASS_NAMES,
    FIRST_STUFF_ID,
    SPLITS,
    STUFF_NAMES,
    Split,
    load_digits,
    picture_names,
)
from modelkit.digitscape.writing import write_dataset, write_label_set, write_panoptic, write_video

__all__ = [
    "CLASS_NAMES",
    "FIRST_STUFF_ID",
    "LANDMARK_NAMES",
    "SPLITS",
    "STUFF_NAMES",
    "STYLES",
    "Digitscape",
    "DigitscapeError",
    "Scene",
    "SceneStyle",
    "Split",
    "load_digits",
    "picture_names",
    "write_dataset",
    "write_label_set",
    "write_panoptic",
    "write_video",
]
