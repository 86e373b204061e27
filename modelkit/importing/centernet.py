"""Checkpoints of xingyizhou/CenterNet: ResNets with deconvolutions (``res``) and with deformable ones (``resdcn``).

They see images at their own size, BGR. Boxes count as ours do, corner to corner. Points of poses were learnt from
COCO's annotations as they are, which count from pixel centres: such a model places them half a pixel too far up and
left.
"""

from __future__ import annotations

from typing import Any

from modelkit.importing.key_table import OWN_SIZE, KeyTable, State
from modelkit.points.models import POINT_MEAN, POINT_STD

_HEADS = {
    "hm": "centers",
    "wh": "sizes",
    "reg": "offsets",
    "hps": "points",
    "hm_hp": "point_maps",
    "hp_offset": "point_offsets",
}


def _infer(state: State) -> dict[str, Any]:
    said: dict[str, Any] = {"num_keypoints": len(state["hm_hp.2.bias"]) if "hm_hp.2.bias" in state else 0}
    if "hm.2.bias" in state:
        said["num_classes"] = len(state["hm.2.bias"]) + 1
        said["head"] = {"channels": len(state["hm.0.bias"])}
    return said


_RULES = (
    (r"^(conv1|bn1|layer[1-4])\.", r"backbone.body.\1."),
    *((rf"^{theirs}\.", f"head.branches.{ours}.") for theirs, ours in _HEADS.items()),
)
_SAID: dict[str, Any] = {
    "reverse_channels": (r"^conv1\.weight$",),
    "infer": _infer,
    "config": {"transform": {**OWN_SIZE, "size_divisible": 32, "mean": POINT_MEAN, "std": POINT_STD}},
}

CENTERNET_RES = KeyTable((*_RULES, (r"^deconv_layers\.", "neck.layers.")), **_SAID)
CENTERNET_RESDCN = KeyTable(
    (
        *_RULES,
        (r"^deconv_layers\.(\d+)\.conv_offset_mask\.", r"neck.layers.\1.offset."),
        (r"^deconv_layers\.(0|6|12)\.", r"neck.layers.\1.deform."),
        (r"^deconv_layers\.", "neck.layers."),
    ),
    **_SAID,
)
