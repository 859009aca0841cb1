"""What every method owes, whatever it minimises."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainable.methods import (
    CONV,
    HEADS,
    MARGIN,
    METHODS,
    SCALE,
    Batch,
    Case,
    case,
    directions_of_logits,
    noise,
)
from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.stepping import gradients_at_step
from tests.trainable.trials import CPU, train, untrained_teacher
from trainable import ranks, records
from trainable.config import DistillConfig, OptimConfig, TrainConfig, TrialConfig
from trainable.distill.terms import CE, FEATURE, KL, LOSS, cross_entropy, kd_divergence
from trainable.engine.optimizers import build_optimizer
from trainable.engine.settings import apply_settings
from trainable.engine.step import Step
from trainable.methods import METHODS as TRAITS
from trainable.networks import teacher as teachers
from trainable.networks.heads import AMSoftmax

TERMS = {
    "none": {LOSS, CE},
    "kd": {LOSS, CE, KL},
    "mse": {LOSS, CE, FEATURE},
    "kd_mse": {LOSS, CE, KL, FEATURE},
    "at": {LOSS, CE, FEATURE},
    "sobolev": {LOSS, CE, KL, FEATURE},
    "nst": {LOSS, CE, FEATURE},
    "reviewkd": {LOSS, CE, FEATURE},
    "dkd": {LOSS, CE, KL},
    "deit": {LOSS, CE, KL},
    "stablekd": {LOSS, CE, KL, FEATURE},
}
PAIRS = [
    (name, head)
    for name, distill in METHODS.items()
    for head in HEADS
    if head == "linear" or distill["method"] != "deit"
]
SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def method(request: pytest.FixtureRequest) -> Case:
    """Each method, with each head that its students can have; in train mode."""
    found = case(*request.param)
    found.module.train()
    return found


@pytest.fixture
def batch() -> Batch:
    return noise()


@pytest.fixture
def same_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn for a sample does not depend on its batch."""
    monkeypatch.setattr(teachers, "random_directions", directions_of_logits)


def norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Those that hold parameters themselves; the others may be used twice a forward."""
    return {
        name: module
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not any(module.children())
    }


def heard(student: nn.Module) -> dict[str, list[Tensor]]:
    """Will hold what the last layers say in each forward, by name."""
    said: dict[str, list[Tensor]] = {}
    for name, module in layers(student).items():
        if name.split(".")[1] in ("fc", "head"):
            said[name.rpartition(".")[2]] = outputs = []
            module.register_forward_hook(lambda *call, to=outputs: to.append(call[2]))
    return said


class WithoutWaiting(TorchDispatchMode):
    """Raises where an operation would bring a device's number to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert name not in SYNCS, f"{name} waits for the device"
        assert not masks, "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


def test_every_method_has_a_case() -> None:
    assert {distill["method"] for distill in METHODS.values()} == set(TRAITS) == set(TERMS)


class TestEveryMethod:
    def test_the_loss_is_finite_and_reaches_every_parameter(
        self, method: Case, batch: Batch
    ) -> None:
        """Those of the student and of the method."""
        terms = method.terms(batch)
        assert all(term.shape == () and term.isfinite() for term in terms.values())
        found = method.gradients(lambda: method.terms(batch)[LOSS])
        assert found.keys() == dict(method.module.named_parameters()).keys()
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in found.values())

    def test_one_student_forward_a_micro_batch(self, method: Case, batch: Batch) -> None:
        calls = dict.fromkeys(layers(method.student), 0)

        def count(name: str) -> None:
            calls[name] += 1

        for name, module in layers(method.student).items():
            module.register_forward_pre_hook(lambda *_, name=name: count(name))
        for number in (1, 2, 3):
            method.terms(batch)[LOSS].backward()
            assert set(calls.values()) == {number}

    @pytest.mark.usefixtures("same_directions")
    def test_terms_and_gradients_are_sums_over_samples(self, method: Case, batch: Batch) -> None:
        """In eval mode, where BatchNorm does not tie them."""
        method.module.eval()
        images, labels = batch
        first, second = ((images[part], labels[part]) for part in (slice(0, 5), slice(5, 16)))
        whole, halves = method.terms(batch), [method.terms(part) for part in (first, second)]
        for term, value in whole.items():
            torch.testing.assert_close(halves[0][term] + halves[1][term], value)
        together = method.gradients(lambda: method.terms(batch)[LOSS])
        one, other = (
            method.gradients(lambda part=part: method.terms(part)[LOSS]) for part in (first, second)
        )
        differences = [gradient - one[n] - other[n] for n, gradient in together.items()]
        assert norm(differences) <= 1e-5 * norm(together.values())

    def test_the_teacher_gets_no_gradient_and_stays_as_it_is(
        self, method: Case, batch: Batch
    ) -> None:
        before = {n: t.clone() for n, t in method.teacher.state_dict().items()}
        outputs = method.ask(batch[0])
        assert not any(t.requires_grad for t in (*outputs.features, outputs.logits))
        assert outputs.slope is None or not outputs.slope.gradient.requires_grad
        method.module(*batch, outputs)[LOSS].backward()
        assert all(p.grad is None for p in method.teacher.parameters())
        for name, tensor in method.teacher.state_dict().items():
            assert torch.equal(tensor, before[name])

    def test_terms_are_told_as_the_records_say(self, method: Case, batch: Batch) -> None:
        """CE with the head's margin and KL without it, both unweighted and of one forward."""
        outputs, said = method.ask(batch[0]), heard(method.student)
        terms = method.module(*batch, outputs)
        assert set(terms) == TERMS[method.config.method]
        assert all(len(logits) == 1 for logits in said.values())
        first, last = said[next(iter(said))][0], said[list(said)[-1]][0]
        angular = any(isinstance(module, AMSoftmax) for module in method.student.modules())
        offset = SCALE * MARGIN * F.one_hot(batch[1], 10) if angular else 0.0
        torch.testing.assert_close(terms[CE], cross_entropy(first - offset, batch[1]))
        if KL in terms:
            expected = kd_divergence(last, outputs.logits, method.config.temperature)
            torch.testing.assert_close(terms[KL], expected)

    def test_bf16_autocast_gives_fp32_terms_near_those_of_fp32(
        self, method: Case, batch: Batch
    ) -> None:
        torch.manual_seed(5)
        expected = method.terms(batch)
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            terms = method.terms(batch)
        for name, term in terms.items():
            assert term.dtype == torch.float32
            assert term.item() == pytest.approx(expected[name].item(), rel=0.05), name
        terms[LOSS].backward()
        assert all(
            p.grad is not None and p.grad.isfinite().all() for p in method.module.parameters()
        )

    def test_sure_networks_that_disagree_give_finite_losses_and_gradients(
        self, method: Case, batch: Batch
    ) -> None:
        """Logits of ±1e4, where probabilities are 0 and 1 in fp32."""
        sure = 1e4 * (-1.0) ** torch.arange(10)
        with torch.no_grad():
            method.teacher.blocks.network.get_parameter("fc.bias").copy_(sure)
            for name, module in layers(method.student).items():
                if isinstance(module, AMSoftmax):
                    module.scale = 1e4
                elif name.split(".")[1] in ("fc", "head"):
                    module.get_parameter("bias").copy_(-sure)
        outputs = method.ask(batch[0])
        assert outputs.logits.abs().amin() > 9e3
        assert all(term.isfinite() for term in method.module(*batch, outputs).values())
        found = method.gradients(lambda: method.module(*batch, outputs)[LOSS])
        assert all(gradient.isfinite().all() for gradient in found.values())

    def test_nothing_waits_for_the_device(self, method: Case, batch: Batch) -> None:
        with WithoutWaiting():
            method.terms(batch)[LOSS].backward()

    def test_the_kept_student_is_the_network_alone(self, method: Case) -> None:
        """What the method trains of its own is not in the weights that are kept."""
        own = {id(p) for p in method.student.network.parameters()}
        assert {id(p) for p in method.student.parameters()} == own
        blocks = dict(method.module.block_parameters())
        in_blocks = [id(p) for parameters in blocks.values() for p in parameters]
        assert sorted(in_blocks) == sorted(id(p) for p in method.module.parameters())


def test_a_wait_would_be_seen() -> None:
    with WithoutWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(3).sum().item()
    with WithoutWaiting(), pytest.raises(AssertionError, match="mask"):
        torch.ones(3)[torch.tensor([True, False, True])]


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_learns_with_it(name: str, tmp_path: Path) -> None:
    """With what a step can have: bf16, accumulation, recomputation, clipping, noise."""
    config = TrialConfig.model_validate(
        {
            "data": {"source": "digits", "val_fraction": 0.9, "batch_size": 72},
            "teacher": {"model": CONV, "checkpoint": "/nowhere.safetensors"},
            "student": {"model": "vit_t8" if name.startswith("deit") else CONV},
            "distill": METHODS[name],
            "optim": {"lr": 0.01},
            "train": {
                "epochs": 3,
                "precision": "bf16",
                "accumulate": 2,
                "activation_checkpointing": True,
                "clip": 5.0,
                "gradient_noise": 1e-4,
            },
            "resources": {"gpus_per_worker": 0},
        }
    )
    found = train(config, tmp_path, untrained_teacher(config, tmp_path))
    ce = [record.metrics[records.TRAIN_CE] for record in found]
    assert ce[-1] < ce[0]
    assert [record.metrics[records.AMP_SKIPPED] for record in found] == [0, 0, 0]
    apply_settings(config.model_copy(update={"distill": DistillConfig()}))  # fused attention again


# ------------------------------------------------------------------------------------------ two ranks
def update(name: str, workers: int, parts: int) -> list[Tensor]:
    """The gradient of an update of 16 pictures, of this rank's share in so many micro-batches."""
    found = case(name)
    objective = found.module.eval()
    optimizer = build_optimizer(OptimConfig(lr=0.1), objective.parameters(), CPU)
    step = Step(objective, optimizer, TrainConfig(), CPU, classes=10)
    gradients = gradients_at_step(step)
    images, labels = (tensor.chunk(workers)[ranks.rank()] for tensor in noise())
    chunks = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
    for number, (part, own) in enumerate(chunks, start=1):
        step.accumulate(part, own, found.ask(part), update_size=16, last=number == parts)
    step.finish(0.1)
    return gradients[0]


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    teachers.random_directions = directions_of_logits
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({name: update(name, 2, 2) for name in METHODS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """One spawn for all methods."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_ranks(_rank, str(folder), ranks=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.usefixtures("same_directions")
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_have_the_gradient_of_one(
    name: str, on_ranks: list[dict[str, list[Tensor]]]
) -> None:
    alone = update(name, 1, 1)
    first, second = (results[name] for results in on_ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    difference = norm([a - b for a, b in zip(first, alone, strict=True)])
    assert difference <= 1e-5 * norm(alone)
