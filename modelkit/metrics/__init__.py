"""Metrics as pure functions of arrays."""

from modelkit.metrics.counting import Accuracy, accuracy_of
from modelkit.metrics.keypoints import COCO_PERSON_SIGMAS, object_keypoint_similarity
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
    "PanopticQuality",
    "PanopticScores",
    "SemanticQuality",
    "SemanticScores",
    "accuracy_of",
    "count_id_switches",
    "object_keypoint_similarity",
    "panoptic_array",
    "video_panoptic_quality",
]
