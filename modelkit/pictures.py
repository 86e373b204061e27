"""Pictures as people hold them, to what models take: (H, W, 3) uint8 RGB."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def as_pixels(picture: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of one picture.

    Args:
        picture: an array (H, W, 3) uint8 RGB; a torch tensor of that shape or (3, H, W), on any device (a tensor that
            could be both is taken as (3, H, W)); or a PIL image of any mode, as it is stored
            (``ImageOps.exif_transpose`` turns photographs upright).

    Raises:
        ValueError: for anything else; says what was given and what is wanted.
    """
    pixels = picture if isinstance(picture, np.ndarray) else _converted(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(
            f"an image must be (H, W, 3) uint8 RGB with H, W >= 1 (a tensor may be (3, H, W)), got {pixels.shape} "
            f"{pixels.dtype}" + ("; numbers from 0 to 1 times 255" if pixels.dtype.kind == "f" else "")
        )
    return pixels


def _converted(picture: Any) -> np.ndarray:
    torch, pil = sys.modules.get("torch"), sys.modules.get("PIL.Image")
    if torch is not None and isinstance(picture, torch.Tensor):
        array: np.ndarray = picture.detach().cpu().numpy()
        return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] == 3 else array
    if pil is not None and isinstance(picture, pil.Image):
        return np.asarray(picture.convert("RGB"))
    raise ValueError(f"an image must be an array, a torch tensor or a PIL image, got {type(picture).__name__}")
