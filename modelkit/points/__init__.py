"""Objects as points: detectors whose boxes come from keypoints. Importing this package registers them."""

from modelkit.points.detector import PointDetector, PointHead

__all__ = ["PointDetector", "PointHead"]
