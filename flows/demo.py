"""The demo: embedded data in, an answered query and a report out, through the same code as any job.

It composes digitscape scenes (test digits and photographs, which the shipped model never saw) and a short video into a
bucket of the local S3 server, adds one truncated file, and segments the bucket. Run twice, it finds nothing new.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from infra.errors import ObjectGone
from infra.store import Store, open_store
from modelkit.digitscape import Digitscape, Scene

BUCKET = "visionmill-demo"
SOURCE, OUTPUT = f"s3://{BUCKET}/scenes", f"s3://{BUCKET}/results"
SCENE_SIZE_HW = (192, 256)
SEED = 7
FRAMES_PER_SECOND = 12
QUERY = """
SELECT name, count(*) AS instances, round(avg(score), 3) AS mean_score, round(avg(mask_area(rle))) AS mean_area_px
FROM instances WHERE score >= 0.5 GROUP BY name ORDER BY name
""".strip()


@dataclass(frozen=True, slots=True)
class DemoData:
    """What was put into the bucket."""

    source: str
    num_images: int
    num_frames: int


def compose_demo_data(num_images: int, num_frames: int) -> DemoData:
    """Write the scenes, a video and a broken file below :data:`SOURCE`; objects that are there already are kept."""
    store = open_store(SOURCE)
    scenes = Digitscape("test", size_hw=SCENE_SIZE_HW, seed=SEED)
    for index in range(num_images):
        _create(store, f"scene {index:03d}.jpg", lambda index=index: _jpeg(scenes.scene(index)))  # type: ignore[misc]
    _create(store, "clips/crossing digits.mp4", lambda: _mp4(scenes.clip(0, num_frames)))
    _create(store, "truncated.jpg", lambda: _jpeg(scenes.scene(0))[:2000])
    return DemoData(SOURCE, num_images + 1, num_frames)


def _create(store: Store, key: str, make) -> None:  # type: ignore[no-untyped-def]
    try:
        store.info(key)
    except ObjectGone:
        store.put(key, make())


def _jpeg(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(scene.image_rgb).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _mp4(frames: list[Scene]) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "18", "g": "12"})
        stream.height, stream.width = SCENE_SIZE_HW
        stream.pix_fmt = "yuv420p"
        for scene in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(scene.image_rgb), "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def copy_report(folder: Path) -> Path:
    """Copy the report (page and pictures) from the bucket into ``folder``, to be opened without credentials."""
    store = open_store(OUTPUT)
    for entry in store.list("report/"):
        target = folder / entry.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.get(entry.key))
    return folder / "report" / "index.html"
