"""Updates replayed as CUDA graphs are those that run kernel by kernel."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.stepping import CUDA, SIZE, Setup, changed, kernel_by_kernel
from tests.gpu.test_trial import config_of
from tests.trainable.trials import numbers, student_with_dropout, train, untrained_teacher
from trainable.engine import loop
from trainable.engine.checkpoint import BEST
from trainable.engine.graph import Graphs
from trainable.networks import norm_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(
        "ignore:.*script_method.*is deprecated", "ignore:The .grad attribute"
    ),
]  # torch's own, as it compiles

STABLE = {"method": "stablekd", "alpha": None, "lam": 1.0, "decomposition": "5/2"}
TRIALS: dict[str, dict[str, Any]] = {
    "fp16": {},
    "fp32": {"precision": "fp32"},
    "bf16, clipped": {"precision": "bf16", "clip": 1.0},
    "clipped by layer": {"clip": 1.0, "clip_by": "layer"},
    "clipped by value": {"clip": 0.01, "clip_by": "value"},
    "accumulated": {"accumulate": 2},
    "frozen statistics": {"batchnorm": {"freeze_after": 1}},
    "recalibrated": {"batchnorm": {"recalibrate": 2}},
    "observed": {"observe_every": 1},
    "compiled": {"compile": True},
    "compiled, bf16": {"compile": True, "precision": "bf16", "accumulate": 2},
}


class Replays:
    """How many graphs were launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, replay = 0, torch.cuda.CUDAGraph.replay

        def counted(graph: torch.cuda.CUDAGraph) -> None:
            self.count += 1
            replay(graph)

        monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    return Replays(monkeypatch)


def both_forms(
    folder: Path, replays: Replays, sections: dict[str, Any], **settings: Any
) -> tuple[int, int]:
    """Train by graphs and without; deterministic trials end in the same bits. How many replays each had."""
    config = config_of(cuda_graph=True, **settings).model_copy(update=sections)
    teacher = untrained_teacher(config_of(), folder)
    found: list[Any] = []
    counts: list[int] = []
    for graph in (True, False):
        before, own = replays.count, folder / str(graph)
        with pytest.MonkeyPatch.context() as patch:
            if not graph:
                kernel_by_kernel(patch)
            records = numbers(train(config, own, teacher, CUDA))
        found.append((records, (own / BEST).read_bytes()))
        counts.append(replays.count - before)
    if config.train.deterministic:
        (of_graphs, best), (of_kernels, other) = found
        pairs = list(zip(of_graphs, of_kernels, strict=True))
        assert [{k: (v, two[k]) for k, v in one.items() if v != two[k]} for one, two in pairs] == [
            {} for _ in pairs
        ]
        assert best == other
    return counts[0], counts[1]


@pytest.mark.usefixtures("restored_determinism")
@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_ends_in_the_same_bits(name: str, tmp_path: Path, replays: Replays) -> None:
    by_graphs, without = both_forms(tmp_path, replays, {}, **TRIALS[name])
    assert by_graphs > 20
    assert without == 0


@pytest.mark.parametrize("graph", [False, True])
def test_batchnorm_has_kernels_of_its_own_where_updates_are_captured(
    graph: bool, tmp_path: Path, replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launched one by one they keep the host longer than torch's."""
    launched: list[bool] = []
    own = norm_kernels.gradients
    monkeypatch.setattr(
        norm_kernels, "gradients", lambda *inputs: [launched.append(True), own(*inputs)][1]
    )
    train(config_of(cuda_graph=graph), tmp_path, untrained_teacher(config_of(), tmp_path), CUDA)
    assert bool(launched) == graph
    assert bool(replays.count) == graph


@pytest.mark.usefixtures("restored_determinism")
def test_stages_are_captured_anew(tmp_path: Path, replays: Replays) -> None:
    distill = config_of().distill.model_copy(update=STABLE)
    by_graphs, _ = both_forms(tmp_path, replays, {"distill": distill}, epochs=3)
    assert by_graphs > 30


@pytest.mark.usefixtures("restored_determinism")
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizers_and_dropout(
    name: str, tmp_path: Path, replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "build_student", student_with_dropout)
    optim = config_of().optim.model_copy(update={"name": name, "lr": 1e-3})
    by_graphs, _ = both_forms(tmp_path, replays, {"optim": optim})
    assert by_graphs > 20


@pytest.mark.usefixtures("restored_determinism")
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(("teacher", "student"), [("fp16", "fp32"), ("fp32", "fp16")])
def test_a_teacher_of_another_precision_is_cast_within_the_graph(
    teacher: str,
    student: str,
    cache: bool,
    tmp_path: Path,
    replays: Replays,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the student, or with what is gathered; groups and their errors read what was cast."""
    monkeypatch.setenv("KD_STUDY_CACHE", str(tmp_path / "cache"))
    config = config_of()
    own = config.teacher.model_copy(update={"precision": teacher, "cache": cache})  # type: ignore[union-attr]
    distill = config.distill.model_copy(update=STABLE)
    sections = {"teacher": own, "distill": distill}
    by_graphs, _ = both_forms(tmp_path, replays, sections, precision=student, epochs=3)
    assert by_graphs > 20


@pytest.mark.usefixtures("restored_determinism")
@pytest.mark.parametrize("method", ["kd", "stablekd"])
def test_what_a_cached_teacher_said_is_gathered_within_the_graph(
    method: str, tmp_path: Path, replays: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_STUDY_CACHE", str(tmp_path / "cache"))
    config = config_of(epochs=3)
    sections: dict[str, Any] = {"teacher": config.teacher.model_copy(update={"cache": True})}  # type: ignore[union-attr]
    if method == "stablekd":
        sections["distill"] = config.distill.model_copy(update=STABLE)
    by_graphs, without = both_forms(tmp_path, replays, sections, epochs=3)
    assert by_graphs > 20
    assert without == 0
    assert len(list((tmp_path / "cache" / "teachers").glob("*.arrow"))) == 1


def test_bad_updates_are_skipped_in_replays_as_they_are_in_eager(replays: Replays) -> None:
    """One graph serves good and bad updates."""
    factors = [1.0] * 6 + [float("nan"), 1.0, 1.0, float("inf"), 1.0, 1.0]
    states: list[dict[str, Tensor]] = []
    for graph in (False, True):
        setup = Setup(observe_every=2, graph=graph)
        for factor in factors:
            setup.update(factor)
        assert setup.step.health.flush().total == 2
        states.append(setup.state())
    assert replays.count > 6
    eager, replayed = states
    for name, value in eager.items():
        torch.testing.assert_close(replayed[name], value, rtol=2e-2, atol=1e-3, msg=name)


def test_where_capturing_fails_the_log_says_why_and_training_goes_on(
    replays: Replays, caplog: pytest.LogCaptureFixture
) -> None:
    class Waiting:
        """A method that waits for the device, which a graph cannot."""

        def __init__(self, method: Callable[..., Any]) -> None:
            self._method = method

        def __call__(self, *inputs: Any) -> Any:
            terms = self._method(*inputs)
            assert next(iter(terms.values())).item() is not None
            return terms

    setup = Setup(precision="fp16", graph=True)
    setup.objective.method = Waiting(setup.objective.method)
    before = setup.state()
    for _ in range(12):
        setup.update()
    torch.cuda.synchronize()
    assert replays.count == 0
    (line,) = [record.message for record in caplog.records]
    assert line.endswith("not as CUDA graphs: a network or method waits for the device")
    assert "network.fc.weight" in changed(before, setup.state())
    assert setup.step.losses.flush()["samples"] > 0


def test_after_a_capture_that_broke_off_the_stream_is_as_before(
    replays: Replays, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits only while it is captured is seen by nobody beforehand."""
    total = torch.zeros(3, device=CUDA)

    def add(inputs: Sequence[Tensor]) -> None:
        total.add_(inputs[0])
        if torch.cuda.is_current_stream_capturing():
            total.sum().item()

    graphs = Graphs(abandon=lambda: None)
    for _ in range(5):
        graphs.call("a", add, [torch.ones(3, device=CUDA)])
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert total.tolist() == [5.0] * 3
    assert replays.count == 0
    # Both are refused while torch takes a capture to go on.
    torch.cuda.empty_cache()
    assert torch.rand(3, device=CUDA).isfinite().all()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_whose_capture_breaks_off_trains_on(
    precision: str, replays: Replays, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(precision=precision, graph=True)
    method = setup.objective.method

    def waits_when_captured(*inputs: Any) -> Any:
        terms = method(*inputs)
        if torch.cuda.is_current_stream_capturing():
            next(iter(terms.values())).item()
        return terms

    setup.objective.method = waits_when_captured
    for _ in range(12):
        setup.update()
    torch.cuda.synchronize()
    assert replays.count == 0
    assert len(caplog.records) == 1
    assert setup.step.losses.flush()["samples"] == SIZE * (12 - setup.step.health.flush().total)


def test_a_trial_leaves_no_memory_behind(tmp_path: Path, replays: Replays) -> None:
    """In a used process the next one starts with what there was, whenever Python looks for cycles."""
    teacher = untrained_teacher(config_of(), tmp_path)
    held: list[int] = []
    gc.collect()
    gc.disable()
    try:
        for number in range(3):
            train(config_of(), tmp_path / str(number), teacher, CUDA)
            torch.cuda.empty_cache()
            held.append(torch.cuda.memory_allocated())
    finally:
        gc.enable()
    assert replays.count > 20
    assert held[1] == held[2]


METHODS: dict[str, dict[str, Any]] = {
    "mse": {"alpha": 0.5},
    "kd_mse": {"alpha": 0.5},
    "at": {"alpha": None, "lam": 100.0},
    "sobolev": {"alpha": 0.5, "lam": 1.0},
    "nst": {"alpha": None, "lam": 10.0},
    "reviewkd": {"alpha": None, "lam": 1.0},
    "dkd": {"alpha": None},
}


@pytest.mark.usefixtures("restored_determinism")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_replayed(method: str, tmp_path: Path, replays: Replays) -> None:
    distill = config_of().distill.model_copy(update={"method": method, **METHODS[method]})
    by_graphs, _ = both_forms(tmp_path, replays, {"distill": distill}, deterministic=False)
    assert by_graphs > 20


def test_a_graph_reads_what_it_is_given(replays: Replays) -> None:
    total = torch.zeros(3, device=CUDA)

    def add(inputs: Sequence[Tensor]) -> None:
        total.add_(inputs[0] * inputs[1])

    graphs = Graphs(abandon=lambda: None)
    for number in range(6):
        graphs.call(
            "a", add, [torch.full((3,), float(number), device=CUDA), torch.ones(3, device=CUDA)]
        )
    assert total.tolist() == [15.0] * 3
    assert replays.count == 4
    graphs.forget()
    graphs.call("a", add, [torch.ones(3, device=CUDA), torch.ones(3, device=CUDA)])
    assert replays.count == 4
