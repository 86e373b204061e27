"""Pictures in, results in source pixels out: any size, any neighbours, any thread."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from modelkit import (
    ClassInfo,
    ConfigError,
    ExecutionChoice,
    Instances,
    Predictor,
    UnknownNameError,
    WeightsError,
    describe,
    load,
    save_weights,
)
from modelkit.records import shipped_records
from modelkit.rle import decode
from modelkit.transform import ImageTransform
from modelkit.weights import random_weights
from tests.modelkit.builders import as_tensor, picture, small_mask_rcnn

SEMANTIC = {"num_classes": 4, "transform": {"min_size": 64, "max_size": 128}, "background": None}


@pytest.fixture(scope="module")
def detector() -> Predictor:
    return Predictor(*random_weights("mask_rcnn", 0, small_mask_rcnn()))


@pytest.fixture(scope="module")
def segmentor() -> Predictor:
    return load("lraspp_mobilenet_v3_large:random:0", config=SEMANTIC)


def same(a: Instances, b: Instances, box_tolerance: float = 0.0, score_tolerance: float = 0.0) -> bool:
    return (
        a.size_hw == b.size_hw
        and a.labels.tolist() == b.labels.tolist()
        and np.abs(a.boxes_xyxy - b.boxes_xyxy).max(initial=0) <= box_tolerance
        and np.abs(a.scores - b.scores).max(initial=0) <= score_tolerance
        and (box_tolerance > 0 or a.rles == b.rles)
    )


@pytest.mark.parametrize("size_hw", [(64, 80), (1, 1), (20000, 1), (1, 20000), (37, 91), (480, 640), (2, 3)])
@pytest.mark.parametrize("which", ["detector", "segmentor"])
def test_results_lie_on_the_source_canvas(which: str, size_hw: tuple[int, int], request: pytest.FixtureRequest) -> None:
    predictor: Predictor = request.getfixturevalue(which)
    found = predictor([picture(*size_hw)])[0]
    assert found.size_hw == size_hw
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy[:, 2:] <= [size_hw[1], size_hw[0]]).all()
    assert found.rles is not None
    assert all(decode(rle, size_hw).shape == size_hw for rle in found.rles)
    assert found.is_thing.all() == (which == "detector") or len(found) == 0


def test_without_resizing_it_equals_the_plain_model_call(detector: Predictor) -> None:
    image = picture(64, 90)  # the shorter side is as wanted
    prepared = detector.prepare(image)
    assert np.array_equal(prepared.pixels, image)
    plain = detector.model.predict([as_tensor(image)], padded_hw=prepared.bucket)[0].finish()
    found = detector([image])[0]
    assert len(found) > 5
    assert same(found, plain, box_tolerance=1e-3, score_tolerance=1e-5)


def test_with_resizing_it_stays_near_the_plain_model_call(detector: Predictor) -> None:
    """Resized bytes are rounded to whole grey levels; that is all that differs."""
    image = picture(200, 260)
    prepared = detector.prepare(image)
    rows, columns = prepared.geometry.resized_hw
    exact = detector.model.transform.resize(as_tensor(image) * 255, (rows, columns))
    difference = np.abs(exact.permute(1, 2, 0).numpy() - prepared.pixels)
    assert difference.max() <= 1.01
    batch, _ = detector.model.transform.batch([as_tensor(image)], padded_hw=prepared.bucket)
    with torch.inference_mode():
        plain, ours = detector.model.dense(batch), detector.model.dense(detector.batch([prepared]))
    for name, value in plain.items():
        assert (ours[name] - value).norm() / value.norm() < 0.05, name


def test_neighbours_in_a_batch_change_nothing(detector: Predictor, segmentor: Predictor) -> None:
    for predictor in (detector, segmentor):
        images = [picture(60 + k, 80, k) for k in range(5)]
        alone = [predictor([image])[0] for image in images]
        for found, expected in zip(predictor(images, batch_size=3), alone, strict=True):
            assert same(found, expected, box_tolerance=1e-2, score_tolerance=1e-4)


def test_mixed_sizes_come_back_in_order(detector: Predictor) -> None:
    sizes = [(64, 80), (80, 64), (64, 80), (10, 200), (80, 64)]
    found = detector([picture(*size, seed) for seed, size in enumerate(sizes)], batch_size=2)
    assert [each.size_hw for each in found] == sizes
    assert detector([]) == []


def test_a_batch_of_two_buckets_is_refused(detector: Predictor) -> None:
    prepared = [detector.prepare(picture(64, 90)), detector.prepare(picture(90, 64))]
    with pytest.raises(ValueError, match="one bucket"):
        detector.infer(prepared)


def test_images_of_another_kind_are_refused(detector: Predictor) -> None:
    for wrong in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8"):
            detector.prepare(wrong)


def test_views_and_read_only_arrays_are_taken_as_they_look(detector: Predictor) -> None:
    image = picture(70, 90)
    mirrored = image[:, ::-1]
    frozen = image.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.prepare(frozen)
    assert same(detector([mirrored])[0], detector([np.ascontiguousarray(mirrored)])[0])
    assert same(detector([frozen])[0], detector([image])[0])


def test_padding_reaches_the_dense_part_only_near_the_border() -> None:
    """Detectors pad to a bucket; away from the padded border the maps are the same as without the padding."""
    backbone = {**small_mask_rcnn()["backbone"], "norm": "frozen_batch"}
    model, _ = random_weights("mask_rcnn", 0, small_mask_rcnn(backbone=backbone))
    image = as_tensor(picture(64, 64))
    small, _ = model.transform.batch([image], padded_hw=(64, 64))
    large, _ = model.transform.batch([image], padded_hw=(64, 96))
    with torch.inference_mode():
        a, b = model.backbone(small)["c2"], model.backbone(large)["c2"][..., :16]
    assert torch.allclose(a[..., :13], b[..., :13], atol=1e-5)
    assert (a - b).abs().max() > 1e-2


def test_nothing_found_is_an_empty_result(detector: Predictor) -> None:
    strict = Predictor(detector.model, detector.weights, min_score=1.0)
    found = strict([picture(64, 80)])[0]
    assert len(found) == 0
    assert found.rles == []
    assert found.boxes_xyxy.shape == (0, 4)


def test_results_below_the_wanted_score_are_dropped(detector: Predictor) -> None:
    image = picture(64, 80)
    everything = detector([image])[0]
    middle = float(np.median(everything.scores))
    found = Predictor(detector.model, detector.weights, min_score=middle)([image])[0]
    assert 0 < len(found) < len(everything)
    assert (found.scores >= middle).all()
    assert found.rles == [r for r, s in zip(everything.rles or [], everything.scores, strict=True) if s >= middle]


def test_prepare_and_finish_may_run_in_many_threads(detector: Predictor, segmentor: Predictor) -> None:
    for predictor in (detector, segmentor):
        images = [picture(50 + 3 * k, 70 + k, k) for k in range(12)]
        expected = [predictor([image])[0] for image in images]
        with ThreadPoolExecutor(8) as threads:
            prepared = list(threads.map(predictor.prepare, images))
            raw = [predictor.infer([each])[0] for each in prepared]
            found = list(threads.map(predictor.finish, raw))
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("choice", "tolerance"),
    [
        (ExecutionChoice(), 0.0),
        (ExecutionChoice(channels_last=True), 1e-4),
        (ExecutionChoice(channels_last=True, dtype="bfloat16"), 0.1),
    ],
)
def test_other_ways_of_computing_stay_near(choice: ExecutionChoice, tolerance: float) -> None:
    predictor = Predictor(*random_weights("mask_rcnn", 0, small_mask_rcnn()))
    batch = predictor.batch([predictor.prepare(picture(64, 80))])
    with torch.inference_mode():
        plain = predictor.forward_fn(batch)
        predictor.use(choice)
        batch = predictor.batch([predictor.prepare(picture(64, 80))])
        assert batch.is_contiguous(memory_format=choice.memory_format)
        other = predictor.forward_fn(batch)
    for name, value in plain.items():
        assert (other[name].float() - value).norm() <= tolerance * value.norm(), name
    assert len(predictor([picture(64, 80)])) > 0


def test_a_forward_function_of_ones_own_is_used(detector: Predictor) -> None:
    predictor = Predictor(*random_weights("mask_rcnn", 0, small_mask_rcnn()))
    shapes = []

    def forward(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes.append(tuple(batch.shape))
        return predictor.model.dense(batch)

    predictor.use(ExecutionChoice(compiled=True), forward)
    found = predictor([picture(64, 80)])[0]
    assert shapes == [(1, 3, *predictor.prepare(picture(64, 80)).bucket)]
    assert same(found, detector([picture(64, 80)])[0])


def test_prepared_images_know_their_size(segmentor: Predictor) -> None:
    prepared = segmentor.prepare(picture(480, 640))
    assert prepared.bucket == prepared.geometry.resized_hw == (64, 85)
    assert prepared.nbytes == 64 * 85 * 3
    assert prepared.bucket in ImageTransform.from_config(segmentor.model.config["transform"]).buckets()


def test_loading_by_path_name_and_seed(tmp_path: Path) -> None:
    model, record = random_weights("mask_rcnn", 0, small_mask_rcnn())
    saved = save_weights(model, tmp_path, name="mine", classes=[ClassInfo(1, "x")])
    assert load(tmp_path).weights == load(tmp_path / "mine.safetensors").weights == saved
    assert load("mask_rcnn", weights=tmp_path).weights == saved
    assert describe(tmp_path / "mine.json") == saved
    again = load("mask_rcnn", weights="random:0", config=small_mask_rcnn())
    assert again.weights == record
    assert same(again([picture(64, 80)])[0], load(tmp_path)([picture(64, 80)])[0])
    with pytest.raises(WeightsError, match="'mask_rcnn', not of 'faster_rcnn'"):
        load("faster_rcnn", weights=tmp_path)
    with pytest.raises(ConfigError, match="own"):
        load(tmp_path, config={"num_classes": 3})
    with pytest.raises(ConfigError, match="own weights"):
        load(tmp_path, weights="random:0")


def test_names_that_mean_nothing_are_explained() -> None:
    with pytest.raises(UnknownNameError, match=r"known models: .*deeplabv3plus"):
        load("no_such_model")
    with pytest.raises(WeightsError, match="random:SEED"):
        load("mask_rcnn")
    with pytest.raises(UnknownNameError, match="COCO_V1"):
        load("maskrcnn_resnet50_fpn:COCO_V9")
    with pytest.raises(WeightsError, match="missing"):
        load("nowhere/model.safetensors")


@pytest.mark.parametrize("record", shipped_records(), ids=lambda record: record.name)
def test_shipped_weights_load_by_name_and_are_small(record: object) -> None:
    name = record.name  # type: ignore[attr-defined]
    predictor = load(name)
    assert predictor.weights == describe(name) == record
    assert predictor.weights.lineage["kind"] != "random"
    assert predictor([picture(160, 160)])[0].size_hw == (160, 160)


def test_device_is_where_the_model_runs(detector: Predictor) -> None:
    assert detector.device == torch.device("cpu")
    assert {parameter.device.type for parameter in detector.model.parameters()} == {"cpu"}
    assert not any(parameter.requires_grad for parameter in detector.model.parameters())
