"""Objects with points followed from frame to frame: an id for each, and points that do not jitter.

Objects of a frame are given to tracks so that their likeness is largest in all (Kuhn 1955). Likeness is the IoU with
the track's box, of objects with points the mean of that and the OKS with the track's points; tracks are moved on by
their last speed before. A track that is not seen for a while ends. An object starts a track if it is sure enough; a
less sure one only goes on with one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from modelkit.base import FinishedPrediction, Prediction
from modelkit.carriers.landmarks import Landmarks
from modelkit.landmarks.one_euro import OneEuro
from modelkit.metrics.keypoints import object_keypoint_similarity
from modelkit.predictor import Predictor, Prepared
from modelkit.video import VideoState

_SIGMA = 0.1  # of keypoints of which nobody measured it
NO_TRACK = -1


@dataclass(frozen=True, slots=True)
class Tracking:
    """How objects are followed.

    Args:
        least_likeness: in [0, 1], below which an object is not that of a track.
        start_score: an object that scores less starts no track.
        patience: frames that a track may go unseen.
        smoothing: of points; None leaves them as they were found.
    """

    least_likeness: float = 0.2
    start_score: float = 0.3
    patience: int = 10
    smoothing: OneEuro | None = None


@dataclass(frozen=True, slots=True)
class Tracks:
    """Those of a clip up to a frame; T tracks of K points.

    Args:
        ids, labels, unseen: (T,) int64; how many frames ago each was seen.
        boxes: (T, 4) as last seen. moves: (T, 2) of the box's middle, pixels a frame.
        points, speeds: (T, K, 2), filtered; see ``OneEuro``.
        next_id: of the next track.
    """

    ids: np.ndarray
    labels: np.ndarray
    unseen: np.ndarray
    boxes: np.ndarray
    moves: np.ndarray
    points: np.ndarray
    speeds: np.ndarray
    next_id: int

    @classmethod
    def none(cls, points: int) -> Tracks:
        """Before the first frame."""
        whole, real = np.zeros(0, np.int64), np.float64
        places = np.zeros((0, points, 2), real)
        return cls(whole, whole, whole, np.zeros((0, 4), real), np.zeros((0, 2), real), places, places, 1)

    @classmethod
    def of(cls, state: VideoState, points: int) -> Tracks:
        """What a state holds."""
        if not state.tensors:
            return cls.none(points)
        arrays = {name: tensor.numpy() for name, tensor in state.tensors.items()}
        return cls(**arrays, next_id=state.counters["next_id"])

    def state(self, frame: int) -> VideoState:
        """For the next frame; ``frame`` have been seen."""
        names = [name for name in self.__dataclass_fields__ if name != "next_id"]
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in names}
        return VideoState(frame, tensors, {"next_id": self.next_id})


def follow(found: Landmarks, tracks: Tracks, how: Tracking) -> tuple[Landmarks, Tracks]:
    """The objects of a frame with their ids (-1: of no track) and filtered points, and the tracks after it."""
    boxes, points = found.boxes_xyxy.astype(np.float64), found.keypoints_xy.astype(np.float64)
    mine = _assigned(found, boxes, points, tracks, how)
    starts = np.flatnonzero((mine < 0) & (found.scores >= how.start_score))
    goes_on = np.flatnonzero(mine >= 0)
    ids = np.full(len(found), NO_TRACK, np.int64)
    ids[goes_on] = tracks.ids[mine[goes_on]]
    ids[starts] = tracks.next_id + np.arange(len(starts))
    moves, speeds = np.zeros((len(found), 2)), np.zeros_like(points)
    for k in goes_on.tolist():
        track = int(mine[k])
        frames = int(tracks.unseen[track]) + 1
        moves[k] = (_middles(boxes[k : k + 1]) - _middles(tracks.boxes[track : track + 1]))[0] / frames
        if how.smoothing is not None:
            points[k], speeds[k] = how.smoothing(
                points[k], tracks.points[track], tracks.speeds[track], frames, max(1.0, _areas(boxes)[k] ** 0.5)
            )
    seen = np.concatenate([goes_on, starts])
    lost = np.setdiff1d(np.flatnonzero(tracks.unseen < how.patience), mine[goes_on])
    after = Tracks(
        ids=np.concatenate([ids[seen], tracks.ids[lost]]),
        labels=np.concatenate([found.labels[seen].astype(np.int64), tracks.labels[lost]]),
        unseen=np.concatenate([np.zeros(len(seen), np.int64), tracks.unseen[lost] + 1]),
        boxes=np.concatenate([boxes[seen], tracks.boxes[lost]]),
        moves=np.concatenate([moves[seen], tracks.moves[lost]]),
        points=np.concatenate([points[seen], tracks.points[lost]]),
        speeds=np.concatenate([speeds[seen], tracks.speeds[lost]]),
        next_id=tracks.next_id + len(starts),
    )
    return replace(found, keypoints_xy=points.astype(np.float32), track_ids=ids), after


def _assigned(found: Landmarks, boxes: np.ndarray, points: np.ndarray, tracks: Tracks, how: Tracking) -> np.ndarray:
    """(n,) the track of each object, -1 for none."""
    mine = np.full(len(found), -1, np.int64)
    if not len(found) or not len(tracks.ids):
        return mine
    shift = tracks.moves * (tracks.unseen[:, None] + 1)
    likeness = _likeness(found, boxes, points, tracks.boxes + np.tile(shift, 2), tracks.points + shift[:, None])
    likeness[found.labels[:, None] != tracks.labels[None]] = 0
    for k, track in zip(*linear_sum_assignment(likeness, maximize=True), strict=True):
        if likeness[k, track] >= how.least_likeness:
            mine[k] = track
    return mine


def _likeness(
    found: Landmarks, boxes: np.ndarray, points: np.ndarray, track_boxes: np.ndarray, track_points: np.ndarray
) -> np.ndarray:
    """(n, T) in [0, 1]."""
    count, overlaps = points.shape[1], _ious(boxes, track_boxes)
    if not count:
        return overlaps
    sigmas = found.keypoint_set.sigmas if found.keypoint_set is not None else ()
    seen = np.isfinite(track_points).all(-1, keepdims=True)
    true = np.concatenate([np.where(seen, track_points, 0), seen], -1)
    places = np.where(np.isfinite(points), points, np.inf)  # absent: as far as can be
    areas = np.maximum(_areas(track_boxes), 1.0)
    likeness = object_keypoint_similarity(places, true, areas, track_boxes, sigmas or (_SIGMA,) * count)
    return np.asarray((overlaps + likeness) / 2)


def _ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.maximum(0, np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner)
    common = sides.prod(-1)
    return np.asarray(common / np.maximum(_areas(a)[:, None] + _areas(b)[None] - common, 1e-9))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1))


def _middles(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[:, :2] + boxes[:, 2:]) / 2)


class TrackingPredictor(Predictor):
    """Another predictor of landmarks, whose objects are followed through clips.

    Args:
        predictor: of single images; its device and way of running are taken over.
        how: objects are followed.
    """

    def __init__(self, predictor: Predictor, how: Tracking) -> None:
        super().__init__(
            predictor.model, predictor.weights, predictor.device, choice=predictor.choice, min_score=predictor.min_score
        )
        self.rows_digest, self._one, self._how = predictor.rows_digest, predictor, how
        for name in ("prepare", "prepare_item", "infer"):  # an image is what it is to the other one
            if hasattr(predictor, name):
                setattr(self, name, getattr(predictor, name))

    @property
    def is_video(self) -> bool:
        """A clip's frames are looked at in their order."""
        return True

    def start(self) -> VideoState:
        """No track."""
        return VideoState(0, {}, {})

    def step(self, prepared: Prepared, state: VideoState) -> tuple[Prediction, VideoState]:
        """See :class:`Predictor`."""
        [raw] = self._one.infer([prepared])
        found: Landmarks = self._one.finish(raw)
        tracks = Tracks.of(state.to("cpu"), found.keypoint_scores.shape[1])
        followed, after = follow(found, tracks, self._how)
        return FinishedPrediction(followed), after.state(state.frame + 1)
