"""Transfer: what is frozen keeps every bit, what fits is taken over, what does not is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modelkit.errors import ConfigError, WeightsError
from modelkit.training.loop import LoopConfig, Trainer
from modelkit.training.transfer import adopt, freeze


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


def train(model: nn.Module, steps: int = 3) -> Trainer:
    def losses(step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(4, 1, 8, 8, generator=generator), torch.randint(0, 3, (4,), generator=generator)
        return {"loss": F.cross_entropy(model(x), y)}

    trainer = Trainer(model, losses, LoopConfig(steps=steps, learning_rate=0.1, warmup_steps=1))
    trainer.run()
    return trainer


def test_a_frozen_backbone_keeps_weights_and_running_statistics_bit_by_bit() -> None:
    torch.manual_seed(0)
    model = Net()
    held = freeze(model, ["backbone"])
    assert sorted(held) == sorted(f"backbone.{name}" for name, _ in model.backbone.named_parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = train(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert sum(p.numel() for p in trainer.parameters) == 4 * 3 + 3
    assert not model.backbone[3].training, "dropout of a frozen part is off"
    assert model.training and model.head.training


def test_freezing_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'neck'.*backbone, head"):
        freeze(Net(), ["neck"])


def test_adopting_reports_what_fits_what_is_new_and_what_is_left_over() -> None:
    torch.manual_seed(1)
    trained, model = Net(5), Net(3)
    state = {**trained.state_dict(), "extra.weight": torch.zeros(2)}
    adopted = adopt(model, state)
    assert adopted.new == ("head.bias", "head.weight")
    assert set(adopted.unused) == {"extra.weight", "head.bias", "head.weight"}
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in adopted.matched)
    only = adopt(Net(5), trained.state_dict(), ["head"])
    assert only.matched == ("head.bias", "head.weight")
    with pytest.raises(WeightsError, match="none of"):
        adopt(model, {"other.weight": torch.zeros(3)})


class Part(nn.Module):
    def __init__(self, width: int, convolutions: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)) for _ in range(convolutions)
        )


class Whole(nn.Module):
    """A backbone, and what stands around it, under names that a test chooses."""

    def __init__(self, inside: str, classes: int, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        holder: nn.Module = self
        *outer, last = inside.split(".")
        for name in outer:
            holder.add_module(name, nn.Module())
            holder = getattr(holder, name)
        holder.add_module(last, Part(width, 4))


@pytest.mark.parametrize(("here", "there"), [("network.backbone", "backbone"), ("backbone", "module.encoder.backbone")])
def test_a_part_that_stands_under_another_name_is_found_by_names_and_shapes(here: str, there: str) -> None:
    torch.manual_seed(2)
    model, trained = Whole(here, 3), Whole(there, 7)
    adopted = adopt(model, trained.state_dict())
    assert {name.split(".")[0] for name in adopted.new} == {"head"}
    [(own, other)] = adopted.renamed
    assert f"{here}.".removeprefix(own) == f"{there}.".removeprefix(other)
    state = trained.state_dict()
    assert all(
        torch.equal(tensor, state[name.replace(here, there, 1)])
        for name, tensor in model.state_dict().items()
        if name.startswith(here)
    )


def test_convolutions_that_only_happen_to_have_the_same_shape_are_not_taken() -> None:
    model, other = Whole("backbone", 3), nn.Sequential(Part(4, 1), nn.Linear(4, 9))
    with pytest.raises(WeightsError, match="none of"):
        adopt(model, other.state_dict())
