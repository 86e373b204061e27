"""Scenes written as files come back as they were: COCO JSON in pycocotools, frames through PyAV."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from modelkit.digitscape import (
    CLASS_NAMES,
    FIRST_STUFF_ID,
    LANDMARK_NAMES,
    STUFF_NAMES,
    Digitscape,
    DigitscapeError,
    write_dataset,
    write_panoptic,
    write_video,
)


@pytest.fixture(scope="module")
def source() -> Digitscape:
    return Digitscape("test", (96, 128), seed=3)


def test_coco_json_opens_in_pycocotools_and_holds_the_exact_masks(
    source: Digitscape, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path, source, 6, first=2, image_format="png")
    coco = COCO(str(path))
    assert len(coco.getImgIds()) == 6
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
    for image in coco.loadImgs(coco.getImgIds()):
        scene = source.scene(image["id"] - 1)
        with Image.open(tmp_path / image["file_name"]) as opened:
            assert np.array_equal(np.asarray(opened), scene.image_rgb)
        with Image.open(tmp_path / "stuff" / f"{image['id'] - 1:06d}.png") as opened:
            assert np.array_equal(np.asarray(opened), scene.stuff_map)
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(scene)
        for k, annotation in enumerate(annotations):
            mask = coco.annToMask(annotation).astype(bool)
            assert np.array_equal(mask, scene.masks[k])
            assert annotation["area"] == mask.sum()
            assert annotation["category_id"] == scene.labels[k]
            x, y, w, h = annotation["bbox"]
            assert np.allclose([x, y, x + w, y + h], scene.boxes_xyxy[k])
            assert np.allclose(np.reshape(annotation["keypoints"], (-1, 3)), scene.landmarks[k], atol=0.006)
    assert coco.dataset["categories"][0]["keypoints"] == list(LANDMARK_NAMES)
    capsys.readouterr()


def test_panoptic_json_gives_every_pixel_its_segment(source: Digitscape, tmp_path: Path) -> None:
    content = json.loads(write_panoptic(tmp_path, source, 3, first=1, image_format="png").read_text())
    assert [each["name"] for each in content["categories"]] == [*CLASS_NAMES, *STUFF_NAMES]
    assert all(each["isthing"] == (each["id"] < FIRST_STUFF_ID) for each in content["categories"])
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        scene = source.scene(image["id"] - 1)
        with Image.open(tmp_path / image["file_name"]) as opened:
            assert np.array_equal(np.asarray(opened), scene.image_rgb)
        with Image.open(tmp_path / "panoptic" / annotation["file_name"]) as opened:
            colours = np.asarray(opened).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1]
        found = np.zeros(scene.size_hw, int)
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            found[mask] = segment["category_id"]
            rows, columns = np.nonzero(mask)
            assert segment["area"] == mask.sum()
            assert segment["bbox"][:2] == [columns.min(), rows.min()]
        assert np.array_equal(found, scene.semantic_map), "no pixel is unlabelled"
        things = [each for each in annotation["segments_info"] if each["category_id"] < FIRST_STUFF_ID]
        assert len(things) == len(np.unique(scene.instance_map)) - 1


def test_writing_twice_gives_the_same_bytes(source: Digitscape, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, source, 3)
    first = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(first) == 7
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in first)


def test_jpegs_stay_close_to_the_scene(source: Digitscape, tmp_path: Path) -> None:
    path = write_dataset(tmp_path, source, 2)
    for image in json.loads(path.read_text())["images"]:
        with Image.open(tmp_path / image["file_name"]) as opened:
            gap = np.asarray(opened).astype(int) - source.scene(image["id"] - 1).image_rgb
        assert np.abs(gap).mean() < 6


def test_video_holds_every_frame_in_order(source: Digitscape, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    clip = source.clip(0, 9)
    path = write_video(tmp_path / "clip.mp4", clip, frames_per_s=12)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 9
    assert [round(float(frame.time) * 12) for frame in frames] == list(range(9))
    for frame, scene in zip(frames, clip, strict=True):
        decoded = frame.to_ndarray(format="rgb24").astype(int)
        assert decoded.shape == scene.image_rgb.shape
        assert np.abs(decoded - scene.image_rgb).mean() < 10


def test_a_video_needs_frames_of_one_even_size(source: Digitscape, tmp_path: Path) -> None:
    with pytest.raises(DigitscapeError, match="at least one frame"):
        write_video(tmp_path / "none.mp4", [])
    with pytest.raises(DigitscapeError, match="even sides"):
        write_video(tmp_path / "odd.mp4", Digitscape("test", (97, 128)).clip(0, 2))
