"""Ready listings, S3 Inventories and COCO files."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import DatasetError
from infra.store import Store
from tasks.records import Entry, etag_to_pin
from tests.tasks.ingest.helpers import fill, listed, tar_of


def parquet(columns: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def uris(lines: list[dict[str, Any]]) -> list[str]:
    return [line["uri"] for line in lines]


# --- Parquet and CSV -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "csv", "csv.gz"])
def test_a_listing_keeps_every_item_as_it_is(store_uri: str, tmp_path: Path, form: str) -> None:
    names = ["s3://b/a%20b#?.jpg", '/abs/naïve, "quoted".png', "relative/x.bin", "s3://b/no-ending", "s3://b/film.mkv"]
    columns = {
        "uri": names,
        "etag": ['"e1"', "e2", "", "e4", "e5"],
        "size": [10, 20, 30, 40, 50],
        "other": list("abcde"),
    }
    if form == "parquet":
        data = parquet(columns)
    else:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        data = text.getvalue().encode()
        data = gzip.compress(data) if form.endswith("gz") else data
    store = fill(store_uri, {f"lists/my list.{form}": data})
    inventory, lines = listed(f"{store_uri}/lists/my list.{form}", tmp_path / "work")
    base = store.uri_of("lists")
    assert set(uris(lines)) == {*names[:2], f"{base}/relative/x.bin", *names[3:]}
    found = {line["uri"]: (line["etag"], line["size_bytes"], line["media"]) for line in lines}
    assert found["s3://b/a%20b#?.jpg"] == ("e1", 10, "image")
    assert found["s3://b/film.mkv"] == ("e5", 50, "video")
    assert found["s3://b/no-ending"] == ("e4", 40, "image")
    assert found[f"{base}/relative/x.bin"] == ("unknown:30", 30, "image")
    assert inventory.total_bytes == 150


def test_a_listing_of_uris_alone_has_unknown_etags_that_nobody_checks(tmp_path: Path) -> None:
    fill(str(tmp_path), {"l.csv": b"uri\ns3://b/1.jpg\n\ns3://b/2.jpg\n"})
    _, lines = listed(str(tmp_path / "l.csv"), tmp_path / "work")
    assert [(line["uri"], line["etag"], line["size_bytes"]) for line in lines] == [
        ("s3://b/1.jpg", "unknown:0", 0),
        ("s3://b/2.jpg", "unknown:0", 0),
    ]
    assert etag_to_pin(Entry(**lines[0])) is None


def test_lines_without_a_uri_are_counted(tmp_path: Path) -> None:
    fill(str(tmp_path), {"l.parquet": parquet({"uri": ["s3://b/1.jpg", None, ""]})})
    inventory, lines = listed(str(tmp_path / "l.parquet"), tmp_path / "work")
    assert uris(lines) == ["s3://b/1.jpg"]
    assert inventory.skipped == {"line without a uri": 2}


def test_an_inventory_is_a_listing_that_gives_itself(store_uri: str, tmp_path: Path) -> None:
    fill(store_uri, {"a.jpg": b"1", "t.tar": tar_of({"x.jpg": b"12", "y.mp4": b"3"})[:2000], "v.mov": b"1"})
    first, lines = listed(store_uri, tmp_path / "one")
    again, same = listed(str(first.path), tmp_path / "two")
    assert same == lines
    assert (again.num_images, again.num_videos, again.num_problems) == (2, 2, 1)


def test_a_line_that_points_elsewhere_is_a_line_with_a_problem(tmp_path: Path) -> None:
    store = fill(str(tmp_path), {"l.csv": b"uri\nhttps://x.invalid/a.jpg\ngs://b/t.tar\nimg/a.jpg\ns3://b/c.jpg\n"})
    inventory, lines = listed(str(tmp_path / "l.csv"), tmp_path / "work")
    assert {line["uri"]: line["problem"] for line in lines} == {
        "https://x.invalid/a.jpg": "nothing is read from https:// addresses: only from folders and s3://",
        "gs://b/t.tar": "nothing is read from gs:// addresses: only from folders and s3://",
        store.uri_of("img/a.jpg"): None,
        "s3://b/c.jpg": None,
    }
    assert inventory.num_problems == 2


def test_a_listing_that_is_no_utf8_names_itself_and_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("uri\nmüll.jpg\n".encode("utf-16"))
    with pytest.raises(DatasetError, match=r"no UTF-8 text .*, but UTF-16") as caught:
        listed(str(tmp_path / "l.csv"), tmp_path / "work")
    assert str(tmp_path / "l.csv") in caught.value.message
    assert caught.value.hint == "Save it as UTF-8."


def test_a_listed_tar_stands_for_its_members(store_uri: str, tmp_path: Path) -> None:
    store = fill(store_uri, {"t.tar": tar_of({"x.jpg": b"12"}), "l.csv": b"uri\nt.tar\ngone.tar\n"})
    _, lines = listed(f"{store_uri}/l.csv", tmp_path / "work")
    assert uris(lines) == [store.uri_of("gone.tar"), store.uri_of("t.tar!/x.jpg")]
    assert "ObjectGone" in lines[0]["problem"]
    assert lines[1]["etag"].startswith(store.info("t.tar").etag)


def test_a_glob_of_listings_is_one_listing(store_uri: str, tmp_path: Path) -> None:
    fill(store_uri, {f"l/{i}.parquet": parquet({"uri": [f"s3://b/{i}.jpg"]}) for i in range(3)})
    _, lines = listed(f"{store_uri}/l/*.parquet", tmp_path / "work")
    assert uris(lines) == [f"s3://b/{i}.jpg" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.csv", b"url,size\nx,1\n", "no column 'uri'"),
        ("l.parquet", parquet({"path": ["x"]}), "no column 'uri'"),
        ("l.parquet", b"PAR1 but not really", "cannot be read"),
        ("l.csv", b"uri,size\nx.jpg,many\n", "cannot be read"),
        ("l.csv", b"", "cannot be read"),
        ("l.csv.gz", b"uri\nx.jpg\n", "cannot be read"),
        ("l.csv.gz", gzip.compress(b"uri\n" + b"x.jpg\n" * 9000, mtime=0)[:40], "cannot be read"),
        ("l.csv", b"uri\n", "holds nothing"),
    ],
)
def test_a_damaged_listing_is_one_clear_error(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        listed(str(tmp_path / name), tmp_path / "work")


# --- S3 Inventory ----------------------------------------------------------------------------------------------------

KEYS = ["plain.jpg", "with space.png", "a+b%20#?.jpg", "日本/ü.jpeg", "clip.mp4", "old.jpg", "deleted.jpg", "notes.txt"]


def s3_inventory(store: Store, form: str, bucket: str, destination: str, *, encode: Any = quote_plus) -> str:
    """Write an inventory of ``bucket`` as S3 does; returns the manifest's URI."""
    flags = [(key not in ("old.jpg", "deleted.jpg"), key == "deleted.jpg") for key in KEYS]
    folder = "inv/src/daily"
    if form == "CSV":
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows(
            [bucket, encode(key), "v1", str(latest).lower(), str(marker).lower(), "" if marker else 7, f"e{i}"]
            for i, (key, (latest, marker)) in enumerate(zip(KEYS, flags, strict=True))
        )
        name, data = "1.csv.gz", gzip.compress(text.getvalue().encode())
    else:
        columns = {
            "bucket": [bucket] * len(KEYS),
            "key": KEYS,
            "is_latest": [latest for latest, _ in flags],
            "is_delete_marker": [marker for _, marker in flags],
            "size": [None if marker else 7 for _, marker in flags],
            "e_tag": [f"e{i}" for i in range(len(KEYS))],
        }
        name, data = "1.parquet", parquet(columns)
    manifest = {
        "sourceBucket": bucket,
        "destinationBucket": f"arn:aws:s3:::{destination}",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": form,
        "fileSchema": "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ETag"
        if form == "CSV"
        else "message s {}",
        "files": [{"key": f"{folder}/data/{name}", "size": len(data), "MD5checksum": "0" * 32}],
    }
    manifest_key = f"{folder}/2026-11-20T01-00Z/manifest.json"
    store.put(f"{folder}/data/{name}", data)
    store.put(manifest_key, json.dumps(manifest).encode())
    return store.uri_of(manifest_key)


@pytest.mark.parametrize("form", ["CSV", "Parquet"])
def test_both_formats_of_an_s3_inventory_list_the_latest_media_with_decoded_keys(
    store_uri: str, tmp_path: Path, form: str
) -> None:
    source = s3_inventory(fill(store_uri, {}), form, "photos", "elsewhere-not-there" if form == "CSV" else "")
    inventory, lines = listed(source, tmp_path / "work")
    assert uris(lines) == sorted(f"s3://photos/{key}" for key in KEYS[:5])
    assert {line["uri"]: line["etag"] for line in lines}["s3://photos/a+b%20#?.jpg"] == "e2"
    assert inventory.total_bytes == 35
    assert inventory.num_videos == 1
    assert inventory.skipped == {"no image or video ending: .txt": 1}


def test_percent_encoded_spaces_in_csv_keys_are_read_too(tmp_path: Path) -> None:
    source = s3_inventory(fill(str(tmp_path / "s"), {}), "CSV", "photos", "d", encode=lambda key: quote(key, safe=""))
    _, lines = listed(source, tmp_path / "work")
    assert uris(lines) == sorted(f"s3://photos/{key}" for key in KEYS[:5])


def test_an_orc_inventory_and_a_lost_data_file_are_clear_errors(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"), {})
    source = s3_inventory(store, "Parquet", "photos", "")
    store.delete("inv/src/daily/data/1.parquet")
    with pytest.raises(DatasetError, match=r"data file .*1\.parquet.* does not exist"):
        listed(source, tmp_path / "work")
    store.put("m.json", b'{"sourceBucket": "b", "fileFormat": "ORC", "files": []}')
    with pytest.raises(DatasetError, match="format 'ORC'"):
        listed(store.uri_of("m.json"), tmp_path / "work")


# --- COCO ------------------------------------------------------------------------------------------------------------


def coco(*names: object) -> bytes:
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    return json.dumps({"info": {"images": 1}, "annotations": [{"id": 1}], "images": images, "categories": []}).encode()


def test_a_coco_file_names_images_beside_it_with_their_etags(store_uri: str, tmp_path: Path) -> None:
    store = fill(store_uri, {"d/1.jpg": b"one", "d/sub/ü 2.png": b"two!", "d/other.jpg": b"x"})
    store.put("d/instances.json", coco("1.jpg", "sub/ü 2.png", "missing.jpg", None, ""))
    inventory, lines = listed(store.uri_of("d/instances.json"), tmp_path / "work")
    assert uris(lines) == [store.uri_of(f"d/{name}") for name in ("1.jpg", "missing.jpg", "sub/ü 2.png")]
    assert [line["etag"] for line in lines] == [
        store.info("d/1.jpg").etag,
        "missing:",
        store.info("d/sub/ü 2.png").etag,
    ]
    assert [line["size_bytes"] for line in lines] == [3, 0, 4]
    assert inventory.skipped == {"COCO image without a file_name": 2}


@pytest.mark.parametrize("name", ["1.jpg", "./1.jpg", "x/../1.jpg"])
def test_a_coco_file_with_an_images_root(store_uri: str, tmp_path: Path, name: str) -> None:
    store = fill(store_uri, {"train/1.jpg": b"one", "annotations/i.json": coco(name)})
    _, lines = listed(store.uri_of("annotations/i.json"), tmp_path / "work", images_root=store.uri_of("train/"))
    assert [(line["uri"], line["size_bytes"]) for line in lines] == [(store.uri_of("train/1.jpg"), 3)]


@pytest.mark.parametrize("place", ["val2017", "images/val2017", "images", "annotations/val2017", ""])
def test_images_in_the_usual_layout_are_found_by_themselves(store_uri: str, tmp_path: Path, place: str) -> None:
    image = f"{place}/1.jpg".lstrip("/")
    store = fill(store_uri, {image: b"one", "annotations/instances_val2017.json": coco("1.jpg", "gone.jpg")})
    _, lines = listed(store.uri_of("annotations/instances_val2017.json"), tmp_path / "work")
    assert {line["uri"]: line["etag"] == "missing:" for line in lines} == {
        store.uri_of(image): False,
        store.uri_of(image.replace("1.jpg", "gone.jpg")): True,
    }


def test_an_images_root_may_hold_the_split_of_a_coco_file(store_uri: str, tmp_path: Path) -> None:
    store = fill(store_uri, {"in/val2017/1.jpg": b"one", "a/instances_val2017.json": coco("1.jpg")})
    _, lines = listed(store.uri_of("a/instances_val2017.json"), tmp_path / "work", images_root=store.uri_of("in"))
    assert uris(lines) == [store.uri_of("in/val2017/1.jpg")]


def test_names_with_backslashes_are_paths(store_uri: str, tmp_path: Path) -> None:
    store = fill(store_uri, {"val/1.jpg": b"one", "i.json": coco("val\\1.jpg", "val/1.jpg")})
    _, lines = listed(store.uri_of("i.json"), tmp_path / "work")
    assert {(line["uri"], line["size_bytes"]) for line in lines} == {(store.uri_of("val/1.jpg"), 3)}


def test_a_wrong_images_root_is_one_clear_error(store_uri: str, tmp_path: Path) -> None:
    store = fill(store_uri, {"train/1.jpg": b"one", "annotations/i.json": coco("1.jpg", "2.jpg")})
    with pytest.raises(DatasetError, match="none of the 2 images") as caught:
        listed(store.uri_of("annotations/i.json"), tmp_path / "work")
    assert "images' root" in caught.value.hint


@pytest.mark.parametrize("data", [b"{}", b"[]", b"", b'{"images": [{"file_name": "a.jpg"}, {"fi', b"\xff\xfe{}"])
def test_json_that_is_no_coco_file_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(DatasetError):
        listed(str(tmp_path / "x.json"), tmp_path / "work")


@pytest.mark.s3
def test_a_coco_name_that_climbs_out_of_the_bucket_is_left_out(s3_bucket: str, tmp_path: Path) -> None:
    store = fill(s3_bucket, {"1.jpg": b"1", "i.json": coco("1.jpg", "../../../../etc/passwd.jpg")})
    inventory, lines = listed(store.uri_of("i.json"), tmp_path / "work")
    assert uris(lines) == [store.uri_of("1.jpg")]
    assert inventory.skipped == {"COCO file_name that leads out of the bucket": 1}


def test_a_damaged_inventory_data_file_is_one_clear_error(tmp_path: Path) -> None:
    store = fill(str(tmp_path / "s"), {})
    source = s3_inventory(store, "CSV", "photos", "")
    good = gzip.decompress(store.get("inv/src/daily/data/1.csv.gz"))
    packed = gzip.compress(good)
    torn = packed[:60] + bytes(byte ^ 0x5A for byte in packed[60:90]) + packed[90:]
    for data in (packed[:60], torn, good, gzip.compress(b'"photos","a.jpg"\n' + good)):
        store.put("inv/src/daily/data/1.csv.gz", data)
        with pytest.raises(DatasetError, match=r"1\.csv\.gz cannot be read"):
            listed(source, tmp_path / "work")
