"""Does the self-training loop help on points of faces? Student against a supervised model of the same budget.

    python -m benchmarks.faces_loop DATA [--division 0] [--steps N] [--work .bench/faces]

DATA is a folder of crops of faces with COCO's keypoints (``annotations.json``); images and their files name the person
("group", ``p007_3.jpg``). A fifth of the persons is sealed, another one for each division. Of the others a tenth is
labelled, and as many more are the gate's; all others are unlabelled, and their labels audit. One record is one round of
``visionmill retrain`` with the recipe that is derived from the labels and cross-fitted calibration, so that the teacher
is the supervised model of the same budget. No detector is asked: a crop holds one face, about where it usually is.
Errors are divided by the distance of the outer corners of the eyes. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.selftraining_points import less_error
from benchmarks.throughput import current_commit
from flows.loop_parameters import RetrainParameters
from flows.retrain import run_retrain
from infra.problems import checked
from infra.store import open_store
from tasks.labels.reading import read_label_set
from tasks.loop.judging import load_predictor
from tasks.loop.schemas import MODELS
from tasks.output import tables

LABELLED, GATE = 1 / 10, 1 / 10
DIVISIONS = 5
NORMALISER = "interocular"
PERSON = r"/([^/]*)_\d+\.jpg$"


def main() -> None:
    """Carry the record out and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--division", type=int, default=0, choices=range(DIVISIONS))
    parser.add_argument("--steps", type=int, help="of each model; default: as many as the derived recipe says")
    parser.add_argument("--work", type=Path, default=Path(".bench/faces"))
    asked = parser.parse_args()
    print(json.dumps(record_of(asked.data.resolve(), asked.division, asked.steps, asked.work.resolve()), indent=1))


def record_of(data: Path, division: int, steps: int | None, work: Path) -> dict[str, Any]:
    """One round, and the errors of its student and of its teacher on sealed persons."""
    folder = work / f"division-{division}"
    parts = divided(data, division, folder)
    output, taught = folder / f"loop-{steps or 'derived'}", len(persons_of(parts["train"]))
    gate = len(persons_of(parts["labelled"])) - taught
    parameters = checked(
        RetrainParameters,
        task="keypoints",
        labelled=str(parts["labelled"]),
        unlabelled=str(parts["unlabelled"].parent / "images"),
        audit=str(parts["unlabelled"]),
        output=str(output),
        steps=steps,
        shares={"train": taught / (taught + gate), "gate": gate / (taught + gate)},
        group_rule=PERSON,
        tta=("hflip",),
        calibration="crossfit",
        folds=3,
        ray="none",
    )
    summary = run_retrain(parameters, orchestrated=False)
    [outcome] = summary["rounds"]
    uris = {row["model_id"]: row["weights_uri"] for row in tables.read(open_store(str(output)), MODELS).to_pylist()}
    models = {"baseline": outcome["teacher"], "student": outcome["candidate"] or outcome["teacher"]}
    sealed = read_label_set(str(parts["sealed"]))
    loaded = {role: load_predictor(uris[model]) for role, model in models.items()}
    return {
        "division": division,
        "commit": current_commit(),
        "splits": summary["splits"],
        "accepted": sum(outcome["accepted"].values()),
        "abstaining": len(outcome["abstaining"]),
        "gate": outcome["gate"],
        "seconds": summary["seconds"],
        **less_error(loaded, sealed, NORMALISER, seed=division),
    }


def divided(data: Path, division: int, folder: Path) -> dict[str, Path]:
    """COCO's labels of each part; its images are copied beside it.

    Returns:
        "train" and "labelled" (these and the gate's, of one folder), "unlabelled" and "sealed".
    """
    content = json.loads((data / "annotations.json").read_text())
    ordered = sorted(_groups(content["images"]), key=lambda name: hashlib.sha1(name.encode()).hexdigest())
    sealed = set(ordered[division::DIVISIONS])
    rest = [name for name in ordered if name not in sealed]
    few, more = max(1, round(LABELLED * len(rest))), max(1, round(GATE * len(rest)))
    parts = {
        "train": ("labelled", set(rest[:few])),
        "labelled": ("labelled", set(rest[: few + more])),
        "unlabelled": ("unlabelled", set(rest[few + more :])),
        "sealed": ("sealed", sealed),
    }
    return {name: _write(data, content, folder / place, name, chosen) for name, (place, chosen) in parts.items()}


def _write(data: Path, content: dict[str, Any], folder: Path, name: str, persons: set[str]) -> Path:
    images = [each for each in content["images"] if each["group"] in persons]
    for each in images:
        place = folder / each["file_name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copyfile(data / each["file_name"], place)  # a job takes no link that leads out of its source
    ids = {each["id"] for each in images}
    annotations = [each for each in content["annotations"] if each["image_id"] in ids]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    return path


def persons_of(path: Path) -> set[str]:
    return _groups(json.loads(path.read_text())["images"])


def _groups(images: Sequence[dict[str, Any]]) -> set[str]:
    return {each["group"] for each in images}


if __name__ == "__main__":
    main()
