"""Updates of two ranks (NCCL), each with a GPU, as CUDA graphs: in the bits of those kernel by kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.stepping import CAPTURED, STABLE, Setup, kernel_by_kernel, late_weights
from tests.gpu.test_graph import STABLE as STAGES
from tests.gpu.test_graph import Replays
from tests.gpu.test_trial import config_of
from tests.gpu.test_two_gpus import KD, said, share_of
from tests.gpu.two_ranks import on_two_ranks
from tests.trainable.trials import numbers, train, untrained_teacher
from trainable import ranks
from trainable.config import TrialConfig
from trainable.engine import loop
from trainable.engine.checkpoint import BEST
from trainable.engine.step import Step
from trainable.errors import TrainingError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(200),
]
UPDATES, BAD = 14, 9
"""Updates, and that one of them, counted from 0, whose pictures overflow on rank 1."""
LATE = (
    "weights' gradients late",
    "SyncBatchNorm, weights' gradients late",
    "StableKD's groups, weights' gradients late",
)
STEPS: dict[str, dict[str, Any]] = {
    "fp16": {"distill": KD, "precision": "fp16"},
    "SyncBatchNorm": {"distill": KD, "precision": "fp16", "sync": True},
    "accumulated": {"distill": KD, "precision": "fp16", "accumulate": 4, "clip": 5.0},
    LATE[0]: {"distill": KD, "precision": "fp16"},
    LATE[1]: {"distill": KD, "precision": "fp16", "sync": True},
    LATE[2]: {"distill": STABLE, "precision": "fp16"},
    "all": {
        "distill": STABLE,
        "precision": "fp16",
        "accumulate": 4,
        "clip": 5.0,
        "sync": True,
        "observe_every": 2,
    },
}
TRIALS: dict[str, dict[str, Any]] = {
    "kd": {"epochs": 2},
    "stages": {"epochs": 3, "accumulate": 4, "clip": 1.0, "batchnorm": {"sync": True}},
    "sync": {"epochs": 3, "batchnorm": {"sync": True}},
    "sync, compiled": {"epochs": 3, "compile": True, "batchnorm": {"sync": True}},
}
KEPT: list[BaseException] = []
"""Errors that somebody holds, and with them all that was on their way."""


@contextmanager
def deterministic() -> Iterator[Replays]:
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    with pytest.MonkeyPatch.context() as patch:
        yield Replays(patch)


def on_the_host(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in state.items()}


def steps(device: torch.device, folder: Path) -> dict[str, Any]:
    """Each case kernel by kernel and by graphs; and how many weights' gradients came late."""
    del folder
    found: dict[str, Any] = {}
    with deterministic() as launches:
        for name, settings in STEPS.items():
            with pytest.MonkeyPatch.context() as patch:
                late = late_weights(patch) if name in LATE else []
                found[name] = {
                    "eager": form_of(Setup(**settings, device=device), launches),
                    "graph": form_of(Setup(**settings, device=device, graph=True), launches),
                    "late": len(late),
                }
    return found


def form_of(setup: Setup, launches: Replays) -> dict[str, Any]:
    """Where some updates end; then what is said of waits in some replays."""
    before = launches.count
    setup.share = share_of(ranks.rank())
    setup.prepare()
    for number in range(UPDATES):
        is_bad = number == BAD and ranks.rank() == 1
        setup.update(factor=float("inf") if is_bad else 1.0)
    found = {"skipped": setup.step.health.flush().total, "scale": setup.scale}
    found["state"] = on_the_host(setup.state())
    found["launches"] = launches.count - before
    if setup.graphs is not None:
        found["waits"] = said(lambda: [setup.update() for _ in range(5)])
        torch.cuda.synchronize()
        setup.graphs.forget()
    return found


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return on_two_ranks(steps, tmp_path_factory.mktemp("steps"))


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Of what is not the same to the bit: |a − b|₂ / |b|₂."""
    assert ours.keys() == theirs.keys()
    return {
        name: float((a.double() - b.double()).norm() / b.double().norm())
        for name, a in ours.items()
        if not torch.equal(a, b := theirs[name])
    }


@pytest.mark.parametrize("name", STEPS)
def test_updates_by_graph_end_in_the_bits_of_those_without(name: str, stepped: list[Any]) -> None:
    """With one that is skipped on both ranks because of one."""
    for results in stepped:
        eager, graph = results[name]["eager"], results[name]["graph"]
        assert differences(graph["state"], eager["state"]) == {}
        assert (graph["skipped"], graph["scale"]) == (eager["skipped"], eager["scale"])
        assert graph["skipped"] >= 1
        assert eager["launches"] == 0
        assert graph["launches"] == UPDATES - CAPTURED + 1
        assert (results[name]["late"] > 0) == (name in LATE)


@pytest.mark.parametrize("name", STEPS)
def test_both_ranks_have_the_same_weights(name: str, stepped: list[Any]) -> None:
    """And momentum; the statistics of BatchNorm are each rank's own, unless they are of both."""
    first, second = (results[name]["graph"]["state"] for results in stepped)
    own = ("losses",) if STEPS[name].get("sync") else ("losses", "running_mean", "running_var")
    found = differences(first, second)
    assert {key: value for key, value in found.items() if not key.endswith(own)} == {}


@pytest.mark.parametrize("name", STEPS)
def test_replays_wait_for_nothing(name: str, stepped: list[Any]) -> None:
    assert [results[name]["graph"]["waits"] for results in stepped] == ["nothing"] * 2


def trial_config(name: str) -> TrialConfig:
    tree = config_of(workers=2, cuda_graph=True, **TRIALS[name]).model_dump()
    if name == "stages":
        tree["distill"] |= STAGES
    return TrialConfig.model_validate(tree)


class Failing(Step):
    """Fails in its tenth update, when there are graphs."""

    def count(self) -> None:
        super().count()
        if self._updates == 10:
            raise ValueError("stopped by the test")


def trials(device: torch.device, folder: Path) -> dict[str, Any]:
    """Whole trials in both forms; and one that fails, whose error is still held as the process group goes."""
    teacher = folder / "teacher.safetensors"
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        launches = Replays(patch)
        for name in TRIALS:
            for graph in (False, True):
                before, form = launches.count, f"{name} {graph}"
                with pytest.MonkeyPatch.context() as one_by_one:
                    if not graph:
                        kernel_by_kernel(one_by_one)
                    records = numbers(train(trial_config(name), folder / form, teacher, device))
                found[form] = {"records": records, "launches": launches.count - before}
        patch.setattr(loop, "Step", Failing)
        with pytest.raises(TrainingError, match="stopped by the test") as caught:
            train(trial_config("kd"), folder / "fails", teacher, device)
        KEPT.append(caught.value)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("trials")
    untrained_teacher(config_of(), folder)
    return folder, on_two_ranks(trials, folder)


@pytest.mark.parametrize("name", TRIALS)
def test_trials_by_graph_end_in_the_bits_of_those_without(
    name: str, trained: tuple[Path, list[Any]]
) -> None:
    folder, found = trained
    for results in found:
        graph, eager = results[f"{name} True"], results[f"{name} False"]
        assert graph["records"] == eager["records"] == found[0][f"{name} False"]["records"]
        assert eager["launches"] == 0
        assert graph["launches"] >= 30
    best = [(folder / f"{name} {graph}" / BEST).read_bytes() for graph in (False, True)]
    assert best[0] == best[1]


def test_syncbatchnorm_trains_alike_compiled(trained: tuple[Path, list[Any]]) -> None:
    """In torch's kernels, where it has the project's otherwise."""
    _, (results, _) = trained
    found, expected = (
        [record["train/loss"] for record in results[f"{name} True"]["records"]]
        for name in ("sync, compiled", "sync")
    )
    assert found == pytest.approx(expected, rel=0.05)
    assert expected[-1] < expected[0]


def refused(device: torch.device, does: Callable[[Tensor], None]) -> dict[str, Any]:
    """Updates in which a method does something to its loss that a graph cannot."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage().partition(" graphs: ")[2])
    log = logging.getLogger("trainable.engine.graph")
    log.addHandler(handler)
    with deterministic() as launches:
        setup = Setup(precision="fp16", sync=True, accumulate=2, graph=True, device=device)
        setup.share = share_of(ranks.rank())
        setup.prepare()
        method = setup.objective.method

        def hindered(*inputs: Any) -> Any:
            terms = method(*inputs)
            does(next(iter(terms.values())))
            return terms

        setup.objective.method = hindered
        for _ in range(12):
            setup.update()
        torch.cuda.synchronize()
    log.removeHandler(handler)
    return {"lines": lines, "launches": launches.count, "state": on_the_host(setup.state())}


def waits_on_rank_one(term: Tensor) -> None:
    if ranks.rank() == 1:
        term.item()


def waits_when_captured(term: Tensor) -> None:
    if torch.cuda.is_current_stream_capturing():
        term.item()


def waits_when_captured_on_rank_one(term: Tensor) -> None:
    if ranks.rank() == 1:
        waits_when_captured(term)


def refused_on_one(device: torch.device, folder: Path) -> dict[str, Any]:
    del folder
    return refused(device, waits_on_rank_one)


def broken_off_on_both(device: torch.device, folder: Path) -> dict[str, Any]:
    del folder
    return refused(device, waits_when_captured)


def broken_off_on_one(device: torch.device, folder: Path) -> dict[str, Any]:
    del folder
    return refused(device, waits_when_captured_on_rank_one)


OTHER, WAITS = "another rank cannot be captured", "a network or method waits for the device"


@pytest.mark.parametrize(
    ("act", "reasons"),
    [
        (refused_on_one, (OTHER, WAITS)),
        (broken_off_on_both, ("", "")),
        (broken_off_on_one, (OTHER, "")),
    ],
)
def test_what_one_rank_cannot_capture_none_does(
    act: Callable[..., Any], reasons: tuple[str, str], tmp_path: Path
) -> None:
    """They train on in step; CUDA has words of its own for a capture that broke off."""
    found = on_two_ranks(act, tmp_path)
    for results, reason in zip(found, reasons, strict=True):
        assert results["launches"] == 0
        assert len(results["lines"]) == 1
        assert results["lines"][0] == reason or not reason
    parameters = [name for name in found[0]["state"] if name.startswith("network.")]
    assert len(parameters) > 10
    for name in parameters:
        assert torch.equal(found[0]["state"][name], found[1]["state"][name]), name
