"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from trainable.config import TrialConfig
from trainable.errors import Problem

Check = Callable[[TrialConfig, int | None], Iterator[Problem]]
"""(trial, blocks of its networks, if known) → what is wrong."""


@dataclass(frozen=True)
class Rule:
    """One thing that must hold."""

    reads: tuple[str, ...]
    """Dotted paths of every key that the rule depends on."""
    check: Check

    def reads_any(self, paths: Collection[str]) -> bool:
        """Whether it reads one of these keys, or a key of one of these sections."""
        return any(
            read == path or read.startswith(f"{path}.") for read in self.reads for path in paths
        )
