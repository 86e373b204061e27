"""How the loop teaches the toy kind: an image is right or wrong as a whole, and accepted from a certified score on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.labels.label_sets import LabelSet
from tasks.loop.audits import draw_audit
from tasks.loop.calibration import fit_calibration
from tasks.loop.findings import Disagreement
from tasks.loop.matching import Matches
from tasks.loop.methods import Calibrated, CalibratedFor, MatchedMethods
from tasks.loop.selection import Decided, first_reason, floats, kept_candidates, normalised
from tasks.loop.thresholds import Promise, certify_thresholds
from tasks.product import LoopKind
from tasks.training.examples import Example, ExampleObject
from tasks.training.recipe import TrainingRecipe

Row = Mapping[str, Any]


def candidates(row: Row, floor: float) -> list[dict[str, Any]]:
    columns = zip(row["labels"], row["names"], row["scores"], strict=True)
    return [
        {"seq": k, "label": label, "name": name, "score": score}
        for k, (label, name, score) in enumerate(columns)
        if score >= floor
    ]


def item(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "labels": [row["label"] for row in rows],
        "names": [row["name"] for row in rows],
        "scores": [row["score_calibrated"] for row in rows],
        "boxes_xyxy": [[0, 0, row["width"], row["height"]] for row in rows],
        "rles": None,
        "track_ids": None,
        "is_thing": [True] * len(rows),
    }


def decide(rows: pa.Table) -> Decided:
    t_hi = floats(rows["t_hi"])
    reason = first_reason(("abstain", np.isnan(t_hi)), ("below_t_hi", floats(rows["score"]) < t_hi))
    accepted = reason == "certified"
    weight = normalised(floats(rows["score_calibrated"]), accepted)
    return {"decision": np.where(accepted, "accept", "ignore"), "reason": reason, "weight": weight}


def match(found: pa.Table, labels: LabelSet) -> Matches:
    truth = {row["image_id"]: row["labels"][0] for row in labels.table.to_pylist()}
    places, values = {name: k for k, name in enumerate(truth)}, list(truth.values())
    matched = []
    for k, row in enumerate(found.to_pylist()):
        right = row["label"] == truth[row["image_id"]]
        matched.append((places[row["image_id"]], row["label"], row["score"], float(right), right, k))
    return Matches.of(matched, list(truth), {label: values.count(label) for label in set(values)})


class ColourMethods(MatchedMethods):
    """One answer for each image."""

    score_floor = 0.0

    def match(self, candidates: pa.Table, labels: LabelSet) -> Matches:
        return match(candidates, labels)

    def calibrate(
        self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: CalibratedFor
    ) -> Calibrated:
        matches = match(candidates, calibration)
        scores = fit_calibration(matches)
        thresholds = certify_thresholds(
            matches,
            calibration.classes,
            model_id=by.model_id,
            round_number=by.round_number,
            calibration_split=by.calibration_split,
            truth_per_image=labelled.truth_per_image(),
            promise=Promise.of(by.precision),
        )
        return Calibrated(scores, None, thresholds)

    def examples(self, labels: pa.Table) -> list[Example]:
        return [
            Example(
                row["uri"],
                (row["height"], row["width"]),
                (ExampleObject(row["label"], (0.0, 0.0, row["width"], row["height"]), None, row["weight"]),),
                origin="pseudo",
            )
            for row in labels.to_pylist()
            if row["decision"] == "accept"
        ]

    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        sample = draw_audit(accepted, n, seed=seed)
        right = match(sample, truth).correct.tolist()
        return dict(zip(sample["label_id"].to_pylist(), right, strict=True))


def opened(recipe: TrainingRecipe, views: Sequence[str]) -> ColourMethods:
    return ColourMethods(views)


def files(found: Sequence[Disagreement]) -> dict[str, bytes]:
    lines = [{"uri": each.uri, **{side: [row["name"] for row in each.side(side)] for side in ("champion", "candidate")}}
             for each in found]  # fmt: skip
    return {"colours.json": json.dumps(lines).encode()}


def nothing_to_draw(content: Callable[[str], bytes | None]) -> list[Disagreement]:
    return []


LOOP = LoopKind(
    columns=(),
    decided=(),
    features=(),
    candidates=candidates,
    item=item,
    rule=decide,
    open=opened,
    iou=lambda mine, others: np.ones((len(mine), len(others))),
    kept=kept_candidates,
    disagreements=files,
    read_disagreements=nothing_to_draw,
    unit="images",
    pieces="images",
)
