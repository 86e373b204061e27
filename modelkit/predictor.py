"""From pictures to results in source pixels: what a worker, a notebook and an evaluation all call.

The work is cut where threads and devices meet. ``prepare`` (any thread, host) resizes; ``infer`` (one thread, device)
normalises, pads to the bucket and runs the model; ``finish`` (any thread, host) makes a carrier of what it found.
Every image always lands in the same bucket, so neighbours in a batch never change its result.

Frames of a clip go through ``step`` instead of ``infer``, one by one and in order, if the model is a video model; what
one frame leaves for the next is handed back to the caller (``VideoState``), never kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modelkit.base import Prediction, VisionModel
from modelkit.carriers import Instances, SizeHW
from modelkit.carriers.landmarks import Landmarks
from modelkit.compile.execution import ExecutionChoice, ForwardFn
from modelkit.errors import ModelkitError
from modelkit.pictures import as_pixels
from modelkit.records import Weights
from modelkit.transform import Geometry, ImageTransform
from modelkit.video import VideoModel, VideoState


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image on its way into a batch.

    Args:
        pixels: (h, w, 3) RGB in 0 .. 255, resized, not padded; uint8, or float32 where the transform resizes in it.
        geometry: its ``padded_hw`` is the bucket.
    """

    pixels: np.ndarray
    geometry: Geometry

    @property
    def bucket(self) -> SizeHW:
        """Padded rows and columns; images of one bucket may share a batch."""
        return self.geometry.padded_hw

    @property
    def nbytes(self) -> int:
        """Host memory held, bytes."""
        return self.pixels.nbytes


def normalise_u8(
    images: Tensor, transform: ImageTransform, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """(N, 3, H, W) in 0 .. 255 to float32 in the given memory format, normalised as ``images / 255`` are."""
    batch = images.to(torch.float32, memory_format=memory_format)
    scale = [1 / (255 * std) for std in transform.std]
    shift = [-mean / std for mean, std in zip(transform.mean, transform.std, strict=True)]
    batch.mul_(torch.tensor(scale, device=images.device)[:, None, None])
    return batch.add_(torch.tensor(shift, device=images.device)[:, None, None])


def usable_device(device: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        ModelkitError: a name that torch does not know, or a GPU that it does not see here.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelkitError(f"there is no device {device!r}: cpu, cuda, or cuda:N") from error
    if found.type != "cuda":
        return found
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= count:
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
        raise ModelkitError(f"device {str(found)!r}: torch ({built}) sees {count} GPUs here; device 'cpu' always works")
    return found


def marked_at_limit(found: Any, model: VisionModel, min_score: float) -> Any:
    """A carrier that says so where a model found as many objects as it may, all at or above a score: there may be more.

    Args:
        found: of one image, or of one tile.
        model: that found it.
        min_score: what scores less is not missed.
    """
    limit = model.most_detections
    if limit is None or not isinstance(found, Instances):
        return found
    objects = int((found.is_thing & (found.scores >= min_score)).sum())
    return replace(found, at_limit=limit) if objects >= limit else found


def with_points_named(found: Any, weights: Weights) -> Any:
    """A carrier of objects with points that says what its points are, where the weights' record does."""
    names = weights.keypoints
    if names is None or not isinstance(found, Landmarks) or found.keypoint_set is not None:
        return found
    return replace(found, keypoint_set=names) if found.keypoint_scores.shape[-1] == len(names) else found


class Predictor:
    """A model with its weights' record, ready to be used.

    Args:
        model: put on ``device`` and into evaluation mode.
        weights: its record.
        device: e.g. "cpu", "cuda:0".
        choice: how to run the dense part; default eager float32.
        min_score: results below it are dropped by ``finish``.

    Attributes:
        rows_digest: of the weights as they were given, see ``Weights``.
        forward_fn: the dense part as it is run; ``use`` exchanges it (for a compiled one, say).
        blends: whether the model's probabilities of pixels may be averaged over tiles that overlap: not where other
            things are made of them.
    """

    blends: ClassVar[bool] = True

    def __init__(
        self,
        model: VisionModel,
        weights: Weights,
        device: str | torch.device = "cpu",
        *,
        choice: ExecutionChoice | None = None,
        min_score: float = 0.0,
    ) -> None:
        self.weights, self.device, self.min_score = weights, usable_device(device), min_score
        self.rows_digest = weights.rows_digest
        self.model = model.eval().to(self.device)
        self.model.requires_grad_(False)
        self.choice: ExecutionChoice
        self.forward_fn: ForwardFn
        self.use(choice or ExecutionChoice())

    def use(self, choice: ExecutionChoice, forward_fn: ForwardFn | None = None) -> None:
        """Run the dense part another way from now on; not while ``infer`` is running.

        Args:
            choice: memory format and number format; recorded with results.
            forward_fn: takes the normalised batch, gives what ``model.dense`` gives; default: the eager model.
        """
        self.choice = choice
        # A plain tensor has 4 dimensions only where memory format means something; torch ignores the others.
        self.model.to(memory_format=choice.memory_format)  # type: ignore[call-overload]
        self.forward_fn = forward_fn or self.eager(choice)

    def eager(self, choice: ExecutionChoice) -> ForwardFn:
        """The plain way of the dense part: torch's own kernels, under autocast where the choice says bfloat16."""
        bf16 = choice.dtype == "bfloat16"

        def forward(batch: Tensor) -> dict[str, Tensor]:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                return self.model.dense(batch)

        return forward

    def prepare(self, image: Any) -> Prepared:
        """Resize one image as the model's transform does, by default in 8 bits: within a grey level of the exact.

        Args:
            image: (H, W, 3) uint8 RGB, H and W at least 1; or a torch tensor or PIL image, see
                :func:`modelkit.pictures.as_pixels`.

        Raises:
            ValueError: for any other shape or dtype.
        """
        image = as_pixels(image)
        transform, source_hw = self.model.transform, (image.shape[0], image.shape[1])
        return self.resized(image, Geometry(source_hw, transform.resized_hw(source_hw), transform.bucket(source_hw)))

    def resized(self, image: np.ndarray, geometry: Geometry) -> Prepared:
        """One image (H, W, 3) uint8 at a size of the caller's choice."""
        if geometry.resized_hw == geometry.source_hw:
            return Prepared(np.ascontiguousarray(image), geometry)
        # Decoders hand out read-only arrays, which torch takes only under protest.
        planes = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
        transform = self.model.transform
        mode = "bicubic" if transform.resizing == "bicubic" else "bilinear"
        if transform.resizing in ("rounded", "float"):
            planes = planes.float()
        resized = F.interpolate(planes, geometry.resized_hw, mode=mode, antialias=transform.antialias)
        if transform.resizing == "rounded":
            resized = resized.round().to(torch.uint8)
        return Prepared(np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy()), geometry)

    @torch.inference_mode()
    def infer(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """Run the model on images of one bucket; to be called from one thread at a time.

        Args:
            prepared: at least one, all of the same ``bucket``; memory on the device grows with their number.

        Returns:
            Raw results on the host, in order; give each to ``finish``.

        Raises:
            ValueError: when buckets differ.
        """
        return [result.cpu() for result in self.look(prepared)]

    @torch.inference_mode()
    def look(self, prepared: Sequence[Prepared]) -> Sequence[Prediction]:
        """The same, left on the device."""
        geometries = [each.geometry for each in prepared]
        if len({geometry.padded_hw for geometry in geometries}) != 1:
            raise ValueError(f"a batch needs images of one bucket, got {sorted({each.bucket for each in prepared})}")
        return self.decode(self.forward_fn(self.batch(prepared)), geometries)

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> Sequence[Prediction]:
        """What is made of the dense part's tensors: what the model makes of them, unless a subclass looks otherwise."""
        return self.model.decode(raw, geometries)

    def around(self, wrap: Callable[[Predictor], Predictor]) -> Predictor:
        """What looks at an image, or at a tile of it, wrapped."""
        return wrap(self)

    def piece(self, image: Any) -> Prepared:
        """What one forward pass sees of an image: all of it, or a tile; to measure by."""
        return self.prepare(image)

    @property
    def is_video(self) -> bool:
        """Whether the model has a memory: then ``start`` and ``step`` are for clips, ``infer`` for single images."""
        return isinstance(self.model, VideoModel)

    def start(self) -> VideoState:
        """The state before a clip's first frame.

        Raises:
            ModelkitError: when the model has no memory.
        """
        return self._video_model().start().to(self.device)

    @torch.inference_mode()
    def step(self, prepared: Prepared, state: VideoState) -> tuple[Prediction, VideoState]:
        """Run a video model on one frame; to be called from one thread at a time, as ``infer``.

        Of the choice that ``use`` made only the memory format counts here: a step is a function of frame and state, of
        which the graphs of ``dense`` know nothing, and what follows the dense part stays float32.

        Args:
            prepared: the clip's next frame; all frames of a clip have one ``bucket``.
            state: what the frame before returned, or ``start()``; may lie on the host.

        Returns:
            The raw result on the host, for ``finish``, and the state for the next frame, on the device. When a frame
            raises, the state given in is still good for the one after it.

        Raises:
            ModelkitError: when the model has no memory.
        """
        found, after = self._video_model().step(self.batch([prepared]), prepared.geometry, state.to(self.device))
        return found.cpu(), after

    def _video_model(self) -> VideoModel:
        if not isinstance(self.model, VideoModel):
            raise ModelkitError(f"{self.weights.reference} looks at single images; it has no state for clips")
        return self.model

    def batch(self, prepared: Sequence[Prepared]) -> Tensor:
        """(N, 3, *bucket) float32 on the device, normalised, padding zero: what ``forward_fn`` takes."""
        rows, columns = prepared[0].bucket
        levels = {each.pixels.dtype for each in prepared}  # float32 beside uint8: an image that needed no resizing
        pixels = np.zeros((len(prepared), rows, columns, 3), np.result_type(*levels))
        for slot, each in zip(pixels, prepared, strict=True):
            slot[: each.pixels.shape[0], : each.pixels.shape[1]] = each.pixels
        planes = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        batch = normalise_u8(planes, self.model.transform, self.choice.memory_format)
        for slot, each in zip(batch, prepared, strict=True):
            slot[:, each.pixels.shape[0] :] = 0
            slot[:, :, each.pixels.shape[1] :] = 0
        return batch

    def finish(self, raw: Prediction) -> Any:
        """One raw result as the carrier of its kind, in source pixels; pure, any thread."""
        found = with_points_named(raw.finish(self.min_score), self.weights)
        return marked_at_limit(found, self.model, self.min_score)

    def __call__(self, images: Sequence[Any], *, batch_size: int = 8) -> list[Any]:
        """Carriers of results (``Instances``, ...) for images of any sizes, in order.

        Args:
            images: as ``prepare`` takes them; may be empty.
            batch_size: at most so many at once, and only images of one bucket.
        """
        prepared = [self.prepare(image) for image in images]
        buckets: dict[SizeHW, list[int]] = {}
        for index, each in enumerate(prepared):
            buckets.setdefault(each.bucket, []).append(index)
        results: dict[int, Any] = {}
        for members in buckets.values():
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                found = self.infer([prepared[index] for index in chosen])
                results.update(zip(chosen, map(self.finish, found), strict=True))
        return [results[index] for index in range(len(images))]
