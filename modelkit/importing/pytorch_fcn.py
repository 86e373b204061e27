"""Checkpoints of wkentaro/pytorch-fcn: FCN-32s, 16s, 8s and 8s "at once", converted from Caffe or trained there.

They see images at their own size, BGR in 0 .. 255 minus the mean colour.
"""

from __future__ import annotations

from typing import Any

from modelkit.importing.key_table import OWN_SIZE, KeyTable, State

_LAYERS = (2, 2, 3, 3, 3)  # convolutions before each pool
_MEAN_RGB = (122.67891434, 116.66876762, 104.00698793)


def _place(group: int, layer: int) -> int:
    """Where a convolution stands among torchvision's layers: each is followed by a ReLU, each group by a pool."""
    before = sum(2 * count + 1 for count in _LAYERS[: group - 1])
    return before + 2 * (layer - 1)


def _infer(state: State) -> dict[str, Any]:
    return {"num_classes": len(state["score_fr.bias"])} if "score_fr.bias" in state else {}


PYTORCH_FCN = KeyTable(
    rules=(
        *(
            (rf"^conv{group}_{layer}\.", f"network.backbone.body.{_place(group, layer)}.")
            for group, count in enumerate(_LAYERS, 1)
            for layer in range(1, count + 1)
        ),
        (r"^fc6\.", "network.head.fc.0."),
        (r"^fc7\.", "network.head.fc.3."),
        (r"^score_fr\.", "network.head.score."),
        (r"^score_pool([34])\.", r"network.head.skip_scores.c\1."),
        (r"^upscore2\.", "network.head.enlarge.c4."),
        (r"^upscore_pool4\.", "network.head.enlarge.c3."),
        (r"^upscore(8|16)?\.", "network.head.enlarge.image."),
    ),
    reverse_channels=(r"^conv1_1\.weight$",),
    infer=_infer,
    config={"transform": {**OWN_SIZE, "mean": [value / 255 for value in _MEAN_RGB], "std": [1 / 255] * 3}},
)
