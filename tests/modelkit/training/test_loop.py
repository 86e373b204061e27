"""The training loop: resume is exact, averages hold buffers, NaN harms nobody, processes agree."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn import functional as F

from modelkit.training.checkpoint import Checkpoint, CheckpointError, decode_checkpoint, encode_checkpoint
from modelkit.training.ema import Ema
from modelkit.training.loop import LoopConfig, Trainer, TrainingDivergedError, seed_step
from modelkit.training.processes import Rank

CONFIG = LoopConfig(steps=12, learning_rate=0.05, warmup_steps=3, checkpoint_every=4, ema_decay=0.9, seed=7)


class Kept:
    """A file with one checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Checkpoint | None:
        return decode_checkpoint(self.path.read_bytes(), str(self.path)) if self.path.exists() else None

    def save(self, checkpoint: Checkpoint) -> None:
        self.path.write_bytes(encode_checkpoint(checkpoint))


class Small(nn.Module):
    """A net with everything a checkpoint must hold: weights, running statistics, a counter, dropout's randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def build() -> Small:
    torch.manual_seed(0)
    return Small()


def losses_of(model: nn.Module, poison: frozenset[int] = frozenset()):  # type: ignore[no-untyped-def]
    def losses(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(6, 1, 8, 8, generator=generator)
        y = torch.randint(0, 3, (6,), generator=generator)
        value = F.cross_entropy(model(x), y)
        return {"loss": value * float("nan") if step in poison else value}

    return losses


def states(trainer: Trainer) -> dict[str, Tensor]:
    found = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    found |= {f"ema.{k}": v.clone() for k, v in trainer.ema.state_dict().items()}
    for index, state in trainer.optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{index}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return found


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("stops", [(4,), (4, 8), (7,)])
def test_stopped_and_resumed_equals_not_stopped(tmp_path: Path, optimiser: str, stops: tuple[int, ...]) -> None:
    config = LoopConfig(**{**_as_dict(CONFIG), "optimiser": optimiser})
    whole = build()
    undisturbed = Trainer(whole, losses_of(whole), config)
    undisturbed.run()
    for stop in (*stops, None):
        model = build()
        trainer = Trainer(model, losses_of(model), config, checkpoints=Kept(tmp_path / "last"))
        torch.manual_seed(12345)  # whatever happened to randomness in between must not matter
        trainer.run(until=stop)
    assert trainer.step == 12
    assert_same_bits(states(trainer), states(undisturbed))


def _as_dict(config: LoopConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in LoopConfig.__dataclass_fields__}


def test_a_crash_between_checkpoints_costs_only_the_steps_since(tmp_path: Path) -> None:
    whole = build()
    undisturbed = Trainer(whole, losses_of(whole), CONFIG)
    undisturbed.run()

    model = build()
    crashing = Trainer(model, losses_of(model), CONFIG, checkpoints=Kept(tmp_path / "last"))

    def crash(trainer: Trainer, values: dict[str, float]) -> None:
        if trainer.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crashing.run(report=crash)
    model = build()
    resumed = Trainer(model, losses_of(model), CONFIG, checkpoints=Kept(tmp_path / "last"))
    assert resumed.step == 4
    resumed.run()
    assert_same_bits(states(resumed), states(undisturbed))


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    model = build()
    Trainer(model, losses_of(model), CONFIG, checkpoints=Kept(tmp_path / "last")).run()
    before = (tmp_path / "last").read_bytes()
    model = build()
    again = Trainer(model, losses_of(model), CONFIG, checkpoints=Kept(tmp_path / "last"))
    again.run()
    assert again.step == 12
    assert (tmp_path / "last").read_bytes() == before


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    model = build()
    Trainer(model, losses_of(model), CONFIG, checkpoints=Kept(tmp_path / "last"), fingerprint="one").run()
    with pytest.raises(CheckpointError, match="another recipe"):
        Trainer(model, losses_of(model), CONFIG, checkpoints=Kept(tmp_path / "last"), fingerprint="two")


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "last").write_bytes(b"half written")
    with pytest.raises(CheckpointError, match="delete it"):
        Kept(tmp_path / "last").load()


def test_steps_with_nan_leave_no_trace_in_weights_or_averages() -> None:
    model = build()
    trainer = Trainer(model, losses_of(model, poison=frozenset({3, 4})), CONFIG)
    trainer.run(until=3)
    parameters = [p.clone() for p in trainer.parameters]
    averages = {name: value.clone() for name, value in trainer.ema.state_dict().items()}
    before = states(trainer)
    trainer.run(until=5)
    assert trainer.skipped == 2
    assert_same_bits(states(trainer), before)  # also the running statistics that the forward pass has touched
    assert all(torch.equal(a, b) for a, b in zip(parameters, trainer.parameters, strict=True))
    assert all(torch.equal(averages[name], value) for name, value in trainer.ema.state_dict().items())
    trainer.run()
    assert all(p.isfinite().all() for p in trainer.parameters)
    assert not all(torch.equal(a, b) for a, b in zip(parameters, trainer.parameters, strict=True))


def test_nan_for_ever_ends_the_run_and_names_the_loss() -> None:
    model = build()
    config = LoopConfig(steps=50, max_bad_steps=5)
    trainer = Trainer(model, losses_of(model, poison=frozenset(range(10, 99))), config)
    with pytest.raises(TrainingDivergedError, match=r"5 steps in a row.*'loss': nan"):
        trainer.run()
    assert trainer.step == 14


def test_gradients_are_clipped_to_the_norm() -> None:
    model = build()
    config = LoopConfig(steps=1, learning_rate=1.0, warmup_steps=1, optimiser="sgd", weight_decay=0.0, clip_norm=1e-3)
    before = [p.clone() for p in model.parameters()]
    Trainer(model, losses_of(model), config).run()
    moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(before, model.parameters(), strict=True)))
    assert 1e-4 < moved < 2e-3  # Nesterov's first step is (1 + momentum) times the gradient


def test_average_follows_parameters_and_buffers() -> None:
    model = build()
    ema = Ema(model, decay=0.5)
    norm, averaged = model.body[1], ema.model.body[1]
    for update in range(1, 4):
        norm.running_mean.fill_(float(update))
        norm.num_batches_tracked.fill_(update)
        model.head.bias.data.fill_(float(update))
        expected = averaged.running_mean.clone()
        decay = min(0.5, (1 + update) / (10 + update))
        ema.update(model)
        assert torch.allclose(averaged.running_mean, expected * decay + update * (1 - decay))
        assert torch.allclose(ema.model.head.bias, averaged.running_mean[:1].expand(3), atol=2.0)
        assert int(averaged.num_batches_tracked) == update, "counters are copied, not averaged"
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    with pytest.raises(ValueError, match="decay"):
        Ema(model, decay=1.0)


def test_rate_warms_up_restarts_and_decays() -> None:
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10, restart_step=40, decay_from=60, final_share=0.1)
    assert config.rate_at(0) == pytest.approx(0.1)
    assert config.rate_at(9) == config.rate_at(39) == 1.0
    assert config.rate_at(40) == pytest.approx(0.1)
    assert config.rate_at(60) == 1.0
    assert config.rate_at(80) == pytest.approx(0.55)
    assert config.rate_at(100) == pytest.approx(0.1)


def test_step_seeds_differ_by_run_step_and_process() -> None:
    drawn = set()
    for seed, step, rank in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        seed_step(seed, step, rank)
        drawn.add(float(torch.rand(1, dtype=torch.float64)))
    assert len(drawn) == 4
    seed_step(0, 0, 1)
    assert float(torch.rand(1, dtype=torch.float64)) in drawn


def test_two_learning_rates_by_the_longest_prefix_that_fits() -> None:
    model = build()
    config = LoopConfig(steps=1, learning_rate=0.1, warmup_steps=1, optimiser="sgd", weight_decay=0.0, clip_norm=1e9)
    trainer = Trainer(model, losses_of(model), config, rate_scales={"body": 0.1, "body.1": 0.5})
    rates = {id(p): g["lr"] for g in trainer.optimiser.param_groups for p in g["params"]}
    named = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert named["head.weight"] == named["head.bias"] == pytest.approx(0.1)
    assert named["body.0.weight"] == pytest.approx(0.01)
    assert named["body.1.weight"] == pytest.approx(0.05)
    trainer.run()
    assert {round(g["lr"], 6) for g in trainer.optimiser.param_groups} == {0.1, 0.05, 0.01}


class Plain(nn.Module):
    """No statistics over the batch, so that two halves of a batch give the whole batch's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _train_share(folder: Path, rank: Rank) -> None:
    torch.manual_seed(0)
    model = Plain()

    def losses(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        return {"loss": F.cross_entropy(model(x[rank.index :: rank.count]), y[rank.index :: rank.count])}

    Trainer(model, losses, CONFIG, checkpoints=Kept(folder / f"of-{rank.count}"), rank=rank).run()


def _enter(index: int, folder: Path, count: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if os.uname().sysname == "Darwin" else "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=index, world_size=count)
    _train_share(folder, Rank(index, count))
    dist.destroy_process_group()


def test_two_processes_learn_what_one_learns_from_the_whole_batch(tmp_path: Path) -> None:
    _train_share(tmp_path, Rank())
    multiprocessing.spawn(_enter, (tmp_path, 2), nprocs=2)
    one, two = (Kept(tmp_path / f"of-{count}").load() for count in (1, 2))
    assert one is not None
    assert two is not None
    assert two.numbers["step"] == 12
    for name, tensor in one.part("model").items():
        assert torch.allclose(tensor, two.part("model")[name], atol=1e-5), name
