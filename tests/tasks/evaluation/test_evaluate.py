"""Judging: the figures are pycocotools' own, hand-made cases come out right, foreign classes are refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import modelkit
from infra.errors import DatasetError, UsageError
from modelkit import ClassInfo, Instances, create_model, rle, save_weights
from modelkit.digitscape import Digitscape, SceneStyle, write_dataset, write_label_set, write_panoptic
from modelkit.metrics import PanopticQuality, panoptic_array
from modelkit.metrics.panoptic import DIVISOR
from modelkit.metrics.precision import coco_results, precision_of
from modelkit.predictor import Prepared
from modelkit.transform import Geometry
from tasks.evaluation.evaluate import evaluate_model, evaluate_predictor
from tasks.evaluation.figures import groups_of, in_words, main_figure, to_json
from tasks.labels.label_sets import LabelledItem, LabelledObject, make_label_set
from tasks.labels.reading import read_label_set
from tasks.products.segments.painting import label_map
from tasks.products.segments.semantic import semantic_target
from tasks.training.examples import Example, ExampleObject
from tasks.training.presets import make_recipe

SIZE = (160, 160)


def test_the_embedded_model_gets_the_figures_of_pycocotools(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, Digitscape("test", SIZE, seed=0, dense=False), 8, image_format="png")
    judged = evaluate_model("digitscape_mask_rcnn", read_label_set(str(path)))
    truth, predictor = json.loads(path.read_text()), modelkit.load("digitscape_mask_rcnn")
    images = [np.asarray(Image.open(tmp_path / each["file_name"])) for each in truth["images"]]
    found = [line for k, each in enumerate(predictor(images), start=1) for line in coco_results(k, each)]
    mask, box = precision_of(truth, found, "segm"), precision_of(truth, found, "bbox")
    assert judged.figures["mask"] == asdict(mask)
    assert judged.figures["box"]["ap"] == pytest.approx(box.ap)
    assert judged.main_figure == mask.ap > 0.4
    assert judged.num_objects == len(truth["annotations"]) and len(judged.image_ids) == 8
    assert json.loads(json.dumps(to_json(judged)))["images"] == 8


class Oracle:
    """A predictor that says what it is told."""

    def __init__(self, task: str, answers: list[Instances], num_classes: int = 3, background: int | None = 0) -> None:
        record = modelkit.describe("digitscape_mask_rcnn")
        classes = tuple(ClassInfo(k, f"c{k}") for k in range(1, num_classes))
        self.weights = replace(record, kind=task, classes=classes)
        self.model = type("Model", (), {"background": background, "config": {"num_classes": num_classes}})()
        self._answers = iter(answers)

    def prepare(self, image: np.ndarray) -> Prepared:
        size_hw = (image.shape[0], image.shape[1])
        return Prepared(image, Geometry(size_hw, size_hw, size_hw))

    def infer(self, prepared: list[Prepared]) -> list[Instances]:
        return [next(self._answers) for _ in prepared]

    def finish(self, raw: Instances) -> Instances:
        return raw


def square(x1: int, y1: int, x2: int, y2: int) -> bytes:
    mask = np.zeros((20, 20), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return rle.encode(mask)


def answer(*objects: tuple[int, float, bytes], is_thing: bool = True, size: int = 20) -> Instances:
    rles = [mask for _, _, mask in objects]
    return Instances(
        (size, size),
        rle.bboxes(rles, (size, size)).astype(np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in objects], np.float32),
        np.array([label for label, _, _ in objects], np.int32),
        rles,
        np.full(len(objects), is_thing),
    )


def labels_of(folder: Path, *items: tuple[LabelledObject, ...], void: bytes | None = None, classes: Any = None) -> Any:
    rows = []
    for index, objects in enumerate(items):
        path = folder / f"{index}.png"
        Image.new("RGB", (20, 20)).save(path)
        rows.append(LabelledItem(str(path), (20, 20), objects, void_rle=void))
    return make_label_set(rows, classes or [ClassInfo(1, "c1"), ClassInfo(2, "c2")], origin_format="coco")


def test_perfect_wrong_and_absent_answers(tmp_path: Path) -> None:
    one, two = square(2, 2, 10, 10), square(12, 12, 18, 18)
    labels = labels_of(tmp_path, (LabelledObject(1, one), LabelledObject(2, two)), (LabelledObject(1, one),))
    perfect = [answer((1, 0.9, one), (2, 0.8, two)), answer((1, 0.7, one))]
    assert evaluate_predictor(Oracle("instance", perfect), labels).main_figure == pytest.approx(1.0)  # type: ignore[arg-type]
    swapped = [answer((2, 0.9, one), (1, 0.8, two)), answer((2, 0.7, one))]
    assert evaluate_predictor(Oracle("instance", swapped), labels).main_figure == 0  # type: ignore[arg-type]
    nothing = evaluate_predictor(Oracle("instance", [answer(), answer()]), labels)  # type: ignore[arg-type]
    assert nothing.main_figure == 0 and nothing.resample(np.ones((1, 2))).overall.tolist() == [0.0]
    assert set(nothing.figures["mask"]["by_class"]) == {"c1", "c2"}


def test_crowds_count_neither_way_and_figures_below_the_floor_do_not_count(tmp_path: Path) -> None:
    one, crowd = square(2, 2, 10, 10), square(0, 11, 20, 20)
    labels = labels_of(tmp_path, (LabelledObject(1, one), LabelledObject(1, crowd, is_crowd=True)))
    found = [answer((1, 0.9, one), (1, 0.95, square(12, 12, 18, 18)), (1, 1e-4, square(0, 0, 3, 3)))]
    assert evaluate_predictor(Oracle("instance", found), labels).main_figure == pytest.approx(1.0)  # type: ignore[arg-type]


def test_semantic_maps_by_hand(tmp_path: Path) -> None:
    left, upper = square(0, 0, 10, 20), square(0, 0, 20, 10)
    labels = labels_of(tmp_path, (LabelledObject(1, left),), void=square(0, 18, 20, 20))
    judged = evaluate_predictor(Oracle("semantic", [answer((1, 0.9, upper), is_thing=False)]), labels)  # type: ignore[arg-type]
    # of 18 labelled rows: class 1 right in 100 pixels, missed in 80, invented in 100; background right in 80
    assert judged.figures["semantic"]["by_class"] == pytest.approx({"background": 80 / 260, "c1": 100 / 280})
    assert judged.main_figure == pytest.approx((80 / 260 + 100 / 280) / 2)
    assert judged.resample(np.array([[1], [3]])).by_class[:, :2] == pytest.approx(np.array([[80 / 260, 100 / 280]] * 2))


def test_a_box_without_a_mask_is_no_background_to_semantic_models_and_a_crowd_is_its_class(tmp_path: Path) -> None:
    upper, crowd = square(0, 0, 20, 10), square(10, 10, 20, 20)
    objects = (LabelledObject(1, None, (0, 0, 10, 20)), LabelledObject(2, crowd, is_crowd=True))
    labels = labels_of(tmp_path, objects)
    judged = evaluate_predictor(Oracle("semantic", [answer((1, 0.9, upper), is_thing=False)]), labels)  # type: ignore[arg-type]
    # the left half counts nowhere; of the right one, class 1 is found on background above, class 2 missed below
    assert judged.figures["semantic"]["by_class"] == {"background": 0.0, "c1": 0.0, "c2": 0.0}
    assert judged.resample(np.ones((1, 1))).by_class.tolist() == [[0.0, 0.0, 0.0]]
    assert judged.figures["semantic"]["pixel_accuracy"] == 0
    example = Example("x", (20, 20), (ExampleObject(1, (0, 0, 4, 4), None),), ignore_boxes=((10, 10, 20, 20),))
    semantic = semantic_target(example, 0)["semantic"].numpy()
    assert (semantic == 255).sum() == 16 + 100 and set(np.unique(semantic)) == {0, 255}


class PanopticOracle(Oracle):
    """Class 1 is a thing, class 2 stuff."""

    def __init__(self, answers: list[Instances]) -> None:
        super().__init__("panoptic", answers)
        self.weights = replace(self.weights, classes=(ClassInfo(1, "c1"), ClassInfo(2, "c2", is_thing=False)))


def panoptic_answer(*segments: tuple[int, bytes]) -> Instances:
    found = answer(*((label, 0.9, mask) for label, mask in segments))
    return replace(found, is_thing=found.labels == 1)


def test_panoptic_quality_by_hand(tmp_path: Path) -> None:
    classes = [ClassInfo(1, "c1"), ClassInfo(2, "c2", is_thing=False)]
    left, right = square(0, 0, 10, 20), square(10, 0, 20, 20)
    one, crowd = square(0, 0, 10, 10), square(0, 10, 10, 20)
    labels = labels_of(
        tmp_path,
        (LabelledObject(1, left), LabelledObject(2, right)),
        (LabelledObject(1, one), LabelledObject(1, crowd, is_crowd=True), LabelledObject(2, right)),
        void=square(18, 0, 20, 20),
        classes=classes,
    )
    answers = [
        panoptic_answer((1, square(0, 0, 10, 15)), (2, square(10, 0, 20, 20))),  # 15 of 20 rows; void is not looked at
        panoptic_answer((1, one), (1, square(0, 12, 10, 18)), (2, square(15, 0, 20, 20))),  # a find in a crowd is none
    ]
    judged = evaluate_predictor(PanopticOracle(answers), labels)  # type: ignore[arg-type]
    metrics = judged.figures["panoptic"]
    # c1: IoU .75 and 1, nothing missed; c2: IoU 1, then 60 of 160 labelled pixels: one missed, one invented
    assert metrics["by_class"] == pytest.approx({"c1": 1.75 / 2, "c2": 1 / 2})
    assert judged.main_figure == metrics["pq"] == pytest.approx((1.75 / 2 + 1 / 2) / 2)
    assert (metrics["pq_things"], metrics["pq_stuff"]) == pytest.approx((1.75 / 2, 1 / 2))
    resampled = judged.resample(np.array([[1, 0], [0, 1]]))  # each image alone
    assert resampled.by_class == pytest.approx(np.array([[0.75, 1.0], [1.0, 0.0]]))


def test_a_panoptic_truth_keeps_its_crowds(tmp_path: Path) -> None:
    classes = [ClassInfo(1, "c1"), ClassInfo(2, "c2", is_thing=False)]
    stuff, crowd = square(0, 0, 12, 20), square(12, 0, 20, 20)
    objects = (LabelledObject(1, crowd, is_crowd=True), LabelledObject(2, stuff))
    labels = labels_of(tmp_path, objects, objects, classes=classes)
    everywhere = panoptic_answer((2, square(0, 0, 20, 20)))  # over the crowd of another class, too
    wrong = panoptic_answer((2, stuff), (1, crowd))  # right about the crowd, which counts as nothing
    judged = evaluate_predictor(PanopticOracle([everywhere, wrong]), labels)  # type: ignore[arg-type]
    assert judged.resample(np.array([[1, 0], [0, 1]])).by_class == pytest.approx(
        np.array([[np.nan, 0.6], [np.nan, 1.0]]), nan_ok=True
    )


def test_a_panoptic_model_gets_the_figures_of_the_scenes_themselves(tmp_path: Path) -> None:
    source = Digitscape("test", (64, 64), seed=2, dense=False)
    labels = read_label_set(str(write_panoptic(tmp_path, source, 4, image_format="png")))
    plan = make_recipe("digitscape_panoptic", labels.classes, steps=1, seed=0)
    torch.manual_seed(0)
    save_weights(create_model(plan.architecture, **plan.config), tmp_path, name="raw", classes=list(labels.classes))
    predictor = modelkit.load(str(tmp_path / "raw.safetensors"))
    scenes, quality = [source.scene(k) for k in range(4)], PanopticQuality(range(1, 11))
    for scene, found in zip(scenes, predictor([scene.image_rgb for scene in scenes]), strict=True):
        quality.add(scene.panoptic_array(DIVISOR), panoptic_array(found))
    direct, judged = quality.scores(), evaluate_predictor(predictor, labels)
    assert judged.main_figure == pytest.approx(direct.all.pq) and judged.figures["panoptic"]["rq"] == direct.all.rq
    assert json.loads(json.dumps(to_json(judged)))["task"] == "panoptic"


@pytest.mark.parametrize(("name", "classes"), [("annotations", 11), ("panoptic", 16)])
def test_semantic_truth_scores_one_and_nothing_scores_what_the_background_is_worth(
    name: str, classes: int, tmp_path: Path
) -> None:
    """Where stuff is labelled, too, there is no background."""
    write_label_set(tmp_path, Digitscape("test", (96, 96), dense=False), 3)
    labels = read_label_set(str(tmp_path / f"{name}.json"))
    background = 0 if classes == 11 else None

    def judged(answers: list[Instances]) -> dict[str, Any]:
        oracle = Oracle("semantic", answers, background=background)
        oracle.weights = replace(oracle.weights, classes=labels.classes)
        oracle.model.config = {"num_classes": classes}
        return evaluate_predictor(oracle, labels).figures["semantic"]  # type: ignore[arg-type]

    rows = labels.table.to_pylist()
    maps = [label_map(row["labels"], row["rles"], (96, 96), 0) for row in rows]
    segments = [rle.encode_label_map(each, ignore=(0,)) for each in maps]
    perfect = judged([answer(*((k, 1.0, m) for k, m in each.items()), size=96, is_thing=False) for each in segments])
    assert perfect["miou"] == perfect["pixel_accuracy"] == 1.0
    blind = judged([Instances.empty((96, 96)) for _ in rows])
    assert blind["pixel_accuracy"] == pytest.approx(np.mean([each == 0 for each in maps]))
    assert (blind["pixel_accuracy"] == 0) == (background is None)


def test_a_model_that_tracks_is_judged_on_clips(tmp_path: Path) -> None:
    """One who knows the truth makes no mistake; one who confuses names in the last frame switches all identities."""
    write_label_set(tmp_path, CLIPS, 2, num_frames=4)
    tracks = sum(len(CLIPS.clip(k, 4)[0]) for k in range(2))
    labels = read_label_set(str(tmp_path / "panoptic.json"))
    figures = evaluate_predictor(Tracker(labels), labels).figures  # type: ignore[arg-type]
    assert figures["panoptic"]["pq"] == figures["video"]["vpq"] == figures["video"]["vpq_4"] == 1
    assert (figures["video"]["id_switches"], figures["video"]["tracks"]) == (0, tracks)
    swapped = evaluate_predictor(Tracker(labels, swap_last=True), labels).figures["video"]  # type: ignore[arg-type]
    assert swapped["vpq_1"] == 1 > swapped["vpq_2"] > swapped["vpq_4"] and swapped["id_switches"] == tracks > 2


CLIPS = Digitscape("train", (96, 96), 5, SceneStyle(digits=(2, 2), empty_share=0.0, overlap=0.0), dense=False)


class Tracker(Oracle):
    """Says of each frame what its labels say, in the order of the label set or of the clips."""

    def __init__(self, labels: Any, *, swap_last: bool = False) -> None:
        rows = labels.table.to_pylist()
        found = [self._said(row, swap_last and row["frame"] == 3) for row in rows]
        super().__init__("panoptic", found)
        self.weights = replace(self.weights, classes=labels.classes)
        self.model.tracks = True
        self._in_order = iter(found)

    @staticmethod
    def _said(row: dict[str, Any], swap: bool) -> Instances:
        order = [k for k, crowd in enumerate(row["is_crowd"]) if not crowd]
        tracks = np.array([-1 if row["track_ids"][k] is None else row["track_ids"][k] for k in order])
        swapped = np.where(tracks >= 0, 1 - tracks, tracks) if swap else tracks
        said = answer(*((row["labels"][k], 0.9, row["rles"][k]) for k in order), size=96)
        return replace(said, is_thing=np.array([row["is_thing"][k] for k in order]), track_ids=swapped)

    def start(self) -> int:
        return 0

    def step(self, prepared: Prepared, state: int) -> tuple[Instances, int]:
        return next(self._in_order), state + 1


def test_unlabelled_pixels_are_ignored_where_a_model_knows_no_background() -> None:
    assert label_map([2], [square(0, 0, 5, 5)], (20, 20), None)[10, 10] == 255
    assert label_map([2], [square(0, 0, 5, 5)], (20, 20), 0)[10, 10] == 0


def test_reported_figures_name_the_main_one_and_have_words_for_all() -> None:
    stored = {
        "task": "instance",
        "images": 3,
        "mask": {"ap": 0.5, "ap50": 0.7, "by_class": {"c1": 0.5}},
        "box": {"ap": 0.6},
    }
    assert list(groups_of(stored)) == ["mask", "box"] and main_figure(stored) == ("ap", 0.5)
    assert main_figure({"task": "instance", "images": 0}) is None
    names = [in_words(figure, "panoptic") for figure in ("pq", "pq_stuff", "ap50", "ap_small", "pixel_accuracy")]
    assert names == ["PQ", "PQ of stuff", "AP50", "AP small", "pixel accuracy"]
    assert in_words("miou", "semantic") == "mean IoU" and in_words("miou", None) == "miou"


def test_other_class_names_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, (), classes=[ClassInfo(1, "c1"), ClassInfo(2, "cat")])
    with pytest.raises(DatasetError, match="2 is 'c2' to the model and 'cat' in the labels"):
        evaluate_predictor(Oracle("instance", [answer()]), labels)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="landmarks"):
        evaluate_predictor(Oracle("landmarks", [answer()]), labels_of(tmp_path, ()))  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        evaluate_model("no such model", labels)
