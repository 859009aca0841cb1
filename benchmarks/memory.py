"""What activation checkpointing saves of a GPU's memory, and whether it changes what is learned.

    python benchmarks/memory.py                          on a GPU, ResNet101 in bf16 and fp16, 256 pictures of 32×32

The product's step without a teacher (channels_last, SGD with momentum, a GradScaler in fp16), deterministic, on
pictures of noise: a few updates with each block's activations kept for the backward pass, and the same updates with
them computed again. Peaks are of what tensors take, networks and optimizer included. Equality is to the bit, of
BatchNorm's running statistics (all its buffers) and of all weights, after the last update. Written to
benchmarks/results/memory-<gpu>.json.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from environment import environment
from torch import Tensor

from trainable.config import OptimConfig, TrialConfig
from trainable.distill.objective import Objective
from trainable.distill.plain import Plain
from trainable.engine.optimizers import build_optimizer
from trainable.engine.settings import apply_settings
from trainable.engine.step import UPDATES, Step
from trainable.networks.build import Pictures, build_student

RESULTS = Path(__file__).parent / "results"
PICTURES = Pictures(100, 3, (32, 32))
CUDA = torch.device("cuda")
LR = 0.01


class Trained(NamedTuple):
    """A network after its updates."""

    peak_gib: float
    updates: int
    """Taken: fp16's first ones may be skipped, while GradScaler looks for its scale."""
    parameters: dict[str, Tensor]
    """By name, on the host."""
    buffers: dict[str, Tensor]
    """BatchNorm's."""


def trained(options: argparse.Namespace, precision: str, *, recompute: bool) -> Trained:
    """The same network on the same pictures, whether its blocks are computed again or not."""
    config = config_of(options, precision, recompute=recompute)
    apply_settings(config)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    student = build_student(config, PICTURES)
    objective = Objective(student, Plain()).to(CUDA).train()
    objective.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(OptimConfig(lr=LR), objective.parameters(), CUDA)
    step = Step(objective, optimizer, config.train, CUDA, classes=PICTURES.classes)
    generator = torch.Generator().manual_seed(1)
    for _ in range(options.updates):
        images = torch.randn(options.batch, 3, 32, 32, generator=generator).to(CUDA)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, PICTURES.classes, (options.batch,), generator=generator).to(CUDA)
        step.accumulate(images, labels, None, update_size=options.batch, last=True)
        step.finish(LR)
    taken = int(step.gradients.flush().get(UPDATES, 0))
    peak = torch.cuda.max_memory_allocated() - held
    on_host = (
        {name: tensor.detach().cpu() for name, tensor in tensors}
        for tensors in (student.named_parameters(), student.named_buffers())
    )
    return Trained(peak / 2**30, taken, *on_host)


def config_of(options: argparse.Namespace, precision: str, *, recompute: bool) -> TrialConfig:
    """Of a trial that takes these steps."""
    train = {"precision": precision, "deterministic": True, "activation_checkpointing": recompute}
    return TrialConfig.model_validate(
        {
            "data": {"source": "digits", "batch_size": options.batch},
            "student": {"model": options.student},
            "distill": {"method": "none"},
            "train": train,
        }
    )


def compared(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Peaks without and with activation checkpointing, and what is the same in the end."""
    without, with_it = (trained(options, precision, recompute=each) for each in (False, True))
    saved = 1 - with_it.peak_gib / without.peak_gib
    found = {
        "peak_gib": without.peak_gib,
        "peak_gib_checkpointed": with_it.peak_gib,
        "saved": saved,
        "updates": [without.updates, with_it.updates],
        "running_statistics_are_equal": are_equal(without.buffers, with_it.buffers),
        "weights_are_equal": are_equal(without.parameters, with_it.parameters),
    }
    print(
        f"{precision}: peak {without.peak_gib:.2f} GiB, with activation checkpointing "
        f"{with_it.peak_gib:.2f} GiB ({saved:.1%} less); running statistics "
        f"{'equal' if found['running_statistics_are_equal'] else 'DIFFERENT'}, weights "
        f"{'equal' if found['weights_are_equal'] else 'DIFFERENT'}"
    )
    return found


def are_equal(these: dict[str, Tensor], those: dict[str, Tensor]) -> bool:
    """To the bit."""
    return all(torch.equal(tensor, those[name]) for name, tensor in these.items())


def main() -> None:
    """Measure, print, write."""
    made = parser()
    options = made.parse_args()
    if not torch.cuda.is_available():
        made.error("it is a GPU's memory that is measured, and torch sees no GPU here")
    found = {precision: compared(options, precision) for precision in options.precisions}
    where = environment()
    settings = {k: v for k, v in vars(options).items() if k != "output"}
    record = {"environment": where, "settings": settings, "precisions": found}
    path = options.output / f"memory-{where['gpus'][0].replace(' ', '-').lower()}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--student", default="resnet101")
    made.add_argument("--precisions", nargs="+", default=["bf16", "fp16"])
    made.add_argument("--batch", type=int, default=256)
    made.add_argument("--updates", type=int, default=10)
    made.add_argument("--output", type=Path, default=RESULTS)
    return made


if __name__ == "__main__":
    main()
