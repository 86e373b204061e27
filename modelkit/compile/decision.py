"""Which way of running a model is the fastest here, found out by trying; and running it that way.

    once per run     decision = choose_execution(predictor, sample, remaining_items, cache_dir)
    every worker     apply(predictor, Decision.from_json(text), cache_dir)

Only ways that the weights' record tolerates are tried. Compiling costs tens of seconds on a cold disk cache, so it is
tried only where the work that remains pays for it; graphs are kept in ``cache_dir``, where other workers and later runs
find them. Shapes are fixed: one graph for each bucket at one batch size. Which buckets have graphs is part of the
decision, because a graph's last digits are not those of the eager way. Whatever fails leaves the eager way in force,
and the reason says so.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from modelkit.carriers import SizeHW
from modelkit.compile.execution import ExecutionChoice, ForwardFn
from modelkit.compile.graphs import MAX_GRAPHS, CompiledForward, machine_identity, missing_compiler
from modelkit.predictor import Predictor, Prepared
from modelkit.records import write_whole

Policy = Literal["auto", "on", "off"]

_WORTH_MEASURING_S = 20.0  # less work than this is done before anything could be gained
_SHARE_FOR_MEASURING = 0.05  # of the remaining work, for trying the eager ways
_REPEATS = 3
_CLEARLY_FASTER = 0.97  # a way must beat the simpler one by 3 %, else noise would choose
_HOPED_SPEEDUP = 1.3  # of compiling, before anything is known about this model
_HOPED_COMPILE_S_PER_LAYER = 0.2  # measured: 31 s for the 170 convolutions and norms of MobileNetV3 LR-ASPP
_LOADING_S = 5.0  # of a graph that lies on disk, about
_PAYS_TWICE = 2.0  # compiling must promise to save twice what it costs: promises are uncertain
_DIFFERENCE_ALLOWED = {"float32": 1e-3, "bfloat16": 5e-2}  # of compiled to eager, relative to the largest value


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen for a run, and why; plain JSON inside.

    Args:
        choice: memory format, number format, compiled or not.
        reason: one sentence for the run's record.
        ms_per_image: measured time of ``Predictor.infer`` by way ("eager", "eager channels_last", "compiled", ...).
        compile_s: seconds that compiling (or loading from the disk cache) took; None if it was not tried.
        batch_size: images of the compiled graphs.
        bucket: padded rows and columns that were measured.
        buckets: those that have compiled graphs, the measured one first; images of others are run eagerly.
        threads: of torch while measuring; graphs are compiled for this number.
    """

    choice: ExecutionChoice = field(default_factory=ExecutionChoice)
    reason: str = "the plain way"
    ms_per_image: Mapping[str, float] = field(default_factory=dict)
    compile_s: float | None = None
    batch_size: int = 1
    bucket: SizeHW | None = None
    buckets: tuple[SizeHW, ...] = ()
    threads: int = 1

    @property
    def mode(self) -> Literal["eager", "compiled"]:
        """In one word."""
        return "compiled" if self.choice.compiled else "eager"

    def to_json(self) -> dict[str, Any]:
        """For the job's description and the run's record."""
        return {"mode": self.mode, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Decision:
        """The decision again."""
        content = {key: given for key, given in value.items() if key != "mode"}
        content["choice"] = ExecutionChoice(**content["choice"])
        content["bucket"] = None if content["bucket"] is None else tuple(content["bucket"])
        content["buckets"] = tuple((rows, columns) for rows, columns in content.get("buckets", ()))
        return cls(**content)


def name_of(choice: ExecutionChoice) -> str:
    """The key of ``Decision.ms_per_image``."""
    words = ["compiled" if choice.compiled else "eager"]
    words += ["channels_last"] * choice.channels_last + ["bf16"] * (choice.dtype == "bfloat16")
    return " ".join(words)


def choose_execution(
    predictor: Predictor,
    sample: Sequence[Prepared],
    remaining_items: int,
    cache_dir: Path | str | None,
    *,
    workers: int = 1,
    policy: Policy = "auto",
    seen: Sequence[SizeHW] = (),
) -> Decision:
    """Measure on a sample and leave the predictor running the chosen way.

    Args:
        predictor: as the workers will have it: same device, same number of torch threads.
        sample: prepared images of one bucket; their number is the batch size of compiled graphs (on a CPU, 1).
        remaining_items: images still to be done by all workers together.
        cache_dir: for compiled code, shared by workers and runs; None: never compile.
        workers: that share the remaining items.
        policy: "auto" as described above; "off": eager float32, nothing is measured; "on": compiled in the fastest
            tolerated number format whatever the work that remains, unless it fails.
        seen: buckets of some of the images, one for each that was looked at; those that are frequent enough to repay it
            get graphs, too.

    Returns:
        The decision, to be handed to :func:`apply` in every other worker.
    """
    if policy == "off":
        return _settle(predictor, Decision(reason="compilation and faster number formats are switched off"), None)
    trial = _Trial(predictor, sample)
    plain = ExecutionChoice()
    trial.measure([plain], repeats=1 if policy == "auto" else _REPEATS)
    work_s = remaining_items * trial.ms[name_of(plain)] / 1e3 / max(1, workers)
    if policy == "auto" and work_s < _WORTH_MEASURING_S:
        reason = f"about {work_s:.0f} s of work for each worker do not repay looking for a faster way"
        return _settle(predictor, trial.decision(plain, reason), None)
    limit_s = _SHARE_FOR_MEASURING * work_s if policy == "auto" else float("inf")
    eager = trial.fastest_eager(limit_s)
    work_s = remaining_items * trial.ms[name_of(eager)] / 1e3 / max(1, workers)
    refusal = _why_not_compile(trial, eager, work_s, cache_dir, policy)
    if refusal is not None or cache_dir is None:
        return _settle(predictor, trial.decision(eager, f"eager: {refusal}"), None)
    return _with_compiled(trial, eager, Path(cache_dir), _work_by_bucket(work_s, seen))


def apply(predictor: Predictor, decision: Decision, cache_dir: Path | str | None) -> str | None:
    """Make a worker's predictor run as decided; compiled graphs come from ``cache_dir``.

    Returns:
        None, or why this worker stays eager, with all images or those of some buckets, although compiled was decided.
    """
    choice = decision.choice
    if not choice.compiled:
        predictor.use(choice)
        return None
    predictor.use(ExecutionChoice(choice.channels_last, choice.dtype))
    if cache_dir is None or decision.bucket is None:
        return "no cache folder was given for compiled graphs"
    forward = compiled_forward(predictor, decision, Path(cache_dir))
    buckets = decision.buckets or (decision.bucket,)
    compiler = missing_compiler(predictor.device)
    tried = [compiler if compiler and not forward.is_on_disk(each) else forward.compile_now(each) for each in buckets]
    if forward.buckets:
        predictor.use(choice, forward)
    return next((problem for problem in tried if problem is not None), None)


def compiled_forward(predictor: Predictor, decision: Decision, cache_dir: Path) -> CompiledForward:
    """The dense part of a predictor's model with one graph for each bucket; nothing is compiled yet."""
    return CompiledForward(
        predictor.model.dense,
        predictor.eager(decision.choice),
        cache_dir=cache_dir,
        identity={"weights": predictor.weights.digest, "config": predictor.weights.config},
        device=predictor.device,
        bf16=decision.choice.dtype == "bfloat16",
        batch_size=decision.batch_size,
        memory_format=decision.choice.memory_format,
    )


def _settle(predictor: Predictor, decision: Decision, forward: CompiledForward | None) -> Decision:
    predictor.use(decision.choice, forward)
    return decision


class _Trial:
    """Times ways of running on one sample; interleaved, because other work on the machine comes and goes."""

    def __init__(self, predictor: Predictor, sample: Sequence[Prepared]) -> None:
        if not sample:
            raise ValueError("choosing needs at least one prepared image to measure on")
        self.predictor, self.sample = predictor, list(sample)
        self.ms: dict[str, float] = {}

    def measure(
        self,
        choices: Sequence[ExecutionChoice],
        forwards: Mapping[str, ForwardFn] | None = None,
        *,
        repeats: int = _REPEATS,
        limit_s: float = float("inf"),
    ) -> None:
        """Median milliseconds an image into ``ms``; ways that the time does not suffice for are left out."""
        begin = time.perf_counter()
        times: dict[str, list[float]] = {}
        for repeat in range(1 + repeats):  # the first warms up
            for choice in choices:
                name = name_of(choice)
                if time.perf_counter() - begin > limit_s and name not in times:
                    continue
                self.predictor.use(choice, (forwards or {}).get(name))
                seconds = self._once()
                if repeat or repeats == 0:
                    times.setdefault(name, []).append(seconds)
        for name, each_s in times.items():
            self.ms[name] = 1e3 * median(each_s) / len(self.sample)

    def _once(self) -> float:
        begin = time.perf_counter()
        self.predictor.infer(self.sample)  # brings its results to the host: a device has finished by then
        return time.perf_counter() - begin

    def fastest_eager(self, limit_s: float) -> ExecutionChoice:
        """Of the ways that the record tolerates; the plainest among equals."""
        tolerates = self.predictor.weights.tolerates
        formats: list[Literal["float32", "bfloat16"]] = ["float32", "bfloat16"] if tolerates.bf16 else ["float32"]
        layouts = [False, True] if tolerates.channels_last else [False]
        choices = [ExecutionChoice(layout, dtype) for dtype in formats for layout in layouts]
        self.measure(choices, limit_s=limit_s)
        return self.fastest([choice for choice in choices if name_of(choice) in self.ms])

    def fastest(self, choices: Sequence[ExecutionChoice]) -> ExecutionChoice:
        """The first choice that no later one beats clearly."""
        best = choices[0]
        for choice in choices[1:]:
            if self.ms[name_of(choice)] < _CLEARLY_FASTER * self.ms[name_of(best)]:
                best = choice
        return best

    def decision(
        self,
        choice: ExecutionChoice,
        reason: str,
        compile_s: float | None = None,
        buckets: Sequence[SizeHW] = (),
    ) -> Decision:
        """The record of it."""
        return Decision(
            choice=choice,
            reason=reason,
            ms_per_image={name: round(value, 3) for name, value in self.ms.items()},
            compile_s=None if compile_s is None else round(compile_s, 2),
            batch_size=len(self.sample),
            bucket=self.sample[0].bucket,
            buckets=tuple(buckets),
            threads=torch.get_num_threads(),
        )


def _why_not_compile(
    trial: _Trial, eager: ExecutionChoice, work_s: float, cache_dir: Path | str | None, policy: Policy
) -> str | None:
    """Why compiling is not even tried; None if it is."""
    predictor = trial.predictor
    if not predictor.weights.tolerates.compile:
        return "the weights' record does not tolerate compiled graphs"
    if cache_dir is None:
        return "no cache folder was given for compiled graphs"
    on_disk = _compiled(trial, eager, Path(cache_dir)).is_on_disk(trial.sample[0].bucket)
    problem = None if on_disk else missing_compiler(predictor.device)
    if problem is not None or policy == "on":
        return problem
    known = _recall(Path(cache_dir), trial, eager)
    layers = sum(1 for module in predictor.model.modules() if not list(module.children()))
    cost_s = _LOADING_S if on_disk else float(known.get("compile_s", _HOPED_COMPILE_S_PER_LAYER * layers))
    speedup = max(1.0, float(known.get("speedup", _HOPED_SPEEDUP)))
    gain_s = work_s * (1 - 1 / speedup)
    if gain_s < _PAYS_TWICE * cost_s:
        basis = "measured before" if known else "a guess"
        return (
            f"about {work_s:.0f} s of work for each worker do not repay compiling "
            f"({cost_s:.0f} s to save {gain_s:.0f} s; {basis})"
        )
    return None


def _compiled(trial: _Trial, eager: ExecutionChoice, cache_dir: Path) -> CompiledForward:
    choice = ExecutionChoice(eager.channels_last, eager.dtype, compiled=True)
    return compiled_forward(trial.predictor, trial.decision(choice, ""), cache_dir)


def _work_by_bucket(work_s: float, seen: Sequence[SizeHW]) -> dict[SizeHW, float]:
    """Seconds of each worker that go into images of a bucket; the most frequent first."""
    return {bucket: work_s * count / len(seen) for bucket, count in Counter(seen).most_common()}


def _worth_graphs(
    forward: CompiledForward, work_s: Mapping[SizeHW, float], measured: SizeHW, faster: float, compile_s: float
) -> list[SizeHW]:
    """The measured bucket, and of the others those for which compiling saves twice what it costs."""
    cost_s = {bucket: _LOADING_S if forward.is_on_disk(bucket) else compile_s for bucket in work_s}
    worth = [
        bucket
        for bucket, seconds in work_s.items()
        if bucket != measured and seconds * (1 - 1 / faster) >= _PAYS_TWICE * cost_s[bucket]
    ]
    return [measured, *worth][:MAX_GRAPHS]


def _with_compiled(trial: _Trial, eager: ExecutionChoice, cache_dir: Path, work_s: Mapping[SizeHW, float]) -> Decision:
    """Compile in the eager winner's formats, check against it, time both, keep the faster.

    Args:
        work_s: seconds that the images of each bucket will take.
    """
    compiled = ExecutionChoice(eager.channels_last, eager.dtype, compiled=True)
    predictor = trial.predictor
    predictor.use(eager)
    forward = _compiled(trial, eager, cache_dir)
    was_on_disk = forward.is_on_disk(trial.sample[0].bucket)
    begin = time.perf_counter()
    problem = forward.compile_now(trial.sample[0].bucket)
    compile_s = time.perf_counter() - begin
    if problem is None:
        problem = _difference(predictor, forward, trial.sample, eager)
    if problem is not None:
        return _settle(predictor, trial.decision(eager, f"eager: {problem}", compile_s), None)
    trial.measure([eager, compiled], {name_of(compiled): forward})
    _remember(cache_dir, trial, eager, None if was_on_disk else compile_s)
    chosen = trial.fastest([eager, compiled])
    faster = trial.ms[name_of(eager)] / trial.ms[name_of(compiled)]
    if not chosen.compiled:
        reason = f"eager: compiled is not clearly faster ({faster:.2f} times)"
        return _settle(predictor, trial.decision(eager, reason, compile_s), None)
    reason = f"compiled: {faster:.2f} times as fast as {name_of(eager)}, the fastest eager way"
    costs_s = max(compile_s, _recall(cache_dir, trial, eager).get("compile_s", 0.0))  # it may have been loaded just now
    buckets = _worth_graphs(forward, work_s, trial.sample[0].bucket, faster, costs_s)
    compiled_buckets = [bucket for bucket in buckets if forward.compile_now(bucket) is None]
    return _settle(predictor, trial.decision(compiled, reason, compile_s, compiled_buckets), forward)


def _difference(
    predictor: Predictor,
    forward: Callable[[Tensor], dict[str, Tensor]],
    sample: Sequence[Prepared],
    eager: ExecutionChoice,
) -> str | None:
    """What is wrong with the compiled result; None if it agrees with the eager one."""
    with torch.inference_mode():
        batch = predictor.batch(sample)
        expected, found = predictor.eager(eager)(batch), forward(batch)
    for name, value in expected.items():
        largest = float(value.float().abs().max()) if value.numel() else 0.0
        difference = float((found[name].float() - value.float()).abs().max()) if value.numel() else 0.0
        if not difference <= _DIFFERENCE_ALLOWED[eager.dtype] * max(largest, 1e-6):
            return f"the compiled graph gives another {name!r} (off by {difference:.3g}, largest value {largest:.3g})"
    return None


def _stamp(cache_dir: Path, trial: _Trial, eager: ExecutionChoice) -> Path:
    """Where the measurements of this model, shape and machine are kept between runs."""
    predictor = trial.predictor
    identity = [predictor.weights.digest, len(trial.sample), trial.sample[0].bucket, name_of(eager)]
    identity += machine_identity(predictor.device)
    return cache_dir / "measured" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]}.json"


def _remember(cache_dir: Path, trial: _Trial, eager: ExecutionChoice, compile_s: float | None) -> None:
    """So that the next run knows what compiling costs and gains; loading from disk says nothing about the cost."""
    compiled = ExecutionChoice(eager.channels_last, eager.dtype, compiled=True)
    content = _recall(cache_dir, trial, eager) | {
        "speedup": trial.ms[name_of(eager)] / trial.ms[name_of(compiled)],
        "ms_per_image": trial.ms,
    }
    if compile_s is not None:
        content["compile_s"] = compile_s
    write_whole(_stamp(cache_dir, trial, eager), json.dumps(content).encode())


def _recall(cache_dir: Path, trial: _Trial, eager: ExecutionChoice) -> dict[str, Any]:
    """What an earlier run remembered; empty if none did, or if it can't be read."""
    try:
        found = json.loads(_stamp(cache_dir, trial, eager).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
