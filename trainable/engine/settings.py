"""Process-wide settings of a trial, set outright: a reused process keeps what the last trial left."""

from __future__ import annotations

import functools
import os
import threading

import torch
from torch._subclasses import FakeTensorMode

from trainable.config import TrialConfig
from trainable.engine.randomness import seed_everything
from trainable.methods import METHODS

_WORKSPACE, _REPEATABLE = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""Memory of cuBLAS's own, with which its matrix products are repeatable."""


def apply_settings(config: TrialConfig) -> None:
    """Threads, determinism, TF32, fused attention and the global seeds, as the config says."""
    torch.set_num_threads(config.resources.cpus_per_worker)
    # PyTorch reads this once, at a process's first matrix product: too early to know of later trials.
    if os.environ.get(_WORKSPACE) not in _REPEATABLE:
        os.environ[_WORKSPACE] = _REPEATABLE[0]
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.deterministic = config.train.deterministic
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.backends.cuda.matmul.allow_tf32 = config.train.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.train.precision == "tf32"
    # Fused attention has no second derivative, nor would recomputed blocks remember to leave it out.
    fused = not METHODS[config.distill.method].slope
    torch.backends.cuda.enable_flash_sdp(fused)
    torch.backends.cuda.enable_mem_efficient_sdp(fused)
    torch.backends.cuda.enable_cudnn_sdp(fused)
    seed_everything(config.train.seed)
    _trace_once()


@functools.cache
def _trace_once() -> None:
    """Have a thread that does not end trace before all others.

    A torch that is built for CUDA, on a machine without a GPU, keeps a pointer to what the first thread to trace owns,
    and crashes in the next once that has ended (2.11): every trial has a thread of its own.
    """
    if torch.version.cuda is None or torch.cuda.is_available():
        return
    is_done = threading.Event()

    def trace() -> None:
        try:
            with FakeTensorMode():
                pass
        finally:
            is_done.set()
        threading.Event().wait()

    threading.Thread(target=trace, name="traced-first", daemon=True).start()
    is_done.wait()
