"""Labelled items as pictures of a page, with something drawn upon them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from infra.errors import VisionmillError
from tasks.media.decoding import EntryReader, labelled_pixels
from tasks.report.pictures import data_uri
from tasks.report.report_samples import Sample

Draw = Callable[[np.ndarray], np.ndarray]
"""An (H, W, 3) uint8 picture -> one with something drawn upon it, of any size."""

_GAP_PX = 8


class LabelledSamples:
    """Reads items and draws upon them; what cannot be read gives a placeholder that says why.

    Args:
        deadline: of ``time.monotonic``; after it nothing is read any more.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline, self._reader = deadline, EntryReader()

    def sample(self, uri: str, frame: int | None, size_hw: tuple[int, int], summary: str, draw: Draw) -> Sample:
        """An item of the size that its labels are for; ``frame``: of a video, None for an image."""
        problem, picture, width, height = "", None, 0, 0
        if time.monotonic() > self._deadline:
            problem = "not read: the report had run out of time"
        else:
            try:
                drawn = draw(labelled_pixels(uri, frame, size_hw, self._reader))
            except VisionmillError as error:
                problem = str(error)
            else:
                height, width = drawn.shape[:2]
                picture = data_uri(drawn)
        return Sample(
            uri=uri,
            frame=frame or 0,
            pts_s=None,
            status="ok",
            reason="",
            summary=summary,
            picture=picture,
            width_px=width,
            height_px=height,
            problem=problem,
        )


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two (H, W, 3) uint8 pictures of one height with a white gap between them."""
    return np.concatenate([left, np.full((left.shape[0], _GAP_PX, 3), 255, np.uint8), right], axis=1)
