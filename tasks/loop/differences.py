"""What champion and candidate see differently on some unlabelled items, of what each of them is sure of.

Sure is a calibrated probability of one half or more, for both models alike: the thresholds of pseudo-labels promise far
more, and would hide the objects that only one of the two sees.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow as pa

from modelkit import ClassInfo
from tasks.labels.label_sets import LabelledItem, LabelSet, make_label_set
from tasks.loop.calibration import Calibration
from tasks.loop.selection import LABEL_NAMESPACE, Selection

SURE = 0.5
_SIZES = ["image_id", "uri", "media", "frame", "height", "width"]


def items_to_compare(selection: Selection, classes: tuple[ClassInfo, ...], at_most: int) -> LabelSet:
    """Unlabelled items as a label set without objects: half of them those where the champion probably misses most.

    The other half is drawn by the order of their candidates' digests, the same one each time. Items on which the
    champion has not a single candidate, however unsure, are not among them.
    """
    seen = selection.labels.select(_SIZES).group_by(_SIZES).aggregate([]).to_pylist()
    images = {row["image_id"]: row for row in selection.images.to_pylist()}
    missing = sorted(seen, key=lambda row: (-images[row["image_id"]]["uncovered_score_mass"], row["image_id"]))
    chosen = missing[: at_most // 2]
    rest = sorted(missing[at_most // 2 :], key=lambda row: images[row["image_id"]]["output_sha256"])
    chosen += rest[: at_most - len(chosen)]
    items = [LabelledItem(row["uri"], (row["height"], row["width"]), frame=_frame(row)) for row in chosen]
    return make_label_set(items, classes, origin_format="unlabelled")


def _frame(row: dict[str, Any]) -> int | None:
    return row["frame"] if row["media"] == "video" else None


def sure_of_champion(selection: Selection, items: LabelSet) -> pa.Table:
    """The champion's objects on these items, as it labelled them in this round."""
    labels = selection.labels
    here = pa.compute.is_in(labels["image_id"], value_set=items.table["image_id"].combine_chunks())
    return labels.filter(pa.compute.and_(here, pa.compute.greater_equal(labels["score_calibrated"], SURE)))


def sure_of_candidate(on_items: pa.Table, calibration: Calibration | None) -> pa.Table:
    """The candidate's objects that it is sure of, with the columns of ``pseudo_labels.v2`` that a comparison reads.

    Args:
        on_items: ``candidates.v2`` on the items to compare.
        calibration: of its scores on labels that it never saw; None where it found nothing there: then of none.
    """
    calibrated = np.zeros(on_items.num_rows)
    if calibration is not None:
        label = on_items["label"].to_numpy().astype(np.int64)
        calibrated = np.round(calibration.apply(label, on_items["score"].to_numpy()), 6)
    names = zip(*(on_items[name].to_pylist() for name in ("teacher_model_id", "image_id", "seq")), strict=True)
    label_ids = [str(uuid.uuid5(LABEL_NAMESPACE, "/".join(map(str, name)))) for name in names]
    table = on_items.append_column("score_calibrated", pa.array(calibrated, pa.float64()))
    table = table.append_column("label_id", pa.array(label_ids, pa.string()))
    return table.filter(pa.array(calibrated >= SURE))
