"""What the predictor does to an image before the network, as a graph: resize, normalise, pad.

The network's input has one shape, the bucket of ``source_hw``. An image whose bucket that is gets the size that the
predictor gives it, to the pixel. Another one is fitted into the same shape: where the transform pads, with its aspect
ratio, only smaller than the predictor would show it; where it does not, stretched over all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError
from modelkit.exporting.canvas import Canvas
from modelkit.transform import ImageTransform

_ROUNDING = 1e-9  # pixels; the transform divides whole numbers, which floating point may miss by less than this


class Preparation(nn.Module):
    """Images (H, W, 3) uint8 RGB to the network's input, and where they lie in it.

    Args:
        transform: of the model.
        source_hw: rows and columns of the images that the shape of the network's input is chosen for.

    Raises:
        ConfigError: a transform that has no graph here; the message says which part of it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, transform: ImageTransform, source_hw: SizeHW) -> None:
        super().__init__()
        if transform.resizing == "bicubic":
            raise ConfigError("its images are resized by cubic curves, for which there is no graph here")
        pads = transform.padding in ("pad", "letterbox") or (
            transform.padding == "none" and transform.fixed_hw is None and transform.size_divisible > 1
        )
        if pads and transform.fit == "short":
            raise ConfigError("its transform makes the shorter side exact and pads, for which there is no graph here")
        self.transform = transform
        self.padded_hw = transform.bucket(source_hw)
        self.fixed_hw = None if pads else transform.resized_hw(source_hw)
        mean, std = (torch.tensor(list(each))[:, None, None] for each in (transform.mean, transform.std))
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Canvas]:
        """(1, 3, *padded_hw) float32, normalised, padding zero; and the way back."""
        height, width = image.shape[0], image.shape[1]
        source = torch.stack([torch.scalar_tensor(side, dtype=torch.float64) for side in (height, width)])
        content = self._content(source)
        pixels = self._resized(image, source, content)
        planes = pixels.permute(2, 0, 1) * self.scale + self.shift
        rows, columns = (torch.arange(side) < sides for side, sides in zip(self.padded_hw, content, strict=True))
        batch = planes * rows[:, None] * columns
        return batch[None], Canvas((height, width), content, self.padded_hw)

    def _content(self, source: Tensor) -> Tensor:
        """(2,) float64, whole: the size that the image is resized to."""
        if self.fixed_hw is not None:
            return torch.tensor(self.fixed_hw, dtype=torch.float64)
        transform, room = self.transform, torch.tensor(self.padded_hw, dtype=torch.float64)
        if transform.padding == "letterbox":
            return (source * (room / source).amin(0) + _ROUNDING).floor().clamp(min=1)
        wanted = transform.min_size / source.amin(0) if transform.scale is None else torch.tensor(transform.scale)
        scale = torch.minimum(wanted.double(), transform.max_size / source.amax(0))
        usual = (source * scale).floor().clamp(min=1)
        smaller = (source * torch.minimum(scale, (room / source).amin(0))).floor().clamp(min=1)
        return torch.where((usual <= room).all(0), usual, smaller)

    def _resized(self, image: Tensor, source: Tensor, content: Tensor) -> Tensor:
        """(*padded_hw, 3) float32 in 0 .. 255; what lies beyond the content means nothing.

        Columns come first, as in torch's kernels for 8 bits, which round after either axis.
        """
        rounds_between = self.transform.resizing == "uint8"
        across = self._along(image.transpose(0, 1), source[1], content[1], self.padded_hw[1])
        across = (across + 0.5).floor() if rounds_between else across
        down = self._along(across.transpose(0, 1), source[0], content[0], self.padded_hw[0])
        return down if self.transform.resizing == "float" else (down + 0.5).floor()

    def _along(self, pixels: Tensor, have: Tensor, wanted: Tensor, room: int) -> Tensor:
        """(have, k, 3) along its first axis to (room, k, 3), of which the first ``wanted`` are meant."""
        step = have.float() / wanted.float()
        if self.transform.antialias:
            return torch.tensordot(_low_pass(pixels.shape[0], step, room), pixels.float(), dims=1)
        place = ((torch.arange(room) + 0.5) * step - 0.5).clamp(min=0)
        last = have.to(torch.int64) - 1
        before = torch.minimum(place.to(torch.int64), last)
        share = torch.minimum(place - before, torch.ones(()))[:, None, None]
        first, second = pixels.index_select(0, before), pixels.index_select(0, torch.minimum(before + 1, last))
        return first.float() * (1 - share) + second.float() * share


def _low_pass(have: int, step: Tensor, room: int) -> Tensor:
    """(room, have) float32: weights of torch's antialiased bilinear filter, a triangle as wide as the step at least."""
    width = step.clamp(min=1)
    centre = (torch.arange(room) + 0.5) * step
    weights = (1 - ((torch.arange(have) + 0.5 - centre[:, None]) / width).abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
