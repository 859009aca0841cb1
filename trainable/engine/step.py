"""One optimizer update: `accumulate` micro-batches, then `finish`.

The order is: forward → loss → scale → backward → unscale → finite check agreed by all ranks → observe →
clip → optimizer → scaler update. Nothing in it waits for the device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainable import ranks
from trainable.config import TrainConfig
from trainable.distill.objective import Objective
from trainable.distill.terms import LOSS
from trainable.engine.guard import Guard
from trainable.engine.optimizers import set_learning_rate
from trainable.engine.precision import Precision
from trainable.networks.teacher import TeacherOutputs
from trainable.statistics.gradients import BlockMembership, BlockNorms
from trainable.statistics.totals import Totals
from trainable.statistics.updates import UpdateDistance

SAMPLES = "samples"
NORM, CLIPPED, UPDATES = "norm", "clipped", "updates"
RATIO, OBSERVED = "ratio", "observed"


class Step:
    """Owns a student, its optimizer and its scaler, and is given batches and the teacher's outputs."""

    def __init__(
        self,
        objective: Objective | DistributedDataParallel,
        optimizer: Optimizer,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self._objective = objective
        self.optimizer = optimizer
        self.precision = Precision(config.precision, device)
        self._clip = config.clip
        self._observe_every = config.observe_every
        plain = objective.module if isinstance(objective, DistributedDataParallel) else objective
        self._guard = Guard(plain.student)
        self.membership = BlockMembership(plain.student.block_parameters())
        self._travel = UpdateDistance(self.membership)
        self._terms: dict[str, Tensor] = {}
        self._samples = torch.zeros((), device=device)
        self._updates = 0
        self._one = torch.ones((), device=device)
        self._zero = torch.zeros((), device=device)
        self.losses, self.gradients, self.distances = Totals(device), Totals(device), Totals(device)
        """Sums since the last flush: of this rank's loss terms over samples, of gradient norms over good
        updates, of distances over observed updates."""
        self._skipped = torch.zeros((), device=device)

    def accumulate(
        self,
        images: Tensor,
        labels: Tensor,
        teacher: TeacherOutputs | None,
        *,
        update_size: int,
        last: bool,
    ) -> None:
        """Forward and backward of a micro-batch: one student forward for all loss terms.

        The summed loss is divided by `update_size`, the samples of the whole update on all ranks (times the
        number of ranks, to undo DDP's mean). Ranks exchange gradients in the `last` micro-batch only.
        """
        if not self._terms:
            self._guard.remember()
            self._samples.zero_()
        with self._exchange(last):
            with self.precision.forward():
                terms = self._objective(images, labels, teacher)
            loss = terms[LOSS] * (ranks.world_size() / update_size)
            self.precision.scale(loss).backward()
        for name, term in terms.items():
            self._terms[name] = self._terms.get(name, self._zero) + term.detach()
        self._samples += len(labels)

    def finish(self, lr: float) -> None:
        """Take the update with learning rate `lr`, or skip it on every rank if any loss or gradient is not finite."""
        self.precision.unscale(self.optimizer)
        norms = self.membership.gradient_norms()
        bad = self._guard.verdict(self._terms[LOSS], norms.total)
        factor = self._clip_factor(norms.total)
        self._observe_gradients(norms, (factor < 1).to(torch.float32), bad)
        if self._clip is not None:
            self.membership.scale_gradients(factor)
        set_learning_rate(self.optimizer, lr)
        if self._updates % self._observe_every == 0:
            size = self._travel.remember()
            self._guard.step(self.optimizer, bad)
            self._observe_travel(self._travel.distance(), size, bad)
        else:
            self._guard.step(self.optimizer, bad)
        self.precision.update(self.optimizer, bad)
        self.optimizer.zero_grad(set_to_none=False)
        self._skipped += bad
        self._terms = {}
        self._updates += 1

    def flush_skipped(self) -> float:
        """Updates that the guard skipped since the last call."""
        skipped = float(self._skipped)
        self._skipped.zero_()
        return skipped

    def state_dict(self) -> dict[str, object]:
        """Optimizer, scaler and the number of updates."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])  # type: ignore[arg-type]
        self._updates = int(state["updates"])  # type: ignore[call-overload]

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        if isinstance(self._objective, DistributedDataParallel) and not last:
            return self._objective.no_sync()
        return nullcontext()

    def _clip_factor(self, norm: Tensor) -> Tensor:
        """What brings the gradient down to the largest norm allowed; 1 where it is within."""
        if self._clip is None:
            return self._one
        return (self._clip / (norm + 1e-6)).clamp(max=1.0)

    def _observe_gradients(self, norms: BlockNorms, clipped: Tensor, bad: Tensor) -> None:
        self.losses.add({SAMPLES: self._samples, **self._terms}, bad)
        blocks = dict(zip(self.membership.names, norms.blocks.unbind(), strict=True))
        self.gradients.add({NORM: norms.total, CLIPPED: clipped, UPDATES: self._one, **blocks}, bad)

    def _observe_travel(self, distance: BlockNorms, size: Tensor, bad: Tensor) -> None:
        blocks = dict(zip(self.membership.names, distance.blocks.unbind(), strict=True))
        ratio = distance.total / size
        self.distances.add({RATIO: ratio, OBSERVED: self._one, **blocks}, bad)
