"""The single operations: each is a frozen description that takes a sample and a generator and gives a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torchvision.transforms.v2 import functional as VF

from modelkit.augmentation import geometry
from modelkit.augmentation.draws import chance, choice, integer, uniform
from modelkit.augmentation.geometry import warp
from modelkit.augmentation.sample import Sample
from modelkit.carriers.fields import GREY
from modelkit.carriers.geometry import warp_points
from modelkit.errors import ConfigError


class Operation(Protocol):
    """A random change of one sample; the same generator state gives the same change."""

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The changed sample; the given one stays as it is."""
        ...


@dataclass(frozen=True, slots=True)
class HorizontalFlip:
    """Mirror with a probability; targets with keypoints need ``flip_pairs``."""

    probability: float = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        if not chance(generator, self.probability):
            return sample
        return warp(sample, geometry.horizontal_flip(sample.size_hw))


@dataclass(frozen=True, slots=True)
class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021): resize by a random factor, then cut or fill to the former size.

    Args:
        low, high: of the factor, drawn uniformly.
    """

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ConfigError(f"scale jitter needs 0 < low <= high, got {self.low} and {self.high}")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        factor = uniform(generator, self.low, self.high)
        rows, columns = sample.size_hw
        x = uniform(generator, 0.0, 1.0) * (columns - columns * factor)
        y = uniform(generator, 0.0, 1.0) * (rows - rows * factor)
        return warp(sample, geometry.translation(x, y) @ geometry.scaling(factor, factor))


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """Resize by a random factor, then cut a window at a random place; what is smaller than the window is filled up.

    Args:
        height, width: of the window, pixels.
        low, high: of the factor, drawn uniformly on a logarithmic scale.
        short_side: the factor is relative to the size at which the image's shorter side has so many pixels, such as
            the size that a model looks at; 0 = to the image as it is.
    """

    height: int
    width: int
    low: float = 1.0
    high: float = 1.0
    short_side: int = 0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or not 0 < self.low <= self.high or self.short_side < 0:
            raise ConfigError(
                f"random crop needs a window of at least 1 pixel, 0 < low <= high and short_side >= 0, got "
                f"{self.height} x {self.width}, {self.low}, {self.high} and {self.short_side}"
            )

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        factor = math.exp(uniform(generator, math.log(self.low), math.log(self.high)))
        rows, columns = sample.size_hw
        if self.short_side:
            factor *= self.short_side / min(rows, columns)
        x = uniform(generator, 0.0, 1.0) * (self.width - columns * factor)
        y = uniform(generator, 0.0, 1.0) * (self.height - rows * factor)
        if factor == 1.0:  # whole pixels stay as sharp as they are
            x, y = float(round(x)), float(round(y))
        matrix = geometry.translation(x, y) @ geometry.scaling(factor, factor)
        return warp(sample, matrix, (self.height, self.width))


@dataclass(frozen=True, slots=True)
class StacGeometric:
    """The geometric set of STAC (Sohn et al. 2020): one of translation, rotation and shear, about the centre.

    Args:
        translate: largest shift, share of each side.
        rotate_deg: largest rotation.
        shear_deg: largest shear angle, along x or y.
    """

    translate: float = 0.1
    rotate_deg: float = 30.0
    shear_deg: float = 30.0

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        kind = choice(generator, ("translate", "rotate", "shear"))
        first, second = (uniform(generator, -1.0, 1.0) for _ in range(2))
        rows, columns = sample.size_hw
        if kind == "translate":
            return warp(sample, geometry.translation(first * self.translate * columns, second * self.translate * rows))
        if kind == "rotate":
            matrix = geometry.rotation(first * self.rotate_deg)
        else:
            slope = float(torch.tan(torch.deg2rad(torch.tensor(first * self.shear_deg, dtype=torch.float64))))
            matrix = geometry.shear(slope, 0.0) if second < 0 else geometry.shear(0.0, slope)
        return warp(sample, geometry.about_centre(matrix, sample.size_hw))


@dataclass(frozen=True, slots=True)
class ObjectJitter:
    """What a top-down model sees of objects, varied: turned, larger or smaller, beside the middle of the crop.

    The picture is turned about the middle of the first box. Boxes then have the sides that they had, about their moved
    middles, where a turned box would be enclosed by a larger one and its object seem smaller than it ever is in use;
    and are changed in size and place themselves, since crops follow them.

    Args:
        rotate_deg: largest rotation. rotated: probability of one.
        scale: the factor on a box's sides is drawn from 1 / (1 + scale) .. 1 + scale, evenly on a logarithmic scale.
        shift: largest shift of a box, share of its sides.
    """

    rotate_deg: float = 30.0
    rotated: float = 0.6
    scale: float = 0.25
    shift: float = 0.06

    def __post_init__(self) -> None:
        if min(self.rotate_deg, self.rotated, self.scale, self.shift) < 0:
            raise ConfigError("object jitter needs values of at least 0")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        turn, turns = uniform(generator, -1.0, 1.0) * self.rotate_deg, chance(generator, self.rotated)
        factor = math.exp(uniform(generator, -1.0, 1.0) * math.log1p(self.scale))
        shift = torch.tensor([uniform(generator, -1.0, 1.0) * self.shift for _ in range(2)])
        boxes = sample.target["boxes"]
        if not len(boxes):
            return sample
        middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        if turns and turn:
            x, y = middles[0].tolist()
            matrix = geometry.translation(x, y) @ geometry.rotation(turn) @ geometry.translation(-x, -y)
            sample = warp(sample, matrix, min_visible=0.0)
            if len(sample.target["boxes"]) != len(boxes):  # some left the picture; the others' boxes enclose them
                return sample
            middles = warp_points(middles.double(), matrix).to(boxes)
        middles, half = middles + shift * sides, sides * factor / 2
        return sample.with_target(boxes=torch.cat([middles - half, middles + half], 1))


@dataclass(frozen=True, slots=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue in random order, with a probability; defaults as Unbiased Teacher's.

    Args:
        brightness, contrast, saturation: a factor is drawn from 1 - x .. 1 + x, at least 0.
        hue: a shift is drawn from -x .. x, in turns of the colour circle; at most half a turn.
        probability: of doing it.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.hue <= 0.5 or min(self.brightness, self.contrast, self.saturation) < 0:
            raise ConfigError("colour jitter needs strengths of at least 0, and a hue of at most 0.5")

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        factors = [
            uniform(generator, max(0.0, 1 - strength), 1 + strength)
            for strength in (self.brightness, self.contrast, self.saturation)
        ]
        shift = uniform(generator, -self.hue, self.hue)
        order = torch.randperm(4, generator=generator).tolist()
        if not chance(generator, self.probability):
            return sample
        image, adjust = sample.image, (VF.adjust_brightness, VF.adjust_contrast, VF.adjust_saturation)
        for k in order:
            image = adjust[k](image, factors[k]) if k < 3 else VF.adjust_hue(image, shift)
        return sample.with_image(image)


@dataclass(frozen=True, slots=True)
class Greyscale:
    """Drop the colour with a probability."""

    probability: float = 0.2

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        if not chance(generator, self.probability):
            return sample
        return sample.with_image(VF.rgb_to_grayscale(sample.image, num_output_channels=3))


@dataclass(frozen=True, slots=True)
class Blur:
    """Gaussian blur with a probability.

    Args:
        sigma_low, sigma_high: of the Gaussian, pixels.
        probability: of doing it.
    """

    sigma_low: float = 0.1
    sigma_high: float = 2.0
    probability: float = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        sigma = uniform(generator, self.sigma_low, self.sigma_high)
        if not chance(generator, self.probability):
            return sample
        size = 2 * int(3 * sigma + 0.5) + 1
        return sample.with_image(VF.gaussian_blur(sample.image, [size, size], [sigma, sigma]))


@dataclass(frozen=True, slots=True)
class Cutout:
    """Grey patches (DeVries and Taylor 2017); labels stay, as in STAC: what is hidden shall be inferred.

    Args:
        most: patches, at least one.
        largest: side of a patch, share of the image's side.
    """

    most: int = 5
    largest: float = 0.2

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        image = sample.image.clone()
        rows, columns = sample.size_hw
        for _ in range(integer(generator, 1, self.most)):
            height, width = (round(uniform(generator, 0, self.largest) * side) for side in (rows, columns))
            top, left = integer(generator, 0, rows - height), integer(generator, 0, columns - width)
            image[:, top : top + height, left : left + width] = GREY
        return sample.with_image(image)
