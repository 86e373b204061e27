"""RandAugment (Cubuk et al. 2020) for every kind of target.

torchvision's own refuses boxes, masks and keypoints, so the fourteen operations of its table are done here: geometric
ones by our warp, which moves the target along, photometric ones by torchvision's functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from modelkit.augmentation import geometry
from modelkit.augmentation.draws import choice, integer
from modelkit.augmentation.geometry import warp
from modelkit.augmentation.sample import Sample
from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
_SIGNED = frozenset(OPERATIONS[1:10])
_LARGEST = {"ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0, "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9}
_LARGEST["Sharpness"] = 0.9


def strength(operation: str, magnitude: int, num_bins: int, size_hw: SizeHW) -> float:
    """What a magnitude means for an operation, without its sign; torchvision's table.

    Args:
        operation: one of ``OPERATIONS``.
        magnitude: bin, 0 .. num_bins - 1.
        num_bins: of the scale.
        size_hw: translations grow with the image.
    """
    share = magnitude / (num_bins - 1)
    if operation in _LARGEST:
        return _LARGEST[operation] * share
    if operation in ("TranslateX", "TranslateY"):
        return 150.0 / 331.0 * size_hw[operation == "TranslateX"] * share
    if operation == "Posterize":
        return 8 - round(magnitude / ((num_bins - 1) / 4))
    if operation == "Solarize":
        return 1.0 - share
    return 0.0


@dataclass(frozen=True, slots=True)
class RandAugment:
    """Some operations in a row, each drawn from the same set.

    Args:
        num_ops: how many.
        magnitude: bin of the strength, the same for all.
        num_bins: of the scale.
        photometric_only: leave out shears, translations and rotations.
    """

    num_ops: int = 2
    magnitude: int = 9
    num_bins: int = 31
    photometric_only: bool = False

    def __post_init__(self) -> None:
        if not (self.num_ops >= 0 and 0 <= self.magnitude < self.num_bins):
            raise ConfigError(f"RandAugment needs 0 <= magnitude < num_bins, got {self.magnitude} of {self.num_bins}")

    @property
    def operations(self) -> tuple[str, ...]:
        """What is drawn from."""
        return tuple(name for name in OPERATIONS if not (self.photometric_only and name in _MATRICES))

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """See the class."""
        for _ in range(self.num_ops):
            operation = choice(generator, self.operations)
            value = strength(operation, self.magnitude, self.num_bins, sample.size_hw)
            negative = integer(generator, 0, 1) == 1
            sample = apply(sample, operation, -value if negative and operation in _SIGNED else value)
        return sample


def apply(sample: Sample, operation: str, value: float) -> Sample:
    """One operation at a signed strength."""
    if operation in _MATRICES:
        return warp(sample, _MATRICES[operation](value, sample.size_hw))
    return sample.with_image(_COLOURS[operation](sample.image, value))


# torchvision shears about the top-left corner and moves content against the sign of a shift, as the paper's code does;
# only the sizes matter here, since both signs are equally likely.
_MATRICES: dict[str, Callable[[float, SizeHW], Tensor]] = {
    "ShearX": lambda value, size_hw: geometry.shear(value, 0.0),
    "ShearY": lambda value, size_hw: geometry.shear(0.0, value),
    "TranslateX": lambda value, size_hw: geometry.translation(value, 0.0),
    "TranslateY": lambda value, size_hw: geometry.translation(0.0, value),
    "Rotate": lambda value, size_hw: geometry.about_centre(geometry.rotation(value), size_hw),
}


def _in_bytes(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Posterising and equalising are defined on 8 bits."""

    def run(image: Tensor) -> Tensor:
        return function((image * 255).round().to(torch.uint8)).to(image.dtype) / 255

    return run


_COLOURS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda image, value: image,
    "Brightness": lambda image, value: VF.adjust_brightness(image, 1 + value),
    "Color": lambda image, value: VF.adjust_saturation(image, 1 + value),
    "Contrast": lambda image, value: VF.adjust_contrast(image, 1 + value),
    "Sharpness": lambda image, value: VF.adjust_sharpness(image, 1 + value),
    "Posterize": lambda image, value: _in_bytes(lambda small: VF.posterize(small, int(value)))(image),
    "Solarize": lambda image, value: VF.solarize(image, value),
    "AutoContrast": lambda image, value: VF.autocontrast(image),
    "Equalize": lambda image, value: _in_bytes(VF.equalize)(image),
}
