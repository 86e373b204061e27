"""Choosing how a model runs: measured, tolerated, worth it; and eager whenever anything is in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modelkit.compile import decision as compilation
from modelkit.compile import graphs as compiled
from modelkit.compile.decision import Decision, apply, choose_execution, name_of
from modelkit.compile.execution import ExecutionChoice
from modelkit.errors import ConfigError
from modelkit.predictor import Predictor, Prepared
from modelkit.records import Tolerates, Weights
from modelkit.semantic import SemanticSegmentor
from modelkit.weights import describe_preprocessing

BUCKET = (32, 64)


class TinyNetwork(nn.Module):
    """Enough for a compiler to have something to fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.classify = nn.Conv2d(8, 3, 1)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classify(self.layers(batch))}


EVERYTHING = Tolerates(channels_last=True, bf16=True, compile=True)


def tiny_predictor(tolerates: Tolerates = EVERYTHING) -> Predictor:
    torch.manual_seed(0)
    transform = {"min_size": 32, "max_size": 64, "size_divisible": 32, "padding": "stretch"}
    model = SemanticSegmentor(TinyNetwork(), num_classes=3, transform=transform, background=None)
    weights = Weights(
        name="tiny",
        architecture="tiny",
        config={},
        kind="semantic",
        classes=(),
        preprocessing=describe_preprocessing(model),
        digest="0" * 64,
        num_parameters=1,
        tolerates=tolerates,
    )
    return Predictor(model, weights)


def images(n: int, size_hw: tuple[int, int] = BUCKET) -> list[np.ndarray]:
    return list(np.random.default_rng(n).integers(0, 256, (n, *size_hw, 3), np.uint8))


def prepared(predictor: Predictor, n: int, size_hw: tuple[int, int] = BUCKET) -> list[Prepared]:
    return [predictor.prepare(image) for image in images(n, size_hw)]


@pytest.fixture(autouse=True)
def _clean_torch() -> Iterator[None]:
    threads, variables = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    os.environ.update(variables)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that the suite compiles the tiny model once."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def fixed_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds an infer call "takes" by way; real measurements of a tiny model are noise."""
    seconds = {
        "eager": 0.1,
        "eager channels_last": 0.08,
        "eager bf16": 0.2,
        "eager channels_last bf16": 0.05,
        "compiled": 0.03,
        "compiled channels_last": 0.03,
        "compiled channels_last bf16": 0.02,
    }

    def once(trial: compilation._Trial) -> float:
        trial.predictor.infer(trial.sample)
        return seconds[name_of(trial.predictor.choice)]

    monkeypatch.setattr(compilation._Trial, "_once", once)
    return seconds


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)


def test_off_measures_nothing_and_stays_plain() -> None:
    decision = choose_execution(tiny_predictor(), [], 10**9, None, policy="off")
    assert decision.choice == ExecutionChoice()
    assert decision.ms_per_image == {}
    assert decision.mode == "eager"


def test_little_work_stays_plain_after_one_measurement(fixed_times: dict[str, float], tmp_path: Path) -> None:
    predictor = tiny_predictor()
    decision = choose_execution(predictor, prepared(predictor, 1), 100, tmp_path)
    assert decision.choice == ExecutionChoice()
    assert decision.ms_per_image == {"eager": 100.0}
    assert "do not repay looking" in decision.reason


def test_many_workers_leave_less_work_for_each(fixed_times: dict[str, float], tmp_path: Path) -> None:
    predictor = tiny_predictor()
    decision = choose_execution(predictor, prepared(predictor, 1), 1000, tmp_path, workers=10)
    assert "about 10 s of work for each worker" in decision.reason


def test_the_fastest_tolerated_eager_way_wins(fixed_times: dict[str, float]) -> None:
    predictor = tiny_predictor()
    decision = choose_execution(predictor, prepared(predictor, 1), 10_000, None)
    assert decision.choice == ExecutionChoice(channels_last=True, dtype="bfloat16")
    assert predictor.choice == decision.choice
    assert "no cache folder" in decision.reason
    assert set(decision.ms_per_image) == {"eager", "eager channels_last", "eager bf16", "eager channels_last bf16"}


@pytest.mark.parametrize(
    ("tolerates", "expected"),
    [
        (Tolerates(channels_last=True, bf16=False, compile=False), ExecutionChoice(channels_last=True)),
        (Tolerates(channels_last=False, bf16=True, compile=False), ExecutionChoice()),
        (Tolerates(channels_last=False, bf16=False, compile=False), ExecutionChoice()),
    ],
)
def test_what_the_record_does_not_tolerate_is_not_even_tried(
    fixed_times: dict[str, float], tmp_path: Path, tolerates: Tolerates, expected: ExecutionChoice
) -> None:
    predictor = tiny_predictor(tolerates)
    decision = choose_execution(predictor, prepared(predictor, 1), 10**6, tmp_path, policy="on")
    assert decision.choice == expected
    assert "does not tolerate" in decision.reason
    assert not any("bf16" in way for way in decision.ms_per_image) or tolerates.bf16


def test_a_hair_faster_is_not_faster(fixed_times: dict[str, float]) -> None:
    fixed_times |= {"eager channels_last": 0.099, "eager channels_last bf16": 0.098}
    predictor = tiny_predictor()
    assert choose_execution(predictor, prepared(predictor, 1), 10_000, None).choice == ExecutionChoice()


def test_without_a_compiler_it_stays_eager_and_says_so(
    fixed_times: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    predictor = tiny_predictor()
    decision = choose_execution(predictor, prepared(predictor, 1), 10**6, tmp_path, policy="on")
    assert decision.mode == "eager"
    assert "no C++ compiler" in decision.reason


def test_a_worker_without_a_compiler_stays_eager_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    predictor = tiny_predictor()
    decision = Decision(ExecutionChoice(channels_last=True, compiled=True), bucket=BUCKET)
    assert "no C++ compiler" in str(apply(predictor, decision, tmp_path))
    assert predictor.choice == ExecutionChoice(channels_last=True)
    assert len(predictor(images(1))) == 1


def test_too_little_work_for_compiling_is_said_with_the_figures(
    fixed_times: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "_HOPED_COMPILE_S_PER_LAYER", 1000.0)
    predictor = tiny_predictor()
    decision = choose_execution(predictor, prepared(predictor, 1), 10_000, tmp_path)
    assert decision.choice == ExecutionChoice(channels_last=True, dtype="bfloat16")
    assert "about 500 s of work for each worker do not repay compiling" in decision.reason
    assert "a guess" in decision.reason
    trial = compilation._Trial(predictor, prepared(predictor, 1))
    trial.ms = {name: 1e3 * seconds for name, seconds in fixed_times.items()}
    compilation._remember(tmp_path, trial, decision.choice, compile_s=400.0)
    decision = choose_execution(predictor, prepared(predictor, 1), 1_000, tmp_path)
    assert "(400 s to save 30 s; measured before)" in decision.reason


_BROKEN_COMPILER = """
import sys
import torch
torch.set_num_threads(1)
from tests.modelkit.test_compilation import choose_execution, images, prepared, tiny_predictor
predictor = tiny_predictor()
decision = choose_execution(predictor, prepared(predictor, 1), 10**6, sys.argv[1], policy="on")
assert len(predictor(images(2))) == 2
print(decision.mode, predictor.choice.compiled, decision.reason, sep="|")
"""


def in_another_process(script: str, *arguments: str, **variables: str) -> str:
    """What a script prints last; compilers leave traces in a process that later tests would trip over."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | variables,
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.timeout(900)
def test_a_compiler_that_fails_leaves_eager_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'internal compiler error' >&2\nexit 1\n")
    broken.chmod(0o755)
    mode, compiled_in_use, reason = in_another_process(
        _BROKEN_COMPILER, str(tmp_path / "cache"), CXX=str(broken)
    ).split("|")
    assert (mode, compiled_in_use) == ("eager", "False")
    assert reason.startswith("eager: compiling failed:")


@pytest.mark.timeout(900)
def test_compiled_is_chosen_checked_recorded_and_gives_the_same_results(
    fixed_times: dict[str, float], cache_dir: Path
) -> None:
    predictor = tiny_predictor(Tolerates())
    plain = tiny_predictor(Tolerates())(images(3))
    decision = choose_execution(predictor, prepared(predictor, 2), 10**6, cache_dir)
    assert decision.mode == "compiled", decision.reason
    assert decision.compile_s is not None
    assert decision.ms_per_image["compiled channels_last"] == 15.0
    assert Decision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
    found = predictor(images(3))
    assert [each.rles for each in found] == [each.rles for each in plain]
    trial = compilation._Trial(predictor, prepared(predictor, 2))
    known = compilation._recall(cache_dir, trial, ExecutionChoice(channels_last=True))
    assert known["speedup"] == pytest.approx(0.08 / 0.03)
    assert known["compile_s"] > 0


def test_a_slower_graph_is_not_used(fixed_times: dict[str, float], cache_dir: Path) -> None:
    fixed_times |= {"compiled channels_last": 0.08}
    predictor = tiny_predictor(Tolerates())
    decision = choose_execution(predictor, prepared(predictor, 2), 10**6, cache_dir, policy="on")
    assert decision.mode == "eager"
    assert "not clearly faster" in decision.reason


def test_a_graph_that_computes_something_else_is_not_used(
    fixed_times: dict[str, float], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = compiled.CompiledForward.__call__

    def wrong(self: compiled.CompiledForward, batch: Tensor) -> dict[str, Tensor]:
        return {name: value + (value.is_floating_point() * 0.5) for name, value in honest(self, batch).items()}

    monkeypatch.setattr(compiled.CompiledForward, "__call__", wrong)
    predictor = tiny_predictor(Tolerates())
    decision = choose_execution(predictor, prepared(predictor, 2), 10**6, cache_dir, policy="on")
    assert decision.mode == "eager"
    assert "gives another" in decision.reason


GRAPH = Decision(ExecutionChoice(channels_last=True, compiled=True), batch_size=2, bucket=BUCKET)


@pytest.mark.timeout(900)
def test_batches_of_any_size_run_through_graphs_of_one_size(cache_dir: Path) -> None:
    predictor, plain = tiny_predictor(), tiny_predictor()
    assert apply(predictor, GRAPH, cache_dir) is None
    for n in (1, 2, 3, 5):
        found = predictor.infer(prepared(predictor, n))
        expected = plain.infer(prepared(plain, n))
        assert len(found) == n
        assert all(torch.equal(a.label_map, b.label_map) for a, b in zip(found, expected, strict=True))
    assert isinstance(predictor.forward_fn, compiled.CompiledForward)
    assert predictor.forward_fn.buckets == [BUCKET]


TALL, RARE = (64, 32), (32, 32)


@pytest.mark.timeout(900)
def test_which_buckets_have_graphs_is_decided_once_and_the_others_stay_eager(
    fixed_times: dict[str, float], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph's last digits are its own: had it come while work went on, rows would depend on when."""
    monkeypatch.setattr(compilation, "_LOADING_S", 1.0)
    predictor = tiny_predictor(Tolerates())
    assert compiled_forward_for(predictor, cache_dir).compile_now(TALL) is None
    seen = [BUCKET] * 50 + [TALL] * 49 + [RARE]
    decision = choose_execution(predictor, prepared(predictor, 2), 1_000, cache_dir, policy="on", seen=seen)
    assert decision.buckets == (BUCKET, TALL), decision.reason
    worker = tiny_predictor(Tolerates())
    assert apply(worker, Decision.from_json(json.loads(json.dumps(decision.to_json()))), cache_dir) is None
    for _ in range(3):
        worker.infer(prepared(worker, 1, RARE))
    assert isinstance(worker.forward_fn, compiled.CompiledForward)
    assert worker.forward_fn.buckets == [BUCKET, TALL]


def compiled_forward_for(predictor: Predictor, cache_dir: Path) -> compiled.CompiledForward:
    """Graphs as :data:`GRAPH` has them."""
    return compilation.compiled_forward(predictor, GRAPH, cache_dir)


_LOADING = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.modelkit.test_compilation import GRAPH, apply, images, tiny_predictor
predictor = tiny_predictor()
print(apply(predictor, GRAPH, Path(sys.argv[1])), predictor.choice.compiled, len(predictor(images(3))))
"""


@pytest.mark.timeout(900)
def test_another_process_loads_the_graph_and_needs_no_compiler(cache_dir: Path) -> None:
    assert apply(tiny_predictor(), GRAPH, cache_dir) is None
    before = {path: path.stat().st_mtime_ns for path in (cache_dir / "graphs").glob("*.pt2")}
    assert in_another_process(_LOADING, str(cache_dir), CXX="/nowhere/g++") == "None True 3"
    assert {path: path.stat().st_mtime_ns for path in (cache_dir / "graphs").glob("*.pt2")} == before


def test_a_damaged_graph_leaves_eager_with_the_reason(tmp_path: Path) -> None:
    predictor = tiny_predictor()
    forward = compilation.compiled_forward(predictor, GRAPH, tmp_path)
    forward.path(BUCKET).parent.mkdir(parents=True)
    forward.path(BUCKET).write_bytes(b"no graph at all")
    assert str(apply(predictor, GRAPH, tmp_path)).startswith("compiling failed")
    assert predictor.choice == ExecutionChoice(channels_last=True)
    assert len(predictor(images(1))) == 1


def test_a_graph_that_kills_its_process_is_met_in_another_one_and_never_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def compile_quickly(program: object, *, package_path: str, inductor_configs: object) -> str:
        made.append(package_path)
        Path(package_path).write_bytes(b"code that crashes")
        return package_path

    trial = tmp_path / "trial.py"
    trial.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(compiled, "_TRIAL", trial)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compile_quickly)
    predictor = tiny_predictor()
    problem = apply(predictor, GRAPH, tmp_path / "cache")
    assert problem is not None and "in a process of its own, which ended by signal 11" in problem
    assert not predictor.choice.compiled and len(predictor(images(1))) == 1
    again = apply(tiny_predictor(), GRAPH, tmp_path / "cache")
    assert again is not None and "signal 11" in again and "delete" in again
    assert len(made) == 1 and not list((tmp_path / "cache").rglob("*.pt2"))
    trial.write_text("raise MemoryError('the device is full')\n")
    for attempt in (1, 2):  # it may be less full another time
        problem = apply(tiny_predictor(), GRAPH, tmp_path / "other")
        assert problem is not None and "ended with 1: MemoryError: the device is full" in problem
        assert len(made) == 1 + attempt


def test_a_graph_belongs_to_its_weights_shape_formats_and_threads(tmp_path: Path) -> None:
    paths = set()
    for digest in "01":
        predictor = tiny_predictor()
        predictor.weights = replace(predictor.weights, digest=digest * 64)
        for choice in (ExecutionChoice(compiled=True), ExecutionChoice(dtype="bfloat16", compiled=True), GRAPH.choice):
            for batch_size in (1, 2):
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    decision = Decision(choice, batch_size=batch_size, bucket=BUCKET)
                    forward = compilation.compiled_forward(predictor, decision, tmp_path)
                    paths |= {forward.path(BUCKET), forward.path((64, 32))}
    assert len(paths) == 2 * 3 * 2 * 2 * 2


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="writable by nobody else"):
        compiled.prepare_cache(tmp_path)


def test_choosing_without_a_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        choose_execution(tiny_predictor(), [], 10, tmp_path)
