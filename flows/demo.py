"""The demo: embedded data in, an answered query and a report out, through the same code as any job.

It puts scenes, a short video and a truncated file into a bucket of the local S3 server, and segments the bucket. Run
twice, it finds nothing new.
"""

from __future__ import annotations

from pathlib import Path

from infra.errors import ObjectGone
from infra.store import open_store
from infra.telling import tell
from tasks.media.demo_scenes import demo_files

BUCKET, MODEL = "visionmill-demo", "digitscape_mask_rcnn"
SOURCE, OUTPUT = f"s3://{BUCKET}/scenes", f"s3://{BUCKET}/results"
QUERY = """
SELECT name, count(*) AS instances, round(avg(score), 3) AS mean_score, round(avg(mask_area(rle))) AS mean_area_px
FROM instances WHERE score >= 0.5 GROUP BY name ORDER BY name
""".strip()


def compose_demo_data(num_images: int, num_frames: int) -> None:
    """Write the files below :data:`SOURCE`; objects that are there already are kept."""
    tell("composing scenes and a video")
    store = open_store(SOURCE)
    for key, make in demo_files(num_images, num_frames):
        try:
            store.info(key)
        except ObjectGone:
            store.put(key, make())


def copy_report(folder: Path) -> Path:
    """Copy the report (page and pictures) from the bucket into ``folder``, to be opened without credentials."""
    store = open_store(OUTPUT)
    for entry in store.list("report/"):
        target = folder / entry.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.get(entry.key))
    return folder / "report" / "index.html"
