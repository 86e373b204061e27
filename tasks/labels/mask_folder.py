"""Label sets from folders of pictures of ids: of classes (semantic segmentation), or of objects of one class.

``images/a/b.jpg`` is paired with ``masks/a/b.png``, or with ``instances/a/b.png``, in which every object has a number
of its own and 0 is background; images without such a picture are not labelled. Ids are read as stored: the palette of
a PNG is for people and changes nothing.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from infra.errors import DatasetError, StoreError
from infra.store import Store, open_store
from modelkit import rle
from tasks.labels.class_map import FileClass, map_classes
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.losses import Losses
from tasks.media.endings import kind_of

VOID_ID = 255
_MODES = ("L", "P", "I", "I;16", "1")


def read_mask_folder(
    images_uri: str,
    masks_uri: str,
    found: Sequence[FileClass],
    *,
    classes: Sequence[FileClass] | None = None,
    void_id: int = VOID_ID,
) -> LabelSet:
    """Pair images with masks by name; every class of a mask becomes one object.

    Args:
        images_uri, masks_uri: two folders.
        found: what the ids in the masks mean.
        classes: use these, by name.
        void_id: pixels that nobody labelled.

    Raises:
        DatasetError: a mask that is no picture of ids, or holds an id without a class: names file and id.
    """
    known = map_classes(found, classes, are_things=False)
    ids = {int(key): label for key, label in known.ids.items()}
    items, losses = _paired(images_uri, masks_uri, functools.partial(_item, known=ids, void_id=void_id))
    return make_label_set(items, known.classes, origin_format="mask_folder", losses=losses, file_ids=known.file_ids)


def read_object_maps(images_uri: str, maps_uri: str, found: Sequence[FileClass]) -> LabelSet:
    """Pair images with maps of objects by name; every number but 0 becomes one object.

    Args:
        images_uri, maps_uri: two folders.
        found: the one class of all objects; none calls it "object".

    Raises:
        DatasetError: a map that is no picture of ids, or several classes: a number alone does not tell which.
    """
    if len(found) > 1:
        raise DatasetError(
            f"{maps_uri} holds numbers of objects, which do not tell which of {len(found)} classes each is of",
            hint="Labels of several classes can be given as COCO JSON.",
        )
    known = map_classes(found or [FileClass("object", 1)], None, are_things=True)
    (label,) = (each.id for each in known.classes)
    items, losses = _paired(images_uri, maps_uri, functools.partial(_objects_item, label))
    return make_label_set(items, known.classes, origin_format="object_maps", losses=losses)


def _objects_item(label: int, uri: str, maps: Store, key: str) -> LabelledItem:
    ids = _ids(maps, key)
    masks = rle.encode_label_map(ids, ignore=(0,))
    objects = tuple(
        LabelledObject(label=label, rle=mask, origin_id=f"{key}#{number}") for number, mask in masks.items()
    )
    return LabelledItem(uri, (ids.shape[0], ids.shape[1]), objects)


def _paired(
    images_uri: str, masks_uri: str, item: Callable[[str, Store, str], LabelledItem]
) -> tuple[list[LabelledItem], Losses]:
    """Items of the images that have a picture of ids; the others, and pictures without an image, are counted."""
    images, masks, losses = open_store(images_uri), open_store(masks_uri), Losses()
    image_keys = {_stem(info.key): info.key for info in images.list() if kind_of(info.key) == "image"}
    mask_keys = {_stem(info.key): info.key for info in masks.list() if info.key.lower().endswith(".png")}
    losses.leave_out("image without a mask", len(image_keys.keys() - mask_keys.keys()))
    losses.leave_out("mask without an image", len(mask_keys.keys() - image_keys.keys()))
    paired = sorted(image_keys.keys() & mask_keys.keys())
    return [item(images.uri_of(image_keys[stem]), masks, mask_keys[stem]) for stem in paired], losses


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _item(uri: str, masks: Store, key: str, known: Mapping[int, int | None], void_id: int) -> LabelledItem:
    ids = _ids(masks, key)
    found = rle.encode_label_map(ids)
    void = found.pop(void_id, None) if void_id not in known else None
    strangers = sorted(found.keys() - known.keys())
    if strangers:
        raise DatasetError(
            f"{masks.uri_of(key)} holds the ids {strangers[:5]}, which have no class",
            hint=f"Name them, or paint what nobody labelled with {void_id}.",
        )
    labelled = [(label, mask) for pixel, mask in found.items() if (label := known[pixel]) is not None]
    objects = tuple(LabelledObject(label=label, rle=mask, origin_id=key) for label, mask in labelled)
    return LabelledItem(uri, (ids.shape[0], ids.shape[1]), objects, void_rle=void)


def _ids(masks: Store, key: str) -> np.ndarray:
    """(H, W) integers as stored in the picture."""
    try:
        with Image.open(io.BytesIO(masks.get(key)), formats=("PNG",)) as picture:
            if picture.mode not in _MODES:
                raise DatasetError(f"{masks.uri_of(key)} is a picture of colours ({picture.mode}), not of class ids")
            return np.asarray(picture).astype(np.int64)
    except (OSError, StoreError) as error:
        raise DatasetError(f"{masks.uri_of(key)} is no readable mask: {error}") from error
