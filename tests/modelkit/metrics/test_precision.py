"""Average precision: perfect answers score 1, wrong ones 0, and the numbers are pycocotools' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from modelkit.carriers import Instances
from modelkit.digitscape import Digitscape, Scene, SceneStyle
from modelkit.digitscape.coco import coco_annotations, coco_categories, coco_image
from modelkit.metrics.precision import Precision, coco_results, precision_of

SOURCE = Digitscape("val", (96, 96), seed=4, style=SceneStyle(digits=(2, 6)), dense=False)
SCENES = [SOURCE.scene(k) for k in range(12)]


def judged(answer: Callable[[Scene], Instances]) -> tuple[Precision, Precision]:
    """Precision of masks and of boxes."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": coco_categories(), "info": {}}
    found: list[dict[str, Any]] = []
    for number, scene in enumerate(SCENES, start=1):
        truth["images"].append(coco_image(number, scene, f"{number}.png"))
        truth["annotations"] += coco_annotations(number, scene, len(truth["annotations"]) + 1)
        found += coco_results(number, answer(scene))
    return precision_of(truth, found, "segm"), precision_of(truth, found, "bbox")


def oracle(shift_px: int = 0, label_step: int = 0, drop_every: int = 0) -> Callable[[Scene], Instances]:
    """Answers from the truth, with a fault."""

    def answer(scene: Scene) -> Instances:
        keep = [k for k in range(len(scene)) if not drop_every or k % drop_every]
        masks = [np.roll(scene.masks[k], shift_px, axis=1) for k in keep]
        return Instances(
            size_hw=scene.size_hw,
            boxes_xyxy=scene.boxes_xyxy[keep] + np.float32(shift_px) * np.array([1, 0, 1, 0], np.float32),
            scores=np.full(len(keep), 0.9, np.float32),
            labels=((scene.labels[keep] - 1 + label_step) % 10 + 1).astype(np.int32),
            rles=[coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks],
            is_thing=np.ones(len(keep), bool),
        )

    return answer


def test_the_truth_scores_one_and_only_classes_that_occur_have_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    mask, box = judged(oracle())
    assert mask.ap == mask.ap50 == box.ap == pytest.approx(1.0)
    present = {str(int(label) - 1) for scene in SCENES for label in scene.labels}
    assert {name for name, ap in mask.by_class.items() if ap > -1} == present
    assert capsys.readouterr().out == "", "stdout belongs to machine-readable output"


def test_wrong_classes_score_zero() -> None:
    assert all(each.ap50 < 0.05 for each in judged(oracle(label_step=1)))


def test_shifted_masks_lose_at_strict_overlaps_first() -> None:
    mask, box = judged(oracle(shift_px=1))
    assert mask.ap < mask.ap50
    assert 0.3 < mask.ap50
    assert mask.ap < box.ap, "strokes are thin: a pixel costs a mask more than a box"


def test_missed_digits_cost_recall() -> None:
    assert judged(oracle(drop_every=2))[0].ap < judged(oracle())[0].ap - 0.2


def test_no_answer_at_all_scores_zero() -> None:
    assert all(each.ap == 0.0 for each in judged(lambda scene: Instances.empty(scene.size_hw)))
