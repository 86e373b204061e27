"""Metrics as pure functions of arrays."""

from modelkit.metrics.semantic import SemanticQuality, SemanticScores

__all__ = ["SemanticQuality", "SemanticScores"]
