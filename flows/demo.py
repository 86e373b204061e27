"""The demo: embedded data in, an answered query and a report out, through the same code as any job.

It puts scenes, a short video and a truncated file into a bucket of the local S3 server, and runs a job of each product
over the bucket. Run twice, it finds nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ObjectGone
from infra.store import open_store
from infra.telling import tell
from tasks.media.demo_scenes import demo_files
from tasks.product import Product, default_product, products

BUCKET = "visionmill-demo"
SOURCE = f"s3://{BUCKET}/scenes"


@dataclass(frozen=True, slots=True)
class DemoJob:
    """One job of the demo, and a question to what it writes.

    Args:
        product: what it makes.
        output: where its rows go.
        options: of its command, by parameter.
        query: SQL that is asked afterwards.
        page: folder of its report, below the one that the demo is given.
    """

    product: Product
    output: str
    options: Mapping[str, str]
    query: str
    page: str


def demo_jobs() -> list[DemoJob]:
    """Of the products that have something to show: the default one, whose output the others may use, then these."""
    first = default_product()
    ordered = [first, *(each for name, each in sorted(products().items()) if each is not first)]
    outputs = {each.name: f"s3://{BUCKET}/{each.name}" for each in ordered}
    return [
        DemoJob(
            each,
            outputs[each.name],
            {name: value.format(default=outputs[first.name]) for name, value in each.demo.options.items()},
            each.demo.query,
            page="" if each is first else each.name,
        )
        for each in ordered
        if each.demo is not None
    ]


def compose_demo_data(num_images: int, num_frames: int) -> None:
    """Write the files below :data:`SOURCE`; objects that are there already are kept."""
    tell("composing scenes and a video")
    store = open_store(SOURCE)
    for key, make in demo_files(num_images, num_frames):
        try:
            store.info(key)
        except ObjectGone:
            store.put(key, make())


def copy_report(job: DemoJob, folder: Path) -> Path:
    """Copy the report (page and pictures) of a job from the bucket, to be opened without credentials; the page."""
    store = open_store(job.output)
    for entry in store.list("report/"):
        target = folder / job.page / entry.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.get(entry.key))
    return folder / job.page / "report" / "index.html"
