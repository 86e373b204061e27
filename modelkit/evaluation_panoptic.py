"""Panoptic quality of a predictor on digitscape scenes, and of a video model on its clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelkit.carriers import Instances
from modelkit.digitscape import CLASS_NAMES, Digitscape
from modelkit.evaluation import Predict
from modelkit.metrics import PanopticQuality, PanopticScores, count_id_switches, panoptic_array, video_panoptic_quality
from modelkit.metrics.panoptic import DIVISOR
from modelkit.predictor import Predictor

THINGS = range(1, 1 + len(CLASS_NAMES))

PredictClip = Callable[[list[np.ndarray]], Sequence[Instances]]
"""Consecutive frames, RGB uint8 HWC, in; instances with track ids out, one per frame."""


@dataclass(frozen=True, slots=True)
class VideoScores:
    """What a video model reached on clips.

    Args:
        windows: scores by length of the window in frames; see ``video_panoptic_quality``.
        id_switches: in all clips.
        num_tracks: true objects in all clips.
    """

    windows: dict[int, PanopticScores]
    id_switches: int
    num_tracks: int

    @property
    def vpq(self) -> float:
        """Mean over windows of the mean over classes."""
        return float(np.mean([scores.all.pq for scores in self.windows.values()]))

    def to_json(self) -> dict[str, Any]:
        """What a table wants, four digits."""
        by_window = {f"vpq_{k}": round(scores.all.pq, 4) for k, scores in self.windows.items()}
        return {
            "vpq": round(self.vpq, 4), **by_window, "id_switches": self.id_switches, "num_tracks": self.num_tracks
        }  # fmt: skip


def evaluate_panoptic(
    predict: Predict, source: Digitscape, num_scenes: int, *, first: int = 0, batch_size: int = 8
) -> PanopticScores:
    """Panoptic quality over scenes ``first .. first + num_scenes``.

    Args:
        predict: what to judge; its masks must not overlap.
        source: split, size, seed and style of the scenes.
        num_scenes: at least 1.
        first: index of the first scene.
        batch_size: images per call of ``predict``.
    """
    quality = PanopticQuality(THINGS)
    for start in range(first, first + num_scenes, batch_size):
        scenes = [source.scene(index) for index in range(start, min(start + batch_size, first + num_scenes))]
        for scene, found in zip(scenes, predict([scene.image_rgb for scene in scenes]), strict=True):
            quality.add(scene.panoptic_array(DIVISOR), panoptic_array(found))
    return quality.scores()


def evaluate_clips(
    predict: PredictClip,
    source: Digitscape,
    num_clips: int,
    num_frames: int,
    *,
    windows: Sequence[int] = (1, 2, 3, 4),
) -> VideoScores:
    """VPQ and identity switches over clips 0 .. ``num_clips``."""
    pairs, switches, tracks = [], 0, 0
    for index in range(num_clips):
        clip = source.clip(index, num_frames)
        truth = np.stack([scene.panoptic_array(DIVISOR) for scene in clip])
        found = np.stack([panoptic_array(each, tracked=True) for each in predict([scene.image_rgb for scene in clip])])
        pairs.append((truth, found))
        switches += count_id_switches(truth, found, THINGS)
        tracks += len(np.unique(truth[truth % DIVISOR > 0]))
    return VideoScores(video_panoptic_quality(pairs, THINGS, windows), switches, tracks)


def predict_clip(predictor: Predictor, frames: Sequence[np.ndarray]) -> list[Instances]:
    """What a video model finds in consecutive frames, RGB uint8 HWC of one size."""
    found, state = [], predictor.start()
    for frame in frames:
        raw, state = predictor.step(predictor.prepare(frame), state)
        found.append(predictor.finish(raw))
    return found


def panoptic_json(scores: PanopticScores) -> dict[str, float]:
    """What a table wants, four digits."""
    values = {"": scores.all, "_things": scores.things, "_stuff": scores.stuff}
    return {
        f"{name}{suffix}": round(getattr(quality, name), 4)
        for suffix, quality in values.items()
        for name in ("pq", "sq", "rq")
    }
