"""Scenes in COCO's terms; category ids are the labels 1..10."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from modelkit.digitscape.scene import Scene
from modelkit.digitscape.sources import CLASS_NAMES


def coco_categories() -> list[dict[str, Any]]:
    """COCO's list of categories: ids 1..10, names "0".."9"."""
    return [{"id": k + 1, "name": name, "supercategory": "digit"} for k, name in enumerate(CLASS_NAMES)]


def coco_image(image_id: int, scene: Scene, file_name: str) -> dict[str, Any]:
    """COCO's entry of one image."""
    return {"id": image_id, "file_name": file_name, "height": scene.size_hw[0], "width": scene.size_hw[1]}


def coco_annotations(image_id: int, scene: Scene, first_id: int) -> list[dict[str, Any]]:
    """COCO's annotations of one scene, masks as compressed RLE with text counts (so that JSON can hold them)."""
    annotations = []
    for k, mask in enumerate(scene.masks):
        rle = coco_mask.encode(np.asfortranarray(mask))
        x0, y0, x1, y1 = (float(value) for value in scene.boxes_xyxy[k])
        annotations.append(
            {
                "id": first_id + k,
                "image_id": image_id,
                "category_id": int(scene.labels[k]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(scene.size_hw), "counts": rle["counts"].decode("ascii")},
            }
        )
    return annotations
