"""Models that look at a clip frame by frame: what one frame leaves for the next is explicit, never hidden in a module.

A worker holds the state, can hand it on, and a test can replay it: ``step`` is a function of (weights, frame, state).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from modelkit.base import Prediction, VisionModel
from modelkit.errors import StateError
from modelkit.transform import Geometry

STATE_FORMAT = "visionmill.state.v1"


@dataclass(frozen=True, slots=True)
class VideoState:
    """What a clip's past means to its next frame. Immutable: ``step`` returns a new one.

    Args:
        frame: number of frames seen, 0 at the start of a clip.
        tensors: named tensors, on the model's device; what is in it is the model's own business.
        counters: named whole numbers, e.g. the next free track id.
    """

    frame: int
    tensors: Mapping[str, Tensor]
    counters: Mapping[str, int]

    def to(self, device: torch.device | str) -> VideoState:
        """The same on another device."""
        return VideoState(
            self.frame, {name: value.to(device) for name, value in self.tensors.items()}, dict(self.counters)
        )

    @property
    def nbytes(self) -> int:
        """Memory held by the tensors, bytes."""
        return sum(value.numel() * value.element_size() for value in self.tensors.values())

    def to_bytes(self) -> bytes:
        """A safetensors file with everything else as JSON in its header; equal states give equal bytes.

        Which tensors lie in memory as NHWC is kept, too: kernels are chosen by it, and with them the last digits.
        """
        channels_last = sorted(name for name, value in self.tensors.items() if _is_channels_last(value))
        header = {
            "format": STATE_FORMAT,
            "frame": self.frame,
            "counters": dict(sorted(self.counters.items())),
            "channels_last": channels_last,
        }
        # ``clone``: tensors that share memory are refused by the format
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.tensors.items()}
        return safetensors.torch.save(tensors, {"state": json.dumps(header)})

    @classmethod
    def from_bytes(cls, data: bytes) -> VideoState:
        """What :meth:`to_bytes` wrote, on the host.

        Raises:
            StateError: when the bytes are damaged or of another format.
        """
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
            tensors = safetensors.torch.load(data)
            for name in header["channels_last"]:
                tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
            state = cls(int(header["frame"]), tensors, {name: int(value) for name, value in header["counters"].items()})
        except (KeyError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
            raise StateError(f"these bytes are no state of a clip: {type(error).__name__}: {error}") from error
        if header["format"] != STATE_FORMAT:
            raise StateError(f"the state's format must be {STATE_FORMAT!r}, got {header['format']!r}")
        return state


def _is_channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


class VideoModel(VisionModel):
    """A model with a memory. Without one it treats an image as the first frame of a clip (``dense`` + ``decode``).

    Attributes:
        tracks: whether predictions carry track ids.
    """

    tracks: bool = False

    def start(self) -> VideoState:
        """The state before the first frame."""
        return VideoState(0, {}, {})

    @abstractmethod
    def step(self, batch: Tensor, geometry: Geometry, state: VideoState) -> tuple[Prediction, VideoState]:
        """One frame further.

        Args:
            batch: (1, 3, H, W) normalised, padded to the bucket; all frames of a clip have one shape.
            geometry: the way back to source pixels.
            state: what the frame before returned, or ``start()``.

        Returns:
            The prediction in source pixels and the state for the next frame.
        """

    @torch.inference_mode()
    def predict_video(self, frames: Sequence[Tensor], state: VideoState | None = None) -> tuple[list[Any], VideoState]:
        """Predictions for consecutive frames (3, H, W) float in [0, 1] of one size; call ``eval()`` first.

        Args:
            frames: may be empty.
            state: of the frames before, default ``start()``; a clip in pieces equals the clip in one piece.
        """
        state = state or self.start()
        found: list[Any] = []
        for frame in frames:
            batch, geometries = self.transform.batch([frame])
            prediction, state = self.step(batch, geometries[0], state)
            found.append(prediction)
        return found, state
