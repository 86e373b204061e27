"""What the recipes for points reach on digitscape, and whether learning points helps to find boxes.

    python -m benchmarks.point_recipes TRAIN TEST [--recipes NAME ...] [--steps N] [--work .bench/points]

TRAIN and TEST are ``landmarks.json`` of ``visionmill digitscape`` (``surfaces.json`` for ``densepose_rcnn``); a name is
one of ``RECIPES``. Each is trained in one process with one thread, on a core that others may use, too: seconds of the
core count. Points of top-down models are judged on the labelled boxes (errors are divided by their diagonals), those of
the others by AP, as are the boxes that they find; surfaces as ``tasks/products/landmarks/surface_judging.py`` says.
Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.photographs import measured
from benchmarks.throughput import current_commit
from tasks.labels.reading import read_label_set
from tasks.training.inspection import inspect_labels
from tasks.training.presets import make_recipe

_NECK = {"name": "deconvolution", "channels": [64, 64, 64]}

RECIPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "heatmap": ("digitscape_heatmap", {"transform": {"padding": "letterbox", "fixed_hw": [96, 64]}}),
    "heatmap_larger": ("digitscape_heatmap", {}),
    "coordinate": ("digitscape_coordinate", {}),
    "soft_argmax": ("digitscape_coordinate", {"mode": "soft_argmax", "loss": "l1", "neck": _NECK}),
    "hourglass": ("digitscape_hourglass", {}),
    "keypoint_rcnn": ("digitscape_keypoint_rcnn", {}),
    "densepose_rcnn": ("digitscape_densepose_rcnn", {}),
    "retinaface": ("digitscape_retinaface", {}),
    "retinaface_boxes": ("digitscape_retinaface", {"num_keypoints": 0}),
    "retinaface_tenth": ("digitscape_retinaface", {"loss_weights": {"loss_keypoint": 0.1}}),
    "centernet": ("digitscape_centernet", {}),
    "cornernet": ("digitscape_cornernet", {}),
    "centernet_triplet": ("digitscape_centernet_triplet", {}),
}  # fmt: skip
"""Recipe, and what is changed of its model. ``heatmap`` sees digits as large as those that it is compared with,
``heatmap_larger`` as its recipe says. ``retinaface_boxes`` learns the same boxes without a branch of points, in
``retinaface_tenth`` the loss of points counts a tenth."""

FIGURES = {
    "NME": ("box_diagonal", "nme"),
    "AUC": ("box_diagonal", "auc"),
    "PCK .1": ("box_diagonal", "pck"),
    "OKS AP": ("oks", "ap"),
    "box AP": ("box", "ap"),
    "box AP50": ("box", "ap50"),
    "GPS AP": ("gps", "ap"),
    "GPS": ("surface", "gps"),
    "parts": ("surface", "part_accuracy"),
    "UV error": ("surface", "uv_error"),
}


def main() -> None:
    """Train and judge what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--steps", type=int, help="of each; default: what its recipe says")
    parser.add_argument("--work", type=Path, default=Path(".bench/points"))
    asked = parser.parse_args()
    train, test, work = asked.train.resolve(), asked.test.resolve(), asked.work.resolve()
    print(table([record_of(name, asked.steps, train, test, work) for name in asked.recipes]))


def record_of(name: str, steps: int | None, train: Path, test: Path, work: Path) -> dict[str, Any]:
    """One recipe's figures; kept in the work folder."""
    folder = work / f"{name}-{steps or 'default'}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "record.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    preset, changes = RECIPES[name]
    labels = read_label_set(str(train))
    recipe = make_recipe(preset, labels.classes, steps=steps, seed=0, seen=inspect_labels(labels)).to_json()
    recipe["config"] = {**recipe["config"], **changes}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    words = ("train", train, folder, "--recipe", folder / "recipe.json", "--ray", "none", "--no-prefect")
    summary, spent = measured(folder / "seconds", *map(str, words))
    judged, _ = measured(folder / "judging", "evaluate", summary["weights"], str(test))
    record = {"name": name, "commit": current_commit(), "cpu_s": spent, "steps": recipe["loop"]["steps"]}
    record["metrics"] = judged["metrics"]
    kept.write_text(json.dumps(record))
    return record


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row each."""
    columns = ("recipe", "steps", "minutes of a core", *FIGURES)
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for each in records:
        figures = [each["metrics"].get(group, {}).get(name) for group, name in FIGURES.values()]
        shown = ["–" if value is None else f"{value:.3f}" for value in figures]
        lines.append("| " + " | ".join([each["name"], str(each["steps"]), f"{each['cpu_s'] / 60:.0f}", *shown]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
