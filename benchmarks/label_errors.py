"""Whether ``visionmill evaluate --suspects`` finds wrong labels: errors are planted in right ones, of scenes of digits.

    python -m benchmarks.label_errors [--scenes 600] [--draws 5] [--work .bench/label_errors] [--note docs/benchmarks]

Masks and classes are judged by the shipped model, which never saw a digit or a photograph of these scenes; points by a
model that is trained for it first on scenes of ``train`` (three minutes of a core; kept). What counts is the precision
among the first n labelled objects, where n is the number of planted errors; so a model that is asked for as many labels
as are wrong finds that share of them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import modelkit
from benchmarks.label_errors_data import OBJECT_ERRORS, POINT_ERRORS, Plant, plant, without_some
from benchmarks.throughput import current_commit
from flows.parameters import TrainParameters
from flows.train import run_train
from infra.problems import checked
from modelkit import Predictor
from modelkit.digitscape import STYLES, Digitscape, write_label_set
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.evaluation.suspects import suspects_of
from tasks.labels.reading import read_label_set
from tasks.product import Suspects

SIZE_HW = (160, 160)
SEED = 41
SHARE, OTHER_SHARES = 0.05, (0.0, 0.01, 0.1)
TRAIN_SCENES, TRAIN_STEPS = 1_500, 1_200
_SAME = 0.5  # IoU of boxes from which a missing object is the one that was left out


@dataclass(frozen=True, slots=True)
class Draw:
    """One planting, and what was found of it.

    Args:
        share: of the labels, that was spoilt. labels: how many there are. errors: how many were planted.
        right: planted ones among as many first suspects.
        said: the mean probability of these.
        expected: the sum of all probabilities.
        planted, found: by kind of error, all and among the first.
        told: (kind of error, what was said to be wrong) -> how often, among the first.
    """

    share: float
    labels: int
    errors: int
    right: int
    said: float
    expected: float
    planted: Counter[str]
    found: Counter[str]
    told: Counter[tuple[str, str]]


def main(argv: Sequence[str] | None = None) -> None:
    """Plant, look, and write the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path(".bench/label_errors"))
    parser.add_argument("--note", type=Path, default=None, help="folder of the dated note")
    asked = parser.parse_args(argv)
    began = time.process_time()
    folder = asked.work.resolve() / f"scenes-{asked.scenes}"
    masks, _, points = ensured(folder, asked.scenes)
    detector, landmarker = (
        modelkit.load("digitscape_mask_rcnn"),
        modelkit.load(str(landmark_model(asked.work.resolve()))),
    )
    parts = [
        section("Masks and classes, `digitscape_mask_rcnn`", draws_of(masks, detector, OBJECT_ERRORS, asked.draws)),
        missing_section([missing_of(masks, detector, seed) for seed in range(asked.draws)]),
        section("Points, `digitscape_heatmap`", draws_of(points, landmarker, POINT_ERRORS, asked.draws)),
    ]
    text = "\n".join([*_head(asked.scenes, asked.draws, time.process_time() - began), *parts])
    print(text)
    if asked.note is not None:
        (asked.note / f"{dt.date.today()}-label-errors.md").write_text(text, "utf-8")


def ensured(folder: Path, scenes: int) -> list[Path]:
    """Files with right labels: instances, panoptic, landmarks."""
    names = [folder / name for name in ("annotations.json", "panoptic.json", "landmarks.json")]
    if not names[-1].exists():
        write_label_set(folder, Digitscape("test", SIZE_HW, seed=SEED, dense=False), scenes)
    return names


def landmark_model(work: Path) -> Path:
    """Weights of a model of the points of digits, trained on scenes of ``train`` unless it is there."""
    path = work / "landmarker.txt"
    if not path.exists():
        folder = work / "train"
        source = Digitscape("train", SIZE_HW, seed=3, style=STYLES["hard"], dense=False)
        *_, labels = write_label_set(folder, source, TRAIN_SCENES)
        asked = checked(
            TrainParameters, labelled=str(labels), output=str(work / "training"), recipe="digitscape_heatmap",
            steps=TRAIN_STEPS, validation=0.0, ray="none",
        )  # fmt: skip
        path.write_text(run_train(asked, orchestrated=False)["weights"])
    return Path(path.read_text())


def draws_of(labels: Path, predictor: Predictor, errors: Mapping[str, Plant], draws: int) -> list[Draw]:
    """Plantings of the promised share, and one of each other."""
    content = json.loads(labels.read_text())
    shares = [(SHARE, seed) for seed in range(draws)] + [(share, 0) for share in OTHER_SHARES]
    return [_draw(labels, content, predictor, dict(errors), share, seed) for share, seed in shares]


def _draw(
    labels: Path, content: dict[str, Any], predictor: Predictor, errors: dict[str, Plant], share: float, seed: int
) -> Draw:
    planted = plant(content, errors, share, seed)
    found = suspects_in(labels.with_name("planted.json"), planted.content, predictor)
    first = found.labelled[: len(planted.errors)]
    kinds = [planted.errors.get(int(each.origin_id)) for each in first]
    told = Counter((kind, each.wrong) for kind, each in zip(kinds, first, strict=True) if kind is not None)
    return Draw(
        share, len(planted.content["annotations"]), len(planted.errors), sum(kind is not None for kind in kinds),
        float(np.mean([each.probability for each in first])) if first else float("nan"),
        sum(each.probability for each in found.labelled), Counter(planted.errors.values()),
        Counter(kind for kind in kinds if kind is not None), told,
    )  # fmt: skip


def suspects_in(path: Path, content: dict[str, Any], predictor: Predictor) -> Suspects:
    """The suspects of labels, by way of their file."""
    path.write_text(json.dumps(content))
    return suspects_of(evaluate_predictor(predictor, read_label_set(str(path))))


def missing_of(labels: Path, predictor: Predictor, seed: int) -> tuple[int, int, float]:
    """(objects left out, those among as many first missing objects, the mean probability of these)."""
    content, gone = without_some(json.loads(labels.read_text()), SHARE, seed)
    first = suspects_in(labels.with_name("without.json"), content, predictor).missing[: len(gone)]
    names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
    boxes: dict[str, list[list[float]]] = {}
    for each in gone:
        boxes.setdefault(names[each["image_id"]], []).append(each["bbox"])
    right = [any(_iou(each.box_xyxy, box) >= _SAME for box in boxes.get(Path(each.uri).name, [])) for each in first]
    return len(gone), sum(right), float(np.mean([each.probability for each in first]))


def _iou(xyxy: Sequence[float], xywh: Sequence[float]) -> float:
    x, y, width, height = xywh
    across = min(xyxy[2], x + width) - max(xyxy[0], x)
    down = min(xyxy[3], y + height) - max(xyxy[1], y)
    common = max(0.0, across) * max(0.0, down)
    return common / ((xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) + width * height - common)


def section(title: str, draws: Sequence[Draw]) -> str:
    """Markdown of one model."""
    promised = [each for each in draws if each.share == SHARE]
    precision = [each.right / each.errors for each in promised]
    lines = [
        f"## {title}", "",
        f"{SHARE:.0%} planted, {len(promised)} times: precision among the first {SHARE:.0%} {np.mean(precision):.3f} "
        f"({min(precision):.3f} to {max(precision):.3f}), of which the probabilities said "
        f"{np.mean([each.said for each in promised]):.3f}.",
        "", "| planted | labels | errors | among as many first | precision | said | sum of probabilities |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for each in draws:
        precise, said = (
            f"{value:.2f}" if each.errors else "–" for value in (each.right / max(each.errors, 1), each.said)
        )
        lines.append(
            f"| {each.share:.0%} | {each.labels:,} | {each.errors} | {each.right} | {precise} | {said} "
            f"| {each.expected:.0f} |"
        )
    return "\n".join([*lines, "", *_by_kind(promised), ""])


def _by_kind(draws: Sequence[Draw]) -> list[str]:
    planted, found, told = (
        sum((getattr(each, name) for each in draws), Counter()) for name in ("planted", "found", "told")
    )
    lines = [f"| error ({SHARE:.0%}) | planted | found among the first | and told as |", "|---|---:|---:|---|"]
    for kind, count in planted.items():
        words = ", ".join(f"{wrong} {n}" for (each, wrong), n in told.most_common() if each == kind)
        lines.append(f"| {kind} | {count} | {found[kind] / count:.2f} | {words} |")
    return lines


def missing_section(draws: Sequence[tuple[int, int, float]]) -> str:
    """Markdown of objects that were left out."""
    precision = [right / gone for gone, right, _ in draws]
    return (
        f"## Objects that nobody labelled, `digitscape_mask_rcnn`\n\n{SHARE:.0%} of the labels left out "
        f"({draws[0][0]}), {len(draws)} times: precision among as many first missing objects {np.mean(precision):.3f} "
        f"({min(precision):.3f} to {max(precision):.3f}), of which the probabilities said "
        f"{np.mean([said for *_, said in draws]):.3f}.\n"
    )


def _head(scenes: int, draws: int, seconds: float) -> list[str]:
    return [
        f"# Planted label errors, {dt.date.today()}",
        "",
        f"`python -m benchmarks.label_errors --scenes {scenes} --draws {draws}` at {current_commit()}; one core of",
        f"{os.cpu_count()}, {seconds / 60:.0f} CPU minutes. {scenes} scenes of digitscape's `test`, seed {SEED},",
        "default style: digits and photographs that neither model saw. What is planted,",
        "`benchmarks/label_errors_data.py` says; errors of each kind are about as many. Each draw plants others in the",
        "same scenes.",
        "",
    ]


if __name__ == "__main__":
    main()
