"""The frozen Arrow schemas of the loop; changing one without a new version fails ``tests/contracts``.

``fingerprints`` and ``split_items`` describe data; the others are the loop's memory, append-only, and SQL views
(:mod:`tasks.loop.lineage`). Columns that a kind has no use for are null, never absent.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tasks.labels.schema import ITEM
from tasks.output.tables import TableSpec, column, required

_STATISTICS = (
    "image_id", "round", "class_id", "class_name", "decision", "task", "label_id", "model_id", "candidate_id",
    "train_set_id", "threshold_set_id", "split", "group_id",
)  # fmt: skip


def _table(name: str, fields: Sequence[pa.Field], version: int = 1) -> TableSpec:
    schema = pa.schema(fields)
    return TableSpec(name, version, schema, tuple(each for each in _STATISTICS if each in schema.names))


TEXT, REAL, WHOLE, FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()
TEXTS, REALS, FLAGS = pa.list_(pa.string()), pa.list_(pa.float64()), pa.list_(pa.bool_())
MOMENT = pa.timestamp("us", tz="UTC")

_DIGESTS = [
    column("sha256", TEXT, "SHA-256 of the object's bytes, hex"),
    column("phash64", pa.int64(), "perceptual hash of the upright image, 64 bits; null where it has no structure"),
]

FINGERPRINTS = _table(
    "fingerprints",
    [
        *ITEM,
        required("etag", TEXT, "identity of the bytes, as listed"),
        *_DIGESTS,
        column("error", TEXT, "why not; null"),
    ],
)

SPLIT_ITEMS = _table(
    "split_items",
    [
        *ITEM,
        *_DIGESTS,
        required("split", TEXT, "L train, C calibration, G gate, T sealed test, U unlabelled, or excluded"),
        column(
            "reason", TEXT, "of an exclusion: group, sha256, phash64, unreadable, or straddles (near to two splits)"
        ),
        column("touches", TEXT, "of an exclusion: the image it is too near to"),
        column("touches_split", TEXT, "of an exclusion: the split of that image"),
        column("distance", pa.int32(), "of an exclusion by perceptual hash", unit="bits"),
    ],
)

_MEDIA = [
    required("image_id", TEXT, "the item: its uri, for a frame of a video followed by #<frame>"),
    required("media_uri", TEXT, "the object that holds the item"),
    column("media_sha256", TEXT, "SHA-256 of the object's bytes, hex"),
    column("media_phash64", pa.int64(), "perceptual hash of the upright image, 64 bits"),
    required("width", pa.int32(), "columns of the source image", unit="px"),
    required("height", pa.int32(), "rows of the source image", unit="px"),
    column("video_id", TEXT, "the video of a frame; null for an image"),
    column("frame_index", pa.int32(), "frame in presentation order; null for an image"),
    column("pts_us", pa.int64(), "presentation time of the frame; null for an image", unit="us"),
    column("track_id", pa.int64(), "identity across frames; null if the teacher does not track"),
    required("group_id", TEXT, "video, scene or cluster of near-duplicates"),
    required("split", TEXT, "always U: whatever else is refused"),
]
_GEOMETRY = [
    required("task", TEXT, "instance, semantic or landmarks"),
    required("class_id", pa.int32(), "class of the teacher's class map"),
    required("class_name", TEXT, "name of the class"),
    required("class_map_sha256", TEXT, "digest of the class map: ids, names, order"),
    column("bbox_xywh", pa.list_(pa.float32()), "x, y, width, height in source pixels", unit="px"),
    column("mask_rle", pa.binary(), "COCO compressed RLE in source pixels"),
    column("mask_area", pa.int64(), "pixels of the mask, never of its box", unit="px"),
    column("keypoints", pa.list_(pa.float32()), "x, y, score per keypoint, flat", unit="px"),
    column("heatmap_ref", TEXT, "object with the heatmaps or probability map"),
    required("geom_space", TEXT, "the pixels that geometry counts in: source"),
]
_SCORES = [
    required("score_raw", REAL, "confidence as the teacher gave it", unit="[0, 1]"),
    column("logit", REAL, "its log-odds before the squashing"),
    column("score_cal", REAL, "probability of class right and IoU >= .5, calibrated on C", unit="[0, 1]"),
    column("class_probs_top5", REALS, "the five largest class probabilities", unit="[0, 1]"),
    column("q_iou", REAL, "IoU the model predicts for its mask", unit="[0, 1]"),
    column("q_stability", REAL, "IoU of the masks at logit +1 and -1", unit="[0, 1]"),
    column("q_tta", REAL, "mean best IoU over augmented views", unit="[0, 1]"),
    column("q_jitter", REAL, "mean normalised box variance over jittered proposals"),
    column("q_ckpt", REAL, "agreement with earlier checkpoints", unit="[0, 1]"),
    column("q_temporal", REAL, "agreement with neighbouring frames", unit="[0, 1]"),
    column("quality_cal", REAL, "expected IoU, calibrated on C", unit="[0, 1]"),
    column("kpt_quality", REALS, "probability that a keypoint is right, per keypoint", unit="[0, 1]"),
]
_TEACHER = [
    required("teacher_model_id", TEXT, "row of models: the teacher"),
    required("teacher_weights_sha256", TEXT, "digest of the teacher's weights, hex"),
    required("teacher_round", pa.int32(), "round that made the teacher; 0 is supervised"),
    column("teacher_train_set_id", TEXT, "training set of the teacher"),
    required("code_commit", TEXT, "version of the code that inferred"),
    required("config_sha256", TEXT, "digest of the inference configuration"),
    column("preproc_sha256", TEXT, "digest of the preprocessing"),
    required("tta_spec", TEXT, "test-time augmentation as JSON; [] is none"),
    required("infer_dtype", TEXT, "number format of inference"),
    required("device", TEXT, "kind of device of inference"),
    column("seed", pa.int64(), "seed of inference, where it has one"),
    column("inferred_at", MOMENT, "when the teacher looked at the item"),
    column("shard_id", TEXT, "shard of the teacher's run that holds the candidate"),
    column("worker_id", TEXT, "worker that inferred"),
    column("attempt", TEXT, "attempt that was committed"),
]
_ROUND = [
    required("run_id", TEXT, "the run of the loop"),
    required("round", pa.int32(), "turn of the loop, from 1"),
]

CANDIDATES = _table(
    "candidates",
    [
        required("seq", pa.int32(), "position among the item's candidates"),
        *_ROUND,
        *_MEDIA,
        *_GEOMETRY,
        *_SCORES,
        *_TEACHER,
    ],
)

PSEUDO_LABELS = _table(
    "pseudo_labels",
    [
        required("label_id", TEXT, "uuid5 of run, round, item and position"),
        *CANDIDATES.schema,
        required("decision", TEXT, "accept, ignore (no gradient) or reject (background)"),
        required("accept_cls", FLAG, "teaches the class"),
        required("accept_box", FLAG, "teaches the box"),
        required("accept_mask", FLAG, "teaches the mask"),
        column("accept_kpt", FLAGS, "teaches the keypoint, per keypoint"),
        required("reason_code", TEXT, "the rule that decided"),
        column("t_hi", REAL, "accepted from this score on; null where the class abstains", unit="[0, 1]"),
        required("t_lo", REAL, "background below this score", unit="[0, 1]"),
        required("threshold_set_id", TEXT, "row of threshold_sets"),
        required("threshold_basis", TEXT, "class, pooled or abstain"),
        column("calibrator_id", TEXT, "row of calibrators: of the score"),
        column("quality_calibrator_id", TEXT, "row of calibrators: of the mask quality; null without one"),
        required("weight_cls", REAL, "weight of the class loss"),
        required("weight_geom", REAL, "weight of box and mask losses"),
        required("sample_weight", REAL, "weight of the object in sampling and in the training set's identity"),
        required("source", TEXT, "human, model, model_then_human or human_then_model"),
        column("origin_label_id", TEXT, "the label that this one was edited from"),
        column("human_verdict", TEXT, "right, wrong or edited; null if nobody looked"),
        column("human_id", TEXT, "who looked"),
        column("verified_at", MOMENT, "when a person looked"),
        column("edit_iou", REAL, "IoU of the mask before and after the edit", unit="[0, 1]"),
        column("prev_round_label_id", TEXT, "the best match in the round before"),
        column("prev_iou", REAL, "its IoU", unit="[0, 1]"),
        column("class_changed", FLAG, "its class was another one"),
    ],
)

PSEUDO_IMAGES = _table(
    "pseudo_images",
    [
        *_ROUND,
        required("image_id", TEXT, "the item"),
        required("media_uri", TEXT, "the object that holds the item"),
        required("group_id", TEXT, "video, scene or cluster of near-duplicates"),
        required("status", TEXT, "ok, empty, decode_error, timeout or failed"),
        required("n_candidates", pa.int32(), "candidates of the teacher"),
        required("n_accept", pa.int32(), "of these accepted"),
        required("n_ignore", pa.int32(), "of these ignored"),
        required("per_class_counts", pa.map_(TEXT, pa.int32()), "accepted candidates by class name"),
        column("reliability", REAL, "agreement of the teacher's checkpoints on the item", unit="[0, 1]"),
        required("uncovered_score_mass", REAL, "sum of calibrated scores in the ignore band: objects probably missed"),
        column("embedding_ref", TEXT, "object with the item's embedding"),
        column("drift_score", REAL, "distance of the item from the labelled ones"),
        column("elapsed_ms", REAL, "time of inference", unit="ms"),
        required("teacher_weights_sha256", TEXT, "digest of the teacher's weights, hex"),
        required("output_sha256", TEXT, "digest of the item's candidates"),
    ],
)

ROUNDS = _table(
    "rounds",
    [
        *_ROUND,
        column("parent_round", pa.int32(), "the round whose champion taught"),
        column("champion_in", TEXT, "row of models: champion at the start"),
        column("champion_out", TEXT, "row of models: champion at the end"),
        column("candidate_id", TEXT, "row of models: the student"),
        required("splits_manifest_sha256", TEXT, "digest of the manifest of L, C, G, T and U"),
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
        column("flow_run_id", TEXT, "Prefect's id"),
        column("ray_job_id", TEXT, "Ray's id"),
        column("gpu_seconds", REAL, "device time of training", unit="s"),
        column("energy_j", REAL, "energy, where it is known", unit="J"),
        required("metrics_gate", TEXT, "metrics on G: overall, by class, by size, with intervals, JSON"),
        column("metrics_baseline", TEXT, "the same of the budget-matched supervised model, JSON"),
        column("verdict_id", TEXT, "row of verdicts"),
        required("promoted", FLAG, "the gate let the student through"),
        required("looks_used", pa.int32(), "how often G was looked at, this round included"),
        required("alpha_spent", REAL, "sum of the levels of all looks"),
        required("test_opened", FLAG, "T was opened in this round"),
        column("approver", TEXT, "who approved; null when it was the gate alone"),
        column("notes", TEXT, "in words"),
        required("finished_at", MOMENT, "when the round ended"),
        required("code_commit", TEXT, "version of the code"),
    ],
)

MODELS = _table(
    "models",
    [
        required("model_id", TEXT, "name@digest of the weights"),
        required("weights_sha256", TEXT, "digest of the weights, hex"),
        required("weights_uri", TEXT, "where the weights are"),
        required("role", TEXT, "teacher, student, baseline, or fold (of a cross-fit: it leaves a part of L out)"),
        required("task", TEXT, "instance, semantic or landmarks"),
        column("run_id", TEXT, "the run of the loop that trained it"),
        required("round", pa.int32(), "round that trained it; 0 is supervised"),
        column("parent_model_id", TEXT, "the teacher of its pseudo-labels"),
        column("train_set_id", TEXT, "SHA-256 over sorted (label_id, weight); null without pseudo-labels"),
        column("label_set_id", TEXT, "digest of the human labels"),
        column("splits_manifest_sha256", TEXT, "digest of the manifest that says which of these were L"),
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
    [
        required("calibrator_id", TEXT, "digest of the parameters"),
        required("model_id", TEXT, "row of models whose scores it maps"),
        required("kind", TEXT, "isotonic"),
        required("feature", TEXT, "column that it reads: score_raw or quality"),
        required("target", TEXT, "what it predicts, e.g. true positive at IoU .5"),
        column("class_id", pa.int32(), "the class; null for the pooled one"),
        required("knots_x", REALS, "scores, ascending"),
        required("knots_y", REALS, "calibrated values, not falling"),
        required("n", pa.int64(), "matched candidates of C it was fitted on"),
        required("d_ece_before", REAL, "error before, on the same candidates", unit="[0, 1]"),
        required("d_ece_after", REAL, "error after, on the same candidates", unit="[0, 1]"),
    ],
)

THRESHOLD_SETS = _table(
    "threshold_sets",
    [
        required("threshold_set_id", TEXT, "digest of all its rows"),
        required("model_id", TEXT, "row of models whose scores it is for"),
        required("round", pa.int32(), "turn of the loop"),
        required("class_id", pa.int32(), "the class"),
        required("class_name", TEXT, "its name"),
        required("basis", TEXT, "class, pooled or abstain"),
        required("target_precision", REAL, "the precision that is promised", unit="[0, 1]"),
        column("t_hi", REAL, "accepted from here on; null: abstains", unit="[0, 1]"),
        required("t_lo", REAL, "background below", unit="[0, 1]"),
        column("lower_bound", REAL, "95 % Clopper-Pearson lower bound of the precision at t_hi", unit="[0, 1]"),
        required("n_calibration", pa.int64(), "candidates of the class on C"),
        required("n_accepted", pa.int64(), "of these (or of the pool) at or above t_hi"),
        required("n_correct", pa.int64(), "of the accepted, right"),
        required("truth_per_image", REAL, "objects (semantic: pixels) of the class per labelled image"),
        required("coverage", REAL, "share of the class's candidates on C at or above t_hi", unit="[0, 1]"),
        required("calibration_split", TEXT, "digest of the manifest whose C it was certified on"),
        column("t_mask", REAL, "mask accepted from this measured quality on; null: none is", unit="[0, 1]"),
        required("note", TEXT, "why this basis, in words"),
    ],
)

AUDITS = _table(
    "audits",
    [
        required("audit_id", TEXT, "digest of frame, strata and verdicts"),
        *_ROUND,
        required("train_set_id", TEXT, "the accepted set that was sampled"),
        column("class_name", TEXT, "the stratum; null for all together"),
        required("n_frame", pa.int64(), "accepted labels to draw from"),
        required("n", pa.int64(), "labels that were looked at"),
        required("n_errors", pa.int64(), "of these wrong"),
        required("lower_bound", REAL, "95 % Clopper-Pearson lower bound of the precision", unit="[0, 1]"),
        required("reviewers", TEXTS, "who looked"),
        column("agreement", REAL, "share of doubly seen labels with equal verdicts", unit="[0, 1]"),
    ],
)

VERDICTS = _table(
    "verdicts",
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
