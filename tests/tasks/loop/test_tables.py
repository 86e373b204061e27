"""The loop's tables: named by their content, created once, never by how they were chunked or written."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from infra.errors import StoreError
from infra.store import open_store
from tasks.loop.schemas import SPLIT_ITEMS
from tasks.output.tables import append, content_digest, decode_table, encode_table, list_tables, read, table_of

SCHEMA = pa.schema(
    [
        ("text", pa.string()), ("reals", pa.list_(pa.float32())), ("counts", pa.map_(pa.string(), pa.int32())),
        ("flag", pa.bool_()), ("moment", pa.timestamp("us", tz="UTC")), ("boxes", pa.list_(pa.list_(pa.float32()))),
        ("mask", pa.binary()), ("number", pa.int64()),
    ]
)  # fmt: skip
NOW = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
ROWS: list[dict[str, Any]] = [
    {"text": "x", "reals": [1, 2], "counts": [("k", 1)], "flag": True, "moment": NOW, "boxes": [[1.0], []],
     "mask": b"zz", "number": None},
    dict.fromkeys(SCHEMA.names),
    {"text": "", "reals": [], "counts": [], "flag": False, "moment": NOW.replace(year=2027), "boxes": [],
     "mask": b"", "number": 0},
]  # fmt: skip
OTHER = {"text": "q", "reals": [9], "counts": [("z", 4)], "moment": NOW.replace(year=2020), "boxes": [[7.0]],
         "mask": b"q", "number": 77}  # fmt: skip


def test_the_digest_sees_every_value_and_no_chunk() -> None:
    table = pa.Table.from_pylist(ROWS, schema=SCHEMA)
    digest = content_digest(table)
    assert content_digest(pa.concat_tables([table.slice(0, 1), table.slice(1)])) == digest
    assert content_digest(pa.concat_tables([table, table]).slice(3)) == digest
    for row in range(3):
        for name in SCHEMA.names:
            changed = copy.deepcopy(ROWS)
            changed[row][name] = OTHER.get(name, not changed[row][name])
            assert content_digest(pa.Table.from_pylist(changed, schema=SCHEMA)) != digest, (row, name)
    assert content_digest(table.slice(0, 0)) != digest


def split_rows(*names: str) -> pa.Table:
    return table_of(SPLIT_ITEMS, [{"image_id": n, "uri": n, "group_id": n, "split": "train"} for n in names])


def test_the_same_rows_are_one_object_and_others_are_another(store_uri: str) -> None:
    store = open_store(store_uri)
    first = append(store, SPLIT_ITEMS, split_rows("a", "b"))
    before = store.info(first)
    assert append(store, SPLIT_ITEMS, split_rows("a", "b")) == first and store.info(first) == before
    second = append(store, SPLIT_ITEMS, split_rows("c"))
    assert second != first and sorted(read(store, SPLIT_ITEMS)["image_id"].to_pylist()) == ["a", "b", "c"]
    assert [stored.info.key for stored in list_tables(store)["split_items"]] == sorted([first, second])
    with pytest.raises(ValueError, match="no rows"):
        append(store, SPLIT_ITEMS, split_rows().slice(0, 0))
    with pytest.raises(ValueError, match="no name"):
        append(store, SPLIT_ITEMS, split_rows("a"), round_number=1, kind="../x")


def test_strangers_between_the_tables_are_not_read_and_damage_is_told(store_uri: str) -> None:
    store = open_store(store_uri)
    key = append(store, SPLIT_ITEMS, split_rows("a"))
    store.put("lineage/split_items/notes.txt", b"hello")
    store.put("lineage/unknown/part-0123456789abcdef.parquet", b"hello")
    assert read(store, SPLIT_ITEMS).num_rows == 1
    store.put(key, b"PAR1 no more PAR1")
    with pytest.raises(StoreError, match="no readable part"):
        read(store, SPLIT_ITEMS)


def test_bytes_depend_on_rows_alone() -> None:
    table = split_rows("a", "b", "c")
    rechunked = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert encode_table(SPLIT_ITEMS, rechunked) == encode_table(SPLIT_ITEMS, table)
    assert decode_table(SPLIT_ITEMS, encode_table(SPLIT_ITEMS, table)).equals(table)
