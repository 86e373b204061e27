"""``visionmill models import`` of models whose product does not exist yet."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from modelkit import create_model, load_weights
from tests.flows.command import visionmill

CONFIG = {"backbone": {"width": 0.1}, "neck": {"channels": 8}}


def test_weights_that_no_job_can_use_yet_are_imported_all_the_same(tmp_path: Path) -> None:
    torch.save(create_model("retinaface", **CONFIG).state_dict(), tmp_path / "faces.pth")
    options = ("--config", json.dumps(CONFIG), "--json")
    said = visionmill("models", "import", "retinaface", tmp_path / "faces.pth", tmp_path / "weights", *options)
    assert "modelkit.load(" in said.stderr
    assert said.summary["path"] == str(tmp_path / "weights")
    record = load_weights(tmp_path / "weights")[1]
    assert record.kind == "keypoints"
    assert record.keypoints is not None
    assert record.keypoints.names[0] == "right_eye"
