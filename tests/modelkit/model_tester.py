"""What every registered model must do. A new model needs one line in ``CASES`` and gets all of these checks.

``python -m tests.modelkit.model_tester`` stores the outputs that ``stored_output`` compares with.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modelkit import ClassInfo, VisionModel, create_model, load_weights, save_weights
from modelkit.carriers.targets import IGNORE
from modelkit.registry import model_names
from modelkit.weights import random_weights
from tests.modelkit.builders import (
    SMALL_TRANSFORM,
    as_tensor,
    picture,
    points_in,
    rectangles,
    small_centernet,
    small_cornernet,
    small_densepose_rcnn,
    small_keypoint_rcnn,
    small_landmarker,
    small_mask_rcnn,
    small_panoptic,
    small_retinaface,
    small_vpsnet,
    small_yolact,
    surface_points_in,
)

STORED = Path(__file__).parent / "stored_outputs.json"
_SEMANTIC = {"num_classes": 4, "transform": {"min_size": 64, "max_size": 96, "padding": "none"}}
_SLIM = {"name": "slim_resnet", "widths": [16, 32, 32], "depths": [1, 1, 1]}
_RCNN = {
    "num_classes": 4,
    "transform": SMALL_TRANSFORM,
    "rpn": {"pre_nms_train": 60, "post_nms_train": 40, "pre_nms_test": 60, "post_nms_test": 40},
    "heads": {"box": {"detections_per_image": 20}},
    "sampler": {"per_image": 16},
}
_ONE_SIZE = {**SMALL_TRANSFORM, "train_min_sizes": []}
_ONE_STAGE = {"num_classes": 4, "transform": SMALL_TRANSFORM, "score_threshold": 0.0, "detections_per_image": 20}
_SSD = {**_ONE_STAGE, "transform": {"min_size": 64, "max_size": 64}}
_ELSEWHERE_IGNORED = {"ignore_boxes": torch.tensor([[-1000.0, -1000.0, 1000.0, 1000.0]])}
_TOLERANCE = 2e-3  # relative, of stored statistics: normal draws and kernels differ in last bits between processors


@dataclass(frozen=True)
class Case:
    """A registered model made small enough for a test.

    Args:
        name, config: of the model.
        learns_background: False for those that look at objects alone, which nothing around them teaches.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    learns_background: bool = True

    def create(self, seed: int = 0) -> VisionModel:
        """With seeded weights, in evaluation mode."""
        return random_weights(self.name, seed, self.config)[0]


def _small_faster_rcnn() -> dict[str, Any]:
    config = small_mask_rcnn()
    return {**config, "heads": {"box": config["heads"]["box"]}}


CASES = {
    case.name: case
    for case in (
        Case("mask_rcnn", small_mask_rcnn()),
        Case("faster_rcnn", _small_faster_rcnn()),
        Case("maskrcnn_resnet50_fpn", _RCNN),
        Case("maskrcnn_resnet50_fpn_v2", _RCNN),
        Case("fasterrcnn_resnet50_fpn", _RCNN),
        Case("fasterrcnn_resnet50_fpn_v2", _RCNN),
        Case("keypoint_rcnn", small_keypoint_rcnn()),
        Case(
            "keypointrcnn_resnet50_fpn",
            {**_RCNN, "heads": {**_RCNN["heads"], "keypoint": {"channels": [64]}}, "transform": _ONE_SIZE},
        ),
        Case("densepose_rcnn", small_densepose_rcnn()),
        Case("retinanet_resnet50_fpn", _ONE_STAGE),
        Case("retinanet_resnet50_fpn_v2", _ONE_STAGE),
        Case("fcos_resnet50_fpn", _ONE_STAGE),
        Case("ssd300_vgg16", {**_SSD, "num_maps": 4}),
        Case("ssdlite320_mobilenet_v3_large", _SSD),
        Case("yolact", small_yolact()),
        Case("yolact_resnet50", small_yolact()),
        Case(
            "yolact_darknet53",
            small_yolact(backbone={"width": 4, "depths": [1, 1, 1, 1, 1]}),
        ),
        Case("yolact_resnet50_pascal", small_yolact()),
        Case("yolact_im400", small_yolact()),
        Case("yolact_im700", small_yolact()),
        Case("yolact_edge", small_yolact(feature_transform={"width": 8})),
        Case("yolact_edge_resnet50", small_yolact(feature_transform={"width": 8})),
        Case("lraspp_mobilenet_v3_large", _SEMANTIC),
        Case("deeplabv3_mobilenet_v3_large", _SEMANTIC),
        Case("deeplabv3_resnet50", _SEMANTIC),
        Case("deeplabv3_resnet101", _SEMANTIC),
        Case("fcn_resnet50", _SEMANTIC),
        Case("fcn_resnet101", _SEMANTIC),
        Case("deeplabv3plus", {**_SEMANTIC, "backbone": _SLIM, "head": {"channels": 16, "decoder_convs": 2}}),
        Case("deeplabv3plus_resnet50", {**_SEMANTIC, "head": {"channels": 16, "separable": True}}),
        Case("deeplabv3plus_resnet101", {**_SEMANTIC, "backbone": {"depth": 50}, "head": {"channels": 16}}),
        Case("deeplabv3plus_mobilenet_v2", {**_SEMANTIC, "head": {"channels": 16}}),
        *(
            Case(name, {**_SEMANTIC, "backbone": {"width": 8}, "head": {"channels": 16}})
            for name in ("fcn", "fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce")
        ),
        Case("unet", {**_SEMANTIC, "backbone": {"widths": [16, 16, 32, 32]}}),
        Case("unet_bilinear", {**_SEMANTIC, "backbone": {"widths": [16, 16, 32, 32]}}),
        Case("unet_original", {**_SEMANTIC, "backbone": {"widths": [16, 16, 32]}}),
        Case("panoptic_fpn", small_panoptic(semantic={"channels": 32})),
        Case("vpsnet", small_vpsnet()),
        Case("retinaface", small_retinaface()),
        Case("retinaface_resnet50", small_retinaface(num_vertices=0)),
        *(Case(name, small_centernet()) for name in ("centernet", "centernet_resdcn101")),
        *(Case(name, small_centernet()) for name in ("centernet_resnet18", "centernet_resnet101")),
        Case("centernet_pose", small_centernet(num_keypoints=5)),
        Case("cornernet", small_cornernet()),
        Case("centernet_triplet", small_cornernet()),
        Case("centernet_triplet52", small_cornernet(backbone={**small_cornernet()["backbone"], "stacks": 1})),
        Case("heatmap_landmarker", small_landmarker(), learns_background=False),
        Case(
            "coordinate_landmarker",
            small_landmarker(mode="soft_argmax", flip_test=True),
            learns_background=False,
        ),
        Case(
            "hourglass",
            {"num_keypoints": 3, "stacks": 2, "width": 16, "depth": 2, "transform": {"fixed_hw": [64, 64]}},
            learns_background=False,
        ),
        Case("upsnet", small_panoptic(semantic={"channels": [32, 32]})),
    )
}


class ModelTester:
    """The checks; ``test_models.py`` runs each on each case. The model is built once and left unchanged.

    Args:
        case: which model.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, case.create()

    def images(self) -> list[Tensor]:
        """Two of the same size."""
        return [as_tensor(picture(64, 80, seed)) for seed in (1, 2)]

    def target(self, boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
        """Rectangles in a picture of 64 x 80 pixels, with as many points as the model finds, and its surfaces."""
        target = rectangles(64, 80, boxes, labels)
        if self.model.surface_parts:
            target["surface_points"] = surface_points_in(target["boxes"], 1)
        points = int(getattr(self.model, "num_keypoints", 0))
        return {**target, "keypoints": points_in(target["boxes"], points)} if points else target

    def targets(self) -> list[dict[str, Tensor]]:
        """One with two objects, one with one."""
        return [
            self.target([[8, 8, 30, 40], [40, 20, 70, 60]], [1, 2]),
            self.target([[20, 10, 60, 50]], [3]),
        ]

    def losses_are_named_finite_and_reach_every_trainable_parameter(self) -> None:
        model = copy.deepcopy(self.model).train()
        torch.manual_seed(0)
        losses = model(self.images(), self.targets())
        assert losses
        assert set(losses) <= set(model.loss_weights)
        assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values()), losses
        sum(losses.values(), torch.zeros(())).backward()
        parameters = dict(model.named_parameters())
        unreached = [n for n, p in parameters.items() if p.requires_grad and p.grad is None]
        infinite = [n for n, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        assert not unreached
        assert not infinite

    def ignored_regions_and_weights_count_as_promised(self) -> None:
        """``docs/training.md``: a gradient of exactly 0 from what is ignored or weighs nothing; half counts half."""
        whole = self.targets()[0]
        elsewhere = torch.where(whole["masks"].amax(0) > 0, whole["semantic"], IGNORE)
        sure = whole | _ELSEWHERE_IGNORED | {"semantic": elsewhere}
        nothing = self.target([], []) | _ELSEWHERE_IGNORED | {"semantic": torch.full((64, 80), IGNORE)}
        assert not self._learns(nothing)
        assert not self._learns(_weighing(sure, 0.0))
        with torch.no_grad():
            plain, ones, half = (self._labelled(each) for each in (sure, _weighing(sure, 1.0), _weighing(sure, 0.5)))
            with_background = self._labelled(whole)
        assert any(float(value) > 0 for value in plain.values())
        if self.case.learns_background:
            assert plain != with_background, "what is not ignored is background, and teaches that"
        for name, value in plain.items():
            assert float(ones[name]) == pytest.approx(float(value), rel=1e-5), name
            if name != "loss_dice":  # a ratio of pixels; only those of weight 0 are left out of it
                assert float(half[name]) == pytest.approx(0.5 * float(value), rel=1e-4, abs=1e-7), name

    def _labelled(self, target: dict[str, Tensor], model: VisionModel | None = None) -> dict[str, Tensor]:
        """Losses that come of labels, of a batch of one picture twice."""
        torch.manual_seed(0)
        image = self.images()[0]
        losses = (model or copy.deepcopy(self.model).train())([image, image], [dict(target), dict(target)])
        return {name: value for name, value in losses.items() if name != "loss_feature_matching"}

    def _learns(self, target: dict[str, Tensor]) -> bool:
        """Whether any parameter gets a gradient that is not exactly 0."""
        model = copy.deepcopy(self.model).train()
        sum(self._labelled(target, model).values(), torch.zeros(())).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        return any(bool((gradient != 0).any()) for gradient in gradients)

    def images_without_objects_give_finite_losses(self) -> None:
        nothing = self.target([], [])
        losses = copy.deepcopy(self.model).train()(self.images(), [nothing, nothing])
        assert all(torch.isfinite(value) for value in losses.values()), losses

    def predictions_are_in_source_pixels_for_any_size(self) -> None:
        for height, width in ((1, 1), (37, 91), (64, 80), (3, 200), (131, 67)):
            found = self.model.predict([as_tensor(picture(height, width))])[0].cpu().finish()
            assert found.size_hw == (height, width)
            boxes = found.boxes_xyxy
            assert (boxes >= 0).all()
            assert (boxes[:, [0, 2]] <= width).all()
            assert (boxes[:, [1, 3]] <= height).all()
            assert ((found.scores >= 0) & (found.scores <= 1)).all()

    def finishing_with_a_score_leaves_what_reaches_it(self) -> None:
        found = self.model.predict(self.images()[:1])[0].cpu()
        whole = found.finish()
        middle = float(np.median(whole.scores)) if len(whole) else 0.5
        some, expected = found.finish(middle), whole.chosen(np.flatnonzero(whole.scores >= middle))
        assert len(some) == len(expected) >= min(len(whole), 1)
        assert_equal_carriers(some, expected)
        assert len(found.finish(1.1)) == 0

    def a_batch_equals_its_images_alone(self) -> None:
        images = self.images()
        together = self.model.predict(images)
        alone = [self.model.predict([image])[0] for image in images]
        for a, b in zip(together, alone, strict=True):
            first, second = a.finish(), b.finish()
            assert len(first) == len(second)
            assert abs(first.boxes_xyxy - second.boxes_xyxy).max(initial=0) < 2e-2
            assert abs(first.scores - second.scores).max(initial=0) < 1e-3

    def the_dense_part_has_flat_fixed_outputs_that_depend_on_nothing_else(self) -> None:
        batch, _ = self.model.transform.batch(self.images())
        with torch.inference_mode():
            first, second = self.model.dense(batch), self.model.dense(batch)
        assert all(isinstance(name, str) and isinstance(value, Tensor) for name, value in first.items())
        assert all(torch.equal(first[name], second[name]) for name in first)

    def bfloat16_stays_near_float32(self) -> None:
        batch, geometries = self.model.transform.batch(self.images())
        with torch.inference_mode():
            exact = self.model.dense(batch)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = self.model.dense(batch)
            for name, value in exact.items():
                if value.is_floating_point():
                    error = (rough[name].float() - value).norm() / value.norm().clamp(min=1e-6)
                    assert error < 0.1, f"{name}: {error:.3f}"
            for found in self.model.decode(rough, geometries):
                found.cpu().finish()

    def predicting_changes_no_weights(self) -> None:
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.predict(self.images())
        after = self.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def config_alone_builds_it_again(self) -> None:
        config = json.loads(json.dumps(self.model.config))
        again = create_model(**config)
        assert again.config == self.model.config
        assert {n: v.shape for n, v in again.state_dict().items()} == {
            n: v.shape for n, v in self.model.state_dict().items()
        }
        assert again.transform == self.model.transform

    def saved_and_loaded_it_computes_the_same(self, folder: Path) -> None:
        save_weights(self.model, folder, name="it", classes=[ClassInfo(1, "one")])
        loaded, record = load_weights(folder)
        batch, _ = self.model.transform.batch(self.images())
        with torch.inference_mode():
            expected, actual = self.model.dense(batch), loaded.dense(batch)
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
        assert record.architecture == self.case.name

    def stored_output(self) -> None:
        stored = json.loads(STORED.read_text())[self.case.name]
        actual = summary(self.model, self.images())
        assert stored.keys() == actual.keys()
        for name, expected in stored.items():
            assert _agree(actual[name], expected), f"{name}: {actual[name]} instead of {expected}"


def assert_equal_carriers(first: Any, second: Any) -> None:
    """Every field the same, to the last bit."""
    assert type(first) is type(second)
    for each in fields(first):
        a, b = getattr(first, each.name), getattr(second, each.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=each.name)
        elif isinstance(a, list) and a and is_dataclass(a[0]):
            for one, other in zip(a, b, strict=True):
                assert_equal_carriers(one, other)
        else:
            assert a == b, each.name


def _weighing(target: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """The target with every object and every labelled pixel of this weight."""
    by_object = torch.full((len(target["boxes"]),), weight)
    by_pixel = torch.full(target["semantic"].shape, weight)
    weights = dict.fromkeys(("class_weights", "box_weights", "mask_weights"), by_object)
    return {**target, **weights, "semantic_weights": by_pixel}


def summary(model: VisionModel, images: list[Tensor]) -> dict[str, list[float]]:
    """Mean, deviation and a weighted mean (which notices mirrored or shifted maps) of every raw output."""
    batch, _ = model.transform.batch(images)
    with torch.inference_mode():
        raw = model.dense(batch)
    result = {}
    for name, value in raw.items():
        if value.is_floating_point():
            flat = value.flatten().double()
            ramp = torch.linspace(0, 1, len(flat), dtype=torch.float64)
            result[name] = [float(f"{x:.6g}") for x in (flat.mean(), flat.std(), (flat * ramp).mean())]
    return result


def _agree(actual: list[float], expected: list[float]) -> bool:
    worst = max(abs(a - e) for a, e in zip(actual, expected, strict=True))
    return worst <= _TOLERANCE * max(map(abs, expected))


def main() -> None:
    """Store the outputs of every case; what is stored and still holds stays as it is, to the last digit."""
    assert set(CASES) == set(model_names())
    stored = json.loads(STORED.read_text())
    for name, case in CASES.items():
        tester = ModelTester(case)
        actual, kept = summary(tester.model, tester.images()), stored.get(name, {})
        if actual.keys() != kept.keys() or not all(_agree(actual[key], kept[key]) for key in actual):
            stored[name] = actual
    ordered = {name: stored[name] for name in sorted(CASES)}
    STORED.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
