"""One optimizer update: `accumulate` micro-batches, then `finish`.

The order is: forward → loss → scale → backward → sum over the ranks → unscale → finite check agreed by all ranks →
observe → noise → clip → optimizer → scaler update. Nothing in it waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainable import ranks
from trainable.branches import Wait, branch, nothing
from trainable.compiled import OWN, Backend, Compiler
from trainable.config import TrainConfig
from trainable.distill.objective import Objective
from trainable.distill.terms import LOSS, Terms
from trainable.engine import optimizers
from trainable.engine.apart import keep_apart
from trainable.engine.clipping import clip_of
from trainable.engine.exchange import Exchange
from trainable.engine.guard import Guard
from trainable.engine.health import Health
from trainable.engine.inputs import INPUT, LABEL, Inputs
from trainable.engine.noise import GradientNoise
from trainable.engine.precision import Precision
from trainable.networks.norm_graph import backend_of, has_kernels
from trainable.networks.sync_batchnorm import take_own_kernels
from trainable.networks.teacher import TeacherOutputs
from trainable.networks.weight_gradients import Beside, awaited
from trainable.statistics.gradients import BlockMembership, BlockNorms, norms_of
from trainable.statistics.observed import Observed
from trainable.statistics.totals import Totals

SAMPLES = "samples"
# Beside the names of blocks, which begin with no slash.
NORM, CLIPPED, UPDATES = "/norm", "/clipped", "/updates"
RUNNING_STATISTICS = "batchnorm"
_COUNTS = "counts"
"""Branch of what nothing of an update depends on, but whether it is skipped."""


class Step:
    """Owns a student, its optimizer and its scaler, and is given batches and the teacher's outputs."""

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        config: TrainConfig,
        device: torch.device,
        *,
        classes: int,
    ) -> None:
        self._objective = objective
        self.optimizer = optimizer
        self.precision = Precision(config, device)
        self.inputs = Inputs(classes, device)
        self.membership = BlockMembership(
            objective.block_parameters(), student=len(objective.student)
        )
        self.health = Health(config, self.precision, device)
        self._exchange = Exchange(self.membership.parameters)
        self._guard = Guard(objective)
        self._clip = clip_of(config, objective, self.membership.parameters)
        self._noise = None
        if config.gradient_noise:
            self._noise = GradientNoise(config.gradient_noise, config.seed, device)
        self._observe_every = config.observe_every
        self._layers: Backend | None = None
        self._formulas: Backend | None = None
        self._compiler: Compiler | None = None
        self._convolutions: AbstractContextManager[Any] = nullcontext()
        self._counted: Wait = nothing
        self._forward_flags = torch.zeros(0, device=device)
        self._terms: Terms = {}
        self._samples = 0
        self._micro_batches = 0
        self._updates = 0
        self._one = torch.ones((), device=device)
        self._zero = torch.zeros((), device=device)
        self.losses, self.gradients = Totals(device), Totals(device)
        """Sums since the last flush: of this rank's loss terms over samples, of gradient norms over good
        updates."""
        names = objective.names_of(self.membership.parameters)
        self.observed = Observed(self.membership, names)

    def choose_kernels(self, *, compiles: bool, own_norms: bool) -> None:
        """Those of micro-batches of the size that `compile_for` says, where they are to be others than torch's own.

        BatchNorm has the project's where it is to have `own_norms` and there are; if it `compiles`, all else has
        Inductor's, and if not, so have errors between features, and convolutions a backward pass of their own. All
        ranks are to ask, and alike: SyncBatchNorm has them in micro-batches of any size.
        """
        student = self._objective.student
        own = own_norms and has_kernels(student, self._one.device)
        self._layers = backend_of(student, compiles=compiles, own=own)
        self._formulas = "inductor" if compiles else OWN if own else None
        if own and self._layers is None:
            take_own_kernels(student, self._one.device)
            self._convolutions = Beside()

    def compile_for(self, size: int) -> None:
        """From now on compute micro-batches of this size in the kernels that were chosen."""
        self._compiler = Compiler(size, layers=self._layers, formulas=self._formulas)

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

        The summed loss is divided by `update_size`, the samples of the whole update on all ranks, whose
        gradients are summed. They exchange them in the `last` micro-batch only.
        """
        if not self._micro_batches:
            self._guard.remember()
            self.inputs.start()
            self._samples = 0
        with branch(_COUNTS) as self._counted:
            self.inputs.look(images, labels, self._micro_batches)
        labels = self.inputs.in_range(labels)
        with self.precision.forward(), self._convolutions, self._compiling(len(images)):
            terms = self._objective(images, labels, teacher)
        for name, term in terms.items():
            before = self._terms.get(name)
            self._terms[name] = term.detach() if before is None else before + term.detach()
        if last:
            with branch(_COUNTS) as self._counted:
                self._forward_flags = ranks.max_over_ranks(self._not_finite_in_forward())
        # Backward from loss · scale / update_size, whose value nobody needs.
        factor = self.precision.scale(torch.full_like(terms[LOSS], 1 / update_size))
        with self._exchange.at_work() if last else nullcontext(), awaited():
            terms[LOSS].backward(factor)
        keep_apart(self.membership.parameters)
        self._counted()  # it reads the pictures, whose memory is the next micro-batch's from now on
        self._samples += len(labels)
        self._micro_batches += 1

    def finish(self, lr: float) -> None:
        """Take the update with learning rate `lr`, or skip it on every rank if anything in it is not finite."""
        self.announce(lr)
        self.apply()
        self.count()

    @property
    def observes(self) -> bool:
        """Whether this update's gradient, and the distance that it moves the parameters, are measured."""
        return self._updates % self._observe_every == 0

    def announce(self, lr: float) -> None:
        """Write the learning rate of the update to the device."""
        optimizers.set_learning_rate(self.optimizer, lr)

    def apply(self) -> None:
        """The update's work on the device, and nothing else: a CUDA graph can hold it."""
        self.membership.gradients()  # those that this update gave none are 0, and are summed, too
        self._exchange.finish()
        gradients = self.membership.gradients()
        self.precision.unscale(gradients)
        each = norms_of(gradients)
        norms = self.membership.joined(each)
        names, flags = self._not_finite(norms)
        skipped = flags.amax()
        bad = skipped > 0
        with branch(_COUNTS) as self._counted:
            self.health.count(names, flags)
            samples = torch.full_like(self._zero, self._samples)
            self.losses.add({SAMPLES: samples, **self._terms}, bad)
        is_observed = self.observes
        if is_observed:
            self.observed.gradient(gradients, bad)
        if self._noise is not None:
            self._noise.add(gradients, self._updates)
            each = norms_of(gradients)
        clipped = self._zero if self._clip is None else self._clip(gradients, each)
        with branch(_COUNTS) as self._counted:
            self._add_gradients(norms, clipped, bad)
        if is_observed:
            self.observed.before()
        optimizers.step(self.optimizer, skipped)
        self._guard.restore(bad)
        if is_observed:
            self.observed.after(bad)
        self._counted()
        self.precision.update(skipped)
        self.optimizer.zero_grad()
        self._terms = {}
        self._micro_batches = 0

    def abandon(self) -> None:
        """Forget an update that broke off before anything of it ran on the device."""
        self._exchange.abandon()
        self.optimizer.zero_grad()
        self._terms, self._micro_batches = {}, 0

    def count(self) -> None:
        """The update is over: another one comes."""
        self._updates += 1
        self.inputs.enter(self._updates)

    def shared_state(self) -> dict[str, Any]:
        """What is equal on all ranks: optimizer, scaler and the number of updates."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "updates": self._updates,
        }

    def own_state(self) -> dict[str, Any]:
        """What each rank has for itself: the sums and counts since the last flush."""
        return {name: part.state_dict() for name, part in self._own().items()}

    def load(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Go on from what `shared_state` and `own_state` gave."""
        self.optimizer.load_state_dict(shared["optimizer"])
        if shared["scaler"]:
            self.precision.scaler.load_state_dict(shared["scaler"])
        for group in self.optimizer.param_groups:
            # The optimizer brings its state to the device, but leaves these as they were where it was written.
            group["lr"] = group["lr"].to(self._zero.device)
            if "capturable" in group:
                group["capturable"] = self._zero.device.type == "cuda"
        self._updates = shared["updates"]
        self.inputs.enter(self._updates)
        for name, part in self._own().items():
            part.load_state_dict(own[name])

    def _own(self) -> dict[str, Totals | Observed | Health]:
        return {
            "losses": self.losses,
            "gradients": self.gradients,
            "observed": self.observed,
            "health": self.health,
        }

    def _compiling(self, size: int) -> AbstractContextManager[None]:
        return nullcontext() if self._compiler is None else self._compiler.at_work(size)

    def _not_finite_in_forward(self) -> Tensor:
        """1.0 for each place where something in the update's forward passes is not finite on this rank.

        They are in the order in which one thing spoils the next: the input, the single terms, their sum, the
        running statistics.
        """
        terms = [term for name, term in self._terms.items() if name != LOSS]
        numbers = torch.stack([*terms, self._terms[LOSS], self._guard.largest(self._zero)])
        return torch.cat([self.inputs.found, _not_finite(numbers)])

    def _not_finite(self, norms: BlockNorms) -> tuple[list[str], Tensor]:
        """Places, and for each 1.0 where something is not finite on any rank: the same on every one.

        After those of the forward passes, the gradient from the head backwards, which is the sum over the ranks.
        """
        backwards = reversed(_not_finite(norms.blocks).split(1))
        terms = [name.rpartition("/")[2] for name in self._terms if name != LOSS]
        names = [INPUT, LABEL, *terms, LOSS.rpartition("/")[2], RUNNING_STATISTICS]
        names += reversed(self.membership.names)
        return names, torch.cat([self._forward_flags, *backwards])

    def _add_gradients(self, norms: BlockNorms, clipped: Tensor, bad: Tensor) -> None:
        blocks = dict(zip(self.membership.names, norms.blocks.unbind(), strict=True))
        self.gradients.add({NORM: norms.total, CLIPPED: clipped, UPDATES: self._one, **blocks}, bad)


def _not_finite(numbers: Tensor) -> Tensor:
    """1.0 for each that is not finite, else 0.0, in fp32: in two operations, where `isfinite` has four."""
    return (numbers - numbers).nan_to_num(nan=1.0).to(torch.float32)
