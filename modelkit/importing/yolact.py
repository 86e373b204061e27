"""Checkpoints of dbolya/yolact (YOLACT) and haotian-liu/yolact_edge (YolactEdge, and YOLACT under its names)."""

from __future__ import annotations

from typing import Any

from modelkit.importing.key_table import KeyTable, State

_COORDINATES = 4


def _infer(state: State) -> dict[str, Any]:
    layer = "prediction_layers.0.{}_layer.bias"
    boxes, scores, coefficients = (state.get(layer.format(name)) for name in ("bbox", "conf", "mask"))
    if boxes is None or scores is None or coefficients is None:
        return {}
    priors = len(boxes) // _COORDINATES
    return {
        "num_classes": len(scores) // priors,
        "head": {"num_prototypes": len(coefficients) // priors},
    }


# Both number the pyramid's maps from the coarsest one.
_PYRAMID_RULES = tuple(
    (rf"^fpn(_phase_[12])?\.{theirs}\.{k}\.", f"neck.{ours}.p{5 - k}.")
    for theirs, ours in (("lat_layers", "laterals"), ("pred_layers", "outputs"))
    for k in range(3)
)
_RULES = (
    *_PYRAMID_RULES,
    (r"^fpn(_phase_2)?\.downsample_layers\.", "neck.downsamples."),
    *((rf"^proto_net\.{2 * k}\.", f"head.prototypes.before.{k}.") for k in range(3)),
    (r"^proto_net\.8\.", "head.prototypes.after."),
    (r"^proto_net\.10\.", "head.prototypes.last."),
    (r"^prediction_layers\.0\.upfeature\.0\.", "head.shared."),
    (r"^prediction_layers\.0\.bbox_layer\.", "head.deltas."),
    (r"^prediction_layers\.0\.conf_layer\.", "head.logits."),
    (r"^prediction_layers\.0\.mask_layer\.", "head.coefficients."),
    (r"^semantic_seg_conv\.", "head.semantic."),
)
_RESNET_RULES = (
    (r"^backbone\.(conv1|bn1)\.", r"backbone.body.\1."),
    *((rf"^backbone\.layers\.{k}\.", f"backbone.body.layer{k + 1}.") for k in range(4)),
)
_DARKNET_RULES = (
    (r"^backbone\._preconv\.", "backbone.stem."),
    *((rf"^backbone\.layers\.{k}\.", f"backbone.stages.c{k + 1}.") for k in range(5)),
)
_EDGE_RULES = (
    (r"^flow_net_pre_convs\.convs\.0\.", "feature_transform.reduce."),
    (r"^flow_net\.conv([123])\.", r"feature_transform.flow_net.encode\1."),
    (r"^flow_net\.pred([123])\.conv\.", r"feature_transform.flow_net.motion\1.flow."),
    (r"^flow_net\.pred([123])\.", r"feature_transform.flow_net.motion\1."),
    (r"^flow_net\.upfeat", "feature_transform.flow_net.feature"),
    (r"^flow_net\.upflow", "feature_transform.flow_net.upflow"),
    *((rf"^spa\.refine_convs\.{k}\.", f"feature_transform.refine.p{k + 4}.") for k in range(2)),
)
# Early files hold the backbone twice, under its former names too, and more coarse maps than were used.
_DROP = (r"^backbone\.layer(?!s)", r"^fpn\.downsample_layers\.[2-9]")

_IN_FLOAT = {"transform": {"resizing": "float"}}

YOLACT_RESNET = KeyTable((*_RULES, *_RESNET_RULES), drop=_DROP, infer=_infer, config=_IN_FLOAT)
YOLACT_DARKNET = KeyTable((*_RULES, *_DARKNET_RULES), drop=_DROP, infer=_infer, config=_IN_FLOAT)
YOLACT_EDGE = KeyTable(
    (*_RULES, *_RESNET_RULES, *_EDGE_RULES), drop=(*_DROP, r"^partial_backbone\."), infer=_infer, config=_IN_FLOAT
)
