"""A tiny predictor for tests of the engine: quick, exact, and as nasty as the image's colours ask it to be.

An image of one colour is known by its first pixel: (R, G, B). Blue says what happens: 0 nothing, else see ``ACTS``.
Results state the first pixel (score = R / 255, label = G), so that rows can be compared exactly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from modelkit.carriers import Instances
from tasks.engine.job import JobSpec
from tasks.output.layout import make_version
from tasks.records import Entry, Shard, Version

ACTS = {
    "abort in infer": 10,
    "kill in infer": 20,
    "abort in prepare": 30,
    "kill in prepare": 40,
    "hang in infer": 50,
    "hang in prepare": 60,
    "raise in infer": 70,
    "raise in prepare": 80,
    "raise in finish": 90,
    "out of memory alone": 100,
    "slow": 110,
    "broken mask": 120,
    "compute in infer": 130,
    "loop in infer": 140,
    "let a thread compute in infer": 150,
    "let a process compute in infer": 160,
}

COMPUTING_S = 3.0


@dataclass(frozen=True)
class FakePrepared:
    """First pixel and size of an image; counts as the pixels it stands for."""

    rgb: tuple[int, int, int]
    size_hw: tuple[int, int]

    @property
    def bucket(self) -> tuple[int, int]:
        return self.size_hw

    @property
    def nbytes(self) -> int:
        return 3 * self.size_hw[0] * self.size_hw[1]


def act(rgb: tuple[int, int, int], stage: str) -> None:
    """Do what the image's colour asks for in this stage."""
    name = next((name for name, blue in ACTS.items() if blue == rgb[2] and name.endswith(stage)), "")
    if name.startswith("abort"):
        os.abort()
    if name.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hang"):
        time.sleep(3600)
    if name.startswith("compute"):
        compute(COMPUTING_S)
    if name.startswith("loop"):
        compute(3600.0)
    if name.startswith("let a thread"):
        (helper := threading.Thread(target=compute, args=(COMPUTING_S,))).start()
        helper.join()
    if name.startswith("let a process"):
        words = f"import time\nwhile time.process_time() < {COMPUTING_S}: pass"
        subprocess.run([sys.executable, "-c", words], check=True)
    if name.startswith("raise"):
        raise ValueError(f"told to {name}")


def compute(seconds: float) -> None:
    """Take so much processor time in this thread."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


class FakePredictor:
    """See the module. ``fits``: more items than that in a batch are out of memory; ``delay_s``: per item."""

    def __init__(self, fits: int = 10**6, delay_s: float = 0.0) -> None:
        self.fits, self.delay_s = fits, delay_s
        self.batches: list[int] = []

    def prepare(self, image_rgb_hwc_u8: np.ndarray) -> FakePrepared:
        red, green, blue = (int(v) for v in image_rgb_hwc_u8[0, 0])
        act((red, green, blue), "in prepare")
        return FakePrepared((red, green, blue), (image_rgb_hwc_u8.shape[0], image_rgb_hwc_u8.shape[1]))

    def infer(self, prepared: list[FakePrepared]) -> list[FakePrepared]:
        assert len({each.bucket for each in prepared}) == 1
        for each in prepared:
            act(each.rgb, "in infer")
        if len(prepared) > self.fits or any(each.rgb[2] == ACTS["out of memory alone"] for each in prepared):
            raise RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB")
        self.batches.append(len(prepared))
        time.sleep(self.delay_s * len(prepared) + sum(0.5 for each in prepared if each.rgb[2] == ACTS["slow"]))
        return prepared

    def finish(self, raw: FakePrepared) -> Instances:
        act(raw.rgb, "in finish")
        height, width = raw.size_hw
        return Instances(
            size_hw=raw.size_hw,
            boxes_xyxy=np.array([[0, 0, width, height]], np.float32),
            scores=np.array([raw.rgb[0] / 255], np.float32),
            labels=np.array([raw.rgb[1]], np.int32),
            rles=[b"!" if raw.rgb[2] == ACTS["broken mask"] else b"0"],
            is_thing=np.array([True]),
        )


def make(job: JobSpec) -> FakePredictor:
    """The factory that jobs name: options of the fake stand in ``model_options``."""
    return FakePredictor(**job.model_options)


def version() -> Version:
    """A version for rows of the fake."""
    return make_version("segments", model="fake@0", model_digest="0" * 64, parameters={}, schema="segments.v1")


def job_for(output: Path | str, **options: Any) -> JobSpec:
    """A job with the fake."""
    defaults: dict[str, Any] = {
        "model": "fake",
        "version": version(),
        "output_uri": str(output),
        "run_id": "run-1",
        "predictor_factory": "tests.tasks.engine.fakes:make",
        "fetch_threads": 2,
    }
    return JobSpec(**(defaults | options))


def write_image(folder: Path, index: int, act_name: str = "", size_hw: tuple[int, int] = (8, 8)) -> Entry:
    """A PNG of one colour, and its entry."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{index:04d}.png"
    blue = ACTS[act_name] if act_name else 0
    Image.new("RGB", (size_hw[1], size_hw[0]), (index % 256, index // 256, blue)).save(path)
    info = path.stat()
    return Entry(str(path), f"{info.st_mtime_ns}-{info.st_size}", info.st_size, "image")


def write_images(folder: Path, count: int, acts: dict[int, str] | None = None) -> list[Entry]:
    """Images 0..count-1; those in ``acts`` are nasty."""
    return [write_image(folder, i, (acts or {}).get(i, "")) for i in range(count)]


def write_video(folder: Path, name: str, frames: int, acts: dict[int, str] | None = None) -> Entry:
    """A lossless video whose frame i is an image i as in :func:`write_images`; and its entry."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with av.open(str(path), "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        for i in range(frames):
            blue = ACTS[acts[i]] if acts and i in acts else 0
            pixels = np.full((16, 16, 3), (i % 256, i // 256, blue), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = path.stat()
    return Entry(str(path), f"{info.st_mtime_ns}-{info.st_size}", info.st_size, "video", end_frame=frames)


def shards_of(entries: list[Entry], size: int) -> list[Shard]:
    """Shards of ``size`` entries each, in order."""
    groups = [entries[at : at + size] for at in range(0, len(entries), size)]
    return [Shard(f"shard{n:04d}", 1, n, tuple(group), float(len(group))) for n, group in enumerate(groups)]
