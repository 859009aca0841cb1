"""A trial from its first epoch to its last: `run(task, report, device)`.

A plain function of its arguments: it knows nothing of Ray, of the study, or of who listens. With a
process group it is run by every rank; the records that it reports are the same on all of them, times
and rates aside.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainable import ranks, records
from trainable.config import TrialConfig
from trainable.data.augment import Normalizer, augment
from trainable.data.loaders import open_loader
from trainable.data.sampling import updates
from trainable.data.store import Dataset, open_dataset
from trainable.distill.objective import Objective, method_of
from trainable.engine.checkpoint import CheckpointFolder
from trainable.engine.evaluate import Evaluator
from trainable.engine.optimizers import build_optimizer
from trainable.engine.schedule import learning_rates
from trainable.engine.settings import apply_settings, seed_everything
from trainable.engine.step import Step
from trainable.engine.summary import batchnorm_metrics, training_metrics, validation_metrics
from trainable.networks.build import Pictures, build_student, load_teacher
from trainable.networks.teacher import FrozenTeacher
from trainable.plan import Stage, stages, update_sizes
from trainable.records import EpochRecord

Report = Callable[[EpochRecord], None]


@dataclass(frozen=True)
class TrialTask:
    """What a worker needs to run a trial."""

    config: TrialConfig
    folder: Path
    """Absolute; the trial's own, on storage that all its workers see."""
    teacher_weights: Path | None
    """Absolute; None where the method needs no teacher."""


def run(task: TrialTask, report: Report, device: torch.device) -> None:
    """Train the task's student on this rank, from its last checkpoint if there is one.

    `report` gets the record of every epoch, on every rank; those before the checkpoint once more and
    first, since who listened may have died before it heard of the last one.
    """
    apply_settings(task.config)
    trial = _Trial(task, device)
    trial.resume()
    for record in trial.records:
        report(record)
    for epoch in range(len(trial.records) + 1, task.config.train.epochs + 1):
        report(trial.train_epoch(epoch))


class _Trial:
    """The parts of a running trial, and what an epoch does with them."""

    def __init__(self, task: TrialTask, device: torch.device) -> None:
        config = task.config
        self._config, self._device = config, device
        data = open_dataset(config.data)
        pictures = Pictures(len(data.classes), data.channels, data.image_size)
        self._student = build_student(config, pictures)
        self._stages = stages(config, len(self._student))
        method = method_of(config.distill, self._student, self._stages[0].groups)
        self._objective = Objective(self._student, method).to(device)
        self._teacher = _teacher(task, pictures, device)
        if device.type == "cuda":
            self._objective.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(config.optim, self._objective.parameters(), device)
        self._step = Step(wrap_for_ranks(self._objective), optimizer, config.train, device)
        self._open_data(data)
        self._checkpoints = CheckpointFolder(task.folder)
        self._best = -1.0
        self.records: tuple[EpochRecord, ...] = ()

    def _open_data(self, data: Dataset) -> None:
        config, device = self._config, self._device
        self._samples = len(data.train)
        sizes = update_sizes(self._samples, config.data.batch_size, config.train.workers)
        self._rates = learning_rates(config, self._stages, len(sizes))
        self._updates_per_epoch = len(sizes)
        self._loader = open_loader(data.train, device, config.data.decode_workers)
        self._normalize = Normalizer(data.mean, data.std, device)
        self._evaluator = None
        if data.val is not None:
            loader = open_loader(data.val, device, config.data.decode_workers)
            self._evaluator = Evaluator(loader, len(data.val), self._prepare, device)

    def resume(self) -> None:
        """Load the last checkpoint, if any."""
        state = self._checkpoints.load(self._device)
        if state is None:
            return
        self._student.load_state_dict(state["student"])
        self._step.load_state_dict(state["step"])
        self._best = state["best"]
        self.records = tuple(EpochRecord(**record) for record in state["records"])

    def train_epoch(self, epoch: int) -> EpochRecord:
        """Train, validate, keep a checkpoint; what there is to tell of it."""
        stage = self._enter_stage(epoch)
        # Dropout must not depend on how many numbers were drawn before: a resumed trial drew none.
        seed_everything(self._config.train.seed + 1_000_003 * epoch + 7_919 * ranks.rank())
        started = time.perf_counter()
        self._train(epoch)
        metrics = training_metrics(self._step)
        seconds = time.perf_counter() - started
        metrics[records.TRAIN_LR] = self._rates[epoch * self._updates_per_epoch - 1]
        metrics[records.TRAIN_STAGE] = stage.number
        metrics[records.TRAIN_IMAGES_PER_SECOND] = self._samples / seconds
        # Without SyncBatchNorm each rank has seen other pictures: what is evaluated and kept is their mean.
        ranks.average_over_ranks(self._student.buffers())
        metrics |= batchnorm_metrics(self._student)
        if self._evaluator is not None:
            watch = self._config.train.batchnorm.batch_stats_accuracy
            metrics |= validation_metrics(self._evaluator, self._student, watch)
        record = EpochRecord(epoch, records.finite(metrics), int(time.time() * 1000))
        self.records = (*self.records, record)
        self._keep(epoch, metrics)
        return record

    def _enter_stage(self, epoch: int) -> Stage:
        stage = next(s for s in reversed(self._stages) if s.first_epoch <= epoch)
        self._objective.regroup(stage.groups)
        self._objective.train()
        return stage

    def _train(self, epoch: int) -> None:
        data, train = self._config.data, self._config.train
        plan = updates(
            self._samples,
            data.batch_size,
            train.workers,
            train.accumulate,
            ranks.rank(),
            train.seed,
            epoch,
        )
        batches = self._loader.batches([m for update in plan for m in update.micro_batches])
        first = (epoch - 1) * self._updates_per_epoch
        for number, update in enumerate(plan):
            remaining = len(update.micro_batches)
            for _ in update.micro_batches:
                batch = next(batches)
                remaining -= 1
                images = augment(
                    batch.images,
                    batch.indices,
                    seed=train.seed,
                    epoch=epoch,
                    crop=data.augment.crop,
                    flip=data.augment.flip,
                )
                images = self._prepare(images)
                outputs = None
                if self._teacher is not None:
                    with self._step.precision.forward():
                        outputs = self._teacher(images)
                self._step.accumulate(
                    images, batch.labels, outputs, update_size=update.size, last=remaining == 0
                )
            self._step.finish(self._rates[first + number])

    def _prepare(self, images: Tensor) -> Tensor:
        images = self._normalize(images)
        if self._device.type == "cuda":
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _keep(self, epoch: int, metrics: dict[str, float]) -> None:
        """Keep the best student (the last one, where nothing is validated), then what the trial goes on from."""
        last = epoch == self._config.train.epochs
        accuracy = metrics.get(records.VAL_ACCURACY)
        better = last if accuracy is None else accuracy > self._best
        self._best = max(self._best, accuracy or 0.0)
        if ranks.rank() == 0:
            if better:
                self._checkpoints.save_best(self._student)
            self._checkpoints.save(self._state())
        ranks.barrier(self._device)

    def _state(self) -> dict[str, Any]:
        return {
            "records": [asdict(record) for record in self.records],
            "best": self._best,
            "student": self._student.state_dict(),
            "step": self._step.state_dict(),
        }


def _teacher(task: TrialTask, pictures: Pictures, device: torch.device) -> FrozenTeacher | None:
    if task.config.distill.method == "none":
        return None
    if task.teacher_weights is None:
        raise ValueError(f"method {task.config.distill.method} needs the teacher's weights")
    teacher = load_teacher(task.config, pictures, task.teacher_weights).to(device)
    return teacher.to(memory_format=torch.channels_last) if device.type == "cuda" else teacher


def wrap_for_ranks(objective: Objective) -> Objective | DistributedDataParallel:
    """The objective in DDP where there are several ranks, itself where there is one."""
    if ranks.world_size() == 1:
        return objective
    # Buffers are not broadcast: they are averaged before they are used (see `train_epoch`). torch 2.14
    # calls the same setting by another name.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    buffers: dict[str, Any] = {name: False}
    # DDP rebuilds its buckets after a process's first backward, and its first backward rounds otherwise
    # where gradients are views of the buckets: with three ranks a resumed trial would end in other bits.
    # Looking for unused parameters (there are none) keeps the buckets as they are.
    return DistributedDataParallel(objective, find_unused_parameters=True, **buffers)
