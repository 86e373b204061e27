"""The one door for label sets: the content says which format it is."""

from __future__ import annotations

import json
from collections.abc import Sequence

from infra.errors import DatasetError, UsageError
from infra.store import open_store, split_uri
from modelkit import ClassInfo
from tasks.labels.coco import read_coco
from tasks.labels.cvat import read_cvat
from tasks.labels.label_sets import LabelSet
from tasks.labels.label_studio import read_label_studio
from tasks.labels.mask_folder import read_mask_folder
from tasks.labels.stored import read_stored

_BEGINNING_BYTES = 64
CLASSES_FILE = "classes.json"  # of a folder of masks: {"1": "road", ...}


def read_label_set(uri: str, *, images_root: str | None = None, classes: Sequence[ClassInfo] | None = None) -> LabelSet:
    """Read human labels: COCO JSON, a folder with ``images/`` and ``masks/``, our Parquet, Label Studio or CVAT.

    Args:
        uri: the file, or the folder of masks (which then holds ``classes.json`` unless ``classes`` are given).
        images_root: where the images lie that the file names.
        classes: the class map; formats that carry their own ids ignore it.

    Raises:
        DatasetError: nothing usable, or a format that is not known.
        UsageError: a folder of masks without a class map.
    """
    root, key = split_uri(uri.rstrip("/"))
    suffix = key.rpartition(".")[2].lower() if "." in key.rpartition("/")[2] else ""
    if suffix == "parquet":
        return read_stored(uri)
    if suffix == "xml":
        return read_cvat(uri, images_root=images_root, classes=classes)
    if suffix == "json":
        store = open_store(root)
        start = store.read_range(key, 0, min(_BEGINNING_BYTES, store.info(key).size_bytes)).lstrip(
            b"\xef\xbb\xbf \r\n\t"
        )
        if start.startswith(b"["):
            return read_label_studio(uri, images_root=images_root, classes=classes)
        return read_coco(uri, images_root=images_root)
    if suffix:
        raise DatasetError(f"{uri} is no format of labels", hint="COCO or Label Studio JSON, CVAT XML, our Parquet.")
    folder = uri.rstrip("/")
    return read_mask_folder(f"{folder}/images", f"{folder}/masks", classes or _classes_of(folder))


def _classes_of(folder: str) -> list[ClassInfo]:
    store = open_store(folder)
    try:
        names = json.loads(store.get(CLASSES_FILE))
        return [ClassInfo(int(label), str(name), is_thing=False) for label, name in names.items()]
    except (AttributeError, ValueError) as error:
        raise UsageError(f"{folder}/{CLASSES_FILE} must be an object of id: name ({error})") from error
