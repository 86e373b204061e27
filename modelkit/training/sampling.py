"""Which examples make the batch of a step: a pure function of (seed, step, process), so that resume is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from modelkit.training.processes import Rank

MIN_LABELLED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class EpochSampler:
    """Goes through all examples in a fresh order each epoch; processes take turns in one common order.

    Args:
        num_examples: how many there are.
        seed: of the run.
        repeats: how often each example occurs in an epoch, at least 1 (repeat factors of Gupta et al. 2019); fractions
            are rounded at random, once for the run. Default: all once.
    """

    num_examples: int
    seed: int
    repeats: Sequence[float] = ()
    _epoch: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ValueError("there are no examples to draw from")
        factors = np.asarray(self.repeats or np.ones(self.num_examples), np.float64)
        if factors.shape != (self.num_examples,) or (factors < 1).any():
            raise ValueError(f"repeats must be {self.num_examples} numbers of at least 1")
        draws = np.random.default_rng([self.seed, 0xE90C]).random(self.num_examples)
        counts = np.floor(factors).astype(np.int64) + (draws < factors % 1)
        object.__setattr__(self, "_epoch", tuple(np.repeat(np.arange(self.num_examples), counts).tolist()))

    def draw(self, first: int, count: int) -> list[int]:
        """Examples number ``first .. first + count`` of the endless sequence."""
        length = len(self._epoch)
        drawn: list[int] = []
        while count > 0:
            epoch, start = divmod(first, length)
            order = np.random.default_rng([self.seed, epoch]).permutation(length)
            piece = [self._epoch[place] for place in order[start : start + count].tolist()]
            drawn += piece
            first, count = first + len(piece), count - len(piece)
        return drawn


def repeat_factors(labels: Sequence[Sequence[int]], threshold: float) -> list[float]:
    """Repeat factors by class frequency (Gupta et al. 2019): sqrt(threshold / share of images with it), at least 1.

    Args:
        labels: class ids of each example; an example takes the largest factor among its classes.
        threshold: classes in a smaller share of the examples are repeated.
    """
    present = [set(each) for each in labels]
    share = {label: sum(label in each for each in present) / len(present) for label in set().union(*present, set())}
    factor = {label: max(1.0, (threshold / part) ** 0.5) for label, part in share.items()}
    return [max((factor[label] for label in each), default=1.0) for each in present]


@dataclass(frozen=True, slots=True)
class Picked:
    """Indices of one step and process."""

    labelled: list[int]
    unlabelled: list[int]


@dataclass(frozen=True, slots=True)
class MixedSampler:
    """Batches of human-labelled examples, and of pseudo-labelled ones that come on top of them.

    A student sees the human labels in the same steps and the same order as a supervised model does, whatever its
    pseudo-labels: what they are worth is all that can make a difference (the protocol of CPS, Chen et al. 2021).

    Args:
        labelled: their sampler.
        unlabelled: that of the pseudo-labelled; None: there are none.
        batch_size: human-labelled images per process and step.
        labelled_share: of all images of a mixed step; at least a fifth, else mistakes of a teacher drown the labels
            (Arazo et al.).

    Raises:
        ValueError: for a smaller share, or one that leaves no room for a pseudo-labelled image.
    """

    labelled: EpochSampler
    unlabelled: EpochSampler | None
    batch_size: int
    labelled_share: float = 0.5

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not MIN_LABELLED_SHARE <= self.labelled_share <= 1:
            raise ValueError(f"labelled_share must lie in {MIN_LABELLED_SHARE} .. 1, got {self.labelled_share}")
        if self.unlabelled is not None and self.num_unlabelled == 0:
            raise ValueError(
                f"a labelled share of {self.labelled_share} leaves no pseudo-labelled image beside {self.batch_size}"
            )

    @property
    def num_unlabelled(self) -> int:
        """Pseudo-labelled images of a mixed step, so that the labelled share is kept."""
        return int(self.batch_size * (1 - self.labelled_share) / self.labelled_share + 1e-9)

    def pick(self, step: int, rank: Rank, *, mixed: bool) -> Picked:
        """The examples of a step; ``mixed`` says whether the pseudo-labelled take part."""
        turn = step * rank.count + rank.index
        human = self.labelled.draw(turn * self.batch_size, self.batch_size)
        if not mixed or self.unlabelled is None:
            return Picked(human, [])
        return Picked(human, self.unlabelled.draw(turn * self.num_unlabelled, self.num_unlabelled))
