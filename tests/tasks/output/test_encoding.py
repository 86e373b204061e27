from __future__ import annotations

import io
import json
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from tasks.output import encoding
from tasks.output.encoding import BadPartError, PartFacts, encode_part, ok_row, read_facts, rows_to_table
from tasks.output.schema import schema_named
from tasks.products.segments import PRODUCT
from tests.tasks.output.parts import CLASS_NAMES, VERSION, a_frame, a_part, an_entry, some_rows, squares

EXPECTED = rows_to_table(
    some_rows(), PartFacts(VERSION, 1, "aa11", "an-attempt", "run-1", class_names=CLASS_NAMES)
).drop_columns(["processed_at"])


def footer_of(data: bytes) -> pq.FileMetaData:
    return pq.read_metadata(io.BytesIO(data))


def test_what_went_in_comes_out() -> None:
    data, _ = a_part()
    table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    assert table.drop_columns(["processed_at"]).equals(EXPECTED)
    assert table.schema.equals(schema_named("segments", "segments.v1"), check_metadata=False)
    meanings = [field.metadata[b"meaning"] for field in pq.read_schema(io.BytesIO(data))]
    assert len(meanings) == len(EXPECTED.schema) + 1


def test_other_tools_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    path.write_bytes(a_part()[0])
    expected = [row["boxes_xyxy"] for row in EXPECTED.to_pylist()]
    found = duckdb.sql(f"SELECT uri, boxes_xyxy, rles, status FROM '{path}'").fetchall()
    assert [row[0] for row in found] == EXPECTED["uri"].to_pylist()
    assert [row[1] for row in found] == expected
    assert [row[2] for row in found] == EXPECTED["rles"].to_pylist()
    frame = polars.read_parquet(path)
    assert frame["uri"].to_list() == EXPECTED["uri"].to_pylist()
    assert frame["boxes_xyxy"].to_list() == expected
    assert frame["names"].to_list() == EXPECTED["names"].to_pylist()


def test_the_footer_tells_who_made_it_of_what() -> None:
    data, attempt_id = a_part("bb22")
    metadata = footer_of(data).metadata
    assert metadata[b"visionmill.schema"] == b"segments.v1"
    assert metadata[b"visionmill.model_digest"] == b"ab" * 32
    assert json.loads(metadata[b"visionmill.items"]) == {
        "rows": 6,
        "ok": 4,
        "failed": 1,
        "quarantined": 1,
        "instances": 6,
    }
    facts, _ = read_facts(data)
    assert facts == PartFacts(
        version=VERSION,
        plan=3,
        shard_id="bb22",
        attempt_id=attempt_id,
        run_id="run-1",
        items={"rows": 6, "ok": 4, "failed": 1, "quarantined": 1, "instances": 6},
        stage_seconds={"decode": 1.5, "infer": 2.25},
        class_names=CLASS_NAMES,
    )


def test_the_attempt_id_stands_in_the_bytes_once() -> None:
    data, attempt_id = a_part()
    assert data.count(attempt_id.encode()) == 1


def test_columns_are_stored_as_the_design_says() -> None:
    footer = footer_of(a_part()[0])
    columns = {
        footer.row_group(0).column(i).path_in_schema: footer.row_group(0).column(i) for i in range(footer.num_columns)
    }
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name in ("scores.list.element", "boxes_xyxy.list.element.list.element", "pts_s"):
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings
    dictionaries = {name for name, column in columns.items() if "RLE_DICTIONARY" in column.encodings}
    assert dictionaries == {
        "media", "status", "stage", "error_type", "model", "run_id", "shard_id", "notes.list.element",
        "labels.list.element", "names.list.element",
    }  # fmt: skip
    for name in ("etag", "error", "rles.list.element", "scores.list.element"):
        assert columns[name].statistics is None
    assert (columns["uri"].statistics.min, columns["uri"].statistics.max) == ("s3://b/a.jpg", "s3://b/z.jpg")
    assert columns["processed_at"].statistics.has_min_max


def test_rows_prune_by_uri_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "ROW_GROUP_ROWS", 100)
    rows = [ok_row(an_entry(f"s3://b/{i * 7919 % 1000:04d}.jpg"), a_frame(), squares(i % 3)) for i in range(1000)]
    data, _ = a_part(rows=rows)
    assert footer_of(data).num_row_groups == 10
    path = tmp_path / "part.parquet"
    path.write_bytes(data)
    (fragment,) = pyarrow.dataset.dataset(path).get_fragments()
    kept = fragment.split_by_row_group(pyarrow.dataset.field("uri") == "s3://b/0555.jpg")
    assert len(kept) == 1
    assert kept[0].to_table()["uri"].to_pylist() == [f"s3://b/{i:04d}.jpg" for i in range(500, 600)]


def test_a_shard_of_which_a_stride_skips_every_frame_is_a_part_without_rows() -> None:
    data = encode_part([], version=VERSION, plan=1, shard_id="a", attempt_id="b" * 32, run_id="r")
    assert footer_of(data).num_rows == 0
    assert pq.read_table(io.BytesIO(data)).schema.names == schema_named("segments", "segments.v1").names


def test_an_error_column_that_is_all_null_keeps_its_type() -> None:
    data, _ = a_part(rows=[ok_row(an_entry(), a_frame(), squares(1))])
    schema = pq.read_schema(io.BytesIO(data))
    for name in ("stage", "error_type", "error"):
        assert schema.field(name).type == pa.string()
    assert schema.field("track_ids").type == pa.list_(pa.int64())


def test_bytes_that_lost_rows_are_noticed() -> None:
    data, _ = a_part()
    facts, _ = read_facts(data)
    fewer = encoding.write_parquet(pq.read_table(io.BytesIO(data)).slice(1), facts.to_metadata(), PRODUCT)
    with pytest.raises(BadPartError, match="6 rows went in, 5 can be read"):
        encoding.check_part(fewer, facts, schema_named("segments", "segments.v1"))


def test_bytes_with_other_columns_are_noticed() -> None:
    data, _ = a_part()
    facts, _ = read_facts(data)
    other = encoding.write_parquet(
        pq.read_table(io.BytesIO(data)).drop_columns(["areas"]), facts.to_metadata(), PRODUCT
    )
    with pytest.raises(BadPartError, match="columns"):
        encoding.check_part(other, facts, schema_named("segments", "segments.v1"))


@pytest.mark.parametrize("cut", [0, 4, 100, -1, -8])
def test_torn_bytes_are_no_part(cut: int) -> None:
    data, _ = a_part()
    with pytest.raises(BadPartError, match="no readable part"):
        read_facts(data[:cut])


def test_somebody_elses_parquet_is_no_part() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), buffer)
    with pytest.raises(BadPartError, match="not a part of visionmill"):
        read_facts(buffer.getvalue())


def test_damaged_pages_are_found_by_their_checksums() -> None:
    data, _ = a_part(rows=[ok_row(an_entry(f"{i:05d}"), a_frame(), squares(5)) for i in range(500)])
    column = footer_of(data).row_group(0).column(0)
    at = column.data_page_offset + column.total_compressed_size - 3
    damaged = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.read_table(io.BytesIO(damaged), page_checksum_verification=True)
