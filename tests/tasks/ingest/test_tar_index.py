from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.ingest.tar_index import TarBrokenError, TarMember, tar_members
from tests.tasks.ingest.helpers import tar_of

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "deep/" * 40 + "ünïcode name with # and ? " + "x" * 90 + ".jpg"


def index(data: bytes) -> list[TarMember]:
    return list(tar_members(io.BytesIO(data), len(data)))


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_names_and_their_bytes_are_found(form: str) -> None:
    members = {LONG: b"long", "a.jpg": b"x" * 513, "empty.png": b"", "b/./c.jpg": b"y" * 512}
    data = tar_of(members, form=FORMATS[form])
    found = index(data)
    assert {member.name: data[member.offset : member.offset + member.length] for member in found} == members


def test_a_ustar_prefix_is_part_of_the_name() -> None:
    name = "p" * 90 + "/" + "q" * 60 + ".jpg"
    assert [member.name for member in index(tar_of({name: b"1"}))] == [name]


def test_a_name_that_is_no_utf8_is_shown_escaped() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("caf\xe9.jpg"))
    assert [member.name for member in index(out.getvalue())] == ["caf\\xe9.jpg"]


def test_folders_are_no_members_and_links_say_that_they_are_links() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "a.jpg"
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert {member.name: member.left_out for member in index(out.getvalue())} == {
        "l.jpg": "a link",
        "h.jpg": "a link to another member",
        "a.jpg": None,
    }


def test_sizes_in_base_256_are_read() -> None:
    data = bytearray(tar_of({"a.jpg": b"x" * 700, "b.jpg": b"y"}))
    data[124:136] = b"\x80" + (700).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert [(member.name, member.length) for member in index(bytes(data))] == [("a.jpg", 700), ("b.jpg", 1)]


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=150).map(
            lambda s: f"m/{s}"
        ),
        st.binary(max_size=1500),
        max_size=6,
    ),
    st.sampled_from(["gnu", "pax"]),
)
def test_the_index_agrees_with_the_standard_library(members: dict[str, bytes], form: str) -> None:
    data = tar_of(members, form=FORMATS[form])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    assert [(member.name, member.offset, member.length) for member in index(data)] == expected


def test_an_archive_without_an_end_mark_ends_with_its_last_member() -> None:
    data = tar_of({"a.jpg": b"x" * 1000, "b.jpg": b"y" * 1000})
    assert [member.name for member in index(data[: 512 * 6])] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("cut", "whole", "reason"),
    [
        (512 * 3 + 100, ["a.jpg"], "inside a header"),
        (512 * 4 + 100, ["a.jpg"], "ends inside the member 'b.jpg'"),
        (0, [], "empty"),
        (200, [], "inside a header"),
    ],
)
def test_a_cut_archive_gives_its_whole_members_and_then_the_break(cut: int, whole: list[str], reason: str) -> None:
    data = tar_of({"a.jpg": b"x" * 1000, "b.jpg": b"y" * 1000})[:cut]
    found: list[TarMember] = []
    with pytest.raises(TarBrokenError, match=reason):
        found.extend(tar_members(io.BytesIO(data), len(data)))
    assert [member.name for member in found] == whole


def test_a_damaged_header_is_a_break_where_the_standard_library_ends_silently() -> None:
    data = bytearray(tar_of({"a.jpg": b"x" * 1000, "b.jpg": b"y" * 1000, "c.jpg": b"z"}))
    data[512 * 3 + 10] ^= 0xFF
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        assert tar.getnames() == ["a.jpg"]
    with pytest.raises(TarBrokenError, match="damaged header") as caught:
        index(bytes(data))
    assert caught.value.offset == 512 * 3


@pytest.mark.parametrize("data", [b"\x1f\x8b" + b"z" * 2000, b"not a tar at all" * 100, b"\xff" * 600])
def test_something_else_is_not_a_tar(data: bytes) -> None:
    with pytest.raises(TarBrokenError, match="not a tar archive"):
        index(data)


@settings(max_examples=80)
@given(st.binary(max_size=3000), st.integers(0, 3000), st.booleans())
def test_no_garbage_makes_it_raise_anything_else(noise: bytes, at: int, whole: bool) -> None:
    data = bytearray(tar_of({LONG: b"x" * 700, "b.jpg": b"y" * 600}, form=tarfile.PAX_FORMAT))
    data = bytearray(noise) if whole else data[:at] + noise + data[at + len(noise) :]
    try:
        for member in tar_members(io.BytesIO(bytes(data)), len(data)):
            assert 0 <= member.offset <= member.offset + member.length <= len(data)
    except TarBrokenError:
        pass
