"""From records of the self-training experiment to words. Every figure comes from the records handed in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

from benchmarks.selftraining_data import PLANS, SIZE_PX, TEST

_EXPLANATION = """\
Figures are in points (hundredths). *Baseline*: trained on all labels of the loop; it is the teacher as well, for
thresholds are cross-fitted. *Student*: the same recipe, steps, noise and human labels in the same batches, and as many
pseudo-labelled images beside them. In brackets the 95 % interval of the paired bootstrap over the test scenes of one
record. *Lower bound*: one-sided 95 %, by Student's t, of the mean difference over records, and over the means of splits
(records of one split share their labelled scenes). *Accepted*: pixels or objects. *Wrong*: accepted labels that hidden
truth contradicts, of those that were drawn for the audit. Of points, baseline and student are mean errors of objects
over the diagonals of their labelled boxes (NME), so less is better, and the difference says by how many hundredths of
the baseline's the student's is smaller.
"""

Record = Mapping[str, Any]


def summarise(
    records: Sequence[Record], wanted: int, controls: Sequence[Record], equal_images: Sequence[Record] = ()
) -> str:
    """Markdown: what was done, a table for each task, and what it comes to."""
    commits = ", ".join(sorted({record["commit"] for record in records})) or "none"
    parts = [
        f"{len(records)} of {wanted} records ({'complete' if len(records) == wanted else 'INCOMPLETE'}); "
        f"code: {commits}. {TEST} sealed test scenes.\n"
    ]
    for task in dict.fromkeys(record["task"] for record in records):
        own = [record for record in records if record["task"] == task]
        parts.append(f"## {PLANS[task].title}\n\n{_intro(own)}\n\n{_table(own)}\n\n{_verdict(task, own)}\n")
    if records:
        parts.append(_EXPLANATION)
    if equal_images:
        parts.append(f"## As many images, all of them labelled\n\n{_equal_images(records, equal_images)}\n")
    if controls:
        parts.append(f"## Loops that must be refused\n\n{_controls(controls)}\n")
    return "\n".join(parts)


def _intro(records: Sequence[Record]) -> str:
    plan = PLANS[records[0]["task"]]
    steps = ", ".join(str(steps) for steps in sorted({record["steps"] for record in records}))
    seconds = [record["seconds"] for record in records]
    sizes = plan.sizes
    return (
        f"Pool of {sizes.pool:,} scenes, {sizes.labelled} labelled, {sizes.gate} more for the gate. Recipe "
        f"`{plan.preset}`, {SIZE_PX} px, {steps} steps of {plan.batch_size} labelled images for each model; all "
        f"begin from {plan.start}. The pool is of `test`, sealed scenes are of `val`. Precision promised of accepted "
        f"labels: {plan.precision} (.1 less where labels are few), {plan.folds} folds. One record took "
        f"{min(seconds):.0f} to {max(seconds):.0f} s."
    )


def _table(records: Sequence[Record]) -> str:
    lines = [
        "| split | seed | baseline | student | student - baseline | accepted | wrong | gate |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for record in sorted(records, key=lambda each: (each["split"], each["seed"])):
        test, gain = record["test"], record["against_baseline"]
        models = " | ".join(f"{100 * test[role]:.1f}" for role in ("baseline", "student"))
        interval = f"{100 * gain['difference']:+.2f} ({100 * gain['low']:+.2f} .. {100 * gain['high']:+.2f})"
        audit = record["audit"]
        lines.append(
            f"| {record['split']} | {record['seed']} | {models} | {interval} | {sum(record['accepted'].values())} "
            f"| {audit['errors']} of {audit['n']} | {'passed' if record['gate']['passed'] else 'refused'} |"
        )
    return "\n".join(lines)


def lower_bound(values: Sequence[float]) -> float:
    """One-sided 95 % lower bound of a mean, by Student's t; NaN below two values."""
    if len(values) < 2:
        return math.nan
    return mean(values) - float(student_t.ppf(0.95, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def _verdict(task: str, records: Sequence[Record]) -> str:
    metric, aim = PLANS[task].metric, PLANS[task].aim
    gains = [100 * record["against_baseline"]["difference"] for record in records]
    by_split = [
        mean(gain for gain, record in zip(gains, records, strict=True) if record["split"] == split)
        for split in sorted({record["split"] for record in records})
    ]
    bounds = [lower_bound(gains), lower_bound(by_split)]
    words = ["-" if math.isnan(bound) else f"{bound:+.2f}" for bound in bounds]
    met = mean(gains) >= aim and bounds[0] > 0
    return (
        f"Student minus baseline, {metric}: mean {mean(gains):+.2f} over {len(gains)} records, lower bound {words[0]} "
        f"(over the means of {len(by_split)} splits {words[1]}); {sum(gain > 0 for gain in gains)} of {len(gains)} "
        f"positive. Aim: mean of at least +{aim:.1f} and a lower bound above 0 over 9 records: "
        f"{'met' if met and len(gains) >= 9 else 'met so far' if met else 'NOT met'}."
    )


def _controls(controls: Sequence[Record]) -> str:
    lines = ["| task | split | seed | control | refused by |", "|---|---:|---:|---|---|"]
    for control in controls:
        refused = "; ".join(control["reasons"]) if control["refused"] else "**NOT refused**"
        lines.append(
            f"| {control['task']} | {control['split']} | {control['seed']} | {control['control']} | {refused} |"
        )
    return "\n".join(lines)


def _equal_images(records: Sequence[Record], models: Sequence[Record]) -> str:
    """Students against baselines whose every step has as many images as a student's, all of them labelled."""
    students = {(each["task"], each["split"], each["seed"]): 100 * each["test"]["student"] for each in records}
    lines = [
        "| task | split | seed | images a step | baseline | student - baseline |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    gains: dict[str, list[float]] = {}
    for each in models:
        key = (each["task"], each["split"], each["seed"])
        value = 100 * each["test"]
        gain = "-"
        if key in students:
            gains.setdefault(each["task"], []).append(students[key] - value)
            gain = f"{students[key] - value:+.2f}"
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {each['images_a_step']} | {value:.1f} | {gain} |")
    verdicts = [
        f"{PLANS[task].title}, {PLANS[task].metric}: mean {mean(own):+.2f} over {len(own)} records, lower bound "
        f"{lower_bound(own):+.2f}."
        for task, own in gains.items()
    ]
    return "\n".join([*lines, "", *verdicts])
