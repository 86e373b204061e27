"""A short form of one whole round on digitscape in a bucket. Kills are in tests/chaos/test_training_kills.py."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flows import retrain
from flows.loop_parameters import RetrainParameters
from flows.steps import plain_steps
from infra.errors import UsageError
from infra.problems import checked
from infra.store import Store, open_store
from modelkit import ClassInfo
from modelkit.digitscape import CLASS_NAMES, Digitscape, SceneStyle, write_dataset
from tasks.ingest.inventory import take_inventory
from tasks.labels.reading import read_label_set
from tasks.loop.champion import Model, list_candidates, read_pointer
from tasks.loop.due import arrivals_since
from tasks.loop.loops import open_loop
from tasks.loop.schemas import MODELS, PSEUDO_LABELS, ROUNDS, VERDICTS
from tasks.output import tables
from tasks.training.examples import load_training_set
from tasks.training.presets import make_recipe

SIZE = (128, 128)
STYLE = SceneStyle(digits=(7, 10), size_px=(24.0, 48.0), empty_share=0.0, overlap=0.1)
"""Dense and easy: with 14 or more true objects of each class on C the classes are certified together."""
CLASSES = [ClassInfo(k + 1, name) for k, name in enumerate(CLASS_NAMES)]


def put_dataset(store: Store, prefix: str, folder: Path, split: str, count: int, first: int = 0) -> str:
    """Scenes with COCO truth below a prefix of the store; the URI of the JSON."""
    write_dataset(
        folder, Digitscape(split, SIZE, seed=4, style=STYLE, dense=False), count, first=first, image_format="png"
    )  # type: ignore[arg-type]
    for path in sorted(folder.rglob("*.png")):
        if path.parent.name == "images":
            store.put(f"{prefix}/images/{path.name}", path.read_bytes())
    store.put(f"{prefix}/annotations.json", (folder / "annotations.json").read_bytes())
    return store.uri_of(f"{prefix}/annotations.json")


@pytest.fixture
def asked(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of a loop on 52 labelled and 12 unlabelled scenes in a bucket, beginning from the shipped weights."""
    monkeypatch.setenv("VISIONMILL_CACHE_DIR", str(tmp_path / "cache"))
    store = open_store(f"{s3_bucket}/data")
    plan = make_recipe("digitscape", CLASSES, steps=6, seed=0)
    plan = dataclasses.replace(plan, batch_size=2, loop=dataclasses.replace(plan.loop, learning_rate=1e-4))
    store.put("tiny.json", json.dumps(plan.to_json()).encode())
    audit = put_dataset(store, "unlabelled", tmp_path / "u", "train", 12, first=500)
    return {
        "labelled": put_dataset(store, "labelled", tmp_path / "l", "train", 52),
        "unlabelled": store.uri_of("unlabelled/images"),
        "audit": audit,
        "output": f"{s3_bucket}/loop",
        "recipe": store.uri_of("tiny.json"),
        "initial": "digitscape_mask_rcnn",
        "steps": 6,
        "shares": {"train": 0.15, "calibration": 0.65, "gate": 0.2},
        "tta": ["1.25x"],
        "ray": "none",
    }


pytestmark = pytest.mark.s3


class PulledPlugError(RuntimeError):
    """Somebody pulled the plug."""


def run(asked: dict[str, Any], step: Callable[..., Any] = plain_steps) -> dict[str, Any]:
    return retrain._retrain(checked(RetrainParameters, **asked), step, None)


def test_one_round_from_labels_to_the_gate_goes_on_where_it_was_stopped(asked: dict[str, Any], tmp_path: Path) -> None:
    def stop_before(name: str) -> Callable[..., Any]:
        def step(title: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if title.endswith(name):
                raise PulledPlugError(title)
            return function(*args, **kwargs)

        return step

    logs = [f"tensorboard:{tmp_path / 'log'}"] if find_spec("tensorboard") else []
    asked = {**asked, "log": logs}
    for name in ("select", "judge"):
        with pytest.raises(PulledPlugError, match=name):
            run(asked, stop_before(name))
    summary = run(asked)
    store = open_store(asked["output"])
    [outcome] = summary["rounds"]

    assert sum(outcome["accepted"].values()) > 0, "the shipped model is sure of some digits"
    assert outcome["gate"]["reasons"] or outcome["gate"]["passed"]
    assert summary["splits"]["unlabelled"] == 12
    [first, *_] = read_pointer(store)[0].moves
    assert first.model.model_id == outcome["teacher"], "the first champion taught"
    [rounds] = tables.read(store, ROUNDS).to_pylist()
    assert rounds["train_set_id"] == outcome["train_set_id"]
    assert rounds["n_pseudo"] == sum(outcome["accepted"].values())
    labels = tables.read(store, PSEUDO_LABELS).to_pylist()
    assert {row["decision"] for row in labels} >= {"accept", "ignore"}, "refused candidates are kept, with the reason"
    assert {row["tta_spec"] for row in labels} == {'["1.25x"]'}
    for row in labels:
        measured = (row["q_stability"] + row["q_tta"]) / 2
        assert row["accept_mask"] <= (row["quality_calibrated"] >= 0.75), "what was measured decides"
        assert row["accept_box"] <= (row["q_tta"] >= 0.85)
        assert 0 <= measured <= 1
    roles = {row["role"]: row["model_id"] for row in tables.read(store, MODELS).to_pylist()}
    assert roles["student"] == outcome["candidate"] and set(roles) == {"teacher", "student", "baseline"}
    heartbeats = {row["criterion"]: row for row in tables.read(store, VERDICTS).to_pylist() if row["round"] == 1}
    assert heartbeats["heartbeat: unlabelled over supervised loss"]["value"] > 0
    assert heartbeats["heartbeat: entropy of predictions on unlabelled items against calibration"]["passed"]
    states = {record.model.model_id: state for record, state in list_candidates(store)}
    assert states[outcome["candidate"]] == ("promoted" if outcome["gate"]["passed"] else "refused")

    job = json.loads(
        store.get(next(i.key for i in store.list("training/runs/") if "student" in _name_of(store, i.key)))
    )
    pseudo = load_training_set(store, job["unlabelled_set"])
    accepted = [row for row in labels if row["decision"] == "accept"]
    assert sum(len(example.objects) for example in pseudo) == len(accepted)
    assert sum(len(example.ignore_boxes) for example in pseudo) == sum(row["decision"] == "ignore" for row in labels)

    written = {info.key for info in store.list("report/")}
    page = f"report/rounds/{summary['run_id']}-0001.html"
    assert written == {"report/index.html", page}
    assert f"Round 1 of {asked['output'].rpartition('/')[2]}" in store.get(page).decode()
    linked = re.findall(r'href="../../(training/runs/[^"]*curves.html)"', store.get(page).decode())
    assert len(set(linked)) == 3 and all(b"<svg" in store.get(each) for each in linked), "each model has its curves"
    logged = {path.parent.name.partition("-")[0] for path in (tmp_path / "log").rglob("events.*")}
    assert logged == ({"teacher", "student", "baseline"} if logs else set())
    exported = {info.key.rpartition("/")[2] for info in store.list(f"disagreements/{summary['run_id']}/round=0001/")}
    assert exported == {"label_studio.json", "cvat_champion.xml", "cvat_candidate.xml"}

    inventory = take_inventory(asked["unlabelled"], folder=tmp_path / "now")
    arrivals = arrivals_since(store, read_label_set(asked["labelled"]), inventory.path)
    assert (arrivals.last_run_id, arrivals.labels_changed, arrivals.new_objects) == (summary["run_id"], False, 0)


def _name_of(store: Store, key: str) -> str:
    return str(json.loads(store.get(key))["recipe"]["name"]) if key.endswith("run.json") else ""


def test_another_way_to_look_is_another_loop_with_inference_of_its_own(asked: dict[str, Any]) -> None:
    store = open_store(asked["output"])
    loops = []
    for views in (["1.25x"], ["1.25x", "1.25x"], []):
        parameters = checked(RetrainParameters, **{**asked, "tta": views})
        data = retrain.divide(parameters, store) if not loops else loops[0].data
        loops.append(open_loop(parameters, store, data, f"{len(loops)}"))
    named = [retrain.name_of(loop.settings, loop.data) for loop in loops]
    champion = Model("m@1", "m", "ab" * 32, "run", 0)
    places = [loop.inference_uri(champion) for loop in loops]
    assert named[0] == named[1] != named[2]
    assert places[0] == places[1] != places[2]
    with pytest.raises(UsageError, match=r"tta: must be 'hflip', "):
        checked(RetrainParameters, **{**asked, "tta": ["vflip"]})


def test_what_cannot_be_a_loop_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rounds need as many looks"):
        checked(RetrainParameters, **{**asked, "rounds": 5})
    with pytest.raises(UsageError, match="leaves nothing for gate"):
        run({**asked, "shares": {"train": 0.5, "calibration": 0.5}})
    with pytest.raises(UsageError, match="teach instance"):
        run({**asked, "task": "instance", "recipe": "lraspp_mobilenet_v3_large", "initial": None})
