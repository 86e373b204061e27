"""Metrics as pure functions of arrays."""

from modelkit.metrics.counting import Accuracy, accuracy_of
from modelkit.metrics.keypoints import COCO_PERSON_SIGMAS, object_keypoint_similarity
from modelkit.metrics.landmarks import (
    area_under_curve,
    between,
    box_diagonal,
    failure_rate,
    geodesic_point_similarity,
    masked_point_similarity,
    mean_errors,
    object_diagonal,
    pck,
    point_errors,
    point_offsets,
)
from modelkit.metrics.oks import OksPrecision, oks_evaluator, oks_precision, oks_results
from modelkit.metrics.panoptic import (
    ClassQuality,
    PanopticQuality,
    PanopticScores,
    count_id_switches,
    panoptic_array,
    video_panoptic_quality,
)
from modelkit.metrics.semantic import SemanticQuality, SemanticScores

__all__ = [
    "COCO_PERSON_SIGMAS",
    "Accuracy",
    "ClassQuality",
    "OksPrecision",
    "PanopticQuality",
    "PanopticScores",
    "SemanticQuality",
    "SemanticScores",
    "accuracy_of",
    "area_under_curve",
    "between",
    "box_diagonal",
    "count_id_switches",
    "failure_rate",
    "geodesic_point_similarity",
    "masked_point_similarity",
    "mean_errors",
    "object_diagonal",
    "object_keypoint_similarity",
    "oks_evaluator",
    "oks_precision",
    "oks_results",
    "panoptic_array",
    "pck",
    "point_errors",
    "point_offsets",
    "video_panoptic_quality",
]
