"""A trial from its first epoch to its last: `run(task, report, device)`.

A plain function of its arguments: it knows nothing of Ray, of the study, or of who listens. With a
process group it is run by every rank; the records that it reports are the same on all of them, times
and rates aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainable import ranks, records
from trainable.config import TrialConfig
from trainable.data.loaders import open_loader
from trainable.data.store import Dataset, facts_of_data, open_dataset
from trainable.distill.maps import feature_shapes
from trainable.distill.objective import Objective, method_of
from trainable.engine.answers import Answers
from trainable.engine.asking import Question, is_asked_once, open_answers
from trainable.engine.checkpoint import CheckpointFolder
from trainable.engine.deployed import deployment
from trainable.engine.evaluate import Evaluator
from trainable.engine.exchange import begin_alike
from trainable.engine.failures import Progress, explained
from trainable.engine.feed import Feed
from trainable.engine.mirror import mirror_of
from trainable.engine.norms import Norms
from trainable.engine.optimizers import build_optimizer, reset_state
from trainable.engine.randomness import generator_states, restore_generators, seed_everything
from trainable.engine.reading import Reading
from trainable.engine.schedule import learning_rates
from trainable.engine.series import add_epoch
from trainable.engine.settings import apply_settings
from trainable.engine.step import Step
from trainable.engine.summary import Summary, fluctuation, training_summary, validation_summary
from trainable.engine.updater import Updater
from trainable.engine.verify import Verifier
from trainable.methods import METHODS
from trainable.networks.build import Pictures, build_student, forget_teacher, load_teacher
from trainable.networks.teacher import FrozenTeacher
from trainable.plan import Stage, stages
from trainable.records import EpochRecord
from trainable.storage import writing_to

Report = Callable[[EpochRecord], None]


@dataclass(frozen=True)
class TrialTask:
    """What a worker needs to run a trial."""

    config: TrialConfig
    folder: Path
    """Absolute; the trial's own, on storage that all its workers see."""
    teacher_weights: Path | None
    """Absolute; None where the method needs no teacher."""
    bucket: str | None = None
    """URI of its own part of a bucket, where `folder` is this node's alone; see `engine.mirror`."""
    times_student: bool = False
    """Whether the last epoch tells how long the student takes for a picture; see `engine.deployed`."""
    until: int | None = None
    """The epoch after which it stops for now; None trains to the end."""

    @property
    def last_epoch(self) -> int:
        """That is trained for now."""
        return self.config.train.epochs if self.until is None else self.until


def run(task: TrialTask, report: Report, device: torch.device) -> None:
    """Train the task's student on this rank, from its last checkpoint if there is one, for as long as it is to.

    `report` gets the record of every epoch, on every rank; those before the checkpoint once more and
    first, since who listened may have died before it heard of the last one.

    Raises:
        InputError: The data, the networks or a checkpoint cannot be used.
        TrainingError: The trial cannot go on; says on which rank, in which epoch and update, and why.
    """
    progress = Progress()
    with explained(progress, task.config, device):
        if not METHODS[task.config.distill.method].teacher:
            forget_teacher()
        if device.type == "cuda":
            # The peak is told, and a used process has held other trials.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        apply_settings(task.config)
        trial = Trial(task, device, progress)
        trial.resume()
    try:
        for record in trial.records:
            report(record)
        for epoch in range(len(trial.records) + 1, task.last_epoch + 1):
            with explained(progress, task.config, device):
                record = trial.train_epoch(epoch)
            report(record)
    finally:
        trial.updater.release()


class Trial:
    """The parts of a running trial, and what an epoch does with them."""

    def __init__(self, task: TrialTask, device: torch.device, progress: Progress) -> None:
        config = task.config
        self._config, self._device, self._progress = config, device, progress
        data = open_dataset(config.data)
        pictures = Pictures(len(data.classes), data.channels, data.image_size)
        self._deployment = partial(deployment, config, pictures, device, timed=task.times_student)
        self._student = build_student(config, pictures)
        self._stages = stages(config, len(self._student))
        teacher = _teacher(task, pictures)
        self._objective = self._build_objective(pictures, teacher)
        for module in (self._objective, teacher):
            if module is not None:
                module.to(device).to(memory_format=torch.channels_last)
        begin_alike(self._objective)
        optimizer = build_optimizer(config.optim, self._objective.parameters(), device)
        classes = pictures.classes
        self._step = Step(self._objective, optimizer, config.train, device, classes=classes)
        self._open_data(data)
        self._reading = Reading(progress, device)
        asked = self._answering(task, data, teacher)
        self.updater = Updater(config, self._feed, asked, self._step, progress, device)
        self._folder = task.folder
        self._checkpoints = CheckpointFolder(task.folder, device, facts_of_data(data))
        self._mirror = mirror_of(task.folder, task.bucket)
        self._best = -1.0
        self._generators: dict[str, Any] | None = None
        self.records: tuple[EpochRecord, ...] = ()

    def _build_objective(self, pictures: Pictures, teacher: FrozenTeacher | None) -> Objective:
        shapes = None
        if teacher is not None and METHODS[self._config.distill.method].features == "maps":
            shapes = feature_shapes(self._student, teacher.blocks, pictures)
        groups = self._stages[0].groups
        method = method_of(self._config.distill, self._student, groups, shapes)
        return Objective(self._student, method)

    def _answering(
        self, task: TrialTask, data: Dataset, teacher: FrozenTeacher | None
    ) -> FrozenTeacher | Answers | None:
        """The teacher, or what it once said."""
        config, weights = task.config, task.teacher_weights
        if teacher is None or weights is None or not is_asked_once(config):
            return teacher
        return open_answers(Question(config, teacher, weights, data, self._feed, self._device))

    def _open_data(self, data: Dataset) -> None:
        config, device, workers = self._config, self._device, self._config.data.decode_workers
        self._feed = Feed(data, config, device)
        self._norms = Norms(config, self._stages, self._student, self._feed)
        self._rates = learning_rates(config, self._stages, self._feed.updates_per_epoch)
        self._evaluator, self._verifier = None, None
        if data.val is not None:
            loader = open_loader(data.val, device, workers)
            self._evaluator = Evaluator(loader, len(data.val), self._feed.prepare, device)
        if data.unseen is not None:
            loader = open_loader(data.unseen, device, workers)
            self._verifier = Verifier(loader, data.unseen.labels, self._feed.prepare, device)

    def resume(self) -> None:
        """Load the last checkpoint, if any."""
        self._mirror.fetch()
        snapshot = self._checkpoints.load()
        if snapshot is None:
            return
        shared, own = snapshot.shared, snapshot.own
        snapshot.load_student(self._student)
        self._objective.load_method_state(shared["method"])
        for name, buffer in self._objective.named_buffers():
            buffer.copy_(own["buffers"][name])
        self._step.load(shared["step"], own["step"])
        self._best = shared["best"]
        self.records = tuple(EpochRecord(**record) for record in shared["records"])
        progress = self._progress
        progress.done, progress.seconds = shared["done"], shared["seconds"]
        progress.waited = shared["waited"]
        self._generators = own["generators"]

    def train_epoch(self, epoch: int) -> EpochRecord:
        """Train, validate, keep a checkpoint; what there is to tell of it."""
        self._progress.epoch, self._progress.update = epoch, self._progress.done
        stage = self._enter_stage(epoch)
        self._enter_randomness(epoch)
        self._train(epoch)
        summary = training_summary(self._step, [record.metrics for record in self.records])
        summary.metrics |= self._course(epoch, stage)
        self._progress.doing = "settling BatchNorm"
        self._norms.settle(epoch)
        summary.add(self._validate(stage))
        if epoch == self._config.train.epochs:
            self._progress.doing = "measuring the student"
            summary.metrics |= self._deployment()
        metrics = records.finite(summary.metrics)
        record = EpochRecord(epoch, metrics, int(time.time() * 1000))
        self.records = (*self.records, record)
        self._progress.done, self._progress.seconds, self._progress.waited = 0, 0.0, 0.0
        if ranks.rank() == 0:
            with writing_to(self._folder):
                add_epoch(self._folder, epoch, summary)
        self._keep_epoch(epoch, metrics)
        return record

    def _course(self, epoch: int, stage: Stage) -> dict[str, float]:
        """Where the trial is, and how fast it went."""
        progress, feed, device = self._progress, self._feed, self._device
        before = self.records[-1].metrics if self.records else {}
        metrics: dict[str, float] = {
            records.TRAIN_LR: self._rates[epoch * feed.updates_per_epoch - 1],
            records.TRAIN_STAGE: stage.number,
            records.TRAIN_IMAGES_PER_SECOND: feed.samples_per_epoch / progress.seconds,
            records.TRAIN_DATA_WAIT: progress.waited / progress.seconds,
            records.TRAIN_SECONDS: before.get(records.TRAIN_SECONDS, 0.0) + progress.seconds,
        }
        if device.type == "cuda":
            peak = ranks.max_number_over_ranks(torch.cuda.max_memory_reserved(device), device)
            # Of a trial that went on in another process, the most of both.
            told = before.get(records.TRAIN_PEAK_MEMORY, 0.0)
            metrics[records.TRAIN_PEAK_MEMORY] = max(told, peak / 2**30)
        return metrics

    def _enter_stage(self, epoch: int) -> Stage:
        stage = next(s for s in reversed(self._stages) if s.first_epoch <= epoch)
        is_new = epoch == stage.first_epoch and not self._progress.done
        if is_new and self._config.optim.reset_at_stages:
            reset_state(self._step.optimizer)
        self._objective.regroup(stage.groups)
        self._objective.train()
        self._norms.enter(epoch)
        self._feed.enter(epoch)
        self.updater.enter((stage.number, self._norms.is_frozen(epoch)))
        return stage

    def _enter_randomness(self, epoch: int) -> None:
        """Dropout must not depend on how many numbers were drawn before: a resumed trial drew none."""
        seed_everything(self._config.train.seed + 1_000_003 * epoch + 7_919 * ranks.rank())
        if self._generators is not None and self._progress.done:
            restore_generators(self._generators, self._device)
        self._generators = None

    def _train(self, epoch: int) -> None:
        """The epoch's updates that are not done yet."""
        progress, every = self._progress, self._config.train.checkpoint.every
        plan = self._feed.plan(epoch)
        rest = plan[progress.done :]
        batches = self._reading.over(self._feed.batches(rest, epoch))
        first = (epoch - 1) * len(plan)
        before, started = progress.seconds, time.perf_counter()
        for update in rest:
            progress.update = progress.done + 1
            count, lr = len(update.micro_batches), self._rates[first + progress.done]
            self.updater.take(batches, count, update.size, lr)
            progress.done += 1
            self._check_health()
            progress.seconds = before + time.perf_counter() - started
            if every and (first + progress.done) % every == 0 and progress.done < len(plan):
                self._check_health(wait=True)
                saving = time.perf_counter()
                self._save(is_best=False)
                started += time.perf_counter() - saving
        self._check_health(wait=True)
        progress.seconds = before + time.perf_counter() - started
        self._reading.settle()

    def _check_health(self, *, wait: bool = False) -> None:
        where = f"epoch {self._progress.epoch}, update {self._progress.done}"
        if self._step.health.check(where, wait=wait):
            raise self._feed.fault_at(self._step.inputs.place())

    def _validate(self, stage: Stage) -> Summary:
        self._progress.doing = "validating"
        watch = self._config.train.batchnorm.batch_stats_accuracy
        found = validation_summary(self._evaluator, self._student, watch_batch_statistics=watch)
        since = self.records[stage.first_epoch - 1 :]
        found.metrics |= fluctuation([*(record.metrics for record in since), found.metrics])
        if self._verifier is not None:
            found.metrics[records.VAL_EER] = self._verifier.eer(self._student)
        return found

    def _keep_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Keep a checkpoint, and the student if it is the best (the last, where nothing is validated)."""
        last = epoch == self._config.train.epochs
        accuracy = metrics.get(records.VAL_ACCURACY)
        is_best = last if accuracy is None else accuracy > self._best
        self._best = max(self._best, accuracy or 0.0)
        self._save(is_best=is_best)

    def _save(self, *, is_best: bool) -> None:
        progress = self._progress
        progress.doing = "writing a checkpoint"
        self._reading.settle()
        shared = {
            "records": [asdict(record) for record in self.records],
            "best": self._best,
            "done": progress.done,
            "seconds": progress.seconds,
            "waited": progress.waited,
            "method": self._objective.method_state(),
            "step": self._step.shared_state(),
        }
        own = {
            "buffers": dict(self._objective.named_buffers()),
            "step": self._step.own_state(),
            "generators": generator_states(self._device),
        }
        updates_done = len(self.records) * self._feed.updates_per_epoch + progress.done
        keep = self._config.train.checkpoint.keep
        is_over = len(self.records) == self._config.train.epochs
        keep = 1 if is_over else keep
        with writing_to(self._folder):
            self._checkpoints.save(
                updates_done, self._student, shared, own, is_best=is_best, keep=keep
            )
        self._mirror.keep()


def _teacher(task: TrialTask, pictures: Pictures) -> FrozenTeacher | None:
    if not METHODS[task.config.distill.method].teacher:
        return None
    if task.teacher_weights is None:
        raise ValueError(f"method {task.config.distill.method} needs the teacher's weights")
    return load_teacher(task.config, pictures, task.teacher_weights)
