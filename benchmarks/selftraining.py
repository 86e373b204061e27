"""Does the self-training loop help? Student against a supervised model of the same budget, on a sealed test set.

    python -m benchmarks.selftraining [--tasks semantic instance keypoints] [--splits 3] [--seeds 3] [--steps N]
                                      [--controls] [--equal-images] [--work .bench/selftraining]
                                      [--records N] [--note docs/benchmarks] [--no-note]

A pool of digitscape scenes, a tenth of them labelled ("10 % labels"); about as many more labelled scenes are G
(``benchmarks.selftraining_data``). A split says which are labelled, a seed everything else that is random. Each record
is one round of ``visionmill retrain`` with cross-fitted calibration. The supervised baseline of the same budget (same
steps, same noise, the same labels in the same batches) is the teacher, then; it and the student are judged on 300 test
scenes of digits and photographs that nothing of the loop has seen. Records are kept in the work folder: after an
interruption the same command goes on where it stopped, also within a record. ``--records N`` stops after N more.
``--controls`` carries out loops that must be refused (see ``benchmarks.selftraining_controls``), ``--equal-images``
trains supervised models that look at as many images as the students (see ``benchmarks.selftraining_budget``).
Whatever records there are when it ends are put into a dated note, which says how many are missing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.selftraining_data import PLANS, ensure_data, ensure_labels, recipe_of, truth_of
from benchmarks.selftraining_notes import summarise
from benchmarks.throughput import current_commit
from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from flows.steps import Steps, plain_steps
from infra.problems import checked
from infra.store import open_store
from modelkit import Predictor
from tasks.evaluation.evaluate import evaluate_predictor
from tasks.labels.label_sets import LabelSet
from tasks.labels.reading import read_label_set
from tasks.loop.judging import difference, load_predictor
from tasks.loop.schemas import AUDITS, MODELS
from tasks.output import tables


@dataclass(frozen=True, slots=True)
class Setting:
    """What makes two records comparable."""

    task: str
    split: int
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Of its folder and its record."""
        return f"{self.task}-split{self.split}-seed{self.seed}-steps{self.steps}"


def parameters_of(setting: Setting, data: Path, output: Path) -> RetrainParameters:
    """The loop of a setting, in this process, audited by the truth that was hidden from it."""
    plan = PLANS[setting.task]
    return checked(
        RetrainParameters,
        task=setting.task,
        labelled=str(ensure_labels(data, setting.split, plan.sizes)),
        unlabelled=str(data / "pool" / "images"),
        audit=str(truth_of(data, "pool")),
        output=str(output),
        recipe=str(recipe_of(setting.task, data, setting.steps)),
        steps=setting.steps,
        seed=setting.seed,
        shares=plan.sizes.shares,
        precision=plan.precision,
        calibration="crossfit",
        folds=plan.folds,
        detector=plan.detector,
        tta=plan.views,
        ray="none",
    )


def carry_out(setting: Setting, work: Path, step: Steps = plain_steps) -> dict[str, Any]:
    """One record: a loop, then two of its models on T."""
    began = time.monotonic()
    data, output = ensure_data(setting.task, work), work / "loops" / setting.name
    summary = run_retrain(parameters_of(setting, data, output), orchestrated=False, step=step)
    [outcome] = summary["rounds"]
    rows = {row["model_id"]: row for row in tables.read(open_store(str(output)), MODELS).to_pylist()}
    models = {"baseline": outcome["teacher"], "student": outcome["candidate"] or outcome["teacher"]}
    sealed = read_label_set(str(truth_of(data, "test")))
    loaded = {role: load_predictor(rows[model]["weights_uri"]) for role, model in models.items()}
    return {
        **asdict(setting),
        "splits": summary["splits"],
        "accepted": outcome["accepted"],
        "audit": _audit(output, outcome["train_set_id"]),
        "gate": outcome["gate"],
        **_judged(setting, loaded, sealed),
        "seconds": round(time.monotonic() - began, 1),
        "commit": current_commit(),
        "day": dt.date.today().isoformat(),
    }


def _audit(output: Path, set_id: str) -> dict[str, int]:
    """Labels that hidden truth was asked about, and how many of them are wrong."""
    rows = tables.read(open_store(str(output)), AUDITS).to_pylist()
    total = next((row for row in rows if row["train_set_id"] == set_id and row["name"] is None), None)
    return {"n": 0, "errors": 0} if total is None else {"n": total["n"], "errors": total["n_errors"]}


def _judged(setting: Setting, models: dict[str, Predictor], sealed: LabelSet) -> dict[str, Any]:
    """Student and baseline by the figure of their task, and how much better the student is."""
    normaliser = PLANS[setting.task].normaliser
    if normaliser is not None:
        from benchmarks.selftraining_points import less_error

        return less_error(models, sealed, normaliser, seed=setting.seed)
    judged = {role: evaluate_predictor(model, sealed) for role, model in models.items()}
    found = difference(judged["student"], judged["baseline"], sealed, seed=setting.seed)
    return {
        "test": {role: each.main_figure for role, each in judged.items()},
        "against_baseline": {"difference": found.difference, "low": found.low, "high": found.high},
    }


def settings_of(given: argparse.Namespace) -> Iterator[Setting]:
    """All records, so that the first ones already cover all splits and both tasks."""
    for seed in range(given.seeds):
        for split in range(given.splits):
            for task in given.tasks:
                yield Setting(task, split, seed, given.steps or PLANS[task].steps)


def known_record(work: Path, name: str) -> dict[str, Any] | None:
    """A finished record."""
    path = work / "records" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def keep_record(work: Path, name: str, record: dict[str, Any]) -> None:
    """Write it beside its place and move it there: a record is whole or not there."""
    path = work / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    scratch.write_text(json.dumps(record, indent=1))
    scratch.replace(path)


def measure(settings: Sequence[Setting], work: Path, limit: int | None) -> list[dict[str, Any]]:
    """All records, those of earlier invocations included; at most ``limit`` new ones."""
    records, new = [], 0
    for number, setting in enumerate(settings, 1):
        record = known_record(work, setting.name)
        if record is None:
            if limit is not None and new >= limit:
                continue
            print(f"[{number}/{len(settings)}] {setting.name} ...", file=sys.stderr, flush=True)
            record, new = carry_out(setting, work), new + 1
            keep_record(work, setting.name, record)
            shutil.rmtree(work / "loops" / setting.name)
            gain = record["against_baseline"]["difference"]
            print(f"    {gain:+.4f} against the baseline, {record['seconds']:.0f} s", file=sys.stderr, flush=True)
        records.append(record)
    return records


def settings_of_controls(records: Sequence[dict[str, Any]]) -> list[Setting]:
    """For each task the record whose loop is broken in every way.

    The first that the gate let pass, so that a refusal is the control's doing; else the first that taught anything.
    """
    chosen: dict[str, dict[str, Any]] = {}
    broken = [record for record in records if PLANS[record["task"]].controls]
    for record in sorted(broken, key=lambda each: (not each["gate"]["passed"], not sum(each["accepted"].values()))):
        chosen.setdefault(record["task"], record)
    return [Setting(*(record[name] for name in ("task", "split", "seed", "steps"))) for record in chosen.values()]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(PLANS), default=list(PLANS))
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each model; default by task")
    parser.add_argument("--controls", action="store_true", help="also loops that must be refused")
    parser.add_argument("--equal-images", action="store_true", help="also baselines of as many images as the students")
    parser.add_argument("--work", type=Path, default=Path(".bench/selftraining"), help="scenes, loops, records")
    parser.add_argument("--records", type=int, help="stop after so many new records; the same command goes on")
    parser.add_argument("--note", type=Path, default=Path("docs/benchmarks"), help="folder of the dated note")
    parser.add_argument("--no-note", action="store_true", help="print only")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print, write the note."""
    given = parse()
    work = given.work.resolve()
    settings = list(settings_of(given))
    records = measure(settings, work, given.records)
    controls: list[dict[str, Any]] = []
    if given.controls:
        from benchmarks.selftraining_controls import measure_controls

        controls = measure_controls(settings_of_controls(records), work)
    equal_images: list[dict[str, Any]] = []
    if given.equal_images:
        from benchmarks.selftraining_budget import measure_equal_images

        equal_images = measure_equal_images(settings, work)
    text = summarise(records, len(settings), controls, equal_images)
    print(text)
    if not given.no_note:
        from benchmarks.notes import write_note

        command = " ".join(["python -m benchmarks.selftraining", *sys.argv[1:]])
        path = write_note(given.note, text, command, dt.date.today(), topic="self-training")
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
