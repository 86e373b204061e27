"""What makes two items the same: SHA-256 of the bytes, and a perceptual hash that survives re-encoding and resizing.

The perceptual hash is Zauner's pHash: the upright image in grey, shrunk to 32 x 32, its cosine transform, and one bit
for each of 64 low frequencies: above their median or not. A copy keeps the order of frequencies, so few bits flip;
unrelated images differ in about half of them. Images without structure have noise for frequencies: they get none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy import fft

from infra.telling import tell
from tasks.labels.label_sets import image_id_of
from tasks.loop.schemas import FINGERPRINTS
from tasks.media.decoding import DecodeOptions, EntryReader, decode_fetched, fetch_entry
from tasks.output.entries import INVENTORY_SCHEMA
from tasks.output.tables import table_of
from tasks.records import Entry, ItemFailure

THREADS = 8
HASH_BITS = 64
_SIDE = 32
_FLAT = 2.0  # grey levels: a standard deviation below it is noise of the encoder
_CHUNK = 256
_BLOCK_BYTES = 1 << 20


def phash64(image_rgb: np.ndarray) -> int | None:
    """The perceptual hash of an (H, W, 3) uint8 image as a signed integer; None where the image has no structure.

    The 64 frequencies are the lowest ones without the mean, along the diagonals, so that neither axis counts more.
    """
    grey = Image.fromarray(image_rgb).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(grey, np.float64)
    if pixels.std() < _FLAT:
        return None
    frequencies = fft.dctn(pixels, norm="ortho")[_ROWS, _COLUMNS]
    bits = frequencies > np.median(frequencies)
    return int(np.packbits(bits).view(">i8")[0])


def _low_frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the first 64 places after the mean, diagonal by diagonal."""
    places = sorted(((row + column, row), row, column) for row in range(_SIDE) for column in range(_SIDE))
    chosen = np.array([[row, column] for _, row, column in places[1 : HASH_BITS + 1]])
    return chosen[:, 0], chosen[:, 1]


_ROWS, _COLUMNS = _low_frequencies()


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bits in which two int64 arrays of hashes differ; they broadcast."""
    return np.bitwise_count(np.bitwise_xor(a.astype(np.int64), b.astype(np.int64)).view(np.uint64)).astype(np.int32)


def fingerprints_of(
    entries: Iterable[Entry], *, groups: Mapping[str, str] | None = None, frame_stride: int = 30
) -> pa.Table:
    """``fingerprints.v1``: one row per image, and one per ``frame_stride`` frames of a video; failures are rows, too.

    Args:
        entries: what to read.
        groups: uri -> group id; an item that is not named is its own group, the frames of a video share the video's.
        frame_stride: of videos, every how many-th frame is looked at.
    """
    reader = EntryReader()
    options = DecodeOptions(stride=frame_stride)
    rows: list[dict[str, object]] = []
    waiting = iter(entries)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="fingerprints") as pool:
        while chunk := list(islice(waiting, _CHUNK)):
            for found in pool.map(lambda entry: list(_rows(entry, reader, options, groups or {})), chunk):
                rows += found
                tell("looking for pictures that look the same", len(rows), unit="pictures")
    rows.sort(key=lambda row: str(row["image_id"]))
    return table_of(FINGERPRINTS, rows) if rows else FINGERPRINTS.empty()


def entries_of(inventory: Path) -> Iterator[Entry]:
    """The objects of an inventory (``tasks.ingest.inventory``), to take fingerprints of."""
    names = [field.name for field in INVENTORY_SCHEMA]
    with pq.ParquetFile(inventory) as opened:
        for batch in opened.iter_batches(columns=names):
            for row in batch.to_pylist():
                yield Entry(**row)


def _digest(stream: BinaryIO) -> str:
    """SHA-256 of a whole stream, which is rewound afterwards."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    stream.seek(0)
    return digest.hexdigest()


def _rows(
    entry: Entry, reader: EntryReader, options: DecodeOptions, groups: Mapping[str, str]
) -> Iterator[dict[str, object]]:
    fetched = fetch_entry(entry, reader) if entry.problem is None else ItemFailure("inventory", "", entry.problem)
    row: dict[str, object] = {"uri": entry.uri, "etag": entry.etag, "group_id": groups.get(entry.uri, entry.uri)}
    if isinstance(fetched, ItemFailure):
        yield {**row, "image_id": entry.uri, "error": fetched.error}
        return
    if isinstance(fetched, bytes):
        row["sha256"] = hashlib.sha256(fetched).hexdigest()
    else:
        row["sha256"] = _digest(fetched)
    for frame in decode_fetched(entry, fetched, options):
        image_id = image_id_of(entry.uri, frame.frame if entry.media == "video" else None)
        pixels = frame.image_rgb_hwc_u8
        yield {
            **row,
            "image_id": image_id,
            "phash64": None if pixels is None else phash64(pixels),
            "error": frame.failure.error if frame.failure is not None else None,
        }
