"""Committed output of ``landmarks`` without an engine: people of three points whose places are known."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from infra.store import Store
from modelkit.carriers.landmarks import KeypointSet, Landmarks, Surface
from tasks.media.decoding import Frame
from tasks.output.commit import commit_shard
from tasks.output.encoding import Row, encode_part, failed_row, ok_row
from tasks.output.layout import make_version, plan_key
from tasks.records import Entry, ItemFailure
from tests.tasks.output.fake_output import Item, plan_bytes

SIZE_HW = (48, 64)
POINTS = KeypointSet(
    ("nose", "left_hand", "right_hand"),
    flip_pairs=((1, 2),),
    skeleton=((0, 1), (0, 2)),
    sigmas=(0.05, 0.1, 0.1),
)
VERSION = make_version(
    "landmarks", model="fake@abababababab", model_digest="ab" * 32, parameters={}, schema="landmarks.v1"
)
ABSENT = (np.nan, np.nan)
Found = Landmarks | None
Place = tuple[str, int]


def people(*places: tuple[tuple[float, float], ...], tracks: bool = False, surfaces: bool = False) -> Landmarks:
    """Objects of three points each; the box is 20 pixels wide and high around the first. The second point is hidden."""
    xy = np.array(places, np.float32).reshape(-1, 3, 2)
    n, present = len(xy), np.isfinite(xy).all(-1)
    first = xy[:, 0]
    return Landmarks(
        size_hw=SIZE_HW,
        boxes_xyxy=np.concatenate([first - 10, first + 10], 1),
        scores=np.round(0.9 - 0.2 * np.arange(n), 3).astype(np.float32),
        labels=np.ones(n, np.int32),
        keypoints_xy=xy,
        keypoint_scores=(present * np.array([0.8, 0.6, 0.2])).astype(np.float32),
        visibility=(present * np.array([2, 1, 2])).astype(np.uint8),
        surfaces=[surface_at(int(x), int(y)) for x, y in first] if surfaces else None,
        track_ids=np.arange(n) + 5 if tracks else None,
        keypoint_set=POINTS,
    )


def surface_at(x: int, y: int) -> Surface:
    """Two parts side by side, U rising to the right and V downwards."""
    parts = np.repeat(np.array([[0, 1, 1, 2, 2, 0]], np.uint8), 4, axis=0)
    u, v = np.meshgrid(np.arange(6) * 40, np.arange(4) * 60)
    uv = np.stack([u, v]).astype(np.uint8) * (parts > 0)
    return Surface((x, y), parts, uv)


def commit(store: Store, found: Mapping[str | Place, Found]) -> None:
    """One plan of one shard: by uri an image, by (uri, frame) a frame of a video; None is an item that failed."""
    items, rows = [], []
    for place, one in found.items():
        uri, frame = place if isinstance(place, tuple) else (place, 0)
        pts_s = frame / 10 if isinstance(place, tuple) else None
        items.append(Item(uri, frame=frame, pts_s=pts_s, status="failed" if one is None else "ok", size_hw=SIZE_HW))
        rows.append(_row(items[-1], one))
    shard = hashlib.sha256(repr(items).encode()).hexdigest()[:16]
    plan = plan_bytes(VERSION, 1, datetime(2026, 11, 30, tzinfo=UTC), [shard], [items])
    store.put_if_absent(plan_key(VERSION, 1), plan)
    attempt = uuid.uuid4().hex
    part = encode_part(
        rows, version=VERSION, plan=1, shard_id=shard, attempt_id=attempt, run_id="run-1",
        class_names={1: "person", 2: "dog"},
    )  # fmt: skip
    assert commit_shard(store, VERSION, shard, part, attempt) == "committed"


def _row(item: Item, one: Found) -> Row:
    entry = Entry(item.uri, item.etag, 1000, "image" if item.pts_s is None else "video")
    frame = Frame(item.frame, item.pts_s, None, None if one is None else SIZE_HW)
    if one is None:
        return failed_row(entry, frame, ItemFailure("decode", "Unreadable", "cannot identify image file"))
    return ok_row(entry, frame, one)
