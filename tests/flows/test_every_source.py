"""Every kind of source, from its URI to rows: what is listed is decoded, segmented and named as it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.store import Store, open_store
from tests.flows.command import ask, segment
from tests.flows.scenes import put_scenes, scene_jpeg
from tests.tasks.ingest.helpers import tar_of
from tests.videos import make_video


@pytest.fixture
def store(store_uri: str) -> Store:
    """Where sources lie: a folder, and a bucket."""
    return open_store(f"{store_uri}/data")


def rows_of(source: str, output: str | Path, *options: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Segment a source; the rows by (last part of the uri, frame)."""
    summary = segment(source, output, *options)
    columns = "uri, frame, pts_s, media, width, status, stage, error_type, error"
    rows = ask(output, f"SELECT {columns} FROM all_items")
    assert len(rows) == summary["items"]["rows"], "every item has one row"
    return {(row["uri"].rpartition("/")[2], row["frame"]): row for row in rows}


def statuses(rows: dict[tuple[str, int], dict[str, Any]]) -> dict[str, str]:
    """Of images: name -> status, or where and how it failed."""
    return {
        name: "ok" if row["status"] == "ok" else f"{row['stage']}: {row['error_type']}"
        for (name, _), row in rows.items()
    }


def test_a_prefix_or_folder_with_everything_below_it(store: Store, tmp_path: Path) -> None:
    put_scenes(store, 1)
    store.put("a/b/c.jpg", scene_jpeg(1))
    rows = rows_of(store.uri, tmp_path / "out")
    assert statuses(rows) == {"scene 0.jpg": "ok", "c.jpg": "ok"}
    assert {row["uri"] for row in rows.values()} == {f"{store.uri}/scene 0.jpg", f"{store.uri}/a/b/c.jpg"}


def test_a_glob(store: Store, tmp_path: Path) -> None:
    put_scenes(store, 3)
    store.put("deep/scene 9.jpg", scene_jpeg(0))
    assert set(statuses(rows_of(f"{store.uri}/scene [12].jpg", tmp_path / "flat"))) == {"scene 1.jpg", "scene 2.jpg"}
    assert len(rows_of(f"{store.uri}/**/scene*.jpg", tmp_path / "deep")) == 4


@pytest.mark.parametrize(
    ("ending", "form", "codec"), [("mp4", "mp4", "libx264"), ("avi", "avi", "mpeg4"), ("mkv", "matroska", "libx264")]
)
def test_every_nth_frame_of_a_video_with_its_time(
    store: Store, tmp_path: Path, ending: str, form: str, codec: str
) -> None:
    store.put(f"clip.{ending}", make_video(form, codec, frames=23, gop=6))
    rows = rows_of(f"{store.uri}/clip.{ending}", tmp_path / "out", "--frame-stride", "5")
    assert sorted(frame for _, frame in rows) == [0, 5, 10, 15, 20]
    assert all(row["media"] == "video" and row["status"] == "ok" for row in rows.values())
    assert [row["pts_s"] for _, row in sorted(rows.items())] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8], abs=0.021)


def test_a_long_video_is_cut_into_shards_and_every_frame_has_one_row(tmp_path: Path) -> None:
    (tmp_path / "long.mp4").write_bytes(make_video("mp4", "libx264", frames=40, gop=5))
    summary = segment(tmp_path / "long.mp4", tmp_path / "out", "--shard-items", "10")
    assert summary["shards"]["committed"] >= 3
    frames = ask(tmp_path / "out", "SELECT frame FROM all_items ORDER BY frame")
    assert [row["frame"] for row in frames] == list(range(40))


def test_tar_and_webdataset_shards_with_a_broken_and_a_missing_one(store: Store, tmp_path: Path) -> None:
    members = {f"{name}.jpg": scene_jpeg(i) for i, name in enumerate("abc")} | {f"{name}.cls": b"7" for name in "abc"}
    whole = tar_of(dict(sorted(members.items())))
    store.put("shard-000.tar", whole)
    store.put("shard-002.tar", whole[: len(whole) // 2])
    source = f"{store.uri}/shard-{{000..002}}.tar"
    segment(source, tmp_path / "out")
    rows = ask(tmp_path / "out", "SELECT uri, status, stage, error_type, error FROM all_items")
    told = {row["uri"].removeprefix(f"{store.uri}/"): row for row in rows}
    ok = {uri for uri, row in told.items() if row["status"] == "ok"}
    assert {f"shard-000.tar!/{name}.jpg" for name in "abc"} <= ok and "shard-002.tar!/a.jpg" in ok
    bad = {uri: row for uri, row in told.items() if row["status"] != "ok"}
    assert {(row["status"], row["stage"], row["error_type"]) for row in bad.values()} == {
        ("failed", "inventory", "ListedUnreadable")
    }
    assert "does not exist" in bad.pop("shard-001.tar")["error"]
    [(uri, row)] = bad.items()
    assert uri.startswith("shard-002.tar!/") and row["error"].startswith("broken tar: ")
    assert segment(source, tmp_path / "out")["outcome"] == "nothing_to_do"


def test_a_coco_file_with_an_image_that_is_not_there(store: Store, tmp_path: Path) -> None:
    put_scenes(store, 2)
    names = ["scene 0.jpg", "scene 1.jpg", "lost.jpg"]
    images = [{"id": i, "file_name": name, "width": 128, "height": 96} for i, name in enumerate(names)]
    store.put("instances.json", json.dumps({"images": images, "annotations": [], "categories": []}).encode())
    rows = rows_of(f"{store.uri}/instances.json", tmp_path / "out")
    assert statuses(rows) == {"scene 0.jpg": "ok", "scene 1.jpg": "ok", "lost.jpg": "fetch: ObjectGone"}


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_ready_listing_with_an_object_that_was_replaced_and_one_that_is_gone(
    store: Store, tmp_path: Path, form: str
) -> None:
    put_scenes(store, 3)
    names = ["scene 0.jpg", "scene 1.jpg", "scene 2.jpg", "gone.jpg"]
    etags = [store.info("scene 0.jpg").etag, store.info("scene 1.jpg").etag, "", "x"]
    store.put("scene 1.jpg", scene_jpeg(5))
    if form == "csv":
        lines = [f'"{store.uri}/{name}",{etag}' for name, etag in zip(names, etags, strict=True)]
        store.put("list.csv", "\n".join(["uri,etag", *lines]).encode())
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"uri": [f"{store.uri}/{name}" for name in names], "etag": etags}), sink)
        store.put("list.parquet", sink.getvalue().to_pybytes())
    rows = rows_of(f"{store.uri}/list.{form}", tmp_path / "out")
    assert statuses(rows) == {
        "scene 0.jpg": "ok",
        "scene 1.jpg": "fetch: ObjectChanged",
        "scene 2.jpg": "ok",
        "gone.jpg": "fetch: ObjectGone",
    }


@pytest.mark.s3
def test_an_s3_inventory_of_a_real_bucket(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store("s3://tests")
    prefix = s3_bucket.removeprefix("s3://tests/")
    put_scenes(open_store(f"{s3_bucket}/photos"), 2)
    infos = list(store.list(f"{prefix}/photos/"))
    sink = pa.BufferOutputStream()
    columns = {
        "bucket": ["tests"] * 2,
        "key": [info.key for info in infos],
        "size": [info.size_bytes for info in infos],
        "e_tag": [info.etag for info in infos],
    }
    pq.write_table(pa.table(columns), sink)
    store.put(f"{prefix}/inventory/data/1.parquet", sink.getvalue().to_pybytes())
    manifest = {
        "sourceBucket": "tests",
        "destinationBucket": "arn:aws:s3:::tests",
        "fileFormat": "Parquet",
        "files": [{"key": f"{prefix}/inventory/data/1.parquet", "size": 1, "MD5checksum": "0" * 32}],
    }
    store.put(f"{prefix}/inventory/2026-11-20T01-00Z/manifest.json", json.dumps(manifest).encode())
    rows = rows_of(f"{s3_bucket}/inventory/2026-11-20T01-00Z/manifest.json", tmp_path / "out")
    assert statuses(rows) == {"scene 0.jpg": "ok", "scene 1.jpg": "ok"}
