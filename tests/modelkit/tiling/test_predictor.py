"""Tiles through the models: the shipped detector, maps of pixels, panoptic segments, and limits on detections."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import modelkit
from modelkit import ConfigError, Instances, Predictor, create_model, load, rle
from modelkit.digitscape import CLASS_NAMES, Digitscape
from modelkit.metrics.precision import coco_results, precision_of
from modelkit.tiling import TiledPredictor, Tiling
from modelkit.weights import random_weights
from tests.modelkit.builders import picture, small_mask_rcnn, small_panoptic, small_vpsnet, small_yolact

SHIPPED = "digitscape_mask_rcnn"
SIDE, GRID = 160, 3
Truth = tuple[list[bytes], list[int]]


def composed(number: int) -> tuple[np.ndarray, Truth]:
    """Scenes side by side, (480, 480), and the visible parts of their digits with class ids."""
    source, size_hw = Digitscape("test", (SIDE, SIDE), seed=7, dense=False), (GRID * SIDE, GRID * SIDE)
    image, masks, labels = np.zeros((*size_hw, 3), np.uint8), [], []
    for place in range(GRID**2):
        scene = source.scene(number * GRID**2 + place)
        top, left = place // GRID * SIDE, place % GRID * SIDE
        image[top : top + SIDE, left : left + SIDE] = scene.image_rgb
        seen = [(mask, label) for mask, label in zip(scene.masks, scene.labels, strict=True) if mask.any()]
        masks += rle.moved([rle.encode(mask) for mask, _ in seen], (SIDE, SIDE), (top, left), size_hw)
        labels += [int(label) for _, label in seen]
    return image, (masks, labels)


def mask_ap(found: Instances, truth: Truth) -> float:
    size = list(found.size_hw)
    shared = {"image_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0}
    annotations = [
        {
            **shared,
            "id": k,
            "category_id": label,
            "area": rle.area(mask),
            "segmentation": {"size": size, "counts": mask},
        }
        for k, (mask, label) in enumerate(zip(*truth, strict=True), start=1)
    ]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASS_NAMES)]
    images = [{"id": 1, "height": size[0], "width": size[1]}]
    known = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return precision_of(known, coco_results(1, found), "segm").ap


def same_rows(one: Instances, other: Instances) -> bool:
    assert one.rles is not None and other.rles is not None
    arrays = ("boxes_xyxy", "scores", "labels", "is_thing")
    return one.rles == other.rles and all(np.array_equal(getattr(one, k), getattr(other, k)) for k in arrays)


def test_a_picture_that_fits_into_a_tile_has_the_rows_that_it_has_without_tiles() -> None:
    image = Digitscape("test", (SIDE, SIDE), seed=7, dense=False).scene(0).image_rgb
    [plain], [tiled] = load(SHIPPED)([image]), load(SHIPPED, tile=SIDE, overlap=40)([image])
    assert len(plain) > 0
    assert same_rows(plain, tiled)


def test_a_large_picture_is_found_as_well_as_at_once_at_the_same_scale_and_nothing_twice() -> None:
    """Digits are up to 100 px, so that seams cut some; at once, pictures are shown at 224 px for 160, as tiles are."""
    image, truth = composed(0)
    whole = load(SHIPPED, detections=400)
    whole.model.transform = dataclasses.replace(whole.model.transform, min_size=224 * GRID, max_size=224 * GRID)
    [at_once], [tiled] = whole([image]), load(SHIPPED, tile=SIDE, overlap=80)([image])
    assert mask_ap(tiled, truth) > mask_ap(at_once, truth) - 0.03
    sure = tiled.at_least(0.7)
    assert len(sure) <= len(at_once.at_least(0.7)) + 1
    masks = sure.masks().reshape(len(sure), -1)
    common = masks.astype(np.int64) @ masks.T.astype(np.int64)
    smaller = np.minimum.outer(masks.sum(1), masks.sum(1))
    assert (common <= 0.5 * smaller)[~np.eye(len(sure), dtype=bool)].all(), "a piece of an object is counted beside it"


class ByColour(torch.nn.Module):
    """A network whose class logits are the colours of the pixels, on a grid of half the size."""

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": 4 * torch.nn.functional.avg_pool2d(batch, 2)}


def by_colour() -> Predictor:
    from modelkit.semantic.segmentor import SemanticSegmentor

    transform = {"min_size": 64, "max_size": 64, "mean": [0.0] * 3, "std": [1.0] * 3}
    model = SemanticSegmentor(ByColour(), num_classes=3, transform=transform, background=None)
    _, record = random_weights("unet", 0, {"num_classes": 3, "backbone": {"widths": [4, 8]}})
    return Predictor(model, record)


def test_the_map_of_a_large_picture_is_that_of_its_pixels_seams_or_not() -> None:
    classes = np.kron(np.random.default_rng(0).integers(0, 3, (12, 9)), np.ones((16, 16), int))
    image = (np.eye(3, dtype=np.uint8)[classes] * 255).astype(np.uint8)
    [found] = TiledPredictor(by_colour(), Tiling(64, 16))([image])
    assert found.labels.tolist() == [0, 1, 2] and not found.is_thing.any()
    answer = np.einsum("n,nhw->hw", found.labels, found.masks())
    assert (answer == classes).mean() > 0.99
    assert (found.scores > 0.9).all()


def panoptic_predictor() -> Predictor:
    torch.manual_seed(0)
    model = create_model("panoptic_fpn", **small_panoptic())
    _, record = random_weights("panoptic_fpn", 0, small_panoptic())
    return Predictor(model, record)


def test_segments_of_a_large_picture_cover_it_without_overlap() -> None:
    [found] = TiledPredictor(panoptic_predictor(), Tiling(64, 16))([picture(100, 130)])
    assert found.size_hw == (100, 130)
    assert found.masks().sum(0).max() <= 1


def test_a_model_with_a_memory_looks_at_no_tiles() -> None:
    model, record = random_weights("vpsnet", 0, small_vpsnet())
    with pytest.raises(ConfigError, match="memory"):
        TiledPredictor(Predictor(model, record), Tiling(64, 16))


def test_weights_that_want_tiles_get_them_unless_they_are_told_otherwise() -> None:
    config = {
        "num_classes": 3,
        "backbone": {"widths": [4, 8]},
        "transform": {"min_size": 64, "max_size": 64, "tile": [64, 16]},
    }

    def tiling(**options: Any) -> Tiling | None:
        found = load("unet:random:0", config=config, **options)
        return found.tiling if isinstance(found, TiledPredictor) else None

    assert tiling() == Tiling(64, 16)
    assert tiling(tile=0) is None
    assert tiling(tile=80) == Tiling(80, 10)
    assert load("unet:random:0", config=config).weights.preprocessing["tile"] == [64, 16]


@pytest.mark.parametrize("limit", [1, 2])
def test_an_image_with_as_many_detections_as_the_model_may_find_says_so_and_others_do_not(limit: int) -> None:
    image = Digitscape("test", (SIDE, SIDE), seed=7, dense=False).scene(1).image_rgb
    [every] = load(SHIPPED)([image])
    assert len(every) > 2 and every.at_limit is None and every.notes == ()
    [limited] = load(SHIPPED, detections=limit)([image])
    np.testing.assert_array_equal(limited.scores, every.scores[:limit])
    assert limited.at_limit == limit
    assert limited.notes == (f"detections: the limit of {limit} was reached",)
    [tiled] = load(SHIPPED, detections=limit, tile=100, overlap=50)([image])
    assert tiled.at_limit == limit and len(tiled) >= limit


def test_a_limit_is_raised_where_weights_have_a_lower_one_and_refused_where_there_is_none() -> None:
    assert load(SHIPPED).model.most_detections == 100
    assert load(SHIPPED, detections=700).model.most_detections == 700
    config = {"num_classes": 3, "backbone": {"widths": [4, 8]}}
    with pytest.raises(ConfigError, match="no limit"):
        load("unet:random:0", config=config, detections=10)
    record = load("unet:random:0", config=config).weights
    with pytest.raises(ConfigError, match="no limit"):
        modelkit.check_options(record, detections=10)
    modelkit.check_options(record, tile=64)
    with pytest.raises(ConfigError, match="overlap"):
        modelkit.check_options(record, tile=64, overlap=60)


@pytest.mark.parametrize("name", ["mask_rcnn", "yolact"])
def test_every_family_of_detectors_finds_as_many_as_it_may(name: str) -> None:
    torch.manual_seed(0)
    options = {"mask_rcnn": small_mask_rcnn, "yolact": small_yolact}[name]()
    model = create_model(name, **options).eval()
    before = model.most_detections
    assert before is not None
    found = []
    for limit in (before, 2 * before, 3):
        model.limit_detections(limit)
        assert model.most_detections == limit
        [prediction] = model.predict([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))])
        found.append(len(prediction.finish()))
    assert found[0] == before < found[1] <= 2 * before and found[2] == 3
