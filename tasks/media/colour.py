"""Stored colour profiles (ICC) -> sRGB, by LittleCMS: relative colorimetric with black point compensation.

A profile that moves no colour by more than two steps of 255 is sRGB under another name and costs nothing.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_MODES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L", "LA"), "CMYK": ("CMYK",), "Lab ": ("LAB",)}
_MAX_CACHED = 32
_SAME = 2  # of 255: rounding, and the curves that tools write for sRGB
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE
_cache = threading.local()  # a transform is used by one thread at a time


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """The image in sRGB (RGB or RGBA) where its profile changes colours, else the image itself; and a note.

    Args:
        image: RGB, RGBA, L, LA, CMYK or LAB.
        profile: the file's ICC profile; one that cannot be read or is for other pixels is left aside, with a note.
    """
    colours = image.convert(image.mode[:-1]) if image.mode in ("RGBA", "LA") else image
    try:
        transform, name = _transform(profile, colours.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        why = "is for other pixels" if isinstance(error, TypeError) else "cannot be read"
        return image, f"colour profile left aside: it {why}"
    if transform is None:
        return image, None
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None
    if colours is not image:
        converted.putalpha(image.getchannel("A"))
    return converted, f"colours converted from the profile {name!r} to sRGB"


def is_srgb(profile: bytes, mode: str) -> bool:
    """Whether a profile moves no colour of an image in a mode of Pillow's."""
    try:
        return _transform(profile, mode)[0] is None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return False


def _transform(profile: bytes, mode: str) -> tuple[Any, str]:
    """The transform to sRGB, None where it would do nothing; and the profile's name. Kept per thread."""
    kept: OrderedDict[tuple[bytes, str], tuple[Any, str]] = _cache.__dict__.setdefault("transforms", OrderedDict())
    key = (profile, mode)
    if key not in kept:
        kept[key] = _built(profile, mode)
        if len(kept) > _MAX_CACHED:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _built(profile: bytes, mode: str) -> tuple[Any, str]:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if mode not in _MODES.get(source.profile.xcolor_space, ()):
        raise TypeError(f"a profile of {source.profile.xcolor_space} for pixels of {mode}")
    name = " ".join((source.profile.profile_description or "without a name").split())[:60]
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent, _FLAGS)
    return (None if _changes_nothing(transform, mode) else transform), name


def _changes_nothing(transform: Any, mode: str) -> bool:
    """Whether a grid over all colours comes out as it went in."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid: np.ndarray
    if mode == "RGB":
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    elif mode == "L":
        grid = np.arange(256, dtype=np.uint8).reshape(16, 16)
    else:
        return False
    shown = ImageCms.applyTransform(Image.fromarray(grid), transform)
    expected = grid if mode == "RGB" else np.repeat(grid[:, :, None], 3, axis=2)
    return int(np.abs(np.asarray(shown).astype(int) - expected).max()) <= _SAME
