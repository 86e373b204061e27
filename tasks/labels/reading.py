"""The one door for label sets: the content says which format it is, and what it lost is counted and refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from infra.errors import BucketMissing, DatasetError, UsageError
from infra.store import Store, open_store, split_uri
from modelkit import ClassInfo
from tasks.labels.class_map import FileClass, as_file_classes, read_classes
from tasks.labels.coco import read_coco
from tasks.labels.cvat import read_cvat
from tasks.labels.label_sets import LabelSet
from tasks.labels.label_studio import read_label_studio
from tasks.labels.losses import refuse_losses
from tasks.labels.mask_folder import read_mask_folder, read_object_maps
from tasks.labels.stored import read_stored

_BEGINNING_BYTES = 64
_FORMATS = "Labels are COCO or Label Studio JSON, CVAT XML, our Parquet, or a folder with images/, masks/, classes.json"
_FILES = (".json", ".xml", ".parquet")
_LOOKED_AT = 10_000  # objects of a folder, in the hope of finding out what it is
CLASSES_FILE = "classes.json"  # of a folder of masks: {"1": "road", ...}
MASKS_FOLDER = "masks"
MAPS_FOLDER = "instances"  # a number for every object, of a class that all share


def read_label_set(
    uri: str,
    *,
    images_root: str | None = None,
    classes: Sequence[ClassInfo] | str | None = None,
    allow_dropped: bool = False,
) -> LabelSet:
    """Read human labels: COCO JSON, a folder of masks or of maps of objects, our Parquet, Label Studio or CVAT.

    Args:
        uri: the file, or a folder with ``images/`` and ``masks/`` (which holds ``classes.json`` unless ``classes`` are
            given) or ``instances/`` (objects of one class, which ``classes.json`` may name).
        images_root: where the images lie that the file names; without, the usual layouts are tried.
        classes: use these classes and ids; the file's are matched by name. A text is the URI of a file, see
            :func:`tasks.labels.class_map.read_classes`.
        allow_dropped: take what is there, whatever was lost or is missing.

    Raises:
        DatasetError: nothing usable, a format that is not known, or too much that cannot be read (see
            :func:`tasks.labels.losses.refuse_losses`).
        UsageError: a folder of masks without a class map.
    """
    wanted = (
        read_classes(classes) if isinstance(classes, str) else None if classes is None else as_file_classes(classes)
    )
    labels = _read(uri, images_root, wanted)
    if not allow_dropped:
        crowds = sum(map(sum, labels.table["is_crowd"].to_pylist()))
        refuse_losses(uri, labels.losses, sum(map(len, labels.table["labels"].to_pylist())), crowds)
    return labels


def find_labels(uri: str, *, classes: str | None = None) -> None:
    """Look whether labels are there, without reading them; raises as :func:`read_label_set`."""
    wanted = None if classes is None else read_classes(classes)
    root, key = split_uri(uri.rstrip("/"))
    if suffix := _suffix(key):
        if f".{suffix}" not in _FILES:
            raise _unknown_format(uri)
        open_store(root).info(key)
    elif not _has(uri.rstrip("/"), f"{MAPS_FOLDER}/"):
        _classes_of(uri.rstrip("/"), wanted)


def _suffix(key: str) -> str:
    return key.rpartition(".")[2].lower() if "." in key.rpartition("/")[2] else ""


def _unknown_format(uri: str) -> DatasetError:
    return DatasetError(f"{uri} is no format of labels", hint="COCO or Label Studio JSON, CVAT XML, our Parquet.")


def _read(uri: str, images_root: str | None, classes: Sequence[FileClass] | None) -> LabelSet:
    root, key = split_uri(uri.rstrip("/"))
    suffix = _suffix(key)
    if suffix == "parquet":
        return read_stored(uri, classes=classes)
    if suffix == "xml":
        return read_cvat(uri, images_root=images_root, classes=classes)
    if suffix == "json":
        store = open_store(root)
        start = store.read_range(key, 0, min(_BEGINNING_BYTES, store.info(key).size_bytes)).lstrip(
            b"\xef\xbb\xbf \r\n\t"
        )
        if start.startswith(b"["):
            return read_label_studio(uri, images_root=images_root, classes=classes)
        return read_coco(uri, images_root=images_root, classes=classes)
    if suffix:
        raise _unknown_format(uri)
    folder = uri.rstrip("/")
    if _has(folder, f"{MAPS_FOLDER}/") and not _has(folder, f"{MASKS_FOLDER}/"):
        named = classes if classes is not None or not _has(folder, CLASSES_FILE) else _classes_of(folder, None)
        return read_object_maps(f"{folder}/images", f"{folder}/{MAPS_FOLDER}", named or ())
    found = _classes_of(folder, classes)
    return read_mask_folder(f"{folder}/images", f"{folder}/{MASKS_FOLDER}", found, classes=classes)


def _has(folder: str, prefix: str) -> bool:
    return next(iter(open_store(folder).list(prefix)), None) is not None


def _check_folder(store: Store, folder: str, classes: Sequence[FileClass] | None) -> None:
    """Raises DatasetError where there is no folder of masks, and names the files of labels that are there instead."""
    try:
        found = [info.key for info in islice(store.list(""), _LOOKED_AT)]
    except BucketMissing:
        found = []
    if not found:
        raise DatasetError(f"{folder} does not exist, or is empty", hint=_FORMATS)
    others = [key for key in found if key.endswith(_FILES) and key != CLASSES_FILE]
    has_masks = any(key.startswith("masks/") for key in found)
    if not has_masks and (others or (classes is None and CLASSES_FILE not in found)):
        hint = f"did you mean {' or '.join(store.uri_of(key) for key in others[:3])}?" if others else _FORMATS
        raise DatasetError(f"{folder} is a folder without masks/ and {CLASSES_FILE}", hint=hint)


def _classes_of(folder: str, classes: Sequence[FileClass] | None) -> Sequence[FileClass]:
    """What the ids in the masks of a folder mean: its own file says it, or whoever asks."""
    store = open_store(folder)
    _check_folder(store, folder, classes)
    if classes is not None and CLASSES_FILE not in {info.key for info in store.list(CLASSES_FILE)}:
        return [each if each.id is not None else replace(each, id=number) for number, each in enumerate(classes, 1)]
    found = read_classes(store.uri_of(CLASSES_FILE))
    if any(each.id is None for each in found):
        raise UsageError(
            f"{store.uri_of(CLASSES_FILE)} must be an object of id: name, the ids being those of the masks"
        )
    return found
