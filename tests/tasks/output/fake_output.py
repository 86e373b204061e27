"""Committed output without an engine: discs and boxes, encoded, planned and committed like the real ones."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infra.store import Store, open_store
from modelkit import rle
from modelkit.carriers import Instances
from tasks.ingest.sharding import PLAN_SCHEMA
from tasks.media.decoding import Frame
from tasks.output.commit import commit_shard
from tasks.output.encoding import PartFacts, Row, encode_part, failed_row, ok_row, rows_to_table
from tasks.output.layout import make_version, plan_key, version_to_json
from tasks.output.schema import schema_named
from tasks.output.versions import PLAN_FOOTER_KEY, VERSION_FOOTER_KEY
from tasks.records import Entry, ItemFailure, Media, Status, Version

CLASSES = ("disc", "box", "sky", "moon")  # of which moon is never found
START = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Item:
    """One row to be."""

    uri: str
    etag: str = "e1"
    frame: int = 0
    pts_s: float | None = None
    status: Status = "ok"
    error_type: str | None = None
    error: str | None = None
    size_hw: tuple[int, int] = (48, 64)
    num_instances: int = 3
    track: bool = False
    masks: bool = True
    scene: str | None = None  # what the shapes are drawn from; None: the uri
    stability: float | None = None  # of every mask, in an output that is measured


@dataclass
class FakeOutput:
    """An output being filled; every :meth:`commit` is one plan of as many shards as asked for."""

    store: Store
    parameters: dict[str, object] = field(default_factory=lambda: {"score_threshold": 0.5})
    model_digest: str = "ab" * 32
    moment: datetime = START
    num_plans: int = 0
    run_id: str = "run-1"
    measured: bool = False

    @property
    def version(self) -> Version:
        return make_version(
            "segments",
            model=f"fake@{self.model_digest[:12]}",
            model_digest=self.model_digest,
            parameters=self.parameters,
            schema="segments_measured.v1" if self.measured else "segments.v1",
        )

    def commit(self, items: Sequence[Item], *, num_shards: int = 1, leave_open: int = 0) -> list[str]:
        """Plan items, commit all shards but the last ``leave_open``; returns the shard ids of the plan."""
        self.num_plans += 1
        parts = divide(items, num_shards)
        ids = [self._shard_id(index, part) for index, part in enumerate(parts)]
        self.moment += timedelta(seconds=1)
        self.store.put_if_absent(
            plan_key(self.version, self.num_plans), plan_bytes(self.version, self.num_plans, self.moment, ids, parts)
        )
        for shard_id, part in list(zip(ids, parts, strict=True))[: num_shards - leave_open]:
            self.commit_shard(shard_id, part)
        return ids

    def commit_shard(self, shard_id: str, items: Sequence[Item]) -> None:
        """One part, as a worker would make it."""
        self.moment += timedelta(seconds=1)
        attempt_id = uuid.uuid4().hex
        data = encode_part(
            rows(items, self.moment),
            version=self.version,
            plan=self.num_plans,
            shard_id=shard_id,
            attempt_id=attempt_id,
            run_id=self.run_id,
            stage_seconds={"fetch": 0.5, "decode": 1.0, "infer": 4.0, "encode": 0.25},
            class_names=dict(enumerate(CLASSES)),
        )
        assert commit_shard(self.store, self.version, shard_id, data, attempt_id) == "committed"

    def new_version(self, **parameters: object) -> FakeOutput:
        """Another version in the same place, from now on."""
        return replace(
            self, parameters=self.parameters | parameters, moment=self.moment + timedelta(hours=1), num_plans=0
        )

    def _shard_id(self, index: int, items: Sequence[Item]) -> str:
        return hashlib.sha256(repr((self.num_plans, index, items)).encode()).hexdigest()[:16]


def divide(items: Sequence[Item], num_shards: int) -> list[list[Item]]:
    """Neighbours in the order of a plan stay together, in shards of about even size."""
    ordered = sorted(items, key=_name)
    cuts = [len(ordered) * index // num_shards for index in range(num_shards + 1)]
    return [ordered[start:end] for start, end in pairwise(cuts)]


def masks_of(item: Item) -> list[np.ndarray]:
    """The (H, W) bool masks of an item: discs and boxes at places drawn from its name, and sky where they leave it."""
    height, width = item.size_hw
    rng = np.random.default_rng(
        int(hashlib.sha256(f"{item.scene or item.uri} {item.frame}".encode()).hexdigest()[:8], 16)
    )
    y, x = np.mgrid[:height, :width]
    masks = []
    for index in range(item.num_instances):
        radius = rng.uniform(4, min(height, width) / 3)
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        if index % 3 == 0:
            masks.append((y - cy) ** 2 + (x - cx) ** 2 <= radius**2)
        elif index % 3 == 1:
            masks.append((abs(y - cy) <= radius) & (abs(x - cx) <= radius))
        else:
            masks.append(y < radius)
    taken = np.zeros((height, width), bool)
    for index in sorted(range(len(masks)), key=lambda index: index % 3 == 2):
        if index % 3 == 2:  # stuff: shares its pixels with nothing
            masks[index] &= ~taken
        taken |= masks[index]
    return masks


def rows(items: Sequence[Item], moment: datetime) -> list[Row]:
    """The rows of items, in their order."""
    return [replace(_row(item), processed_at=moment) for item in items]


def _row(item: Item) -> Row:
    media: Media = "image" if item.pts_s is None else "video"
    entry = Entry(item.uri, item.etag, 1000, media)
    if item.status != "ok":
        failure = ItemFailure("decode", item.error_type or "Unreadable", item.error or "cannot identify image file")
        return failed_row(entry, Frame(item.frame, item.pts_s, None, None), failure, status=item.status)
    return ok_row(entry, Frame(item.frame, item.pts_s, None, item.size_hw), found_in(item))


def found_in(item: Item) -> Instances:
    """What a perfect model finds: the masks of :func:`masks_of`, the surest first."""
    masks = masks_of(item)
    labels = np.arange(len(masks), dtype=np.int32) % 3
    return Instances(
        size_hw=item.size_hw,
        boxes_xyxy=np.array([rle.bbox(rle.encode(mask), item.size_hw) for mask in masks], np.float32).reshape(-1, 4),
        scores=np.round(0.95 - 0.1 * np.arange(len(masks), dtype=np.float32), 3),
        labels=labels,
        rles=[rle.encode(mask) for mask in masks] if item.masks else None,
        is_thing=np.array([CLASSES[label] != "sky" for label in labels], bool),
        track_ids=np.arange(1, len(masks) + 1) if item.track else None,
        qualities=None if item.stability is None else {"q_stability": np.full(len(masks), item.stability, np.float32)},
    )


def heavy_part(version: Version, shard_id: str, num_rows: int, mask_bytes: int, row_group_size: int) -> bytes:
    """A part of many row groups with 4 incompressible strings in place of masks: only for counting bytes."""
    origin = PartFacts(version, 1, shard_id, "an-attempt", "run-1", class_names=dict(enumerate(CLASSES)))
    one = rows_to_table(rows([Item("x", num_instances=4)], START), origin).to_pylist()[0]
    noise = np.random.default_rng(0)
    changed = [{"uri": f"{n:05d}", "rles": [noise.bytes(mask_bytes) for _ in range(4)]} for n in range(num_rows)]
    table = pa.Table.from_pylist([one | each for each in changed], schema=schema_named("segments", "segments.v1"))
    buffer = io.BytesIO()
    categories = ["media", "status", "names.list.element", "labels.list.element"]
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size, use_dictionary=categories)
    return buffer.getvalue()


def plan_bytes(
    version: Version, number: int, moment: datetime, shard_ids: Sequence[str], parts: Sequence[Sequence[Item]]
) -> bytes:
    """A plan as tasks.ingest.plan writes it: frames of one video and shard are one entry."""
    lines = []
    for index, (shard_id, part) in enumerate(zip(shard_ids, parts, strict=True)):
        for (uri, etag), items in groupby(sorted(part, key=_name), key=lambda item: (item.uri, item.etag)):
            frames = [item for item in items if item.pts_s is not None]
            lines.append(
                {
                    "plan": number,
                    "shard_index": index,
                    "shard_id": shard_id,
                    "position": len(lines),
                    "uri": uri,
                    "etag": etag,
                    "size_bytes": 1000,
                    "media": "video" if frames else "image",
                    "first_frame": frames[0].frame if frames else 0,
                    "end_frame": frames[-1].frame + 1 if frames else None,
                    "work": 1000,
                }
            )
    facts = {
        "number": number,
        "num_shards": len(shard_ids),
        "num_entries": len(lines),
        "num_objects": len({line["uri"] for line in lines}),
        "total_bytes": 1000 * len(lines),
        "total_work": 1000 * len(lines),
        "created_at": moment.isoformat(timespec="seconds"),
        "source": "s3://pictures",
        "options": {},
    }
    table = pa.Table.from_pylist(lines, schema=PLAN_SCHEMA)
    footer = {VERSION_FOOTER_KEY: json.dumps(version_to_json(version)), PLAN_FOOTER_KEY: json.dumps(facts)}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(footer), buffer)
    return buffer.getvalue()


def _name(item: Item) -> tuple[str, str, int]:
    return item.uri, item.etag, item.frame


def picture_of(item: Item) -> np.ndarray:
    """(H, W, 3) uint8: what :func:`masks_of` describes, painted over a soft background."""
    height, width = item.size_hw
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17), np.cos(y / 23), np.sin((x + y) / 31)]
    picture = np.stack([120 + 40 * wave for wave in waves], axis=-1)
    for index, mask in enumerate(masks_of(item)):
        picture[mask] = 0.5 * picture[mask] + 0.5 * np.array(
            [(60, 90, 200), (200, 140, 40), (120, 190, 230)][index % 3]
        )
    return picture.round().astype(np.uint8)


def with_sources(folder: Path, items: Sequence[Item]) -> list[Item]:
    """Write the pictures and videos that items (uri: file name) speak of; returns them with full uri and etag."""
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(str(folder))
    for name, frames in groupby(sorted(items, key=_name), key=lambda item: item.uri):
        members = list(frames)
        if members[0].pts_s is not None:
            _write_video(folder / name, members)
        elif members[0].status == "ok":
            Image.fromarray(picture_of(members[0])).save(folder / name)
        else:
            (folder / name).write_bytes(b"not an image")
    return [replace(item, uri=store.uri_of(item.uri), etag=store.info(item.uri).etag, scene=item.uri) for item in items]


def _write_video(path: Path, frames: Sequence[Item]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.height, stream.width = frames[0].size_hw
        stream.pix_fmt = "yuv420p"
        for item in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_of(item), format="rgb24")))
        container.mux(stream.encode())
