"""The pictures of a report: which items are shown, and their pixels with what was found in them.

Chosen by what a reader wants to see: what the model is surest and least sure of, what an ordinary item looks like, what
failed, and how a video goes on. A source that is gone, changed or broken gives a placeholder that says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from tasks.output.views import Views
from tasks.product import Product, called
from tasks.report.drawing import resized
from tasks.report.item_pixels import MAX_FRAMES_TO_REACH, Key, Picture, key_of, pixels_of_items
from tasks.report.panels import Panels
from tasks.report.pictures import pictured
from tasks.report.planned import decoding_of, entries_of
from tasks.report.report_clips import CLIP_FRAMES, clip_of

_STRIP_FRAMES = 8

_LONG_SIDE_PX = 640


Overlay = Callable[..., np.ndarray]


@dataclass(frozen=True, slots=True)
class Sample:
    """An item to show.

    Args:
        picture: data URI, None when ``problem`` says why there is none.
        layer: data URI of what was found, to be laid upon it; "" where the picture holds it.
        facets: what was found -> its best score, to filter by.
    """

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
    layer: str = ""
    facets: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gallery:
    """Samples with a heading; ``is_strip``: frames of one video in the order of time, ``clip`` a longer piece of it."""

    title: str
    explanation: str
    samples: tuple[Sample, ...]
    is_strip: bool = False
    clip: str = ""


def choose_and_load(views: Views, panels: Panels, samples: int, *, budget_s: float = 60.0) -> tuple[Gallery, ...]:
    """About ``samples`` pictures in galleries; after ``budget_s`` seconds the rest are placeholders that say so."""
    wanted = [gallery for gallery in _choose(views, panels, samples) if gallery[2]]
    rows = {(row["uri"], row["frame"]): row for _, _, group, _ in wanted for row in group}
    entries = entries_of(views, rows.values())
    deadline = time.monotonic() + budget_s
    overlay = _overlay_of(views.product)
    pictures = dict(pixels_of_items(rows.values(), entries, decoding_of(views), deadline))
    galleries = []
    for title, explanation, group, is_strip in wanted:
        shown = tuple(_sample(row, pictures[key_of(row)], panels, overlay, is_strip) for row in group)
        clip = _clip(views, group, overlay, deadline) if is_strip else ""
        galleries.append(Gallery(title, explanation, shown, is_strip, clip))
    return tuple(galleries)


def samples_of(views: Views, panels: Panels, keys: Sequence[Key], *, deadline: float) -> list[Sample]:
    """The named items, in their order; of one that the views do not show there is none."""
    rows = _rows_of(views, keys)
    overlay = _overlay_of(views.product)
    pictures = dict(pixels_of_items(rows, entries_of(views, rows), decoding_of(views), deadline))
    return [_sample(row, pictures[key_of(row)], panels, overlay, False) for row in rows]


def _clip(views: Views, strip: Sequence[dict[str, Any]], overlay: Overlay | None, deadline: float) -> str:
    """A video from the first frame of a strip on."""
    if overlay is None or not strip:
        return ""
    found = views.connection.execute(
        "SELECT frame FROM items WHERE uri = ? AND frame >= ? AND status = 'ok' ORDER BY frame LIMIT ?",
        [strip[0]["uri"], strip[0]["frame"], CLIP_FRAMES],
    ).fetchall()
    rows = _rows_of(views, [(strip[0]["uri"], frame) for (frame,) in found])
    return clip_of(views, rows, lambda pixels, row: _draw(overlay, row, True, pixels), deadline=deadline)


def _choose(views: Views, panels: Panels, samples: int) -> Iterator[tuple[str, str, list[dict[str, Any]], bool]]:
    quarter = max(1, samples // 4)
    has_images = bool(views.connection.execute("SELECT 1 FROM items WHERE media = 'image' LIMIT 1").fetchall())
    which = "status = 'ok'" + (" AND media = 'image'" if has_images else "")
    seen: set[tuple[str, int]] = set()

    def fresh(condition: str, order: str, limit: int) -> list[dict[str, Any]]:
        rows = [row for row in _select(views, condition, order, limit + len(seen)) if key_of(row) not in seen][:limit]
        seen.update(map(key_of, rows))
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
    rows = {key_of(row): row for row in relation.to_arrow_table().to_pylist()}
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
    frames = [one for one in frames if one[0] - frames[0][0] < MAX_FRAMES_TO_REACH]
    last = max(0, len(frames) - _STRIP_FRAMES)

    def events(start: int) -> int:
        seen = [tracks for _, tracks in frames[start : start + _STRIP_FRAMES]]
        changes = sum(len(before ^ after) for before, after in pairwise(seen))
        return len(frozenset().union(*seen)) + changes

    start = max(range(last + 1), key=events)
    return [frame for frame, _ in frames[start : start + _STRIP_FRAMES]]


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
    problem, shown = "", None
    if isinstance(pixels, str):
        problem = "" if reason and row["status"] != "ok" else pixels
    elif row["status"] == "ok" and pixels.shape[:2] != (row["height"], row["width"]):
        problem = "the source has another size now"
    else:
        draw = None if overlay is None or row["status"] != "ok" else partial(_draw, overlay, row, is_strip)
        shown = pictured(pixels, draw)
    return Sample(
        uri=row["uri"],
        frame=row["frame"],
        pts_s=row["pts_s"],
        status=row["status"],
        reason=reason,
        summary=panels.summary(row) if row["status"] == "ok" else "",
        picture=None if shown is None else shown.plain,
        width_px=0 if shown is None else shown.width_px,
        height_px=0 if shown is None else shown.height_px,
        problem=problem,
        layer="" if shown is None else shown.layer,
        facets=panels.facets(row) if row["status"] == "ok" else {},
    )


def _draw(overlay: Overlay, row: Mapping[str, Any], is_strip: bool, pixels: np.ndarray) -> np.ndarray:
    drawn = overlay(pixels, row, in_strip=is_strip)
    # An overlay may have chosen a size of its own.
    return resized(drawn, long_side_px=_LONG_SIDE_PX) if drawn.shape == pixels.shape else drawn
