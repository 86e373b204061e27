"""Tiny models of transformers with random weights, in folders, for tests; they need the extra ``hf``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# With seeds that let them find something.
SEEDS = {
    "SegformerForSemanticSegmentation": 0,
    "Mask2FormerForUniversalSegmentation": 2,
    "MaskFormerForInstanceSegmentation": 0,
    "DetrForSegmentation": 3,
}
PROCESSOR = {"size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
SQUARE = PROCESSOR | {"size": {"height": 64, "width": 64}}  # as published SegFormers have it


def saved(
    folder: Path, architecture: str, num_labels: int = 3, processor: dict[str, Any] | None = None
) -> tuple[str, Any]:
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
    _make_decided(model)
    model.save_pretrained(folder)
    processor = processor or (SQUARE if architecture.startswith("Segformer") else PROCESSOR)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder), model


def _make_decided(model: nn.Module) -> None:
    """Weights of a size that lets queries differ and be sure of something; those of a fresh model are all undecided."""
    torch.manual_seed(SEEDS[type(model).__name__])
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            scale = 4.0 if "class_predictor" in name or "class_labels" in name else 1.0
            nn.init.normal_(module.weight, std=scale / module.weight[0].numel() ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=5.0)


def _swin(transformers: Any) -> Any:
    stages = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    return transformers.SwinConfig(**stages, out_features=["stage1", "stage2", "stage3", "stage4"])
