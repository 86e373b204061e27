"""Top-down landmark models: points on one object at a time. Importing this package registers them."""

from modelkit.landmarks.crops import CropGeometry, gathered, prepare_objects
from modelkit.landmarks.heatmaps import HeatmapCodec
from modelkit.landmarks.hourglass import StackedHourglass
from modelkit.landmarks.landmarker import CoordinateLandmarker, HeatmapLandmarker
from modelkit.landmarks.models import coordinate_landmarker, heatmap_landmarker, hourglass
from modelkit.landmarks.networks import CoordinateHead, DeconvolutionNeck, HeatmapHead

__all__ = [
    "CoordinateHead",
    "CoordinateLandmarker",
    "CropGeometry",
    "DeconvolutionNeck",
    "HeatmapCodec",
    "HeatmapHead",
    "HeatmapLandmarker",
    "StackedHourglass",
    "coordinate_landmarker",
    "gathered",
    "heatmap_landmarker",
    "hourglass",
    "prepare_objects",
]
