"""Files of labels as commands ask for them: read, checked, and told."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from flows import page
from flows.loop_parameters import RetrainParameters
from flows.parameters import GroupParameters, LabelParameters
from flows.progress import note
from modelkit import ClassInfo
from tasks.labels.images import with_images_checked
from tasks.labels.label_sets import LabelSet, of_people
from tasks.labels.reading import read_label_set
from tasks.loop.fingerprints import fingerprints_of
from tasks.loop.groups import grouped
from tasks.loop.loops import kind_for
from tasks.records import MISSING_ETAG, Entry
from tasks.training.inspection import inspect_labels
from tasks.training.presets import misfit, numbered


def labels_of(uri: str, asked: LabelParameters) -> LabelSet:
    """A label set whose images are there.

    Raises:
        DatasetError: it cannot be used as it is; see :func:`tasks.labels.reading.read_label_set` and
            :func:`tasks.labels.images.with_images_checked`.
        UsageError: no classes where some are needed.
    """
    labels = labels_named(uri, asked)
    return with_images_checked(labels, uri, allow_missing=asked.allow_dropped)


def labels_named(uri: str, asked: LabelParameters, classes: Sequence[ClassInfo] | None = None) -> LabelSet:
    """The same for those who will not open the images; with ``classes``, under their ids, whatever was asked for."""
    return read_label_set(
        uri, images_root=asked.images_root, classes=classes or asked.classes, allow_dropped=asked.allow_dropped
    )


def labels_to_teach(labels: LabelSet, asked: RetrainParameters) -> LabelSet:
    """What people said of it, under the class ids that the models of the loop know; see :func:`of_people`."""
    labels = of_people(labels)
    kind = kind_for(asked, labels)
    if asked.recipe is not None and asked.task is None:
        note_misfit(kind, labels)
    return numbered(labels, kind)


def note_misfit(kind: str, labels: LabelSet) -> None:
    """Tell people whose recipe is for labels of another kind; that is allowed, but not in silence."""
    why = misfit(kind, inspect_labels(labels))
    if why is not None:
        note(why)
        page.log("%s", why)


def fingerprints(labels: LabelSet) -> pa.Table:
    """``fingerprints.v1`` of the images; opens every one, and no video."""
    items = labels.table.select(["uri", "media"]).to_pylist()
    images = sorted({each["uri"] for each in items if each["media"] == "image"})
    return fingerprints_of(Entry(uri, MISSING_ETAG, 0, "image") for uri in images)


def in_groups(labels: LabelSet, asked: GroupParameters) -> LabelSet:
    """The labels in the groups that are never divided; opens every image, no video."""
    return grouped(labels, fingerprints(labels), asked.group_rule)[0]
