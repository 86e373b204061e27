"""A network of transformers, and transformers itself, which is an extra and takes seconds to import."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from modelkit.errors import ConfigError
from modelkit.registry import Config


def transformers_module() -> ModuleType:
    """transformers; raises ConfigError, which says what to install, where there is none."""
    try:
        import transformers  # seconds, and only who loads such a model needs it
        import transformers.image_processing_utils
    except ImportError as error:
        raise ConfigError(
            f"models of Hugging Face need the package transformers, which cannot be imported ({error}); "
            "install it with: pip install 'visionmill[hf]'"
        ) from error
    return transformers


class HuggingFaceNetwork(nn.Module):
    """A transformers model, called with pixels and giving a flat dict of its logits.

    Args:
        architecture: class name in transformers.
        config: its config as plain JSON, with "model_type".
    """

    def __init__(self, architecture: str, config: Config) -> None:
        super().__init__()
        transformers = transformers_module()
        options = {key: value for key, value in config.items() if key != "model_type"}
        self.model: nn.Module = getattr(transformers, architecture)(
            transformers.AutoConfig.for_model(config["model_type"], **options)
        )

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """``logits`` (N, C, h, w) of semantic models; else ``classes`` (N, Q, C + 1) and ``masks`` (N, Q, h, w)."""
        out = self.model(pixel_values=batch)
        if hasattr(out, "class_queries_logits"):
            return {"classes": out.class_queries_logits, "masks": out.masks_queries_logits}
        if hasattr(out, "pred_masks"):
            return {"classes": out.logits, "masks": out.pred_masks}
        return {"logits": out.logits}
