"""Scenes as files: a folder of images with COCO JSON, and a video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from modelkit.digitscape.coco import coco_annotations, coco_categories, coco_image
from modelkit.digitscape.composer import Digitscape
from modelkit.digitscape.errors import DigitscapeError
from modelkit.digitscape.glyphs import LANDMARK_NAMES
from modelkit.digitscape.scene import Scene
from modelkit.digitscape.sources import FIRST_STUFF_ID, STUFF_NAMES
from modelkit.metrics.panoptic import DIVISOR

ANNOTATIONS_NAME = "annotations.json"
_JPEG_QUALITY = 92


def write_dataset(
    folder: Path,
    source: Digitscape,
    num_scenes: int,
    *,
    first: int = 0,
    image_format: Literal["jpg", "png"] = "jpg",
) -> Path:
    """Write scenes as ``folder/images/<index>.jpg`` and their truth as ``folder/annotations.json``.

    The JSON opens in pycocotools: instances with compressed RLE, track id, visibility and keypoints (COCO's x, y, v
    triples; names in the categories). Stuff maps lie beside as ``folder/stuff/<index>.png``, pixel = stuff id,
    named under "stuff" in the JSON.

    Args:
        folder: created when missing; existing files of the same names are replaced.
        source: what to compose.
        num_scenes: how many.
        first: index of the first scene.
        image_format: JPEG (quality 92) or PNG (lossless).

    Returns:
        Path of the JSON.
    """
    for name in ("images", "stuff"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    truth = _empty_truth(source)
    for index in range(first, first + num_scenes):
        scene = source.scene(index)
        file_name = f"images/{index:06d}.{image_format}"
        _save_image(folder / file_name, scene.image_rgb)
        Image.fromarray(scene.stuff_map).save(folder / f"stuff/{index:06d}.png")
        truth["images"].append(coco_image(index + 1, scene, file_name))
        annotations = coco_annotations(index + 1, scene, len(truth["annotations"]) + 1)
        truth["annotations"] += [_extended(a, scene, k) for k, a in enumerate(annotations)]
    path = folder / ANNOTATIONS_NAME
    path.write_text(json.dumps(truth), encoding="utf-8")
    return path


def write_panoptic(
    folder: Path,
    source: Digitscape,
    num_scenes: int,
    *,
    first: int = 0,
    image_format: Literal["jpg", "png"] = "jpg",
) -> Path:
    """Write scenes and their segments in COCO's panoptic form: ``folder/panoptic.json`` and ``folder/panoptic/*.png``.

    Digits are things with ids 1 .. 10, backgrounds stuff from ``FIRST_STUFF_ID`` on; no pixel is unlabelled.

    Args:
        folder, source, num_scenes, first, image_format: as for :func:`write_dataset`.

    Returns:
        Path of the JSON.
    """
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    things = [{**category, "isthing": 1} for category in coco_categories()]
    stuff = [
        {"id": FIRST_STUFF_ID + k, "name": name, "supercategory": "background", "isthing": 0}
        for k, name in enumerate(STUFF_NAMES)
    ]
    truth: dict[str, Any] = {"categories": things + stuff, "images": [], "annotations": []}
    for index in range(first, first + num_scenes):
        scene = source.scene(index)
        file_name, segments_name = f"images/{index:06d}.{image_format}", f"{index:06d}.png"
        _save_image(folder / file_name, scene.image_rgb)
        ids, segments = _segments(scene)
        colours = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=2).astype(np.uint8)
        Image.fromarray(colours).save(folder / "panoptic" / segments_name)
        truth["images"].append(coco_image(index + 1, scene, file_name))
        truth["annotations"].append({"image_id": index + 1, "file_name": segments_name, "segments_info": segments})
    path = folder / "panoptic.json"
    path.write_text(json.dumps(truth), encoding="utf-8")
    return path


def _segments(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(H, W) segment ids from 1 on, and COCO's entry of each."""
    values, inverse = np.unique(scene.panoptic_array(DIVISOR), return_inverse=True)
    ids = inverse.reshape(scene.size_hw).astype(np.int64) + 1
    segments = []
    for number, value in enumerate(values.tolist(), start=1):
        rows, columns = np.nonzero(ids == number)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        segments.append({"id": number, "category_id": value // DIVISOR, "area": len(rows), "bbox": box, "iscrowd": 0})
    return ids, segments


def _empty_truth(source: Digitscape) -> dict[str, Any]:
    categories = [{**category, "keypoints": list(LANDMARK_NAMES), "skeleton": []} for category in coco_categories()]
    return {
        "info": {"description": f"digitscape {source.split}, seed {source.seed}", "version": "1"},
        "licenses": [],
        "categories": categories,
        "stuff": [{"id": FIRST_STUFF_ID + k, "name": name} for k, name in enumerate(STUFF_NAMES)],
        "images": [],
        "annotations": [],
    }


def _extended(annotation: dict[str, Any], scene: Scene, k: int) -> dict[str, Any]:
    return {
        **annotation,
        "keypoints": [round(float(value), 2) for value in scene.landmarks[k].ravel()],
        "num_keypoints": len(LANDMARK_NAMES),
        "track_id": int(scene.track_ids[k]),
        "visibility": round(float(scene.visibility[k]), 4),
    }


def _save_image(path: Path, image_rgb: np.ndarray) -> None:
    image = Image.fromarray(image_rgb)
    if path.suffix == ".jpg":
        image.save(path, quality=_JPEG_QUALITY, subsampling=0)
    else:
        image.save(path)


def write_video(path: Path, clip: Sequence[Scene], frames_per_s: int = 12) -> Path:
    """Encode a clip as H.264 (yuv420p), which every player reads.

    Args:
        path: ends in .mp4, .mkv or .avi; its folder must exist.
        clip: at least one scene; all of one size with even sides.
        frames_per_s: constant rate.

    Raises:
        DigitscapeError: for an empty clip, odd or differing sizes, or when PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise DigitscapeError("writing a video needs the package av (PyAV)") from error
    if not clip:
        raise DigitscapeError("a video needs at least one frame")
    height, width = clip[0].size_hw
    if height % 2 or width % 2 or any(scene.size_hw != (height, width) for scene in clip):
        raise DigitscapeError(f"a video needs frames of one size with even sides, got {(height, width)} first")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_s))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16", "preset": "veryfast", "threads": "1"}
        for scene in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.image_rgb, format="rgb24")))
        container.mux(stream.encode())
    return path
