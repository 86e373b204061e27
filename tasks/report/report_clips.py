"""Short videos inside of a report: consecutive frames with what was found, played by the browser."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.media.clip_file import ClipFile
from tasks.media.decoding import EntryReader
from tasks.output.views import Views
from tasks.records import Entry
from tasks.report.drawing import resized
from tasks.report.item_pixels import Draw, decoded, key_of
from tasks.report.planned import decoding_of, entries_of

CLIP_FRAMES = 60
CLIP_SIDE_PX = 400
_QUALITY = 30  # H.264's scale: 18 shows no loss, 30 a little


def clip_of(views: Views, rows: Sequence[dict[str, Any]], draw: Draw, *, deadline: float) -> str:
    """An MP4 as data URI; "" where fewer than two frames can be read before the deadline.

    Args:
        views: open views of the output.
        rows: of ``items``, frames of one video in order.
        draw: (pixels, row) -> picture.
        deadline: of time.monotonic().
    """
    entries, options = entries_of(views, rows), decoding_of(views)
    pieces: dict[int, tuple[Entry, list[dict[str, Any]]]] = {}
    for row in rows:
        entry = entries.get(key_of(row))
        if entry is not None:
            pieces.setdefault(entry.first_frame, (entry, []))[1].append(row)
    by_key = {key_of(row): row for row in rows}
    with tempfile.TemporaryDirectory(prefix="visionmill-report-") as folder:
        path, frames = Path(folder) / "clip.mp4", 0
        clip = ClipFile(path, quality=_QUALITY)
        for _, (entry, members) in sorted(pieces.items(), key=lambda pair: pair[0]):
            for key, pixels in decoded(members, entry, EntryReader(), options, deadline):
                row = by_key[key]
                if not isinstance(pixels, str) and pixels.shape[:2] == (row["height"], row["width"]):
                    clip.add(resized(draw(pixels, row), long_side_px=CLIP_SIDE_PX), row["pts_s"])
                    frames += 1
            if time.monotonic() > deadline:
                break
        if not clip.close() or frames < 2:
            return ""
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
