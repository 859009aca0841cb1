"""Functions in kernels that torch.compile makes of them, where a step asks for it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec

import torch
from torch import Tensor

Inputs = ParamSpec("Inputs")
_log = logging.getLogger(__name__)

_FORMS = 256
"""Of one function that torch.compile keeps: every block and feature, for every batch size that a study tries."""


class Compiler:
    """While it is at work, what is `compilable` runs compiled, on micro-batches of one size.

    Others, such as an epoch's short last one, run as they are written. Where something cannot be compiled all does
    from then on, and a line in the log says why.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.is_refused = False

    @contextmanager
    def at_work(self, size: int) -> Generator[None]:
        """Inside, a micro-batch of `size` samples is computed."""
        token = _at_work.set(self if size == self._size else None)
        try:
            yield
        finally:
            _at_work.reset(token)

    def refuse(self, error: Exception) -> None:
        """Compile no more."""
        self.is_refused = True
        reason = str(error).strip().partition("\n")[0]
        _log.warning("the student runs as it is written, not compiled: %s", reason)


_at_work: ContextVar[Compiler | None] = ContextVar("compiler", default=None)


def compilable(function: Callable[Inputs, Tensor]) -> Callable[Inputs, Tensor]:
    """Marks a function of tensors and modules, whose first dimension is the micro-batch's.

    What is compiled serves the whole process: every stage, and every later trial. So that it does, the function
    must not take numbers which a study searches.
    """

    @functools.wraps(function)
    def run(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tensor:
        compiler = _at_work.get()
        if compiler is not None and not compiler.is_refused:
            try:
                return _compiled(function)(*args, **kwargs)
            except RuntimeError as error:
                compiler.refuse(error)
        return function(*args, **kwargs)

    return run


@functools.cache
def _compiled(function: Callable[Inputs, Tensor]) -> Callable[Inputs, Tensor]:
    from torch._dynamo import config  # takes seconds, for those who compile

    config.recompile_limit = _FORMS
    return torch.compile(function, dynamic=False)
