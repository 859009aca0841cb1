"""torch's random numbers as a function of a word, for transforms that draw from its own generator."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def drawing_from(word: int) -> Generator[None]:
    """Within it torch's generator for the CPU begins at the 64-bit seed `word`; then it is as before."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(word)
        yield
