"""Does the self-training loop help on real pictures? Student against a supervised model of the same budget.

    python -m benchmarks.photographs_loop DATA [--sets camvid dsb2018] [--divisions 3] [--work .bench/photographs]
                                          [--one-group] [--bound] [--note docs/benchmarks] [-- OPTION ...]

DATA is a folder with the sets of ``benchmarks.photographs_data``; a division keeps other pictures out for the test,
and labels other ones. Each record is one round of ``visionmill retrain`` with the recipe that is derived from its
labels and cross-fitted calibration, so that the teacher is the supervised model of the same budget: as many steps, and
as many labelled images in each. With ``--one-group`` all labels are of one group (CamVid: a sequence), so that the
unlabelled pictures show what no label does. ``--bound`` also trains a model on the true labels of all pictures that
the loop has, labelled or not, for as many steps: perfect pseudo-labels could hardly give more. Options after ``--`` are
retrain's. Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.photographs import measured
from benchmarks.photographs_data import SETS, divided_for_loop, united
from benchmarks.throughput import current_commit
from infra.store import open_store
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.labels.reading import read_label_set
from tasks.loop.judging import difference, load_predictor
from tasks.loop.schemas import MODELS
from tasks.output import tables

LOOP = ("--calibration", "crossfit", "--folds", "3", "--seed", "0")


def main(argv: Sequence[str] | None = None) -> None:
    """Carry out what is missing of the records, then write the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--divisions", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench/photographs"))
    parser.add_argument("--one-group", action="store_true")
    parser.add_argument("--bound", action="store_true")
    parser.add_argument("--note", type=Path, default=None, help="folder of the dated note")
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    asked = parser.parse_args(words[:at])
    records = [
        record_of(asked.data.resolve(), name, division, asked.work.resolve(), words[at + 1 :], asked.one_group)
        for name in asked.sets
        for division in asked.divisions
    ]
    if asked.bound:
        for each in records:
            each["bound"] = bound_of(asked.data.resolve(), each, asked.work.resolve(), words[at + 1 :], asked.one_group)
    text = summarise(records, words[at + 1 :])
    print(text)
    if asked.note is not None:
        (asked.note / f"{dt.date.today()}-photographs-loop.md").write_text(text, "utf-8")


def record_of(
    data: Path, name: str, division: int, work: Path, options: Sequence[str], one_group: bool
) -> dict[str, Any]:
    """One round, and how its student does beside the supervised model; kept in the work folder."""
    labelled, unlabelled, judged = divided_for_loop(data, name, division, work, one_group=one_group)
    output = folder_of(labelled, options)
    output.mkdir(parents=True, exist_ok=True)
    kept = output / "record.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    asked = ("--labelled", labelled, "--unlabelled", unlabelled / "images", "--audit", unlabelled, "--output", output)
    words = (*LOOP, *SETS[name].loop_options, *options, "--ray", "none", "--no-prefect")
    summary, spent = measured(output / "seconds", "retrain", *map(str, asked), *words)
    record = {
        "set": name,
        "division": division,
        "commit": current_commit(),
        "cpu_s": spent,
        "rounds": summary["rounds"],
        **compared(output, judged),
    }
    kept.write_text(json.dumps(record))
    return record


def folder_of(labelled: Path, options: Sequence[str]) -> Path:
    """Where the loop with these options lies."""
    return labelled.parent / "-".join(["loop", *(each.strip("-").replace("/", "_") for each in options)])


def bound_of(data: Path, record: dict[str, Any], work: Path, options: Sequence[str], one_group: bool) -> float:
    """Main figure of a model that learns the true labels of every picture of the loop, with the loop's steps."""
    labelled, unlabelled, judged = divided_for_loop(data, record["set"], record["division"], work, one_group=one_group)
    (recipe,) = folder_of(labelled, options).glob("_loops/*/recipe.json")
    output = labelled.parent / f"bound-{json.loads(recipe.read_text())['loop']['steps']}"
    output.mkdir(parents=True, exist_ok=True)
    asked = ("train", united([labelled, unlabelled]), output, "--recipe", recipe, "--ray", "none", "--no-prefect")
    trained, _ = measured(output / "seconds", *map(str, asked))
    return evaluate_predictor(load_predictor(trained["weights"]), read_label_set(str(judged))).main_figure


def compared(output: Path, judged: Path) -> dict[str, Any]:
    """Main figures of the student and of the supervised model on pictures that the loop has not seen."""
    labels = read_label_set(str(judged))
    by_role = {row["role"]: row for row in tables.read(open_store(str(output)), MODELS).to_pylist()}
    supervised = by_role.get("baseline", by_role["teacher"])
    student = by_role.get("student", supervised)  # where nothing was accepted none was trained
    models = [evaluate_predictor(load_predictor(each["weights_uri"]), labels) for each in (student, supervised)]
    apart = difference(*models, labels, seed=0)
    return {
        "student": models[0].main_figure,
        "supervised": models[1].main_figure,
        "difference": apart.difference,
        "low": apart.low,
        "high": apart.high,
        "trained_a_student": "student" in by_role,
    }


def summarise(records: Sequence[dict[str, Any]], options: Sequence[str]) -> str:
    """Markdown: a row for each record, and the mean of each set."""
    lines = [
        f"# The loop on real pictures, {dt.date.today()}",
        "",
        f"`python -m benchmarks.photographs_loop DATA{' -- ' if options else ''}{' '.join(options)}` at "
        f"{records[0]['commit']}. Points are hundredths of the main figure; intervals are paired, by group.",
        "",
        "| set | division | supervised | student | points | 95 % | all labels | accepted | CPU minutes |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for each in records:
        accepted = sum(sum(one["accepted"].values()) for one in each["rounds"])
        spent = f"{each['cpu_s'] / 60:.0f}"
        bound = f"{each['bound']:.3f}" if "bound" in each else ""
        points = f"{100 * each['difference']:+.2f}" if each["trained_a_student"] else "no student"
        lines.append(
            f"| {each['set']} | {each['division']} | {each['supervised']:.3f} | {each['student']:.3f} | {points} "
            f"| {100 * each['low']:+.2f} to {100 * each['high']:+.2f} | {bound} | {accepted} | {spent} |"
        )
    for name in dict.fromkeys(each["set"] for each in records):
        points = [100 * each["difference"] for each in records if each["set"] == name]
        lines += ["", f"{name}: {mean(points):+.2f} points on average over {len(points)} divisions."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
