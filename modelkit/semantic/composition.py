"""How semantic networks are put together: a backbone and a head that turns its maps into class logits."""

from __future__ import annotations

from torch import Tensor, nn

from modelkit.carriers import SizeHW
from modelkit.layers import Backbone
from modelkit.registry import Config, build


class SemanticHead(nn.Module):
    """Contract of a ``dense_head`` of semantic networks: ``(backbone, num_classes, *, options)`` builds it."""

    def prepare(self, batch: Tensor) -> Tensor:
        """The batch as the backbone is to see it; heads that lose a margin pad it here."""
        return batch

    def forward(self, features: dict[str, Tensor], size_hw: SizeHW) -> Tensor:
        """Logits (N, C, h, w) over exactly the image, on any grid.

        Args:
            features: of the backbone.
            size_hw: of the batch before ``prepare``.
        """
        raise NotImplementedError


class BackboneAndHead(nn.Module):
    """The network of a ``SemanticSegmentor``.

    Args:
        backbone: config of a backbone.
        head: config of a dense head for it.
        num_classes: channels of the logits.
    """

    def __init__(self, backbone: Config, head: Config, num_classes: int) -> None:
        super().__init__()
        self.backbone: Backbone = build("backbone", backbone)
        self.head: SemanticHead = build("dense_head", head, self.backbone, num_classes)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """``logits`` on the head's grid."""
        size_hw = (batch.shape[-2], batch.shape[-1])
        return {"logits": self.head(self.backbone(self.head.prepare(batch)), size_hw)}
