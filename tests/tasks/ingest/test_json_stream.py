from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.ingest import json_stream
from tasks.ingest.json_stream import JsonBrokenError, iter_array

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.lists(VALUES, max_size=6), st.integers(1, 50), VALUES
)
def test_the_array_is_found_whatever_surrounds_it_and_however_it_is_cut(
    before: dict[str, object], wanted: list[object], chunk: int, after: object
) -> None:
    before.pop("images", None)
    text = json.dumps({**before, "images": wanted, "zzz": after}, ensure_ascii=False, indent=1 if chunk % 2 else None)
    patch = pytest.MonkeyPatch()
    patch.setattr(json_stream, "CHUNK_CHARS", chunk)
    with patch.context():
        assert list(iter_array(io.StringIO(text), "images")) == wanted
    patch.undo()


@pytest.mark.parametrize("text", ["{}", '{"a": [1, {"images": [2]}]}', '{"images": {"a": 1}}'])
def test_without_a_top_level_array_there_is_nothing(text: str) -> None:
    assert list(iter_array(io.StringIO(text), "images")) == []


@pytest.mark.parametrize("text", ["", "[1]", "nonsense", '{"images": [{"a": 1}, {"b"', '{"images": [1 2]}', '{"a": "x'])
def test_what_is_no_json_object_or_cut_short_is_an_error(text: str) -> None:
    with pytest.raises(JsonBrokenError):
        list(iter_array(io.StringIO(text), "images"))


def test_the_rest_of_the_file_is_not_read_once_the_array_has_ended() -> None:
    text = io.StringIO('{"images": [1, 2], "annotations": [' + "0," * 5_000_000 + "0]}")
    assert list(iter_array(text, "images")) == [1, 2]
    assert text.tell() < 3_000_000
