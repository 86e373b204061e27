"""A tiny video model for tests of the engine: it follows coloured squares, and everything it says depends on the past.

A frame is black with squares of pure red, green or blue. A square keeps its id while its colour is seen; a colour that
comes back after an absence is a new track. The score of all that is found holds a running mean over every frame so
far, so a frame that is left out, seen twice, taken in the wrong order or from another clip shows in every later row.
The first pixel says, as in ``fakes``, what shall go wrong with the frame.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor, nn

from modelkit import rle
from modelkit.carriers import Instances
from modelkit.predictor import Predictor
from modelkit.registry import register_model, temporary_registrations
from modelkit.transform import Geometry, ImageTransform, SizeHW
from modelkit.video import VideoModel, VideoState
from modelkit.weights import ClassInfo, random_weights
from tasks.engine.job import JobSpec
from tasks.records import Entry
from tests.tasks.engine.fakes import ACTS, act, job_for

SIZE_HW = (24, 32)
GROUND = 4  # the stuff class behind the squares


@dataclass(frozen=True)
class Found:
    """What a frame shows: (n, H, W) bool masks, labels, ids (-1 for the ground) and one score for all."""

    size_hw: SizeHW
    masks: Tensor
    labels: Tensor
    ids: Tensor
    score: float

    def cpu(self) -> Found:
        return self

    def finish(self, min_score: float = 0.0) -> Instances:
        rles = [rle.encode(mask.numpy()) for mask in self.masks]
        found = Instances(
            size_hw=self.size_hw,
            boxes_xyxy=np.array([rle.bbox(one, self.size_hw) for one in rles], np.float32).reshape(-1, 4),
            scores=np.full(len(rles), self.score, np.float32),
            labels=self.labels.numpy().astype(np.int32),
            rles=rles,
            is_thing=self.labels.numpy() != GROUND,
            track_ids=self.ids.numpy(),
        )
        return found.at_least(min_score)


class SquareTracker(VideoModel):
    """See the module."""

    tracks = True

    def __init__(self, *, delay_s: float = 0.0) -> None:
        super().__init__()
        self.delay_s = delay_s  # of every frame
        self.scale = nn.Parameter(torch.ones(1))
        self.loss_weights = {}
        self.transform = ImageTransform(
            min(SIZE_HW), max(SIZE_HW), mean=(0, 0, 0), std=(1, 1, 1), size_divisible=8, padding="none"
        )

    def start(self) -> VideoState:
        return VideoState(0, {"seen": torch.full((3,), -1), "mean": torch.zeros(3)}, {"next_id": 0})

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> dict[str, Tensor]:
        return {}

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        return {"batch": batch * self.scale}

    def decode(self, raw: Mapping[str, Tensor], geometries: Sequence[Geometry]) -> list[Any]:
        """Every image is the first frame of a clip."""
        frames = raw["batch"].split(1)
        return [self.step(frame, geometry, self.start())[0] for frame, geometry in zip(frames, geometries, strict=True)]

    def step(self, batch: Tensor, geometry: Geometry, state: VideoState) -> tuple[Found, VideoState]:
        height, width = geometry.source_hw
        frame = (batch[0, :, :height, :width] * self.scale).float()
        red, green, blue = (frame[:, 0, 0] * 255).round().int().tolist()
        act((red, green, blue), "in infer")
        time.sleep(self.delay_s)
        masks = torch.stack([frame[channel] > 0.9 for channel in range(3)])
        seen, next_id = state.tensors["seen"].clone(), state.counters["next_id"]
        for colour in range(3):
            if not masks[colour].any():
                seen[colour] = -1
            elif seen[colour] < 0:
                seen[colour], next_id = next_id, next_id + 1
        mean = 0.9 * state.tensors["mean"] + 0.1 * frame.mean((1, 2))
        there = seen >= 0
        found = Found(
            size_hw=(height, width),
            masks=torch.cat([masks[there], ~masks.any(0)[None]]),
            labels=torch.cat([torch.arange(1, 4)[there], torch.tensor([GROUND])]),
            ids=torch.cat([seen[there], torch.tensor([-1])]),
            score=float(mean.sum().sigmoid()),
        )
        return found, VideoState(state.frame + 1, {"seen": seen, "mean": mean}, {"next_id": next_id})


def make(job: JobSpec) -> Predictor:
    """The factory that jobs name: options of the tracker stand in ``model_options``."""
    with temporary_registrations():
        register_model("square_tracker", architecture="SquareTracker", kind="panoptic")(SquareTracker)
        model, record = random_weights("square_tracker", 0, job.model_options)
    classes = tuple(ClassInfo(n, name, n != GROUND) for n, name in enumerate(("red", "green", "blue", "ground"), 1))
    return Predictor(model, replace(record, digest=job.version.model_digest, classes=classes))


def video_job(output: Path | str, **options: Any) -> JobSpec:
    """A job with the square tracker; its rows are of the fake's version."""
    factory = {"predictor_factory": "tests.tasks.engine.video_fakes:make", "carries_state": True}
    return job_for(output, **(factory | options))


def picture(clip: int, frame: int, act_name: str = "") -> np.ndarray:
    """(H, W, 3) uint8: three squares that move at different speeds and come and go at different times."""
    image = np.zeros((*SIZE_HW, 3), np.uint8)
    for colour, (period, shown) in enumerate(((7, 5), (11, 8), (5, 3))):
        if (frame + 3 * clip + colour) % period < shown:
            left, top = (2 + 2 * frame * (colour + 1) + 5 * clip) % (SIZE_HW[1] - 6), 2 + 7 * colour
            image[top : top + 5, left : left + 5, colour] = 255
    image[0, 0] = (0, 0, ACTS[act_name] if act_name else 0)
    return image


def write_clip(folder: Path, clip: int, frames: int, acts: dict[int, str] | None = None) -> Entry:
    """A lossless video of which every frame is a keyframe, and the entry of it in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"clip{clip}.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = SIZE_HW
        stream.pix_fmt = "bgr0"
        for index in range(frames):
            pixels = picture(clip, index, (acts or {}).get(index, ""))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = path.stat()
    return Entry(str(path), f"{info.st_mtime_ns}-{info.st_size}", info.st_size, "video")
