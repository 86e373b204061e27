"""Find the members of a tar by reading its headers only: 512 bytes a member, the data in between is jumped over.

Reads ustar, GNU (long names, base-256 sizes) and pax archives. Python's ``tarfile`` is not used because it ends
silently at a damaged header; here the break is reported with its offset, and the members before it are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK_BYTES = 512
MAX_META_BYTES = 1 << 20  # a name or pax header longer than this is damage, not a name
_REGULAR = frozenset(b"07\0")
_FOLDER = ord("5")
_SPECIAL = {ord("1"): "a link to another member", ord("2"): "a link"}
_NO_DATA = frozenset(b"123456")  # links, devices, folders, pipes: no data follows, whatever the size field says


class TarBrokenError(ValueError):
    """The archive cannot be read on from ``offset``; ``name`` is the member concerned, if its header was whole."""

    def __init__(self, offset: int, reason: str, name: str | None = None) -> None:
        super().__init__(f"{reason} (at byte {offset})")
        self.offset = offset
        self.name = name


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member of a tar; ``offset`` and ``length`` are bytes inside the archive.

    ``left_out`` says why it holds no data of its own, None for a regular file.
    """

    name: str
    offset: int
    length: int
    left_out: str | None = None


@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    size: int
    kind: int
    extended: bool  # an old GNU sparse map goes on in further blocks


def tar_members(file: BinaryIO, size_bytes: int) -> Iterator[TarMember]:
    """Members in archive order, but for folders; an archive may end without its end mark, at the end of a member.

    Args:
        file: seekable reader of the whole archive.
        size_bytes: length of the archive.

    Raises:
        TarBrokenError: after the last whole member, when the archive is damaged or cut short.
    """
    if size_bytes == 0:
        raise TarBrokenError(0, "the archive is empty")
    position = 0
    long_name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    pax_global: dict[bytes, bytes] = {}
    while True:
        if position == size_bytes and long_name is None and not pax:
            return  # written by something that leaves the end mark out
        header = _read_header(file, position, size_bytes)
        if header is None:
            return
        data = position + BLOCK_BYTES
        if header.kind in b"LKxXg":
            content = _read_meta(file, header, data, size_bytes)
            if header.kind == ord("L"):
                long_name = content.rstrip(b"\0")
            elif header.kind == ord("g"):
                pax_global |= _pax_records(content, position)
            elif header.kind != ord("K"):
                pax = pax_global | _pax_records(content, position)
            position = data + _padded(header.size)
            continue
        fields = pax or pax_global
        name = _text(long_name or fields.get(b"path") or header.name)
        size = _pax_size(fields, position, header.size)
        data = _after_sparse_map(file, header, data, size_bytes)
        if header.kind not in _NO_DATA:
            if data + size > size_bytes:
                raise TarBrokenError(position, f"the archive ends inside the member {name!r}", name)
            if header.kind in _REGULAR and not name.endswith("/") and not _is_sparse(fields):
                yield TarMember(name, data, size)
            elif header.kind not in _REGULAR or _is_sparse(fields):
                yield TarMember(name, data, size, "a sparse file")
            data += _padded(size)
        elif header.kind != _FOLDER:
            yield TarMember(name, data, 0, _SPECIAL.get(header.kind, "no regular file"))
        position, long_name, pax = data, None, {}


def _read_header(file: BinaryIO, position: int, size_bytes: int) -> _Header | None:
    """The header at ``position``; None at the mark that ends an archive."""
    if position >= size_bytes:
        raise TarBrokenError(position, "the archive ends without its end mark: it was probably cut short")
    block = _read(file, position, BLOCK_BYTES)
    if len(block) < BLOCK_BYTES:
        raise TarBrokenError(position, "the archive ends inside a header")
    if not any(block):
        return None
    checksum = _number(block[148:156])
    if checksum is None or checksum != sum(block) - sum(block[148:156]) + 8 * 0x20:
        what = "a damaged header" if position else "not a tar archive"
        raise TarBrokenError(position, what + (" (it is gzip data)" if block.startswith(b"\x1f\x8b") else ""))
    size = _number(block[124:136])
    if size is None or size < 0:
        raise TarBrokenError(position, "a header states no size")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return _Header(name, size, block[156], extended=block[156] == ord("S") and block[482] != 0)


def _read_meta(file: BinaryIO, header: _Header, data: int, size_bytes: int) -> bytes:
    """The content of a long-name or pax header."""
    if header.size > MAX_META_BYTES:
        raise TarBrokenError(data - BLOCK_BYTES, f"a name header of {header.size} bytes")
    if data + header.size > size_bytes:
        raise TarBrokenError(data - BLOCK_BYTES, "the archive ends inside a name header")
    content = _read(file, data, header.size)
    if len(content) < header.size:
        raise TarBrokenError(data - BLOCK_BYTES, "the archive ends inside a name header")
    return content


def _after_sparse_map(file: BinaryIO, header: _Header, data: int, size_bytes: int) -> int:
    """Where the data starts: old GNU sparse maps may go on for more blocks."""
    more = header.extended
    while more:
        block = _read(file, data, BLOCK_BYTES)
        if len(block) < BLOCK_BYTES or data >= size_bytes:
            raise TarBrokenError(data, "the archive ends inside a sparse map")
        more, data = block[504] != 0, data + BLOCK_BYTES
    return data


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _padded(size: int) -> int:
    return (size + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES


def _number(field: bytes) -> int | None:
    """Octal digits, or base-256 when the top bit is set (sizes from 8 GiB on); None if neither."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        return value - (1 << 8 * len(field)) if field[0] == 0xFF else value & ((1 << 8 * len(field) - 1) - 1)
    digits = field.partition(b"\0")[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _pax_records(content: bytes, position: int) -> dict[bytes, bytes]:
    """``<length> <key>=<value>\\n`` records."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content) and content[at]:
        digits = content[at : at + 20].partition(b" ")[0]
        if not digits.isdigit():
            raise TarBrokenError(position, "a damaged pax header")
        end = at + int(digits)
        key, equals, value = content[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or end > len(content):
            raise TarBrokenError(position, "a damaged pax header")
        records[key] = value
        at = end
    return records


def _pax_size(fields: dict[bytes, bytes], position: int, otherwise: int) -> int:
    if (stated := fields.get(b"size")) is None:
        return otherwise
    if not stated.isdigit():
        raise TarBrokenError(position, "a pax header states no size")
    return int(stated)


def _is_sparse(fields: dict[bytes, bytes]) -> bool:
    return any(key.startswith(b"GNU.sparse.") for key in fields)


def _text(name: bytes) -> str:
    """Names are data: bytes that are no UTF-8 show as ``\\xNN``; the member is found by its offset anyway."""
    return name.decode("utf-8", "backslashreplace")
