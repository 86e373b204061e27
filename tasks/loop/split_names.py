"""The splits by name; light, because the command line reads it."""

from __future__ import annotations

TRAIN, CALIBRATION, GATE, TEST, UNLABELLED = "train", "calibration", "gate", "test", "unlabelled"
SPLITS = (TRAIN, CALIBRATION, GATE, TEST, UNLABELLED)
"""A labelled item is unlabelled where its labels are taken away, for experiments that know the hidden truth."""

_LETTERS = {"L": TRAIN, "C": CALIBRATION, "G": GATE, "T": TEST, "U": UNLABELLED}


def split_name(text: str) -> str:
    """The name of a split by its letter in formulas, old outputs and old commands; any other text as it is."""
    return _LETTERS.get(text, text)
