"""``visionmill models import`` of published weights: checked, written, and the command that takes them is told."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from modelkit import create_model, load_weights
from tests.flows.command import visionmill

CONFIG = {"backbone": {"width": 0.1}, "neck": {"channels": 8}}


def test_imported_weights_know_their_points_and_the_command_that_takes_them(tmp_path: Path) -> None:
    torch.save(create_model("retinaface", **CONFIG).state_dict(), tmp_path / "faces.pth")
    options = ("--config", json.dumps(CONFIG), "--json")
    said = visionmill("models", "import", "retinaface", tmp_path / "faces.pth", tmp_path / "weights", *options)
    assert f"visionmill landmark SOURCE OUTPUT --model {tmp_path / 'weights'}" in " ".join(said.stderr.split())
    assert said.summary["path"] == str(tmp_path / "weights")
    record = load_weights(tmp_path / "weights")[1]
    assert record.kind == "keypoints"
    assert record.keypoints is not None
    assert record.keypoints.names[0] == "right_eye"
