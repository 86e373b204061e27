"""Checkpoints of VainF/DeepLabV3Plus-Pytorch: DeepLabV3+ on ResNet-50, ResNet-101 and MobileNetV2.

They see images at their own size. The output stride is not to be seen in the tensors. It is 16 unless the config says
otherwise: ``backbone={"dilate_last": 2}`` for files named "os8".
"""

from __future__ import annotations

from typing import Any

from modelkit.importing.key_table import OWN_SIZE, KeyTable, State


def _infer(state: State) -> dict[str, Any]:
    scores = next((value for name, value in state.items() if name == "classifier.classifier.3.bias"), None)
    separable = any(".body." in name for name in state)
    config: dict[str, Any] = {"head": {"separable": True}} if separable else {}
    if scores is not None:
        config["num_classes"] = len(scores)
    return config


def _infer_mobilenet(state: State) -> dict[str, Any]:
    return {**_infer(state), "backbone": {"padding": "block"}}


_HEAD_RULES = (
    (r"^classifier\.(aspp|project)\.(.+)\.body\.", r"network.head.\1.\2."),
    (r"^classifier\.(aspp|project)\.", r"network.head.\1."),
    (r"^classifier\.classifier\.(\d+)\.body\.", r"network.head.decoder.\1."),
    (r"^classifier\.classifier\.", "network.head.decoder."),
)

_AS_THEY_ARE = {"transform": OWN_SIZE}

VAINF_RESNET = KeyTable(
    rules=(*_HEAD_RULES, (r"^backbone\.", "network.backbone.body.")), infer=_infer, config=_AS_THEY_ARE
)
VAINF_MOBILENET = KeyTable(
    rules=(
        *_HEAD_RULES,
        (r"^backbone\.(low|high)_level_features\.", "network.backbone.body."),
    ),
    infer=_infer_mobilenet,
    config=_AS_THEY_ARE,
)
