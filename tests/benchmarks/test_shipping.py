"""Shipping: half the bytes, the same model, and a record of what the written file reached."""

from __future__ import annotations

from pathlib import Path

import pytest

import modelkit
from benchmarks.shipping import SHIPPED, main
from modelkit.digitscape import Digitscape, write_label_set

DIGITS, POINTS = "digitscape_mask_rcnn", "digitscape_heatmap"


def test_weights_are_halved_judged_and_keep_their_lineage(tmp_path: Path) -> None:
    trained = modelkit.load(DIGITS)
    modelkit.save_weights(
        trained.model, tmp_path, name="mine", classes=trained.weights.classes, lineage={"kind": "trained", "steps": 7}
    )
    labels = [str(path) for path in write_label_set(tmp_path / "scenes", Digitscape("test", (96, 96), dense=False), 3)]
    source, output = tmp_path / "mine.safetensors", tmp_path / "out"
    assert main([DIGITS, str(source), "--test", labels[0], "--val", labels[0], "--output", str(output)]) == 0
    written = output / f"{DIGITS}.safetensors"
    assert written.stat().st_size < 0.52 * source.stat().st_size
    record = modelkit.describe(str(written))
    reached = record.metrics["digitscape-test"]
    assert (reached["images"], reached["tool"], record.licence) == (3, "faster-coco-eval", SHIPPED[DIGITS].licence)
    # the shipped weights were float16 already: storing them so again changes no bit
    assert record.metrics["digitscape-val"]["main_by_execution"]["float32"] == reached["mask"]["ap"] > 0.3
    assert record.lineage["steps"] == 7 and record.lineage["data"]["train_digits"] > 1000
    assert record.digest == modelkit.describe(DIGITS).digest


def test_a_model_of_points_keeps_what_they_are_called(tmp_path: Path) -> None:
    points = modelkit.load(POINTS)
    modelkit.save_weights(
        points.model, tmp_path, name="mine", classes=points.weights.classes, keypoints=points.weights.keypoints
    )
    written = write_label_set(tmp_path / "scenes", Digitscape("test", (96, 96), dense=False), 2)
    [labels] = [str(path) for path in written if path.name == "landmarks.json"]
    output = tmp_path / "out"
    main([POINTS, str(tmp_path / "mine.safetensors"), "--test", labels, "--val", labels, "--output", str(output)])
    record = modelkit.describe(str(output / f"{POINTS}.safetensors"))
    assert record.keypoints == points.weights.keypoints is not None
    assert record.metrics["digitscape-test"]["object_diagonal"]["nme"] < 0.2


def test_without_labels_nothing_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([DIGITS, str(tmp_path / "mine.safetensors")])
