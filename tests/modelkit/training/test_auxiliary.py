"""The auxiliary head: at first it is alone, then it stands beside the detector's own losses."""

from __future__ import annotations

import pytest
import torch

from modelkit import ConfigError, VisionModel, create_model
from modelkit.digitscape import Digitscape
from modelkit.training.auxiliary import AuxiliaryConfig, AuxiliaryHead
from modelkit.training.student import weighted_losses
from tests.modelkit.builders import small_mask_rcnn
from tests.modelkit.scenes import image_of, objects_of

SCENES = [Digitscape("train", (96, 96), dense=False).scene(k) for k in range(2)]
IMAGES, TARGETS = [image_of(scene) for scene in SCENES], [objects_of(scene) for scene in SCENES]


def detector() -> VisionModel:
    torch.manual_seed(0)
    return create_model("mask_rcnn", **small_mask_rcnn(num_classes=11)).train()


def test_alone_it_teaches_backbone_and_neck_only_and_then_the_detector_learns_as_without_it() -> None:
    model = detector()
    head = AuxiliaryHead(model, AuxiliaryConfig(weight=0.5, alone=1))
    losses = head(model, IMAGES, TARGETS)
    assert list(losses) == ["loss_auxiliary"]
    losses["loss_auxiliary"].backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert {"backbone", "neck"} <= touched and not touched & {"rpn", "roi_heads"}
    torch.manual_seed(1)
    joined = head(model, IMAGES, TARGETS)
    torch.manual_seed(1)
    plain = weighted_losses(model, IMAGES, TARGETS)
    assert joined.keys() - plain.keys() == {"loss_auxiliary"}
    assert all(torch.equal(joined[name], value) for name, value in plain.items())
    halved = 0.5 * float(losses["loss_auxiliary"].detach())
    assert float(joined["loss_auxiliary"].detach()) == pytest.approx(halved, rel=0.05)


def test_the_number_of_batches_is_part_of_a_checkpoint_and_is_rolled_back_with_a_step() -> None:
    model = detector()
    head = AuxiliaryHead(model, AuxiliaryConfig(alone=2))
    head(model, IMAGES, TARGETS)
    again = AuxiliaryHead(model, AuxiliaryConfig(alone=2))
    again.load_state_dict(head.state_dict())
    assert [len(again(model, IMAGES, TARGETS)) for _ in range(2)] == [1, 6]


def test_other_architectures_and_sizes_that_change_are_refused() -> None:
    with pytest.raises(ConfigError, match="two-stage"):
        AuxiliaryHead(create_model("lraspp_mobilenet_v3_large"), AuxiliaryConfig())
    transform = {"min_size": 64, "max_size": 64, "train_min_sizes": [48, 64]}
    with pytest.raises(ConfigError, match="one size"):
        AuxiliaryHead(create_model("mask_rcnn", **small_mask_rcnn(transform=transform)), AuxiliaryConfig())
    with pytest.raises(ConfigError, match="alone"):
        AuxiliaryConfig(alone=-1)
