"""Every registered model on a GPU: what it computes on a processor, and losses that reach what shall learn."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import modelkit
from modelkit import Predictor, VideoModel, rle
from modelkit.compile.decision import choose_execution
from modelkit.compile.execution import ExecutionChoice
from modelkit.weights import random_weights
from tasks.engine.batches import BatchLimits, forward
from tests.modelkit.builders import picture
from tests.modelkit.model_tester import CASES, ModelTester

GPU = torch.device("cuda")


@pytest.fixture(scope="module", params=sorted(CASES))
def tester(request: pytest.FixtureRequest) -> ModelTester:
    return ModelTester(CASES[request.param])


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Relative error of every floating-point output, by norms."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            error = (found[name].cpu().float() - value).norm() / value.norm().clamp(min=1e-6)
            assert error < tolerance, f"{name}: {error:.2e}"


def test_a_gpu_computes_what_a_processor_does(tester: ModelTester, full_precision: None) -> None:
    model = copy.deepcopy(tester.model).to(GPU)
    batch, geometries = tester.model.transform.batch(tester.images())
    with torch.inference_mode():
        expected, found = tester.model.dense(batch), model.dense(batch.to(GPU))
        assert_near(found, expected, 1e-3)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            rough = model.dense(batch.to(GPU))
        assert_near(rough, expected, 0.1)
        for instances in model.decode(rough, geometries):
            instances.cpu().finish()


def test_the_whole_way_of_an_image_runs_on_a_gpu(tester: ModelTester) -> None:
    _, weights = random_weights(tester.case.name, 0, tester.case.config)
    predictor = Predictor(copy.deepcopy(tester.model), weights, GPU)
    found = predictor([picture(37, 91), picture(64, 80)])
    assert [each.size_hw for each in found] == [(37, 91), (64, 80)]
    if isinstance(predictor.model, VideoModel):
        state = predictor.start()
        for seed in (1, 2, 3):
            prepared = predictor.prepare(picture(64, 80, seed))
            result, state = predictor.step(prepared, state)
            assert predictor.finish(result).size_hw == (64, 80)


def test_losses_on_a_gpu_reach_every_trainable_parameter(tester: ModelTester) -> None:
    model = copy.deepcopy(tester.model).to(GPU).train()
    targets = [{key: value.to(GPU) for key, value in target.items()} for target in tester.targets()]
    torch.manual_seed(0)
    losses = model([image.to(GPU) for image in tester.images()], targets)
    assert all(value.device.type == "cuda" and torch.isfinite(value) for value in losses.values()), losses
    sum(losses.values(), torch.zeros((), device=GPU)).backward()
    parameters = dict(model.named_parameters())
    assert not [n for n, p in parameters.items() if p.requires_grad and p.grad is None]
    assert not [n for n, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()]


def test_the_shipped_model_finds_the_same_digits(full_precision: None) -> None:
    from modelkit.digitscape import Digitscape

    images = [Digitscape("test", (128, 128), seed=3).scene(k).image_rgb for k in range(16)]
    expected = modelkit.load("digitscape_mask_rcnn")(images)
    found = modelkit.load("digitscape_mask_rcnn", device="cuda")(images)
    for a, b in zip(found, expected, strict=True):
        assert a.labels.tolist() == b.labels.tolist()
        assert abs(a.boxes_xyxy - b.boxes_xyxy).max(initial=0) < 0.1
        assert abs(a.scores - b.scores).max(initial=0) < 1e-3
        assert a.rles is not None and b.rles is not None
        for one, other in zip(a.rles, b.rles, strict=True):
            differ = rle.decode(one, a.size_hw) != rle.decode(other, b.size_hw)
            assert differ.sum() <= 3


@pytest.mark.parametrize("name", ["digitscape_mask_rcnn", "lraspp_mobilenet_v3_large:random:0"])
def test_a_compiled_graph_runs_on_a_gpu(name: str, tmp_path: Path) -> None:
    predictor = modelkit.load(name, device="cuda")
    sample = [predictor.prepare(picture(96, 128, seed)) for seed in range(4)]
    predictor.use(ExecutionChoice())
    expected = [predictor.finish(raw) for raw in predictor.infer(sample)]
    decision = choose_execution(predictor, sample, 10**6, tmp_path / "graphs", policy="on")
    print(name, decision)
    assert decision.choice.compiled, decision.reason
    found = [predictor.finish(raw) for raw in predictor.infer(sample)]
    assert [len(each) for each in found] == [len(each) for each in expected]


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    room = torch.cuda.memory_reserved() + 2**30
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:

        def model(values: list[int]) -> list[int]:
            taken = torch.zeros(len(values), 2**26, device=GPU)  # 256 MiB for each
            return [int(row.sum()) + value for row, value in zip(taken, values, strict=True)]

        limits = BatchLimits(16)
        assert forward(model, list(range(16)), "bucket", limits) == list(range(16))
        assert 1 <= limits("bucket") <= 4
        assert limits.largest == limits("bucket")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
