"""Students: batches keep their share of labels, the unlabelled loss is ramped and capped, no NaN leaves a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelkit.base import VisionModel
from modelkit.training.loop import LoopConfig, Trainer, TrainingDivergedError
from modelkit.training.processes import Rank
from modelkit.training.sampling import EpochSampler, MixedSampler, repeat_factors
from modelkit.training.student import StudentTraining, UnlabelledSchedule

STEPS = 40


class Line(VisionModel):
    """One weight; the loss of an image is (weight - image's mean)^2 times the target's ``scale``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.zeros(1)), nn.BatchNorm1d(1)
        self.loss_weights = {"loss_line": 1.0}

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        assert targets is not None
        means = torch.stack([image.mean() for image in images])
        self.norm(torch.stack([means, means], 0).reshape(-1, 1))
        scale = torch.tensor([float(target["scale"]) for target in targets])
        return {"loss_line": ((self.weight - means) ** 2 * scale).mean()}

    def dense(self, batch: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def decode(self, raw: Any, geometries: Any) -> Any:
        raise NotImplementedError


def batch(value: float, scale: float = 1.0) -> tuple[list[Tensor], list[dict[str, float]]]:
    return [torch.full((3, 2, 2), value)], [{"scale": scale}]


def run(scale: float, schedule: UnlabelledSchedule, config: LoopConfig, steps: int | None = None) -> Trainer:
    module = StudentTraining(Line(), schedule, config.steps)
    trainer = Trainer(module, lambda step: module.losses(step, batch(1.0), batch(-3.0, scale)), config)
    trainer.run(until=steps)
    return trainer


def test_the_weight_is_zero_ramped_full_and_zero_again() -> None:
    schedule = UnlabelledSchedule(max_weight=2.0)
    at = [schedule.weight_at(step, 100) for step in range(100)]
    assert at[:11] == [0.0] * 11
    assert at[15] == pytest.approx(1.0)
    assert at[20:90] == [2.0] * 70
    assert at[90:] == [0.0] * 10


@pytest.mark.parametrize(
    "options", [{"max_weight": 100.0}, {"burn_in": 0.6, "final": 0.5}, {"cap": 3.0}, {"cap": 0.0}, {"ramp": -0.1}]
)
def test_a_schedule_that_invites_collapse_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        UnlabelledSchedule(**options)


def test_the_unlabelled_loss_never_counts_more_than_twice_the_supervised_mean() -> None:
    module = StudentTraining(Line(), UnlabelledSchedule(burn_in=0, ramp=0, max_weight=1.0), 100)
    for step in range(5):
        losses = module.losses(step, batch(1.0), batch(-3.0, scale=1e6))
    assert float(module.supervised_mean) == pytest.approx(1.0)
    assert float(losses["unlabelled_loss_line"].detach()) == pytest.approx(2.0)
    small = module.losses(6, batch(1.0), batch(-1.0, scale=0.5))
    assert float(small["unlabelled_loss_line"].detach()) == pytest.approx(0.5), "below the cap nothing is changed"
    losses["unlabelled_loss_line"].backward()
    assert float(module.student.weight.grad) == pytest.approx(2 * 2 / 3), "the gradient is scaled along"


def test_the_mean_survives_a_checkpoint_and_is_of_all_processes() -> None:
    config = LoopConfig(steps=6, warmup_steps=1)
    trainer = run(1.0, UnlabelledSchedule(), config)
    assert int(trainer.model.supervised_steps) == 6
    assert {"supervised_mean", "supervised_steps"} <= trainer.model.state_dict().keys()

    class Pair(Rank):
        def average(self, gradients: Any) -> None:
            for tensor in gradients:
                tensor.add_(10.0)

    module = StudentTraining(Line(), UnlabelledSchedule(), 10, rank=Pair())
    module.losses(0, batch(1.0), batch(1.0))
    assert float(module.supervised_mean) == pytest.approx(11.0)


def test_a_nan_among_pseudo_labels_leaves_no_trace_and_for_ever_it_ends_the_run() -> None:
    config = LoopConfig(steps=STEPS, warmup_steps=1, max_bad_steps=3)
    schedule = UnlabelledSchedule(burn_in=0.25, ramp=0.1)
    trainer = run(float("nan"), schedule, config, steps=10)  # burn-in: the poison has no say
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run(until=11)
    assert trainer.step == 11 and trainer.skipped == 0  # the ramp begins at 0
    trainer.run(until=12)
    after = trainer.model.state_dict()
    assert trainer.skipped == 1
    assert int(after["supervised_steps"]) == int(before["supervised_steps"]) + 1
    assert all(torch.isfinite(value.double()).all() for value in after.values())
    with pytest.raises(TrainingDivergedError, match=r"3 steps in a row.*unlabelled_loss_line.*nan"):
        trainer.run()
    assert all(torch.isfinite(value.double()).all() for value in trainer.ema.state_dict().values())


def test_without_pseudo_labels_a_run_is_the_supervised_run_bit_by_bit() -> None:
    config = LoopConfig(steps=12, warmup_steps=1)

    def train(unlabelled: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = StudentTraining(Line(), UnlabelledSchedule(), config.steps)
        Trainer(module, lambda step: module.losses(step, batch(1.0), unlabelled), config).run()
        return module.state_dict()

    supervised, ignoring = train(([], [])), train(batch(5.0, scale=0.0))
    assert all(torch.equal(supervised[name], ignoring[name]) for name in ("student.weight",))


def test_pseudo_labels_come_on_top_of_the_labels_that_a_supervised_model_sees() -> None:
    sampler = MixedSampler(EpochSampler(7, 0), EpochSampler(50, 0), batch_size=2, labelled_share=0.2)
    supervised = MixedSampler(EpochSampler(7, 0), None, batch_size=2)
    for step in range(20):
        picked, alone = (sampler.pick(step, Rank(1, 2), mixed=mixed) for mixed in (True, False))
        assert picked.labelled == alone.labelled == supervised.pick(step, Rank(1, 2), mixed=True).labelled
        assert (len(picked.labelled), len(picked.unlabelled), len(alone.unlabelled)) == (2, 8, 0)
    for share, expected in ((0.5, 8), (0.3, 18), (0.75, 2)):  # rounded so that labels keep their share
        assert MixedSampler(EpochSampler(7, 0), EpochSampler(50, 0), 8, share).num_unlabelled == expected
    with pytest.raises(ValueError, match=r"labelled_share must lie in 0\.2"):
        MixedSampler(EpochSampler(7, 0), EpochSampler(50, 0), batch_size=8, labelled_share=0.1)
    with pytest.raises(ValueError, match="leaves no pseudo-labelled image beside 1"):
        MixedSampler(EpochSampler(7, 0), EpochSampler(50, 0), batch_size=1, labelled_share=0.6)


def test_an_epoch_sees_everything_once_in_an_order_of_its_own_whatever_the_number_of_processes() -> None:
    sampler = EpochSampler(10, seed=4)
    first, second = sampler.draw(0, 10), sampler.draw(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert sampler.draw(7, 6) == first[7:] + second[:3], "any piece can be drawn at any time"
    mixed = MixedSampler(sampler, None, batch_size=2)
    alone = [i for step in range(5) for i in mixed.pick(step, Rank(), mixed=False).labelled]
    pair = [
        i for step in range(2) for index in range(2) for i in mixed.pick(step, Rank(index, 2), mixed=False).labelled
    ]
    assert alone == first and pair == first[:8]
    assert EpochSampler(10, seed=5).draw(0, 10) != first


def test_rare_classes_come_more_often() -> None:
    labels = [[1]] * 90 + [[1, 2]] * 10
    factors = repeat_factors(labels, threshold=0.4)
    assert factors == [1.0] * 90 + [2.0] * 10
    sampler = EpochSampler(100, 0, factors)
    counts = Counter(sampler.draw(0, 110))
    assert all(counts[k] == (2 if k >= 90 else 1) for k in range(100))
    assert repeat_factors([[], [3]], 0.1) == [1.0, 1.0]
    with pytest.raises(ValueError, match="repeats"):
        EpochSampler(2, 0, [0.5, 1.0])
    with pytest.raises(ValueError, match="no examples"):
        EpochSampler(0, 0)
