"""Which updates were skipped, what was first not finite in them, and when that has to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainable.config import TrainConfig
from trainable.engine.precision import Precision
from trainable.errors import Problem, TrainingError

_EVERY = 16
"""Updates between two looks at a GPU's counters."""
_INPUTS = 2
"""Places, the first ones, that are a sample's: `INPUT` and `LABEL`."""


class Skipped(NamedTuple):
    """Updates skipped since the last flush."""

    total: int
    by_place: dict[str, int]
    """How many were first not finite at each place, where any was."""


class Health:
    """Counts what the guard skips, and raises where a trial would skip for ever.

    The counters stay where they are in the device's memory. On a GPU they are copied to the host without
    waiting, and looked at up to 32 updates later; what they count is looked at in every update.
    """

    def __init__(self, config: TrainConfig, precision: Precision, device: torch.device) -> None:
        self._config, self._precision, self._device = config, precision, device
        self._names: tuple[str, ...] = ()
        self._order = torch.zeros(0, device=device)
        self._since_flush = torch.zeros(0, device=device)
        """Updates that each place was the first to break."""
        self._row = torch.zeros(0, device=device)
        """As `_since_flush`, of the present row of skipped updates."""
        self._worst = torch.zeros(0, device=device)
        """As `_row`, of the longest row."""
        self._ever = torch.zeros(0, device=device)
        """1.0 for each place that was ever not finite."""
        self._checks = 0
        self._copies = _LateCopies(device)

    def count(self, names: Sequence[str], flags: Tensor) -> None:
        """Count an update, which is skipped if any of its flags is 1.

        `flags` (places,) are 1.0 where something is not finite on any rank, in the order in which a place
        is blamed for what comes after it: `INPUT`, `LABEL`, and others. `names` are theirs, the same at every call.
        """
        self._name(tuple(names))
        blamed = flags * (self._order == flags.argmax())
        self._since_flush += blamed
        self._row.add_(blamed).mul_(flags.amax())
        torch.where(self._row.sum() > self._worst.sum(), self._row, self._worst, out=self._worst)
        torch.maximum(self._ever, flags, out=self._ever)

    def check(self, where: str, *, wait: bool = False) -> bool:
        """Raise TrainingError if too many updates in a row were skipped or the loss scale is too small.

        Returns:
            Whether a bad picture or label was found: who knows the data names it.
        """
        self._checks += 1
        if self._device.type == "cuda" and not wait and self._checks % _EVERY:
            return False
        numbers = torch.cat([self._ever, self._worst, self._precision.was_below_floor.view(1)])
        counts = numbers.tolist() if wait else self._copies.exchange(numbers)
        if counts is None:
            return False
        *counts, low_scale = counts
        ever, worst = counts[: len(self._names)], counts[len(self._names) :]
        if any(ever[:_INPUTS]):
            return True
        places = {name: int(n) for name, n in zip(self._names, worst, strict=True) if n}
        if low_scale:
            raise self._scale_error(where, places)
        if (longest := int(sum(worst))) > self._config.max_skipped:
            raise self._skipped_error(where, longest, places)
        return False

    def flush(self) -> Skipped:
        """What was skipped since the last call. Waits for the device."""
        counts = dict(zip(self._names, map(int, self._since_flush.tolist()), strict=True))
        self._since_flush.zero_()
        return Skipped(sum(counts.values()), {name: n for name, n in counts.items() if n})

    def state_dict(self) -> dict[str, Any]:
        """What goes on after a checkpoint, which is only written of a trial without trouble."""
        return {
            "names": list(self._names),
            "since_flush": self._since_flush,
            "row": self._row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._name(tuple(state["names"]))
        self._since_flush = state["since_flush"].to(self._device)
        self._row = state["row"].to(self._device)

    def _name(self, names: tuple[str, ...]) -> None:
        if self._names == names:
            return
        if self._names:
            raise ValueError(f"the places must stay {self._names}, but got {names}")
        self._names = names
        self._order = torch.arange(len(names), device=self._device)
        self._since_flush = torch.zeros(len(names), device=self._device)
        self._row = torch.zeros(len(names), device=self._device)
        self._worst = torch.zeros(len(names), device=self._device)
        self._ever = torch.zeros(len(names), device=self._device)

    def _scale_error(self, where: str, places: Mapping[str, int]) -> TrainingError:
        floor = self._config.loss_scale.floor
        rule = (
            f"the loss scale must stay >= {floor:g}: below it, it is not the scale that overflows"
        )
        return _error("train.loss_scale.floor", rule, where, places, self._config)

    def _skipped_error(self, where: str, in_a_row: int, places: Mapping[str, int]) -> TrainingError:
        rule = f"at most {self._config.max_skipped} updates in a row may be skipped, not {in_a_row}"
        return _error("train.max_skipped", rule, where, places, self._config)


def _error(
    path: str, rule: str, where: str, places: Mapping[str, int], config: TrainConfig
) -> TrainingError:
    most_first = sorted(places.items(), key=lambda place: -place[1])
    told = ", ".join(f"{name} {n}×" for name, n in most_first)
    remedies = ["lower optim.lr"]
    remedies += [] if config.clip is not None else ["set train.clip"]
    remedies += ["use train.precision: bf16"] if config.precision == "fp16" else []
    problem = Problem(path, rule, " or ".join(remedies), f"{where}: first not finite in {told}")
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
