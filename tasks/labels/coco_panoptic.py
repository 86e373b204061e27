"""COCO's panoptic JSON: a PNG of segment ids for each image, and what each segment is.

Pixels that no segment names are void: COCO has it so, and nobody said that they are background.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from infra.errors import DatasetError, StoreError
from infra.store import Store, open_store
from modelkit import rle
from tasks.labels.class_map import ClassMap, key_of
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.losses import Losses

Json = dict[str, Any]


def read_panoptic(
    images: Mapping[str, LabelledItem],
    by_image: Mapping[str, Sequence[Json]],
    known: ClassMap,
    losses: Losses,
    masks_root: str,
) -> LabelSet:
    """The label set. Images without an annotation of theirs are not labelled: the format has one for every image.

    Args:
        images: image id -> item without objects.
        by_image: image id -> annotations.
        known: the file's classes.
        losses: to count in.
        masks_root: folder of the PNGs.

    Raises:
        DatasetError: a PNG that cannot be read or is not of its image's size.
    """
    store = open_store(masks_root)
    segments = (each for annotations in by_image.values() for each in annotations[0].get("segments_info", ()))
    reader = _Reader(known, losses, track_numbers(segments))
    items = []
    for image_id, item in images.items():
        if image_id not in by_image:
            losses.leave_out("panoptic image without an annotation")
            continue
        annotation, *more = by_image[image_id]
        losses.leave_out("second panoptic annotation of an image", len(more))
        ids = segment_ids(_png(store, str(annotation["file_name"]).replace("\\", "/")))
        if ids.shape != item.size_hw:
            raise DatasetError(
                f"{annotation['file_name']} is {ids.shape}, its image {item.image_id} {item.size_hw} (rows, columns)"
            )
        masks = rle.encode_label_map(ids)
        objects = tuple(reader.objects(annotation["segments_info"], masks, item.image_id))
        void = np.isin(ids, list(masks)) if masks else None  # what no segment claimed
        items.append(replace(item, objects=objects, void_rle=rle.encode(void) if void is not None else None))
    return make_label_set(items, known.classes, origin_format="coco_panoptic", losses=losses, file_ids=known.file_ids)


def track_numbers(annotations: Iterable[Json]) -> dict[str, int]:
    """``track_id`` as a file has it -> a number: its own where all are whole numbers, else 1, 2, ... in order."""
    found = {key_of(each["track_id"]): None for each in annotations if each.get("track_id") is not None}
    if all(key.lstrip("-").isdecimal() for key in found):
        return {key: int(key) for key in found}
    return {key: number for number, key in enumerate(found, start=1)}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Segments -> objects; what cannot be read is counted."""

    known: ClassMap
    losses: Losses
    tracks: Mapping[str, int]

    def objects(self, segments: Sequence[Json], masks: dict[int, bytes], image: str) -> Iterator[LabelledObject]:
        """The segments of an image; their masks are taken out of ``masks``, so that void is left.

        Pixels of a segment that cannot be read stay void; those of a class that was not asked for belong to nothing.
        """
        for each in segments:
            where = f"segment {each.get('id')} of {image}"
            key, track = key_of(each.get("category_id")), each.get("track_id")
            if key not in self.known.ids:
                self.losses.drop("annotation of a class that the file does not name", f"class {key}, {where}")
            elif (mask := masks.pop(int(each["id"]), None)) is None:
                self.losses.drop("panoptic segment without pixels", where)
            elif (label := self.known.ids[key]) is None:
                self.losses.leave_out("annotation of a class that was not asked for")
            else:
                yield LabelledObject(
                    label,
                    mask,
                    is_crowd=bool(int(each.get("iscrowd") or 0)),
                    track_id=None if track is None else self.tracks[key_of(track)],
                    origin_id=str(each["id"]),
                )


def segment_ids(rgb_hwc: np.ndarray) -> np.ndarray:
    """(H, W) int64 segment ids of a COCO panoptic picture: R + 256 G + 65536 B."""
    red, green, blue = (rgb_hwc[:, :, channel].astype(np.int64) for channel in range(3))
    return red + 256 * green + 65536 * blue


def _png(store: Store, name: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(store.get(name)), formats=("PNG",)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, StoreError) as error:
        raise DatasetError(f"{store.uri_of(name)} is no readable panoptic picture: {error}") from error
