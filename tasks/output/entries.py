"""The columns of an inventory, and what an etag in it means.

Etags say whether bytes are still the ones that were listed. There are three forms:

- as the store gives them: S3's etag without quotes, ``<mtime_ns>-<size>`` for a local file;
- ``<etag of the tar>:<offset>:<length>`` for a member of a tar;
- ``unknown:<size>`` when a ready listing states none. Looking up the etag of every listed object would cost one request
  each, which a ready listing is there to avoid; so such an item is planned again only when its size changes, and its
  bytes are read without a check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from tasks.records import UNKNOWN_ETAG, Media

MEMBER_SEPARATOR = "!/"  # container!/member
BATCH_ROWS = 32_768

INVENTORY_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),  # 0 if a listing does not state it
        pa.field("media", pa.string(), nullable=False),  # image or video
        pa.field("container", pa.string()),  # URI of the tar that holds the item
        pa.field("offset", pa.int64()),  # first byte inside the container
        pa.field("length", pa.int64()),  # bytes inside the container
        pa.field("problem", pa.string()),  # why the item cannot be read, when listing it showed that already
    ]
)


class Row(NamedTuple):
    """One line of an inventory; the fields are the columns of :data:`INVENTORY_SCHEMA`."""

    uri: str
    etag: str
    size_bytes: int
    media: Media
    container: str | None = None
    offset: int | None = None
    length: int | None = None
    problem: str | None = None


@dataclass(slots=True)
class Skipped:
    """What a listing left out, counted by reason, with the first few names of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, names: Iterable[str], count: int) -> None:
        """Count ``count`` objects left out for ``reason``; of ``names`` the first three are kept."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            kept = self.examples.setdefault(reason, [])
            kept.extend(printable(name) for name in islice(names, 3 - len(kept)))

    def merge(self, other: Skipped) -> None:
        """Add what another thread counted."""
        for reason, count in other.counts.items():
            self.add(reason, other.examples[reason], count)


def batches_of(rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    """Arrow batches of at most :data:`BATCH_ROWS` rows; no more than one batch of Python objects exists at a time."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, BATCH_ROWS)):
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*chunk, strict=True), INVENTORY_SCHEMA, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=INVENTORY_SCHEMA)


def printable(name: str) -> str:
    """``name`` as valid Unicode: bytes of a file name that are no UTF-8 show as ``\\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_unicode(name: str) -> bool:
    """Whether a name can be stored as text at all (a local file's name need not be UTF-8)."""
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def member_etag(tar_etag: str, offset: int, length: int) -> str:
    """The etag of a tar's member: it changes with the tar and with the member's place in it."""
    return f"{tar_etag}:{offset}:{length}"


def unknown_etag(size_bytes: int) -> str:
    """The etag of an item whose listing states none."""
    return f"{UNKNOWN_ETAG}{size_bytes}"
