"""Every format ends as the same rows: the same objects, in source pixels, with who made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from infra.errors import DatasetError, UsageError
from infra.store import open_store
from modelkit import ClassInfo, rle
from tasks.labels.label_sets import (
    NOBODYS,
    ONLY_A_MODELS,
    LabelledItem,
    LabelledObject,
    make_label_set,
    of_people,
)
from tasks.labels.reading import read_label_set
from tasks.labels.shapes import ShapeError, brush_to_rle, ellipse_to_rle, rectangle_to_rle
from tasks.report.export import export
from tests.tasks.loop.scenes import CLASSES, SIZE_HW, label_set, rectangle, store_label_set
from tests.tasks.output.fake_output import FakeOutput, Item

HEIGHT, WIDTH = SIZE_HW


def coco_file(folder: Path, annotations: list[dict[str, object]], **more: object) -> str:
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
                   {"id": 8, "file_name": "sub/b.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": annotations,
        "categories": [{"id": 2, "name": "box"}, {"id": 1, "name": "disc"}],
        **more,
    }  # fmt: skip
    path = folder / "labels.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_coco_reads_polygons_both_run_lengths_and_bare_boxes(tmp_path: Path) -> None:
    counts = coco_mask.encode(np.asfortranarray(rle.decode(rectangle(2, 3, 10, 9), SIZE_HW).astype(np.uint8)))["counts"]
    uncompressed = rle.counts_of(rectangle(2, 3, 10, 9)).tolist()
    forms = [
        [[2, 3, 10, 3, 10, 9, 2, 9]],
        {"size": [HEIGHT, WIDTH], "counts": uncompressed},
        {"size": [HEIGHT, WIDTH], "counts": counts.decode()},
    ]
    annotations = [
        {"id": k, "image_id": 7, "category_id": 1, "segmentation": form, "iscrowd": 0} for k, form in enumerate(forms)
    ]
    annotations[0] |= {"bbox": [0, 0, 1, 1], "area": 5}
    annotations.append({"id": 9, "image_id": 7, "category_id": 2, "bbox": [4, 5, 6, 7], "area": 30, "iscrowd": 1})
    labels = read_label_set(coco_file(tmp_path, annotations))
    first, second = labels.table.to_pylist()
    assert first["rles"][:3] == [rectangle(2, 3, 10, 9)] * 3 and first["rles"][3] is None
    assert first["boxes_xyxy"] == [[0, 0, 1, 1], [2, 3, 10, 9], [2, 3, 10, 9], [4, 5, 10, 12]]
    assert first["areas"] == [5, 48, 48, 30]  # as the file states them, else the mask's
    assert first["is_crowd"] == [False, False, False, True] and first["names"] == ["disc", "disc", "disc", "box"]
    assert second["labels"] == [] and second["uri"] == str(tmp_path / "sub/b.png")  # looked at, nothing found
    assert [each.name for each in labels.classes] == ["disc", "box"]


def test_coco_counts_what_it_cannot_use(tmp_path: Path) -> None:
    broken = [
        {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[1, 2, 3]], "bbox": [0, 0, 1, 1]},
        {"id": 2, "image_id": 7, "category_id": 1, "segmentation": {"size": [2, 2], "counts": [4]}},
        {"id": 3, "image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"id": 4, "image_id": 7, "bbox": [0, 0, 1, 1]},
    ]
    labels = read_label_set(coco_file(tmp_path, broken), allow_dropped=True)
    assert labels.losses.left_out == {"annotation of an image that is not listed": 1}
    assert labels.losses.dropped == {
        "mask that cannot be drawn (its box is kept)": 1,
        "annotation whose shape cannot be drawn": 1,
        "annotation without class or box": 1,
    }
    assert labels.losses.first["annotation without class or box"] == f"annotation 4 of {tmp_path}/a.png"
    assert labels.table["boxes_xyxy"].to_pylist() == [[[0, 0, 1, 1]], []]


def test_a_class_that_the_file_does_not_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="class 5"):
        read_label_set(coco_file(tmp_path, [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 1, 1]}]))


def test_panoptic_pixels_that_no_segment_names_are_void(tmp_path: Path) -> None:
    ids = np.zeros((*SIZE_HW, 3), np.uint8)
    ids[:, :20] = (10, 1, 0)  # 266
    ids[:, 20:50] = (11, 0, 0)
    (tmp_path / "labels").mkdir()
    Image.fromarray(ids).save(tmp_path / "labels" / "a.png")
    segments = [{"id": 266, "category_id": 1}, {"id": 11, "category_id": 2, "iscrowd": 1}, {"id": 5, "category_id": 1}]
    uri = coco_file(tmp_path, [{"image_id": 7, "file_name": "a.png", "segments_info": segments}])
    labels = read_label_set(uri, allow_dropped=True)
    (row,) = labels.table.to_pylist()
    assert row["areas"] == [20 * HEIGHT, 30 * HEIGHT] and row["is_crowd"] == [False, True]
    assert rle.area(row["void_rle"]) == (WIDTH - 50) * HEIGHT
    assert labels.skipped == {"panoptic image without an annotation": 1, "panoptic segment without pixels": 1}


def test_mask_folder_pairs_by_name_and_refuses_ids_without_a_class(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.png", "lonely.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    ids = np.full(SIZE_HW, 255, np.uint8)
    ids[:10], ids[10:20] = 1, 2
    for name in ("a.png", "deep/b.png"):
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        palette = Image.fromarray(ids, "P")
        palette.putpalette([9, 9, 9] * 256)  # colours are for people
        palette.save(path)
    (tmp_path / "classes.json").write_text('{"1": "road", "2": "sky"}')
    labels = read_label_set(str(tmp_path))
    assert labels.skipped == {"image without a mask": 1}
    for row in labels.table.to_pylist():
        assert row["names"] == ["road", "sky"] and row["areas"] == [640, 640] and row["is_thing"] == [False, False]
        assert rle.area(row["void_rle"]) == (HEIGHT - 20) * WIDTH
    (tmp_path / "images" / "deep" / "b.png").unlink()
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "other.jpg")
    with pytest.raises(DatasetError, match=r"no labelled items .*2 x image without a mask; 2 x mask without an image"):
        read_label_set(str(tmp_path))
    (tmp_path / "images" / "other.jpg").rename(tmp_path / "images" / "a.jpg")
    (tmp_path / "classes.json").write_text('{"1": "road"}')
    with pytest.raises(DatasetError, match=r"\[2\]"):
        read_label_set(str(tmp_path))
    for content in ('["road"]', '"road"'):
        (tmp_path / "classes.json").write_text(content)
        with pytest.raises(UsageError, match="id: name"):
            read_label_set(str(tmp_path))


def test_a_folder_of_object_maps_gives_every_number_but_zero_its_own_object_of_one_class(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "images/empty.jpg", "instances/a.png", "instances/empty.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    numbers = np.zeros(SIZE_HW, np.uint16)
    numbers[2:6, 3:9], numbers[10:20, 30:40] = 7, 40_000
    for name, ids in (("a", numbers), ("empty", np.zeros(SIZE_HW, np.uint16))):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(ids).save(tmp_path / "instances" / f"{name}.png")
    labels = read_label_set(str(tmp_path))
    full, empty = labels.table.to_pylist()
    assert (full["names"], full["areas"], full["is_thing"]) == (["object"] * 2, [24, 100], [True, True])
    assert full["boxes_xyxy"] == [[3, 2, 9, 6], [30, 10, 40, 20]] and empty["labels"] == []
    assert [np.unique(numbers[rle.decode(mask, SIZE_HW) > 0]).tolist() for mask in full["rles"]] == [[7], [40_000]]
    (tmp_path / "classes.json").write_text('{"1": "nucleus"}')
    assert [each.name for each in read_label_set(str(tmp_path)).classes] == ["nucleus"]
    (tmp_path / "classes.json").write_text('{"1": "nucleus", "2": "cell"}')
    with pytest.raises(DatasetError, match="2 classes"):
        read_label_set(str(tmp_path))


def packed_brush(mask: np.ndarray) -> list[int]:
    """Label Studio's bit stream for a mask: runs of equal bytes, and single bytes spelled out."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = 255
    flat = values.reshape(-1)
    bits = f"{len(flat):032b}{7:05b}" + f"{3:04b}{7:04b}{11:04b}{15:04b}"
    at = 0
    while at < len(flat):
        stop = at + 1
        while stop < len(flat) and flat[stop] == flat[at] and stop - at < 1 << 16:
            stop += 1
        if stop - at > 1:
            bits += f"1{3:02b}{stop - at - 1:016b}{flat[at]:08b}"
        else:
            bits += f"0{0:02b}{0:04b}{flat[at]:08b}"
        at = stop
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def a_region(kind: str, value: dict[str, object], **more: object) -> dict[str, object]:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"id": f"r-{kind}", "type": kind, "value": {**value, kind: ["disc"]}, **size, **more}


def studio_file(folder: Path, tasks: Sequence[object]) -> str:
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return str(path)


def test_label_studio_shapes_are_per_cent_and_brushes_are_bit_streams(tmp_path: Path) -> None:
    mask = rle.decode(rectangle(8, 12, 24, 36), SIZE_HW)
    box = {"x": 12.5, "y": 25.0, "width": 25.0, "height": 50.0, "rotation": 0}
    points = [[12.5, 25.0], [37.5, 25.0], [37.5, 75.0], [12.5, 75.0]]
    regions = [
        a_region("rectanglelabels", box),
        a_region("polygonlabels", {"points": points}),
        a_region("brushlabels", {"format": "rle", "rle": packed_brush(np.ascontiguousarray(mask))}),
        a_region("choices", {}),
    ]
    task = {"data": {"image": "/data/upload/1/a.png"}, "annotations": [{"id": 1, "result": regions}]}
    labels = read_label_set(studio_file(tmp_path, [task]))
    (row,) = labels.table.to_pylist()
    assert row["rles"] == [rectangle(8, 12, 24, 36)] * 3
    assert row["uri"] == str(tmp_path / "1/a.png")
    assert labels.skipped == {"region of type choices": 1}


def test_label_studio_never_takes_a_prediction_for_a_persons_label(tmp_path: Path) -> None:
    box = {"x": 10, "y": 10, "width": 20, "height": 20}
    result = [
        a_region("rectanglelabels", box) | {"id": "drawn"},
        a_region("rectanglelabels", box, origin="prediction") | {"id": "kept"},
        a_region("rectanglelabels", box, origin="prediction-changed") | {"id": "edited"},
        a_region("rectanglelabels", {**box, "x": 30}, origin="prediction") | {"id": "moved"},
    ]
    predicted = [a_region("rectanglelabels", box) | {"id": name} for name in ("kept", "moved")]
    task = {
        "data": {"image": "a.png"},
        "annotations": [{"id": 1, "result": result}],
        "predictions": [{"result": predicted}],
    }
    (row,) = read_label_set(studio_file(tmp_path, [task])).table.to_pylist()
    assert dict(zip(row["origin_ids"], row["sources"], strict=True)) == {
        "drawn": "human", "kept": "model", "edited": "model_then_human", "moved": "model_then_human",
    }  # fmt: skip


def test_label_studio_takes_the_newest_finished_annotation_and_leaves_unfinished_tasks_out(tmp_path: Path) -> None:
    def annotation(number: int, when: str, **more: object) -> dict[str, object]:
        region = a_region("rectanglelabels", {"x": 0, "y": 0, "width": 10 * number, "height": 50})
        return {"id": number, "updated_at": when, "result": [region], **more}

    tasks = [
        {"data": {"image": "a.png"}, "annotations": [annotation(1, "2026-01-02"), annotation(2, "2026-01-01")]},
        {"data": {"image": "b.png"}, "annotations": [annotation(3, "2026-01-01", was_cancelled=True)]},
        {"data": {"image": "c.png"}, "annotations": []},
    ]
    labels = read_label_set(studio_file(tmp_path, tasks))
    assert [row["boxes_xyxy"][0][2] for row in labels.table.to_pylist()] == pytest.approx([6.4])
    assert labels.skipped == {"cancelled annotation": 1, "task without a finished annotation": 2}


CVAT_IMAGES = f"""<?xml version="1.0"?><annotations><version>1.1</version>
<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">
<polygon label="disc" source="manual" points="8,12;24,12;24,36;8,36"/>
<box label="disc" source="auto" xtl="8" ytl="12" xbr="24" ybr="36"/>
<mask label="disc" source="semi-auto" rle="2,14,2,14" left="6" top="4" width="16" height="2"/>
<polyline label="disc" points="1,1;2,2"/></image>
<image id="1" name="b.png" width="{WIDTH}" height="{HEIGHT}"/></annotations>"""


def test_cvat_images(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT_IMAGES)
    labels = read_label_set(str(tmp_path / "annotations.xml"), images_root="s3://b/pictures", classes=CLASSES)
    first, second = labels.table.to_pylist()
    assert first["rles"] == [rectangle(8, 12, 24, 36)] * 2 + [rectangle(8, 4, 22, 6)]
    assert first["sources"] == ["human", "model", "model_then_human"]
    assert second["uri"] == "s3://b/pictures/b.png" and second["labels"] == []
    assert labels.skipped == {"shape of kind polyline": 1}


def test_cvat_tracks_are_frames_of_one_group_with_identities(tmp_path: Path) -> None:
    track = "".join(
        f'<box frame="{k}" outside="{int(k == 3)}" xtl="{k}" ytl="0" xbr="{k + 8}" ybr="6"/>' for k in range(4)
    )
    size = f"<original_size><width>{WIDTH}</width><height>{HEIGHT}</height></original_size>"
    (tmp_path / "annotations.xml").write_text(
        f"<annotations><meta><task>{size}<source>clip.mp4</source></task></meta>"
        f'<track id="4" label="box" source="manual">{track}</track></annotations>'
    )
    labels = read_label_set(str(tmp_path / "annotations.xml"))
    rows = labels.table.to_pylist()
    assert [row["frame"] for row in rows] == [0, 1, 2] and {row["media"] for row in rows} == {"video"}
    assert {row["group_id"] for row in rows} == {str(tmp_path / "clip.mp4")}
    assert all(row["track_ids"] == [4] for row in rows)


@pytest.mark.parametrize(
    "content",
    ['<!DOCTYPE a [<!ENTITY x "y">]><annotations/>', "<other/>", "<annotations>"],
    ids=["entities", "another document", "cut off"],
)
def test_cvat_refuses_what_no_export_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "annotations.xml").write_text(content)
    with pytest.raises(DatasetError):
        read_label_set(str(tmp_path / "annotations.xml"))


def test_turned_shapes_keep_their_place() -> None:
    square = rle.decode(rectangle_to_rle((20, 10), (12, 12), 90.0, SIZE_HW), SIZE_HW)  # swings to the left
    assert square.sum() == 144 and np.argwhere(square).min(axis=0).tolist() == [10, 8]
    disc = rle.decode(ellipse_to_rle((32, 24), (16, 8), 90.0, SIZE_HW), SIZE_HW)
    rows, columns = np.nonzero(disc)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (32, 16)


def test_brushes_that_end_too_early_or_lie_on_another_canvas_are_refused() -> None:
    packed = packed_brush(np.ones((4, 4), bool))
    with pytest.raises(ShapeError, match="early"):
        brush_to_rle(packed[:-2], (4, 4))
    with pytest.raises(ShapeError, match="four a pixel"):
        brush_to_rle(packed, (4, 5))


def test_a_stored_label_set_reads_back_the_same(tmp_path: Path, store_uri: str) -> None:
    labels = label_set([("a", 2, [1, 2]), ("b", 1, [])])
    store_label_set(f"{store_uri}/labels.parquet", labels)
    again = read_label_set(f"{store_uri}/labels.parquet")
    assert again.label_set_id == labels.label_set_id and again.table.equals(labels.table)
    open_store(store_uri).put("other.parquet", b"PAR1 not really")
    with pytest.raises(DatasetError, match="no stored label set"):
        read_label_set(f"{store_uri}/other.parquet")


def test_what_a_model_found_is_never_taken_for_the_labels_of_people(tmp_path: Path) -> None:
    output = FakeOutput(open_store(str(tmp_path / "out")))
    output.commit([Item("s3://p/a.jpg"), Item("s3://p/b.jpg")])
    [part] = (tmp_path / "out" / "segments").rglob("*.parquet")
    with pytest.raises(DatasetError, match="no stored label set"):
        read_label_set(str(part))
    export(str(tmp_path / "out"), "coco", str(tmp_path / "found.json"))
    labels = read_label_set(str(tmp_path / "found.json"))
    assert {source for row in labels.table["sources"].to_pylist() for source in row} == {"model"}


def test_images_that_only_a_model_labelled_are_left_out_of_the_loop_and_counted() -> None:
    def item(name: str, *sources: str) -> LabelledItem:
        return LabelledItem(
            name, SIZE_HW, tuple(LabelledObject(1, rectangle(0, 0, 4, 4), source=each) for each in sources)
        )

    mixed = [
        item("seen", "model", "model_then_human"),
        item("predicted", "model", "model"),
        item("bare"),
        item("own", "human"),
    ]
    found = of_people(make_label_set(mixed, CLASSES, origin_format="coco"))
    assert found.table["image_id"].to_pylist() == ["own", "seen"], "whoever corrected one label saw the others"
    assert found.skipped == {ONLY_A_MODELS: 1, NOBODYS: 1}
    in_a_tool = of_people(make_label_set(mixed, CLASSES, origin_format="label_studio"))
    assert "bare" in in_a_tool.table["image_id"].to_pylist(), "only a task that somebody finished is read"
    people = make_label_set([item("bare"), item("own", "human")], CLASSES, origin_format="coco")
    assert of_people(people) == people
    with pytest.raises(UsageError, match="made or corrected by a person"):
        of_people(make_label_set([item("predicted", "model"), item("bare")], CLASSES, origin_format="coco"))


def test_label_set_id_depends_on_rows_and_class_map_only() -> None:
    one, other = label_set([("a", 2, [1]), ("b", 1, [2])]), label_set([("b", 1, [2]), ("a", 2, [1])])
    assert one.label_set_id == other.label_set_id
    assert one.label_set_id != label_set([("a", 2, [1]), ("b", 1, [3])]).label_set_id
    renamed = make_label_set(
        [LabelledItem("x", SIZE_HW)], [ClassInfo(1, "disc"), ClassInfo(2, "crate")], origin_format="test"
    )
    plain = make_label_set(
        [LabelledItem("x", SIZE_HW)], [ClassInfo(1, "disc"), ClassInfo(2, "box")], origin_format="test"
    )
    assert renamed.label_set_id != plain.label_set_id


def test_label_sets_refuse_doubled_items_and_masks_of_another_size() -> None:
    item = LabelledItem("x", SIZE_HW, (LabelledObject(1, rectangle(0, 0, 4, 4)),))
    with pytest.raises(DatasetError, match="twice"):
        make_label_set([item, item], CLASSES, origin_format="test")
    with pytest.raises(DatasetError, match="covers"):
        make_label_set(
            [LabelledItem("x", (9, 9), (LabelledObject(1, rectangle(0, 0, 4, 4)),))], CLASSES, origin_format="test"
        )
