"""Which updates were skipped, what was first not finite in them, and when that has to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainable.config import TrainConfig
from trainable.engine.inputs import INPUT, LABEL
from trainable.engine.precision import Precision
from trainable.errors import Problem, TrainingError

_EVERY = 16
"""Updates between two looks at a GPU's counters."""


class Skipped(NamedTuple):
    """Updates skipped since the last flush."""

    total: int
    by_place: dict[str, int]
    """How many were first not finite at each place, where any was."""


class Health:
    """Counts what the guard skips, and raises where a trial would skip for ever.

    The counters are on the device. On a GPU they are copied to the host without waiting, and looked at
    some updates later: on every rank after the same update, since all agree on what is skipped.
    """

    def __init__(self, config: TrainConfig, precision: Precision, device: torch.device) -> None:
        self._config, self._precision = config, precision
        self._names: tuple[str, ...] = ()
        self._device = device
        self._in_a_row = torch.zeros((), device=device)
        self._since_flush = torch.zeros(0, device=device)
        self._ever = torch.zeros(0, device=device)
        self._order = torch.zeros(0, device=device)
        self._checks = 0
        self._copies = _LateCopies(device)

    def judge(self, names: Sequence[str], flags: Tensor) -> Tensor:
        """Count an update; 1.0 if it has to be skipped, else 0.0: () on the device.

        `flags` (places,) are 1.0 where something is not finite on any rank, in the order in which a place
        is blamed for what comes after it; `names` are theirs, the same at every call.
        """
        self._name(tuple(names))
        bad = flags.amax()
        first = (flags * (len(names) - self._order)).argmax()
        blamed = bad * (self._order == first)
        self._since_flush += blamed
        self._ever += blamed
        self._in_a_row = (self._in_a_row + 1) * bad
        return bad

    def check(self, where: str, *, wait: bool = False) -> bool:
        """Raise TrainingError if too many updates in a row were skipped or the loss scale is too small.

        Returns:
            Whether a bad picture or label was found: who knows the data names it.
        """
        self._checks += 1
        if self._device.type == "cuda" and not wait and self._checks % _EVERY:
            return False
        trouble = torch.stack([self._in_a_row, self._precision.below_floor(self._in_a_row)])
        numbers = torch.cat([trouble, self._ever])
        counts = numbers.tolist() if wait else self._copies.exchange(numbers)
        if counts is None:
            return False
        (in_a_row, below_floor), ever = counts[:2], dict(zip(self._names, counts[2:], strict=True))
        if ever[INPUT] or ever[LABEL]:
            return True
        if below_floor:
            raise self._scale_error(where, ever)
        if in_a_row > self._config.max_skipped:
            raise self._skipped_error(where, int(in_a_row), ever)
        return False

    def flush(self) -> Skipped:
        """What was skipped since the last call. Waits for the device."""
        counts = dict(zip(self._names, map(int, self._since_flush.tolist()), strict=True))
        self._since_flush.zero_()
        return Skipped(sum(counts.values()), {name: n for name, n in counts.items() if n})

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {
            "names": list(self._names),
            "in_a_row": self._in_a_row,
            "since_flush": self._since_flush,
            "ever": self._ever,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._name(tuple(state["names"]))
        self._in_a_row = state["in_a_row"].to(self._device)
        self._since_flush = state["since_flush"].to(self._device)
        self._ever = state["ever"].to(self._device)

    def _name(self, names: tuple[str, ...]) -> None:
        if self._names == names:
            return
        if self._names:
            raise ValueError(f"the places must stay {self._names}, but got {names}")
        self._names = names
        self._since_flush = torch.zeros(len(names), device=self._device)
        self._ever = torch.zeros(len(names), device=self._device)
        self._order = torch.arange(len(names), device=self._device)

    def _scale_error(self, where: str, ever: Mapping[str, float]) -> TrainingError:
        floor = self._config.loss_scale.floor
        rule = (
            f"the loss scale must stay >= {floor:g}: below it, it is not the scale that overflows"
        )
        return _error("train.loss_scale.floor", rule, where, ever, self._config)

    def _skipped_error(self, where: str, in_a_row: int, ever: Mapping[str, float]) -> TrainingError:
        rule = f"at most {self._config.max_skipped} updates in a row may be skipped, not {in_a_row}"
        return _error("train.max_skipped", rule, where, ever, self._config)


def _error(
    path: str, rule: str, where: str, ever: Mapping[str, float], config: TrainConfig
) -> TrainingError:
    counts = sorted(((n, name) for name, n in ever.items() if n), reverse=True)
    places = ", ".join(f"{name} {int(n)}×" for n, name in counts)
    remedies = ["lower optim.lr"]
    remedies += [] if config.clip is not None else ["set train.clip"]
    remedies += ["use train.precision: bf16"] if config.precision == "fp16" else []
    problem = Problem(path, rule, " or ".join(remedies), f"{where}: first not finite in {places}")
    return TrainingError(str(problem))


class _LateCopies:
    """Numbers of a device on the host, one call late, so that the host need not wait for them."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._host: Tensor | None = None
        self._ready: torch.cuda.Event | None = None

    def exchange(self, numbers: Tensor) -> list[float] | None:
        """The numbers of the call before (on a CPU, these), if there was one."""
        if not self._is_cuda:
            return numbers.tolist()
        before = None
        if self._host is not None and self._ready is not None:
            self._ready.synchronize()
            before = self._host.tolist()
        self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._host.copy_(numbers, non_blocking=True)
        self._ready = torch.cuda.Event()
        self._ready.record()
        return before
