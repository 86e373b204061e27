"""Objects as points: detectors whose boxes come from keypoints. Importing this package registers them."""

from modelkit.points.center_head import CenterHead
from modelkit.points.corner_head import CornerHead
from modelkit.points.detector import PointDetector, PointHead
from modelkit.points.hourglass import ObjectHourglassBackbone
from modelkit.points.models import centernet, cornernet

__all__ = [
    "CenterHead",
    "CornerHead",
    "ObjectHourglassBackbone",
    "PointDetector",
    "PointHead",
    "centernet",
    "cornernet",
]
