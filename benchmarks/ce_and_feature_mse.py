"""Four ways to train on cross-entropy plus feature MSE, and what each does to the student.

The question of docs/ce_and_feature_mse.md: may one forward serve both losses, or does BatchNorm need two?

    python benchmarks/ce_and_feature_mse.py configs/speaker_amsoftmax.yaml \
        --set data.root=/path/to/speakers --teacher runs/teachers/….safetensors --ranks 2

Every form trains the config's student from the same initial weights on the same batches:

    none                    cross-entropy alone, this project's step
    one-forward             this project's step
    one-forward-overflow    the same, with activations that overflow in one update on one rank
    unguarded-overflow      one forward in a plain GradScaler loop, the same overflow
    two-forwards            one through DDP for each loss, two backward passes (a plain loop)
    around-ddp              as two-forwards, but the second calls `student.module` (the pattern of the post)

With `--ranks` above 1 the plain loops run under DDP (all with SyncBatchNorm, where train.batchnorm.sync says so). What
each form came to is written as soon as it ends, and a second call runs the forms that are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from environment import environment
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from study.config import load_single
from trainable import ranks
from trainable.config import DistillConfig, TrialConfig
from trainable.data.loaders import open_loader
from trainable.data.store import open_dataset, open_test, open_unseen_test
from trainable.distill.objective import Objective, method_of
from trainable.distill.terms import LOSS, cross_entropy, feature_error
from trainable.engine.evaluate import Evaluator
from trainable.engine.feed import Feed
from trainable.engine.optimizers import build_optimizer, set_learning_rate
from trainable.engine.precision import Precision
from trainable.engine.schedule import learning_rates
from trainable.engine.settings import apply_settings
from trainable.engine.step import Step
from trainable.engine.verify import Verifier
from trainable.networks.blocks import BlockNetwork
from trainable.networks.build import Pictures, build_student, load_teacher
from trainable.networks.teacher import TeacherOutputs
from trainable.plan import stages
from trainable.statistics.batchnorm import batchnorm_layers

RESULTS = Path(__file__).parent / "results"
OVERFLOW = 1e6
"""Factor of one micro-batch's pictures: fp16 ends at 65,504."""

FORMS = (
    "none",
    "one-forward",
    "one-forward-overflow",
    "unguarded-overflow",
    "two-forwards",
    "around-ddp",
)

Update = Callable[[Tensor, Tensor, TeacherOutputs, int, float], None]
"""(pictures, labels, the teacher's outputs, samples on all ranks, learning rate) → one optimizer update."""


@dataclass(frozen=True)
class Case:
    """What all forms share."""

    config: TrialConfig
    teacher: Path
    overflow_at: int
    """Update, counted from 0."""
    ranks: int


class TwoForwards(nn.Module):
    """One loss a forward, so that both can go through DDP."""

    def __init__(self, student: BlockNetwork, config: DistillConfig) -> None:
        super().__init__()
        self.student, self._config = student, config

    def forward(self, images: Tensor, labels: Tensor, teacher: TeacherOutputs | None) -> Tensor:
        """The weighted cross-entropy, or with a teacher the weighted feature error; sums over samples."""
        alpha = self._config.alpha or 0.0
        if teacher is None:
            logits = self.student.with_margin(self.student(images), labels)
            return (1 - alpha) * cross_entropy(logits, labels)
        weights = self._config.feature_weights or dict.fromkeys(self.student.names[:-1], 1.0)
        features = zip(
            self.student.names, self.student.features(images), teacher.features, strict=False
        )
        errors = [weights.get(cut, 0.0) * feature_error(a, b) for cut, a, b in features]
        return alpha * torch.stack(errors).sum()


def plain_update(
    config: TrialConfig,
    module: nn.Module,
    losses: list[Callable[..., Tensor]],
    device: torch.device,
) -> Update:
    """An ordinary GradScaler loop with a forward and a backward for each of `losses`."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = build_optimizer(config.optim, parameters, device)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    precision = Precision(config.train, device)
    world = dist.get_world_size() if dist.is_initialized() else 1

    def update(
        images: Tensor, labels: Tensor, teacher: TeacherOutputs, size: int, lr: float
    ) -> None:
        set_learning_rate(optimizer, lr)
        for loss in losses:
            with precision.forward():
                value = loss(images, labels, teacher) * (world / size)
            scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        if config.train.clip is not None:
            nn.utils.clip_grad_norm_(parameters, config.train.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=False)

    return update


def guarded_update(
    config: TrialConfig, student: BlockNetwork, device: torch.device, classes: int
) -> tuple[Update, Step, nn.Module]:
    """This project's step."""
    method = method_of(config.distill, student, [(0, len(student))])
    objective = Objective(student, method)
    optimizer = build_optimizer(config.optim, objective.parameters(), device)
    step = Step(objective, optimizer, config.train, device, classes=classes)

    def update(
        images: Tensor, labels: Tensor, teacher: TeacherOutputs, size: int, lr: float
    ) -> None:
        step.accumulate(images, labels, teacher, update_size=size, last=True)
        step.finish(lr)

    return update, step, objective


def unguarded_update(
    form: str, config: TrialConfig, student: BlockNetwork, device: torch.device
) -> tuple[Update, nn.Module]:
    """The forms that anyone would write."""
    if form == "unguarded-overflow":
        objective = Objective(student, method_of(config.distill, student, [(0, len(student))]))
        wrapped = DistributedDataParallel(objective) if dist.is_initialized() else objective
        losses = [lambda *batch: wrapped(*batch)[LOSS]]
        return plain_update(config, wrapped, losses, device), wrapped
    both = TwoForwards(student, config.distill)
    wrapped: nn.Module = both
    if dist.is_initialized():
        wrapped = DistributedDataParallel(both, find_unused_parameters=True)
    second = both if form == "around-ddp" else wrapped
    losses = [lambda x, y, _: wrapped(x, y, None), lambda x, y, t: second(x, y, t)]
    return plain_update(config, wrapped, losses, device), wrapped


def train_form(form: str, case: Case, device: torch.device) -> dict[str, Any]:
    """Train one form and look at what it left."""
    config = case.config
    if form == "none":
        config = config.model_copy(update={"distill": DistillConfig(method="none")})
    apply_settings(config)
    data = open_dataset(config.data)
    pictures = Pictures(len(data.classes), data.channels, data.image_size)
    student = build_student(config, pictures).to(device, memory_format=torch.channels_last)
    teacher = load_teacher(config, pictures, case.teacher).to(device)
    feed, step = Feed(data, config, device), None
    if form.startswith(("none", "one")):
        update, step, module = guarded_update(config, student, device, pictures.classes)
    else:
        update, module = unguarded_update(form, config, student, device)
    rates = learning_rates(config, stages(config, len(student)), feed.updates_per_epoch)
    rank = dist.get_rank() if dist.is_initialized() else 0
    precision = Precision(config.train, device)
    number, seconds = 0, []
    for epoch in range(1, config.train.epochs + 1):
        module.train()
        feed.enter(epoch)
        started, plan = time.perf_counter(), feed.plan(epoch)
        for item, batch in zip(plan, feed.batches(plan, epoch), strict=True):
            images, labels = feed.augmented(batch)
            if "overflow" in form and number == case.overflow_at and rank == 0:
                images = images * OVERFLOW
            with precision.forward():
                outputs = teacher(images)
            update(images, labels, outputs, item.size, rates[number])
            number += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    ranks.average_over_ranks(student.buffers())
    median = sorted(seconds)[len(seconds) // 2]
    found: dict[str, Any] = {
        "updates": number,
        "skipped": step.health.flush().total if step is not None else None,
        "images_per_second": feed.samples_per_epoch / median,
        **state_of(student, number),
    }
    return found | scores(config, student, feed, device)


def state_of(student: BlockNetwork, updates: int) -> dict[str, Any]:
    """Of the replicas after training: are they equal, finite, and how often has BatchNorm looked?"""
    parameters = torch.cat([p.detach().flatten() for p in student.parameters()]).double()
    layers = batchnorm_layers(student).values()
    buffers = torch.cat([layer.get_buffer("running_var") for layer in layers])
    drift = torch.zeros((), dtype=torch.float64, device=parameters.device)
    if dist.is_initialized():
        first = parameters.clone()
        dist.broadcast(first, 0)
        drift = (parameters - first).norm() / first.norm()
        dist.all_reduce(drift, dist.ReduceOp.MAX)
    return {
        "replica_drift": float(drift),
        "running_variances_not_finite": int((~buffers.isfinite()).sum()),
        "parameters_not_finite": int((~parameters.isfinite()).sum()),
        "running_statistics_updates_per_update": int(layers[0].num_batches_tracked) / updates,
    }


def scores(
    config: TrialConfig, student: BlockNetwork, feed: Feed, device: torch.device
) -> dict[str, float]:
    """Closed-set accuracy and equal error rate on the test split; NaN in, NaN out."""
    test, unseen = open_test(config.data), open_unseen_test(config.data)
    loader = open_loader(test, device, 0)
    found = {
        "test_accuracy": Evaluator(loader, len(test), feed.prepare, device).score(student).accuracy
    }
    if unseen is not None:
        verifier = Verifier(open_loader(unseen, device, 0), len(unseen), feed.prepare, device)
        found["test_eer"] = verifier.eer(student)
    return found


def run_rank(rank: int, case: Case, folder: str, forms: list[str], record: Path) -> None:
    """Some forms, one after the other, on one rank; rank 0 adds what they came to to the record."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if case.ranks > 1:
        store = f"file://{folder}/store"
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=case.ranks)
    for form in forms:
        found = train_form(form, case, device)
        if rank == 0:
            print(json.dumps({"form": form, **found}), flush=True)
            known = json.loads(record.read_text())
            known["forms"][form] = found
            record.write_text(json.dumps(known, indent=1) + "\n")
    if case.ranks > 1:
        dist.destroy_process_group()


def main() -> None:
    """Run the forms into benchmarks/results/ce-and-feature-mse-<ranks>x-<device>.json."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="PATH=VALUE")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--overflow-at", type=int, default=100)
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=FORMS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    study, _ = load_single(arguments.config, arguments.settings)
    trial = study.trial({"train.workers": arguments.ranks})
    case = Case(trial, arguments.teacher.resolve(), arguments.overflow_at, arguments.ranks)
    where = environment()
    date = where.pop("date")
    setting = {
        "environment": where,
        "teacher": hashlib.sha256(case.teacher.read_bytes()).hexdigest(),
        "config": trial.model_dump(mode="json", exclude_none=True),
        "ranks": arguments.ranks,
        "overflow_at": arguments.overflow_at,
    }
    setting["config"]["data"].pop("root", None)
    device = (where["gpus"] or ["cpu"])[0].replace(" ", "-").lower()
    record = arguments.output / f"ce-and-feature-mse-{arguments.ranks}x-{device}.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    is_same = all(known.get(key) == value for key, value in setting.items())
    forms = known["forms"] if is_same else {}
    record.write_text(json.dumps({"date": date, **setting, "forms": forms}, indent=1) + "\n")
    missing = [form for form in arguments.forms if form not in forms]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (case, folder, missing, record), nprocs=arguments.ranks)
    print(f"wrote {record}")


if __name__ == "__main__":
    main()
