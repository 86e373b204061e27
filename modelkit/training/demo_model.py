"""The module that the demo recipe trains: a two-stage detector with a per-pixel class head beside it."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.detection.roi_heads import RoIHead
from modelkit.detection.two_stage import TwoStageDetector
from modelkit.registry import create_model
from modelkit.training.data import SceneBatch
from modelkit.training.recipes import DemoRecipe

_BACKGROUND_WEIGHT = 0.4  # nine tenths of the pixels are background; without this the digits are learnt late


class DemoTraining(nn.Module):
    """Detector plus auxiliary head; the head is dropped when the model ships.

    Args:
        recipe: what to build and how to weigh the losses.
    """

    def __init__(self, recipe: DemoRecipe) -> None:
        super().__init__()
        model = create_model(**recipe.model)
        if not isinstance(model, TwoStageDetector):
            raise ValueError(f"the demo recipe needs a two-stage detector, got {type(model).__name__}")
        self.detector = model
        channels = model.neck.out_channels["p2"]
        self.semantic: nn.Module = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, model.num_classes, 1)
        )
        self.dense_steps, self.semantic_weight = recipe.dense_steps, recipe.semantic_weight

    def losses(self, batch: SceneBatch, step: int) -> dict[str, Tensor]:
        """Named, weighted losses; only the per-pixel one during the dense phase."""
        detector = self.detector
        images, geometries = detector.transform.batch(list(batch.images), training=True)
        if step < self.dense_steps:
            features = detector.neck(detector.backbone(images))
            return {"semantic": self._semantic_loss(features["p2"], batch.semantic)}
        raw = detector.dense(images)
        targets = [detector.transform.target(t, g) for t, g in zip(batch.targets, geometries, strict=True)]
        losses = detector.rpn.loss(raw, geometries, targets)
        samples = detector.sample(detector.rpn.decode(raw, geometries), targets)
        for module in detector.roi_heads.values():
            head = cast(RoIHead, module)
            wanted = head.wanted(samples)
            losses.update(head.loss(head(raw, wanted.boxes), wanted))
        losses = {name: detector.loss_weights[name] * value for name, value in losses.items()}
        losses["semantic"] = self.semantic_weight * self._semantic_loss(raw["p2"], batch.semantic)
        return losses

    def _semantic_loss(self, features: Tensor, semantic: Tensor) -> Tensor:
        """Cross-entropy against the class shares of each cell, so that thin strokes are not lost to rounding."""
        logits = self.semantic(features)
        shares = F.one_hot(semantic, logits.shape[1]).permute(0, 3, 1, 2).float()
        shares = F.adaptive_avg_pool2d(shares, logits.shape[-2:])
        weights = logits.new_ones(logits.shape[1])
        weights[0] = _BACKGROUND_WEIGHT
        return F.cross_entropy(logits, shares, weight=weights)
