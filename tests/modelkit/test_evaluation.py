"""Average precision: perfect answers score 1, wrong ones 0, and the numbers are pycocotools' own."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from modelkit.carriers import Instances
from modelkit.digitscape import Digitscape, SceneStyle
from modelkit.evaluation import evaluate_digitscape

SOURCE = Digitscape("val", (96, 96), seed=4, style=SceneStyle(digits=(2, 6)), dense=False)
NUM_SCENES = 12


def _oracle(shift_px: int = 0, label_step: int = 0, drop_every: int = 0):  # type: ignore[no-untyped-def]
    """Answers from the truth, with a fault."""
    by_picture = {SOURCE.scene(k).image_rgb.tobytes(): SOURCE.scene(k) for k in range(NUM_SCENES)}

    def predict(images: list[np.ndarray]) -> list[Instances]:
        results = []
        for image in images:
            scene = by_picture[image.tobytes()]
            keep = [k for k in range(len(scene)) if not drop_every or k % drop_every]
            masks = [np.roll(scene.masks[k], shift_px, axis=1) for k in keep]
            results.append(
                Instances(
                    size_hw=scene.size_hw,
                    boxes_xyxy=scene.boxes_xyxy[keep] + np.float32(shift_px) * np.array([1, 0, 1, 0], np.float32),
                    scores=np.full(len(keep), 0.9, np.float32),
                    labels=((scene.labels[keep] - 1 + label_step) % 10 + 1).astype(np.int32),
                    rles=[coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks],
                    is_thing=np.ones(len(keep), bool),
                )
            )
        return results

    return predict


def test_the_truth_scores_one_and_says_how_much_was_judged(capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluate_digitscape(_oracle(), SOURCE, NUM_SCENES)
    assert result.mask.ap == result.mask.ap50 == result.box.ap == pytest.approx(1.0)
    assert result.num_scenes == NUM_SCENES
    assert result.num_objects == sum(len(SOURCE.scene(k)) for k in range(NUM_SCENES))
    present = {str(int(label) - 1) for k in range(NUM_SCENES) for label in SOURCE.scene(k).labels}
    assert {name for name, ap in result.mask.by_class.items() if ap > -1} == present
    assert capsys.readouterr().out == "", "stdout belongs to machine-readable output"


def test_wrong_classes_score_zero() -> None:
    result = evaluate_digitscape(_oracle(label_step=1), SOURCE, NUM_SCENES)
    assert result.mask.ap50 < 0.05
    assert result.box.ap50 < 0.05


def test_shifted_masks_lose_at_strict_overlaps_first() -> None:
    result = evaluate_digitscape(_oracle(shift_px=1), SOURCE, NUM_SCENES)
    assert result.mask.ap < result.mask.ap50
    assert 0.3 < result.mask.ap50
    assert result.mask.ap < result.box.ap, "strokes are thin: a pixel costs a mask more than a box"


def test_missed_digits_cost_recall() -> None:
    whole = evaluate_digitscape(_oracle(), SOURCE, NUM_SCENES).mask.ap
    assert evaluate_digitscape(_oracle(drop_every=2), SOURCE, NUM_SCENES).mask.ap < whole - 0.2


def test_no_answer_at_all_scores_zero() -> None:
    result = evaluate_digitscape(lambda images: [Instances.empty((96, 96)) for _ in images], SOURCE, NUM_SCENES)
    assert result.mask.ap == result.box.ap == 0.0
    with pytest.raises(ValueError, match="num_scenes"):
        evaluate_digitscape(_oracle(), SOURCE, 0)
