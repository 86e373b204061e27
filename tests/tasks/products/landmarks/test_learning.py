"""Models of points learn from single objects whose points stay where they are, and are judged by these points."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from flows.inspection import run_inspect
from flows.parameters import InspectParameters, TrainParameters
from flows.train import run_train
from infra.errors import DatasetError, UsageError
from infra.problems import checked
from infra.store import open_store
from modelkit import ClassInfo, Predictor, create_model, describe
from modelkit.augmentation import Pipeline
from modelkit.carriers.landmarks import KeypointSet
from modelkit.digitscape import LANDMARK_NAMES, Digitscape, write_label_set
from modelkit.landmarks import HeatmapLandmarker
from modelkit.weights import random_weights
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.labels.label_sets import LabelledItem, LabelledObject, LabelSet, make_label_set
from tasks.labels.points import point_set
from tasks.labels.reading import read_label_set
from tasks.products.landmarks.judging import figures_of, lengths_of, points_in_model
from tasks.products.landmarks.learning import object_pieces
from tasks.products.landmarks.remarks import point_remarks
from tasks.training.examples import Example, examples_of_labels, load_training_set, save_training_set
from tasks.training.inspection import inspect_labels
from tasks.training.loading import ExampleReader
from tasks.training.presets import kind_of_labels, make_recipe
from tests.modelkit.builders import small_landmarker

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
POINTS = point_set(["left_tip", "right_tip", "middle"], skeleton=[("left_tip", "middle")])
Point = tuple[float, float, float]


def dots(folder: Path, name: str, size_hw: tuple[int, int], objects: Sequence[Sequence[Point]]) -> LabelledItem:
    """A grey picture in which each point is a square of 3 x 3 pixels of its own colour about its place."""
    pixels = np.full((*size_hw, 3), 128, np.uint8)
    for points in objects:
        for (x, y, v), colour in zip(points, COLOURS, strict=True):
            if v:
                pixels[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = colour
    Image.fromarray(pixels).save(folder / name)
    return LabelledItem(str(folder / name), size_hw, tuple(an_object(points) for points in objects))


def an_object(points: Sequence[Point]) -> LabelledObject:
    xs, ys = zip(*((x, y) for x, y, v in points if v), strict=True)
    return LabelledObject(1, None, (min(xs) - 4, min(ys) - 4, max(xs) + 4, max(ys) + 4), keypoint_xyv=tuple(points))


TWO = (
    ((20.5, 20.5, 2.0), (40.5, 24.5, 2.0), (30.5, 40.5, 1.0)),
    ((90.5, 60.5, 2.0), (70.5, 64.5, 2.0), (0.0, 0.0, 0.0)),
)


@pytest.fixture
def labels(tmp_path: Path) -> LabelSet:
    items = [dots(tmp_path, "a.png", (100, 120), TWO), dots(tmp_path, "b.png", (90, 70), TWO[:1])]
    return make_label_set(items, [ClassInfo(1, "thing")], origin_format="test", points=POINTS)


def place_of(image: Tensor, colour: Sequence[int]) -> Tensor:
    """(2,) x and y of the middle of what has a colour, weighed by how much it differs from grey that way."""
    away = (image - 128 / 255) * torch.tensor([1.0 if c else -1.0 for c in colour])[:, None, None]
    mass = away.clamp(min=0).amin(0) ** 2
    rows, columns = (torch.arange(side) + 0.5 for side in mass.shape)
    return torch.stack([mass.sum(0) @ columns, mass.sum(1) @ rows]) / mass.sum()


def test_training_sets_keep_points_and_sets_without_points_keep_their_schema(labels: LabelSet, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    examples = examples_of_labels(labels.table.to_pylist())
    set_id = save_training_set(store, examples)
    again = load_training_set(store, set_id)
    assert again == sorted(examples, key=lambda each: each.image_id)
    assert again[0].objects[1].keypoint_xyv == TWO[1]
    assert save_training_set(store, again) == set_id


@pytest.mark.parametrize("network_hw", [(64, 64), (16, 16)], ids=["as it is", "reduced"])
def test_every_object_is_a_piece_whose_points_lie_where_the_picture_shows_them(
    labels: LabelSet, network_hw: tuple[int, int]
) -> None:
    model = create_model("heatmap_landmarker", **small_landmarker(num_keypoints=3, transform=frame(network_hw)))
    reader = ExampleReader(model, "keypoints")
    pieces = reader.pieces(examples_of_labels(labels.table.to_pylist()), {1})
    assert [len(piece.objects) for piece in pieces] == [1, 1, 1]
    for piece in pieces:
        sample = reader.read(piece)
        assert sample.image.shape[-1] < 120 and max(sample.size_hw) <= 1.5 * max(network_hw) + 1
        for (x, y, v), colour in zip(sample.target["keypoints"][0], COLOURS, strict=True):
            if v:
                assert torch.allclose(place_of(sample.image, colour), torch.stack([x, y]), atol=0.35)


def frame(network_hw: tuple[int, int]) -> dict[str, Any]:
    return {"padding": "letterbox", "fixed_hw": list(network_hw)}


def test_pieces_have_room_to_be_turned_and_do_not_leave_their_picture() -> None:
    item = Example(
        "a", (100, 200), examples_of_labels([row(((50, 40, 70, 60), TWO[0]), ((0, 0, 30, 10), None))])[0].objects
    )
    (piece,) = object_pieces(item, (32, 32), 1.25)
    assert piece.window is not None
    half = 20 * 1.25 * 1.5 / 2
    assert abs(piece.window.left - (60 - half)) < 1 and abs(piece.window.bottom - (50 + half)) < 1
    assert piece.picture_hw == (100, 200) and piece.seen_hw == piece.window.size_hw


def row(*objects: tuple[tuple[float, float, float, float], Any]) -> dict[str, Any]:
    nothing = [None] * len(objects)
    return {
        "uri": "a", "media": "image", "frame": 0, "height": 100, "width": 200, "labels": [1] * len(objects),
        "boxes_xyxy": [box for box, _ in objects], "rles": nothing, "is_crowd": [False] * len(objects),
        "track_ids": nothing, "void_rle": None, "keypoint_xyv": [points for _, points in objects],
    }  # fmt: skip


@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_mirrored_points_stay_on_what_they_name(labels: LabelSet, mirrored: bool) -> None:
    """In a mirror the left tip is where the right one was: its colour tells."""
    pairs = [[0, 1]]
    model = create_model("heatmap_landmarker", **small_landmarker(num_keypoints=3, flip_pairs=pairs))
    reader = ExampleReader(model, "keypoints")
    piece = next(iter(reader.pieces(examples_of_labels(labels.table.to_pylist()), {1})))
    jitter = {"name": "object_jitter", "rotate_deg": 40.0, "rotated": 1.0, "scale": 0.3, "shift": 0.1}
    flip = {"name": "horizontal_flip", "probability": float(mirrored)}
    plain, draws = reader.read(piece), torch.Generator().manual_seed(3)
    moved = Pipeline([flip, jitter])(plain, draws)
    roles = [1, 0, 2] if mirrored else [0, 1, 2]
    for point, role in zip(moved.target["keypoints"][0], roles, strict=True):
        assert torch.allclose(place_of(moved.image, COLOURS[role]), point[:2], atol=0.35)
    before, after = (each.target["boxes"][0] for each in (plain, moved))
    ratio = (after[2:] - after[:2]) / (before[2:] - before[:2])
    assert torch.allclose(ratio[0], ratio[1]) and 1 / 1.3 <= float(ratio[0]) <= 1.3 and float(ratio[0]) != 1


class Colours(nn.Module):
    """A network that needs no training: how much each pixel has the colour of each point."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.unused, self.shift = nn.Parameter(torch.zeros(1)), shift

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        signs = torch.tensor([[1.0 if c else -1.0 for c in colour] for colour in COLOURS])
        maps = (batch[:, None] * signs[None, :, :, None, None]).clamp(min=0).amin(2)
        return {"heatmaps": maps.roll(self.shift, -1)}


def oracle(shift: int = 0, names: KeypointSet | None = None) -> Predictor:
    """A predictor that sees the points of ``dots``, ``shift`` of its pixels to the right."""
    config = small_landmarker(num_keypoints=3, transform={**frame((96, 96)), "mean": [128 / 255] * 3})
    model, weights = random_weights("heatmap_landmarker", 0, config)
    assert isinstance(model, HeatmapLandmarker)
    model.network = Colours(shift)
    model.codec = type(model.codec)(decoder="centre_of_mass", radius=8)
    weights = dataclasses.replace(weights, keypoints=names, classes=(ClassInfo(1, "thing"),))
    return Predictor(model, weights)


def test_a_model_that_sees_the_points_is_right_and_one_that_is_off_is_off_by_that(labels: LabelSet) -> None:
    right = evaluate_predictor(oracle(), labels)
    assert list(right.figures) == ["box_diagonal", "object_diagonal", "oks"]
    figures = right.figures["box_diagonal"]
    assert figures["pck"] == 1.0 and figures["nme"] < 0.01 and figures["failure_rate"] == 0.0
    assert right.main_figure == figures["auc"] > 0.9 and right.num_objects == 3
    assert right.class_names == POINTS.names and list(figures["by_class"]) == list(POINTS.names)
    off = evaluate_predictor(oracle(shift=6), labels).figures["box_diagonal"]
    errors = []
    for points in (TWO[0], TWO[1], TWO[0]):
        x0, y0, x1, y1 = an_object(points).box_xyxy or (0, 0, 0, 0)
        pixel = 1.25 * max(x1 - x0, y1 - y0) / 96
        errors.append(6 * pixel / float(np.hypot(x1 - x0, y1 - y0)))
    assert off["nme"] == pytest.approx(np.mean(errors), abs=0.01)


def test_resamples_weigh_images(labels: LabelSet) -> None:
    judged = evaluate_predictor(oracle(shift=3), labels)
    everything, first, twice = judged.resample(np.array([[1, 1], [1, 0], [2, 0]])).overall
    assert everything == pytest.approx(judged.main_figure)
    alone = evaluate_predictor(oracle(shift=3), labels.only([judged.image_ids[0]]))
    assert first == twice == pytest.approx(alone.main_figure)


def test_points_agree_by_name_and_by_place_where_the_model_has_no_names(labels: LabelSet) -> None:
    other = KeypointSet(("middle", "left_tip", "right_tip"))
    assert points_in_model(oracle(names=other), POINTS) == [1, 2, 0]
    assert points_in_model(oracle(), POINTS) == [0, 1, 2]
    with pytest.raises(DatasetError, match="has no point 'left_tip'"):
        points_in_model(oracle(names=KeypointSet(("a", "b", "c"))), POINTS)
    bare = make_label_set([LabelledItem("a", (9, 9), (LabelledObject(1, None, (0, 0, 5, 5)),))], labels.classes,
                          origin_format="test")  # fmt: skip
    with pytest.raises(DatasetError, match="no labelled object has points"):
        evaluate_predictor(oracle(), bare)


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (["left_eye", "right_eye", "head_top", "neck", "left_shoulder", "right_hip"], ["torso", "head", "interocular"]),
        (["left_eye", "right_eye", "left_eye_outer", "right_eye_outer"], ["interocular"]),
        ([f"p{k:02d}" for k in range(68)], ["interocular"]),
        (["a", "b"], []),
    ],
)
def test_what_errors_are_divided_by_follows_from_the_names(names: list[str], own: list[str]) -> None:
    assert [each.name for each in lengths_of(point_set(names))] == [*own, "box_diagonal", "object_diagonal"]


def test_numbered_points_of_ibug_faces_have_the_pairs_that_everybody_means() -> None:
    pairs = point_set([f"p{k:02d}" for k in range(68)]).flip_pairs
    assert (
        len(pairs) == 29 and (36, 45) in pairs and (48, 54) in pairs and not {27, 30, 33, 51, 8} & set(sum(pairs, ()))
    )
    assert point_set([f"p{k}" for k in range(67)]).flip_pairs == ()


def test_a_point_that_was_not_found_is_a_failure_and_has_no_mean() -> None:
    errors = np.array([[0.0, np.inf], [0.05, np.nan]])
    assert figures_of(errors, 0.1, ["a", "b"]) == {
        "auc": pytest.approx((1 + 0 + 0.5) / 3), "pck": pytest.approx(2 / 3), "nme": pytest.approx(0.05),
        "failure_rate": 0.5, "by_class": {"a": pytest.approx(0.75), "b": 0.0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("digits")
    written = write_label_set(folder, Digitscape("train", (96, 96), seed=2, dense=False), 6)
    return dict(zip(("instances", "panoptic", "landmarks"), map(str, written), strict=True))


def test_labels_say_which_kind_they_are_for(digits: dict[str, str]) -> None:
    kinds = {name: kind_of_labels(inspect_labels(read_label_set(uri))) for name, uri in digits.items()}
    assert kinds == {"instances": "instance", "panoptic": "panoptic", "landmarks": "keypoints"}


def test_digits_written_to_a_file_have_their_points_at_the_places_of_the_scene(digits: dict[str, str]) -> None:
    labels = read_label_set(digits["landmarks"])
    scene = Digitscape("train", (96, 96), seed=2, dense=False).scene(0)
    first = labels.table.to_pylist()[0]
    places = np.array(first["keypoint_xyv"])
    assert labels.points == point_set(LANDMARK_NAMES) and labels.points.flip_pairs == ((2, 3),)
    np.testing.assert_allclose(places[..., :2], scene.landmarks[..., :2] + 0.5, atol=0.006)
    boxes = np.array(first["boxes_xyxy"])  # whose borders touch the outermost pixels, of which these are the centres
    shown = scene.visibility == 1
    inside = (places[shown, :, :2] > boxes[shown, None, :2]) & (places[shown, :, :2] < boxes[shown, None, 2:])
    assert inside.mean() > 0.95


def test_inspect_tells_points_and_derives_a_recipe_that_fits_them(digits: dict[str, str]) -> None:
    seen = run_inspect(checked(InspectParameters, labelled=digits["landmarks"]))
    assert seen["kind"] == "keypoints" and seen["points"]["objects_with_points"] == 1.0
    assert seen["points"]["mirrored"] == [["left", "right"]]
    assert seen["points"]["given"].keys() == set(LANDMARK_NAMES)
    config = seen["recipe"]["config"]
    rows, columns = config["transform"]["fixed_hw"]
    assert rows > columns and rows % 32 == columns % 32 == 0 and config["num_keypoints"] == 5
    assert config["flip_pairs"] == [[2, 3]] and seen["recipe"]["points"]["names"] == list(LANDMARK_NAMES)
    assert "horizontal_flip" not in {each["name"] for each in seen["recipe"]["labelled"]["augmentation"]}


def test_inspect_says_how_objects_are_seen_and_names_points_beyond_their_picture(tmp_path: Path) -> None:
    far = ((20.5, 20.5, 2.0), (40.5, 124.5, 2.0), (0.0, 0.0, 0.0))
    objects = tuple(LabelledObject(1, None, (10, 10, 60, 35), keypoint_xyv=each) for each in (far, TWO[0]))
    labels = make_label_set(
        [LabelledItem("a", (100, 120), objects[:1]), LabelledItem("b", (100, 120), objects[1:])],
        [ClassInfo(1, "thing")], origin_format="test", points=KeypointSet(("a", "b", "c")),
    )  # fmt: skip
    seen = inspect_labels(labels)
    assert [each.why for each in seen.suspicions] == ["one of its points lies beyond the image of 120 x 100"]
    recipe = make_recipe("keypoints", labels.classes, seed=0, seen=seen)
    said = point_remarks(seen, recipe)
    assert "64 x 128 px of an object, the usual one with its margin has 31 x 62 px" in said[0] and "2.05" in said[0]
    assert said[1:] == ["no names of points tell left from right, so pictures are not mirrored"]
    alone = inspect_labels(labels.only(["a"]))
    assert point_remarks(alone, recipe)[-1] == "nobody gave a place of c: nothing is learnt of them"


def test_pictures_are_not_mirrored_where_nobody_says_what_left_is(labels: LabelSet) -> None:
    unpaired = dataclasses.replace(labels, points=KeypointSet(POINTS.names))
    recipe = make_recipe("keypoints", labels.classes, seed=0, seen=inspect_labels(unpaired))
    names = [each["name"] for noise in (recipe.labelled, recipe.unlabelled) for each in noise.augmentation]
    assert "horizontal_flip" not in names and "object_jitter" in names
    on_pseudo = list(recipe.unlabelled.augmentation)
    assert on_pseudo[: len(recipe.labelled.augmentation)] == list(recipe.labelled.augmentation) != on_pseudo, "stronger"


def test_labels_without_points_teach_no_model_of_points(digits: dict[str, str], labels: LabelSet) -> None:
    seen = inspect_labels(read_label_set(digits["instances"]))
    with pytest.raises(UsageError, match="no labelled object has points"):
        make_recipe("digitscape_heatmap", labels.classes, seed=0, seen=seen)


def test_who_names_another_beginning_gets_all_of_it_that_fits(digits: dict[str, str]) -> None:
    labels = read_label_set(digits["landmarks"])
    seen = inspect_labels(labels)
    own = make_recipe("digitscape_heatmap", labels.classes, seed=0, seen=seen)
    assert (own.initial, list(own.initial_parts)) == ("digitscape_mask_rcnn", ["network.backbone."])
    other = make_recipe(
        "digitscape_heatmap", labels.classes, seed=0, seen=seen, changes={"initial": "digitscape_heatmap"}
    )
    assert (other.initial, list(other.initial_parts)) == ("digitscape_heatmap", [""])


def test_models_that_find_objects_themselves_learn_as_many_classes_and_points_as_there_are(labels: LabelSet) -> None:
    seen = inspect_labels(labels)
    detector = make_recipe("keypoint_rcnn", labels.classes, seed=0, seen=seen)
    assert detector.config["num_classes"] == 2 and detector.config["heads"]["keypoint"]["num_keypoints"] == 3
    assert detector.labelled.augmentation == []  # these models do not say which points a mirror exchanges
    assert make_recipe("centernet", labels.classes, seed=0, seen=seen).config["num_keypoints"] == 3


TINY: dict[str, Any] = {
    "digitscape_heatmap": {"neck": {"name": "deconvolution", "channels": [32, 32, 32]}},
    "digitscape_coordinate": {},
}


@pytest.mark.parametrize("preset", TINY)
def test_landmarkers_learn_a_few_digits_by_heart(preset: str, digits: dict[str, str], tmp_path: Path) -> None:
    labels = read_label_set(digits["landmarks"])
    recipe = make_recipe(preset, labels.classes, steps=60, seed=0, seen=inspect_labels(labels))
    small = {"name": "slim_resnet", "widths": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "out": ["c5"]}
    config = {**recipe.config, **TINY[preset], "backbone": small}
    content = recipe.to_json() | {"config": config, "initial": None, "labelled": {"augmentation": []}, "batch_size": 8}
    content["loop"] |= {"learning_rate": 4e-3, "ema_decay": 0.9, "warmup_steps": 5}
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    given = {"labelled": digits["landmarks"], "output": str(tmp_path / "out"), "recipe": str(tmp_path / "tiny.json")}
    done = run_train(checked(TrainParameters, **given, ray="none", evaluate=digits["landmarks"]), orchestrated=False)
    record = describe(done["weights"])
    assert record.keypoints == point_set(LANDMARK_NAMES) and record.config["num_keypoints"] == 5
    reached = done["metrics"]["box_diagonal"]
    assert reached["nme"] < 0.06
