"""Rows and parts for tests, made by the real code."""

from __future__ import annotations

import uuid

import numpy as np
from pycocotools import mask as coco

from modelkit.carriers import Instances
from tasks.media.images import Frame
from tasks.output.encoding import Row, encode_part, failed_row, ok_row
from tasks.output.layout import make_version
from tasks.records import Entry, ItemFailure, Version

SIZE_HW = (40, 60)
CLASS_NAMES = {1: "disc", 2: "square"}
VERSION: Version = make_version(
    "segments", model="demo@abab", model_digest="ab" * 32, parameters={"stride": 1}, schema="segments.v1"
)


def a_frame(
    frame: int = 0, pts_s: float | None = None, size_hw: tuple[int, int] | None = SIZE_HW, notes: tuple[str, ...] = ()
) -> Frame:
    return Frame(frame, pts_s, None, size_hw, notes)


def an_entry(uri: str = "s3://b/a.jpg", media: str = "image") -> Entry:
    return Entry(uri=uri, etag="e1", size_bytes=100, media=media)  # type: ignore[arg-type]


def squares(n: int, *, masks: bool = True, tracks: bool = False) -> Instances:
    """n squares of growing size, with their real masks."""
    boxes = np.array([[2 * i, i, 2 * i + 5 + i, i + 4] for i in range(n)], np.float32).reshape(n, 4)
    rles = []
    for x0, y0, x1, y1 in boxes.astype(int):
        canvas = np.zeros(SIZE_HW, np.uint8, order="F")
        canvas[y0:y1, x0:x1] = 1
        rles.append(coco.encode(canvas)["counts"])
    return Instances(
        size_hw=SIZE_HW,
        boxes_xyxy=boxes,
        scores=np.linspace(0.9, 0.5, n, dtype=np.float32),
        labels=np.array([1 + i % 3 for i in range(n)], np.int32),
        rles=rles if masks else None,
        is_thing=np.array([i % 2 == 0 for i in range(n)], bool),
        track_ids=np.arange(100, 100 + n) if tracks else None,
    )


def some_rows() -> list[Row]:
    """Found, found nothing, failed and quarantined; not in order."""
    failure = ItemFailure("decode", "TruncatedImage", "the image data end too early")
    unknown = a_frame(size_hw=None)
    return [
        ok_row(an_entry("s3://b/z.jpg"), a_frame(notes=("grey converted to RGB",)), squares(3)),
        failed_row(an_entry("s3://b/c.jpg"), unknown, failure),
        ok_row(an_entry("s3://b/a.jpg"), a_frame(), squares(0)),
        ok_row(an_entry("s3://b/m.mp4", "video"), a_frame(10, 0.4), squares(2, tracks=True)),
        ok_row(an_entry("s3://b/m.mp4", "video"), a_frame(9, 0.36), squares(1, masks=False)),
        failed_row(
            an_entry("s3://b/q.jpg"), unknown, ItemFailure("decode", "Killed", "killed its worker"), "quarantined"
        ),
    ]


def a_part(shard_id: str = "aa11", attempt_id: str | None = None, rows: list[Row] | None = None) -> tuple[bytes, str]:
    """The bytes of a part and the attempt id in it."""
    attempt_id = attempt_id or uuid.uuid4().hex
    data = encode_part(
        rows or some_rows(),
        version=VERSION,
        plan=3,
        shard_id=shard_id,
        attempt_id=attempt_id,
        run_id="run-1",
        stage_seconds={"decode": 1.5, "infer": 2.25},
        class_names=CLASS_NAMES,
    )
    return data, attempt_id
