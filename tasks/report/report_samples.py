"""The pictures of a report: which items are shown, and their pixels with what was found in them.

Chosen by what a reader wants to see: what the model is surest and least sure of, what an ordinary item looks like, what
failed, and how a video goes on. A source that is gone, changed or broken gives a placeholder that says so.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from PIL import Image

from tasks.media.decoding import DecodeOptions, EntryReader, decode_entry
from tasks.output.views import Views
from tasks.product import Product, called
from tasks.records import Entry
from tasks.report.drawing import resized
from tasks.report.panels import Panels
from tasks.report.planned import entries_of

_STRIP_FRAMES = 8
_MAX_FRAMES_TO_REACH = 600  # of a video that are decoded to get at one: a report may take seconds, not hours
_QUALITY = 82

_LONG_SIDE_PX = 640


@dataclass(frozen=True, slots=True)
class Sample:
    """An item to show. ``picture`` is a data URI, None when ``problem`` says why there is none."""

    uri: str
    frame: int
    pts_s: float | None
    status: str
    reason: str
    summary: str
    picture: str | None
    width_px: int
    height_px: int
    problem: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """Samples with a heading; ``is_strip``: frames of one video in the order of time."""

    title: str
    explanation: str
    samples: tuple[Sample, ...]
    is_strip: bool = False


def choose_and_load(views: Views, panels: Panels, samples: int, *, budget_s: float = 60.0) -> tuple[Gallery, ...]:
    """About ``samples`` pictures in galleries; after ``budget_s`` seconds the rest are placeholders that say so."""
    wanted = [gallery for gallery in _choose(views, panels, samples) if gallery[2]]
    rows = {(row["uri"], row["frame"]): row for _, _, group, _ in wanted for row in group}
    entries = entries_of(views, rows.values())
    deadline = time.monotonic() + budget_s
    overlay = _overlay_of(views.product)
    pictures = dict(_pictures(rows.values(), entries, deadline))
    return tuple(
        Gallery(
            title,
            explanation,
            tuple(_sample(row, pictures[_key(row)], panels, overlay, is_strip) for row in group),
            is_strip,
        )
        for title, explanation, group, is_strip in wanted
    )


def _choose(views: Views, panels: Panels, samples: int) -> Iterator[tuple[str, str, list[dict[str, Any]], bool]]:
    quarter = max(1, samples // 4)
    has_images = bool(views.connection.execute("SELECT 1 FROM items WHERE media = 'image' LIMIT 1").fetchall())
    which = "status = 'ok'" + (" AND media = 'image'" if has_images else "")
    seen: set[tuple[str, int]] = set()

    def fresh(condition: str, order: str, limit: int) -> list[dict[str, Any]]:
        rows = [row for row in _select(views, condition, order, limit + len(seen)) if _key(row) not in seen][:limit]
        seen.update(map(_key, rows))
        return rows

    if samples < 1:
        return
    for ranking in panels.rankings:
        rows = fresh(f"{which} AND {panels.found}", f"{ranking.order}, uri, frame", quarter)
        yield ranking.title, ranking.explanation, rows, False
    yield "Ordinary", "items drawn by chance, the same ones each time", fresh(which, "hash(uri), frame", quarter), False
    for uri in _videos(views, panels, 2):
        title, frames = f"Video {uri.rsplit('/', 1)[-1]}", _frames_of(views, panels, uri)
        if any(tracks for _, tracks in frames):
            said = f"frames of {uri} one after another, where most is going on: a track keeps its colour and its number"
            yield title, said, _rows_of(views, [(uri, frame) for frame in _busiest(frames)]), True
        else:
            said = f"frames of {uri} in the order of time"
            yield title, said, _rows_of(views, [(uri, frame) for frame in _spread(frames)]), True
    failed = fresh("status <> 'ok'", "hash(error_type), hash(uri), frame", quarter)
    yield "Failed", "items without a result, and why", failed, False


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["uri"], row["frame"]


def _select(views: Views, condition: str, order: str, limit: int) -> list[dict[str, Any]]:
    """Rank by narrow columns first; the masks of the chosen few are read in a second step."""
    keys = views.connection.execute(
        f"SELECT uri, frame FROM items WHERE {condition} ORDER BY {order} LIMIT {limit}"
    ).fetchall()
    return _rows_of(views, keys)


def _rows_of(views: Views, keys: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    if not keys:
        return []
    relation = views.connection.sql(
        "SELECT * FROM items WHERE uri IN (SELECT unnest(?::VARCHAR[])) AND frame IN (SELECT unnest(?::INTEGER[]))",
        params=[[uri for uri, _ in keys], [frame for _, frame in keys]],
    )
    rows = {_key(row): row for row in relation.to_arrow_table().to_pylist()}
    return [rows[key] for key in keys if key in rows]


def _videos(views: Views, panels: Panels, limit: int) -> list[str]:
    found = views.connection.execute(
        "SELECT uri FROM items WHERE media = 'video' AND status = 'ok' GROUP BY uri HAVING count(*) > 1"
        f" ORDER BY bool_or({panels.found}) DESC, hash(uri) LIMIT {limit}"
    ).fetchall()
    return [uri for (uri,) in found]


def _frames_of(views: Views, panels: Panels, uri: str) -> list[tuple[int, frozenset[int]]]:
    """The frames of a video that have a result, in order, and the ids of the tracks in each."""
    found = views.connection.execute(
        f"SELECT frame, {panels.tracks or '[]'} FROM items WHERE uri = ? AND status = 'ok' ORDER BY frame",
        [uri],
    ).fetchall()
    return [(frame, frozenset(tracks)) for frame, tracks in found]


def _spread(frames: Sequence[tuple[int, frozenset[int]]]) -> list[int]:
    """Frames at even distances over the video."""
    places = np.linspace(0, len(frames) - 1, min(_STRIP_FRAMES, len(frames))).round().astype(int)
    return [frames[place][0] for place in dict.fromkeys(places.tolist())]


def _busiest(frames: Sequence[tuple[int, frozenset[int]]]) -> list[int]:
    """Consecutive frames in which most tracks are seen, come or go; the first such place."""
    frames = [one for one in frames if one[0] - frames[0][0] < _MAX_FRAMES_TO_REACH]
    last = max(0, len(frames) - _STRIP_FRAMES)

    def events(start: int) -> int:
        seen = [tracks for _, tracks in frames[start : start + _STRIP_FRAMES]]
        changes = sum(len(before ^ after) for before, after in pairwise(seen))
        return len(frozenset().union(*seen)) + changes

    start = max(range(last + 1), key=events)
    return [frame for frame, _ in frames[start : start + _STRIP_FRAMES]]


Picture = np.ndarray | str  # pixels, or why there are none


def _pictures(
    rows: Iterable[dict[str, Any]], entries: dict[tuple[str, int], Entry], deadline: float
) -> Iterator[tuple[tuple[str, int], Picture]]:
    """The pixels of every row; frames of one piece of a video are decoded in one go."""
    reader = EntryReader()

    def place(row: dict[str, Any]) -> tuple[str, int]:
        entry = entries.get(_key(row))
        return row["uri"], -1 if entry is None else entry.first_frame

    for _, group in groupby(sorted(rows, key=lambda row: (*place(row), row["frame"])), key=place):
        members = list(group)
        entry = entries.get(_key(members[0]))
        if time.monotonic() > deadline:
            yield from ((_key(row), "not read: the report had run out of time") for row in members)
        elif entry is None:
            yield from ((_key(row), "its plan is not at hand") for row in members)
        else:
            yield from _decoded(members, entry, reader, deadline)


def _decoded(
    rows: list[dict[str, Any]], entry: Entry, reader: EntryReader, deadline: float
) -> Iterator[tuple[tuple[str, int], Picture]]:
    waiting = {row["frame"]: row for row in rows}
    for row in rows:
        if row["frame"] - entry.first_frame > _MAX_FRAMES_TO_REACH:
            yield _key(waiting.pop(row["frame"])), "too far from a keyframe to be decoded for a report"
    why = "the source has no such frame any more"
    if waiting:
        until = max(waiting) + 1
        piece = entry if entry.media == "image" else replace(entry, end_frame=until)
        for frame in decode_entry(piece, reader, DecodeOptions()):
            if frame.failure is not None:
                why = frame.failure.error
                break
            if frame.frame in waiting and frame.image_rgb_hwc_u8 is not None:
                yield _key(waiting.pop(frame.frame)), frame.image_rgb_hwc_u8
            if not waiting:
                break
            if time.monotonic() > deadline:
                why = "not read: the report had run out of time"
                break
    for row in waiting.values():
        yield _key(row), why


Overlay = Callable[..., np.ndarray]


def _overlay_of(product: Product | None) -> Overlay | None:
    """A product's overlay, which says whose it is when it fails."""
    if product is None or product.overlay is None:
        return None
    draw = product.overlay

    def overlay(image: np.ndarray, row: Mapping[str, Any], *, in_strip: bool = False) -> np.ndarray:
        with called(product, "overlay"):
            return draw(image, row, in_strip=in_strip)

    return overlay


def _sample(row: dict[str, Any], pixels: Picture, panels: Panels, overlay: Overlay | None, is_strip: bool) -> Sample:
    reason = "" if row["status"] == "ok" else f"{row['stage']}: {row['error']}"
    problem, picture, width, height = "", None, 0, 0
    if isinstance(pixels, str):
        problem = "" if reason and row["status"] != "ok" else pixels
    elif row["status"] == "ok" and pixels.shape[:2] != (row["height"], row["width"]):
        problem = "the source has another size now"
    else:
        drawn = pixels if overlay is None or row["status"] != "ok" else overlay(pixels, row, in_strip=is_strip)
        if drawn.shape == pixels.shape:  # an overlay may have chosen a size of its own
            drawn = resized(drawn, long_side_px=_LONG_SIDE_PX)
        height, width = drawn.shape[:2]
        picture = data_uri(drawn)
    return Sample(
        uri=row["uri"],
        frame=row["frame"],
        pts_s=row["pts_s"],
        status=row["status"],
        reason=reason,
        summary=panels.summary(row) if row["status"] == "ok" else "",
        picture=picture,
        width_px=width,
        height_px=height,
        problem=problem,
    )


def data_uri(image_rgb_hwc_u8: np.ndarray) -> str:
    """An (H, W, 3) uint8 picture as an address that holds it whole."""
    sink = io.BytesIO()
    Image.fromarray(image_rgb_hwc_u8).save(sink, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
