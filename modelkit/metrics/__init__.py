"""Metrics as pure functions of arrays."""

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
    "ClassQuality",
    "PanopticQuality",
    "PanopticScores",
    "SemanticQuality",
    "SemanticScores",
    "count_id_switches",
    "panoptic_array",
    "video_panoptic_quality",
]
