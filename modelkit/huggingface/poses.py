"""ViTPose of transformers (Xu et al. 2022): a top-down model, fed and read as transformers' own processor does it.

That processor counts from the centres of pixels and aligns the *centres* of the corner pixels of crop, network and
heatmap ("unbiased data processing", Huang et al. 2020). Here points are counted from corners as everywhere in modelkit:
results are its own plus half a pixel, and a crop reaches half a pixel of the network's further on every side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modelkit.carriers import SizeHW
from modelkit.carriers.landmarks import KeypointSet, mirrored_pairs
from modelkit.errors import ConfigError
from modelkit.huggingface.network import HuggingFaceNetwork
from modelkit.landmarks.heatmaps import peaks
from modelkit.landmarks.landmarker import TopDownModel
from modelkit.transform import ImageTransform

MARGIN = 1.25  # of a crop, in transformers' processor
_UNIT = 200.0  # pixels, in which it measures sizes
_SIGMA, _REACH = 0.8, 5  # of the blur before the peak is refined, cells
_LOWEST, _HIGHEST = 0.001, 50.0  # before the logarithm
# Of image processors: values that are understood, the usual one first.
_RULES = {
    "do_affine_transform": (True,),
    "normalize_factor": (_UNIT,),
    "do_rescale": (True,),
    "rescale_factor": (1 / 255,),
}


class PoseNetwork(HuggingFaceNetwork):
    """ViTPose. Of a model with experts for several data sets (ViTPose+) the first answers: COCO's people."""

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """``heatmaps`` (N, K, h, w)."""
        backbone: Any = self.model.config.backbone_config  # type: ignore[union-attr]  # a module of transformers
        first = batch.new_zeros(len(batch), dtype=torch.int64) if backbone.num_experts > 1 else None
        return {"heatmaps": self.model(pixel_values=batch, dataset_index=first).heatmaps}


class PoseModel(TopDownModel):
    """ViTPose as a top-down model; it is trained with transformers' sources, not here.

    Args:
        options: of ``TopDownModel``; the network gives ``heatmaps``.
    """

    gives_maps = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_weights = {}

    def maps(self, raw: Mapping[str, Tensor]) -> Tensor:
        """As the network gives them."""
        return raw["heatmaps"]

    def windows(self, boxes_xyxy: Tensor) -> Tensor:
        """The box at the network's aspect ratio, ``margin`` times as large, between the centres of corner pixels.

        Rounded to float32 where the processor rounds, so that no grey level differs.
        """
        frame = boxes_xyxy.new_tensor(self.network_hw[::-1]).double()
        start, sides = boxes_xyxy[:, :2].double(), (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).double()
        middle = (start + sides * 0.5).float()
        seen = ((sides / frame).amax(1, keepdim=True) * frame / _UNIT).float() * self.margin * _UNIT
        scale = (
            frame - 1
        ) / seen  # the first pixel of the network is at the start of what is seen, the last at its end
        offset, scale = ((scale * (seen * 0.5 - middle)).float().double(), scale.float().double())
        return torch.cat([(-0.5 - offset) / scale, (frame - 0.5 - offset) / scale], 1) + 0.5

    def cut(self, pixels: Tensor, windows_xyxy: Tensor) -> Tensor:
        """As scipy's ``affine_transform`` does it: straight lines between pixels, never averages, black outside."""
        crops = [_straight(pixels, window, self.network_hw) for window in windows_xyxy.double()]
        return torch.stack(crops) if crops else pixels.new_zeros((0, 3, *self.network_hw), dtype=torch.uint8)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Not to be had: raises ConfigError."""
        raise ConfigError("ViTPose of Hugging Face is used as it is: transformers has no losses for it")

    def loss(self, raw: Mapping[str, Tensor], keypoints: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Not to be had: raises ConfigError."""
        return self.forward(())

    def read(self, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The refined peaks; the score is the map's value there. Where nothing of a map is above 0, no point is."""
        maps = raw["heatmaps"]
        cells, values = refined_peaks(maps)
        network, grid = (cells.new_tensor(size[::-1]) - 1 for size in (self.network_hw, maps.shape[-2:]))
        points = (cells * network / grid + 0.5).to(maps.dtype)
        return points.masked_fill((values <= 0)[..., None], torch.nan), values.clamp(0, 1)

    def mirrored(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        """Columns and points exchanged."""
        return {name: maps.flip(-1)[:, self.roles] for name, maps in raw.items()}


def refined_peaks(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Places (N, K, 2) float64 of the peaks of maps (N, K, h, w), counted from the centre of the first cell; values.

    A step of Newton's on the logarithm of the blurred map (Huang et al. 2020), as long as it comes out.
    """
    cells, values = peaks(heatmaps)
    log = _blurred_around(heatmaps, cells).clamp(_LOWEST, _HIGHEST).log()

    def at(right: int, down: int) -> Tensor:
        return log[..., 1 + down, 1 + right]

    slope = torch.stack([(at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2], -1).double()
    xx, yy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    xy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    a, b, d = (xx.double() + torch.finfo(torch.float32).eps, xy.double(), yy.double() + torch.finfo(torch.float32).eps)
    x, y = slope.unbind(-1)
    step = torch.stack([d * x - b * y, a * y - b * x], -1) / (a * d - b * b)[..., None]
    return cells - step, values


def _blurred_around(maps: Tensor, cells: Tensor) -> Tensor:
    """(N, K, 3, 3): the peaks' cells and their neighbours after a Gaussian of .8 cells within 5, the map mirrored at
    its borders; beyond the border the cells at it.
    """
    line = torch.arange(-_REACH, _REACH + 1, device=maps.device)
    kernel = torch.exp(-(line.double() ** 2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    height, width = maps.shape[-2:]
    columns, rows = (_mirrored(cells[..., axis], side, line) for axis, side in enumerate((width, height)))
    places = rows.flatten(2)[..., :, None] * width + columns.flatten(2)[..., None, :]
    patches = maps.flatten(2).gather(2, places.flatten(2)).view_as(places)
    # rows first, each in float32, as scipy does it
    lines = (patches.double().unflatten(-2, (3, -1)) * kernel[:, None]).sum(-2).float()
    return (lines.double().unflatten(-1, (3, -1)) * kernel).sum(-1).float()


def _mirrored(cells: Tensor, side: int, line: Tensor) -> Tensor:
    """(N, K, 3, d) cells of an axis around the cell before (N, K), this one and the next; -1 is 0 again, ``side`` the
    last one.
    """
    middle = (cells[..., None] + torch.arange(-1, 2, device=cells.device)).clamp(0, side - 1)
    places = (middle[..., None] + line) % (2 * side)
    return torch.where(places < side, places, 2 * side - 1 - places)


def _straight(pixels: Tensor, window: Tensor, size_hw: SizeHW) -> Tensor:
    """A window (4,) of pixels (3, H, W), 0 to 255, at another size: (3, *size_hw) uint8."""
    left, top, right, bottom = window.tolist()
    rows = _between(top, bottom, size_hw[0], pixels.shape[1])
    columns = _between(left, right, size_hw[1], pixels.shape[2])
    lines = pixels[:, rows[0]] * (1 - rows[2])[:, None] + pixels[:, rows[1]] * rows[2][:, None]
    crop = lines[..., columns[0]] * (1 - columns[2]) + lines[..., columns[1]] * columns[2]
    inside = rows[3][:, None] & columns[3]
    return (crop * inside + 0.5).floor().clamp(0, 255).to(torch.uint8)


def _between(start: float, end: float, cells: int, limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For the centre of each cell from ``start`` to ``end``: the pixels before and behind it, the share of the latter,
    and whether it lies between centres of pixels at all."""
    places = start + (torch.arange(cells, dtype=torch.float64) + 0.5) * ((end - start) / cells) - 0.5
    before = places.floor().clamp(0, limit - 1)
    behind = (before + 1).clamp(max=limit - 1)
    return before.long(), behind.long(), (places - before).clamp(0, 1), (places >= 0) & (places <= limit - 1)


def pose_options(processor: Mapping[str, Any], points: KeypointSet) -> dict[str, Any]:
    """Options of the registered model, by transformers' image processor (its ``to_dict()``).

    Raises:
        ConfigError: images are prepared in a way that is not known here.
    """
    unknown = [f"{key}={processor[key]}" for key, known in _RULES.items() if processor.get(key, known[0]) not in known]
    size = processor.get("size") or {"height": 256, "width": 192}
    if unknown or not (size.get("height") and size.get("width")):
        raise ConfigError(f"crops cannot be made as the checkpoint's processor does: {', '.join(unknown) or size}")
    normalises = processor.get("do_normalize", True) is not False
    transform = ImageTransform(
        padding="letterbox",
        fixed_hw=(int(size["height"]), int(size["width"])),
        mean=processor.get("image_mean") or (0.485, 0.456, 0.406) if normalises else (0.0, 0.0, 0.0),
        std=processor.get("image_std") or (0.229, 0.224, 0.225) if normalises else (1.0, 1.0, 1.0),
        antialias=True,
    )
    return {
        "num_keypoints": len(points),
        "transform": transform.to_config(),
        "flip_pairs": [list(pair) for pair in points.flip_pairs],
    }


def points_of(names: Mapping[int, str], config: Mapping[str, Any]) -> KeypointSet:
    """What the points are: the checkpoint's names and ``edges``, and the sides that the names tell.

    Numbered where nobody named them (LABEL_0, ...). Raises ConfigError for lines between points that there are not.
    """
    ordered = tuple(names[place] for place in sorted(names))
    if all(name == f"LABEL_{k}" for k, name in enumerate(ordered)):
        ordered = KeypointSet.numbered(len(ordered)).names
    lines = tuple((int(start), int(end)) for start, end in config.get("edges") or ())
    try:
        return KeypointSet(ordered, mirrored_pairs(ordered), lines)
    except ValueError as error:
        raise ConfigError(f"the checkpoint's points make no sense: {error}") from error
