"""From a teacher's committed run over U to candidates: one row per object found, and one record per item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from infra.errors import DatasetError
from infra.store import Store
from tasks.labels.label_sets import image_id_of
from tasks.loop.pixels import LEVELS, level_of
from tasks.loop.schemas import CANDIDATES
from tasks.output.tables import table_of
from tasks.output.views import views_of

MAX_PER_IMAGE = 100
MEASURED = ("q_stability", "q_tta")
"""Quality features that a teacher's rows may have; their names are the same here and there."""
_ITEMS = f"""
SELECT uri, media, frame, pts_s, width, height, status, stage, error_type, model, shard_id, processed_at,
       labels, names, scores, boxes_xyxy, areas, rles, track_ids, {", ".join(MEASURED)}
FROM items ORDER BY uri, frame
"""


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who inferred, with what: the lineage columns that all candidates of a round share."""

    teacher_model_id: str
    teacher_weights_sha256: str
    teacher_round: int
    teacher_train_set_id: str | None
    class_map_sha256: str
    code_commit: str
    config_sha256: str
    preproc_sha256: str | None = None
    tta_spec: str = "[]"
    infer_dtype: str = "float32"
    device: str = "cpu"
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class RoundCandidates:
    """``candidates.v1`` and the records of all items, as :func:`tasks.loop.selection.select` takes them."""

    candidates: pa.Table
    images: tuple[Mapping[str, Any], ...]
    num_excluded: int  # items that the firewall keeps out of U


def read_candidates(
    store: Store,
    split_items: pa.Table,
    *,
    teacher: Teacher,
    run_id: str,
    round_number: int,
    task: str,
    score_floor: float = 0.05,
) -> RoundCandidates:
    """The newest rows of an output as candidates.

    Args:
        store: output of the teacher's job over the unlabelled source.
        split_items: ``split_items.v1``; only objects whose rows are all U are used.
        teacher: every row must be its work.
        score_floor: less confident predictions are left out; per item at most 100 remain.

    Raises:
        DatasetError: rows of another model, or objects that the splits do not know.
    """
    known: dict[str, dict[str, Any]] = {}
    kept_out: set[str] = set()
    for item in split_items.to_pylist():
        known.setdefault(item["uri"], item)
        if item["split"] != "U":
            kept_out.add(item["uri"])
    tables: list[pa.Table] = []
    images: list[Mapping[str, Any]] = []
    excluded = 0
    shared = {**asdict(teacher), "run_id": run_id, "round": round_number}
    views = views_of(store)
    try:
        for batch in views.connection.sql(_ITEMS).to_arrow_reader(2_000):
            candidates: list[dict[str, Any]] = []
            for row in batch.to_pylist():
                if row["model"] != teacher.teacher_model_id:
                    raise DatasetError(f"{row['uri']} was looked at by {row['model']}, not by the teacher")
                if row["uri"] not in known:
                    raise DatasetError(f"{row['uri']} is in no split: it was never checked against C, G and T")
                if row["uri"] in kept_out:
                    excluded += 1
                    continue
                mine = _candidates(row, known[row["uri"]], score_floor, task)
                candidates += [{**shared, **each} for each in mine]
                images.append(_image(row, known[row["uri"]], len(mine)))
            if candidates:
                tables.append(table_of(CANDIDATES, candidates))
    finally:
        views.connection.close()
    table = pa.concat_tables(tables) if tables else CANDIDATES.empty()
    return RoundCandidates(table, tuple(images), excluded)


def _image_id(row: Mapping[str, Any]) -> str:
    return image_id_of(row["uri"], row["frame"] if row["media"] == "video" else None)


def _candidates(row: Mapping[str, Any], item: Mapping[str, Any], floor: float, task: str) -> list[dict[str, Any]]:
    if row["status"] != "ok":
        return []
    is_frame = row["media"] == "video"
    shared = {
        "image_id": _image_id(row),
        "media_uri": row["uri"],
        "media_sha256": item["sha256"],
        "media_phash64": item["phash64"],
        "width": row["width"],
        "height": row["height"],
        "video_id": row["uri"] if is_frame else None,
        "frame_index": row["frame"] if is_frame else None,
        "pts_us": None if row["pts_s"] is None else round(row["pts_s"] * 1e6),
        "group_id": item["group_id"],
        "split": item["split"],
        "task": task,
        "geom_space": "source",
        "inferred_at": row["processed_at"],
        "shard_id": row["shard_id"],
    }
    return [{**shared, **_object(row, k, task)} for k in most_confident(row["scores"], task, floor)]


def most_confident(scores: Sequence[float], task: str, floor: float) -> list[int]:
    """Positions of an item's candidates, ascending: the best 100 from the floor on; of pixels all regions."""
    found = [k for k, score in enumerate(scores) if score >= floor]
    if task == "semantic":
        return found
    return sorted(sorted(found, key=lambda k: -scores[k])[:MAX_PER_IMAGE])


def score_of(score: float, task: str) -> float:
    """A score as rules compare it: that of pixels is a level, whatever float32 made of it."""
    return LEVELS[level_of(score)] if task == "semantic" else score


def _object(row: Mapping[str, Any], k: int, task: str) -> dict[str, Any]:
    x0, y0, x1, y1 = row["boxes_xyxy"][k]
    return {
        "seq": k,
        "class_id": row["labels"][k],
        "class_name": row["names"][k],
        "score_raw": score_of(float(row["scores"][k]), task),
        "bbox_xywh": [x0, y0, x1 - x0, y1 - y0],
        "mask_rle": None if row["rles"] is None else row["rles"][k],
        "mask_area": None if row["rles"] is None else row["areas"][k],
        "track_id": None if row["track_ids"] is None else row["track_ids"][k],
        **{name: None if row[name] is None else row[name][k] for name in MEASURED},
    }


def _image(row: Mapping[str, Any], item: Mapping[str, Any], num_candidates: int) -> dict[str, Any]:
    status = "ok" if num_candidates else "empty"
    if row["status"] != "ok":
        status = "decode_error" if row["stage"] == "decode" else "failed"
        status = "timeout" if "imeout" in (row["error_type"] or "") else status
    return {"image_id": _image_id(row), "media_uri": row["uri"], "group_id": item["group_id"], "status": status}
