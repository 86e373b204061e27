"""transformers' own processors, models and ``post_process_*`` beside what ``load("hf:...")`` gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modelkit import Predictor
from tests.modelkit.parity.differences import Differences, Objects, of_maps, of_objects

THRESHOLD = 0.5  # transformers' own


def compare(location: str, theirs: Any, predictor: Predictor, image: np.ndarray) -> Differences:
    """Our results for a picture (H, W, 3) uint8 beside theirs from the same folder; below ``THRESHOLD`` none counts."""
    import transformers  # an extra

    processor = transformers.AutoImageProcessor.from_pretrained(location)
    with torch.inference_mode():
        outputs = theirs(**processor(image, return_tensors="pt"))
    predictor.min_score = THRESHOLD if predictor.weights.kind == "instance" else 0.0
    return compare_reading(processor, outputs, predictor, predictor([image])[0], image.shape[:2])


def compare_reading(
    processor: Any, outputs: Any, predictor: Predictor, found: Any, size_hw: tuple[int, ...]
) -> Differences:
    """What ``post_process_*`` makes of a model's outputs, beside our results."""
    kind, things = predictor.weights.kind, {each.id for each in predictor.weights.classes if each.is_thing}
    read = getattr(processor, f"post_process_{kind}_segmentation")
    if kind == "semantic":
        return of_maps(found, read(outputs, target_sizes=[size_hw])[0].numpy())
    overlapping = kind == "instance" and hasattr(outputs, "class_queries_logits")
    options: dict[str, Any] = {"return_binary_maps": True} if overlapping else {}
    if kind == "panoptic":
        options = {"label_ids_to_fuse": set()}  # with some, the ids of later segments may be those of others
    given = read(outputs, threshold=THRESHOLD, target_sizes=[size_hw], **options)[0]
    segments, maps = given["segments_info"], given["segmentation"].numpy()
    masks = [maps[k] > 0 if overlapping else maps == each["id"] for k, each in enumerate(segments)]
    entries = [(each["label_id"], each["score"], mask) for each, mask in zip(segments, masks, strict=True)]
    if kind == "instance":
        entries = [entry for entry in entries if entry[0] in things]
    else:
        entries = _fused(entries, things)
    return of_objects(
        found,
        Objects(
            np.array([label for label, _, _ in entries]),
            np.array([score for _, score, _ in entries]),
            masks=np.array([mask for _, _, mask in entries]).reshape(-1, *size_hw),
        ),
    )


def _fused(entries: list[tuple[int, float, np.ndarray]], things: set[int]) -> list[tuple[int, float, np.ndarray]]:
    """Stuff of one class as one segment with the best of its scores."""
    fused: dict[Any, tuple[int, float, np.ndarray]] = {}
    for k, (label, score, mask) in enumerate(entries):
        key = (label, k if label in things else None)
        _, best, whole = fused.get(key, (label, 0.0, np.zeros_like(mask)))
        fused[key] = label, max(best, score), whole | mask
    return list(fused.values())
