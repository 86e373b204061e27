"""Checkpoints of princeton-vl/pytorch_stacked_hourglass (BSD-3). They see squares of 256 pixels, RGB in 0 .. 1.

Their bells stand in the middle of the cell that a point lies in, as our "gaussian_biased", so nothing is shifted. Every
residual block of theirs holds a 1x1 convolution beside it, also where it is never used; those are left behind.
"""

from __future__ import annotations

from typing import Any

from modelkit.carriers.classes import ClassInfo
from modelkit.carriers.landmarks import KeypointSet
from modelkit.importing.key_table import KeyTable, State

MPII_POINTS = KeypointSet(
    (
        *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle"),
        *("pelvis", "thorax", "upper neck", "head top"),
        *("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist"),
    ),
    flip_pairs=((5, 0), (4, 1), (3, 2), (15, 10), (14, 11), (13, 12)),
    skeleton=(
        *((0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
        *((10, 11), (11, 12), (12, 7), (13, 7), (13, 14), (14, 15)),
    ),
)
_DEPTH = 4
_WRAPPED = r"^(?:model\.)?(?:module\.)?"  # by their trainer, and for many GPUs
_LAYER = r"(bn\d|conv\d)\.(?:conv\.)?"
_BLOCKS = {"up1": "beside", "low1": "down", "low3": "up"}


def _infer(state: State) -> dict[str, Any]:
    heads = {name: value for name, value in state.items() if ".outs." in f".{name}" and name.endswith("conv.weight")}
    if not heads:
        return {}
    points, width = next(iter(heads.values())).shape[:2]
    pairs = [list(pair) for pair in MPII_POINTS.flip_pairs] if points == len(MPII_POINTS) else []
    return {"stacks": len(heads), "num_keypoints": points, "width": width, "flip_pairs": pairs}


def _hourglasses() -> list[tuple[str, str]]:
    """Rules for the blocks at every size; the innermost hourglass holds a block in the place of another hourglass."""
    rules = []
    for depth in range(_DEPTH):
        blocks = {**_BLOCKS, "low2": "inner"} if depth == _DEPTH - 1 else _BLOCKS
        theirs, ours = r"low2\." * depth, "inner." * depth
        rules += [
            (rf"{_WRAPPED}hgs\.(\d+)\.0\.{theirs}{old}\.{_LAYER}", rf"network.stacks.\1.hourglass.{ours}{new}.\2.")
            for old, new in blocks.items()
        ]
    return rules


PRINCETON_HOURGLASS = KeyTable(
    (
        (rf"{_WRAPPED}pre\.0\.conv\.", "network.stem.0."),
        (rf"{_WRAPPED}pre\.0\.bn\.", "network.stem.1."),
        *(
            rule
            for theirs, ours in ((1, 3), (3, 5), (4, 6))
            for rule in (
                (rf"{_WRAPPED}pre\.{theirs}\.skip_layer\.conv\.", f"network.stem.{ours}.skip."),
                (rf"{_WRAPPED}pre\.{theirs}\.{_LAYER}", rf"network.stem.{ours}.\1."),
            )
        ),
        *_hourglasses(),
        (rf"{_WRAPPED}features\.(\d+)\.0\.{_LAYER}", r"network.stacks.\1.features.0.\2."),
        (rf"{_WRAPPED}features\.(\d+)\.1\.conv\.", r"network.stacks.\1.features.1."),
        (rf"{_WRAPPED}features\.(\d+)\.1\.bn\.", r"network.stacks.\1.features.2."),
        (rf"{_WRAPPED}outs\.(\d+)\.conv\.", r"network.stacks.\1.predictor."),
        (rf"{_WRAPPED}merge_features\.(\d+)\.conv\.conv\.", r"network.stacks.\1.merge_features."),
        (rf"{_WRAPPED}merge_preds\.(\d+)\.conv\.conv\.", r"network.stacks.\1.merge_heatmaps."),
    ),
    drop=(rf"{_WRAPPED}(pre\.3|hgs\.\d+\..*|features\.\d+\.0)\.skip_layer\.",),
    infer=_infer,
    config={
        "depth": _DEPTH,
        "codec": {"target": "gaussian_biased"},
        "transform": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "resizing": "float"},
    },
    classes=(ClassInfo(1, "person"),),
    keypoints=MPII_POINTS,
)
