"""The frozen Arrow schemas of the loop; changing one without a new version fails ``tests/contracts``.

``labels``, ``fingerprints`` and ``split_items`` describe data; the others are the loop's memory, append-only, and SQL
views (:mod:`tasks.output.lineage`). Columns that a task has no use for are null, never absent.
"""

from __future__ import annotations

import pyarrow as pa


def _column(name: str, kind: pa.DataType, meaning: str, *, unit: str = "", nullable: bool = True) -> pa.Field:
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _key(name: str, kind: pa.DataType, meaning: str, *, unit: str = "") -> pa.Field:
    return _column(name, kind, meaning, unit=unit, nullable=False)


TEXT, REAL, WHOLE, FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()
TEXTS, REALS, FLAGS = pa.list_(pa.string()), pa.list_(pa.float64()), pa.list_(pa.bool_())
MOMENT = pa.timestamp("us", tz="UTC")

_ITEM = [
    _key("image_id", TEXT, "the item: its uri, for a frame of a video followed by #<frame>"),
    _key("uri", TEXT, "the object that holds the item"),
    _key("group_id", TEXT, "video, scene or cluster of near-duplicates; all its items lie in one split"),
]
_DIGESTS = [
    _column("sha256", TEXT, "SHA-256 of the object's bytes, hex"),
    _column("phash64", pa.int64(), "perceptual hash of the upright image, 64 bits; null where it has no structure"),
]

LABELS = pa.schema(
    [
        *_ITEM,
        _key("media", TEXT, "image or video"),
        _key("frame", pa.int32(), "frame index in presentation order; 0 for an image"),
        _key("width", pa.int32(), "columns of the upright source image", unit="px"),
        _key("height", pa.int32(), "rows of the upright source image", unit="px"),
        _key("labels", pa.list_(pa.int32()), "class id per object"),
        _key("names", TEXTS, "class name per object"),
        _key(
            "boxes_xyxy",
            pa.list_(pa.list_(pa.float32())),
            "x0, y0, x1, y1 per object; origin at the top-left corner of the source image",
            unit="px",
        ),
        _key("areas", pa.list_(pa.int64()), "mask area per object; the stated or box area without a mask", unit="px"),
        _key(
            "rles", pa.list_(pa.binary()), "COCO compressed RLE per object, size is [height, width]; null: only a box"
        ),
        _key("is_thing", FLAGS, "false for stuff, per object"),
        _key("is_crowd", FLAGS, "a region of many objects: neither to be found nor a mistake to find, per object"),
        _key("track_ids", pa.list_(pa.int64()), "identity across frames per object; null where none is known"),
        _key("sources", TEXTS, "human, model, model_then_human or human_then_model, per object"),
        _key("origin_ids", TEXTS, "the object's id in the file it came from"),
        _column("void_rle", pa.binary(), "pixels that nobody labelled: neither truth nor background"),
        _key("origin_format", TEXT, "format of the file it came from"),
    ]
)

FINGERPRINTS = pa.schema(
    [*_ITEM, _key("etag", TEXT, "identity of the bytes, as listed"), *_DIGESTS, _column("error", TEXT, "why not; null")]
)

SPLIT_ITEMS = pa.schema(
    [
        *_ITEM,
        *_DIGESTS,
        _key("split", TEXT, "L train, C calibration, G gate, T sealed test, U unlabelled, or excluded"),
        _column(
            "reason", TEXT, "of an exclusion: group, sha256, phash64, unreadable, or straddles (near to two splits)"
        ),
        _column("touches", TEXT, "of an exclusion: the image it is too near to"),
        _column("touches_split", TEXT, "of an exclusion: the split of that image"),
        _column("distance", pa.int32(), "of an exclusion by perceptual hash", unit="bits"),
    ]
)

_MEDIA = [
    _key("image_id", TEXT, "the item: its uri, for a frame of a video followed by #<frame>"),
    _key("media_uri", TEXT, "the object that holds the item"),
    _column("media_sha256", TEXT, "SHA-256 of the object's bytes, hex"),
    _column("media_phash64", pa.int64(), "perceptual hash of the upright image, 64 bits"),
    _key("width", pa.int32(), "columns of the source image", unit="px"),
    _key("height", pa.int32(), "rows of the source image", unit="px"),
    _column("video_id", TEXT, "the video of a frame; null for an image"),
    _column("frame_index", pa.int32(), "frame in presentation order; null for an image"),
    _column("pts_us", pa.int64(), "presentation time of the frame; null for an image", unit="us"),
    _column("track_id", pa.int64(), "identity across frames; null if the teacher does not track"),
    _key("group_id", TEXT, "video, scene or cluster of near-duplicates"),
    _key("split", TEXT, "always U: whatever else is refused"),
]
_GEOMETRY = [
    _key("task", TEXT, "instance, semantic or landmarks"),
    _key("class_id", pa.int32(), "class of the teacher's class map"),
    _key("class_name", TEXT, "name of the class"),
    _key("class_map_sha256", TEXT, "digest of the class map: ids, names, order"),
    _column("bbox_xywh", pa.list_(pa.float32()), "x, y, width, height in source pixels", unit="px"),
    _column("mask_rle", pa.binary(), "COCO compressed RLE in source pixels"),
    _column("mask_area", pa.int64(), "pixels of the mask, never of its box", unit="px"),
    _column("keypoints", pa.list_(pa.float32()), "x, y, score per keypoint, flat", unit="px"),
    _column("heatmap_ref", TEXT, "object with the heatmaps or probability map"),
    _key("geom_space", TEXT, "the pixels that geometry counts in: source"),
]
_SCORES = [
    _key("score_raw", REAL, "confidence as the teacher gave it", unit="[0, 1]"),
    _column("logit", REAL, "its log-odds before the squashing"),
    _column("score_cal", REAL, "probability of class right and IoU >= .5, calibrated on C", unit="[0, 1]"),
    _column("class_probs_top5", REALS, "the five largest class probabilities", unit="[0, 1]"),
    _column("q_iou", REAL, "IoU the model predicts for its mask", unit="[0, 1]"),
    _column("q_stability", REAL, "IoU of the masks at logit +1 and -1", unit="[0, 1]"),
    _column("q_tta", REAL, "mean best IoU over augmented views", unit="[0, 1]"),
    _column("q_jitter", REAL, "mean normalised box variance over jittered proposals"),
    _column("q_ckpt", REAL, "agreement with earlier checkpoints", unit="[0, 1]"),
    _column("q_temporal", REAL, "agreement with neighbouring frames", unit="[0, 1]"),
    _column("quality_cal", REAL, "expected IoU, calibrated on C", unit="[0, 1]"),
    _column("kpt_quality", REALS, "probability that a keypoint is right, per keypoint", unit="[0, 1]"),
]
_TEACHER = [
    _key("teacher_model_id", TEXT, "row of models: the teacher"),
    _key("teacher_weights_sha256", TEXT, "digest of the teacher's weights, hex"),
    _key("teacher_round", pa.int32(), "round that made the teacher; 0 is supervised"),
    _column("teacher_train_set_id", TEXT, "training set of the teacher"),
    _key("code_commit", TEXT, "version of the code that inferred"),
    _key("config_sha256", TEXT, "digest of the inference configuration"),
    _column("preproc_sha256", TEXT, "digest of the preprocessing"),
    _key("tta_spec", TEXT, "test-time augmentation as JSON; [] is none"),
    _key("infer_dtype", TEXT, "number format of inference"),
    _key("device", TEXT, "kind of device of inference"),
    _column("seed", pa.int64(), "seed of inference, where it has one"),
    _column("inferred_at", MOMENT, "when the teacher looked at the item"),
    _column("shard_id", TEXT, "shard of the teacher's run that holds the candidate"),
    _column("worker_id", TEXT, "worker that inferred"),
    _column("attempt", TEXT, "attempt that was committed"),
]
_ROUND = [
    _key("run_id", TEXT, "the run of the loop"),
    _key("round", pa.int32(), "turn of the loop, from 1"),
]

CANDIDATES = pa.schema(
    [_key("seq", pa.int32(), "position among the item's candidates"), *_ROUND, *_MEDIA, *_GEOMETRY, *_SCORES, *_TEACHER]
)

PSEUDO_LABELS = pa.schema(
    [
        _key("label_id", TEXT, "uuid5 of run, round, item and position"),
        *CANDIDATES,
        _key("decision", TEXT, "accept, ignore (no gradient) or reject (background)"),
        _key("accept_cls", FLAG, "teaches the class"),
        _key("accept_box", FLAG, "teaches the box"),
        _key("accept_mask", FLAG, "teaches the mask"),
        _column("accept_kpt", FLAGS, "teaches the keypoint, per keypoint"),
        _key("reason_code", TEXT, "the rule that decided"),
        _column("t_hi", REAL, "accepted from this score on; null where the class abstains", unit="[0, 1]"),
        _key("t_lo", REAL, "background below this score", unit="[0, 1]"),
        _key("threshold_set_id", TEXT, "row of threshold_sets"),
        _key("threshold_basis", TEXT, "class, pooled or abstain"),
        _column("calibrator_id", TEXT, "row of calibrators: of the score"),
        _column("quality_calibrator_id", TEXT, "row of calibrators: of the mask quality; null without one"),
        _key("weight_cls", REAL, "weight of the class loss"),
        _key("weight_geom", REAL, "weight of box and mask losses"),
        _key("sample_weight", REAL, "weight of the object in sampling and in the training set's identity"),
        _key("source", TEXT, "human, model, model_then_human or human_then_model"),
        _column("origin_label_id", TEXT, "the label that this one was edited from"),
        _column("human_verdict", TEXT, "right, wrong or edited; null if nobody looked"),
        _column("human_id", TEXT, "who looked"),
        _column("verified_at", MOMENT, "when a person looked"),
        _column("edit_iou", REAL, "IoU of the mask before and after the edit", unit="[0, 1]"),
        _column("prev_round_label_id", TEXT, "the best match in the round before"),
        _column("prev_iou", REAL, "its IoU", unit="[0, 1]"),
        _column("class_changed", FLAG, "its class was another one"),
    ]
)

PSEUDO_IMAGES = pa.schema(
    [
        *_ROUND,
        _key("image_id", TEXT, "the item"),
        _key("media_uri", TEXT, "the object that holds the item"),
        _key("group_id", TEXT, "video, scene or cluster of near-duplicates"),
        _key("status", TEXT, "ok, empty, decode_error, timeout or failed"),
        _key("n_candidates", pa.int32(), "candidates of the teacher"),
        _key("n_accept", pa.int32(), "of these accepted"),
        _key("n_ignore", pa.int32(), "of these ignored"),
        _key("per_class_counts", pa.map_(TEXT, pa.int32()), "accepted candidates by class name"),
        _column("reliability", REAL, "agreement of the teacher's checkpoints on the item", unit="[0, 1]"),
        _key("uncovered_score_mass", REAL, "sum of calibrated scores in the ignore band: objects probably missed"),
        _column("embedding_ref", TEXT, "object with the item's embedding"),
        _column("drift_score", REAL, "distance of the item from the labelled ones"),
        _column("elapsed_ms", REAL, "time of inference", unit="ms"),
        _key("teacher_weights_sha256", TEXT, "digest of the teacher's weights, hex"),
        _key("output_sha256", TEXT, "digest of the item's candidates"),
    ]
)

ROUNDS = pa.schema(
    [
        *_ROUND,
        _column("parent_round", pa.int32(), "the round whose champion taught"),
        _column("champion_in", TEXT, "row of models: champion at the start"),
        _column("champion_out", TEXT, "row of models: champion at the end"),
        _column("candidate_id", TEXT, "row of models: the student"),
        _key("splits_manifest_sha256", TEXT, "digest of the manifest of L, C, G, T and U"),
        _key("leakage_report", TEXT, "counts of the firewall, JSON"),
        _key("train_set_id", TEXT, "SHA-256 over sorted (label_id, weight)"),
        _key("threshold_set_id", TEXT, "row of threshold_sets"),
        _key("n_human", pa.int64(), "human labels trained on"),
        _key("n_pseudo", pa.int64(), "pseudo-labels trained on"),
        _key("accept_rate", REAL, "accepted over all candidates", unit="[0, 1]"),
        _column("student_init_sha256", TEXT, "digest of the weights that the student began with"),
        _key("training", TEXT, "optimiser, schedule, steps, labelled share, lambda_max, EMA, JSON"),
        _key("augmentation", TEXT, "what the student's noise is, JSON"),
        _key("seeds", pa.list_(pa.int64()), "all seeds"),
        _key("environment", TEXT, "versions of python, torch, driver, ..., JSON"),
        _column("flow_run_id", TEXT, "Prefect's id"),
        _column("ray_job_id", TEXT, "Ray's id"),
        _column("gpu_seconds", REAL, "device time of training", unit="s"),
        _column("energy_j", REAL, "energy, where it is known", unit="J"),
        _key("metrics_gate", TEXT, "metrics on G: overall, by class, by size, with intervals, JSON"),
        _column("metrics_baseline", TEXT, "the same of the budget-matched supervised model, JSON"),
        _column("verdict_id", TEXT, "row of verdicts"),
        _key("promoted", FLAG, "the gate let the student through"),
        _key("looks_used", pa.int32(), "how often G was looked at, this round included"),
        _key("alpha_spent", REAL, "sum of the levels of all looks"),
        _key("test_opened", FLAG, "T was opened in this round"),
        _column("approver", TEXT, "who approved; null when it was the gate alone"),
        _column("notes", TEXT, "in words"),
        _key("finished_at", MOMENT, "when the round ended"),
        _key("code_commit", TEXT, "version of the code"),
    ]
)

MODELS = pa.schema(
    [
        _key("model_id", TEXT, "name@digest of the weights"),
        _key("weights_sha256", TEXT, "digest of the weights, hex"),
        _key("weights_uri", TEXT, "where the weights are"),
        _key("role", TEXT, "teacher, student, baseline, or fold (of a cross-fit: it leaves a part of L out)"),
        _key("task", TEXT, "instance, semantic or landmarks"),
        _column("run_id", TEXT, "the run of the loop that trained it"),
        _key("round", pa.int32(), "round that trained it; 0 is supervised"),
        _column("parent_model_id", TEXT, "the teacher of its pseudo-labels"),
        _column("train_set_id", TEXT, "SHA-256 over sorted (label_id, weight); null without pseudo-labels"),
        _column("label_set_id", TEXT, "digest of the human labels"),
        _column("splits_manifest_sha256", TEXT, "digest of the manifest that says which of these were L"),
        _column("split_items_sha256", TEXT, "content digest of split_items, as that manifest states it"),
        _key("class_map_sha256", TEXT, "digest of the class map"),
        _column("init_sha256", TEXT, "digest of the weights it began with"),
        _key("seed", pa.int64(), "seed of the training"),
        _key("code_commit", TEXT, "version of the code that trained"),
        _key("created_at", MOMENT, "when training ended"),
    ]
)

CALIBRATORS = pa.schema(
    [
        _key("calibrator_id", TEXT, "digest of the parameters"),
        _key("model_id", TEXT, "row of models whose scores it maps"),
        _key("kind", TEXT, "isotonic"),
        _key("feature", TEXT, "column that it reads: score_raw or quality"),
        _key("target", TEXT, "what it predicts, e.g. true positive at IoU .5"),
        _column("class_id", pa.int32(), "the class; null for the pooled one"),
        _key("knots_x", REALS, "scores, ascending"),
        _key("knots_y", REALS, "calibrated values, not falling"),
        _key("n", pa.int64(), "matched candidates of C it was fitted on"),
        _key("d_ece_before", REAL, "error before, on the same candidates", unit="[0, 1]"),
        _key("d_ece_after", REAL, "error after, on the same candidates", unit="[0, 1]"),
    ]
)

THRESHOLD_SETS = pa.schema(
    [
        _key("threshold_set_id", TEXT, "digest of all its rows"),
        _key("model_id", TEXT, "row of models whose scores it is for"),
        _key("round", pa.int32(), "turn of the loop"),
        _key("class_id", pa.int32(), "the class"),
        _key("class_name", TEXT, "its name"),
        _key("basis", TEXT, "class, pooled or abstain"),
        _key("target_precision", REAL, "the precision that is promised", unit="[0, 1]"),
        _column("t_hi", REAL, "accepted from here on; null: abstains", unit="[0, 1]"),
        _key("t_lo", REAL, "background below", unit="[0, 1]"),
        _column("lower_bound", REAL, "95 % Clopper-Pearson lower bound of the precision at t_hi", unit="[0, 1]"),
        _key("n_calibration", pa.int64(), "candidates of the class on C"),
        _key("n_accepted", pa.int64(), "of these (or of the pool) at or above t_hi"),
        _key("n_correct", pa.int64(), "of the accepted, right"),
        _key("truth_per_image", REAL, "objects (semantic: pixels) of the class per labelled image"),
        _key("coverage", REAL, "share of the class's candidates on C at or above t_hi", unit="[0, 1]"),
        _key("calibration_split", TEXT, "digest of the manifest whose C it was certified on"),
        _column("t_mask", REAL, "mask accepted from this measured quality on; null: none is", unit="[0, 1]"),
        _key("note", TEXT, "why this basis, in words"),
    ]
)

AUDITS = pa.schema(
    [
        _key("audit_id", TEXT, "digest of frame, strata and verdicts"),
        *_ROUND,
        _key("train_set_id", TEXT, "the accepted set that was sampled"),
        _column("class_name", TEXT, "the stratum; null for all together"),
        _key("n_frame", pa.int64(), "accepted labels to draw from"),
        _key("n", pa.int64(), "labels that were looked at"),
        _key("n_errors", pa.int64(), "of these wrong"),
        _key("lower_bound", REAL, "95 % Clopper-Pearson lower bound of the precision", unit="[0, 1]"),
        _key("reviewers", TEXTS, "who looked"),
        _column("agreement", REAL, "share of doubly seen labels with equal verdicts", unit="[0, 1]"),
    ]
)

VERDICTS = pa.schema(
    [
        _key("verdict_id", TEXT, "digest of the verdict"),
        *_ROUND,
        _column("champion_id", TEXT, "row of models: the one in use"),
        _key("candidate_id", TEXT, "row of models: the one that wants to replace it"),
        _key("criterion", TEXT, "what was asked"),
        _key("passed", FLAG, "whether it holds"),
        _column("value", REAL, "what was measured; null if it could not be"),
        _column("demanded", REAL, "the limit"),
        _key("relation", TEXT, "how value must stand to what was demanded: >, >=, <= or =="),
        _key("reason", TEXT, "in one line"),
        _key("promoted", FLAG, "whether all criteria hold"),
        _key("decided_at", MOMENT, "when the gate decided"),
    ]
)

SCHEMAS: dict[str, tuple[str, pa.Schema]] = {
    "labels": ("labels.v1", LABELS),
    "fingerprints": ("fingerprints.v1", FINGERPRINTS),
    "split_items": ("split_items.v1", SPLIT_ITEMS),
    "candidates": ("candidates.v1", CANDIDATES),
    "pseudo_labels": ("pseudo_labels.v1", PSEUDO_LABELS),
    "pseudo_images": ("pseudo_images.v1", PSEUDO_IMAGES),
    "rounds": ("rounds.v1", ROUNDS),
    "models": ("models.v1", MODELS),
    "calibrators": ("calibrators.v1", CALIBRATORS),
    "threshold_sets": ("threshold_sets.v1", THRESHOLD_SETS),
    "audits": ("audits.v1", AUDITS),
    "verdicts": ("verdicts.v1", VERDICTS),
}
