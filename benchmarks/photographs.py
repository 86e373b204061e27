"""What ``visionmill train`` reaches on real pictures without any option but the number of steps.

    python -m benchmarks.photographs DATA [--sets camvid dsb2018] [--divisions 0] [--steps N]
                                     [--work .bench/photographs] [--note docs/benchmarks]

DATA is a folder with the sets of ``benchmarks.photographs_data``; each division judges on other pictures. Recipes
are derived from the labels and begin from features of ImageNet; training takes one core. Interrupted, the same command
goes on where it stopped. The seconds are those that processes spent on processors, all interruptions together.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.photographs_data import SETS, divided
from benchmarks.throughput import current_commit
from infra.machine import malloc_environment

_LARGEST_TABLE = 40  # classes


def main(argv: Sequence[str] | None = None) -> None:
    """Train and judge each set, then write the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--divisions", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=None, help="default: that of visionmill train")
    parser.add_argument("--work", type=Path, default=Path(".bench/photographs"))
    parser.add_argument("--note", type=Path, default=None, help="folder of the dated note")
    asked = parser.parse_args(argv)
    records = [
        record_of(asked.data, name, division, asked.steps, asked.work.resolve())
        for name in asked.sets
        for division in asked.divisions
    ]
    text = summarise(records)
    print(text)
    if asked.note is not None:
        (asked.note / f"{dt.date.today()}-photographs.md").write_text(text, "utf-8")


def record_of(data: Path, name: str, division: int, steps: int | None, work: Path) -> dict[str, Any]:
    """Train on one side of a set, judge on the other; what is done already is kept."""
    learnt, judged = divided(data.resolve(), name, division, work)
    output = learnt.parent / f"steps-{steps or 'default'}"
    output.mkdir(parents=True, exist_ok=True)
    options = [] if steps is None else ["--steps", str(steps)]
    trained, training_s = measured(
        output / "training_s", "train", str(learnt), str(output), *options, "--ray", "none", "--no-prefect"
    )
    judgement, judging_s = measured(output / "judging_s", "evaluate", trained["weights"], str(judged))
    return {
        "set": name,
        "division": division,
        "commit": current_commit(),
        "weights": trained["weights"],
        "validation": trained["validation"],
        "training_cpu_s": training_s,
        "judging_cpu_s": judging_s,
        "metrics": judgement["metrics"],
    }


def measured(file: Path, *command: str) -> tuple[dict[str, Any], float]:
    """The summary of a command, and the seconds of a core that it has taken so far; ``file`` keeps these."""
    before = _children_s()
    environment = {**os.environ, **malloc_environment(), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "visionmill"), *command, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        spent = (float(file.read_text()) if file.exists() else 0.0) + _children_s() - before
        file.write_text(str(spent))
    if done.returncode:
        sys.exit(f"visionmill {' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1]), spent


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summarise(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table of the figures, then one of the classes of each set."""
    lines = [
        f"# Training on real pictures, {dt.date.today()}",
        "",
        f"`python -m benchmarks.photographs DATA` at {records[0]['commit']}; one core of {os.cpu_count()}.",
        "",
        "| set | division | figure | value | training, CPU minutes | judging, CPU minutes |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for each in records:
        group, figure = SETS[each["set"]].figure
        value = each["metrics"][group][figure]
        lines.append(
            f"| {each['set']} | {each['division']} | {figure} | {value:.3f} | {each['training_cpu_s'] / 60:.1f} "
            f"| {each['judging_cpu_s'] / 60:.1f} |"
        )
    for each in records:
        title = f"## {each['set']}, division {each['division']}"
        lines += ["", title, "", f"{SETS[each['set']].says}.", "", *_figures(each["metrics"])]
    return "\n".join(lines) + "\n"


def _figures(metrics: dict[str, Any]) -> list[str]:
    """A line for each group: its figures, and those of its classes."""
    said = []
    for group, values in metrics.items():
        if isinstance(values, dict):
            plain = [f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, int | float)]
            classes = [f"{name} {value:.3f}" for name, value in values.get("by_class", {}).items()][:_LARGEST_TABLE]
            said.append(f"- {group}: {', '.join(plain)}" + (f"; by class: {', '.join(classes)}" if classes else ""))
    return said


if __name__ == "__main__":
    main()
