"""Large pictures with small objects: tiles as examples, recipes that ask for them, and weights that then want them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import modelkit
from infra.store import open_store
from modelkit import create_model, rle
from modelkit.digitscape import Digitscape
from modelkit.tiling import TiledPredictor, Tiling
from tasks.engine.model_source import local_model
from tasks.product import find_kind
from tasks.products.segments.photographs import tile_of
from tasks.training.examples import Example, ExampleObject, save_training_set
from tasks.training.inspection import Inspection, inspect_labels
from tasks.training.job import prepare_training
from tasks.training.loading import ExampleReader
from tasks.training.run import train_here
from tasks.training.tiles import tiles_of
from tests.modelkit.builders import small_mask_rcnn
from tests.tasks.training.scenes import recipe
from tests.tasks.training.test_inspection import NUCLEI, STREETS

TILING = Tiling(64, 16)
CANVAS = (100, 150)
THINGS = {1}


def thing(x0: int, y0: int, x1: int, y1: int, label: int = 1, *, masked: bool = True) -> ExampleObject:
    mask = np.zeros(CANVAS, bool)
    mask[y0:y1, x0:x1] = True
    return ExampleObject(label, (float(x0), float(y0), float(x1), float(y1)), rle.encode(mask) if masked else None)


def test_a_tile_holds_what_lies_in_it_in_its_own_pixels() -> None:
    void = np.zeros(CANVAS, bool)
    void[90:] = True
    example = Example(
        "a.png", CANVAS, (thing(10, 10, 30, 20), thing(40, 70, 60, 90, masked=False)), void_rle=rle.encode(void)
    )
    tiles = tiles_of([example], TILING, THINGS)
    windows = TILING.windows(CANVAS)
    assert {tile.window for tile in tiles} <= set(windows) and all(tile.picture_hw == CANVAS for tile in tiles)
    by_window = {tile.window: tile for tile in tiles}
    first = by_window[windows[0]]
    assert first.size_hw == (64, 64) and first.image_id == "a.png"
    assert [each.box_xyxy for each in first.objects] == [(10, 10, 30, 20)]
    last_row = next(tile for tile in tiles if tile.window and tile.window.corner_yx == (36, 0))
    assert [each.box_xyxy for each in last_row.objects] == [(40, 34, 60, 54)]
    assert rle.area(last_row.void_rle or b"") == 10 * 64 and rle.area(first.void_rle or b"") == 0


def test_slivers_of_things_are_ignored_regions_and_stuff_stays_what_it_is() -> None:
    sliver, stuff = thing(0, 10, 68, 20), thing(0, 0, 150, 36, label=2)
    tiles = {t.window: t for t in tiles_of([Example("a.png", CANVAS, (sliver, stuff))], TILING, THINGS)}
    window = next(w for w in TILING.windows(CANVAS) if w.corner_yx == (0, 43))
    assert [each.label for each in tiles[window].objects] == [1, 2], "25 of 68 columns are more than a fifth"
    narrow = Example("a.png", CANVAS, (thing(0, 10, 50, 20), stuff))
    tiles = {t.window: t for t in tiles_of([narrow], TILING, THINGS)}
    assert [each.label for each in tiles[window].objects] == [2]
    assert tiles[window].ignore_boxes == ((0.0, 10.0, 7.0, 20.0),)


def test_tiles_that_show_nothing_are_as_many_as_those_that_show_something_and_small_pictures_stay_whole() -> None:
    wide = dataclasses.replace(Example("a.png", CANVAS, (thing(10, 10, 30, 20),)))
    tiles = tiles_of([wide], TILING, THINGS)
    assert sum(bool(tile.objects) for tile in tiles) == 1 == sum(not tile.objects for tile in tiles)
    small = Example("b.png", (60, 64))
    assert tiles_of([small], TILING, THINGS) == [small]


def test_the_pixels_and_the_target_of_a_tile_are_those_of_its_window(tmp_path: Path) -> None:
    scene = Digitscape("train", (160, 160), seed=5, dense=False).scene(0)
    Image.fromarray(scene.image_rgb).save(tmp_path / "a.png")
    objects = tuple(
        ExampleObject(int(label), tuple(map(float, box)), rle.encode(mask))  # type: ignore[arg-type]
        for label, box, mask in zip(scene.labels, scene.boxes_xyxy, scene.masks, strict=True)
    )
    example = Example(str(tmp_path / "a.png"), scene.size_hw, objects)
    transform = {"min_size": 64, "max_size": 64, "tile": [64, 16]}
    reader = ExampleReader(create_model("mask_rcnn", **small_mask_rcnn(transform=transform)), "instance")
    assert reader.tiling == TILING
    for tile in tiles_of([example], TILING, set(range(1, 11))):
        assert tile.window is not None
        sample = reader.read(tile)
        expected = tile.window.cut(scene.image_rgb)
        np.testing.assert_array_equal((sample.image * 255).round().permute(1, 2, 0).numpy(), expected)
        masks = tile.window.cut(np.moveaxis(scene.masks, 0, -1))
        assert sample.target["masks"].shape[1:] == (64, 64)
        for mask in sample.target["masks"].numpy().astype(bool):
            assert any((mask == masks[..., k]).all() for k in range(masks.shape[-1]))


def large(rows: int, columns: int, object_px: float, seen: Inspection | None = None) -> Inspection:
    seen = seen or inspect_labels(NUCLEI)
    n = len(seen.areas)
    return dataclasses.replace(
        seen,
        sizes_hw=np.tile([float(rows), float(columns)], (len(seen.sizes_hw), 1)),
        areas=np.full(n, object_px**2),
        boxes_wh=np.full((n, 2), object_px),
    )


def test_pictures_whose_small_objects_would_vanish_are_looked_at_in_tiles_and_others_as_a_whole() -> None:
    assert tile_of(large(3000, 4000, 20), 640) == (800, 100)
    assert tile_of(large(3000, 4000, 8), 640) == (640, 80), "pictures are not enlarged for it"
    assert tile_of(large(3000, 4000, 150), 640) is None
    assert tile_of(large(480, 640, 10), 640) is None
    assert tile_of(inspect_labels(NUCLEI), 640) is None


@pytest.mark.parametrize("kind", ["instance", "detection", "panoptic"])
def test_a_derived_recipe_for_large_pictures_trains_on_windows_of_its_tiles_at_their_scale(kind: str) -> None:
    derived = find_kind(kind).derived
    assert derived is not None
    values = derived(large(3000, 4000, 20))
    transform = values["config"]["transform"]
    assert transform["tile"] == [800, 100] and (transform["min_size"], transform["max_size"]) == (640, 640)
    [cut] = [each for each in values["labelled"]["augmentation"] if each["name"] == "random_crop"]
    assert cut["short_side"] == 640 and cut["height"] == cut["width"] == transform["train_min_sizes"][0]
    anchors = [size for sizes in values["config"]["rpn"]["anchor_sizes"] for size in sizes]
    assert 20 * 0.8 <= min(anchors) < max(anchors) <= 2 * 20 * 0.8, "at the scale of the tiles: 16 pixels"
    semantic = find_kind("semantic").derived
    assert semantic is not None
    assert "tile" not in semantic(large(3000, 4000, 20, inspect_labels(STREETS)))["config"]["transform"]


def test_weights_that_learnt_from_tiles_look_at_large_pictures_in_them(tmp_path: Path) -> None:
    scene = Digitscape("train", (96, 160), seed=5, dense=False).scene(1)
    store = open_store(str(tmp_path / "out"))
    Image.fromarray(scene.image_rgb).save(tmp_path / "a.png")
    objects = tuple(
        ExampleObject(int(label), tuple(map(float, box)), rle.encode(mask))  # type: ignore[arg-type]
        for label, box, mask in zip(scene.labels, scene.boxes_xyxy, scene.masks, strict=True)
    )
    labelled = save_training_set(store, [Example(str(tmp_path / "a.png"), scene.size_hw, objects)])
    transform = {"min_size": 64, "max_size": 64, "tile": [64, 16]}
    plan = recipe(config=small_mask_rcnn(num_classes=11, transform=transform))
    plan = dataclasses.replace(plan, loop=dataclasses.replace(plan.loop, steps=2))
    uri, record = train_here(prepare_training(store.uri, plan, labelled, None))
    assert record.preprocessing["tile"] == [64, 16] and record.lineage["skipped_steps"] == 0
    predictor = modelkit.load(local_model(uri))
    assert isinstance(predictor, TiledPredictor) and predictor.tiling == TILING
    assert predictor([scene.image_rgb])[0].size_hw == (96, 160)
    assert not isinstance(modelkit.load(local_model(uri), tile=0), TiledPredictor)
    assert torch.isfinite(torch.tensor(record.lineage["history"][-1]["loss_classifier"]))
