"""Points on objects: every format gives the same ones, in source pixels, and says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.store import open_store
from modelkit.carriers.landmarks import KeypointSet, mirrored_pairs
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set, of_people, relabelled
from tasks.labels.points import point_set
from tasks.labels.reading import read_label_set
from tasks.labels.stored import write_stored
from tests.tasks.loop.scenes import CLASSES

NAMES = ["nose", "left_eye", "right_eye"]
FACE = KeypointSet(("nose", "left_eye", "right_eye"), flip_pairs=((1, 2),), skeleton=((0, 1), (0, 2)))


def coco(folder: Path, annotations: list[dict[str, Any]], categories: list[dict[str, Any]]) -> LabelSet:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": [{"id": k, "image_id": 1, "category_id": 1, **each} for k, each in enumerate(annotations, 1)],
        "categories": categories,
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return read_label_set(str(folder / "labels.json"), allow_dropped=True)


FACES = {"id": 1, "name": "face", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}


def points_of(labels: LabelSet) -> list[Any]:
    return [each for row in labels.table["keypoint_xyv"].to_pylist() for each in row]


def test_coco_counts_from_the_centres_of_pixels_and_its_lines_from_one(tmp_path: Path) -> None:
    given = {"keypoints": [10, 20, 2, 30.25, 20, 1, 0, 0, 0], "num_keypoints": 2}
    nothing = {"keypoints": [0, 0, 0] * 3, "num_keypoints": 0, "bbox": [1, 2, 3, 4]}
    labels = coco(tmp_path, [{**given, "bbox": [5, 10, 40, 20], "area": 300}, nothing, given], [FACES])
    first = [[10.5, 20.5, 2], [30.75, 20.5, 1], [0, 0, 0]]
    assert points_of(labels) == [first, None, first]
    (row,) = labels.table.to_pylist()
    assert row["boxes_xyxy"] == [[5, 10, 45, 30], [1, 2, 4, 6], [10.5, 20.5, 30.75, 20.5]]  # the last: around points
    assert row["areas"][0] == 300 and labels.points == FACE
    assert labels.to_json()["points"]["names"] == NAMES


@pytest.mark.parametrize("pair", [["nose", "left_eye"], [1, 2]], ids=["names", "numbers"])
def test_what_coco_says_of_mirrors_and_deviations_is_taken(tmp_path: Path, pair: list[Any]) -> None:
    category = {**FACES, "flip_pairs": [pair], "sigmas": [0.1, 0.2, 0.3]}
    labels = coco(tmp_path, [{"keypoints": [1, 1, 2] * 3, "bbox": [0, 0, 5, 5]}], [category])
    assert labels.points == KeypointSet(FACE.names, ((0, 1),), FACE.skeleton, (0.1, 0.2, 0.3))


def test_points_that_cannot_be_read_cost_the_points_alone(tmp_path: Path) -> None:
    box = {"bbox": [1, 2, 3, 4]}
    broken = [[1, 2, 2], [1, 2, 7] * 3, ["x", 1, 2] * 3, [None] * 9]
    good = {"keypoints": [1, 2, 2] * 3, **box}
    labels = coco(tmp_path, [{"keypoints": each, **box} for each in broken] + [good], [FACES])
    assert [each is None for each in points_of(labels)] == [True, True, True, True, False]
    assert labels.losses.dropped == {"points that are not x, y and v for each name (the object is kept)": 4}


def test_the_points_of_most_objects_are_those_of_the_label_set(tmp_path: Path) -> None:
    hand = {"id": 2, "name": "hand", "keypoints": ["thumb"], "skeleton": []}
    annotations: list[dict[str, Any]] = [{"keypoints": [1, 2, 2] * 3, "bbox": [0, 0, 9, 9]}] * 2
    annotations.append({"keypoints": [1, 2, 2], "bbox": [0, 0, 9, 9], "category_id": 2})
    labels = coco(tmp_path, annotations, [hand, FACES])
    assert labels.points == FACE and [each is None for each in points_of(labels)] == [False, False, True]
    assert labels.skipped == {"points of a class whose points are others than those of most objects": 1}


def test_label_sets_without_points_keep_their_schema(tmp_path: Path) -> None:
    labels = coco(tmp_path, [{"bbox": [0, 0, 9, 9]}], [FACES])
    assert labels.points is None and "keypoint_xyv" not in labels.table.column_names
    assert "points" not in labels.to_json()


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["left_eye", "nose", "right_eye"], ((0, 2),)),
        (["REar", "LEar", "head"], ((1, 0),)),
        (["eyeLeft", "eyeRight"], ((0, 1),)),
        (["l_hip", "r_hip", "left_hip"], ((0, 1),)),
        (["left", "right", "top"], ((0, 1),)),
        (["p1", "p2"], ()),
    ],
)
def test_left_and_right_are_told_by_names(names: list[str], pairs: object) -> None:
    assert mirrored_pairs(names) == pairs


def test_points_are_stored_and_read_back(tmp_path: Path) -> None:
    item = LabelledItem("a.png", (10, 10), (LabelledObject(1, None, (0, 0, 5, 5), keypoint_xyv=((1, 2, 2), (3, 4, 1))),
                                            LabelledObject(2, None, (0, 0, 5, 5))))  # fmt: skip
    labels = make_label_set([item], CLASSES, origin_format="test", points=point_set(["a", "b"]))
    store = open_store(str(tmp_path))
    write_stored(labels, store, "labels.parquet")
    again = read_label_set(store.uri_of("labels.parquet"))
    assert again.points == labels.points and again.table.equals(labels.table)
    assert again.label_set_id == labels.label_set_id
    only = relabelled(again, {1: None, 2: 1}, CLASSES)
    assert points_of(only) == [None] and points_of(of_people(again)) == points_of(labels)


def test_points_of_another_number_are_a_mistake_of_the_reader() -> None:
    item = LabelledItem("a.png", (10, 10), (LabelledObject(1, None, (0, 0, 5, 5), keypoint_xyv=((1, 2, 2),)),))
    with pytest.raises(ValueError, match="1 points, not 2"):
        make_label_set([item], CLASSES, origin_format="test", points=point_set(["a", "b"]))


DRAWING = (
    '&lt;line x1="1" y1="2" x2="3" y2="4" data-type="edge" data-node-from="1" data-node-to="2"&gt;&lt;/line&gt;'
    '&lt;circle r="1" data-node-id="1" data-label-name="nose"&gt;&lt;/circle&gt;'
    '&lt;circle r="1" data-node-id="2" data-label-name="left_eye"&gt;&lt;/circle&gt;'
)
TASK = (
    "<meta><task><labels><label><name>person</name><type>skeleton</type>"
    f"<svg>{DRAWING}</svg></label>"
    + "".join(f"<label><name>{name}</name><type>points</type><parent>person</parent></label>" for name in NAMES)
    + "<label><name>car</name><type>rectangle</type></label></labels>"
    "<original_size><width>80</width><height>60</height></original_size><source>clip.mp4</source></task></meta>"
)
ELEMENTS = (
    '<points label="right_eye" outside="1" occluded="0" points="1.0,1.0"/>'
    '<points label="nose" outside="0" occluded="0" points="10.5,20.5"/>'
    '<points label="left_eye" outside="0" occluded="1" points="30.75,24.5"/>'
)
PERSON = [[10.5, 20.5, 2], [30.75, 24.5, 1], [0, 0, 0]]


def cvat(folder: Path, body: str) -> LabelSet:
    (folder / "annotations.xml").write_text(f"<annotations>{body}</annotations>")
    return read_label_set(str(folder / "annotations.xml"), allow_dropped=True)


def test_cvat_skeletons_are_objects_whose_elements_say_what_is_hidden(tmp_path: Path) -> None:
    image = (
        '<image id="0" name="a.png" width="80" height="60"><box label="car" xtl="1" ytl="2" xbr="3" ybr="4"/>'
        f'<skeleton label="person" source="manual">{ELEMENTS}</skeleton></image>'
    )
    labels = cvat(tmp_path, TASK + image)
    (row,) = labels.table.to_pylist()
    assert points_of(labels) == [None, PERSON] and row["names"] == ["car", "person"]
    assert row["labels"] == [1, 2]  # boxes keep the ids that they had before skeletons were read
    assert row["boxes_xyxy"][1] == [10.5, 20.5, 30.75, 24.5]
    assert labels.points == KeypointSet(FACE.names, ((1, 2),), ((0, 1),))


def test_cvat_skeletons_of_tracks_have_identities_and_leave_with_their_points(tmp_path: Path) -> None:
    gone = ELEMENTS.replace('outside="0"', 'outside="1"')
    frames = f'<skeleton frame="0">{ELEMENTS}</skeleton><skeleton frame="1">{gone}</skeleton>'
    labels = cvat(tmp_path, TASK + f'<track id="4" label="person" source="auto">{frames}</track>')
    (row,) = labels.table.to_pylist()
    assert points_of(labels) == [PERSON] and row["track_ids"] == [4] and row["sources"] == ["model"]
    assert labels.skipped == {"skeleton without a point that is given": 1}


def test_cvat_points_alone_are_objects_with_numbered_points(tmp_path: Path) -> None:
    shapes = "".join(f'<points label="face" points="{each}"/>' for each in ("1,2;3,4", "5,6;7,8", "9,9"))
    image = f'<image id="0" name="a.png" width="80" height="60">{shapes}'
    labels = cvat(tmp_path, f"{image}</image>")
    assert points_of(labels) == [[[1, 2, 2], [3, 4, 2]], [[5, 6, 2], [7, 8, 2]]]
    assert labels.points == KeypointSet.numbered(2)
    assert labels.losses.dropped == {"shape that cannot be drawn": 1}
    beside = cvat(tmp_path, f'{image}<box label="face" xtl="1" ytl="2" xbr="3" ybr="4"/></image>')
    assert beside.points is None and beside.skipped == {"shape of kind points": 3}


def in_group(*shapes: str, labels: str = TASK, group: int = 1, name: str = "a.png") -> str:
    """An image in which each of these shapes is of one group, behind the task's labels."""
    inner = "".join(shape.replace("/>", f' group_id="{group}"/>') for shape in shapes)
    return f'{labels}<image id="0" name="{name}" width="80" height="60">{inner}</image>'


CAR = '<box label="car" xtl="5" ytl="6" xbr="45" ybr="36"/>'
WHEEL, LAMP = '<points label="wheel" points="10.5,30" occluded="1"/>', '<points label="lamp" points="44,20"/>'
PARTS = (
    "<meta><task><labels><label><name>lamp</name><type>points</type></label><label><name>wheel</name></label>"
    "<label><name>car</name><type>rectangle</type></label></labels></task></meta>"
)
CAR_POINTS = [[44, 20, 2], [10.5, 30, 1]]


def test_cvat_points_of_a_group_with_a_box_are_points_of_its_object(tmp_path: Path) -> None:
    alone = '<points label="lamp" points="1,1"/>'
    image = in_group(CAR, WHEEL, LAMP, labels=PARTS).replace("</image>", f"{alone}{CAR}</image>")
    labels = cvat(tmp_path, image)
    (row,) = labels.table.to_pylist()
    assert points_of(labels) == [CAR_POINTS, None]
    assert labels.points == KeypointSet(("lamp", "wheel"))  # as the task lists them
    assert [each.name for each in labels.classes] == ["car"] and row["boxes_xyxy"] == [[5, 6, 45, 36]] * 2
    assert labels.skipped == {"shape of kind points": 1}


def test_cvat_groups_are_of_one_image_and_an_outline_will_do_for_a_box(tmp_path: Path) -> None:
    outline = '<polygon label="car" points="5,6;45,6;45,36;5,36"/>'
    labels = cvat(tmp_path, in_group(LAMP, outline, labels=PARTS) + in_group(CAR, WHEEL, labels="", name="b.png"))
    assert points_of(labels) == [[CAR_POINTS[0], [0, 0, 0]], [[0, 0, 0], CAR_POINTS[1]]]
    assert [row["rles"][0] is None for row in labels.table.to_pylist()] == [False, False]


def test_cvat_shapes_of_several_places_in_a_group_number_them(tmp_path: Path) -> None:
    wheels = '<points label="wheel" points="10,30;40,30"/>'
    labels = cvat(tmp_path, in_group(CAR, wheels, LAMP, labels=PARTS) + in_group(CAR, WHEEL, labels="", name="b.png"))
    assert labels.points == KeypointSet(("lamp", "wheel 1", "wheel 2"))
    assert points_of(labels) == [[[44, 20, 2], [10, 30, 2], [40, 30, 2]], [[0, 0, 0], [10.5, 30, 1], [0, 0, 0]]]


def test_cvat_groups_that_do_not_say_whose_points_they_are_give_none(tmp_path: Path) -> None:
    two_cars = in_group(CAR, CAR, LAMP, labels=PARTS)
    labels = cvat(tmp_path, two_cars)
    assert labels.points is None and labels.skipped == {"shape of kind points": 1} and len(labels) == 1
    twice = cvat(tmp_path, in_group(CAR, LAMP, LAMP, labels=PARTS) + in_group(CAR, LAMP, labels="", name="b.png"))
    assert points_of(twice) == [None, [[44, 20, 2]]]
    assert list(twice.losses.dropped.values()) == [1]
    assert "two points 'lamp'" in next(iter(twice.losses.first.values()))


def test_cvat_points_of_groups_leave_where_most_objects_have_those_of_skeletons(tmp_path: Path) -> None:
    skeletons = f'<skeleton label="person">{ELEMENTS}</skeleton>' * 2
    labels = cvat(tmp_path, in_group(CAR, LAMP).replace("</image>", f"{skeletons}</image>"))
    assert points_of(labels) == [None, PERSON, PERSON]
    others = "points of a class whose points are others than those of most objects"
    assert labels.skipped == {others: 1}
    reverse = cvat(tmp_path, in_group(CAR, LAMP).replace("</image>", f"{skeletons}</image>") + "".join(
        in_group(CAR, LAMP, labels="", name=f"{k}.png") for k in range(3)))  # fmt: skip
    assert reverse.points == KeypointSet(("lamp",)) and reverse.skipped == {others: 2}


def studio(folder: Path, *results: list[dict[str, Any]]) -> LabelSet:
    tasks = [
        {"id": k, "data": {"image": f"{k}.png"}, "annotations": [{"id": 1, "result": result}]}
        for k, result in enumerate(results)
    ]
    (folder / "export.json").write_text(json.dumps(tasks))
    return read_label_set(str(folder / "export.json"), allow_dropped=True)


def region(kind: str, value: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    size = {"original_width": 80, "original_height": 60}
    return {"id": name, "type": kind, "value": {**value, kind: [name]}, **size, **more}


def a_point(name: str, x: float, y: float, **more: Any) -> dict[str, Any]:
    return region("keypointlabels", {"x": x, "y": y, "width": 0.5}, name, **more)


def test_label_studio_points_belong_to_their_parent_or_the_smallest_box_around_them(tmp_path: Path) -> None:
    whole = region("rectanglelabels", {"x": 0, "y": 0, "width": 100, "height": 100}, "crowd") | {"id": "w"}
    part = region("rectanglelabels", {"x": 25, "y": 25, "width": 50, "height": 50}, "person") | {"id": "p"}
    result = [
        whole, part, a_point("nose", 50, 50), a_point("left_eye", 5, 5, parentID="p"), a_point("right_eye", 10, 10),
        a_point("right_eye", 20, 20),
    ]  # fmt: skip
    labels = studio(tmp_path, result)
    assert labels.points == KeypointSet(("left_eye", "nose", "right_eye"), ((0, 2),))
    assert points_of(labels) == [[[0, 0, 0], [0, 0, 0], [8, 6, 2]], [[4, 3, 2], [40, 30, 2], [0, 0, 0]]]
    assert list(labels.losses.dropped.values()) == [1]  # the second right eye of the whole


def test_label_studio_points_alone_make_one_object_an_image(tmp_path: Path) -> None:
    labels = studio(tmp_path, [a_point("a", 10, 10), a_point("b", 50, 20, origin="prediction")], [a_point("b", 1, 1)])
    assert points_of(labels) == [[[8, 6, 2], [40, 12, 2]], [[0, 0, 0], [0.8, 0.6, 2]]]
    assert labels.table["boxes_xyxy"].to_pylist()[0] == [[8, 6, 40, 12]]
    assert [row[0] for row in labels.table["sources"].to_pylist()] == ["model_then_human", "human"]
    assert [each.name for each in labels.classes] == ["object"]


def test_label_studio_points_outside_of_every_object_are_left_out(tmp_path: Path) -> None:
    box = region("rectanglelabels", {"x": 50, "y": 50, "width": 10, "height": 10}, "person")
    labels = studio(tmp_path, [box, a_point("a", 1, 1), a_point("a", 55, 55)])
    assert points_of(labels) == [[[44, 33, 2]]] and labels.skipped == {"point that lies in no object": 1}
