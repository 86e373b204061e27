"""Points of surfaces in DensePose's COCO files: where they lie, what cannot be read, that nothing of them is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from infra.store import open_store
from modelkit.tiling import Window
from tasks.labels.label_sets import LabelSet
from tasks.labels.reading import read_label_set
from tasks.labels.stored import write_stored
from tasks.labels.surfaces import BROKEN_SURFACE, SURFACE_WITHOUT_MASK
from tasks.training.examples import examples_of_labels, load_training_set, save_training_set
from tasks.training.tiles import tile_of

BOX = [10, 20, 32, 16]
MASK = [[10, 20, 42, 20, 42, 36, 10, 36]]
LISTS: dict[str, Any] = {
    "dp_x": [0, 128, 256], "dp_y": [0, 64, 255], "dp_I": [1, 24, 3], "dp_U": [0, 0.5, 1], "dp_V": [0.25, 1, 0],
}  # fmt: skip
WHOLE = {**LISTS, "bbox": BOX, "segmentation": MASK}


def labels_of(folder: Path, *annotations: dict[str, Any]) -> LabelSet:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": [{"id": k, "image_id": 1, "category_id": 1, **each} for k, each in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return read_label_set(str(folder / "labels.json"), allow_dropped=True)


def surfaces_of(labels: LabelSet) -> list[Any]:
    return [each for row in labels.table["surface_points"].to_pylist() for each in row]


def test_places_are_stated_in_256ths_of_the_box(tmp_path: Path) -> None:
    [points] = surfaces_of(labels_of(tmp_path, WHOLE))
    assert points == [[10, 20, 1, 0, 0.25], [26, 24, 24, 0.5, 1], [42, 20 + 16 * 255 / 256, 3, 1, 0]]


@pytest.mark.parametrize(
    "broken",
    [
        {"dp_x": [1, 2]},
        {"dp_I": [1, 2, 2.5]},
        {"dp_I": [1, 2, 256]},
        {"dp_U": [0, 0, 1.2]},
        {"dp_U": [0, 0, math.nan]},
        {"dp_y": [0, 0, "x"]},
        {"dp_x": [0, 0, math.inf]},
        {"dp_V": None},
    ],
)
def test_what_cannot_be_read_costs_the_points_alone_and_is_counted(tmp_path: Path, broken: dict[str, Any]) -> None:
    labels = labels_of(tmp_path, {**WHOLE, **broken}, WHOLE)
    assert [each is None for each in surfaces_of(labels)] == [True, False]
    assert labels.losses.dropped == {BROKEN_SURFACE: 1}


def test_points_without_a_mask_are_counted_for_nothing_can_learn_them(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, {**LISTS, "bbox": BOX}, WHOLE)
    assert [each is None for each in surfaces_of(labels)] == [True, False]
    assert labels.losses.dropped == {SURFACE_WITHOUT_MASK: 1}


def test_label_sets_without_such_points_keep_their_schema(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, {"bbox": BOX, "segmentation": MASK, "dp_x": []})
    assert "surface_points" not in labels.table.column_names and not labels.skipped


def test_surfaces_are_stored_and_read_back_beside_other_objects(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, WHOLE, {"bbox": BOX})
    store = open_store(str(tmp_path))
    write_stored(labels, store, "labels.parquet")
    again = read_label_set(store.uri_of("labels.parquet"))
    assert again.points is None and again.table.equals(labels.table) and again.label_set_id == labels.label_set_id


def test_training_sets_hold_surfaces_and_tiles_move_them(tmp_path: Path) -> None:
    [example] = examples_of_labels(labels_of(tmp_path, WHOLE, {"bbox": BOX}).table.to_pylist())
    store = open_store(str(tmp_path))
    assert load_training_set(store, save_training_set(store, [example])) == [example]
    tile = tile_of(example, Window(22, 20, 50, 42), {1})
    assert tile.objects[0].surface_points == ((6, 2, 24, 0.5, 1),)  # the others lie above, and on the edge
    assert tile.objects[1].surface_points is None
