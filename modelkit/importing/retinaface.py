"""Checkpoints of biubug6/Pytorch_Retinaface. They see images at their own size, BGR in 0 .. 255 minus the mean colour.

Their boxes and points count as ours do: priors lie at (cell + 0.5) x stride, a box of WIDER FACE reaches from x to
x + width, a mirror takes x to width - x, and cv2 resizes between pixel centres. So nothing is shifted. Only their
suppression counts boxes one pixel wider and higher when it compares them; ours does not.
"""

from __future__ import annotations

from typing import Any

from modelkit.carriers.classes import ClassInfo
from modelkit.faces.models import FACE_MEAN, FACE_STD
from modelkit.faces.targets import FACE_POINTS
from modelkit.importing.key_table import OWN_SIZE, KeyTable, State

_PRIORS = 2  # of a cell
_LEVELS = tuple(enumerate(("p3", "p4", "p5")))
_SSH = {"conv3X3": "near", "conv5X5_1": "shared", "conv5X5_2": "middle", "conv7X7_2": "far.0", "conv7x7_3": "far.1"}
_HEADS = {"ClassHead": "logits", "BboxHead": "deltas", "LandmarkHead": "points"}


def _infer(state: State) -> dict[str, Any]:
    counts = [len(state.get(f"{name}.0.conv1x1.bias", ())) // _PRIORS for name in ("ClassHead", "LandmarkHead")]
    return {"num_classes": counts[0], "num_keypoints": counts[1] // 2} if all(counts) else {}


_RULES = (
    *((rf"^fpn\.output{k + 1}\.", f"neck.laterals.{level}.") for k, level in _LEVELS),
    *((rf"^fpn\.merge{k + 1}\.", f"neck.merges.{level}.") for k, level in _LEVELS[:2]),
    *(
        (rf"^ssh{k + 1}\.{theirs}\.", f"neck.contexts.{level}.{ours}.")
        for k, level in _LEVELS
        for theirs, ours in _SSH.items()
    ),
    *(
        (rf"^{theirs}\.{k}\.conv1x1\.", f"head.branches.{ours}.{level}.")
        for k, level in _LEVELS
        for theirs, ours in _HEADS.items()
    ),
)
_MOBILENET = (
    (r"^body\.stage1\.([01])\.", r"backbone.stem.\1."),
    *((rf"^body\.stage1\.{k + 2}\.", f"backbone.stages.c{2 + k // 2}.{k % 2}.") for k in range(4)),
    (r"^body\.stage2\.", "backbone.stages.c4."),
    (r"^body\.stage3\.", "backbone.stages.c5."),
)
_SAID: dict[str, Any] = {
    "infer": _infer,
    "config": {"transform": {**OWN_SIZE, "mean": FACE_MEAN, "std": FACE_STD}},
    "classes": (ClassInfo(1, "face"),),
    "keypoints": FACE_POINTS,
}

RETINAFACE_MOBILENET = KeyTable((*_MOBILENET, *_RULES), reverse_channels=(r"^body\.stage1\.0\.0\.weight$",), **_SAID)
RETINAFACE_RESNET = KeyTable(
    ((r"^body\.", "backbone.body."), *_RULES), reverse_channels=(r"^body\.conv1\.weight$",), **_SAID
)
