"""Nothing that somebody labelled is lost in silence: it is counted by reason, and refused where it matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DatasetError
from infra.store import open_store
from modelkit import rle
from tasks.labels.images import MISSING, with_images_checked
from tasks.labels.reading import read_label_set
from tests.tasks.loop.scenes import label_set

SIZE = {"height": 48, "width": 64}
GOOD = {"image_id": 1, "category_id": 1, "bbox": [2, 3, 8, 6]}


def coco(path: Path, annotations: list[dict[str, Any]], **more: Any) -> str:
    content = {
        "images": [{"id": 1, "file_name": "a.png", **SIZE}],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "box"}],
        "annotations": [{"id": k, **each} for k, each in enumerate(annotations)],
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def test_one_per_cent_may_be_dropped_and_is_told_and_more_is_refused_with_the_reason(tmp_path: Path) -> None:
    broken = {"image_id": 1, "category_id": 1}
    labels = read_label_set(coco(tmp_path / "a.json", [*[GOOD] * 99, broken]))
    told = labels.to_json()
    assert told["dropped"] == {"annotation without class or box": 1} and told["objects"] == 99
    assert told["first_dropped"] == {"annotation without class or box": f"annotation 99 of {tmp_path}/a.png"}
    with pytest.raises(DatasetError, match=r"2 of 100 objects cannot be read: 2 x annotation without class or box"):
        read_label_set(coco(tmp_path / "b.json", [*[GOOD] * 98, broken, broken]))
    assert read_label_set(str(tmp_path / "b.json"), allow_dropped=True).skipped == {
        "annotation without class or box": 2
    }


def test_a_mask_that_cannot_be_drawn_is_dropped_too_but_its_box_stays(tmp_path: Path) -> None:
    other_canvas = {**GOOD, "segmentation": {"size": [3, 3], "counts": [4, 5]}}
    with pytest.raises(DatasetError, match="mask that cannot be drawn"):
        read_label_set(coco(tmp_path / "a.json", [GOOD, other_canvas]))
    (row,) = read_label_set(str(tmp_path / "a.json"), allow_dropped=True).table.to_pylist()
    assert row["rles"] == [None, None] and row["boxes_xyxy"] == [[2, 3, 10, 9]] * 2


@pytest.mark.parametrize(("annotations", "said"), [([], "no objects"), ([{**GOOD, "image_id": 9}], "no objects")])
def test_labels_without_any_object_are_refused_unless_allowed(
    annotations: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    path = coco(tmp_path / "a.json", annotations)
    with pytest.raises(DatasetError, match=said):
        read_label_set(path)
    assert len(read_label_set(path, allow_dropped=True)) == 1


def test_ids_from_0_and_ids_of_text_become_1_to_n_and_the_background_is_no_class(tmp_path: Path) -> None:
    names = [{"id": 0, "name": "_background_"}, {"id": 1, "name": "disc"}, {"id": 2, "name": "box"}]
    plain = read_label_set(coco(tmp_path / "a.json", [GOOD, {**GOOD, "category_id": 0}], categories=names))
    assert [(each.id, each.name) for each in plain.classes] == [(1, "disc"), (2, "box")] and not plain.file_ids
    assert plain.table["labels"].to_pylist() == [[1]]
    assert plain.skipped == {"annotation of a class that was not asked for": 1}
    text = [{"id": "cat-b", "name": "disc"}, {"id": "cat-a", "name": "box"}]
    labels = read_label_set(coco(tmp_path / "b.json", [{**GOOD, "category_id": "cat-a"}], categories=text))
    assert labels.table["names"].to_pylist() == [["box"]]
    assert labels.to_json()["file_ids"] == {"1": "cat-b", "2": "cat-a"}
    sparse = [{"id": 3, "name": "disc"}, {"id": 90, "name": "box"}]
    kept = read_label_set(coco(tmp_path / "c.json", [{**GOOD, "category_id": 90}], categories=sparse))
    assert kept.table["labels"].to_pylist() == [[90]] and not kept.file_ids
    huge = [{"id": 5, "name": "disc"}, {"id": 10**9, "name": "box"}]
    mapped = read_label_set(coco(tmp_path / "d.json", [{**GOOD, "category_id": 10**9}], categories=huge))
    assert mapped.table["labels"].to_pylist() == [[2]] and mapped.file_ids == {1: 5, 2: 10**9}


CVAT = """<annotations><image id="0" name="a.png" width="64" height="48">
<box label="box" xtl="1" ytl="2" xbr="9" ybr="8"/><box label="disc" xtl="20" ytl="2" xbr="29" ybr="8"/>
</image></annotations>"""


def studio(names: list[str]) -> str:
    size = {"original_width": 64, "original_height": 48}
    value = {"x": 10, "y": 10, "width": 20, "height": 20}
    regions = [{"type": "rectanglelabels", "value": {**value, "rectanglelabels": [name]}, **size} for name in names]
    return json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 1, "result": regions}]}])


@pytest.mark.parametrize(
    "classes",
    [
        '{"7": "disc", "3": "star"}',
        '[{"id": 7, "name": "disc", "isthing": 1}, {"id": 3, "name": "star"}]',
        '{"categories": [{"id": 3, "name": "star"}, {"id": 7, "name": "disc"}]}',
    ],
    ids=["ids and names", "categories", "a COCO file"],
)
def test_a_class_map_from_outside_rules_in_every_format(classes: str, tmp_path: Path) -> None:
    """Ids are the map's, and what it does not name is left out, not dropped."""
    (tmp_path / "classes.json").write_text(classes)
    (tmp_path / "cvat.xml").write_text(CVAT)
    (tmp_path / "studio.json").write_text(studio(["box", "disc"]))
    files = [coco(tmp_path / "coco.json", [{**GOOD, "category_id": 2}, GOOD])]
    files += [str(tmp_path / "cvat.xml"), str(tmp_path / "studio.json")]
    for path in files:
        labels = read_label_set(path, classes=str(tmp_path / "classes.json"))
        assert [(each.id, each.name) for each in labels.classes] == [(3, "star"), (7, "disc")]
        assert labels.table["labels"].to_pylist() == [[7]] and labels.table["names"].to_pylist() == [["disc"]]
        assert list(labels.losses.left_out.values()) == [1] and not labels.losses.dropped


def test_a_list_of_names_counts_from_1_and_one_that_names_nothing_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "studio.json").write_text(studio(["disc"]))
    (tmp_path / "names.txt").write_text("star\nbox\n\ndisc\n")
    labels = read_label_set(str(tmp_path / "studio.json"), classes=str(tmp_path / "names.txt"))
    assert labels.table["labels"].to_pylist() == [[3]]
    (tmp_path / "names.txt").write_text("road\n")
    with pytest.raises(DatasetError, match=r"none of the wanted classes \(road\)"):
        read_label_set(str(tmp_path / "studio.json"), classes=str(tmp_path / "names.txt"))


def test_class_ids_of_label_studio_count_names_of_the_whole_file_also_of_predictions(tmp_path: Path) -> None:
    content = json.loads(studio(["disc"]))
    content[0]["predictions"] = json.loads(studio(["box"]))[0]["annotations"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    labels = read_label_set(str(tmp_path / "a.json"))
    assert [each.name for each in labels.classes] == ["box", "disc"]
    assert labels.table["labels"].to_pylist() == [[2]]


LAYOUTS = {
    "coco/annotations/instances_val2017.json": "coco/val2017",
    "coco/annotations/instances_b.json": "coco/images/b",
    "one/annotations/instances.json": "one/images",
    "two/labels.json": "two/images",
    "three/train/_annotations.coco.json": "three/train",
    "four/train.json": "four/train",
}


@pytest.mark.parametrize("labels", LAYOUTS)
def test_images_are_found_in_the_usual_layouts_with_slashes_of_either_kind(labels: str, store_uri: str) -> None:
    store = open_store(store_uri)
    store.put(f"{LAYOUTS[labels]}/deep/a.png", b"")
    content = {
        "images": [{"id": 1, "file_name": "deep\\a.png", **SIZE}],
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [{"id": 1, **GOOD}],
    }
    store.put(labels, json.dumps(content).encode())
    found = read_label_set(store.uri_of(labels))
    assert found.table["uri"].to_pylist() == [store.uri_of(f"{LAYOUTS[labels]}/deep/a.png")]
    assert with_images_checked(found, "labels") is found


def test_images_that_are_missing_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"{k}.png", **SIZE} for k in range(4)]
    path = coco(tmp_path / "a.json", [{**GOOD, "image_id": k} for k in range(4)], images=images)
    labels = read_label_set(path)
    with pytest.raises(DatasetError, match=r"4 of 4 images .* are not there, the first is .*/0\.png") as caught:
        with_images_checked(labels, path)
    assert "--images-root" in caught.value.hint
    with pytest.raises(DatasetError, match="4 of 4"):
        with_images_checked(labels, path, allow_missing=True)  # nothing would be left
    for k in (1, 3):
        (tmp_path / f"{k}.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"2 of 4 images"):
        with_images_checked(labels, path)
    kept = with_images_checked(labels, path, allow_missing=True)
    assert [Path(uri).name for uri in kept.table["uri"].to_pylist()] == ["1.png", "3.png"]
    assert kept.skipped == {MISSING: 2} and not labels.skipped


def test_an_images_root_that_is_given_may_hold_the_splits(tmp_path: Path) -> None:
    (tmp_path / "pictures/val").mkdir(parents=True)
    (tmp_path / "pictures/val/a.png").write_bytes(b"")
    path = coco(tmp_path / "labels/instances_val.json", [GOOD])
    labels = read_label_set(path, images_root=str(tmp_path / "pictures"))
    assert labels.table["uri"].to_pylist() == [str(tmp_path / "pictures/val/a.png")]


def test_stored_labels_of_before_are_read_and_their_class_ids_mapped(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = label_set([("a", 1, [1, 2])]).table
    place = table.schema.get_field_index("areas")
    table = table.set_column(place, "areas", table["areas"].cast(pa.list_(pa.int64())))
    table = table.set_column(table.schema.get_field_index("labels"), "labels", pa.array([[0, 1]], pa.list_(pa.int32())))
    metadata = {"visionmill.schema": "labels.v1", "visionmill.classes": '[[0, "disc", true], [1, "box", true]]'}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old.parquet")
    labels = read_label_set(str(tmp_path / "old.parquet"))
    (row,) = labels.table.to_pylist()
    assert row["labels"] == [1, 2] and row["names"] == ["disc", "box"] and row["areas"] == [24.0, 24.0]
    assert labels.file_ids == {1: 0, 2: 1}
    assert [rle.area(mask) for mask in row["rles"]] == [24, 24]
