"""Files of labels as commands ask for them: read, checked, and told."""

from __future__ import annotations

from collections.abc import Sequence

from flows.parameters import LabelParameters
from modelkit import ClassInfo
from tasks.labels.images import with_images_checked
from tasks.labels.label_sets import LabelSet
from tasks.labels.reading import read_label_set


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
