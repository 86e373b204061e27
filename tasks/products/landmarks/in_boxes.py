"""What a top-down model sees of labelled objects in their labelled boxes; objects of many images share batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from modelkit import Predictor
from modelkit.carriers.landmarks import Landmarks
from modelkit.landmarks import aimed, found_with_support, gathered, gives_support, prepare_objects
from modelkit.predictor import Prepared
from tasks.engine.batches import BatchLimits, forward
from tasks.evaluation.evaluate import Row, pixels_of
from tasks.media.decoding import EntryReader

_BATCH = 32
Look = Callable[[Sequence[Prepared]], list[Any]]
Seen = tuple[Landmarks, np.ndarray | None]
"""What was found of the judged objects of an image, and (n, K) what was seen of each point at its labelled place."""


def judged_objects(row: Row) -> list[int]:
    """Places of the objects that have a labelled point and are no crowds."""
    columns = zip(row["keypoint_xyv"], row["is_crowd"], row["boxes_xyxy"], strict=True)
    return [
        k
        for k, (points, crowd, (x0, y0, x1, y1)) in enumerate(columns)
        if not crowd and x1 > x0 and y1 > y0 and any(v for _, _, v in points or ())
    ]


def seen_in_boxes(predictor: Predictor, rows: Sequence[Row], order: Sequence[int]) -> Iterator[Seen]:
    """What a top-down model sees of the judged objects of each image, in their order, with all of its points.

    Args:
        predictor: of the model; one that gives no maps has None in place of what was seen at labelled places.
        rows: of labels with points.
        order: which of the model's points each labelled one is.

    Raises:
        DatasetError: an image that cannot be read or is not of the size its labels are for.
    """
    reader, limits, points = EntryReader(), BatchLimits(_BATCH), int(predictor.model.config["num_keypoints"])
    asked = gives_support(predictor)

    def look(crops: Sequence[Prepared]) -> list[Any]:
        return found_with_support(predictor, crops) if asked else [(found, None) for found in predictor.infer(crops)]

    def seen(waiting: Sequence[tuple[Row, list[Prepared]]]) -> Iterator[Seen]:
        for row, mine in _looked_at(look, waiting, limits):
            found = gathered([predictor.finish(raw) for raw, _ in mine], (row["height"], row["width"]), points)
            yield found, np.array([values for _, values in mine]).reshape(-1, points) if asked else None

    waiting: list[tuple[Row, list[Prepared]]] = []
    for row in rows:
        waiting.append((row, _crops(predictor, row, reader, order, points)))
        if sum(len(each) for _, each in waiting) >= _BATCH:
            yield from seen(waiting)
            waiting = []
    yield from seen(waiting)


def _crops(predictor: Predictor, row: Row, reader: EntryReader, order: Sequence[int], points: int) -> list[Prepared]:
    """The judged objects of an image, each with the labelled places of the model's points; NaN where none is."""
    chosen = judged_objects(row)
    boxes, labels = (np.array([row[name][k] for k in chosen]) for name in ("boxes_xyxy", "labels"))
    places = np.full((len(chosen), points, 2), np.nan)
    for mine, k in zip(places, chosen, strict=True):
        mine[list(order)] = np.array(row["keypoint_xyv"][k], np.float64)[:, :2]
    crops = prepare_objects(predictor, pixels_of(row, reader), boxes, labels=labels)
    return [aimed(crop, mine) for crop, mine in zip(crops, places, strict=True)]


def _looked_at(
    look: Look, waiting: Sequence[tuple[Row, list[Prepared]]], limits: BatchLimits
) -> Iterator[tuple[Row, list[Any]]]:
    crops = [crop for _, each in waiting for crop in each]
    found: list[Any] = []
    for start in range(0, len(crops), _BATCH):
        chosen = crops[start : start + _BATCH]
        found += forward(look, chosen, chosen[0].bucket, limits)
    for error in found:
        if isinstance(error, Exception):
            raise error
    done = iter(found)
    for row, each in waiting:
        yield row, [next(done) for _ in each]
