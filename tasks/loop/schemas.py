"""The frozen Arrow schemas of the loop; changing one without a new version fails ``tests/contracts``.

``fingerprints`` and ``split_items`` describe data; the others are the loop's memory, append-only, and SQL views
(:mod:`tasks.loop.lineage`). Candidates and pseudo-labels have further columns behind these, as their kind brings them
(``LoopKind.columns``); all else that a row has no use for is null, never absent.

Tables of the first version called things otherwise; ``_V1`` says how, so that outputs of that time are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from tasks.labels.schema import ITEM
from tasks.output.tables import TableSpec, column, required

_STATISTICS = (
    "image_id", "round", "label", "name", "decision", "kind", "label_id", "model_id", "candidate_id", "train_set_id",
    "threshold_set_id", "split", "group_id",
)  # fmt: skip


def _words(name: str) -> str:
    """A split by its word, of a column that has its letter."""
    words = {"L": "train", "C": "calibration", "G": "gate", "T": "test", "U": "unlabelled"}
    cases = " ".join(f"WHEN '{letter}' THEN '{word}'" for letter, word in words.items())
    return f"CASE {name} {cases} ELSE {name} END"


_ITEM_V1 = {"uri": "media_uri"}
_CANDIDATE_V1 = {
    **_ITEM_V1,
    "sha256": "media_sha256",
    "phash64": "media_phash64",
    "media": "CASE WHEN video_id IS NULL THEN 'image' ELSE 'video' END",
    "frame": "coalesce(frame_index, 0)",
    "pts_s": "pts_us / 1e6",
    "split": _words("split"),
    "kind": "task",
    "label": "class_id",
    "name": "class_name",
    "score": "score_raw",
    "box_xyxy": "CASE WHEN bbox_xywh IS NOT NULL THEN CAST([bbox_xywh[1], bbox_xywh[2], bbox_xywh[1] + bbox_xywh[3], "
    "bbox_xywh[2] + bbox_xywh[4]] AS FLOAT[]) END",
    "rle": "mask_rle",
    "area": "mask_area",
    "track_id": "track_id",
    "q_stability": "q_stability",
    "q_tta": "q_tta",
}
_V1: dict[str, Mapping[str, str]] = {
    "split_items": {"split": _words("split"), "touches_split": _words("touches_split")},
    "candidates": _CANDIDATE_V1,
    "pseudo_labels": {
        **_CANDIDATE_V1,
        "score_calibrated": "score_cal",
        "quality_calibrated": "quality_cal",
        "reason": "reason_code",
        "weight": "sample_weight",
        "previous_label_id": "prev_round_label_id",
        "previous_iou": "prev_iou",
        "accept_box": "accept_box",
        "accept_mask": "accept_mask",
        "weight_geometry": "weight_geom",
    },
    "pseudo_images": _ITEM_V1,
    "rounds": {"kind": 'regexp_extract(metrics_gate, \'"task": ?"([a-z_]+)"\', 1)'},
    "models": {"kind": "task"},
    "calibrators": {"method": "kind", "label": "class_id"},
    "threshold_sets": {"label": "class_id", "name": "class_name", "t_quality": "t_mask"},
    "audits": {"name": "class_name"},
}


def _table(name: str, version: int, fields: Sequence[pa.Field], *, is_open: bool = False) -> TableSpec:
    schema = pa.schema(fields)
    statistics = tuple(each for each in _STATISTICS if each in schema.names)
    return TableSpec(name, version, schema, statistics, is_open, {} if version == 1 else {1: _V1[name]})


TEXT, REAL, FLAG = pa.string(), pa.float64(), pa.bool_()
TEXTS, REALS = pa.list_(pa.string()), pa.list_(pa.float64())
MOMENT = pa.timestamp("us", tz="UTC")

_DIGESTS = [
    column("sha256", TEXT, "SHA-256 of the object's bytes, hex"),
    column("phash64", pa.int64(), "perceptual hash of the upright image, 64 bits; null where it has no structure"),
]
_ROUND = [
    required("run_id", TEXT, "the run of the loop"),
    required("round", pa.int32(), "turn of the loop, from 1"),
]

FINGERPRINTS = _table(
    "fingerprints",
    1,
    [
        *ITEM,
        required("etag", TEXT, "identity of the bytes, as listed"),
        *_DIGESTS,
        column("error", TEXT, "why not; null"),
    ],
)

SPLIT_ITEMS = _table(
    "split_items",
    2,
    [
        *ITEM,
        *_DIGESTS,
        required("split", TEXT, "train, calibration, gate, test, unlabelled, or excluded"),
        column(
            "reason", TEXT, "of an exclusion: group, sha256, phash64, unreadable, or straddles (near to two splits)"
        ),
        column("touches", TEXT, "of an exclusion: the image it is too near to"),
        column("touches_split", TEXT, "of an exclusion: the split of that image"),
        column("distance", pa.int32(), "of an exclusion by perceptual hash", unit="bits"),
    ],
)

_TEACHER = [
    required("teacher_model_id", TEXT, "row of models: the teacher"),
    required("teacher_weights_sha256", TEXT, "digest of the teacher's weights, hex"),
    required("teacher_round", pa.int32(), "round that made the teacher; 0 is supervised"),
    column("teacher_train_set_id", TEXT, "training set of the teacher"),
    required("code_commit", TEXT, "version of the code that inferred"),
    required("config_sha256", TEXT, "digest of the inference configuration"),
    column("preproc_sha256", TEXT, "digest of the preprocessing"),
    required("tta_spec", TEXT, "views that were looked at beside the plain one, JSON"),
    column("inferred_at", MOMENT, "when the teacher looked at the item"),
    column("shard_id", TEXT, "shard of the teacher's run that holds the candidate"),
]

CANDIDATES = _table(
    "candidates",
    2,
    [
        required("seq", pa.int32(), "position among what was found in the item"),
        *_ROUND,
        *ITEM,
        *_DIGESTS,
        required("media", TEXT, "image or video"),
        required("frame", pa.int32(), "frame index in presentation order; 0 for an image"),
        column("pts_s", REAL, "presentation time of the frame; null for an image", unit="s"),
        required("width", pa.int32(), "columns of the upright source image", unit="px"),
        required("height", pa.int32(), "rows of the upright source image", unit="px"),
        required("split", TEXT, "of the item; only unlabelled ones get pseudo-labels"),
        required("kind", TEXT, "what the teacher does"),
        required("label", pa.int32(), "class id in the teacher's class map"),
        required("name", TEXT, "class name"),
        required("class_map_sha256", TEXT, "digest of the class map: ids, names, order"),
        required("score", REAL, "confidence as the teacher gave it", unit="[0, 1]"),
        *_TEACHER,
    ],
    is_open=True,
)

PSEUDO_LABELS = _table(
    "pseudo_labels",
    2,
    [
        required("label_id", TEXT, "uuid5 of run, round, item and position"),
        *CANDIDATES.schema,
        required("score_calibrated", REAL, "probability of being right, calibrated on held-out labels", unit="[0, 1]"),
        column("quality_calibrated", REAL, "expected quality of the geometry, likewise", unit="[0, 1]"),
        required("decision", TEXT, "accept, ignore (no gradient) or reject (background)"),
        required("reason", TEXT, "the rule that decided"),
        column("t_hi", REAL, "accepted from this score on; null where the class abstains", unit="[0, 1]"),
        required("t_lo", REAL, "background below this score", unit="[0, 1]"),
        required("threshold_set_id", TEXT, "row of threshold_sets"),
        required("threshold_basis", TEXT, "class, pooled or abstain"),
        column("calibrator_id", TEXT, "row of calibrators: of the score"),
        column("quality_calibrator_id", TEXT, "row of calibrators: of the quality; null without one"),
        required("weight", REAL, "in the loss, in sampling and in the training set's identity; 0: teaches nothing"),
        column("previous_label_id", TEXT, "the best match in the round before"),
        column("previous_iou", REAL, "its IoU", unit="[0, 1]"),
        column("class_changed", FLAG, "its class was another one"),
    ],
    is_open=True,
)

PSEUDO_IMAGES = _table(
    "pseudo_images",
    2,
    [
        *_ROUND,
        *ITEM,
        required("status", TEXT, "ok, empty, decode_error, timeout or failed"),
        required("n_candidates", pa.int32(), "candidates of the teacher"),
        required("n_accept", pa.int32(), "of these accepted"),
        required("n_ignore", pa.int32(), "of these ignored"),
        required("per_class_counts", pa.map_(TEXT, pa.int32()), "accepted candidates by class name"),
        required("uncovered_score_mass", REAL, "sum of calibrated scores in the ignore band: objects probably missed"),
        required("teacher_weights_sha256", TEXT, "digest of the teacher's weights, hex"),
        required("output_sha256", TEXT, "digest of the item's candidates"),
    ],
)

ROUNDS = _table(
    "rounds",
    2,
    [
        *_ROUND,
        required("kind", TEXT, "what the models of the loop do"),
        column("parent_round", pa.int32(), "the round whose champion taught"),
        column("champion_in", TEXT, "row of models: champion at the start"),
        column("champion_out", TEXT, "row of models: champion at the end"),
        column("candidate_id", TEXT, "row of models: the student"),
        required("splits_manifest_sha256", TEXT, "digest of the manifest that says which item is in which split"),
        required("leakage_report", TEXT, "counts of the firewall, JSON"),
        required("train_set_id", TEXT, "SHA-256 over sorted (label_id, weight)"),
        required("threshold_set_id", TEXT, "row of threshold_sets"),
        required("n_human", pa.int64(), "human labels trained on"),
        required("n_pseudo", pa.int64(), "pseudo-labels trained on"),
        required("accept_rate", REAL, "accepted over all candidates", unit="[0, 1]"),
        column("student_init_sha256", TEXT, "digest of the weights that the student began with"),
        required("training", TEXT, "optimiser, schedule, steps, labelled share, lambda_max, EMA, JSON"),
        required("augmentation", TEXT, "what the student's noise is, JSON"),
        required("seeds", pa.list_(pa.int64()), "all seeds"),
        required("environment", TEXT, "versions of python, torch, driver, ..., JSON"),
        required("metrics_gate", TEXT, "figures of the student on the gate set, JSON"),
        column("metrics_baseline", TEXT, "the same of the supervised model with the same budget, JSON"),
        column("verdict_id", TEXT, "row of verdicts"),
        required("promoted", FLAG, "the gate let the student through"),
        required("looks_used", pa.int32(), "how often the gate set was looked at, this round included"),
        required("alpha_spent", REAL, "sum of the levels of all looks"),
        required("finished_at", MOMENT, "when the round ended"),
        required("code_commit", TEXT, "version of the code"),
    ],
)

MODELS = _table(
    "models",
    2,
    [
        required("model_id", TEXT, "name@digest of the weights"),
        required("weights_sha256", TEXT, "digest of the weights, hex"),
        required("weights_uri", TEXT, "where the weights are"),
        required("role", TEXT, "teacher, student, baseline, or fold (of a cross-fit: it leaves some labels out)"),
        required("kind", TEXT, "what it does"),
        column("run_id", TEXT, "the run of the loop that trained it"),
        required("round", pa.int32(), "round that trained it; 0 is supervised"),
        column("parent_model_id", TEXT, "the teacher of its pseudo-labels"),
        column("train_set_id", TEXT, "SHA-256 over sorted (label_id, weight); null without pseudo-labels"),
        column("label_set_id", TEXT, "digest of the human labels"),
        column("splits_manifest_sha256", TEXT, "digest of the manifest that says which of these it was trained on"),
        column("split_items_sha256", TEXT, "content digest of split_items, as that manifest states it"),
        required("class_map_sha256", TEXT, "digest of the class map"),
        column("init_sha256", TEXT, "digest of the weights it began with"),
        required("seed", pa.int64(), "seed of the training"),
        required("code_commit", TEXT, "version of the code that trained"),
        required("created_at", MOMENT, "when training ended"),
    ],
)

CALIBRATORS = _table(
    "calibrators",
    2,
    [
        required("calibrator_id", TEXT, "digest of the parameters"),
        required("model_id", TEXT, "row of models whose scores it maps"),
        required("method", TEXT, "isotonic"),
        required("feature", TEXT, "what it reads: score or quality"),
        required("target", TEXT, "what it predicts, e.g. true positive at IoU .5"),
        column("label", pa.int32(), "the class; null for the pooled one"),
        required("knots_x", REALS, "scores, ascending"),
        required("knots_y", REALS, "calibrated values, not falling"),
        required("n", pa.int64(), "matched candidates on held-out labels it was fitted on"),
        required("d_ece_before", REAL, "error before, on the same candidates", unit="[0, 1]"),
        required("d_ece_after", REAL, "error after, on the same candidates", unit="[0, 1]"),
    ],
)

THRESHOLD_SETS = _table(
    "threshold_sets",
    2,
    [
        required("threshold_set_id", TEXT, "digest of all its rows"),
        required("model_id", TEXT, "row of models whose scores it is for"),
        required("round", pa.int32(), "turn of the loop"),
        required("label", pa.int32(), "class id"),
        required("name", TEXT, "class name"),
        required("basis", TEXT, "class, pooled or abstain"),
        required("target_precision", REAL, "the precision that is promised", unit="[0, 1]"),
        column("t_hi", REAL, "accepted from here on; null: abstains", unit="[0, 1]"),
        required("t_lo", REAL, "background below", unit="[0, 1]"),
        column("lower_bound", REAL, "95 % lower bound of the precision at t_hi", unit="[0, 1]"),
        required("n_calibration", pa.int64(), "candidates of the class on the labels that calibrate (pixels: of maps)"),
        required("n_accepted", pa.int64(), "of these (or of the pool) at or above t_hi"),
        required("n_correct", pa.int64(), "of the accepted, right"),
        required("truth_per_image", REAL, "objects (of maps: pixels) of the class per labelled image"),
        required("coverage", REAL, "share of the class's candidates at or above t_hi", unit="[0, 1]"),
        required("calibration_split", TEXT, "digest of the manifest whose labels it was certified on"),
        column("t_quality", REAL, "geometry taught from this measured quality on; null: none is", unit="[0, 1]"),
        required("note", TEXT, "why this basis, in words"),
    ],
)

AUDITS = _table(
    "audits",
    2,
    [
        required("audit_id", TEXT, "digest of frame, strata and verdicts"),
        *_ROUND,
        required("train_set_id", TEXT, "the accepted set that was sampled"),
        column("name", TEXT, "class name of the stratum; null for all together"),
        required("n_frame", pa.int64(), "accepted labels to draw from"),
        required("n", pa.int64(), "labels that were looked at"),
        required("n_errors", pa.int64(), "of these wrong"),
        required("lower_bound", REAL, "95 % Clopper-Pearson lower bound of the precision", unit="[0, 1]"),
        required("reviewers", TEXTS, "who looked"),
    ],
)

VERDICTS = _table(
    "verdicts",
    1,
    [
        required("verdict_id", TEXT, "digest of the verdict"),
        *_ROUND,
        column("champion_id", TEXT, "row of models: the one in use"),
        required("candidate_id", TEXT, "row of models: the one that wants to replace it"),
        required("criterion", TEXT, "what was asked"),
        required("passed", FLAG, "whether it holds"),
        column("value", REAL, "what was measured; null if it could not be"),
        column("demanded", REAL, "the limit"),
        required("relation", TEXT, "how value must stand to what was demanded: >, >=, <= or =="),
        required("reason", TEXT, "in one line"),
        required("promoted", FLAG, "whether all criteria hold"),
        required("decided_at", MOMENT, "when the gate decided"),
    ],
)

TABLES = {
    each.name: each
    for each in (FINGERPRINTS, SPLIT_ITEMS, CANDIDATES, PSEUDO_LABELS, PSEUDO_IMAGES, ROUNDS, MODELS, CALIBRATORS,
                 THRESHOLD_SETS, AUDITS, VERDICTS)
}  # fmt: skip
"""All tables of the loop by name."""
