"""What landmark models learn from real pictures: heatmaps or coordinates, from how many pictures, beside a mean pose.

    python -m benchmarks.photographs_points DATA [--sets faces68 lsp_pose] [--shares 1] [--heads heatmap]
                                            [--division 0] [--steps N] [--work .bench/photographs-points]

DATA is a folder of sets, each with COCO's keypoints (``annotations.json``). A fifth of the groups of a set (of persons
where images name a "group", else of images) is judged, another one for each division; of the other groups a share is
learnt from. Recipes are those that ``visionmill train`` derives; for the head "coordinate" the same backbone, schedule
and noise with coordinates in place of maps. Training takes one core. The mean pose is the mean place of each point in
the boxes that are learnt from, put into the boxes that are judged. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photographs import measured
from benchmarks.throughput import current_commit
from modelkit.metrics import point_errors
from tasks.labels.label_sets import LabelSet
from tasks.labels.reading import read_label_set
from tasks.products.landmarks.judging import figures_of, lengths_of
from tasks.training.inspection import inspect_labels
from tasks.training.presets import make_recipe

SETS = ("faces68", "lsp_pose")
HEADS = ("heatmap", "coordinate")
DIVISIONS = 5
FIGURES = ("nme", "auc", "pck", "failure_rate")


def main() -> None:
    """Train and judge what is missing, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=["heatmap"])
    parser.add_argument("--division", type=int, default=0, choices=range(DIVISIONS))
    parser.add_argument("--steps", type=int, help="default: what the derived recipe says")
    parser.add_argument("--work", type=Path, default=Path(".bench/photographs-points"))
    asked = parser.parse_args()
    records: list[dict[str, Any]] = []
    for name in asked.sets:
        for share in asked.shares:
            learnt, judged = divided(asked.data.resolve(), name, asked.division, share, asked.work.resolve())
            records.append(mean_pose(learnt, judged))
            records += [record_of(head, asked.steps, learnt, judged) for head in asked.heads]
    print(table(records))


def divided(data: Path, name: str, division: int, share: float, work: Path) -> tuple[Path, Path]:
    """Label files of what is learnt from and of what is judged on, with links to the images beside them."""
    folder = work / name / f"division-{division}-share-{share:g}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(data / name / "images")
    whole = json.loads((data / name / "annotations.json").read_text())
    place = {each["id"]: int(hashlib.sha1(_group(each).encode()).hexdigest(), 16) for each in whole["images"]}
    judged = {number for number, digest in place.items() if digest % DIVISIONS == division}
    learnt = {number for number in place.keys() - judged if place[number] // DIVISIONS % 1000 < 1000 * share}
    files = []
    for part, chosen in (("learnt", learnt), ("judged", judged)):
        images = [each for each in whole["images"] if each["id"] in chosen]
        annotations = [each for each in whole["annotations"] if each["image_id"] in chosen]
        files.append(folder / f"{part}.json")
        files[-1].write_text(json.dumps({**whole, "images": images, "annotations": annotations}))
    return files[0], files[1]


def _group(image: Mapping[str, Any]) -> str:
    return str(image.get("group", image["file_name"]))


def record_of(head: str, steps: int | None, learnt: Path, judged: Path) -> dict[str, Any]:
    """A model trained by the derived recipe; kept beside the labels."""
    folder = learnt.parent / f"{head}-{steps or 'derived'}"
    folder.mkdir(exist_ok=True)
    kept = folder / "record.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    labels = read_label_set(str(learnt))
    recipe = make_recipe("keypoints", labels.classes, steps=steps, seed=0, seen=inspect_labels(labels)).to_json()
    if head == "coordinate":
        config = {name: value for name, value in recipe["config"].items() if name not in ("neck", "codec")}
        recipe |= {"architecture": "coordinate_landmarker", "config": config}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    words = ("train", learnt, folder, "--recipe", folder / "recipe.json", "--ray", "none", "--no-prefect")
    summary, spent = measured(folder / "seconds", *map(str, words))
    metrics = measured(folder / "judging", "evaluate", summary["weights"], str(judged))[0]["metrics"]
    main = lengths_of(labels.points)[0] if labels.points else None
    assert main is not None
    record = {
        "name": head, "set": learnt.parents[1].name, "images": len(labels.table), "steps": recipe["loop"]["steps"],
        "commit": current_commit(), "cpu_s": spent, "weights": summary["weights"], "length": main.name,
        "figures": metrics[main.name],
    }  # fmt: skip
    kept.write_text(json.dumps(record))
    return record


def mean_pose(learnt: Path, judged: Path) -> dict[str, Any]:
    """How near the mean place of each point in the boxes that are learnt from comes to those of the judged ones."""
    known, asked = read_label_set(str(learnt)), read_label_set(str(judged))
    boxes, points = objects_of(known)
    shares = (points[..., :2] - boxes[:, None, :2]) / (boxes[:, None, 2:] - boxes[:, None, :2])
    mean = np.nanmean(np.where(points[..., 2:] > 0, shares, np.nan), axis=0)
    boxes, points = objects_of(asked)
    found = boxes[:, None, :2] + mean * (boxes[:, None, 2:] - boxes[:, None, :2])
    assert asked.points is not None
    main = lengths_of(asked.points)[0]
    figures = figures_of(point_errors(found, points, main.of(points, boxes)), main.limit, asked.points.names)
    return {
        "name": "mean pose", "set": learnt.parents[1].name, "images": len(known.table), "steps": 0, "cpu_s": 0.0,
        "length": main.name, "figures": figures,
    }  # fmt: skip


def objects_of(labels: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) and points (n, K, 3) of all objects that have some."""
    boxes, points = [], []
    for row in labels.table.to_pylist():
        for box, placed in zip(row["boxes_xyxy"], row["keypoint_xyv"], strict=True):
            if placed:
                boxes.append(box)
                points.append(placed)
    return np.array(boxes, np.float64), np.array(points, np.float64)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row each; errors are shares of the length that is named."""
    columns = ("set", "learnt from", "model", "steps", "minutes of a core", "length", *FIGURES)
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for each in records:
        figures = [f"{each['figures'][name]:.3f}" for name in FIGURES]
        row = (each["set"], each["images"], each["name"], each["steps"], f"{each['cpu_s'] / 60:.0f}", each["length"])
        lines.append("| " + " | ".join(map(str, (*row, *figures))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
