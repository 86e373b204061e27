"""Test-time augmentation: a model looks at several views of an image, and what it saw in them is brought together.

A view is the image in a mirror or at another scale. Each is looked at as an image of its own, un-warped by its own
geometry, and merged with the plain view by a subclass: probabilities can be averaged (Chen et al. 2020, Naive-Student),
objects can be compared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modelkit.base import Prediction
from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.predictor import Predictor, Prepared
from modelkit.transform import Geometry, ImageTransform
from modelkit.video import VideoState


@dataclass(frozen=True, slots=True)
class View:
    """How an image is shown once more.

    Args:
        mirrored: left and right exchanged. Wrong where that makes another class of it: digits, text, road signs.
        scale: factor on the size that the network gets.
    """

    mirrored: bool = False
    scale: float = 1.0

    def geometry(self, transform: ImageTransform, source_hw: SizeHW) -> Geometry:
        """How the view goes into the network; depends on the size of its image alone."""
        if self.scale == 1:
            return Geometry(source_hw, transform.resized_hw(source_hw), transform.bucket(source_hw))
        rows, columns = (max(1, round(side * self.scale)) for side in transform.resized_hw(source_hw))
        padded = transform.padded_hw([(rows, columns)])
        filled = transform.padding in ("stretch", "square")  # for models that padding would disturb
        return Geometry(source_hw, padded if filled else (rows, columns), padded)


VIEWS = {"hflip": View(mirrored=True), "0.75x": View(scale=0.75), "1.25x": View(scale=1.25)}


@dataclass(frozen=True, slots=True)
class PreparedViews(Prepared):
    """The plain view of an image, which decides about its bucket, and the others."""

    others: tuple[Prepared, ...]

    @property
    def nbytes(self) -> int:
        """Host memory held, bytes."""
        return self.pixels.nbytes + sum(each.nbytes for each in self.others)


class ViewsPredictor(Predictor):
    """Looks at an image and at other views of it; for single images, not for clips of a model with a memory.

    Args:
        predictor: of the model; its device and way of running are taken over.
        views: names in ``VIEWS``; none is allowed, then only the plain view is looked at.

    Raises:
        ConfigError: an unknown view, or views for a model with a memory: a clip's frame goes through it once.
    """

    def __init__(self, predictor: Predictor, views: Iterable[str] = ()) -> None:
        super().__init__(
            predictor.model, predictor.weights, predictor.device, choice=predictor.choice, min_score=predictor.min_score
        )
        names = tuple(views)
        unknown = [name for name in names if name not in VIEWS]
        if unknown:
            raise ConfigError(f"there is no view {', '.join(unknown)}; there are {', '.join(VIEWS)}")
        if names and self.is_video:
            raise ConfigError(f"{self.weights.reference} has a memory; it looks at a frame once, without other views")
        self.views = tuple(VIEWS[name] for name in names)

    @abstractmethod
    def merge(self, plain: Prediction, others: Sequence[Prediction]) -> Prediction:
        """What came of an image, from what was seen in its views.

        Args:
            plain: of the image as it is.
            others: of the other views in the order of ``views``; those of a mirror are still mirrored.
        """

    def prepare(self, image_rgb_hwc_u8: np.ndarray) -> Prepared:
        """As in :class:`Predictor`; with views, all of them."""
        plain = super().prepare(image_rgb_hwc_u8)
        if not self.views:
            return plain
        others = []
        for view in self.views:
            geometry = view.geometry(self.model.transform, plain.geometry.source_hw)
            shown = plain if geometry == plain.geometry else self.resized(image_rgb_hwc_u8, geometry)
            pixels = np.ascontiguousarray(shown.pixels[:, ::-1]) if view.mirrored else shown.pixels
            others.append(Prepared(pixels, geometry))
        return PreparedViews(plain.pixels, plain.geometry, tuple(others))

    @torch.inference_mode()
    def infer(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """As in :class:`Predictor`; one forward pass for each view, and for each shape that its images have."""
        plain = self.look(prepared)
        others: list[list[Prediction]] = [[] for _ in prepared]
        for place in range(len(self.views)):
            shown = [each.others[place] for each in prepared if isinstance(each, PreparedViews)]
            for mine, found in zip(others, self._look_by_bucket(shown), strict=True):
                mine.append(found)
        return [self.merge(*each).cpu() for each in zip(plain, others, strict=True)]

    def _look_by_bucket(self, shown: Sequence[Prepared]) -> list[Prediction]:
        found: dict[int, Prediction] = {}
        for bucket in dict.fromkeys(each.bucket for each in shown):
            members = [index for index, each in enumerate(shown) if each.bucket == bucket]
            found.update(zip(members, self.look([shown[index] for index in members]), strict=True))
        return [found[index] for index in range(len(shown))]

    def step(self, prepared: Prepared, state: VideoState) -> tuple[Prediction, VideoState]:
        """As in :class:`Predictor`: a model with a memory has no other views."""
        found, after = super().step(prepared, state)
        return self.merge(found, []), after
