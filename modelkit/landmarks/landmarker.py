"""Top-down landmark models: a network that looks at one object at a time and places its K points.

**Whose points.** One crop is one object, everywhere:

* in training a target holds ``boxes`` (n, 4) and ``keypoints`` (n, K, 3), and every object that is no crowd and has a
  labelled point becomes one crop. A target without ``boxes`` has one object, the whole image. Augmentation moves whole
  samples before that, so a crop is never turned;
* a predictor is given crops by ``modelkit.landmarks.crops.prepare_objects``: boxes come from a detector in the same
  process or from its rows of an earlier run, it does not matter. A crop is a ``Prepared`` like any other, all have the
  one bucket, and so crops of many images share a batch. ``gathered`` joins what came of one image;
* ``predict`` and ``Predictor.prepare``, which are given no boxes, take the whole image as the one object.

A crop is the box, ``margin`` times as large, extended to the aspect ratio of the network's input
(``transform.fixed_hw``); its ``CropGeometry`` owns the way back to source pixels. A whole image is letterboxed.

**Weights.** A point counts by ``box_weights`` of its object (how sure its place is; 1 for human labels), and not at all
where v is 0. Objects are not classified: the label is that of the box, 1 where nobody gave one.

**Flip test.** With ``flip_test`` the network looks at every crop and at its mirror image, and both answers are averaged
with the points of ``flip_pairs`` exchanged. Columns are exchanged exactly, without the shift by a cell that other code
needs, because points are counted from corners.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.carriers import SizeHW
from modelkit.carriers.geometry import have_area
from modelkit.carriers.landmark_detections import LandmarkDetections
from modelkit.carriers.landmarks import KeypointSet
from modelkit.detection.targets import object_weights
from modelkit.errors import ConfigError, TargetError
from modelkit.exporting.canvas import Canvas
from modelkit.landmarks.crops import CropGeometry, crop_windows, cut, to_windows
from modelkit.landmarks.heatmaps import HeatmapCodec, soft_argmax_points
from modelkit.landmarks.losses import CoordinateLoss, coordinate_loss, heatmap_loss
from modelkit.registry import Config
from modelkit.transform import Geometry, ImageTransform

_NEAR = 2.5  # cells from a place, within which its share of the probability is its score


class TopDownModel(VisionModel):
    """What all of them do: crops in, points back in source pixels. See the module for the contract.

    Args:
        network: (N, 3, h, w) to a flat dict of tensors.
        num_keypoints: K.
        transform: options of ``ImageTransform``, with padding "letterbox".
        margin: of a crop, as a factor on the sides of its box.
        flip_pairs: (left, right) indices of points that change places in a mirror.
        flip_test: look at every crop in a mirror, too.
    """

    num_classes = 2  # nothing, and the object; labels are the boxes' own
    top_down = True
    gives_maps = False  # of each point, in [0, 1]
    left_to_caller = "cutting objects out of pictures: the whole image is taken as the one object"

    def __init__(
        self,
        network: nn.Module,
        *,
        num_keypoints: int,
        transform: Config,
        margin: float,
        flip_pairs: Sequence[Sequence[int]],
        flip_test: bool,
    ) -> None:
        super().__init__()
        self.network, self.num_keypoints = network, num_keypoints
        self.transform = ImageTransform.from_config(transform)
        if self.transform.padding != "letterbox":
            raise ConfigError(f"a top-down model needs padding 'letterbox', got {self.transform.padding!r}")
        if margin < 1 or num_keypoints < 1:
            raise ConfigError(f"margin and num_keypoints must be 1 or more, got {margin} and {num_keypoints}")
        self.margin, self.flip_test = margin, flip_test
        self.flip_pairs = tuple((int(left), int(right)) for left, right in flip_pairs)
        self.roles = mirrored_roles(num_keypoints, self.flip_pairs)

    @property
    def network_hw(self) -> SizeHW:
        """Of a crop."""
        return self.transform.padded_hw([(1, 1)])

    def windows(self, boxes_xyxy: Tensor) -> Tensor:
        """What it is shown of an image for the boxes (n, 4) of objects: (n, 4), may reach beyond the image."""
        return crop_windows(boxes_xyxy, self.network_hw, self.margin)

    def cut(self, pixels: Tensor, windows_xyxy: Tensor) -> Tensor:
        """Windows (n, 4) of pixels (3, H, W) float, 0 to 255, as it is shown them: (n, 3, h, w) uint8."""
        grey = pixels.new_tensor(self.transform.mean)[:, None, None] * 255  # what lies beyond the image
        return (cut(pixels - grey, windows_xyxy, self.network_hw) + grey).round().clamp(0, 255).to(torch.uint8)

    def anonymous_keypoints(self) -> KeypointSet:
        """Numbered names, with the pairs that change places in a mirror."""
        return KeypointSet(KeypointSet.numbered(self.num_keypoints).names, self.flip_pairs)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Unweighted, named losses of every object of a training batch.

        Args:
            images: each (3, H, W) float in [0, 1].
            targets: one dict per image: ``keypoints`` (n, K, 3) float of x, y and v in pixels of the image, ``boxes``
                (n, 4) float xyxy unless the whole image is the one object. Optional: ``iscrowd`` (n,) and
                ``box_weights`` (n,) float, see the module.

        Raises:
            TargetError: when targets are missing or malformed.
        """
        if targets is None:
            raise TargetError("forward gives training losses and needs targets; use predict(images) for landmarks")
        if len(targets) != len(images):
            raise TargetError(f"{len(images)} images need as many targets, got {len(targets)}")
        taken = [self._objects(image, target, f"target {k}")
                 for k, (image, target) in enumerate(zip(images, targets, strict=True))]  # fmt: skip
        crops, keypoints, weights = (torch.cat(each) for each in zip(*taken, strict=True))
        if len(crops) == 0:
            nothing = torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0
            return dict.fromkeys(self.loss_weights, nothing)  # keeps the graph: a zero gradient, not none
        return self.loss(self.network(crops), keypoints, weights)

    def _objects(self, image: Tensor, target: Mapping[str, Any], where: str) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (m, 3, h, w), their keypoints (m, K, 3) in pixels of the network and the weights (m,) of objects."""
        if "keypoints" not in target:
            raise TargetError(f"{where}: a landmark model needs 'keypoints' (n, {self.num_keypoints}, 3)")
        keypoints = target["keypoints"].to(image)
        boxes = target["boxes"].to(image) if "boxes" in target else whole_image(image)
        if keypoints.shape != (len(boxes), self.num_keypoints, 3):
            raise TargetError(
                f"{where}: keypoints must be ({len(boxes)}, {self.num_keypoints}, 3), got {tuple(keypoints.shape)}"
            )
        weights = object_weights({"boxes": boxes, **target}, "box_weights").to(image)
        keep = have_area(boxes) & (keypoints[..., 2] > 0).any(1) & (weights > 0)
        if "iscrowd" in target:
            keep = keep & ~target["iscrowd"].bool().to(keep.device)
        margin = self.margin if "boxes" in target else 1.0
        windows = crop_windows(boxes[keep], self.network_hw, margin)
        places = to_windows(keypoints[keep][..., :2], windows, self.network_hw)
        crops = cut(self.transform.normalise(image), windows, self.network_hw)
        return crops, torch.cat([places, keypoints[keep][..., 2:]], -1), weights[keep]

    @abstractmethod
    def loss(self, raw: Mapping[str, Tensor], keypoints: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Named scalars of what the network gave, for keypoints (m, K, 3) in its pixels and objects' weights (m,)."""

    @abstractmethod
    def read(self, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Points (m, K, 2) in pixels of the network, NaN where one is absent, and their scores (m, K) in [0, 1]."""

    @abstractmethod
    def mirrored(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the network gave for a mirror image, put right."""

    def maps(self, raw: Mapping[str, Tensor]) -> Tensor:
        """(m, K, h, w) how much is seen of each point in each cell; raises ConfigError without ``gives_maps``."""
        raise ConfigError("this model gives no maps of its points")

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        """(N, 3, h, w) normalised to what the network gives; with the flip test, to its mean with that of a mirror."""
        raw: dict[str, Tensor] = self.network(batch)
        if not self.flip_test:
            return raw
        other = self.mirrored(self.network(batch.flip(-1)))
        return {name: (value + other[name]) / 2 for name, value in raw.items()}

    @torch.inference_mode()
    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[LandmarkDetections]:
        """One object for each crop, in source pixels; its score is that of its box times the mean of its points'."""
        points, scores = self.read({name: value.float() for name, value in raw.items()})
        return [self._decode_one(*each) for each in zip(points, scores, geometries, strict=True)]

    def traced(self, raw: Mapping[str, Tensor], canvas: Canvas) -> dict[str, Tensor]:
        """``keypoints_xy`` (1, K, 2) in source pixels, NaN where one is absent, ``keypoint_scores`` (1, K), ``scores``
        (1,), their mean.
        """
        points, scores = self.read({name: value.float() for name, value in raw.items()})
        return {"keypoints_xy": canvas.points_to_source(points), "keypoint_scores": scores, "scores": scores.mean(1)}

    @staticmethod
    def _decode_one(points: Tensor, scores: Tensor, geometry: Geometry) -> LandmarkDetections:
        rows, columns = geometry.source_hw
        box, score, label = (0.0, 0.0, float(columns), float(rows)), 1.0, 1
        if isinstance(geometry, CropGeometry):
            box, score, label = geometry.box_xyxy, geometry.score, geometry.label
        return LandmarkDetections(
            geometry.source_hw,
            points.new_tensor([box]),
            (scores.mean() * score)[None],
            torch.tensor([label], device=points.device),
            geometry.points_to_source(points)[None],
            scores[None],
        )


class HeatmapLandmarker(TopDownModel):
    """A map for each point, whose peak is its place.

    Args:
        network: gives ``heatmaps`` (N, K, h, w), or several of them that end in a number, which all learn and the last
            of which counts (intermediate supervision).
        stages: how many; 0: the one.
        codec: options of ``HeatmapCodec``.
        rest: see ``TopDownModel``.
    """

    gives_maps = True

    def __init__(self, network: nn.Module, *, codec: Config, stages: int = 0, **rest: Any) -> None:
        super().__init__(network, **rest)
        self.codec = HeatmapCodec.from_config(codec)
        self._names = [f"heatmaps.{k}" for k in range(stages)] if stages else ["heatmaps"]
        self.loss_weights = {_loss_name(name): 1.0 for name in self._names}

    def loss(self, raw: Mapping[str, Tensor], keypoints: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """``loss_heatmap``, or one for each stage: half the mean squared error of labelled points."""
        size_hw = (raw[self._names[-1]].shape[-2], raw[self._names[-1]].shape[-1])
        on_map = keypoints.clone()
        on_map[..., :2] *= keypoints.new_tensor(size_hw[::-1]) / keypoints.new_tensor(self.network_hw[::-1])
        wanted = self.codec.encode(on_map[..., :2], size_hw)
        counts = self.codec.weights(on_map, size_hw) * weights[:, None]
        return {_loss_name(name): heatmap_loss(raw[name].float(), wanted, counts) for name in self._names}

    def maps(self, raw: Mapping[str, Tensor]) -> Tensor:
        """The last ones."""
        return raw[self._names[-1]]

    def read(self, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of the last map, by the codec's decoder."""
        maps = self.maps(raw)
        points, scores = self.codec.decode(maps)
        ratio = points.new_tensor(self.network_hw[::-1]) / points.new_tensor(maps.shape[-2:][::-1])
        return points * ratio, scores

    def mirrored(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        """Columns and points exchanged."""
        return {name: maps.flip(-1)[:, self.roles] for name, maps in raw.items()}


class CoordinateLandmarker(TopDownModel):
    """The places themselves: the baseline of one linear layer, or the expectation over a map (soft-argmax).

    Args:
        network: gives ``coordinates`` (N, K, 2), shares of the network's width and height, or, for soft-argmax,
            ``heatmaps`` (N, K, h, w).
        loss: "l1", "smooth_l1" (Huber's, from one pixel on) or "wing", all in pixels of the network's input.
        beta: of soft-argmax; None: the network gives coordinates.
        rest: see ``TopDownModel``.
    """

    def __init__(self, network: nn.Module, *, loss: CoordinateLoss, beta: float | None, **rest: Any) -> None:
        super().__init__(network, **rest)
        if loss not in ("l1", "smooth_l1", "wing"):
            raise ConfigError(f"loss must be 'l1', 'smooth_l1' or 'wing', got {loss!r}")
        self.kind, self.beta = loss, beta
        self.loss_weights = {"loss_coordinates": 1.0}

    def loss(self, raw: Mapping[str, Tensor], keypoints: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """``loss_coordinates``: mean error of labelled points, in pixels of the network's input."""
        counts = (keypoints[..., 2] > 0) * weights[:, None]
        points = self._points({name: value.float() for name, value in raw.items()})
        return {"loss_coordinates": coordinate_loss(points, keypoints[..., :2], counts, self.kind)}

    def _points(self, raw: Mapping[str, Tensor]) -> Tensor:
        shares = raw.get("coordinates")
        if self.beta is not None:
            maps = raw["heatmaps"]
            shares = soft_argmax_points(maps, self.beta) / maps.new_tensor(maps.shape[-2:][::-1])
        assert shares is not None
        return shares * shares.new_tensor(self.network_hw[::-1])

    def read(self, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores are the share of the probability near the place; 1 where the network gives none."""
        points = self._points(raw)
        if self.beta is None:
            return points, torch.ones_like(points[..., 0])
        maps = raw["heatmaps"]
        share = (self.beta * maps).flatten(2).softmax(-1).unflatten(-1, maps.shape[-2:])
        rows, columns = (torch.arange(side, device=maps.device) + 0.5 for side in maps.shape[-2:])
        places = points * points.new_tensor(maps.shape[-2:][::-1]) / points.new_tensor(self.network_hw[::-1])
        near_x = (columns - places[..., :1]).abs() <= _NEAR
        near_y = (rows - places[..., 1:]).abs() <= _NEAR
        return points, (share * (near_y[..., :, None] & near_x[..., None, :])).sum((-2, -1)).clamp(0, 1)

    def mirrored(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        """Columns, or x and 1 - x, and points exchanged."""
        if self.beta is not None:
            return {name: maps.flip(-1)[:, self.roles] for name, maps in raw.items()}
        x, y = raw["coordinates"][:, self.roles].unbind(-1)
        return {"coordinates": torch.stack([1 - x, y], -1)}


def whole_image(image: Tensor) -> Tensor:
    """(1, 4): the box around an image (3, H, W)."""
    return image.new_tensor([[0, 0, image.shape[-1], image.shape[-2]]])


def mirrored_roles(count: int, flip_pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Which point each of ``count`` is in a mirror; raises ConfigError for an index that is no point's."""
    try:
        pairs = KeypointSet(KeypointSet.numbered(count).names, tuple(flip_pairs)).flip_pairs
    except ValueError as error:
        raise ConfigError(f"flip_pairs: {error}") from error
    roles = list(range(count))
    for left, right in pairs:
        roles[left], roles[right] = right, left
    return roles


def _loss_name(output: str) -> str:
    """heatmaps -> loss_heatmap, heatmaps.3 -> loss_heatmap_3."""
    return "loss_" + output.replace("heatmaps", "heatmap").replace(".", "_")
