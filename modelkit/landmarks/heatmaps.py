"""Heatmaps of points, and the points of heatmaps: what a network learns from, and where between cells its answer lies.

Maps are (N, K, h, w) float. Points are (N, K, 2) in *map pixels*, counted as ``modelkit.carriers`` says: (0, 0) is the
corner of the first cell, the cell of index i covers i to i + 1, and its value is that of its centre, i + 0.5. So

* a point of the network's input becomes one of the map by the ratio of the sizes, x_map = x_input / stride, and the
  other way round, without an offset;
* a map is mirrored by exchanging its columns (x becomes w - x): flip tests need no shift by a cell;
* code that counts from the centres of cells (the MSRA family, DARK) has x_index = x_map - 0.5. Where it puts cell i at
  i * stride of the input, ours lies half a stride further; networks trained there need that when they are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.carriers import SizeHW
from modelkit.errors import ConfigError

Target = Literal["gaussian", "gaussian_biased", "cauchy"]
Decoder = Literal["argmax", "quarter", "dark", "soft_argmax", "centre_of_mass"]
_REACH = 3  # sigmas, after which a Gaussian is cut off
_SMALLEST = 1e-10  # before the logarithm
_PARABOLA = 2  # cells to each side of the peak that DARK's parabola hangs on
_LONGEST_STEP = 1.0  # cells from the peak that DARK may go; further off, the map is noise and no bell


def gaussian_heatmaps(points_xy: Tensor, size_hw: SizeHW, sigma: float, *, biased: bool = False) -> Tensor:
    """exp(-d^2 / 2 sigma^2) at the centre of each cell, not normalised: (N, K, 2) to (N, K, *size_hw).

    Args:
        points_xy: map pixels; may lie outside.
        size_hw: of the map.
        sigma: cells.
        biased: as the MSRA family has it: the bell stands in the middle of the cell that the point lies in and is cut
            off beyond a square of three sigmas. Otherwise (DARK, Zhang et al. 2020) it stands at the point.
    """
    centres = points_xy.floor() + 0.5 if biased else points_xy
    columns, rows = _distances(centres, size_hw)
    bells = [torch.exp(-(d**2) / (2 * sigma**2)) for d in (columns, rows)]
    if biased:
        bells = [bell * (d.abs() <= _REACH * sigma) for bell, d in zip(bells, (columns, rows), strict=True)]
    return bells[1][..., :, None] * bells[0][..., None, :]


def cauchy_heatmaps(points_xy: Tensor, size_hw: SizeHW, sigma: float, *, normalised: bool = True) -> Tensor:
    """(sigma^2 / (d^2 + sigma^2))^1.5, whose heavy tail reaches every cell: (N, K, 2) to (N, K, *size_hw).

    Without ``normalised`` sigma / (d^2 + sigma^2)^1.5, whose peak is 1 / sigma^2.
    """
    columns, rows = _distances(points_xy, size_hw)
    spread = (rows**2)[..., :, None] + (columns**2)[..., None, :] + sigma**2
    return (sigma**3 if normalised else sigma) / spread**1.5


def _distances(points_xy: Tensor, size_hw: SizeHW) -> tuple[Tensor, Tensor]:
    """How far the centres of columns (N, K, w) and of rows (N, K, h) lie from each point, in cells."""
    centres = (torch.arange(side, device=points_xy.device) + 0.5 for side in size_hw[::-1])
    across, down = (line - points_xy[..., axis, None] for axis, line in enumerate(centres))
    return across, down


def is_on_map(points_xy: Tensor, size_hw: SizeHW, sigma: float) -> Tensor:
    """(N, K) bool: whether a bell of three sigmas around the point's cell touches the map."""
    cell, limit = points_xy.floor(), points_xy.new_tensor(size_hw[::-1])
    return ((cell >= -_REACH * sigma) & (cell <= limit - 1 + _REACH * sigma)).all(-1)


def peaks(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row (N, K, 2) long of the largest value of each map, the first of equals, and the value (N, K)."""
    values, index = heatmaps.flatten(2).max(-1)
    width = heatmaps.shape[-1]
    return torch.stack([index % width, index // width], -1), values


def argmax_points(heatmaps: Tensor) -> Tensor:
    """The middle of the cell with the largest value; within half a cell. (N, K, 2) map pixels, as all below."""
    return peaks(heatmaps)[0] + 0.5


def quarter_points(heatmaps: Tensor) -> Tensor:
    """A quarter of a cell from the peak's middle towards its higher neighbour, two cells or more from the border."""
    cells, _ = peaks(heatmaps)
    step = torch.stack(
        [beside(heatmaps, cells, 1, 0) - beside(heatmaps, cells, -1, 0), beside(heatmaps, cells, 0, 1)
         - beside(heatmaps, cells, 0, -1)], -1,
    )  # fmt: skip
    return cells + 0.5 + torch.where(_inside(cells, heatmaps, 1), 0.25 * step.sign(), 0.0)


def dark_points(heatmaps: Tensor, blur: int = 0) -> Tensor:
    """The maximum of the parabola through the logarithm of the map at its peak (Zhang et al. 2020, DARK).

    Exact for Gaussians. Near the border, and where no maximum is within a cell, the middle of the peak is taken. The
    parabola hangs on 5 x 5 cells, so that no more than these are smoothed; smoothed maps are not made as high again as
    they were, for a factor does not move the maximum.

    Args:
        heatmaps: (N, K, h, w).
        blur: cells of the Gaussian that smooths the maps first, odd; 0 for none. 11 is usual for what networks give.
    """
    cells, _ = peaks(heatmaps)
    log = _smoothed(around(heatmaps, cells, _PARABOLA + blur // 2), blur).clamp(min=_SMALLEST).log()
    at: Callable[[int, int], Tensor] = lambda right, down: log[..., _PARABOLA + down, _PARABOLA + right]  # noqa: E731
    dx, dy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
    dxx, dyy = (0.25 * (at(2 * x, 2 * y) - 2 * at(0, 0) + at(-2 * x, -2 * y)) for x, y in ((1, 0), (0, 1)))
    dxy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1))
    determinant = dxx * dyy - dxy**2
    step = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], -1) / determinant[..., None]
    usable = _inside(cells, heatmaps, 2) & (step.abs() <= _LONGEST_STEP).all(-1, keepdim=True)
    return cells + 0.5 + torch.where(usable, step, 0.0)


def soft_argmax_points(heatmaps: Tensor, beta: float) -> Tensor:
    """The expectation of the place under softmax(beta * map): differentiable; a small beta draws it to the middle."""
    share = (beta * heatmaps).flatten(2).softmax(-1).unflatten(-1, heatmaps.shape[-2:])
    return _mean_place(share)


def mass_points(heatmaps: Tensor, radius: int | None = None) -> Tensor:
    """The centre of mass of what is positive, within ``radius`` cells of the peak or of the whole map."""
    mass = heatmaps.clamp(min=0)
    if radius is not None:
        columns, rows = (d.abs() <= radius for d in _distances(argmax_points(heatmaps), _size(heatmaps)))
        mass = mass * (rows[..., :, None] & columns[..., None, :])
    return _mean_place(mass / mass.sum((-2, -1), keepdim=True).clamp(min=_SMALLEST))


def _mean_place(share: Tensor) -> Tensor:
    """(N, K, 2) of maps that add up to 1."""
    rows, columns = (torch.arange(side, device=share.device, dtype=share.dtype) + 0.5 for side in share.shape[-2:])
    return torch.stack([share.sum(-2) @ columns, share.sum(-1) @ rows], -1)


def around(maps: Tensor, cells: Tensor, reach: int) -> Tensor:
    """(N, K, d, d) values of maps (N, K, h, w) so many cells around cells (N, K, 2), d = 2 * reach + 1; 0 beyond."""
    height, width = _size(maps)
    offsets = torch.arange(-reach, reach + 1, device=maps.device)
    columns, rows = (cells[..., axis, None] + offsets for axis in (0, 1))
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    place = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    return maps.flatten(2).gather(2, place.flatten(2)).view_as(place) * inside


def _smoothed(patches: Tensor, cells: int) -> Tensor:
    """Patches (..., d, d) by a Gaussian of so many cells, odd, without the cells at their rims; 0: as they are."""
    if not cells:
        return patches
    sigma = 0.3 * ((cells - 1) / 2 - 1) + 0.8  # OpenCV's rule for a kernel of this size, which DARK uses
    line = torch.arange(cells, device=patches.device, dtype=patches.dtype) - cells // 2
    kernel = torch.exp(-(line**2) / (2 * sigma**2))
    wanted = patches.shape[-1] - cells + 1
    shifted = torch.stack([F.pad(kernel / kernel.sum(), (k, wanted - 1 - k)) for k in range(wanted)])
    return shifted @ patches @ shifted.mT


def beside(maps: Tensor, cells: Tensor, right: int, down: int) -> Tensor:
    """(N, K) values beside cells (N, K, 2); beyond the border those of the border."""
    height, width = _size(maps)
    column = (cells[..., 0] + right).clamp(0, width - 1)
    row = (cells[..., 1] + down).clamp(0, height - 1)
    return maps.flatten(2).gather(2, (row * width + column)[..., None])[..., 0]


def _inside(cells: Tensor, maps: Tensor, after: int) -> Tensor:
    """(N, K, 1) bool: index above 1 and so many cells or more before the last one."""
    limit = cells.new_tensor(maps.shape[-2:][::-1]) - after
    return ((cells > 1) & (cells < limit)).all(-1, keepdim=True)


def _size(maps: Tensor) -> SizeHW:
    return maps.shape[-2], maps.shape[-1]


@dataclass(frozen=True, slots=True)
class HeatmapCodec:
    """Which heatmaps a network learns and how points are read from what it gives.

    Args:
        target: "gaussian" around the point, "gaussian_biased" around the middle of its cell, "cauchy" (normalised).
        sigma: cells.
        decoder: "argmax", "quarter", "dark", "soft_argmax" or "centre_of_mass".
        blur: of "dark": cells, odd; 0 for none.
        beta: of "soft_argmax".
        radius: of "centre_of_mass": cells around the peak; None: the whole map.

    Raises:
        ConfigError: a name that is none of these, a sigma or beta that is not above 0, an even blur.
    """

    target: Target = "gaussian"
    sigma: float = 2.0
    decoder: Decoder = "dark"
    blur: int = 11
    beta: float = 20.0
    radius: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("target", get_args(Target)), ("decoder", get_args(Decoder))):
            if getattr(self, name) not in known:
                raise ConfigError(f"codec {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.sigma <= 0 or self.beta <= 0 or self.blur < 0 or (self.blur and self.blur % 2 == 0):
            raise ConfigError(
                f"codec needs sigma and beta above 0 and an odd blur or 0, got {self.sigma}, {self.beta}, {self.blur}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HeatmapCodec:
        """From plain JSON; raises ConfigError naming unknown keys."""
        unknown = sorted(set(config) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"codec has no option {', '.join(unknown)}")
        return cls(**config)

    def to_config(self) -> dict[str, Any]:
        """Plain JSON with every option."""
        return asdict(self)

    def encode(self, points_xy: Tensor, size_hw: SizeHW) -> Tensor:
        """Maps (N, K, *size_hw) of points (N, K, 2) in map pixels."""
        if self.target == "cauchy":
            return cauchy_heatmaps(points_xy, size_hw, self.sigma)
        return gaussian_heatmaps(points_xy, size_hw, self.sigma, biased=self.target == "gaussian_biased")

    def weights(self, keypoints: Tensor, size_hw: SizeHW) -> Tensor:
        """(N, K) of keypoints (N, K, 3): x and y in map pixels and v; 0 where a map would teach nothing true, else 1.

        That is where the point is not labelled (v = 0), and where its bell lies wholly outside of the map.
        """
        labelled = (keypoints[..., 2] > 0) & is_on_map(keypoints[..., :2], size_hw, self.sigma)
        return labelled.to(keypoints.dtype)

    def decode(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, K, 2) in map pixels and their scores (N, K) in [0, 1]: the peaks.

        Where nothing of a map is above 0 the point is NaN and its score 0; "soft_argmax" knows a place all the same.
        """
        _, values = peaks(heatmaps)
        points = self._points(heatmaps)
        if self.decoder != "soft_argmax":
            points = points.masked_fill((values <= 0)[..., None], torch.nan)
        return points, values.clamp(0, 1)

    def _points(self, heatmaps: Tensor) -> Tensor:
        match self.decoder:
            case "argmax":
                return argmax_points(heatmaps)
            case "quarter":
                return quarter_points(heatmaps)
            case "dark":
                return dark_points(heatmaps, self.blur)
            case "soft_argmax":
                return soft_argmax_points(heatmaps, self.beta)
            case "centre_of_mass":
                return mass_points(heatmaps, self.radius)
