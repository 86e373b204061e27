"""The bytes of a part are a promise to whoever reads them: code may move, they stay."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.output.encoding import Row, encode_part, ok_row
from tasks.output.layout import make_version
from tests.tasks.output.parts import CLASS_NAMES, a_frame, an_entry, some_rows, squares

MOMENT = dt.datetime(2026, 11, 1, 12, 30, tzinfo=dt.UTC)

# Pages, statistics, encodings, footer and schema (its texts included). A digest may only change together with the id of
# its schema, or with a release of pyarrow that writes other pages; then say which of the two in the commit.
DIGESTS = {
    "segments.v1": ("fc17b1c6b316edee", "a90ebb2a358284bc"),
    "segments_measured.v1": ("138c0afc4b668dfd", "d43092be8dd15083"),
}


def rows_of(schema: str) -> list[Row]:
    """Found, empty, failed, quarantined, tracked, without masks, an unnamed class; measured where the schema is."""
    rows = some_rows()
    if schema != "segments.v1":
        both = {name: np.linspace(0.25, 0.75, 3, dtype=np.float32) for name in ("q_stability", "q_tta")}
        one = {"q_stability": np.full(2, 0.5, np.float32)}
        rows += [
            ok_row(an_entry("s3://b/x.jpg"), a_frame(), dataclasses.replace(squares(3), qualities=both)),
            ok_row(an_entry("s3://b/y.jpg"), a_frame(), dataclasses.replace(squares(2), qualities=one)),
        ]
    return [dataclasses.replace(row, processed_at=MOMENT) for row in rows]


def digest_of(data: bytes) -> str:
    """Of all that a part holds but pyarrow's own name and its private copy of the schema."""
    footer = pq.read_metadata(pa.BufferReader(data))
    content = hashlib.sha256()
    for group in range(footer.num_row_groups):
        for place in range(footer.num_columns):
            column = footer.row_group(group).column(place)
            start = column.dictionary_page_offset or column.data_page_offset
            content.update(data[start : start + column.total_compressed_size])
            statistics = column.statistics and column.statistics.to_dict()
            content.update(f"{column.path_in_schema} {sorted(column.encodings)} {statistics}".encode())
    facts = {name: value for name, value in footer.metadata.items() if name != b"ARROW:schema"}
    content.update(repr(sorted(facts.items())).encode())
    content.update(footer.schema.to_arrow_schema().to_string(show_field_metadata=True).encode())
    return content.hexdigest()[:16]


@pytest.mark.parametrize("schema", DIGESTS)
@pytest.mark.parametrize("case", ["rows", "none"])
def test_a_published_schema_is_written_in_the_same_bytes_for_ever(schema: str, case: str) -> None:
    version = make_version(
        "segments", model="demo@abab", model_digest="ab" * 32, parameters={"stride": 1}, schema=schema
    )
    data = encode_part(
        rows_of(schema) if case == "rows" else [],
        version=version,
        plan=3,
        shard_id="aa11",
        attempt_id="0123456789abcdef" * 2,
        run_id="run-1",
        stage_seconds={"decode": 1.5, "infer": 2.25},
        class_names=CLASS_NAMES,
    )
    assert digest_of(data) == DIGESTS[schema][case == "none"]
