"""Landmark models through the real job: every family, top-down ones on a detector's boxes and on earlier ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelkit import Predictor, create_model
from modelkit.landmarks import DetectingPredictor, FoundBoxes, TopDownPredictor
from modelkit.registry import find_model, register_variant, temporary_registrations
from modelkit.weights import random_weights
from tasks.product import find_product, stores
from tasks.products.landmarks.surfaces import surface_from_png
from tests.flows.command import Said, ask, refused, segment, visionmill
from tests.flows.scenes import SIZE_HW, write_scenes
from tests.modelkit.model_tester import CASES
from tests.videos import make_video

NUM_FRAMES = 2
SERIAL = ("--ray", "none", "--no-prefect", "--no-report", "--compile", "off")
UNTRAINED = ("--model", "small", "--weights", "random:0", "--score-threshold", "0")
FAMILIES = ("retinaface", "centernet_pose", "cornernet", "heatmap_landmarker", "coordinate_landmarker", "hourglass",
            "keypoint_rcnn", "keypointrcnn_resnet50_fpn", "densepose_rcnn")  # fmt: skip
DETECTOR = "ssdlite320_mobilenet_v3_large"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, a short clip and a file that is no picture."""
    folder = tmp_path_factory.mktemp("source")
    write_scenes(folder, 2)
    (folder / "clip.mp4").write_bytes(make_video("mp4", "libx264", frames=NUM_FRAMES, size_hw=(48, 64)))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with temporary_registrations():
        yield


def small(name: str, called: str = "small") -> None:
    """Register a model at the size of its test case."""
    register_variant(called, name, **CASES[name].config)


def landmark(source: Path, output: Path, *options: str | Path) -> list[dict[str, Any]]:
    """The ok rows that a job left, after ``verify`` had nothing to say."""
    counts = landmarked(source, output, *options).summary["items"]
    assert (counts["ok"], counts["failed"]) == (2 + NUM_FRAMES, 1)
    assert visionmill("verify", output, "--deep", "--json").summary["problems"] == []
    return ask(output, "SELECT * FROM items WHERE status = 'ok' ORDER BY uri, frame")


def landmarked(source: Path, output: Path, *options: str | Path) -> Said:
    return visionmill("landmark", source, output, *SERIAL, *UNTRAINED, *options, "--json")


def test_the_families_of_this_file_are_all_that_the_product_stores() -> None:
    stored = {name for name in CASES if stores(find_product("landmarks"), find_model(name).kind)}
    assert {find_model(name).architecture for name in stored} == {find_model(name).architecture for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_through_the_job_and_its_rows_keep_the_rules(name: str, source: Path, tmp_path: Path) -> None:
    small(name)
    model = create_model("small")
    points = getattr(model, "num_keypoints", 0)
    rows = landmark(source, tmp_path / "out")
    assert any(row["labels"] for row in rows), "nothing was found, so nothing was tested"
    for row in rows:
        boxes = np.array(row["boxes_xyxy"]).reshape(-1, 4)
        assert ((boxes >= 0) & (boxes <= [row["width"], row["height"]] * 2)).all()
        assert np.shape(row["keypoint_scores"]) == (len(row["labels"]), points) or not row["labels"]
        said = row["keypoint_set"]
        assert (said is None) == (points == 0)
        assert said is None or len(said["names"]) == points
        assert row["track_ids"] is None
        assert (row["surfaces"] is not None) == (name == "densepose_rcnn")
        for data, (x, y) in zip(row["surfaces"] or (), row["surface_origins_xy"] or (), strict=True):
            surface = surface_from_png(bytes.fromhex(data), (x, y))
            assert x + surface.parts.shape[1] <= row["width"] and y + len(surface.parts) <= row["height"]
    [counted] = ask(tmp_path / "out", "SELECT count(*) AS n, count(DISTINCT name) AS names FROM keypoints")
    assert counted == {"n": points * sum(len(row["labels"]) for row in rows), "names": points}


def test_workers_of_ray_leave_the_rows_of_this_process(source: Path, tmp_path: Path) -> None:
    name = "keypointrcnn_resnet50_fpn"  # registered in every process, unlike what a test registers
    words = (*SERIAL[2:], "--model", name, "--weights", "random:0", "--score-threshold", "0", "--json")
    for place, ray in (("ray", ()), ("here", ("--ray", "none"))):
        said = visionmill("landmark", source / "scene 0.jpg", tmp_path / place, *words, *ray)
        assert said.summary["items"]["ok"] == 1
    rows = [ask(tmp_path / place, "SELECT keypoints_xy, scores FROM items") for place in ("ray", "here")]
    assert rows[0] == rows[1]
    assert len(rows[0][0]["scores"]) > 0


def test_what_a_model_finds_is_drawn_reported_and_exported(source: Path, tmp_path: Path) -> None:
    small("retinaface")
    words = [word for word in SERIAL if word != "--no-report"]
    visionmill("landmark", source, tmp_path / "out", *words, *UNTRAINED)
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Landmarks of source" in page and "Mean score by keypoint" in page and "point 3" in page
    for to, name in (("images", "drawn"), ("video", "clips")):
        said = visionmill("export", tmp_path / "out", tmp_path / name, "--to", to, "--min-score", "0", "--json").summary
        assert said["num_objects"] > 0
    assert sorted(path.name for path in (tmp_path / "drawn").rglob("*.jpg")) == [
        "000000.jpg", "000001.jpg", "scene 0.jpg", "scene 1.jpg",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "clips").glob("*.mp4")] == ["clip.mp4"]


def test_objects_keep_their_ids_through_a_video_that_is_cut_between_shards(tmp_path: Path) -> None:
    small("retinaface")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clip.mp4").write_bytes(make_video("mp4", "libx264", frames=6, size_hw=(48, 64)))
    write_scenes(tmp_path / "in", 1)
    rows = {}
    for name, options in (("cut", ("--shard-items", "2")), ("whole", ()), ("smooth", ("--smooth", "0.05"))):
        done = landmarked(tmp_path / "in", tmp_path / name, "--track", *options).summary
        assert done["items"]["ok"] == 7
        sql = "SELECT frame, keypoints_xy, scores, track_ids FROM items WHERE media = 'video' ORDER BY frame"
        rows[name] = ask(tmp_path / name, sql)
        assert visionmill("verify", tmp_path / name, "--deep", "--json").summary["problems"] == []
        assert ask(tmp_path / name, "SELECT track_ids FROM items WHERE media = 'image'") == [{"track_ids": None}]
    assert rows["cut"] == rows["whole"], "what a shard leaves is what the next one starts from"
    assert [row["scores"] for row in rows["smooth"]] == [row["scores"] for row in rows["whole"]]
    assert rows["smooth"][0]["keypoints_xy"] == rows["whole"][0]["keypoints_xy"]
    [told] = ask(tmp_path / "whole", "SELECT max(n) AS longest FROM (SELECT count(*) AS n FROM objects"
                 " WHERE track_id IS NOT NULL GROUP BY uri, track_id)")  # fmt: skip
    assert told["longest"] > 2, "more frames than a shard has"
    assert "give track, too" in refused(2, "landmark", tmp_path / "in", tmp_path / "x", "--smooth", "0.1")


class TestTopDown:
    """A landmarker and an untrained detector, which finds boxes all the same."""

    def test_a_detector_in_the_same_worker_says_whose_points_are_looked_for(self, source: Path, tmp_path: Path) -> None:
        small("heatmap_landmarker")
        small(DETECTOR, "finder")
        options = ("--detector", "finder:random:0", "--box-score", "0")
        rows = landmark(source, tmp_path / "out", *options)
        assert max(len(row["labels"]) for row in rows) > 1
        found = segment(source, tmp_path / "boxes", "--model", "finder", "--weights", "random:0",
                        "--score-threshold", "0")  # fmt: skip
        assert found["items"]["ok"] == 2 + NUM_FRAMES
        boxes = ask(tmp_path / "boxes", "SELECT boxes_xyxy, labels FROM items WHERE status = 'ok' ORDER BY uri, frame")
        for row, there in zip(rows, boxes, strict=True):
            assert sorted(row["boxes_xyxy"]) == sorted(there["boxes_xyxy"])
            assert sorted(row["labels"]) == sorted(there["labels"])
            assert row["scores"] == sorted(row["scores"], reverse=True)
        again = landmarked(source, tmp_path / "again", "--boxes", tmp_path / "boxes", "--box-score", "0")
        assert again.summary["items"]["ok"] == 2 + NUM_FRAMES
        same = ask(tmp_path / "again", "SELECT * FROM items WHERE status = 'ok' ORDER BY uri, frame")
        for row, other in zip(rows, same, strict=True):
            assert row["boxes_xyxy"] == other["boxes_xyxy"]
            assert row["keypoints_xy"] == other["keypoints_xy"]

    def test_an_item_without_earlier_boxes_costs_its_own_row(self, source: Path, tmp_path: Path) -> None:
        small("heatmap_landmarker")
        small(DETECTOR, "finder")
        few = tmp_path / "few"
        write_scenes(few, 1)
        segment(few, tmp_path / "boxes", "--model", "finder", "--weights", "random:0", "--score-threshold", "0")
        write_scenes(few, 2)
        counts = landmarked(few, tmp_path / "out", "--boxes", tmp_path / "boxes").summary["items"]
        assert (counts["ok"], counts["failed"]) == (1, 1)
        [failure] = ask(tmp_path / "out", "SELECT stage, error FROM failures")
        assert failure["stage"] == "infer"
        assert "has no row of it" in failure["error"]

    def test_what_cannot_be_looked_at_is_refused_before_anything_is_done(self, source: Path, tmp_path: Path) -> None:
        small("heatmap_landmarker")
        words = ("landmark", source, tmp_path / "out", *SERIAL, *UNTRAINED)
        assert "detector or boxes, not both" in refused(2, *words, "--detector", "x", "--boxes", "y")
        assert "nosuch" in refused(2, *words, "--detector", "nosuch")
        write_scenes(tmp_path / "empty", 1)
        assert "holds no results" in refused(2, *words, "--boxes", tmp_path / "empty")
        small("retinaface", "faces")
        faces = ("--model", "faces", "--weights", "random:0", "--detector", "faces:random:0")
        assert "finds its objects itself" in refused(2, "landmark", source, tmp_path / "out", *SERIAL, *faces)
        assert "have no class 'cat'" in refused(2, *words, "--detector", "faces:random:0", "--box-class", "cat")


def landmarker(seed: int = 0) -> Predictor:
    return Predictor(*random_weights("heatmap_landmarker", seed, CASES["heatmap_landmarker"].config))


def test_objects_of_many_images_share_batches_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*SIZE_HW, 3), np.uint8) for _ in range(3)]
    boxes = [np.array([[4, 4, 40, 60], [10, 20, 90, 80]], np.float32), np.zeros((0, 4), np.float32),
             np.array([[0, 0, 128, 96], [5, 5, 5, 9], [30, 8, 60, 70]], np.float32)]  # fmt: skip
    plain = landmarker()
    wide = TopDownPredictor(plain, plain.weights.classes, objects_per_batch=3)
    narrow = TopDownPredictor(plain, plain.weights.classes, objects_per_batch=1)
    sizes: list[int] = []
    forward = wide.forward_fn
    wide.forward_fn = lambda batch: sizes.append(len(batch)) or forward(batch)  # type: ignore[func-returns-value]

    def found(predictor: TopDownPredictor) -> list[Any]:
        known = [FoundBoxes(one, np.ones(len(one), np.float32), np.ones(len(one), np.int64)) for one in boxes]
        prepared = [predictor.prepare_boxes(*each) for each in zip(images, known, strict=True)]
        return [predictor.finish(raw) for raw in predictor.infer(prepared)]

    together, alone = found(wide), found(narrow)
    assert sizes == [3, 1], "four boxes have an area"
    assert [len(one) for one in together] == [2, 0, 2]
    for one, other in zip(together, alone, strict=True):
        assert one.keypoint_set == plain.weights.keypoints
        assert np.allclose(one.keypoints_xy, other.keypoints_xy, atol=1e-3)
        assert np.allclose(one.boxes_xyxy, other.boxes_xyxy)


def test_only_boxes_of_chosen_classes_and_scores_are_looked_at() -> None:
    detector = Predictor(*random_weights(DETECTOR, 0, CASES[DETECTOR].config))
    image = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    [boxes] = detector([image])
    wanted = detector.weights.classes[int(boxes.labels[0]) - 1]
    both = DetectingPredictor(landmarker(), detector, box_score=0.0, box_classes=(wanted.name,))
    [found] = both([image])
    assert set(found.labels.tolist()) == {wanted.id}
    assert len(found) == (boxes.labels == wanted.id).sum()
    assert both.weights.class_names()[wanted.id] == wanted.name
    with pytest.raises(Exception, match="boxes have no class 'nosuch'"):
        DetectingPredictor(landmarker(), detector, box_classes=("nosuch",))
