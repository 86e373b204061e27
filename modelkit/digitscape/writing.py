"""Scenes as files: a folder of images or clips with COCO JSON (instances, panoptic, landmarks), and a video."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
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

ANNOTATIONS_NAME, PANOPTIC_NAME, LANDMARKS_NAME = "annotations.json", "panoptic.json", "landmarks.json"
SURFACES_NAME = "surfaces.json"
_JPEG_QUALITY = 92

ImageFormat = Literal["jpg", "png"]


def write_dataset(
    folder: Path, source: Digitscape, num_scenes: int, *, first: int = 0, image_format: ImageFormat = "jpg"
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
    (folder / "stuff").mkdir(parents=True, exist_ok=True)
    truth = _Instances(folder, source)
    for index in range(first, first + num_scenes):
        scene = source.scene(index)
        Image.fromarray(scene.stuff_map).save(folder / f"stuff/{index:06d}.png")
        truth.add(scene, index + 1, _write_image(folder, scene, index, image_format))
    return truth.write()


def write_panoptic(
    folder: Path, source: Digitscape, num_scenes: int, *, first: int = 0, image_format: ImageFormat = "jpg"
) -> Path:
    """Write scenes and their segments in COCO's panoptic form: ``folder/panoptic.json`` and ``folder/panoptic/*.png``.

    Digits are things with ids 1 .. 10, backgrounds stuff from ``FIRST_STUFF_ID`` on; no pixel is unlabelled.

    Args:
        folder, source, num_scenes, first, image_format: as for :func:`write_dataset`.

    Returns:
        Path of the JSON.
    """
    truth = _Panoptic(folder, source)
    for index in range(first, first + num_scenes):
        scene = source.scene(index)
        truth.add(scene, index + 1, _write_image(folder, scene, index, image_format))
    return truth.write()


def write_label_set(
    folder: Path,
    source: Digitscape,
    num_scenes: int,
    *,
    first: int = 0,
    num_frames: int = 1,
    image_format: ImageFormat = "png",
    surface_points: int = 0,
    on_scene: Callable[[int], None] = lambda written: None,
) -> list[Path]:
    """Write scenes once with three or four truths, a file each, so that each says what it is for.

    These are digits with masks, as :func:`write_dataset` has them without stuff and keypoints; what
    :func:`write_panoptic` writes; digits with keypoints, without masks; and, where they are asked for, digits with
    masks and points of their surfaces in DensePose's lists (``dp_x``, ``dp_y``, ``dp_I``, ``dp_U``, ``dp_V``).

    Args:
        folder, source, num_scenes, first, image_format: as for :func:`write_dataset`.
        num_frames: more than one writes clips instead, as videos ``folder/clips/<index>.mp4``. An image of the JSONs is
            then one frame: ``file_name`` is the video, ``frame`` counts from 0, and a digit keeps its ``track_id``.
        surface_points: of each digit, drawn at random from its pixels; 0: no such file. The source must be dense.
        on_scene: called after each scene or clip with how many are written.

    Returns:
        Paths of the JSONs: instances, panoptic, landmarks, and surfaces where these are asked for.
    """
    truths: list[_Instances | _Panoptic] = [
        _Instances(folder, source, keypoints=False),
        _Panoptic(folder, source),
        _Instances(folder, source, LANDMARKS_NAME, masks=False),
    ]
    if surface_points:
        truths.append(_Instances(folder, source, SURFACES_NAME, keypoints=False, surface_points=surface_points))
    for index in range(first, first + num_scenes):
        if num_frames == 1:
            scenes = [source.scene(index)]
            names = [_write_image(folder, scenes[0], index, image_format)]
        else:
            scenes = source.clip(index, num_frames)
            (folder / "clips").mkdir(parents=True, exist_ok=True)
            names = [str(write_video(folder / f"clips/{index:06d}.mp4", scenes).relative_to(folder))] * num_frames
        for frame, (scene, name) in enumerate(zip(scenes, names, strict=True)):
            where = {} if num_frames == 1 else {"frame": frame}
            for truth in truths:
                truth.add(scene, index * num_frames + frame + 1, name, **where)
        on_scene(index - first + 1)
    return [truth.write() for truth in truths]


class _Instances:
    """The truth of digits, scene by scene: with masks, with keypoints, with points of surfaces."""

    def __init__(
        self,
        folder: Path,
        source: Digitscape,
        name: str = ANNOTATIONS_NAME,
        *,
        masks: bool = True,
        keypoints: bool = True,
        surface_points: int = 0,
    ) -> None:
        self._path, self._surface_points = folder / name, surface_points
        self._left_out = [] if masks else ["segmentation"]
        self._left_out += [] if keypoints else ["keypoints", "num_keypoints"]
        names: dict[str, Any] = {"keypoints": list(LANDMARK_NAMES), "skeleton": []} if keypoints else {}
        self._content: dict[str, Any] = {
            "info": {"description": f"digitscape {source.split}, seed {source.seed}", "version": "1"},
            "licenses": [],
            "categories": [{**category, **names} for category in coco_categories()],
            "stuff": [{"id": FIRST_STUFF_ID + k, "name": name} for k, name in enumerate(STUFF_NAMES)],
            "images": [],
            "annotations": [],
        }

    def add(self, scene: Scene, image_id: int, file_name: str, **facts: int) -> None:
        known = self._content["annotations"]
        self._content["images"].append({**coco_image(image_id, scene, file_name), **facts})
        annotations = coco_annotations(image_id, scene, len(known) + 1)
        extended = [_extended(each, scene, k) for k, each in enumerate(annotations)]
        if self._surface_points:
            surfaces = scene.surface_points(self._surface_points, seed=image_id)
            extended = [each | _densepose(each, points) for each, points in zip(extended, surfaces, strict=True)]
        known += [{key: each[key] for key in each if key not in self._left_out} for each in extended]

    def write(self) -> Path:
        return _write_json(self._path, self._content)


class _Panoptic:
    """The segments of digits and backgrounds, scene by scene."""

    def __init__(self, folder: Path, source: Digitscape) -> None:
        self._path, self._pictures = folder / PANOPTIC_NAME, folder / "panoptic"
        self._pictures.mkdir(parents=True, exist_ok=True)
        things = [{**category, "isthing": 1} for category in coco_categories()]
        stuff = [
            {"id": FIRST_STUFF_ID + k, "name": name, "supercategory": "background", "isthing": 0}
            for k, name in enumerate(STUFF_NAMES)
        ]
        self._content: dict[str, Any] = {"categories": things + stuff, "images": [], "annotations": []}

    def add(self, scene: Scene, image_id: int, file_name: str, **facts: int) -> None:
        ids, segments = _segments(scene)
        colours = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=2).astype(np.uint8)
        name = f"{image_id - 1:06d}.png"
        Image.fromarray(colours).save(self._pictures / name)
        self._content["images"].append({**coco_image(image_id, scene, file_name), **facts})
        self._content["annotations"].append({"image_id": image_id, "file_name": name, "segments_info": segments})

    def write(self) -> Path:
        return _write_json(self._path, self._content)


def _segments(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(H, W) segment ids from 1 on, and COCO's entry of each."""
    values, inverse = np.unique(scene.panoptic_array(DIVISOR), return_inverse=True)
    ids = inverse.reshape(scene.size_hw).astype(np.int64) + 1
    segments = []
    for number, value in enumerate(values.tolist(), start=1):
        rows, columns = np.nonzero(ids == number)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        segment = {"id": number, "category_id": value // DIVISOR, "area": len(rows), "bbox": box, "iscrowd": 0}
        thing = {"track_id": value % DIVISOR - 1} if value % DIVISOR else {}
        segments.append(segment | thing)
    return ids, segments


def _extended(annotation: dict[str, Any], scene: Scene, k: int) -> dict[str, Any]:
    return {
        **annotation,
        "keypoints": [round(float(value), 2) for value in scene.landmarks[k].ravel()],
        "num_keypoints": len(LANDMARK_NAMES),
        "track_id": int(scene.track_ids[k]),
        "visibility": round(float(scene.visibility[k]), 4),
    }


def _densepose(annotation: dict[str, Any], points: np.ndarray) -> dict[str, list[float]]:
    """DensePose's lists of one object; places are stated in 256ths of the sides of its box.

    Args:
        annotation: with ``bbox``.
        points: (P, 5) as ``Scene.surface_points`` gives them.
    """
    x0, y0, width, height = annotation["bbox"]
    x, y, part, u, v = points[points[:, 2] >= 0].astype(np.float64).T
    columns = {"dp_x": 256 * (x - x0) / width, "dp_y": 256 * (y - y0) / height, "dp_I": part, "dp_U": u, "dp_V": v}
    return {name: np.round(values, 4).tolist() for name, values in columns.items()}


def _write_image(folder: Path, scene: Scene, index: int, image_format: ImageFormat) -> str:
    """Write the picture of a scene; its name relative to the folder."""
    name = f"images/{index:06d}.{image_format}"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": _JPEG_QUALITY, "subsampling": 0} if image_format == "jpg" else {}
    Image.fromarray(scene.image_rgb).save(folder / name, **options)
    return name


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


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
