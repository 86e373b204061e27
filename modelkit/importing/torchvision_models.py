"""torchvision's checkpoints: its own training scripts' and the published ones."""

from __future__ import annotations

import re
from typing import Any

from modelkit.carriers.classes import ClassInfo
from modelkit.detection.keypoints import COCO_PERSON
from modelkit.importing.key_table import KeyTable, State


def _infer_rcnn(state: State) -> dict[str, Any]:
    config: dict[str, Any] = {}
    scores = state.get("roi_heads.box_predictor.cls_score.bias", state.get("roi_heads.box.predictor.cls_score.bias"))
    if scores is not None:
        config["num_classes"] = len(scores)
    return config


def _infer_resnet_rcnn(state: State) -> dict[str, Any]:
    # A trained batch norm counts its batches; one that was frozen from the start keeps no count.
    frozen = not any(name.endswith("num_batches_tracked") for name in state)
    return {**_infer_rcnn(state), **({"backbone": {"norm": "frozen_batch"}} if frozen else {})}


def _infer_keypoint_rcnn(state: State) -> dict[str, Any]:
    points = state.get("roi_heads.keypoint_predictor.kps_score_lowres.bias")
    heads = {} if points is None else {"heads": {"keypoint": {"num_keypoints": len(points)}}}
    return {**_infer_resnet_rcnn(state), **heads}


def _infer_semantic(state: State) -> dict[str, Any]:
    heads = [name for name in state if re.search(r"(^|\.)classifier\.(4|low_classifier)\.bias$", name)]
    config: dict[str, Any] = {"num_classes": len(state[heads[0]])} if heads else {}
    return config


def _infer_semantic_aux(state: State) -> dict[str, Any]:
    return {**_infer_semantic(state), "aux_loss": any("aux_classifier." in name for name in state)}


# The first two groups are names from before torchvision 0.13, which its published COCO files still have.
_RCNN_RULES = (
    *((rf"^roi_heads\.mask_head\.mask_fcn{k + 1}\.", f"roi_heads.mask.body.{k}.0.") for k in range(4)),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"neck.pyramid.\1_blocks.\2.0.\3"),
    (r"^backbone\.fpn\.", "neck.pyramid."),
    (r"^roi_heads\.(box|mask|keypoint)_head\.", r"roi_heads.\1.body."),
    (r"^roi_heads\.(box|mask|keypoint)_predictor\.", r"roi_heads.\1.predictor."),
)
_SEMANTIC_RULES = ((r"^(backbone|classifier|aux_classifier)\.", r"network.\1."),)

# Its detectors pad an image alone to the next multiple of 32; its semantic presets make the shorter side 520 pixels
# long and keep the aspect ratio. The limit on the longer side is ours; it is not reached below an aspect ratio of 8.
TIGHTLY_PADDED = {"transform": {"padding": "none", "resizing": "float"}}
_SHORT_520 = {
    "transform": {"padding": "none", "min_size": 520, "max_size": 8 * 520, "fit": "short", "resizing": "rounded"}
}

TORCHVISION_RCNN = KeyTable(_RCNN_RULES, infer=_infer_rcnn, config=TIGHTLY_PADDED)
TORCHVISION_RESNET_RCNN = KeyTable(_RCNN_RULES, infer=_infer_resnet_rcnn, config=TIGHTLY_PADDED)
TORCHVISION_KEYPOINT_RCNN = KeyTable(
    _RCNN_RULES,
    infer=_infer_keypoint_rcnn,
    config=TIGHTLY_PADDED,
    classes=(ClassInfo(1, "person"),),
    keypoints=COCO_PERSON,
)
TORCHVISION_SEMANTIC = KeyTable(_SEMANTIC_RULES, infer=_infer_semantic, config=_SHORT_520)
TORCHVISION_SEMANTIC_AUX = KeyTable(_SEMANTIC_RULES, infer=_infer_semantic_aux, config=_SHORT_520)
