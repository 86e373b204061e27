"""A predictor made of a function: models that are not modelkit's, in jobs as in notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelkit.carriers import Carrier, SizeHW
from modelkit.carriers.classes import ClassInfo
from modelkit.pictures import as_pixels
from modelkit.records import Weights


class _Picture:
    """An image on its way into a batch: one of its own, whatever its size."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    @property
    def bucket(self) -> SizeHW:
        """Rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def nbytes(self) -> int:
        """Host memory held, bytes."""
        return self.pixels.nbytes


class FunctionPredictor:
    """What jobs want of a predictor, around a function that looks at one image.

    Args:
        function: (H, W, 3) uint8 RGB -> carrier (``Instances``, ...) in pixels of that image. Called by one thread.
        classes: what its labels mean.
        kind: what it does, "instance", "semantic", ...
        min_score: results below it are dropped.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Carrier],
        classes: Sequence[ClassInfo],
        *,
        kind: str = "instance",
        min_score: float = 0.0,
    ) -> None:
        self.function, self.min_score = function, min_score
        name = getattr(function, "__qualname__", type(function).__name__)
        self.weights = Weights(name, name, {}, kind, tuple(classes), {}, digest="", num_parameters=0)

    def prepare(self, image: Any) -> _Picture:
        """One image, in any form of :func:`modelkit.pictures.as_pixels`."""
        return _Picture(as_pixels(image))

    def infer(self, prepared: Sequence[_Picture]) -> list[Carrier]:
        """The function's answers, one by one."""
        return [self.function(each.pixels) for each in prepared]

    def finish(self, raw: Carrier) -> Carrier:
        """An answer without what scores too little."""
        scores = getattr(raw, "scores", None)
        return raw if scores is None else raw.chosen(np.flatnonzero(scores >= self.min_score))

    def __call__(self, images: Sequence[Any]) -> list[Carrier]:
        """The same for images at hand, in order."""
        return [self.finish(found) for found in self.infer([self.prepare(image) for image in images])]
