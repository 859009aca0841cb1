"""Something that is not finite, or a label out of range, at every place: no trace, and the right blame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.stepping import (
    Batch,
    Breakable,
    leave_out,
    noise,
    owned,
    step_of,
    update,
)
from trainable.config import TrialConfig
from trainable.distill.objective import method_of
from trainable.distill.terms import CE, FEATURE, KL, LOSS
from trainable.networks.build import Pictures, build_student, build_teacher_network
from trainable.networks.teacher import FrozenTeacher
from trainable.plan import initial_groups

METHODS: dict[str, dict[str, Any]] = {
    "kd_mse": {
        "distill": {"method": "kd_mse", "alpha": 0.5},
        "student": {"model": "mini_resnet_10_4"},
    },
    "stablekd": {
        "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"},
        "student": {"model": "mini_resnet_10_2", "projectors": "keep"},
    },
}
"""How a trial distils and into what: with StableKD, into half the teacher's width, with projectors at all cuts."""
PICTURES = Pictures(10, 3, (8, 8))
BEFORE, AFTER = 2, 20
PARTS = (8, 8)
NAN, INF = float("nan"), float("inf")


class Trial:
    """A step with everything on that could leave a trace: noise, clipping, observation, accumulation."""

    def __init__(self, sections: dict[str, Any], optim: str = "sgd") -> None:
        config = TrialConfig.model_validate(
            {
                "data": {"source": "digits"},
                "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
                "train": {"observe_every": 2, "clip": 5.0, "gradient_noise": 1e-3},
                **sections,
            }
        )
        torch.manual_seed(0)
        self.student = build_student(config, PICTURES)
        self.teacher = FrozenTeacher(build_teacher_network(config, PICTURES))
        k = int((config.distill.decomposition or "1/0")[0])
        method = method_of(config.distill, self.student, initial_groups(5, k))
        self.method = Breakable(method)
        self.step = step_of(self.student, config, {"name": optim, "lr": 0.05}, self.method)

    def updates(self, first: int, stop: int, seed: int) -> None:
        """Clean ones, with a learning rate and a batch that are functions of their number."""
        for number in range(first, stop):
            update(self.step, self.teacher, noise(seed + number), PARTS, rate(number))

    def owned(self) -> dict[str, bytes]:
        return owned(self.step, self.student)


def rate(number: int) -> float:
    return 0.01 * (1 + number % 5)


def without_the_batch(sections: dict[str, Any], seed: int = 0, optim: str = "sgd") -> Trial:
    """What a faulty update must come out as."""
    trial = Trial(sections, optim)
    trial.updates(0, BEFORE, seed)
    leave_out(trial.step)
    trial.updates(BEFORE + 1, BEFORE + 1 + AFTER, seed)
    return trial


@contextmanager
def activation(trial: Trial, batch: Batch) -> Iterator[Batch]:
    """In the middle of the student."""
    layer = trial.student.network.get_submodule("layer2")
    handle = layer.register_forward_hook(lambda *a: a[2] * NAN)
    yield batch
    handle.remove()


@contextmanager
def gradient(trial: Trial, batch: Batch) -> Iterator[Batch]:
    """Of one parameter, where all that comes before is finite."""
    parameter = trial.student.network.get_parameter("layer3.0.conv1.weight")
    handle = parameter.register_hook(lambda g: g * INF)
    yield batch
    handle.remove()


@contextmanager
def variance(trial: Trial, batch: Batch) -> Iterator[Batch]:
    """The square overflows, 1/√inf is 0, and loss and gradient stay finite."""
    layer = trial.student.network.get_submodule("layer1.0.bn1")
    handle = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1e25,))
    yield batch
    handle.remove()


def in_term(name: str) -> Callable[[Trial, Batch], AbstractContextManager[Batch]]:
    @contextmanager
    def broken(trial: Trial, batch: Batch) -> Iterator[Batch]:
        trial.method.term = name
        yield batch
        trial.method.term = None

    return broken


def in_batch(change: Callable[[Tensor, Tensor], None]) -> Callable[..., Any]:
    @contextmanager
    def broken(trial: Trial, batch: Batch) -> Iterator[Batch]:
        del trial
        images, labels = batch[0].clone(), batch[1].clone()
        change(images, labels)
        yield images, labels

    return broken


def pixel(images: Tensor, labels: Tensor) -> None:
    images[11, 1, 4, 4] = INF


def class_too_large(images: Tensor, labels: Tensor) -> None:
    labels[9] = 10


def class_below_zero(images: Tensor, labels: Tensor) -> None:
    labels[9] = -100


FAULTS: dict[str, tuple[Callable[..., AbstractContextManager[Batch]], str, str]] = {
    "picture": (in_batch(pixel), "input", "input"),
    "label": (in_batch(class_too_large), "label", "label"),
    "negative label": (in_batch(class_below_zero), "label", "label"),
    "activation": (activation, "ce", "feature"),
    "ce": (in_term(CE), "ce", "ce"),
    "kl": (in_term(KL), "kl", "kl"),
    "feature": (in_term(FEATURE), "feature", "feature"),
    "loss": (in_term(LOSS), "loss", "loss"),
    "gradient": (gradient, "layer3", "layer3"),
    "variance": (variance, "batchnorm", "batchnorm"),
}
"""How, and the place to be blamed with kd_mse (one graph) and with stablekd (one a group)."""


@pytest.fixture(scope="module")
def clean() -> dict[str, dict[str, bytes]]:
    """By method."""
    return {name: without_the_batch(sections).owned() for name, sections in METHODS.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_update_leaves_no_trace_and_is_blamed_on_its_place(
    fault: str, method: str, clean: dict[str, dict[str, bytes]]
) -> None:
    broken, *places = FAULTS[fault]
    trial = Trial(METHODS[method])
    trial.updates(0, BEFORE, seed=0)
    before = trial.owned()
    assert any(name.endswith("num_batches_tracked") for name in before)
    assert any(name.startswith("projectors.") for name in before) == (method == "stablekd")
    with broken(trial, noise(BEFORE)) as batch:
        update(trial.step, trial.teacher, batch, PARTS, rate(BEFORE))
    assert changed(before, trial.owned()) == []
    skipped = trial.step.health.flush()
    assert skipped == (1, {places[list(METHODS).index(method)]: 1})
    trial.updates(BEFORE + 1, BEFORE + 1 + AFTER, seed=0)
    assert changed(clean[method], trial.owned()) == []
    assert trial.step.health.flush() == (0, {})


@pytest.mark.parametrize("fault", ["picture", "gradient"])
def test_adamw_forgets_a_faulty_update_too(fault: str) -> None:
    """Its moments and its count of steps."""
    sections = METHODS["kd_mse"]
    trial = Trial(sections, "adamw")
    trial.updates(0, BEFORE, seed=0)
    before = trial.owned()
    assert "optimizer 0 step" in before
    with FAULTS[fault][0](trial, noise(BEFORE)) as batch:
        update(trial.step, trial.teacher, batch, PARTS, rate(BEFORE))
    assert changed(before, trial.owned()) == []
    trial.updates(BEFORE + 1, BEFORE + 1 + AFTER, seed=0)
    assert changed(without_the_batch(sections, optim="adamw").owned(), trial.owned()) == []


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name, value in before.items() if value != after[name]]


ON_RANKS = ("picture", "label", "ce", "loss", "gradient", "variance", "activation")
FAULTY_RANK = 1
"""The rank that the fault is on."""


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {
        method: {
            "clean": digests(without_the_batch(sections, seed=1000 * rank).owned()),
            **{fault: with_fault_on_one_rank(fault, sections, rank) for fault in ON_RANKS},
        }
        for method, sections in METHODS.items()
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def with_fault_on_one_rank(fault: str, sections: dict[str, Any], rank: int) -> dict[str, Any]:
    seed = 1000 * rank
    trial = Trial(sections)
    trial.updates(0, BEFORE, seed)
    before = trial.owned()
    batch = noise(seed + BEFORE)
    if rank == FAULTY_RANK:
        with FAULTS[fault][0](trial, batch) as broken:
            update(trial.step, trial.teacher, broken, PARTS, rate(BEFORE))
    else:
        update(trial.step, trial.teacher, batch, PARTS, rate(BEFORE))
    left = changed(before, trial.owned())
    skipped = trial.step.health.flush()
    place = trial.step.inputs.place()
    trial.updates(BEFORE + 1, BEFORE + 1 + AFTER, seed)
    return {
        "changed": left,
        "skipped": dict(skipped.by_place),
        "place": None if place is None else tuple(place),
        "end": digests(trial.owned()),
    }


def digests(state: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(value).hexdigest() for name, value in state.items()}


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One spawn for all; by rank, method and fault."""
    folder = tmp_path_factory.mktemp("faults")
    run_on_ranks(_rank, str(folder), ranks=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", ON_RANKS)
def test_a_fault_on_one_rank_leaves_no_trace_on_any(
    fault: str, method: str, on_ranks: list[dict[str, Any]]
) -> None:
    _, *places = FAULTS[fault]
    blamed = places[list(METHODS).index(method)]
    for rank in (0, 1):
        found = on_ranks[rank][method][fault]
        assert found["changed"] == []
        assert found["skipped"] == {blamed: 1}
        assert found["end"] == on_ranks[rank][method]["clean"]


@pytest.mark.parametrize("fault", ["picture", "label"])
def test_the_rank_with_the_bad_sample_knows_where_it_is(
    fault: str, on_ranks: list[dict[str, Any]]
) -> None:
    assert on_ranks[0]["kd_mse"][fault]["place"] is None
    position = {"picture": 11 - 8, "label": 9 - 8}[fault]
    assert on_ranks[1]["kd_mse"][fault]["place"] == (BEFORE, 1, position)


def test_the_ranks_parameters_stay_equal_and_their_running_statistics_their_own(
    on_ranks: list[dict[str, Any]],
) -> None:
    first, second = (on_ranks[rank]["kd_mse"]["clean"] for rank in (0, 1))
    assert first["network.fc.weight"] == second["network.fc.weight"]
    assert first["network.bn1.running_mean"] != second["network.bn1.running_mean"]
