"""Small models, pictures and targets for modelkit's tests; all seeded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL_TRANSFORM = {"min_size": 64, "max_size": 96}


def small_mask_rcnn(**changes: Any) -> dict[str, Any]:
    """Options of a small mask_rcnn for images of about 64 pixels; group norm, so batches don't matter."""
    config: dict[str, Any] = {
        "num_classes": 4,
        "backbone": {"name": "slim_resnet", "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "norm": "group"},
        "neck": {"name": "fpn", "channels": 32},
        "rpn": {
            "name": "rpn",
            "anchor_sizes": [[8], [16], [32], [48], [64]],
            "pre_nms_test": 100,
            "post_nms_test": 60,
            "pre_nms_train": 100,
            "post_nms_train": 60,
        },
        "heads": {
            "box": {"name": "box_head", "fc_channels": [64, 64], "canonical_scale": 56, "detections_per_image": 20},
            "mask": {"name": "mask_head", "channels": [32], "predictor_channels": 32, "canonical_scale": 56},
        },
        "transform": SMALL_TRANSFORM,
        "sampler": {"per_image": 32},
    }
    return {**config, **changes}


def small_keypoint_rcnn(**changes: Any) -> dict[str, Any]:
    """Options of a small keypoint_rcnn of three points: ``small_mask_rcnn`` with another second head."""
    config = small_mask_rcnn()
    head = {"name": "keypoint_head", "num_keypoints": 3, "resolution": 7, "channels": [32], "canonical_scale": 56}
    return {**config, "heads": {"box": config["heads"]["box"], "keypoint": head}, **changes}


def small_densepose_rcnn(**changes: Any) -> dict[str, Any]:
    """Options of a small densepose_rcnn of three parts: ``small_mask_rcnn`` with another second head."""
    config = small_mask_rcnn()
    head = {
        "name": "surface_head",
        "num_parts": 3,
        "decoder": {"name": "semantic_fpn", "channels": 32, "norm": None},
        "resolution": 7,
        "channels": [32],
    }
    return {**config, "heads": {"box": config["heads"]["box"], "surface": head}, **changes}


def small_panoptic(**changes: Any) -> dict[str, Any]:
    """Options of a small panoptic model: ``small_mask_rcnn`` with three things and two kinds of stuff."""
    config = small_mask_rcnn()
    del config["num_classes"]
    return {**config, "num_things": 3, "num_stuff": 2, "fusion": {"stuff_area": 16}, **changes}


def small_vpsnet(**changes: Any) -> dict[str, Any]:
    """Options of a small vpsnet that sees no motion; every region counts, so that untrained weights have some."""
    config = small_panoptic()
    config["heads"] = {
        **config["heads"],
        "track": {"name": "track_head", "channels": 32, "canonical_scale": 56},
    }
    own = {
        "semantic": {"channels": [32, 32]},
        "fusion": {"stuff_area": 16, "score_threshold": 0.0},
        "flow": {"name": "zero"},
        "temporal": {"refine_channels": [16]},
    }
    return {**config, **own, **changes}


def small_yolact(**changes: Any) -> dict[str, Any]:
    """Options of a small yolact (or yolact_edge) for 64 x 64 pixels; group norm, so batches don't matter."""
    config: dict[str, Any] = {
        "num_classes": 4,
        "backbone": {
            "name": "slim_resnet",
            "widths": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "norm": "group",
            "out": ["c3", "c4", "c5"],
        },
        "neck": {"channels": 16},
        "head": {"anchor_scales": [[12], [20], [32], [48], [60]], "num_prototypes": 8},
        "transform": {"min_size": 64, "max_size": 64},
    }
    return {**config, **changes}


def small_retinaface(num_vertices: int = 3, **changes: Any) -> dict[str, Any]:
    """Options of a small retinaface for images of about 64 pixels; group norm, so batches don't matter."""
    config: dict[str, Any] = {
        "num_classes": 4,
        "backbone": {
            "name": "slim_resnet",
            "widths": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "norm": "group",
            "out": ["c3", "c4", "c5"],
        },
        "neck": {"channels": 16, "norm": "group"},
        "head": {
            "anchor_scales": [[8, 12], [20, 32], [48, 64]],
            "num_vertices": num_vertices,
            "detections_per_image": 20,
        },
        "transform": SMALL_TRANSFORM,
    }
    return {**config, **changes}


def small_landmarker(**changes: Any) -> dict[str, Any]:
    """Options of a small heatmap_landmarker for crops of 64 x 48 pixels; group norm, so batches don't matter."""
    config: dict[str, Any] = {
        "num_keypoints": 3,
        "backbone": {"name": "slim_resnet", "widths": [8, 16, 24], "depths": [1, 1, 1], "norm": "group"},
        "neck": {"channels": [16, 16], "norm": "group"},
        "transform": {"fixed_hw": [64, 48]},
        "flip_pairs": [[0, 1]],
    }
    return {**config, **changes}


def small_centernet(**changes: Any) -> dict[str, Any]:
    """Options of a small centernet for images of about 64 pixels; group norm, so batches don't matter."""
    config: dict[str, Any] = {
        "num_classes": 4,
        "backbone": {
            "name": "slim_resnet",
            "widths": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "norm": "group",
            "out": ["c5"],
        },
        "neck": {"channels": [16, 16, 16], "norm": "group"},
        "head": {"channels": 16, "detections_per_image": 20},
        "transform": SMALL_TRANSFORM,
    }
    return {**config, **changes}


def small_cornernet(**changes: Any) -> dict[str, Any]:
    """Options of a small cornernet of two shallow hourglasses; group norm, so batches don't matter."""
    config: dict[str, Any] = {
        "num_classes": 4,
        "backbone": {
            "stacks": 2,
            "widths": [16, 16, 24],
            "depths": [1, 1, 1],
            "stem_width": 8,
            "channels": 16,
            "norm": "group",
        },
        "transform": {**SMALL_TRANSFORM, "size_divisible": 32},
    }
    head = {"norm": "group", "pooled_channels": 16, "detections_per_image": 20, **changes.pop("head", {})}
    return {**config, "head": head, **changes}


def points_in(boxes: Tensor, count: int) -> Tensor:
    """Keypoints (n, count, 3), all visible, spread along a diagonal of each box (n, 4)."""
    share = (torch.arange(count) + 0.5)[:, None] / max(count, 1)
    places = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
    return torch.cat([places, torch.full((len(boxes), count, 1), 2.0)], -1)


def surface_points_in(boxes: Tensor, part: int) -> Tensor:
    """Surface points (n, 9, 5) of one part on a lattice in each box (n, 4); u and v are shares of the box's sides."""
    share = (torch.arange(3) + 0.5) / 3
    uv = torch.stack(torch.meshgrid(share, share, indexing="xy"), -1).reshape(1, 9, 2).expand(len(boxes), -1, -1)
    places = boxes[:, None, :2] + uv * (boxes[:, None, 2:] - boxes[:, None, :2])
    return torch.cat([places, torch.full((len(boxes), 9, 1), float(part)), uv], -1)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: smooth colours with some rectangles, unlike noise stable under resizing."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(rows / 17 + k + seed) + np.cos(columns / (11 + k)) for k in range(3)]
    image = (np.stack(waves, axis=-1) + 2) * 60
    for _ in range(3):
        top, left = rng.integers(0, max(1, height // 2)), rng.integers(0, max(1, width // 2))
        image[top : top + height // 3 + 1, left : left + width // 4 + 1] = rng.integers(0, 256, 3)
    return image.astype(np.uint8)


def as_tensor(image: np.ndarray) -> Tensor:
    """(3, H, W) float in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def rectangles(height: int, width: int, boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    """A detection target whose masks fill their boxes; also a semantic map of the same."""
    masks = torch.zeros((len(boxes), height, width), dtype=torch.uint8)
    semantic = torch.zeros((height, width), dtype=torch.int64)
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes, labels, strict=True):
        area = (slice(round(y1), round(y2)), slice(round(x1), round(x2)))
        mask[area] = 1
        semantic[area] = label
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "semantic": semantic,
    }
