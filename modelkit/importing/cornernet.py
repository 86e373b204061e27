"""Checkpoints of princeton-vl/CornerNet and Duankaiwen/CenterNet (the triplet).

They see images at their own size, BGR.
"""

from __future__ import annotations

import re
from typing import Any

from modelkit.importing.key_table import OWN_SIZE, KeyTable, State
from modelkit.points.models import POINT_MEAN, POINT_STD

_BLOCK = r"(conv[12]|bn[12])\."
_KINDS = {"tl": "top_left", "br": "bottom_right", "ct": "center"}
_BRANCHES = {"heats": "maps", "tags": "tags", "regrs": "offsets"}
_POOLING = {
    "p1_conv1.conv": "maps.0.0",
    "p1_conv1.bn": "maps.0.1",
    "p2_conv1.conv": "maps.1.0",
    "p2_conv1.bn": "maps.1.1",
    "p_conv1": "pooled.0",
    "p_bn1": "pooled.1",
    "conv1": "past.0",
    "bn1": "past.1",
    "conv2.conv": "last.0",
    "conv2.bn": "last.1",
    "look_conv1.conv": "looks.0.0",
    "look_conv1.bn": "looks.0.1",
    "look_conv2.conv": "looks.1.0",
    "look_conv2.bn": "looks.1.1",
    "P1_look_conv": "mixes.0",
    "P2_look_conv": "mixes.1",
}
_WAYS = {"up1": "past", "low1": "down", "low2": "inside", "low3": "up"}
_DEEPEST = 8


def _hourglass_rules() -> list[tuple[str, str]]:
    """One rule for each depth and way: ``low2`` n times, then a way, its block and what is in it."""
    rules = []
    for depth in range(_DEEPEST):
        inner = r"low2\." * depth
        for theirs, ours in _WAYS.items():
            start, target = (
                rf"^kps\.(\d+)\.{inner}{theirs}\.(\d+)\.",
                rf"backbone.hourglasses.\1.{'inside.' * depth}{ours}.\2.",
            )
            rules += [(start + r"skip\.", target + "downsample."), (start + _BLOCK, target + r"\3.")]
    return rules


def _infer(state: State) -> dict[str, Any]:
    if "tl_heats.0.1.bias" not in state:
        return {}
    stacks = len({name.split(".")[1] for name in state if name.startswith("kps.")})
    centers = any(name.startswith("ct_heats.") for name in state)
    return {
        "num_classes": len(state["tl_heats.0.1.bias"]) + 1,
        "backbone": {"stacks": stacks},
        "head": {"stacks": stacks, "centers": centers},
    }


_RULES = (
    (r"^pre\.0\.conv\.", "backbone.stem.0.0."),
    (r"^pre\.0\.bn\.", "backbone.stem.0.1."),
    (r"^pre\.1\.skip\.", "backbone.stem.1.downsample."),
    (r"^pre\.1\.", "backbone.stem.1."),
    *_hourglass_rules(),
    (r"^cnvs\.(\d+)\.conv\.", r"backbone.outputs.\1.0."),
    (r"^cnvs\.(\d+)\.bn\.", r"backbone.outputs.\1.1."),
    (r"^inters_\.(\d+)\.", r"backbone.between.\1.seen."),
    (r"^cnvs_\.(\d+)\.", r"backbone.between.\1.found."),
    (r"^inters\.(\d+)\.", r"backbone.between.\1.block."),
    *(
        (rf"^{short}_cnvs\.(\d+)\.{re.escape(theirs)}\.", rf"head.heads.\1.{kind}.pooling.{ours}.")
        for short, kind in _KINDS.items()
        for theirs, ours in _POOLING.items()
    ),
    *(
        (rf"^{short}_{theirs}\.(\d+)\.{place}\.", rf"head.heads.\1.{kind}.branches.{ours}.{number}.")
        for short, kind in _KINDS.items()
        for theirs, ours in _BRANCHES.items()
        for place, number in ((r"0\.conv", 0), ("1", 2))
    ),
)

CORNERNET = KeyTable(
    _RULES,
    reverse_channels=(r"^pre\.0\.conv\.weight$",),
    infer=_infer,
    config={"transform": {**OWN_SIZE, "size_divisible": 128, "mean": POINT_MEAN, "std": POINT_STD}},
)
