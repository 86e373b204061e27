"""A model against a label set; what its figures are, its kind says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

import modelkit
from infra.errors import DatasetError, UsageError
from infra.telling import tell
from modelkit import Instances, Predictor
from modelkit.base import Prediction
from modelkit.predictor import Prepared
from tasks.engine.batches import BatchLimits, Group, forward
from tasks.engine.items import held_bytes
from tasks.engine.model_source import local_model
from tasks.engine.own_model import is_own_model, own_record
from tasks.engine.pipeline import BatchStage, Job, Pipeline, Stage
from tasks.engine.predictors import own_predictor
from tasks.engine.prepare import check_looks
from tasks.evaluation.figures import SCORE_FLOOR
from tasks.labels.label_sets import LabelSet, relabelled
from tasks.media.decoding import EntryReader, labelled_pixels
from tasks.product import Judgement, find_kind

_BATCH, _AT_ONCE = 8, 64  # images in a batch, and in a job of the pipeline
_READERS, _BYTES = 2, 256 << 20

Row = Mapping[str, Any]
"""One row of a label set."""


def evaluate_model(
    model: str,
    labels: LabelSet,
    *,
    weights: str | None = None,
    device: str = "cpu",
    looks: Mapping[str, Any] | None = None,
) -> Judgement:
    """Run a model over the images of a label set and judge what it finds.

    Args:
        model, weights: as ``modelkit.load`` takes them, or URIs.
        labels: with classes of the model's names.
        looks: how it looks at images: ``detections``, ``tile`` and ``overlap`` of ``modelkit.load``.

    Raises:
        UsageError: an unknown model, one of an unknown kind, or one that cannot look so.
        DatasetError: an image that cannot be read, classes that are not the model's.
    """
    if is_own_model(model):
        if looks:
            check_looks(model, own_record(model, weights), looks)
        return evaluate_predictor(own_predictor(model, weights, "cpu" if device == "cpu" else "cuda"), labels)
    try:
        predictor = modelkit.load(
            local_model(model),
            weights=None if weights is None else local_model(weights),
            device=device,
            **(looks or {}),
        )
    except (modelkit.UnknownNameError, modelkit.WeightsError) as error:
        raise UsageError(str(error), hint="`visionmill models list` shows the models and their weights") from error
    except modelkit.ModelkitError as error:
        raise UsageError(str(error)) from error
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
            hint="Classes agree where their names do: call them the same in the labels (a folder of pictures says its "
            "names in classes.json). --classes names a file with the classes to judge; others are left out.",
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

    The pipeline is the engine's, as are batches and what is done where memory does not suffice: images are read and
    made ready while the model looks at others.

    Raises:
        DatasetError: an image that cannot be read or is not of the size its labels are for.
    """
    tell("judging", 0, len(rows), "images")
    pipeline, waiting = Pipeline(_stages(predictor, floor, len(rows))), deque[tuple[Sequence[Row], Job]]()
    try:
        for start in range(0, len(rows), _AT_ONCE):
            chosen = rows[start : start + _AT_ONCE]
            waiting.append((chosen, pipeline.submit(chosen)))
            if len(waiting) > 1:
                yield from _results(*waiting.popleft())
        while waiting:
            yield from _results(*waiting.popleft())
    finally:
        pipeline.close()


def _results(rows: Sequence[Row], job: Job) -> Iterator[tuple[Row, Instances]]:
    with job:
        yield from zip(rows, job.results(), strict=True)


def _stages(predictor: Predictor, floor: float, num_rows: int) -> list[Stage | BatchStage]:
    reader, limits, done = EntryReader(), BatchLimits(_BATCH), count(1)

    def look(prepared: list[Prepared]) -> list[Any]:
        found = forward(predictor.infer, prepared, prepared[0].bucket, limits)
        for error in found:
            if isinstance(error, Exception):
                raise error
        return found

    def finish(raw: Prediction) -> Instances:
        found = _floored(predictor.finish(raw), floor)
        tell("judging", next(done), num_rows, "images")
        return found

    def neighbours(position: int, row: Row) -> Group:
        first = position // _BATCH * _BATCH
        return first, first + _BATCH

    return [
        Stage("prepare", lambda row: predictor.prepare(pixels_of(row, reader)), held_bytes, _BYTES, threads=_READERS),
        BatchStage(
            "infer", look, held_bytes, _BYTES,
            bucket_of=lambda prepared: prepared.bucket, limit_of=lambda bucket: _BATCH, group_of=neighbours,
        ),
        Stage("finish", finish, held_bytes, _BYTES),
    ]  # fmt: skip


def _floored(instances: Instances, floor: float) -> Instances:
    keep = np.flatnonzero(instances.scores >= floor)
    return instances if len(keep) == len(instances) else instances.chosen(keep)


def pixels_of(row: Row, reader: EntryReader) -> np.ndarray:
    """(H, W, 3) uint8 of the image of a row. Raises DatasetError as :func:`predictions` does."""
    frame = row["frame"] if row["media"] == "video" else None
    return labelled_pixels(row["uri"], frame, (row["height"], row["width"]), reader)
