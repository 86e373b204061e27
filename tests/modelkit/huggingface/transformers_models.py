"""Tiny models of transformers with random weights, in folders, for tests; they need the extra ``hf``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

PROCESSOR = {"size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def saved(folder: Path, architecture: str, num_labels: int = 3) -> tuple[str, Any]:
    """Location and model, saved as transformers saves it; skips the test where transformers is absent."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if architecture.startswith("Segformer"):
        sizes = {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "num_attention_heads": [1, 2, 2, 2]}
        config = transformers.SegformerConfig(**sizes, decoder_hidden_size=16, num_labels=num_labels)
    elif architecture.startswith("Detr"):
        resnet = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
        config = transformers.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=transformers.ResNetConfig(**resnet, out_features=["stage1", "stage2", "stage3", "stage4"]),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=8,  # the mask head groups them by eight
            decoder_attention_heads=8,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=6,
            num_labels=num_labels,
        )
    elif architecture.startswith("MaskFormer"):
        decoder = transformers.DetrConfig(
            d_model=32, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, num_queries=6
        )
        config = transformers.MaskFormerConfig(
            backbone_config=_swin(transformers),
            decoder_config=decoder.to_dict(),
            fpn_feature_size=32,
            mask_feature_size=32,
            num_labels=num_labels,
        )
    else:
        config = transformers.Mask2FormerConfig(
            backbone_config=_swin(transformers),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            dim_feedforward=16,
            num_queries=6,
            num_labels=num_labels,
        )
    model = getattr(transformers, architecture)(config).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return str(folder), model


def _swin(transformers: Any) -> Any:
    stages = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    return transformers.SwinConfig(**stages, out_features=["stage1", "stage2", "stage3", "stage4"])
