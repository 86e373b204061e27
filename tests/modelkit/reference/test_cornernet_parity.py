"""Same weights, same batch: ours compute what princeton-vl/CornerNet and Duankaiwen/CenterNet (the triplet) compute.

Both networks are built by the references' own code, narrow inside of the hourglass so that the test is quick. Their
compiled pools are replaced. The second repository is called as the one of Zhou et al.: check it out as
``CenterNet-triplet``.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelkit.points.corner_targets import corner_targets
from modelkit.points.grouping import group_corners, read_peaks
from modelkit.transform import Geometry
from tests.modelkit.builders import picture
from tests.modelkit.reference.checkouts import reference
from tests.modelkit.reference.test_retinaface_parity import raw_of, relative
from tests.modelkit.reference.test_semantic_parity import imported, randomise

pytestmark = pytest.mark.reference
_TOLERANCE = 1e-5
_HW, _GRID, _CLASSES = (128, 128), (32, 32), 4
_WIDTHS, _DEPTHS = [256, 32, 32, 48, 48, 64], [1, 1, 2, 1, 1, 2]
_CPOOLS = "models.py_utils._cpools"
_SHORT = {"tl": "top_left", "br": "bottom_right", "ct": "center"}


def pooling(axis: int, *, backwards: bool) -> type[nn.Module]:
    """A pool by one comparison after another."""

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            slices = list(x.unbind(axis))
            order = range(len(slices) - 2, -1, -1) if backwards else range(1, len(slices))
            for k in order:
                slices[k] = torch.maximum(slices[k], slices[k + 1 if backwards else k - 1])
            return torch.stack(slices, axis)

    return Pool


def build(module: Any, stacks: int, configs: Any) -> nn.Module:
    options = {
        name: getattr(module, name)
        for name in ("make_tl_layer", "make_br_layer", "make_ct_layer", "make_pool_layer", "make_hg_layer")
        if hasattr(module, name)
    }
    first = [configs] if "make_ct_layer" in options else []
    torch.manual_seed(3)
    return module.kp(*first, 5, stacks, _WIDTHS, _DEPTHS, _CLASSES, kp_layer=module.residual, cnv_dim=256, **options)


@pytest.mark.parametrize(
    ("name", "repository", "module", "stacks"),
    [
        ("cornernet", "CornerNet", "models.CornerNet", 2),
        ("centernet_triplet", "CenterNet-triplet", "models.CenterNet-104", 2),
    ],
)
def test_maps_losses_and_pairs_are_theirs(
    name: str, repository: str, module: str, stacks: int, tmp_path: Path, record_property: Any
) -> None:
    image = picture(*_HW, 4)
    with reference(repository, absent=[_CPOOLS]), torch.no_grad():
        pools: Any = sys.modules[_CPOOLS]
        pools.TopPool, pools.BottomPool = pooling(2, backwards=True), pooling(2, backwards=False)
        pools.LeftPool, pools.RightPool = pooling(3, backwards=True), pooling(3, backwards=False)
        theirs = importlib.import_module(module)
        decode = importlib.import_module("models.py_utils.kp_utils")._decode
        configs = {"top_k": 70, "ae_threshold": 0.5, "nms_kernel": 3, "input_size": [128], "output_sizes": [[32, 32]]}
        network = randomise(build(theirs, stacks, types.SimpleNamespace(configs=configs)), scale=1.2)
        mean, std = np.array([0.408, 0.447, 0.470], np.float32), np.array([0.289, 0.274, 0.278], np.float32)
        seen = torch.from_numpy(((image[:, :, ::-1] / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32).copy())
        options = {"backbone": {"widths": _WIDTHS, "depths": _DEPTHS}}
        ours = imported(name, network.state_dict(), tmp_path, **options)
        kinds = ours.model.head.drawing.kinds
        raw = raw_of(ours, image)
        network._decode = lambda *maps, **_: maps
        maps = network(seen[None])
        order = ["tl_maps", "br_maps", "tl_tags", "br_tags", "tl_offsets", "br_offsets", "ct_maps", "ct_offsets"]
        expected = {f"{_SHORT[key[:2]]}{key[2:]}": value for key, value in zip(order, maps, strict=False)}
        assert expected.keys() == raw.keys()
        worst = {key: relative(raw[key], value) for key, value in expected.items()}
        usual = {key: torch.randn(value.shape) for key, value in expected.items()}  # of which some are pairs
        said = [usual[f"{_SHORT[key[:2]]}{key[2:]}"].clone() for key in order if _SHORT[key[:2]] in kinds]
        found = decode(*said, K=50, kernel=3, ae_threshold=0.5, num_dets=200)
        worst |= pairs_of(usual, (found if name == "cornernet" else found[0])[0])
        worst["loss"] = loss_of(ours.model, network, theirs, seen, kinds)
    record_property("relative_differences", {key: f"{value:.1e}" for key, value in worst.items()})
    print(worst)
    assert max(worst.values()) <= _TOLERANCE


def pairs_of(raw: dict[str, Tensor], theirs: Tensor) -> dict[str, float]:
    """How far our pairs of corners are from their rows of box, score, two scores and class."""
    theirs = theirs[theirs[:, 4] > -1]
    first, last = (read_peaks({k: v[0] for k, v in raw.items()}, kind, 50) for kind in ("top_left", "bottom_right"))
    boxes, scores, labels = group_corners(first, last, 0.5, 200)
    assert len(boxes) == len(theirs) > 3
    nearest = torch.cdist(
        torch.cat([boxes, 99 * labels[:, None]], 1), torch.cat([theirs[:, :4], 99 * theirs[:, 7:]], 1)
    )
    same = nearest.argmin(1)
    assert len(same.unique()) == len(boxes)
    assert labels.tolist() == theirs[same, 7].long().tolist()
    return {"boxes": relative(boxes, theirs[same, :4]), "scores": float((scores - theirs[same, 4]).abs().max())}


def loss_of(model: Any, network: Any, theirs: Any, seen: Tensor, kinds: tuple[str, ...]) -> float:
    """Relative difference of the weighted sum of losses, all stacks, of a batch of one picture twice."""
    boxes = torch.tensor([[10.0, 12, 61, 70], [60, 20, 120, 90], [30, 66, 51, 101]])
    targets = [{"boxes": boxes + k, "labels": torch.tensor([1, 3, 2])} for k in (0, 3)]
    batch, geometry = torch.stack([seen, seen.flip(2)]), Geometry(_HW, _HW, _HW)
    drawn = corner_targets(targets, _CLASSES + 1, _GRID, 4, model.head.drawing, torch.device("cpu"))
    places = {
        kind: torch.tensor([row * _GRID[1] + column for _, row, column in own.offsets.places]).view(2, 3)
        for kind, own in drawn.items()
    }
    outs = network._train(batch, *(places[kind] for kind in kinds))
    mask = torch.ones(2, 3, dtype=torch.uint8)
    offsets = [torch.tensor(drawn[kind].offsets.values).view(2, 3, 2) for kind in kinds]
    said = theirs.loss(outs, [*(drawn[kind].maps for kind in kinds), mask, *offsets])
    expected = said[0] if isinstance(said, tuple) else said
    model.head.training = True  # all stacks speak; the norms stay as they are
    losses = model.head.loss(model.dense(batch.flip(1)), [geometry] * 2, targets)
    total = sum(model.loss_weights[name] * float(value) for name, value in losses.items())
    return abs(total / float(expected) - 1)
