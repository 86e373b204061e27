"""What was found in an item, drawn upon its picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.report.drawing import DrawnObject, draw_objects

_LONG_SIDE_PX = 640


def overlay(
    image_rgb_hwc_u8: np.ndarray, row: Mapping[str, Any], *, in_strip: bool = False, long_side_px: int = _LONG_SIDE_PX
) -> np.ndarray:
    """An (H, W, 3) uint8 picture with the instances of its row.

    Args:
        image_rgb_hwc_u8: (H, W, 3) uint8.
        row: of ``items``.
        in_strip: side by side with its neighbours in time: there scores would only flicker.
        long_side_px: of the result; small pictures are enlarged eightfold at most.
    """
    return draw_objects(image_rgb_hwc_u8, _drawn(row, scores=not in_strip), long_side_px=long_side_px)


def _drawn(row: Mapping[str, Any], *, scores: bool) -> list[DrawnObject]:
    return [
        DrawnObject(
            name=row["names"][index],
            label=label,
            score=row["scores"][index] if scores else None,
            box_xyxy=tuple(row["boxes_xyxy"][index]),
            rle=row["rles"][index] if row["rles"] is not None else None,
            track_id=row["track_ids"][index] if row["track_ids"] is not None else None,
            is_thing=row["is_thing"][index],
        )
        for index, label in enumerate(row["labels"] or ())
    ]
