"""Small datasets for the tests of whole jobs."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from infra.store import Store
from modelkit.digitscape import Digitscape

SIZE_HW = (96, 128)


def scene_jpeg(index: int) -> bytes:
    """One digitscape test scene."""
    buffer = io.BytesIO()
    Image.fromarray(Digitscape("test", size_hw=SIZE_HW, seed=3).scene(index).image_rgb).save(buffer, "JPEG")
    return buffer.getvalue()


def write_scenes(folder: Path, count: int) -> list[Path]:
    """``scene 0.jpg``, ...; those that exist are left as they are (the same etag)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scene {index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(scene_jpeg(index))
    return paths


def put_scenes(store: Store, count: int) -> None:
    """The same into a store."""
    for index in range(count):
        store.put(f"scene {index}.jpg", scene_jpeg(index))
