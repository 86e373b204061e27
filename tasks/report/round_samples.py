"""The pictures of a round's report: what was accepted, ignored and rejected, and where the two models disagree."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from infra.errors import VisionmillError
from modelkit import rle
from tasks.evaluation.evaluate import pixels_of
from tasks.labels.shapes import brush_to_rle
from tasks.loop.disagreements import disagreements_key
from tasks.media.reading import EntryReader
from tasks.output.views import Views
from tasks.report.drawing import DrawnObject, draw_objects
from tasks.report.report_samples import Gallery, Sample, data_uri

Row = dict[str, Any]

_LONG_SIDE_PX = 640
_GAP_PX = 8

# Title, explanation, decision, order of items, order of the objects on an item and how many: more would hide it.
_GALLERIES = (
    ("Accepted, drawn by chance", "labels that teach the student; the same items each time", "accept",
     "hash(image_id)", "score_cal DESC", 24),
    ("Accepted, least sure", "the labels nearest to their threshold: mistakes are likeliest here", "accept",
     "min(score_raw - t_hi)", "score_raw - t_hi", 2),
    ("Ignored", "neither taught nor background: too unsure, or refused by a rule", "ignore",
     "max(score_cal) DESC", "score_cal DESC", 12),
    ("Rejected", "taken as background; the surest of them", "reject", "max(score_cal) DESC", "score_cal DESC", 5),
)  # fmt: skip


def choose_and_draw(views: Views, record: Row, samples: int, *, budget_s: float) -> tuple[Gallery, ...]:
    """About ``samples`` pictures of what was decided in a round, in galleries.

    Args:
        views: of the loop's output.
        record: row of ``rounds.v1``.
        samples: 0 for none.
        budget_s: seconds after which the rest are placeholders that say so.
    """
    each = max(1, samples // len(_GALLERIES))
    draw = _Drawer(time.monotonic() + budget_s)
    galleries = []
    for title, explanation, decision, items, objects, most in _GALLERIES if samples > 0 else ():
        groups = _choose(views, record, decision, (items, objects), (each, most))
        if groups:
            galleries.append(Gallery(title, explanation, tuple(draw.decided(group) for group in groups)))
    return tuple(galleries)


def draw_disagreements(views: Views, record: Row, samples: int, *, budget_s: float) -> tuple[Gallery, ...]:
    """The gravest disagreements of a round, champion to the left and candidate to the right; from the stored tasks."""
    store = views.listing.store
    key = disagreements_key(record["run_id"], record["round"], "label_studio.json")
    if samples < 1 or not any(info.key == key for info in store.list(key)):
        return ()
    named = views.connection.execute(
        "SELECT DISTINCT class_name, class_id FROM threshold_sets WHERE threshold_set_id = ?",
        [record["threshold_set_id"]],
    ).fetchall()
    draw = _Drawer(time.monotonic() + budget_s, dict(named))
    tasks = json.loads(store.get(key))[:samples]
    said = "left: the champion, right: the candidate; only what they see differently is drawn"
    return (Gallery("Gravest first", said, tuple(draw.task(task) for task in tasks)),)


def _choose(
    views: Views, record: Row, decision: str, order: tuple[str, str], limit: tuple[int, int]
) -> list[list[Row]]:
    """The rows of one decision, item by item; masks are read in a second step, of the chosen items only."""
    mine = [record["run_id"], record["round"], record["threshold_set_id"], decision]
    where = "run_id = ? AND round = ? AND threshold_set_id = ? AND decision = ?"
    chosen = views.connection.execute(
        f"SELECT image_id FROM pseudo_labels WHERE {where}"
        f" GROUP BY image_id ORDER BY {order[0]}, image_id LIMIT {limit[0]}",
        mine,
    ).fetchall()
    names = [image_id for (image_id,) in chosen]
    if not names:
        return []
    rows = views.connection.sql(
        "SELECT image_id, media_uri, frame_index, pts_us, width, height, class_id, class_name, score_cal, reason_code,"
        f" bbox_xywh, mask_rle FROM pseudo_labels WHERE {where} AND image_id IN (SELECT unnest(?::VARCHAR[]))"
        f" QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY {order[1]}, seq) <= {limit[1]}",
        params=[*mine, names],
    ).to_arrow_table()
    found: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows.to_pylist():
        found[row["image_id"]].append(row)
    return list(found.values())


class _Drawer:
    """Reads items of U and draws on them; what cannot be read gives a placeholder that says why."""

    def __init__(self, deadline: float, class_ids: Mapping[str, int] = MappingProxyType({})) -> None:
        self._deadline, self._class_ids = deadline, class_ids
        self._reader = EntryReader()

    def decided(self, rows: Sequence[Row]) -> Sample:
        """An item with its candidates of one decision."""
        first = rows[0]
        objects = [
            DrawnObject(
                name=row["class_name"],
                label=row["class_id"],
                score=row["score_cal"],
                box_xyxy=_corners(row["bbox_xywh"]),
                rle=row["mask_rle"],
            )
            for row in rows
        ]
        return self._sample(
            first["media_uri"],
            first["frame_index"],
            (first["height"], first["width"]),
            _summary(rows),
            lambda pixels: draw_objects(pixels, objects, long_side_px=_LONG_SIDE_PX),
        )

    def task(self, task: Row) -> Sample:
        """A disagreement, as it was exported for Label Studio."""
        data, size_hw = task["data"], (task["meta"]["height"], task["meta"]["width"])
        sides = {
            side: [
                self._region(region, size_hw)
                for found in task["predictions"]
                if found["model_version"].startswith(f"{side} ")
                for region in found["result"]
            ]
            for side in ("champion", "candidate")
        }

        def both(pixels: np.ndarray) -> np.ndarray:
            left, right = (draw_objects(pixels, found, long_side_px=_LONG_SIDE_PX) for found in sides.values())
            gap = np.full((left.shape[0], _GAP_PX, 3), 255, np.uint8)
            return np.concatenate([left, gap, right], axis=1)

        frame = data["image_id"].removeprefix(data["image"]).removeprefix("#")
        kinds = ", ".join(kind.replace("_", " ") for kind in data["kinds"])
        return self._sample(
            data["image"],
            int(frame) if frame else None,
            size_hw,
            f"{kinds}; weight {data['disagreement']:.2f}",
            both,
        )

    def _region(self, region: Row, size_hw: tuple[int, int]) -> DrawnObject:
        mask = brush_to_rle(region["value"]["rle"], size_hw)
        [name] = region["value"]["brushlabels"]
        x0, y0, x1, y1 = (float(value) for value in rle.bbox(mask, size_hw))
        return DrawnObject(name, self._class_ids.get(name, 0), region["score"], (x0, y0, x1, y1), mask)

    def _sample(
        self,
        uri: str,
        frame: int | None,
        size_hw: tuple[int, int],
        summary: str,
        draw: Callable[[np.ndarray], np.ndarray],
    ) -> Sample:
        problem, picture, width, height = "", None, 0, 0
        if time.monotonic() > self._deadline:
            problem = "not read: the report had run out of time"
        else:
            row = {"uri": uri, "image_id": uri, "height": size_hw[0], "width": size_hw[1],
                   "media": "image" if frame is None else "video", "frame": frame or 0}  # fmt: skip
            try:
                drawn = draw(pixels_of(row, self._reader))
            except VisionmillError as error:
                problem = str(error)
            else:
                height, width = drawn.shape[:2]
                picture = data_uri(drawn)
        return Sample(
            uri=uri,
            frame=frame or 0,
            pts_s=None,
            status="ok",
            reason="",
            summary=summary,
            picture=picture,
            width_px=width,
            height_px=height,
            problem=problem,
        )


def _corners(box_xywh: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box_xywh
    return x, y, x + width, y + height


def _summary(rows: Sequence[Row]) -> str:
    """``3 disc, 1 box: certified``."""
    names: dict[str, int] = {}
    for row in rows:
        names[row["class_name"]] = names.get(row["class_name"], 0) + 1
    listed = ", ".join(f"{count} {name}" for name, count in sorted(names.items(), key=lambda pair: (-pair[1], pair[0])))
    reasons = ", ".join(sorted({row["reason_code"].replace("_", " ") for row in rows}))
    return f"{listed}: {reasons}"
