"""From source images to network batches and back: resize, normalise, pad; the one owner of the inverse map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.carriers.fields import Resize
from modelkit.carriers.geometry import clip_boxes, scale_boxes, scale_points
from modelkit.carriers.targets import resize_target
from modelkit.errors import ConfigError, TargetError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CHOICES = {
    "padding": ("pad", "stretch", "square", "multiple", "letterbox", "none"),
    "fit": ("floor", "short"),
    "resizing": ("uint8", "bicubic", "rounded", "float"),
}
_LATER = {
    "scale": None,
    "fixed_hw": None,
    "fit": "floor",
    "resizing": "uint8",
    "tile": None,
}  # options, with their defaults
_ASPECT_RATIOS = ((1, 1), (3, 4), (2, 3), (9, 16))  # rows to columns; each is used both ways


@dataclass(frozen=True, slots=True)
class Geometry:
    """How one image went into the network.

    Args:
        source_hw: of the image as given.
        resized_hw: of its content inside the padded batch, top-left aligned.
        padded_hw: of the batch.
    """

    source_hw: SizeHW
    resized_hw: SizeHW
    padded_hw: SizeHW

    def boxes_to_source(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes (n, 4) in resized pixels to source pixels."""
        return scale_boxes(boxes_xyxy, self.resized_hw, self.source_hw)

    def clipped_boxes_to_source(self, boxes_xyxy: Tensor) -> Tensor:
        """The same, cut off at the image's borders."""
        return clip_boxes(self.boxes_to_source(boxes_xyxy), self.source_hw)

    def points_to_source(self, points_xy: Tensor) -> Tensor:
        """Points (..., 2) in resized pixels to source pixels; may lie outside of the image."""
        return scale_points(points_xy, self.resized_hw, self.source_hw)


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Resize by the shorter side within a limit on the longer one, normalise, pad with zeros (= the mean colour).

    Args:
        min_size: wanted shorter side, pixels.
        max_size: limit on the longer side; wins over ``min_size``.
        mean: per RGB channel of values in [0, 1].
        std: per RGB channel.
        size_divisible: padded sides are multiples of this.
        padding: what ``bucket`` does. "pad": keep the aspect ratio and pad to one of few shapes; "stretch": resize to
            the shape of the nearest aspect ratio, no padding (for models with global pooling, which padding would
            disturb); "square": resize to ``min_size`` both ways, whatever the aspect ratio; "multiple": keep the aspect
            ratio but for enlarging both sides to the next multiple of ``size_divisible``, no padding; "letterbox": keep
            the aspect ratio and fill up ``fixed_hw``, which the image touches with one side at least; "none": no shape
            is shared, every resized size is its own bucket.
        train_min_sizes: in training the shorter side is drawn from these; empty = always ``min_size``.
        antialias: low-pass before shrinking.

    The others are for models of other systems, which must see images exactly as these showed them:

        scale: size as a factor of the image's own, within ``max_size``, in place of ``min_size``; for networks that
            were trained on images as they are. Only with padding "pad", "multiple" and "none".
        fixed_hw: rows and columns of every image, whatever its aspect ratio; only with padding "none" and "letterbox",
            which needs it.
        fit: "floor" cuts both sides to whole pixels after scaling, as torchvision's detectors do; "short" makes the
            shorter side exact and cuts the longer one, as torchvision's semantic presets and transformers do.
        resizing: what ``Predictor`` does. "uint8": in 8 bits, within one grey level of the exact value; "bicubic": the
            same by cubic curves; "rounded": in float32, then to whole grey levels; "float": in float32, three to ten
            times as slow, four times the memory until the image is seen.
        tile: [side, overlap] in pixels of the picture: what larger ones are cut into, each tile to be looked at as an
            image of its own; for models that learnt from such tiles. ``modelkit.load`` heeds it.
    """

    min_size: int = 800
    max_size: int = 1333
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    size_divisible: int = 32
    padding: Literal["pad", "stretch", "square", "multiple", "letterbox", "none"] = "pad"
    train_min_sizes: Sequence[int] = ()
    antialias: bool = False
    scale: float | None = None
    fixed_hw: Sequence[int] | None = None
    fit: Literal["floor", "short"] = "floor"
    resizing: Literal["uint8", "bicubic", "rounded", "float"] = "uint8"
    tile: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.min_size < 1 or self.max_size < self.min_size or self.size_divisible < 1:
            raise ConfigError(
                f"transform needs 1 <= min_size <= max_size and size_divisible >= 1, got {self.min_size}, "
                f"{self.max_size}, {self.size_divisible}"
            )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"transform {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.scale is not None and (self.scale <= 0 or self.padding not in ("pad", "multiple", "none")):
            raise ConfigError(
                f"transform scale must be above 0, with padding 'pad', 'multiple' or 'none', got {self.scale} and "
                f"{self.padding!r}"
            )
        if not self._fixed_hw_makes_sense():
            raise ConfigError(
                "transform fixed_hw must be [rows, columns], with padding 'none' or 'letterbox', which needs it, got "
                f"{self.fixed_hw!r} and {self.padding!r}"
            )
        if self.tile is not None and (len(self.tile) != 2 or not 1 <= self.tile[1] <= self.tile[0] // 2):
            raise ConfigError(
                f"transform tile must be [side, overlap], the overlap 1 pixel up to half the side, got {self.tile!r}"
            )

    def _fixed_hw_makes_sense(self) -> bool:
        if self.fixed_hw is None:
            return self.padding != "letterbox"
        return len(self.fixed_hw) == 2 and min(self.fixed_hw) >= 1 and self.padding in ("none", "letterbox")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageTransform:
        """From plain JSON; raises ConfigError naming unknown keys."""
        unknown = sorted(set(config) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"transform has no option {', '.join(unknown)}")
        return cls(**config)

    def to_config(self) -> dict[str, Any]:
        """Plain JSON with every option; those that older records do not know only where they are used."""
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in config.items() if key not in _LATER or value != _LATER[key]}

    def resized_hw(self, source_hw: SizeHW, min_size: int | None = None) -> SizeHW:
        """Size after resizing, at least one pixel a side; "pad" and "none" keep the aspect ratio."""
        if self.fixed_hw is not None:
            frame = (self.fixed_hw[0], self.fixed_hw[1])
            return _fit_inside(source_hw, frame) if self.padding == "letterbox" else frame
        if self.padding == "square":
            return min_size or self.min_size, min_size or self.min_size
        if self.padding == "stretch":
            return self._nearest_shape(source_hw)
        fitted = self._fit(source_hw, min_size or self.min_size)
        return self.padded_hw([fitted]) if self.padding == "multiple" else fitted

    def _fit(self, source_hw: SizeHW, min_size: int) -> SizeHW:
        if self.fit == "short" and self.scale is None:
            return self._fit_short(source_hw, min_size)
        wanted = min_size / min(source_hw) if self.scale is None else self.scale
        scale = min(wanted, self.max_size / max(source_hw))
        return max(1, math.floor(source_hw[0] * scale)), max(1, math.floor(source_hw[1] * scale))

    def _fit_short(self, source_hw: SizeHW, min_size: int) -> SizeHW:
        """The shorter side exactly ``min_size``, or the next whole number where ``max_size`` limits the longer one.

        An image whose shorter side is that already stays as it is, as transformers leaves it.
        """
        short, long = min(source_hw), max(source_hw)
        wanted = self.max_size * short / long if long / short * min_size > self.max_size else float(min_size)
        if round(wanted) == short:
            return source_hw
        sides = max(1, round(wanted)), max(1, int(wanted * long / short))
        return sides if source_hw[0] <= source_hw[1] else (sides[1], sides[0])

    def padded_hw(self, sizes_hw: Sequence[SizeHW]) -> SizeHW:
        """The smallest allowed batch size that holds all of ``sizes_hw``."""
        if self.padding == "letterbox" and self.fixed_hw is not None:
            return self.fixed_hw[0], self.fixed_hw[1]
        return self._round_up(max(h for h, _ in sizes_hw)), self._round_up(max(w for _, w in sizes_hw))

    def buckets(self) -> list[SizeHW]:
        """The declared batch shapes, smallest area first; empty for padding "none" and "multiple".

        What images of common aspect ratios (1:1, 4:3, 3:2, 16:9) and of the limit (``max_size`` : ``min_size``) need,
        both ways; with "pad" also bands of a half, a quarter and one unit of the shorter side for long, thin images.
        With "square" and "letterbox" the one shape.
        """
        if self.padding in ("none", "multiple"):
            return []
        if self.padding in ("square", "letterbox"):
            return [self.padded_hw([(self.min_size, self.min_size)])]
        short, long = self.min_size, self.max_size
        sizes = {self._fit((6 * height, 6 * width), short) for height, width in _ASPECT_RATIOS} | {(short, long)}
        if self.padding == "pad":
            sizes |= {(max(1, side), long) for side in (short // 2, short // 4, 1)}
        shapes = {self.padded_hw([size]) for size in sizes}
        shapes |= {(width, height) for height, width in shapes}
        return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))

    def bucket(self, source_hw: SizeHW) -> SizeHW:
        """The batch shape that an image of this size is always put into, whatever its neighbours are."""
        resized = self.resized_hw(source_hw)
        if self.padding in ("none", "multiple"):
            return self.padded_hw([resized])
        fitting = (shape for shape in self.buckets() if shape[0] >= resized[0] and shape[1] >= resized[1])
        return next(fitting, self.padded_hw([resized]))

    def _nearest_shape(self, source_hw: SizeHW) -> SizeHW:
        wanted = math.log(source_hw[0] / source_hw[1])
        return min(self.buckets(), key=lambda shape: (abs(math.log(shape[0] / shape[1]) - wanted), shape))

    def _round_up(self, side: int) -> int:
        return math.ceil(side / self.size_divisible) * self.size_divisible

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) float in [0, 1] to zero mean and unit deviation."""
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device)[:, None, None]
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device)[:, None, None]
        return (images - mean) / std

    def resize(self, image: Tensor, size_hw: SizeHW) -> Tensor:
        """(3, H, W) float to (3, *size_hw), bilinear between pixel centres."""
        resized = F.interpolate(
            image[None], size=size_hw, mode="bilinear", align_corners=False, antialias=self.antialias
        )
        return resized[0]

    def batch(
        self, images: Sequence[Tensor], *, training: bool = False, padded_hw: SizeHW | None = None
    ) -> tuple[Tensor, list[Geometry]]:
        """Normalise, resize and pad a list of images.

        Args:
            images: each (3, H, W) float in [0, 1]; sizes may differ.
            training: draw the shorter side from ``train_min_sizes``.
            padded_hw: batch shape; default: the smallest that is a multiple of ``size_divisible``.

        Returns:
            (N, 3, *padded_hw) and the geometry of each image.
        """
        resized = [self._prepare_one(image, training) for image in images]
        sizes = [(image.shape[-2], image.shape[-1]) for image in resized]
        shape = padded_hw or self.padded_hw(sizes)
        batch = resized[0].new_zeros((len(resized), 3, *shape))
        for slot, image, (rows, columns) in zip(batch, resized, sizes, strict=True):
            slot[:, :rows, :columns] = image
        geometries = [
            Geometry((image.shape[-2], image.shape[-1]), size, shape) for image, size in zip(images, sizes, strict=True)
        ]
        return batch, geometries

    def _prepare_one(self, image: Tensor, training: bool) -> Tensor:
        if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise TargetError(f"an image must be (3, H, W) float in [0, 1], got {tuple(image.shape)} {image.dtype}")
        min_size = None
        if training and self.train_min_sizes:
            min_size = self.train_min_sizes[int(torch.randint(len(self.train_min_sizes), ()))]
        size = self.resized_hw((image.shape[-2], image.shape[-1]), min_size)
        return self.resize(self.normalise(image), size)

    def target(self, target: Mapping[str, Any], geometry: Geometry, *, aligned: bool = True) -> dict[str, Any]:
        """The target dict of one image in resized pixels; maps take the resized, not the padded size.

        Args:
            target: see ``modelkit.carriers.targets``.
            geometry: of the image.
            aligned: False resizes masks by torchvision's rule, see ``resize_nearest``.

        Raises:
            TargetError: for entries that nobody knows how to resize.
        """
        return resize_target(target, Resize(geometry.source_hw, geometry.resized_hw, aligned))


def _fit_inside(source_hw: SizeHW, frame_hw: SizeHW) -> SizeHW:
    """The largest size of the same aspect ratio, up to whole pixels, in whole numbers so that nothing rounds twice."""
    (rows, columns), (high, wide) = source_hw, frame_hw
    if rows * wide >= columns * high:
        return high, max(1, columns * high // rows)
    return max(1, rows * wide // columns), wide
