"""Checkpoints of milesial/Pytorch-UNet. They see RGB in 0 .. 1, as it is; one class means a sigmoid.

Images are halved and the logits brought back to the source, as its ``predict.py`` does unless told otherwise. Files
that were trained at full size ("scale1.0") need ``config={"transform": {"scale": 1.0}}``.
"""

from __future__ import annotations

from typing import Any

from modelkit.importing.key_table import OWN_SIZE, KeyTable, State


def _infer(state: State) -> dict[str, Any]:
    return {"num_classes": len(state["outc.conv.bias"])} if "outc.conv.bias" in state else {}


PYTORCH_UNET = KeyTable(
    rules=(
        (r"^inc\.double_conv\.", "network.backbone.levels.0."),
        (r"^down(\d)\.maxpool_conv\.1\.double_conv\.", r"network.backbone.levels.\1."),
        *((rf"^up{k + 1}\.up\.", f"network.head.ups.{k}.") for k in range(4)),
        *((rf"^up{k + 1}\.conv\.double_conv\.", f"network.head.blocks.{k}.") for k in range(4)),
        (r"^outc\.conv\.", "network.head.score."),
    ),
    drop=(r"^mask_values$",),  # which grey levels of its data set meant which class
    infer=_infer,
    config={
        "transform": {
            **OWN_SIZE,
            "scale": 0.5,
            "antialias": True,
            "resizing": "bicubic",
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
        },
        "upsample": "source",
    },
)
