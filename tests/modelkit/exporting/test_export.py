"""Exported models find what the predictor finds, in pixels of an image of any size; what has no graph says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modelkit import ConfigError, Predictor, VideoModel
from modelkit.carriers.landmarks import Landmarks
from modelkit.exporting.program import ImageProgram, export_model
from modelkit.landmarks.landmarker import TopDownModel
from modelkit.semantic.segmentor import SemanticSegmentor, stretch_nearest
from modelkit.weights import random_weights
from tests.modelkit.builders import picture, small_landmarker, small_mask_rcnn, small_panoptic, small_yolact
from tests.modelkit.model_tester import CASES

SOURCE_HW = (64, 90)
SAME_BUCKET_HW = (100, 140)
OTHER_HW = (120, 70)
_LITE = {
    "num_classes": 4,
    "backbone": {"name": "efficientnet_lite0", "out": ["c2", "c4"]},
    "head": {"channels": 16},
    "transform": {"min_size": 64, "max_size": 96, "padding": "pad", "size_divisible": 32},
}
_FCN = {
    "num_classes": 4,
    "backbone": {"width": 8},
    "head": {"channels": 16},
    "transform": {"min_size": 64, "max_size": 96},
}
LEAVES = ("heatmap_landmarker", "panoptic_fpn")  # something to the caller
EXPORTED = {
    "deeplabv3plus": _LITE,
    "fcn": _FCN,
    "fcos_resnet50_fpn": CASES["fcos_resnet50_fpn"].config,
    "heatmap_landmarker": small_landmarker(),
    "mask_rcnn": small_mask_rcnn(),
    "retinaface": CASES["retinaface"].config,
    "panoptic_fpn": small_panoptic(semantic={"channels": 32}),
    "yolact": small_yolact(),
}


def predictor_of(name: str, config: dict[str, Any]) -> Predictor:
    return Predictor(*random_weights(name, 0, config))


def expected(predictor: Predictor, image: np.ndarray) -> dict[str, np.ndarray]:
    """What the predictor's own steps give, by the names of a graph's outputs."""
    prepared = predictor.prepare(image)
    with torch.no_grad():
        raw = predictor.model.dense(predictor.batch([prepared]))
    if isinstance(predictor.model, SemanticSegmentor):
        return {"label_map": predictor.decode(raw, [prepared.geometry])[0].full_size()}  # type: ignore[attr-defined]
    if isinstance(predictor.model, TopDownModel):
        seen = predictor.model.decode(raw, [prepared.geometry])[0].finish()
        return {name: getattr(seen, name) for name in ("keypoints_xy", "keypoint_scores", "scores")}
    detector: Any = getattr(predictor.model, "detector", predictor.model)
    found = detector.decode(raw, [prepared.geometry])[0].finish()
    seen = {"boxes_xyxy": found.boxes_xyxy, "scores": found.scores, "labels": found.labels}
    if isinstance(found, Landmarks):
        shown = ("keypoints_xy", "keypoint_scores") if found.keypoints_xy.shape[1] else ()
        return seen | {name: getattr(found, name) for name in shown}
    if found.rles is not None:
        seen["masks"] = found.masks()
    if detector is not predictor.model:
        seen["stuff_map"] = _stuff(predictor.model, raw["semantic_logits"], prepared.geometry)
    return seen


def _stuff(model: Any, logits: Tensor, geometry: Any) -> np.ndarray:
    full = torch.nn.functional.interpolate(logits, geometry.padded_hw, mode="bilinear", align_corners=False)[0]
    channels = stretch_nearest(
        full.argmax(0).numpy()[: geometry.resized_hw[0], : geometry.resized_hw[1]], geometry.source_hw
    )
    things, every = model.num_things, model.fusion.channels()
    return np.vectorize({every[label - 1]: label for label in range(things + 1, len(every) + 1)}.get)(channels, 0)


def _tolerance(name: str) -> float:
    """Pixels for places. A pixel may be resized to the next of 256 levels; maps of random weights are nearly flat, so
    their peaks show it undamped.
    """
    return {"boxes_xyxy": 1e-2, "keypoints_xy": 5e-2, "keypoint_scores": 5e-4}.get(name, 1e-4)


def assert_alike(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, atol=_tolerance(name), err_msg=name)
        else:
            assert (found[name] == value).mean() >= 0.999, name


def run(program: Callable[[Tensor], dict[str, Tensor]], image: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in program(torch.from_numpy(image)).items()}


REFUSED = {
    "centernet_triplet", "centernet_triplet52", "cornernet", "densepose_rcnn", "keypoint_rcnn",
    "keypointrcnn_resnet50_fpn", "vpsnet", "yolact_edge", "yolact_edge_resnet50",
}  # fmt: skip


def why_not(predictor: Predictor) -> str | None:
    """What those that are refused are told."""
    if isinstance(predictor.model, VideoModel):
        return "remembers earlier frames"
    return None if predictor.model.has_graph else "does not branch on what it finds"


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_registered_model_has_a_graph_that_equals_the_predictor_or_says_why_it_has_none(
    name: str, tmp_path: Path
) -> None:
    predictor = predictor_of(name, CASES[name].config)
    reason = why_not(predictor)
    assert (reason is not None) == (name in REFUSED)
    if reason is not None:
        with pytest.raises(ConfigError, match=f"{predictor.weights.reference} cannot be exported: .*{reason}"):
            export_model(predictor, tmp_path / "model.pt2", "torch", SOURCE_HW)
        assert not list(tmp_path.iterdir())
        return
    image = picture(*SOURCE_HW)
    found = run(ImageProgram(predictor, SOURCE_HW), image)
    wanted = expected(predictor, image)
    assert_alike(found, wanted)
    assert wanted.get("scores", np.ones(1)).size, "an empty result proves nothing"


@pytest.mark.timeout(900)  # exporters take a quarter of a minute of processor time for each
@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_files_of_either_form_find_what_the_predictor_finds_in_images_of_any_size(name: str, tmp_path: Path) -> None:
    predictor = predictor_of(name, EXPORTED[name])
    module = ImageProgram(predictor, SOURCE_HW)
    images = {size_hw: picture(*size_hw, seed=3) for size_hw in (SOURCE_HW, SAME_BUCKET_HW, OTHER_HW)}
    wanted = {
        size_hw: run(module, image) if size_hw == OTHER_HW else expected(predictor, image)
        for size_hw, image in images.items()
    }
    done = export_model(predictor, tmp_path / "model.pt2", "torch", SOURCE_HW)
    kept = {"record.json": ""}
    program = torch.export.load(done.path, extra_files=kept).module()
    assert json.loads(kept["record.json"])["digest"] == predictor.weights.digest
    for size_hw, image in images.items():
        assert_alike(run(program, image), wanted[size_hw])
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = export_model(predictor, tmp_path / "model.onnx", "onnx", SOURCE_HW)
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    assert names == list(done.outputs)
    for size_hw, image in images.items():
        assert_alike(dict(zip(names, session.run(None, {"image": image}), strict=True)), wanted[size_hw])
    told = session.get_modelmeta().custom_metadata_map
    assert told["visionmill.digest"] == predictor.weights.digest
    assert json.loads(told["visionmill.classes"])[0]["id"] == predictor.weights.classes[0].id
    assert bool(told["visionmill.left_to_caller"]) == (name in LEAVES) == bool(done.left_to_caller)


@pytest.mark.parametrize("rule", ["network", "coarse", "source", "grid"])
@pytest.mark.parametrize("padding", ["pad", "square", "stretch", "multiple", "letterbox", "none"])
def test_every_rule_of_sizes_has_the_predictors_labels_on_images_of_its_bucket(rule: str, padding: str) -> None:
    transform = {"min_size": 64, "max_size": 96, "padding": padding, "size_divisible": 32, "antialias": rule == "grid"}
    transform |= {"fixed_hw": [64, 96]} if padding == "letterbox" else {}
    config = {**CASES["deeplabv3plus"].config, "upsample": rule, "transform": transform}
    predictor = predictor_of("deeplabv3plus", config)
    program = ImageProgram(predictor, SOURCE_HW)
    for size_hw in (SOURCE_HW, SAME_BUCKET_HW, (33, 46)):
        image = picture(*size_hw, seed=1)
        assert predictor.prepare(image).bucket == program.preparation.padded_hw
        assert_alike(run(program, image), expected(predictor, image))


def test_an_image_of_another_shape_is_fitted_whole_into_the_networks_input() -> None:
    predictor = predictor_of("fcn", _FCN)
    program = ImageProgram(predictor, SOURCE_HW)
    _, canvas = program.preparation(torch.from_numpy(picture(400, 100)))
    rows, columns = canvas.content_hw.tolist()
    assert program.preparation.padded_hw == (64, 96) and (rows, columns) == (64, 16)


def test_what_has_no_graph_is_refused_with_the_reason(tmp_path: Path) -> None:
    cubic = predictor_of("fcn", {**_FCN, "transform": {**_FCN["transform"], "resizing": "bicubic"}})
    with pytest.raises(ConfigError, match="cubic curves"):
        export_model(cubic, tmp_path / "a.pt2", "torch")
    with pytest.raises(ConfigError, match="does not branch on what it finds"):
        export_model(predictor_of("cornernet", CASES["cornernet"].config), tmp_path / "a.pt2", "torch")
    with pytest.raises(ConfigError, match="no form 'caffe': onnx, torch"):
        export_model(cubic, tmp_path / "a", "caffe")
