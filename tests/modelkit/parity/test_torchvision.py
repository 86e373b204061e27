"""What users get equals what torchvision's own pipeline gives: same picture, same weights, through the ``Predictor``.

Weights are random and seeded, for published ones cannot be had everywhere. The picture is resized on its way. One name
for each path through the code; ``python -m benchmarks.parity`` does all of them at the sizes that torchvision uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.modelkit.builders import picture
from tests.modelkit.parity.from_torchvision import SQUARES, compare, imported, is_semantic, reference

NAMES = (
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
    "maskrcnn_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
)
SMALL = {"min_size": 96, "max_size": 160}
FEW = 60  # proposals: what two-stage detectors spend their time on


@pytest.mark.parametrize("name", NAMES)
def test_a_predictor_gives_what_torchvisions_pipeline_gives(name: str, tmp_path: Path) -> None:
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    if is_semantic(name):
        ours = {"transform": {"min_size": SMALL["min_size"]}}
    elif name not in SQUARES:
        theirs, ours = dict(SMALL), {"transform": SMALL}
    if "rcnn" in name:
        theirs |= {"rpn_post_nms_top_n_test": FEW}
        ours |= {"rpn": {"post_nms_test": FEW}}
    model = reference(name, **theirs)
    difference = compare(name, model, imported(name, model, tmp_path, **ours), picture(131, 190, 4))
    assert difference.compared > 10
    assert difference.within(score=1e-3, box=0.1, mask=0.02), difference
