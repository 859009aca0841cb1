"""Sums kept on the device between flushes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainable import ranks


class Totals:
    """Running sums of named scalars; nothing reaches the host before `flush`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0, dtype=torch.float64, device=device)

    def add(self, values: Mapping[str, Tensor], bad: Tensor) -> None:
        """Add () tensors by name, or nothing if `bad` is true. The names must be the same at every call."""
        if not self._names:
            self._names = tuple(values)
            self._sums = torch.zeros(len(values), dtype=torch.float64, device=self._device)
        elif self._names != tuple(values):
            raise ValueError(f"the names must stay {self._names}, but got {tuple(values)}")
        row = torch.stack([value.detach() for value in values.values()])
        torch.where(bad, self._sums, self._sums + row, out=self._sums)

    def state_dict(self) -> dict[str, Any]:
        """Names and sums."""
        return {"names": list(self._names), "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._names = tuple(state["names"])
        self._sums = state["sums"].to(self._device)

    def flush(self, *, over_ranks: bool = False) -> dict[str, float]:
        """The sums (over all ranks if asked), and start again from 0. The one transfer to the host."""
        sums = ranks.sum_over_ranks(self._sums) if over_ranks else self._sums
        result = dict(zip(self._names, sums.tolist(), strict=True))
        self._sums.zero_()
        return result
