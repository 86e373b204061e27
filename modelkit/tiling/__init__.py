"""Large pictures, looked at in tiles that overlap, and what was found in these brought together.

A tile goes into the network as an image of its own; its neighbours see the strip that they share once more. That strip
says which pieces are one object (:mod:`modelkit.tiling.objects`), and there probabilities of pixels are blended
(:mod:`modelkit.tiling.maps`). A picture that fits into one tile is looked at as ever.
"""

from modelkit.tiling.predictor import TiledPredictor
from modelkit.tiling.windows import Tiling, Window

__all__ = ["TiledPredictor", "Tiling", "Window"]
