"""A model against a label set; what its figures are, its kind says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import modelkit
from infra.errors import DatasetError, UsageError
from infra.telling import tell
from modelkit import Instances, Predictor
from tasks.engine.model_source import local_model
from tasks.evaluation.figures import SCORE_FLOOR
from tasks.labels.label_sets import LabelSet, relabelled
from tasks.media.decoding import DecodeOptions, EntryReader, decode_entry
from tasks.product import Judgement, find_kind
from tasks.records import MISSING_ETAG, Entry

_BATCH = 8

Row = Mapping[str, Any]
"""One row of a label set."""


def evaluate_model(model: str, labels: LabelSet, *, weights: str | None = None, device: str = "cpu") -> Judgement:
    """Run a model over the images of a label set and judge what it finds.

    Args:
        model, weights: as ``modelkit.load`` takes them, or URIs.
        labels: with classes of the model's names.

    Raises:
        UsageError: an unknown model, or one of an unknown kind.
        DatasetError: an image that cannot be read, classes that are not the model's.
    """
    try:
        predictor = modelkit.load(
            local_model(model), weights=None if weights is None else local_model(weights), device=device
        )
    except modelkit.ModelkitError as error:
        raise UsageError(str(error), hint="`visionmill models list` shows the models and their weights") from error
    return evaluate_predictor(predictor, labels)


def evaluate_predictor(predictor: Predictor, labels: LabelSet) -> Judgement:
    """The same with a predictor that is loaded already."""
    return find_kind(predictor.weights.kind).judge(predictor, with_classes_of(predictor, labels))


def with_classes_of(predictor: Predictor, labels: LabelSet) -> LabelSet:
    """The labels under the class ids of the model: a class is the same where its name is.

    Raises:
        DatasetError: a class of the labels has a name that the model does not know, or knows twice.
    """
    names = [each.name for each in predictor.weights.classes]
    known = {each.name: each.id for each in predictor.weights.classes if names.count(each.name) == 1}
    if wrong := [each for each in labels.classes if each.name not in known]:
        by_id = predictor.weights.class_names()
        said = [f"{each.id} is {by_id.get(each.id, 'unknown')!r} to the model and {each.name!r} in the labels"
                for each in wrong[:5]]  # fmt: skip
        raise DatasetError(
            f"the classes are not those of {predictor.weights.name}: {'; '.join(said)}",
            hint="--classes names a file with the classes to judge; those that are not in it are left out.",
        )
    ids = {each.id: known[each.name] for each in labels.classes}
    if all(old == new for old, new in ids.items()):
        return labels
    classes = sorted((replace(each, id=ids[each.id]) for each in labels.classes), key=lambda each: each.id)
    file_ids = {ids[label]: labels.file_ids.get(label, label) for label in ids}
    return relabelled(labels, ids, classes, file_ids)


def predictions(
    predictor: Predictor, rows: Sequence[Row], *, floor: float = SCORE_FLOOR
) -> Iterator[tuple[Row, Instances]]:
    """Every row with what the model finds in its image from a score on, in order.

    Raises:
        DatasetError: an image that cannot be read or is not of the size its labels are for.
    """
    reader = EntryReader()
    for start in range(0, len(rows), _BATCH):
        tell("judging", start, len(rows), "images")
        chosen = rows[start : start + _BATCH]
        images = [pixels_of(row, reader) for row in chosen]
        yield from zip(chosen, (_floored(found, floor) for found in predictor(images)), strict=True)


def _floored(instances: Instances, floor: float) -> Instances:
    keep = np.flatnonzero(instances.scores >= floor)
    return instances if len(keep) == len(instances) else instances.chosen(keep)


def pixels_of(row: Row, reader: EntryReader) -> np.ndarray:
    """(H, W, 3) uint8 of a labelled item."""
    entry = Entry(row["uri"], MISSING_ETAG, 0, row["media"])
    if row["media"] == "video":
        entry = Entry(row["uri"], MISSING_ETAG, 0, "video", first_frame=0, end_frame=row["frame"] + 1)
    why = "there is no such frame"
    for frame in decode_entry(entry, reader, DecodeOptions()):
        if frame.failure is not None:
            why = frame.failure.error
        elif frame.frame == row["frame"]:
            if frame.size_hw != (row["height"], row["width"]):
                raise DatasetError(
                    f"{row['image_id']} is {frame.size_hw}, its labels are for {(row['height'], row['width'])}",
                    hint="Was the image replaced, or are the labels those of another one?",
                )
            assert frame.image_rgb_hwc_u8 is not None  # it did not fail
            return frame.image_rgb_hwc_u8
    raise DatasetError(f"{row['image_id']} cannot be judged: {why}", hint="Leave it out, or mend it.")
