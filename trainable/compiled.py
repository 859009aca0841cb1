"""Functions in other kernels than torch's own, through torch.compile or the project's, where a step asks for it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec

import torch
from torch import Tensor

Inputs = ParamSpec("Inputs")
_log = logging.getLogger(__name__)

_FORMS = 10_000
"""Of one function that torch.compile keeps, so many that no trial runs as it is written because of those before it:
every block and feature, for every batch size, and for every dropout and BatchNorm momentum that a study searches."""


Backend = str | Callable[..., Any]
"""Of torch.compile, or OWN."""
OWN = "own"
"""Of formulas: no compiler, but the project's kernels wherever there are some."""


class Compiler:
    """While it is at work, what is `compilable` runs in other kernels, on micro-batches of one size.

    Others, such as an epoch's short last one, run as they are written. Where something cannot be compiled all does
    from then on, and a line in the log says why.
    """

    def __init__(
        self,
        size: int,
        *,
        layers: Backend | None = None,
        formulas: Backend | None = None,
    ) -> None:
        """Without a backend, layers or formulas run as they are written."""
        self._size = size
        self.layers, self.formulas = layers, formulas
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
        reason = " ".join(str(error).split("\n")[:2])  # which compiler failed, and why
        _log.warning("the student runs as it is written, in torch's own kernels: %s", reason)


_at_work: ContextVar[Compiler | None] = ContextVar("compiler", default=None)


def compilable(
    function: Callable[Inputs, Tensor], own: Callable[Inputs, Tensor] | None = None
) -> Callable[Inputs, Tensor]:
    """Marks a formula of tensors, whose first dimension is the micro-batch's; `own` has it in the project's kernels.

    What is compiled serves the whole process: every stage, and every later trial. So that it does, the function
    must not take numbers which a study searches often.
    """
    return _compiled_by(lambda compiler: compiler.formulas, function, own)


def compilable_layers(function: Callable[Inputs, Tensor]) -> Callable[Inputs, Tensor]:
    """`compilable`, of a function that has layers do the work."""
    return _compiled_by(lambda compiler: compiler.layers, function)


def _compiled_by(
    backend_of: Callable[[Compiler], Backend | None],
    function: Callable[Inputs, Tensor],
    own: Callable[Inputs, Tensor] | None = None,
) -> Callable[Inputs, Tensor]:
    @functools.wraps(function)
    def run(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tensor:
        compiler = _at_work.get()
        backend = None if compiler is None or compiler.is_refused else backend_of(compiler)
        if backend == OWN:
            return (own or function)(*args, **kwargs)
        if compiler is not None and backend is not None:
            try:
                return _compiled(function, backend)(*args, **kwargs)
            except RuntimeError as error:
                if not _is_of_compiling(error):
                    raise
                compiler.refuse(error)
        return function(*args, **kwargs)

    return run


@functools.cache
def _compiled(function: Callable[Inputs, Tensor], backend: Backend) -> Callable[Inputs, Tensor]:
    from torch._dynamo import config  # takes seconds, for those who compile
    from torch._functorch import config as autograd

    config.recompile_limit = config.accumulated_recompile_limit = _FORMS
    # A hook that a layer is given later, or that the same layer of an earlier trial had not, is called.
    config.skip_nnmodule_hook_guards = False
    # So that what cannot be compiled for the backward pass is seen in the forward.
    autograd.force_non_lazy_backward_lowering = True
    # Whole or not at all: a part that has run, and a later one that cannot be compiled, would make it run twice.
    return torch.compile(function, backend=backend, dynamic=False, fullgraph=True)


def _is_of_compiling(error: RuntimeError) -> bool:
    """Whether nothing of the function has run yet; a fault while it runs, such as a lack of memory, is the trial's."""
    from torch._dynamo.exc import TorchDynamoException

    is_capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return isinstance(error, TorchDynamoException) and not is_capturing
