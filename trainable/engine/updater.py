"""An update from its micro-batches' pictures to the moved parameters: augmentation, teacher, student, optimizer.

On CUDA devices it is replayed as a CUDA graph, wherever nothing in it is drawn or decided on the host.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from trainable import ranks
from trainable.config import TrialConfig
from trainable.data.loaders import Batch
from trainable.engine.answers import Answers
from trainable.engine.failures import TRAINING, Progress
from trainable.engine.feed import Feed
from trainable.engine.graph import Graphs
from trainable.engine.precision import TeacherPrecision
from trainable.engine.step import Step
from trainable.methods import METHODS
from trainable.networks.teacher import FrozenTeacher, TeacherOutputs
from trainable.plan import micro_batch_sizes

_log = logging.getLogger(__name__)


class Updater:
    """Takes the updates of a trial on this rank."""

    def __init__(
        self,
        config: TrialConfig,
        feed: Feed,
        teacher: FrozenTeacher | Answers | None,
        step: Step,
        progress: Progress,
        device: torch.device,
    ) -> None:
        self._feed, self._teacher, self._step, self._progress = feed, teacher, step, progress
        self._precision, self._size = config.train.precision, config.data.batch_size
        self._of_teacher = TeacherPrecision(config, device)
        self._asks_slope = METHODS[config.distill.method].slope
        own = micro_batch_sizes(self._size, ranks.world_size(), config.train.accumulate)[0]
        self._to_prepare: int | None = own[ranks.rank()]
        """Samples of the micro-batches that kernels are made for, until they are."""
        self._phase: Hashable = None
        self._graphs = None
        if device.type == "cuda" and config.train.cuda_graph:
            self._graphs = _graphs(config, step)
        # Launched one by one the project's kernels keep the host longer than torch's own. A slope is taken of the
        # networks as they are, twice of the student's.
        if not self._asks_slope:
            is_captured = self._graphs is not None
            step.choose_kernels(compiles=config.train.compile, own_norms=is_captured)

    def enter(self, phase: Hashable) -> None:
        """Updates of another phase do something else: other groups are trained, or statistics are frozen."""
        if self._graphs is not None and phase != self._phase:
            self._graphs.forget()
            torch.cuda.empty_cache()  # what they held, too: neighbours on the GPU may need it
        self._phase = phase

    def release(self) -> None:
        """Give back the graphs: a process group cannot be taken down while one has its exchanges."""
        if self._graphs is not None:
            self._graphs.forget()

    def take(self, batches: Iterator[Batch], count: int, size: int, lr: float) -> None:
        """One update with learning rate `lr`: the next `count` micro-batches, of its `size` samples on all ranks."""
        if self._graphs is None or size != self._size:
            self._accumulate(batches, count, size)
            self._progress.doing = "applying the gradient"
            self._step.finish(lr)
            return
        own = list(islice(batches, count))
        inputs = [tensor for b in own for tensor in (b.images, b.labels, b.indices)]
        self._say_training(own[0])
        self._step.announce(lr)
        self._graphs.call(self._step.observes, self._of_usual_size, inputs)
        self._step.count()

    def _of_usual_size(self, inputs: Sequence[Tensor]) -> None:
        """What an update does on the device; the inputs are the micro-batches' pictures, labels and indices."""
        parts = zip(*(inputs[kind::3] for kind in range(3)), strict=True)
        own = [Batch(*part, first=-1) for part in parts]
        self._accumulate(iter(own), len(own), self._size)
        self._progress.doing = "applying the gradient"
        self._step.apply()

    def _accumulate(self, batches: Iterator[Batch], count: int, size: int) -> None:
        for number, batch in enumerate(islice(batches, count), start=1):
            self._say_training(batch)
            images, labels = self._feed.augmented(batch)
            if len(images) == self._to_prepare:
                self._prepare(images)
            outputs, last = self._ask(batch, images), number == count
            self._step.accumulate(images, labels, outputs, update_size=size, last=last)

    def _prepare(self, images: Tensor) -> None:
        """Make the kernels for micro-batches like this one."""
        self._to_prepare = None
        if self._asks_slope:
            return
        if isinstance(self._teacher, FrozenTeacher):
            with self._of_teacher.forward():
                self._teacher.fuse(images)
        self._step.compile_for(len(images))

    def _ask(self, batch: Batch, images: Tensor) -> TeacherOutputs | None:
        if self._teacher is None:
            return None
        handed = self._of_teacher.handed
        if isinstance(self._teacher, Answers):
            return self._teacher(self._feed.row(batch), handed)
        if self._asks_slope:
            return self._teacher.with_slope(images)
        with self._of_teacher.forward():
            return self._teacher(images, handed)

    def _say_training(self, batch: Batch) -> None:
        self._progress.doing = f"{TRAINING} of {len(batch.labels)} pictures in {self._precision}"


def _graphs(config: TrialConfig, step: Step) -> Graphs | None:
    """None, with a line in the log, where it is known beforehand that updates cannot be captured."""
    if (reason := _reason_for_none(config)) is None:
        return Graphs(step.abandon)
    if ranks.rank() == 0:
        _log.warning("updates run kernel by kernel, not as CUDA graphs: %s", reason)
    return None


def _reason_for_none(config: TrialConfig) -> str | None:
    train = config.train
    if train.gradient_noise:
        return "train.gradient_noise draws from a seed that the host sets"
    if train.activation_checkpointing:
        return "train.activation_checkpointing has the host keep the generators' states"
    if config.data.augment.mixes:
        return "data.augment.mixup and cutmix draw on the host"
    return None
