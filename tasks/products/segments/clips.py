"""Labelled images and clips as panoptic arrays, and how well a model keeps identities over clips (Kim et al. 2020)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from infra.errors import DatasetError
from modelkit import Instances, Predictor, rle
from modelkit.metrics import count_id_switches, panoptic_array, video_panoptic_quality
from modelkit.metrics.panoptic import DIVISOR
from tasks.evaluation.evaluate import Row
from tasks.media.decoding import DecodeOptions, EntryReader, decode_entry
from tasks.records import MISSING_ETAG, Entry

_WINDOWS = (1, 2, 3, 4)


def panoptic_truth(row: Row, things: Collection[int], tracks: dict[Hashable, int] | None = None) -> np.ndarray:
    """(H, W) panoptic array of a labelled item with its crowds; the first object has a pixel that two claim.

    Crowds lie below objects, void above everything.

    Args:
        row: of ``labels.v1``.
        things: class ids whose objects are told apart.
        tracks: track id -> number in this clip; objects of the row that it lacks are added. None: the objects of one
            image, whatever their tracks.

    Raises:
        DatasetError: an object without a mask.
    """
    size_hw = (row["height"], row["width"])
    array = np.zeros(size_hw, np.int64)
    columns = zip(row["labels"], row["rles"], row["is_crowd"], _numbers(row["track_ids"], tracks), strict=True)
    for label, mask, crowd, number in sorted(columns, key=lambda each: each[2]):
        if mask is None:
            raise DatasetError(f"{row['image_id']} has an object without a mask: no panoptic truth")
        value = label * DIVISOR + (number if label in things else 0)
        array[rle.decode(mask, size_hw) & (array == 0)] = -value if crowd else value
    if row["void_rle"] is not None:
        array[rle.decode(row["void_rle"], size_hw)] = 0
    return array


def _numbers(track_ids: Sequence[int | None], tracks: dict[Hashable, int] | None) -> list[int]:
    """Of the objects of a row, from 1 on; one that nobody tracked is met once, so its number is its own."""
    if tracks is None:
        return list(range(1, len(track_ids) + 1))
    return [tracks.setdefault(object() if track is None else track, len(tracks) + 1) for track in track_ids]


def video_figures(predictor: Predictor, rows: Sequence[Row], things: Collection[int]) -> dict[str, dict[str, Any]]:
    """The group ``video``: panoptic quality of tubes by windows of labelled frames and its mean, and identity switches.

    Args:
        predictor: of a model that tracks; it sees every frame of a clip from the first on.
        rows: of ``labels.v1``; those of images count nothing.
        things: class ids that have identities.

    Returns:
        Nothing where no row is a frame of a video.

    Raises:
        DatasetError: a frame that cannot be read.
    """
    frames = sorted((row for row in rows if row["media"] == "video"), key=lambda row: (row["uri"], row["frame"]))
    if not frames:
        return {}
    switches = num_tracks = 0

    def clips() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal switches, num_tracks
        for _, group in itertools.groupby(frames, key=lambda row: str(row["uri"])):
            clip, tracks = list(group), dict[Hashable, int]()
            truth = np.stack([panoptic_truth(row, things, tracks) for row in clip])
            found = np.stack([panoptic_array(each, tracked=True) for each in _found_in(predictor, clip)])
            switches += count_id_switches(truth, found, things)
            num_tracks += len(np.unique(truth[(truth > 0) & (truth % DIVISOR > 0)]))
            yield truth, found

    by_window = {k: each.all.pq for k, each in video_panoptic_quality(clips(), things, _WINDOWS).items()}
    figures = {"vpq": float(np.mean(list(by_window.values()))), **{f"vpq_{k}": pq for k, pq in by_window.items()}}
    return {"video": {**figures, "id_switches": switches, "tracks": num_tracks}}


def _found_in(predictor: Predictor, clip: Sequence[Row]) -> Iterator[Instances]:
    """What the model finds in the labelled frames of one clip, seen in order."""
    wanted = {row["frame"] for row in clip}
    entry = Entry(clip[0]["uri"], MISSING_ETAG, 0, "video", first_frame=0, end_frame=max(wanted) + 1)
    state = predictor.start()
    for frame in decode_entry(entry, EntryReader(), DecodeOptions()):
        if frame.image_rgb_hwc_u8 is None:
            why = "there is no such frame" if frame.failure is None else frame.failure.error
            raise DatasetError(f"{entry.uri} cannot be judged: {why}", hint="Leave it out, or mend it.")
        raw, state = predictor.step(predictor.prepare(frame.image_rgb_hwc_u8), state)
        if frame.frame in wanted:
            wanted.discard(frame.frame)
            yield predictor.finish(raw)
    if wanted:
        raise DatasetError(f"{entry.uri} has no frame {min(wanted)}", hint="Are the labels those of another video?")
