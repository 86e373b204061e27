"""Small labelled pictures for tests of label sets, splits and duplicates."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from infra.store import open_store, split_uri
from modelkit import ClassInfo, rle
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.stored import write_stored

CLASSES = (ClassInfo(1, "disc"), ClassInfo(2, "box"), ClassInfo(3, "star"))
SIZE_HW = (48, 64)


def picture(seed: int, size_hw: tuple[int, int] = (96, 128)) -> np.ndarray:
    """(H, W, 3) uint8 with structure at large and small scales; another seed is another picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size_hw[::-1], Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)  # type: ignore[arg-type]
    return sink.getvalue()


def write(folder: Path, name: str, pixels: np.ndarray, kind: str = "PNG", **options: object) -> str:
    """Save a picture; returns its uri."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(pixels, kind, **options))
    return str(path)


def rectangle(x0: int, y0: int, x1: int, y1: int, size_hw: tuple[int, int] = SIZE_HW) -> bytes:
    """Run lengths of a filled rectangle; right and bottom are exclusive."""
    canvas = np.zeros(size_hw, bool)
    canvas[y0:y1, x0:x1] = True
    return rle.encode(canvas)


def label_set(groups: Sequence[tuple[str, int, Sequence[int]]]) -> LabelSet:
    """Groups of (name, number of items, classes on each item)."""
    items = [
        LabelledItem(
            uri=f"s3://b/{name}/{k:03d}.png",
            size_hw=SIZE_HW,
            objects=tuple(LabelledObject(label, rectangle(4 * i, 2, 4 * i + 4, 8)) for i, label in enumerate(classes)),
            group_id=name,
        )
        for name, count, classes in groups
        for k in range(count)
    ]
    return make_label_set(items, CLASSES, origin_format="test")


def store_label_set(uri: str, labels: LabelSet) -> None:
    """A label set as one Parquet object."""
    root, key = split_uri(uri)
    write_stored(labels, open_store(root), key)
