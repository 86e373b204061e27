"""Pixels in the loop: regions of one class at one level of confidence are taken from a certified level on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pycocotools import mask as coco_mask

from modelkit import ClassInfo, Predictor, create_model, rle
from tasks.engine.job import PredictorSpec
from tasks.evaluation.coco_shapes import coco_rles, size_of
from tasks.labels.label_sets import LabelSet
from tasks.loop.calibration import Calibration
from tasks.loop.certified import fewest
from tasks.loop.methods import Calibrated, CalibratedFor, Evidence, LabelledPredictions, LoopMethods
from tasks.loop.selection import Decided, floats
from tasks.loop.thresholds import LOWER_BY
from tasks.product import LoopKind
from tasks.products.segments import confidence
from tasks.products.segments.confidence import ConfidencePredictor, background_of
from tasks.products.segments.disagreement_files import read_disagreements, to_files
from tasks.products.segments.loop_candidates import (
    COLUMNS,
    DECIDED,
    MIN_AREA_PX,
    Row,
    candidate,
    example_object,
    example_of,
    examples_by_item,
    item_of,
    mask_iou,
)
from tasks.products.segments.painting import IGNORE, truth_map
from tasks.products.segments.pixel_thresholds import PixelPromise, certify_pixel_thresholds
from tasks.products.segments.pixels import (
    LEVELS,
    PixelCounts,
    by_class,
    calibrate_pixels,
    count_pixels,
    level_of,
    pixel_error,
)
from tasks.training.examples import Example
from tasks.training.recipe import TrainingRecipe

WATCHED_PX = 1_000
"""True pixels in the gate set from which the fall of a class is watched; the bootstrap tells whether it is one."""
LEAST_TRUE_PIXELS = f"{WATCHED_PX:,} true pixels"


def pixel_candidates(row: Row, floor: float) -> list[dict[str, Any]]:
    """All regions of an item; scores are levels again, whatever float32 made of them."""
    found = [candidate(row, k) for k, score in enumerate(row["scores"]) if score >= floor]
    return [{**each, "score": LEVELS[level_of(each["score"])]} for each in found]


def decide_pixels(rows: pa.Table) -> Decided:
    """Regions of one class at one level of confidence: taught from the class's threshold on, else ignored.

    Nothing becomes background: a pixel that is not accepted belongs to no class that is known.
    """
    t_hi = floats(rows["t_hi"])
    accepted = floats(rows["score"]) >= t_hi  # NaN is no
    weight = accepted.astype(np.float64)
    return {
        "decision": np.where(accepted, "accept", "ignore"),
        "reason": np.where(accepted, "certified", np.where(np.isnan(t_hi), "abstain", "below_t_hi")),
        "weight": weight,
        "accept_box": np.zeros(len(weight), bool),
        "accept_mask": accepted,
        "weight_geometry": weight,
    }


def kept_pixels(before: pa.Table, after: pa.Table) -> tuple[float, float]:
    """Pixels that were accepted twice with one class, and those that were accepted at all."""
    regions: dict[tuple[str, int], tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    areas = 0
    for side, table in enumerate((before, after)):
        for row in table.select(["image_id", "label", "height", "width", "rle", "area"]).to_pylist():
            regions[row["image_id"], row["label"]][side].extend(coco_rles([row["rle"]], size_of(row)))
            areas += row["area"]
    kept = 0
    for ours, theirs in regions.values():
        if ours and theirs:
            merged = [coco_mask.merge(ours), coco_mask.merge(theirs)]
            kept += int(coco_mask.area(coco_mask.merge(merged, intersect=True)))
    return kept, areas - kept


def calibrate_regions(
    candidates: pa.Table, calibration: LabelSet, by: CalibratedFor, *, background: ClassInfo | None
) -> Calibrated:
    """Precision by level; thresholds certified by bootstrap over the images that calibrate.

    Args:
        candidates: ``candidates.v2`` on ``calibration``, of models that never saw it.
        calibration: the labels that calibrate.
        by: who predicted; its seed is that of the bootstrap.
        background: class of the pixels that no object covers, with a threshold of its own; None: they are void.
    """
    classes: tuple[ClassInfo, ...] = calibration.classes if background is None else (background, *calibration.classes)
    background_id = None if background is None else background.id
    counts = count_pixels(candidates, calibration.table, [each.id for each in classes], background_id)
    thresholds = certify_pixel_thresholds(
        counts,
        classes,
        model_id=by.model_id,
        round_number=by.round_number,
        calibration_split=by.calibration_split,
        seed=by.seed,
        background=background_id,
        promise=PixelPromise.of(by.precision),
        promises=by.promises(classes, PixelPromise.of),
    )
    return Calibrated(calibrate_pixels(counts), None, thresholds)


def examples_of_pixels(labels: pa.Table, background: int | None, classes: Iterable[int] = ()) -> list[Example]:
    """``pseudo_labels.v2`` of pixels as examples.

    Accepted regions teach their class; accepted background is what no object covers. All other pixels do not teach, but
    count in the mean of the loss. Of ``classes`` (ids) of which nothing was accepted anywhere nothing is said: without
    that, a pole of which nobody is sure would be taught to be the road before which it stands, and be forgotten. Images
    of which nothing was accepted are left out.
    """
    decided = zip(labels["label"].to_pylist(), labels["decision"].to_pylist(), strict=True)
    told = {label for label, decision in decided if decision == "accept"}
    abstaining = tuple(sorted(set(classes) - told))

    def example(accepted: list[dict[str, Any]]) -> Example:
        unsure = np.ones(size_of(accepted[0]), bool)
        for row in accepted:
            unsure &= ~rle.decode(row["rle"], unsure.shape)
        objects = tuple(example_object(row) for row in accepted if row["label"] != background)
        return example_of(accepted, objects=objects, unsure_rle=rle.encode(unsure), abstaining=abstaining)

    return examples_by_item(labels, lambda row: row["decision"] == "accept", example)


def look_at_pixels(
    accepted: pa.Table, truth: pa.Table, n: int, *, background: int | None, seed: int
) -> dict[str, bool]:
    """label_id -> right, of a sample of accepted regions, each judged by one of its pixels.

    Regions are drawn by class, as many as its share of the accepted pixels, and within a class by their areas; so what
    is estimated is the precision of pixels, which is what the thresholds promise. Void pixels have no verdict.

    Args:
        accepted: ``pseudo_labels.v2`` of the images of ``truth``, all accepted rows of them.
        truth: ``labels.v1``.
        n: about how many regions are looked at.
        background: class of the pixels that no object covers; None: they are void.
        seed: the same seed draws the same pixels, whatever the order of rows.
    """
    rows = accepted.sort_by("label_id").to_pylist()
    area, labels = (np.array([row[name] for row in rows]) for name in ("area", "label"))
    maps = {row["image_id"]: truth_map(row, background) for row in truth.to_pylist()}
    rng = np.random.default_rng(seed)
    looked: dict[str, bool] = {}
    for label in np.unique(labels).tolist():
        mine = np.flatnonzero((labels == label) & (area > 0))
        quota = min(len(mine), math.ceil(n * area[mine].sum() / area.sum()))
        for k in np.sort(rng.choice(mine, quota, replace=False, p=area[mine] / area[mine].sum())).tolist():
            row, true_map = rows[k], maps[rows[k]["image_id"]]
            inside = np.flatnonzero(rle.decode(row["rle"], true_map.shape))
            true_label = int(true_map.ravel()[rng.choice(inside)])
            if true_label != IGNORE:
                looked[row["label_id"]] = true_label == label
    return looked


def well_seen(gate: LabelSet, classes: Sequence[ClassInfo], background: int | None) -> frozenset[str]:
    """Names of the classes with at least ``WATCHED_PX`` true pixels; see ``LoopMethods.watched``."""
    pixels = np.zeros(IGNORE + 1, np.int64)
    for row in gate.table.to_pylist():
        pixels += np.bincount(truth_map(row, background).ravel(), minlength=IGNORE + 1)
    return frozenset(each.name for each in classes if pixels[each.id] >= WATCHED_PX)


class PixelMethods(LoopMethods):
    """A class for every pixel.

    Args:
        background: class of what no object covers; None where every pixel has a class of its own.
        views: see :class:`LoopMethods`.
        classes: ids of all that the models tell apart, the background included.
    """

    score_floor = 0.0  # pixels of the lowest level are candidates, too: a fifth of all has to be accepted
    least_truth = LEAST_TRUE_PIXELS
    evidence_unit = "images with it"

    def __init__(self, background: ClassInfo | None, views: Sequence[str] = (), classes: Sequence[int] = ()) -> None:
        super().__init__(views)
        self._classes = tuple(classes)
        self.background = background
        self._background_id = None if background is None else background.id

    @property
    def predictor_spec(self) -> PredictorSpec | None:
        return confidence.spec_of(self.views)

    def as_on_unlabelled(self, predictor: Predictor) -> Predictor:
        return predictor.around(lambda plain: ConfidencePredictor(plain, self.views))

    def as_compared(self, predictor: Predictor) -> Predictor:
        return predictor.around(ConfidencePredictor)

    def compared(self, sure: pa.Table) -> pa.Table:
        return by_class(sure, self._background_id, MIN_AREA_PX)

    def calibrate(
        self, candidates: pa.Table, calibration: LabelSet, labelled: LabelSet, by: CalibratedFor
    ) -> Calibrated:
        return calibrate_regions(candidates, calibration, by, background=self.background)

    def promised(self, classes: Sequence[ClassInfo]) -> Sequence[ClassInfo]:
        return classes if self.background is None else (self.background, *classes)

    def evidence(self, calibrating: LabelSet, promise_of: Callable[[str], float]) -> dict[str, Evidence]:
        images = Counter(name for row in calibrating.table["names"].to_pylist() for name in set(row))
        if self.background is not None:
            images[self.background.name] = len(calibrating)
        lowest = {each.name: fewest(promise_of(each.name) - LOWER_BY) for each in self.promised(calibrating.classes)}
        is_pooled = {name: self.background is None or name != self.background.name for name in lowest}
        return {
            name: Evidence(images[name], 1 if is_pooled[name] else least, len(calibrating), least)
            for name, least in lowest.items()
        }

    def watched(self, gate: LabelSet) -> frozenset[str]:
        return well_seen(gate, self.promised(gate.classes), self._background_id)

    def calibrated_error(self, pairs: Sequence[tuple[LabelledPredictions, LabelledPredictions]]) -> float:
        errors, pixels = [], []
        for calibrating, judged in pairs:
            known, found = self._counts(calibrating), self._counts(judged)
            errors.append(pixel_error(calibrate_pixels(known), found))
            pixels.append(int(found.total.sum()))
        return float(np.average(errors, weights=pixels)) if sum(pixels) else float("nan")

    def calibrated(self, found: LabelledPredictions) -> Calibration | None:
        return calibrate_pixels(self._counts(found))

    def _counts(self, found: LabelledPredictions) -> PixelCounts:
        ids = [each.id for each in found.labels.classes] + ([] if self.background is None else [self.background.id])
        return count_pixels(found.candidates, found.labels.table, ids, self._background_id)

    def examples(self, labels: pa.Table) -> list[Example]:
        return examples_of_pixels(labels, self._background_id, self._classes)

    def look_at(self, accepted: pa.Table, truth: LabelSet, n: int, *, seed: int) -> dict[str, bool]:
        return look_at_pixels(accepted, truth.table, n, background=self._background_id, seed=seed)


def _open(recipe: TrainingRecipe, views: Sequence[str]) -> PixelMethods:
    with torch.device("meta"):  # nothing is allocated
        background = background_of(create_model(recipe.architecture, **recipe.config))
    ids = [label for label, *_ in recipe.classes] + ([] if background is None else [background.id])
    return PixelMethods(background, views, ids)


def _confidence(levels: np.ndarray) -> np.ndarray:
    """A pixel counts at the lower edge of its level, below .5 at .5: the most doubt that there is."""
    return np.maximum(levels, 0.5)


PIXELS = LoopKind(
    columns=COLUMNS,
    decided=DECIDED,
    features=(),
    candidates=pixel_candidates,
    item=item_of,
    rule=decide_pixels,
    open=_open,
    iou=mask_iou,
    kept=kept_pixels,
    confidence=_confidence,
    amount="area",
    unit="pixels",
    pieces="regions",
    disagreements=to_files,
    read_disagreements=read_disagreements,
)
