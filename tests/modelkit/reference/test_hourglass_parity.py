"""Same weights, same picture: our stacked hourglass computes what princeton-vl/pytorch_stacked_hourglass computes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit.importing.princeton_hourglass import MPII_POINTS
from tests.modelkit.builders import picture
from tests.modelkit.reference.checkouts import reference
from tests.modelkit.reference.test_semantic_parity import imported, randomise

pytestmark = pytest.mark.reference
_TOLERANCE = 1e-5  # of the largest value


@pytest.mark.parametrize("stacks", [1, 2])
def test_every_stack_gives_their_maps(stacks: int, tmp_path: Path, record_property: Any) -> None:
    image = picture(256, 256, 4)
    with reference("pytorch_stacked_hourglass"), torch.no_grad():
        network = importlib.import_module("models.posenet").PoseNet(stacks, 256, 16)
        theirs = randomise(network)(torch.from_numpy(image)[None].float() / 255)
        state = {f"model.module.{name}": value for name, value in network.state_dict().items()}
    predictor = imported("hourglass", {"state_dict": state, "epoch": 3}, tmp_path)
    assert predictor.weights.keypoints == MPII_POINTS
    with torch.inference_mode():
        ours = predictor.forward_fn(predictor.batch([predictor.prepare(image)]))
    assert len(ours) == stacks == theirs.shape[1]
    for k in range(stacks):
        expected = theirs[:, k]
        assert float(expected.std()) > 1e-3
        difference = float((ours[f"heatmaps.{k}"] - expected).abs().max() / expected.abs().max())
        record_property(f"relative_difference_{k}", f"{difference:.2e}")
        print(f"stack {k}: largest difference over largest value {difference:.2e}")
        assert difference <= _TOLERANCE
