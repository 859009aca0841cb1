"""What activation checkpointing saves on a CUDA device, and that it changes nothing else."""

from __future__ import annotations

import gc
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from trainable.config import OptimConfig, TrainConfig
from trainable.distill.objective import Objective
from trainable.distill.plain import Plain
from trainable.engine.optimizers import build_optimizer
from trainable.engine.step import UPDATES, Step
from trainable.networks.blocks import BlockNetwork
from trainable.networks.zoo import Pictures, build

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
BATCH, TRAINED = 256, 10


class Measured(NamedTuple):
    """Ten updates of a ResNet101."""

    peak_gib: float
    state: dict[str, Tensor]
    """On the host."""


def measured(precision: str, *, recompute: bool) -> Measured:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    torch.manual_seed(0)
    built = build("resnet101", Pictures(100, 3, (32, 32)), path="student.model")
    student = BlockNetwork(built.network, built.cuts)
    student.recompute = recompute
    objective = Objective(student, Plain()).to(CUDA).train()
    objective.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(OptimConfig(lr=0.01), objective.parameters(), CUDA)
    config = TrainConfig.model_validate({"precision": precision})
    step = Step(objective, optimizer, config, CUDA, classes=100)
    generator = torch.Generator().manual_seed(1)
    for _ in range(TRAINED):
        images = torch.randn(BATCH, 3, 32, 32, generator=generator).to(CUDA)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 100, (BATCH,), generator=generator).to(CUDA)
        step.accumulate(images, labels, None, update_size=BATCH, last=True)
        step.finish(0.01)
    assert step.gradients.flush()[UPDATES] > 0
    peak = torch.cuda.max_memory_allocated() - held
    state = {name: value.cpu().clone() for name, value in student.state_dict().items()}
    return Measured(peak / 2**30, state)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_recomputation_saves_memory_and_ends_in_the_same_bits(
    precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    without, with_it = (measured(precision, recompute=recompute) for recompute in (False, True))
    saved = 1 - with_it.peak_gib / without.peak_gib
    with capsys.disabled():
        print(
            f"\nresnet101, {BATCH} pictures of 32 x 32, {precision}: peak {without.peak_gib:.2f} GiB, "
            f"with activation checkpointing {with_it.peak_gib:.2f} GiB ({saved:.0%} less)"
        )
    assert saved >= 0.3
    assert without.state.keys() == with_it.state.keys()
    different = [n for n, v in without.state.items() if not torch.equal(v, with_it.state[n])]
    assert different == []
    tracked = without.state["network.layer3.22.bn3.num_batches_tracked"]
    assert 0 < int(tracked) <= TRAINED
