"""Transfer learning: start from trained weights, hold parts still, let the rest learn at its own pace."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modelkit.errors import ConfigError, WeightsError
from modelkit.layers import Backbone

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
        matched: names of the model's tensors that were copied.
        new: tensors that stay as initialised: absent from the other weights, or there in another shape.
        unused: tensors of the other weights that have no place here.
        renamed: parts that have another name there, (here, there): prefixes of names, such as ("network.", "").
    """

    matched: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the record: what was taken by part, the names of what begins anew, and what had no place."""
        return {
            "matched": len(self.matched),
            "parts": _by_part(self.matched),
            "new": list(self.new),
            "unused": len(self.unused),
            "renamed": [list(pair) for pair in self.renamed],
        }


def adopt(model: nn.Module, state: Mapping[str, Tensor], prefixes: Sequence[str] = ("",)) -> Adopted:
    """Copy what fits by name and shape; a head for other classes does not fit and starts anew.

    Parts whose names differ by what stands before them are found, too: the backbone of a detector fits a panoptic model
    that holds a whole detector, or a segmentor that holds it in its network.

    Args:
        model: changed in place.
        state: of the trained model.
        prefixes: only tensors of the model whose names begin with one of these are taken over.

    Raises:
        WeightsError: when nothing fits: these are weights of another architecture.
    """
    own = model.state_dict()
    wanted = {name: own[name] for name in own if name.startswith(tuple(prefixes))}
    matched = {name: name for name in wanted.keys() & state.keys() if state[name].shape == own[name].shape}
    renamed = []
    while pair := _best_renaming(wanted, state, matched):
        renamed.append(_without_common_end(*pair[0]))
        matched |= pair[1]
    if not matched:
        raise WeightsError(
            f"none of {len(state)} tensors fits the model (prefixes {list(prefixes)}); "
            f"it has names such as {sorted(own)[:3]}, the weights have {sorted(state)[:3]}"
        )
    taken = {name: state[theirs].to(own[name].dtype) for name, theirs in matched.items()}
    model.load_state_dict({**own, **taken})
    left = sorted(state.keys() - set(matched.values()))
    return Adopted(tuple(sorted(matched)), tuple(sorted(own.keys() - matched.keys())), tuple(left), tuple(renamed))


def untaught(model: nn.Module, prefixes: Sequence[str], adopted: Adopted | None) -> list[str]:
    """Parts that begin at random, wholly or in part, which could only do harm if they were frozen.

    Args:
        model: as it begins.
        prefixes: of module names, as ``freeze`` takes them.
        adopted: what it took over; None: nothing.
    """
    new = model.state_dict().keys() if adopted is None else set(adopted.new)
    counted = [name for name in new if not name.endswith(".num_batches_tracked")]  # older weights have none
    return [part for part in prefixes if any(name.startswith(f"{part}." if part else "") for name in counted)]


IMAGENET = "imagenet"
"""In place of weights: what the model's backbone learnt on ImageNet."""


def imagenet_state(model: nn.Module) -> dict[str, Tensor]:
    """ImageNet weights of every backbone inside a model, by the names that they have there.

    Raises:
        WeightsError: when the model has no backbone of ours, or there are no weights for it here.
    """
    parts = {name: module for name, module in model.named_modules() if isinstance(module, Backbone)}
    taught = {name: module for name, module in parts.items() if _may_be_taught(module)}
    if not taught:
        found = ", ".join(sorted({type(module).__name__ for module in parts.values()})) or "no backbone of ours"
        raise WeightsError(
            f"there are no ImageNet weights for this model ({found}); the backbones efficientnet_lite0, resnet, "
            "mobilenet_v2 and mobilenet_v3 have some"
        )
    return {f"{name}.{key}": each for name, module in taught.items() for key, each in module.imagenet_state().items()}


def _may_be_taught(module: Backbone) -> bool:
    """Whether anybody published weights for this kind of backbone; a neck, which has a backbone's shape, is none."""
    return type(module).imagenet_state is not Backbone.imagenet_state


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _by_part(names: Sequence[str]) -> dict[str, int]:
    """Tensors of each part of a model: the first two parts of their names, which are its backbone, neck and heads."""
    return dict(Counter(".".join(name.split(".")[:2]) if name.count(".") > 1 else name.split(".")[0] for name in names))


_PART_SHARE = 0.5
_PART_TENSORS = 8


def _best_renaming(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], matched: Mapping[str, str]
) -> tuple[tuple[str, str], dict[str, str]] | None:
    """The pair of prefixes (here, there) by which most of what is not matched yet fits, and what it matches.

    A part counts when at least eight of its tensors, and half of them, fit: single convolutions of equal shape are no
    proof that they do the same.
    """
    free = {name: tensor for name, tensor in state.items() if name not in set(matched.values())}
    by_suffix: dict[str, list[str]] = {}
    for name in free:
        for suffix in _suffixes(name):
            by_suffix.setdefault(suffix, []).append(name)
    fitting: dict[tuple[str, str], dict[str, str]] = {}
    open_names = wanted.keys() - matched.keys()
    for name in sorted(open_names):
        for suffix in _suffixes(name):
            for theirs in by_suffix.get(suffix, ()):
                if state[theirs].shape == wanted[name].shape:
                    pair = name.removesuffix(suffix), theirs.removesuffix(suffix)
                    fitting.setdefault(pair, {})[name] = theirs
    best = max(fitting.items(), key=lambda entry: (len(entry[1]), len(entry[0][0])), default=None)
    if best is None:
        return None
    of_part = sum(name.startswith(best[0][0]) for name in open_names)
    return best if len(best[1]) >= max(_PART_TENSORS, _PART_SHARE * of_part) else None


def _without_common_end(here: str, there: str) -> tuple[str, str]:
    """Two prefixes without the parts at their ends that are the same."""
    ours, theirs = here.split("."), there.split(".")
    while len(ours) > 1 and len(theirs) > 1 and ours[-2] == theirs[-2]:
        del ours[-2], theirs[-2]
    return ".".join(ours), ".".join(theirs)


def _suffixes(name: str) -> list[str]:
    """What remains of a name without its first parts, the whole name included, at least two parts long."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1)]
