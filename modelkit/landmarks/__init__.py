"""Top-down landmark models: points on one object at a time. Importing this package registers them."""

from modelkit.landmarks.crops import CropGeometry, gathered, prepare_objects
from modelkit.landmarks.heatmaps import HeatmapCodec
from modelkit.landmarks.hourglass import StackedHourglass
from modelkit.landmarks.landmarker import CoordinateLandmarker, HeatmapLandmarker
from modelkit.landmarks.models import coordinate_landmarker, heatmap_landmarker, hourglass
from modelkit.landmarks.networks import CoordinateHead, DeconvolutionNeck, HeatmapHead
from modelkit.landmarks.one_euro import OneEuro
from modelkit.landmarks.support import aimed, found_with_support, gives_support
from modelkit.landmarks.top_down import DetectingPredictor, FoundBoxes, TopDownPredictor, is_top_down, labels_of
from modelkit.landmarks.tracking import Tracking, TrackingPredictor

__all__ = [
    "CoordinateHead",
    "CoordinateLandmarker",
    "CropGeometry",
    "DeconvolutionNeck",
    "DetectingPredictor",
    "FoundBoxes",
    "HeatmapCodec",
    "HeatmapHead",
    "HeatmapLandmarker",
    "OneEuro",
    "StackedHourglass",
    "TopDownPredictor",
    "Tracking",
    "TrackingPredictor",
    "aimed",
    "coordinate_landmarker",
    "found_with_support",
    "gathered",
    "gives_support",
    "heatmap_landmarker",
    "hourglass",
    "is_top_down",
    "labels_of",
    "prepare_objects",
]
