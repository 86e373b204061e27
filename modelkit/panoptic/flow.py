"""Optical flow between two frames. Contract of a flow part: wired with the transform that normalised the frames,
``forward(current, previous) -> (N, 2, h, w)`` in cells of a quarter of the resolution, from current to previous.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.errors import ConfigError
from modelkit.registry import register
from modelkit.transform import ImageTransform

_STRIDE = 4
_SMALLEST_PX = 128  # RAFT looks at an eighth of the resolution, then halves its correlations three times


class Flow(nn.Module, ABC):
    """What every flow part has, see the module's contract.

    Attributes:
        needs_frames: whether the pixels matter, so that a video's state has to hold them.
    """

    needs_frames: bool

    @abstractmethod
    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """(N, 3, H, W) normalised twice to (N, 2, ceil(H / 4), ceil(W / 4))."""


@register("flow", "zero")
class ZeroFlow(Flow):
    """No motion: what moves is left to the refinement inside of ``TemporalFusion``, which reaches four cells.

    Args:
        transform: of the model; not needed.
    """

    needs_frames = False

    def __init__(self, transform: ImageTransform) -> None:
        super().__init__()

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """(N, 3, H, W) twice to zeros (N, 2, ceil(H / 4), ceil(W / 4))."""
        size = [-(-side // _STRIDE) for side in current.shape[-2:]]
        return current.new_zeros((len(current), 2, *size), dtype=torch.float32)


@register("flow", "raft")
class RaftFlow(Flow):
    """torchvision's RAFT (Teed and Deng 2020) in place of FlowNet2; frozen, always in evaluation mode and float32.

    It is not learnt here: its weights come with the model's, or from torchvision's file (``import_weights`` with
    ``parts={"flow.network": FILE}``). Without any it sees 7 to 14 pixels of motion between equal frames.

    Args:
        transform: of the model; its normalisation is undone.
        size: "small" (990,162 parameters) or "large" (5,257,536).
        iterations: refinements of the flow.
    """

    needs_frames = True

    def __init__(self, transform: ImageTransform, *, size: str = "small", iterations: int = 12) -> None:
        super().__init__()
        if size not in ("small", "large"):
            raise ConfigError(f"raft size must be 'small' or 'large', got {size!r}")
        self.network = getattr(torchvision.models.optical_flow, f"raft_{size}")(weights=None).requires_grad_(False)
        self.iterations = iterations
        self._mean, self._std = tuple(transform.mean), tuple(transform.std)

    def train(self, mode: bool = True) -> RaftFlow:
        """Evaluation mode whatever is asked for: the flow is not learnt here."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """(N, 3, H, W) normalised twice to (N, 2, ceil(H / 4), ceil(W / 4)); small frames are filled up with grey."""
        height, width = current.shape[-2:]
        size = [-(-max(side, _SMALLEST_PX) // 8) * 8 for side in (height, width)]
        frames = [
            F.pad(self._scaled(frame), (0, size[1] - width, 0, size[0] - height)) for frame in (current, previous)
        ]
        with torch.autocast(current.device.type, enabled=False):
            flow = self.network(*frames, num_flow_updates=self.iterations)[-1][:, :, :height, :width]
        rows, columns = -(-height // _STRIDE), -(-width // _STRIDE)
        return F.interpolate(flow, size=(rows, columns), mode="bilinear", align_corners=False) / _STRIDE

    def _scaled(self, frames: Tensor) -> Tensor:
        """Normalised to [-1, 1], where RAFT wants its images."""
        frames = frames.float()
        mean, std = (frames.new_tensor(values)[:, None, None] for values in (self._mean, self._std))
        return 2 * (frames * std + mean) - 1
