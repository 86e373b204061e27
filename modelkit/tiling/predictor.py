"""A predictor that looks at large pictures in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from modelkit.base import FinishedPrediction, Prediction, VisionModel
from modelkit.carriers import Instances
from modelkit.compile.execution import ExecutionChoice, ForwardFn
from modelkit.errors import ConfigError
from modelkit.pictures import as_pixels
from modelkit.predictor import Predictor, Prepared, marked_at_limit
from modelkit.records import Weights
from modelkit.semantic.segmentor import SemanticMap
from modelkit.tiling.maps import TileMap, blend, stitch
from modelkit.tiling.objects import merge_objects
from modelkit.tiling.segments import merge_segments
from modelkit.tiling.windows import Tiling, Window
from modelkit.transform import Geometry
from modelkit.video import VideoModel


@dataclass(frozen=True, slots=True)
class PreparedPicture(Prepared):
    """A picture that is to be cut: ``pixels`` are all of its own (H, W, 3) uint8, ``geometry`` is that of a tile."""


def check_can_be_tiled(model: VisionModel, weights: Weights) -> None:
    """Refuse models whose results on tiles nobody could bring together.

    Raises:
        ConfigError: one with a memory: a clip's frame goes through it once.
    """
    if isinstance(model, VideoModel):
        raise ConfigError(f"{weights.reference} has a memory: it looks at whole frames, not at tiles of them")


class TiledPredictor(Predictor):
    """Looks at pictures that are larger than a tile one tile after the other, at others as the inner predictor does.

    At any time the activations of one tile are held, and of what was found run lengths; of a semantic model also the
    map of the picture and the probabilities in one row of strips.

    Args:
        inner: looks at a tile as at an image of its own; its device and way of running are taken over.
        tiling: how pictures are cut.

    Raises:
        ConfigError: see ``check_can_be_tiled``.
    """

    def __init__(self, inner: Predictor, tiling: Tiling) -> None:
        self.inner, self.tiling = inner, tiling
        check_can_be_tiled(inner.model, inner.weights)
        super().__init__(inner.model, inner.weights, inner.device, choice=inner.choice, min_score=inner.min_score)
        self.rows_digest = inner.rows_digest

    def use(self, choice: ExecutionChoice, forward_fn: ForwardFn | None = None) -> None:
        """As in :class:`Predictor`; it is the inner one that runs."""
        super().use(choice, forward_fn)
        self.inner.use(choice, forward_fn)

    def around(self, wrap: Callable[[Predictor], Predictor]) -> Predictor:
        """Tiles are looked at by what ``wrap`` makes of the inner predictor."""
        return TiledPredictor(wrap(self.inner), self.tiling)

    def prepare(self, image: Any) -> Prepared:
        """As in :class:`Predictor`; a picture that is to be cut stays as it is."""
        pixels = as_pixels(image)
        size_hw = (pixels.shape[0], pixels.shape[1])
        if self.tiling.is_one_tile(size_hw):
            return self.inner.prepare(pixels)
        tile_hw = self.tiling.windows(size_hw)[0].size_hw
        transform = self.model.transform
        geometry = Geometry(tile_hw, transform.resized_hw(tile_hw), transform.bucket(tile_hw))
        return PreparedPicture(np.ascontiguousarray(pixels), geometry)

    def piece(self, image: Any) -> Prepared:
        """As in :class:`Predictor`: the first tile."""
        pixels = as_pixels(image)
        return self.inner.prepare(self.tiling.windows((pixels.shape[0], pixels.shape[1]))[0].cut(pixels))

    @torch.inference_mode()
    def infer(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """As in :class:`Predictor`; the tiles of a picture go one by one, whole images of the batch together."""
        whole = [each for each in prepared if not isinstance(each, PreparedPicture)]
        found = iter(self.inner.infer(whole) if whole else ())
        return [self._tiled(each.pixels) if isinstance(each, PreparedPicture) else next(found) for each in prepared]

    def finish(self, raw: Prediction) -> Any:
        """As in :class:`Predictor`."""
        return raw.finish(self.min_score) if isinstance(raw, FinishedPrediction) else self.inner.finish(raw)

    def _tiled(self, pixels: np.ndarray) -> FinishedPrediction[Instances]:
        size_hw = (pixels.shape[0], pixels.shape[1])
        windows = self.tiling.windows(size_hw)
        if self.weights.kind == "semantic" and self.model.gives_probabilities and self.inner.blends:
            background = getattr(self.model, "background", None)
            return FinishedPrediction(blend(self._maps(pixels, windows), windows, size_hw).instances(background))
        parts = list(self._parts(pixels, windows))
        if self.weights.kind == "semantic":
            return FinishedPrediction(stitch(parts, size_hw, by_score=self.model.gives_probabilities))
        merge = merge_segments if self.weights.kind == "panoptic" else merge_objects
        found = merge(parts, size_hw)
        limits = [each.at_limit for _, each in parts if each.at_limit is not None]
        return FinishedPrediction(replace(found, at_limit=max(limits)) if limits else found)

    def _maps(self, pixels: np.ndarray, windows: Sequence[Window]) -> Iterator[TileMap]:
        for window in windows:
            prepared = self.inner.prepare(window.cut(pixels))
            raw = self.inner.forward_fn(self.inner.batch([prepared]))
            [seen] = self.model.decode(raw, [prepared.geometry])
            [probabilities] = self.model.probabilities(raw, [prepared.geometry])
            yield window, cast(SemanticMap, seen).full_size(), probabilities

    def _parts(self, pixels: np.ndarray, windows: Sequence[Window]) -> Iterator[tuple[Window, Instances]]:
        for window in windows:
            [raw] = self.inner.infer([self.inner.prepare(window.cut(pixels))])
            # What scores too little may be a part of what does not.
            yield window, cast(Instances, marked_at_limit(raw.finish(), self.model, self.min_score))
