"""ViTPose through the adapter: crops, points and scores are those of transformers' own processor and model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modelkit import ConfigError, Predictor, load
from modelkit.carriers.landmarks import KeypointSet
from modelkit.huggingface.poses import points_of, pose_options
from modelkit.landmarks import gathered, prepare_objects
from modelkit.registry import temporary_registrations
from modelkit.weights import save_weights
from tests.modelkit.builders import picture

NAMES = ["Nose", "L_Eye", "R_Eye", "L_Ear", "R_Ear"]
EDGES = [[0, 1], [0, 2], [1, 3]]
BOXES = np.array([[10.0, 12, 50, 90], [40.5, 5.25, 88, 60], [0, 0, 101, 140], [-6, 100, 30, 150]], np.float32)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with temporary_registrations():
        yield


def saved(folder: Path, *, experts: int = 1, simple: bool = True, **config: Any) -> tuple[Predictor, Any, Any]:
    """Our predictor, their model and their processor, of a tiny ViTPose whose maps have decided peaks."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_experts=experts, part_features=8, out_indices=[2],
    )  # fmt: skip
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: k for k, name in enumerate(NAMES)}}
    own = transformers.VitPoseConfig(backbone_config=backbone, use_simple_decoder=simple, **names)
    torch.manual_seed(0)
    theirs = transformers.VitPoseForPoseEstimation(own).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    theirs.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text()) | {"edges": EDGES} | config
    (folder / "config.json").write_text(json.dumps(said))
    processor = transformers.VitPoseImageProcessor(size={"height": 64, "width": 48}, image_mean=[0.5] * 3)
    processor.save_pretrained(folder)
    return load(f"hf:{folder}"), theirs, processor


def of_coco(boxes: np.ndarray) -> list[list[float]]:
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]


@pytest.mark.parametrize("options", [{}, {"simple": False}, {"experts": 3}], ids=["simple", "classic", "experts"])
def test_users_get_the_points_that_transformers_gives(tmp_path: Path, options: dict[str, Any]) -> None:
    predictor, theirs, processor = saved(tmp_path, **options)
    image = picture(140, 101, 4)
    inputs = processor(image, boxes=[of_coco(BOXES)], return_tensors="pt")
    dataset = torch.zeros(len(BOXES), dtype=torch.int64) if "experts" in options else None
    with torch.inference_mode():
        outputs = theirs(**inputs, dataset_index=dataset)
    wanted = processor.post_process_pose_estimation(outputs, boxes=[of_coco(BOXES)])[0]
    prepared = prepare_objects(predictor, image, BOXES)
    assert float((predictor.batch(prepared) - inputs["pixel_values"]).abs().max()) < 1e-5, "the very same crops"
    found = gathered([predictor.finish(each) for each in predictor.infer(prepared)], (140, 101), len(NAMES))
    compared = 0
    for points, scores, pose in zip(found.keypoints_xy, found.keypoint_scores, wanted, strict=True):
        present = pose["scores"].numpy() > 0
        assert np.array_equal(np.isfinite(points).all(1), present)
        np.testing.assert_allclose(points[present], pose["keypoints"].numpy()[present] + 0.5, atol=2e-3)
        np.testing.assert_allclose(scores, np.clip(pose["scores"].numpy(), 0, 1), atol=1e-5)
        compared += int(present.sum())
    assert compared >= 10
    np.testing.assert_array_equal(found.boxes_xyxy, BOXES)


def test_maps_of_bells_and_of_noise_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    predictor, _, processor = saved(tmp_path)
    draws = torch.Generator().manual_seed(3)
    x, y = torch.rand((2, 4, 5, 1, 1), generator=draws) * torch.tensor([11.0, 15.0])[:, None, None, None, None]
    columns, rows = torch.arange(12.0), torch.arange(16.0)[:, None]
    bells = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
    for maps in (bells, bells + 0.2 * torch.rand(bells.shape, generator=draws), -bells):
        wanted = processor.post_process_pose_estimation(SimpleNamespace(heatmaps=maps), boxes=[of_coco(BOXES)])[0]
        prepared = prepare_objects(predictor, picture(140, 101), BOXES)
        found = predictor.model.decode({"heatmaps": maps}, [each.geometry for each in prepared])
        for each, pose in zip(found, wanted, strict=True):
            points = each.keypoints_xy[0].numpy()
            if maps.max() <= 0:
                assert np.isnan(points).all() and not each.keypoint_scores.any(), "nothing found is no place"
                continue
            np.testing.assert_allclose(points, pose["keypoints"].numpy() + 0.5, atol=2e-3)


def test_the_record_says_what_the_points_are(tmp_path: Path) -> None:
    predictor, _, _ = saved(tmp_path / "theirs")
    record = predictor.weights
    points = KeypointSet(tuple(NAMES), ((1, 2), (3, 4)), ((0, 1), (0, 2), (1, 3)))
    assert (record.kind, record.architecture, record.keypoints) == ("keypoints", "huggingface_keypoints", points)
    assert predictor.model.flip_pairs == points.flip_pairs
    save_weights(predictor.model, tmp_path / "ours", name="own", classes=record.classes, keypoints=record.keypoints)
    again, image = load(tmp_path / "ours"), picture(64, 48)
    assert again.weights.keypoints == points
    np.testing.assert_array_equal(again([image])[0].keypoints_xy, predictor([image])[0].keypoints_xy)


def test_points_that_nobody_named_are_numbered() -> None:
    assert points_of({0: "LABEL_0", 1: "LABEL_1"}, {}) == KeypointSet.numbered(2)
    with pytest.raises(ConfigError, match="flip pairs and skeleton name points from 0 to 1"):
        points_of({0: "nose", 1: "chin"}, {"edges": [[0, 2]]})


@pytest.mark.parametrize(
    "processor",
    [{"do_affine_transform": False}, {"normalize_factor": 100.0}, {"rescale_factor": 1.0}, {"size": {"height": 9}}],
)
def test_crops_are_never_made_otherwise_than_the_processor_says(processor: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(processor)) if "size" not in processor else "height"):
        pose_options(processor, KeypointSet.numbered(3))


def test_it_is_not_trained_here(tmp_path: Path) -> None:
    predictor, _, _ = saved(tmp_path)
    with pytest.raises(ConfigError, match="no losses"):
        predictor.model([], [])
    with pytest.raises(ConfigError, match="gives keypoints"):
        load(f"hf:semantic:{tmp_path}")
