"""torchvision's checkpoints of RetinaNet, FCOS and SSD: its own training scripts' and the published ones."""

from __future__ import annotations

from typing import Any

from modelkit.importing.key_table import KeyTable, State
from modelkit.importing.torchvision_models import TIGHTLY_PADDED

_RETINANET_ANCHORS = 9  # per cell: three sizes in three proportions


def _infer_retinanet(state: State) -> dict[str, Any]:
    return _infer(state, _RETINANET_ANCHORS)


def _infer_fcos(state: State) -> dict[str, Any]:
    return _infer(state, 1)


def _infer(state: State, anchors: int) -> dict[str, Any]:
    scores = state.get("head.classification_head.cls_logits.bias")
    if scores is None:
        return {}
    # A trained batch norm counts its batches; one that was frozen from the start keeps no count.
    frozen = not any(name.endswith("num_batches_tracked") for name in state)
    return {"num_classes": len(scores) // anchors, **({"norm": "frozen_batch"} if frozen else {})}


def _infer_ssd(state: State) -> dict[str, Any]:
    # The same map gives four numbers a box and C scores a box, so their sizes give C. SSDlite predicts in two layers.
    layer = "head.{}_head.module_list.0.{}bias"
    for last in ("", "1."):
        scores, boxes = (state.get(layer.format(kind, last)) for kind in ("classification", "regression"))
        if scores is not None and boxes is not None:
            return {"num_classes": 4 * len(scores) // len(boxes)}
    return {}


_NETWORK = ((r"^(backbone|head)\.", r"network.\1."),)
# Names from before torchvision 0.13, which published COCO files still have: a bare convolution is now a block with one.
_FPN_RULES = (
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"network.backbone.fpn.\1_blocks.\2.0.\3"),
)
_RETINANET_RULES = tuple(
    (rf"^head\.(\w+)_head\.conv\.{2 * k}\.(weight|bias)$", rf"network.head.\1_head.conv.{k}.0.\2") for k in range(4)
)

TORCHVISION_RETINANET = KeyTable(
    (*_RETINANET_RULES, *_FPN_RULES, *_NETWORK), infer=_infer_retinanet, config=TIGHTLY_PADDED
)
TORCHVISION_FCOS = KeyTable((*_FPN_RULES, *_NETWORK), infer=_infer_fcos, config=TIGHTLY_PADDED)
TORCHVISION_SSD = KeyTable(_NETWORK, infer=_infer_ssd, config={"transform": {"resizing": "float"}})
