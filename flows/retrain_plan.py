"""``retrain --plan``: whether the labels can certify anything, and whether a student could pass the gate.

All that is known before a training, in seconds: the labels are read and divided as the loop would do it. Of the
unlabelled source only those images are opened whose names count together with labelled ones. Nothing is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.labels import labels_named, labels_of, labels_to_teach
from flows.loop_parameters import RetrainParameters
from flows.summary import Summary
from infra.store import Store, is_local, open_store
from tasks.ingest.inventory import take_inventory
from tasks.labels.label_sets import LabelSet, of_people
from tasks.loop.apart import distances
from tasks.loop.data import Division, divide_labels
from tasks.loop.fingerprints import entries_of, fingerprints_of
from tasks.loop.gate import GateLimits
from tasks.loop.loops import check_promises, open_methods, recipe_for
from tasks.loop.methods import Evidence, LoopMethods
from tasks.loop.records import last_division
from tasks.loop.sequences import Picture
from tasks.loop.split_names import CALIBRATION, GATE, SPLITS, TRAIN, UNLABELLED
from tasks.records import Entry

MOST_OPENED = 2_000
"""Unlabelled images with names like labelled ones that are opened; of more, as many evenly spaced."""


def plan_retraining(asked: RetrainParameters) -> Summary:
    """What is known before anything is trained; plain JSON, ``problems`` in words.

    Raises:
        VisionmillError: as the loop itself would before it trains.
    """
    labels = labels_to_teach(labels_of(asked.labelled, asked), asked)
    with tempfile.TemporaryDirectory(prefix="visionmill-") as scratch:
        folder = Path(scratch)
        inventory = take_inventory(asked.unlabelled, folder=folder)
        mine = set(labels.table["uri"].to_pylist())
        unlabelled = [entry for entry in entries_of(inventory.path) if entry.uri not in mine]
        found = divide_labels(
            labels,
            _like_labelled(unlabelled, labels),
            shares=asked.effective_shares,
            salt=str(asked.seed),
            group_rule=asked.group_rule,
            previous=_decided_before(asked.output),
        )
    recipe = recipe_for(asked, found)
    methods = open_methods(recipe, asked, found)
    check_promises(asked, methods, labels.classes)
    classes = _classes(asked, found, methods)
    problems = [
        *_of_splits(asked, found, len(unlabelled)),
        *_of_calibration(classes),
        *_of_gate(asked, found, methods, classes),
        *_of_audit(asked, unlabelled, found.labels),
    ]
    return {
        "run_id": None,
        "outcome": "plan",
        "labels": labels.to_json(),
        "kind": recipe.kind,
        "recipe": {"name": recipe.name, "architecture": recipe.architecture, "steps": recipe.loop.steps},
        "trainings": 2 + (asked.folds if asked.crossfit else 1),
        "unlabelled": {"objects": len(unlabelled), "of_labelled_sequences": len(found.next_to)},
        "splits": {name: _extent(found.split(name)) for name in SPLITS if name != UNLABELLED},
        "splits_apart": [each.to_json() for each in distances(found.known)],
        "evidence_unit": methods.evidence_unit,
        "classes": classes,
        "problems": problems,
        "can_certify": any(not each["abstains"] for each in classes.values()),
        "can_pass": not problems,
        "exit_code": 0,
    }


def _decided_before(output: str) -> pa.Table | None:
    """What an earlier loop of the output decided; an output that the loop would make is not made."""
    if is_local(output) and not Path(output.removeprefix("file://")).exists():
        return None
    store: Store = open_store(output)
    return last_division(store)


def _like_labelled(unlabelled: list[Entry], labels: LabelSet) -> pa.Table:
    """``fingerprints.v1`` of the unlabelled images that may go on with a labelled sequence."""
    stems = {Picture.of(uri, uri, None).series[1] for uri in labels.table["uri"].to_pylist()}
    near = [each for each in unlabelled if each.media == "image" and _stem(each.uri) in stems]
    step = max(1, -(-len(near) // MOST_OPENED))
    return fingerprints_of(near[::step])


def _stem(uri: str) -> str:
    return Picture.of(uri, uri, None).series[1]


def _extent(labels: LabelSet) -> dict[str, int]:
    return {"images": len(labels), "groups": _groups(labels)}


def _groups(labels: LabelSet) -> int:
    return len(set(labels.table["group_id"].to_pylist()))


def _classes(asked: RetrainParameters, found: Division, methods: LoopMethods) -> dict[str, dict[str, Any]]:
    """By class what each split holds of it, and what the labels that calibrate can prove."""
    calibrating = found.split(TRAIN if asked.crossfit else CALIBRATION)
    evidence = methods.evidence(calibrating, lambda name: asked.class_precision.get(name, asked.precision))
    watched = methods.watched(found.split(GATE))
    amounts = {split: methods.amounts(found.split(split)) for split in (TRAIN, CALIBRATION, GATE)}
    return {
        name: {
            "promise": asked.class_precision.get(name, asked.precision),
            **{split: amounts[split][name] for split in amounts},
            "evidence": each.pieces,
            "best_precision": None if each.best_precision is None else round(each.best_precision, 3),
            "abstains": each.is_too_little,
            "why": _why(each, methods.evidence_unit),
            "watched": name in watched,
        }
        for name, each in evidence.items()
    }


def _why(each: Evidence, unit: str) -> str:
    if each.together < each.needed_together:
        return f"{each.together} in all, {each.needed_together} are needed to certify anything"
    return f"{each.pieces} {unit}, {each.needed} are needed" if each.is_too_little else ""


def _of_splits(asked: RetrainParameters, found: Division, unlabelled: int) -> Iterator[str]:
    needed = {TRAIN: asked.folds if asked.crossfit else 1, CALIBRATION: 0 if asked.crossfit else 1, GATE: 1}
    for name, least in needed.items():
        groups = _groups(found.split(name))
        if groups < least:
            yield f"{name}: {groups} groups, {least} are needed" + (" (--folds)" if least > 1 else "")
    if not unlabelled:
        yield "there is nothing unlabelled"


def _of_gate(
    asked: RetrainParameters, found: Division, methods: LoopMethods, classes: dict[str, dict[str, Any]]
) -> Iterator[str]:
    groups, least = _groups(found.split(GATE)), GateLimits(max_rounds=asked.max_rounds).fewest_groups
    if groups < least:
        looks = f"with --max-rounds {asked.max_rounds} it takes {least}"
        yield f"gate: {groups} groups cannot show a gain, however large; {looks}"
    if not any(each["watched"] for each in classes.values()):
        yield f"gate: no class has {methods.least_truth} there, so none can be seen to fall"


def _of_calibration(classes: dict[str, dict[str, Any]]) -> Iterator[str]:
    if all(each["abstains"] for each in classes.values()):
        reasons = sorted({each["why"] for each in classes.values()})
        yield f"no class can be certified: {'; '.join(reasons[:3])}"


def _of_audit(asked: RetrainParameters, unlabelled: list[Entry], labels: LabelSet) -> Iterator[str]:
    if asked.audit is None:
        yield "audit: without --audit the gate stays shut"
        return
    truth = of_people(labels_named(asked.audit, asked, labels.classes))
    known = {entry.uri for entry in unlabelled}
    looked = sum(uri in known for uri in truth.table["uri"].to_pylist())
    if not looked:
        yield f"audit: none of its {len(truth)} images is unlabelled here, so nothing that is accepted can be checked"
