"""The kinds that the loop teaches, by name."""

from __future__ import annotations

from infra.errors import UsageError
from tasks.product import LoopKind, find_kind, kinds
from tasks.training.recipe import TrainingRecipe


def loop_kind(name: str) -> LoopKind:
    """What a kind brings to the loop. Raises UsageError for one that the loop cannot teach."""
    found = find_kind(name).loop
    if found is None:
        taught = ", ".join(each.name for each in kinds().values() if each.loop is not None)
        raise UsageError(f"the loop does not teach {name}", hint=f"it teaches {taught}")
    return found


def check_teaches(name: str, recipe: TrainingRecipe) -> None:
    """Raises UsageError for a recipe whose model does something else than was asked for."""
    if name != recipe.kind:
        raise UsageError(
            f"the loop was asked to teach {name}; {recipe.architecture} does {recipe.kind}",
            hint="--recipe names a model that does it, --task says what is taught",
        )
