"""Transfer learning: start from trained weights, hold parts still, let the rest learn at its own pace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from modelkit.errors import ConfigError, WeightsError

_FROZEN = "_held_still"


def freeze(model: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Hold parts of a model still: no gradient, and norms and dropout in evaluation mode, else statistics would drift.

    Args:
        model: changed in place.
        prefixes: of module names, such as "backbone" or "network.backbone"; "" is the whole model.

    Returns:
        Names of the parameters that are held.

    Raises:
        ConfigError: for a prefix that names no module.
    """
    modules = dict(model.named_modules())
    for prefix in prefixes:
        if prefix not in modules:
            known = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(f"there is no part {prefix!r} to freeze; the model has {known}")
        for module in modules[prefix].modules():
            setattr(module, _FROZEN, True)
        modules[prefix].requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def train_mode(model: nn.Module) -> None:
    """``model.train()`` but for the parts that are frozen; those stay in evaluation mode."""
    model.train()
    for module in model.modules():
        if getattr(module, _FROZEN, False):
            module.eval()


@dataclass(frozen=True, slots=True)
class Adopted:
    """What a model took over from other weights.

    Args:
        matched: names of tensors that were copied.
        new: tensors that stay as initialised: absent from the other weights, or there in another shape.
        unused: tensors of the other weights that have no place here.
    """

    matched: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]


def adopt(model: nn.Module, state: Mapping[str, Tensor], prefixes: Sequence[str] = ("",)) -> Adopted:
    """Copy what fits by name and shape; a head for other classes does not fit and starts anew.

    Args:
        model: changed in place.
        state: of the trained model.
        prefixes: only tensors whose names begin with one of these are taken over.

    Raises:
        WeightsError: when nothing fits: these are weights of another architecture.
    """
    own = model.state_dict()
    wanted = {name for name in own if name.startswith(tuple(prefixes))}
    matched = sorted(name for name in wanted & state.keys() if state[name].shape == own[name].shape)
    if not matched:
        raise WeightsError(
            f"none of {len(state)} tensors fits the model (prefixes {list(prefixes)}); "
            f"it has names such as {sorted(own)[:3]}, the weights have {sorted(state)[:3]}"
        )
    model.load_state_dict({**own, **{name: state[name].to(own[name].dtype) for name in matched}})
    return Adopted(tuple(matched), tuple(sorted(own.keys() - set(matched))), tuple(sorted(state.keys() - set(matched))))
