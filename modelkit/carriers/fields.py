"""The kinds of entries that a training target has, and how each is resized, warped, covered, mixed and chosen.

Flips, crops, shifts and rotations are all warps by a matrix. Pixels are counted as ``modelkit.carriers`` says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.carriers.geometry import (
    clip_boxes,
    have_area,
    resize_nearest,
    scale_boxes,
    scale_points,
    tight_boxes,
    warp_boxes,
    warp_maps,
    warp_points,
)
from modelkit.errors import TargetError

GREY = 0.5  # what shows where there is no picture


@dataclass(frozen=True, slots=True)
class Resize:
    """A change of size.

    Args:
        from_hw, to_hw: rows and columns before and after.
        aligned: False resizes masks by torchvision's rule, see ``resize_nearest``.
    """

    from_hw: SizeHW
    to_hw: SizeHW
    aligned: bool = True


@dataclass(frozen=True, slots=True)
class Warp:
    """A move by a matrix.

    Args:
        matrix: (3, 3) float64 affine, from pixels of the sample to pixels of the result.
        to_hw: rows and columns of the result.
        flip_pairs: keypoints that change places in a mirror, (left eye, right eye); None: nobody said.
    """

    matrix: Tensor
    to_hw: SizeHW
    flip_pairs: Sequence[tuple[int, int]] | None = None

    @property
    def mirrors(self) -> bool:
        """Whether left becomes right."""
        return float(torch.linalg.det(self.matrix)) < 0


class Field(ABC):
    """What an entry of a target is. Values are never changed in place.

    Args:
        per_object: there is one row for each of the target's objects.
        default: what the entry is taken to be where one of two mixed samples lacks it; None: both must have it.
    """

    def __init__(self, *, per_object: bool = False, default: float | None = None) -> None:
        self.per_object, self.default = per_object, default

    @abstractmethod
    def resized(self, value: Any, resize: Resize) -> Any:
        """The entry of the same image at another size."""

    @abstractmethod
    def warped(self, value: Any, warp: Warp) -> Any:
        """The entry of the moved image; objects keep their rows, even those that left it."""

    def within(self, value: Any, area: Tensor) -> Any:
        """What is left of it when everything outside of ``area``, (H, W) bool, is covered."""
        return value

    def chosen(self, value: Any, keep: Tensor) -> Any:
        """The rows of some objects: ``keep`` is a bool mask or an index."""
        return value[keep] if self.per_object else value

    def mixed(self, below: Any, above: Any, where: Tensor) -> Any:
        """The entry of a sample of which ``where``, (H, W) bool, shows ``above`` and the rest ``below``."""
        return torch.cat([below, above])


class Value(Field):
    """Something that geometry does not touch: a class, a weight, an identity."""

    def resized(self, value: Any, resize: Resize) -> Any:
        return value

    def warped(self, value: Any, warp: Warp) -> Any:
        return value

    def mixed(self, below: Any, above: Any, where: Tensor) -> Any:
        if self.per_object:
            return super().mixed(below, above, where)
        if below != above:
            raise TargetError(f"only samples that agree in it can be mixed, got {below!r} and {above!r}")
        return below


class Labels(Field):
    """(k,) int64 class ids that hold for the whole image, sorted; a mixed sample has those of both."""

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        return value

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        return value

    def mixed(self, below: Tensor, above: Tensor, where: Tensor) -> Tensor:
        return torch.cat([below, above]).unique()


class Boxes(Field):
    """(n, 4) float xyxy. Moved boxes enclose the moved corners and are cut off at the borders."""

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        return scale_boxes(value, resize.from_hw, resize.to_hw)

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        return clip_boxes(warp_boxes(value, warp.matrix), warp.to_hw)

    def within(self, value: Tensor, area: Tensor) -> Tensor:
        inside = torch.zeros((len(value), *area.shape), dtype=torch.bool)
        for slot, box in zip(inside, value, strict=True):
            slot[box_pixels(box)] = area[box_pixels(box)]
        return tight_boxes(inside).to(value)


class Regions(Boxes):
    """Boxes (k, 4) that are no objects; those of which nothing is left go."""

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        moved = super().warped(value, warp)
        return moved[have_area(moved)]

    def within(self, value: Tensor, area: Tensor) -> Tensor:
        cut = super().within(value, area)
        return cut[have_area(cut)]


class Masks(Field):
    """(n, H, W) uint8 or bool, one for each object."""

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        return resize_nearest(value, resize.to_hw, aligned=resize.aligned)

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        return warp_maps(value, warp.matrix, warp.to_hw, fill=0, nearest=True)

    def within(self, value: Tensor, area: Tensor) -> Tensor:
        return value * area.to(value.dtype)


class Keypoints(Field):
    """(n, K, 3) float of x, y and v, for each object: v is 0 not labelled, 1 labelled but hidden, 2 visible (COCO).

    Points that leave the image or are covered are no longer labelled.
    """

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        return _with_places(value, scale_points(value[..., :2], resize.from_hw, resize.to_hw))

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        moved = _with_places(value, warp_points(value[..., :2].double(), warp.matrix).to(value.dtype))
        moved = _labelled_where(moved, _on_canvas(moved, warp.to_hw))
        return moved[:, _roles(value.shape[1], warp.flip_pairs)] if warp.mirrors else moved

    def within(self, value: Tensor, area: Tensor) -> Tensor:
        return _labelled_where(value, _shown(value, area))


class PartMaps(Masks):
    """(n, H, W) uint8: which coarse part of its object a pixel shows, 0 where the object is not; cannot be mirrored."""

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        _refuse_mirrors(warp)
        return super().warped(value, warp)


class SurfacePoints(Field):
    """(n, P, 5) float of x, y, part, u and v: labelled points of each object's surface (Gueler et al. 2018).

    Parts are numbered from 1, 0 is labelled as background, -1 says that there is no point; u and v, in [0, 1], are
    coordinates on the part. Points that leave the image or are covered go. They cannot be mirrored.
    """

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        return _with_places(value, scale_points(value[..., :2], resize.from_hw, resize.to_hw))

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        _refuse_mirrors(warp)
        moved = _with_places(value, warp_points(value[..., :2].double(), warp.matrix).to(value.dtype))
        return _on_parts_where(moved, _on_canvas(moved, warp.to_hw))

    def within(self, value: Tensor, area: Tensor) -> Tensor:
        return _on_parts_where(value, _shown(value, area))

    def mixed(self, below: Tensor, above: Tensor, where: Tensor) -> Tensor:
        return join_points([below, above])


def join_points(points: Sequence[Tensor]) -> Tensor:
    """Surface points (n_i, P_i, 5) of several images in one tensor (sum n_i, P, 5); P is the largest, at least 1."""
    most = max([1, *(each.shape[1] for each in points)])
    return torch.cat([F.pad(each, (0, 0, 0, most - each.shape[1]), value=-1.0) for each in points])


class PixelMap(Field):
    """(H, W), a value for each pixel.

    Args:
        fill: of pixels that come in from outside.
        default: see ``Field``.
    """

    def __init__(self, *, fill: float, default: float | None = None) -> None:
        super().__init__(default=default)
        self.fill = fill

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        return resize_nearest(value[None], resize.to_hw, aligned=resize.aligned)[0]

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        return warp_maps(value[None], warp.matrix, warp.to_hw, fill=self.fill, nearest=True)[0]

    def mixed(self, below: Tensor, above: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, above, below)


class Paired(Field):
    """What belongs to a second frame of the same size and moves as the first; samples with one cannot be mixed."""

    def mixed(self, below: Any, above: Any, where: Tensor) -> Any:
        raise TargetError("samples that are pairs of frames cannot be mixed: what moves would be cut in two places")


class PairedImage(Paired):
    """(3, H, W) float in [0, 1]."""

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        return F.interpolate(value[None], size=resize.to_hw, mode="bilinear", align_corners=False)[0]

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        return warp_maps(value, warp.matrix, warp.to_hw, fill=GREY, nearest=False).clamp(0, 1)


class PairedFlow(Paired):
    """(2, H, W) float: displacement (dx, dy) of each pixel to its place in the other frame; NaN where unknown."""

    def resized(self, value: Tensor, resize: Resize) -> Tensor:
        moved = resize_nearest(value, resize.to_hw)
        return scale_points(moved.movedim(0, -1), resize.from_hw, resize.to_hw).movedim(-1, 0)

    def warped(self, value: Tensor, warp: Warp) -> Tensor:
        known = warp_maps(value.isfinite().to(torch.uint8), warp.matrix, warp.to_hw, fill=0, nearest=True)
        moved = warp_maps(value.nan_to_num(), warp.matrix, warp.to_hw, fill=0, nearest=True)
        turned = torch.einsum("ij,jhw->ihw", warp.matrix[:2, :2].to(moved), moved)
        return torch.where(known.bool().all(0), turned, torch.nan)


class PairedBoxes(Paired, Boxes):
    """(m, 4) float xyxy in the other frame; those that left it have no area and keep their rows."""


class PairedValue(Paired, Value):
    """Something of the other frame that geometry does not touch."""


def box_pixels(box: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the pixels of a box (4,), at least one each."""
    x1, y1, x2, y2 = box.round().int().clamp(min=0).tolist()
    return slice(y1, max(y2, y1 + 1)), slice(x1, max(x2, x1 + 1))


def _with_places(keypoints: Tensor, places_xy: Tensor) -> Tensor:
    return torch.cat([places_xy, keypoints[..., 2:]], -1)


def _on_canvas(keypoints: Tensor, size_hw: SizeHW) -> Tensor:
    """(n, K) bool."""
    places = keypoints[..., :2]
    return ((places >= 0) & (places < places.new_tensor([size_hw[1], size_hw[0]]))).all(-1)


def _shown(keypoints: Tensor, area: Tensor) -> Tensor:
    """(n, K) bool: the point lies in a pixel of ``area``, (H, W) bool."""
    size_hw = (area.shape[0], area.shape[1])
    x, y = (keypoints[..., k].floor().long().clamp(0, size_hw[1 - k] - 1) for k in (0, 1))
    return area[y, x] & _on_canvas(keypoints, size_hw)


def _on_parts_where(points: Tensor, stays: Tensor) -> Tensor:
    """The same with part -1 where ``stays``, (n, P) bool, is False."""
    part = torch.where(stays[..., None], points[..., 2:3], -1.0)
    return torch.cat([points[..., :2], part, points[..., 3:]], -1)


def _refuse_mirrors(warp: Warp) -> None:
    if warp.mirrors:
        raise TargetError(
            "a surface was mirrored, and nobody says which of its parts and coordinates change places; do not flip"
        )


def _labelled_where(keypoints: Tensor, stays: Tensor) -> Tensor:
    """The same with v = 0 where ``stays``, (n, K) bool, is False."""
    return torch.cat([keypoints[..., :2], torch.where(stays[..., None], keypoints[..., 2:], 0.0)], -1)


def _roles(count: int, flip_pairs: Sequence[tuple[int, int]] | None) -> list[int]:
    """Which keypoint each of them is in a mirror."""
    if flip_pairs is None:
        raise TargetError(
            "keypoints were mirrored, and nobody said which of them change places; give 'flip_pairs' in the "
            "target: pairs like (left eye, right eye), or () for none"
        )
    roles = list(range(count))
    for left, right in flip_pairs:
        roles[left], roles[right] = right, left
    return roles
