"""Committed output without an engine: discs and boxes, encoded, planned and committed like the real ones."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco

from infra.store import Store
from tasks.ingest.sharding import PLAN_SCHEMA
from tasks.ingest.versions import PLAN_FOOTER_KEY, VERSION_FOOTER_KEY
from tasks.records import Version
from tasks.results.layout import make_version, part_key, plan_key, version_to_json
from tasks.results.schema import schema_of

CLASSES = ("disc", "box", "sky")
START = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Item:
    """One row to be."""

    uri: str
    etag: str = "e1"
    frame: int = 0
    pts_s: float | None = None
    status: str = "ok"
    error_type: str | None = None
    error: str | None = None
    size_hw: tuple[int, int] = (48, 64)
    num_instances: int = 3
    track: bool = False


@dataclass
class FakeOutput:
    """An output being filled; every :meth:`commit` is one plan of as many shards as asked for."""

    store: Store
    parameters: dict[str, object] = field(default_factory=lambda: {"score_threshold": 0.5})
    model_digest: str = "ab" * 32
    moment: datetime = START
    num_plans: int = 0

    @property
    def version(self) -> Version:
        return make_version(
            "segments",
            model=f"fake@{self.model_digest[:12]}",
            model_digest=self.model_digest,
            parameters=self.parameters,
            schema="segments.v1",
        )

    def commit(self, items: Sequence[Item], *, num_shards: int = 1, leave_open: int = 0) -> list[str]:
        """Plan items, commit all shards but the last ``leave_open``; returns the shard ids of the plan."""
        self.num_plans += 1
        parts = [list(items[index::num_shards]) for index in range(num_shards)]
        ids = [self._shard_id(index, part) for index, part in enumerate(parts)]
        self.moment += timedelta(seconds=1)
        self.store.put_if_absent(
            plan_key(self.version, self.num_plans), plan_bytes(self.version, self.num_plans, self.moment, ids, parts)
        )
        for shard_id, part in list(zip(ids, parts, strict=True))[: num_shards - leave_open]:
            self.commit_shard(shard_id, part)
        return ids

    def commit_shard(self, shard_id: str, items: Sequence[Item]) -> None:
        self.moment += timedelta(seconds=1)
        data = part_bytes(rows(items, self.version, shard_id, self.moment), self.version, shard_id, self.num_plans)
        assert self.store.put_if_absent(part_key(self.version, shard_id), data)

    def new_version(self, **parameters: object) -> FakeOutput:
        """Another version in the same place, from now on."""
        return replace(
            self, parameters=self.parameters | parameters, moment=self.moment + timedelta(hours=1), num_plans=0
        )

    def _shard_id(self, index: int, items: Sequence[Item]) -> str:
        return hashlib.sha256(repr((self.num_plans, index, items)).encode()).hexdigest()[:16]


def masks_of(item: Item) -> list[np.ndarray]:
    """The (H, W) bool masks of an item: discs and boxes at places drawn from its name."""
    height, width = item.size_hw
    rng = np.random.default_rng(int(hashlib.sha256(f"{item.uri} {item.frame}".encode()).hexdigest()[:8], 16))
    y, x = np.mgrid[:height, :width]
    masks = []
    for index in range(item.num_instances):
        radius = rng.uniform(4, min(height, width) / 3)
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        if index % len(CLASSES) == 0:
            masks.append((y - cy) ** 2 + (x - cx) ** 2 <= radius**2)
        elif index % len(CLASSES) == 1:
            masks.append((abs(y - cy) <= radius) & (abs(x - cx) <= radius))
        else:
            masks.append(y < radius)
    return masks


def rows(items: Sequence[Item], version: Version, shard_id: str, moment: datetime) -> pa.Table:
    """The rows of a shard in the frozen schema, sorted by (uri, frame)."""
    _, schema = schema_of("segments")
    ordered = sorted(items, key=lambda item: (item.uri, item.frame))
    return pa.Table.from_pylist([_row(item, version, shard_id, moment) for item in ordered], schema=schema)


def _row(item: Item, version: Version, shard_id: str, moment: datetime) -> dict[str, object]:
    failed = item.status != "ok"
    common: dict[str, object] = {
        "uri": item.uri,
        "etag": item.etag,
        "media": "image" if item.pts_s is None else "video",
        "frame": item.frame,
        "pts_s": item.pts_s,
        "height": None if failed else item.size_hw[0],
        "width": None if failed else item.size_hw[1],
        "status": item.status,
        "stage": "decode" if failed else None,
        "error_type": (item.error_type or "Unreadable") if failed else None,
        "error": (item.error or "cannot identify image file") if failed else None,
        "notes": [],
        "model": version.model,
        "run_id": "run-1",
        "shard_id": shard_id,
        "processed_at": moment,
    }
    return common | ({} if failed else _found(item))


def _found(item: Item) -> dict[str, object]:
    masks = masks_of(item)
    encoded = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    boxes = [coco.toBbox(rle).tolist() for rle in encoded]
    labels = [index % len(CLASSES) for index in range(len(masks))]
    return {
        "labels": labels,
        "names": [CLASSES[label] for label in labels],
        "scores": [round(0.95 - 0.1 * index, 3) for index in range(len(masks))],
        "boxes_xyxy": [[x, y, x + w, y + h] for x, y, w, h in boxes],
        "areas": [int(mask.sum()) for mask in masks],
        "rles": [rle["counts"] for rle in encoded],
        "is_thing": [CLASSES[label] != "sky" for label in labels],
        "track_ids": [index + 1 for index in range(len(masks))] if item.track else None,
    }


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


def part_bytes(table: pa.Table, version: Version, shard_id: str, plan: int, *, row_group_size: int = 10_000) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", row_group_size=row_group_size, use_dictionary=["status", "shard_id"]
    )
    return buffer.getvalue()
