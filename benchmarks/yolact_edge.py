"""YOLACT against YolactEdge on the same clip: what a frame costs when most frames borrow from a key frame.

    python -m benchmarks.yolact_edge [--depth 50] [--side 550] [--frames 10] [--repeats 3]

One thread, eager, float32, weights of a seed (speed does not depend on them, but for detections, of which untrained
weights give none). The two models take turns frame by frame, so that whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean, median

import numpy as np
import torch

from modelkit.onestage.edge import VideoAnchorDetector
from modelkit.onestage.models import squash
from modelkit.weights import random_weights

_NAMES = {50: ("yolact_resnet50", "yolact_edge_resnet50"), 101: ("yolact", "yolact_edge")}


def clip(side: int, frames: int) -> list[torch.Tensor]:
    """Frames (3, side, side) of a window that moves over a smooth picture."""
    rows, columns = np.mgrid[0:side, 0 : side + 4 * frames].astype(np.float32)
    waves = [np.sin(rows / 37 + k) + np.cos(columns / (29 + 3 * k)) for k in range(3)]
    picture = torch.from_numpy(np.stack(waves) / 4 + 0.5)
    return [picture[:, :, 4 * k : 4 * k + side].contiguous() for k in range(frames)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=50, choices=sorted(_NAMES))
    parser.add_argument("--side", type=int, default=550)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = {"num_classes": 81, "transform": squash(given.side)}
    plain, edge = (random_weights(name, 0, config)[0].eval() for name in _NAMES[given.depth])
    assert isinstance(edge, VideoAnchorDetector)
    frames = clip(given.side, given.frames)
    plain.predict(frames[:1])
    edge.predict_video(frames[:2])
    per_frame: list[tuple[float, float, bool]] = []
    for _ in range(given.repeats):
        state = edge.start()
        for frame in frames:
            begin = time.perf_counter()
            plain.predict([frame])
            middle = time.perf_counter()
            _, state = edge.predict_video([frame], state)
            is_key = state.counters["key_index"] == state.frame - 1
            per_frame.append((middle - begin, time.perf_counter() - middle, is_key))
    yolact = median(first for first, _, _ in per_frame)
    key = median(second for _, second, is_key in per_frame if is_key)
    other = median(second for _, second, is_key in per_frame if not is_key)
    over_clip = mean((key, *[other] * (edge.key_every - 1)))
    print(f"ResNet-{given.depth}, {given.side} px, {given.frames} frames, {given.repeats} repeats; medians, ms a frame")
    for name, seconds in (
        ("YOLACT", yolact),
        ("YolactEdge, key frame", key),
        ("YolactEdge, other frame", other),
        (f"YolactEdge, one key frame in {edge.key_every}", over_clip),
    ):
        print(f"{name:36s} {1e3 * seconds:8.0f}   {yolact / seconds:5.2f} x YOLACT's frames a second")


if __name__ == "__main__":
    main()
