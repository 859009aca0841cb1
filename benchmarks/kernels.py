"""Where the time of a step goes on a GPU: its kernels by what they do, and the step against a product of matrices.

    python benchmarks/kernels.py                         the compiled step of benchmarks/step.py, batches of 128 and 512
    python benchmarks/kernels.py --form graph

`step_tflops` are the multiply-adds (2 each) of the teacher's forward, the student's forward and its backward as torch
counts them, over the time of a step; `matmul_tflops` is what a product of two 8192 × 8192 matrices of the same type
reaches in the same run, and `of_matmul` their ratio. `kinds` are the milliseconds of a step in which kernels of a kind
ran, by the profiler; kernels that run beside each other count for both, so `at_once` is how much those sums exceed the
time in which anything ran, and `idle` the time in which nothing did.

Written to benchmarks/results/kernels-<device>.json.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from environment import keep
from loops import Case, Update
from step import FORMS, PICTURES, case_of, config_of, parser, seconds
from torch.utils.flop_counter import FlopCounterMode

from trainable.engine.settings import apply_settings

SIDE, PROFILED = 8192, 5
KINDS = {
    "convolutions, forward": ("fprop",),
    "convolutions, gradient of the input": ("dgrad",),
    "convolutions, gradient of the weights": ("wgrad", "cutlass", "init_device_workspace"),
    "BatchNorm, ReLU, casts, losses": (
        *("triton", "batch_norm", "batchnorm", "bn_", "softmax"),
        *("norm_statistics", "norm_output", "norm_gradient", "squared_error", "attention_"),
    ),
    "optimizer, unscaling, norms, clipping": ("multi_tensor", "lpnorm", "amp_"),
}
OTHER = "augmentation, guard, counts and other small kernels"


class Kernel(NamedTuple):
    """One launch."""

    name: str
    start_us: float
    length_us: float


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return OTHER


def shares(kernels: Iterable[Kernel], span_us: float) -> dict[str, Any]:
    """Milliseconds of each kind, in which some ran at once, and in which none ran, of a span."""
    kinds = dict.fromkeys([*KINDS, OTHER], 0.0)
    busy, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda k: k.start_us):
        kinds[kind_of(kernel.name)] += kernel.length_us / 1000
        last = kernel.start_us + kernel.length_us
        busy += max(0.0, last - max(end, kernel.start_us)) / 1000
        end = max(end, last)
    at_once, idle = sum(kinds.values()) - busy, span_us / 1000 - busy
    return {"kinds": kinds, "at_once": at_once, "idle": idle}


def kernels_of(update: Update, device: torch.device) -> list[Kernel]:
    """Those that some updates launch."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        seconds(update, PROFILED, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    launched = ("kernel", "gpu_memcpy", "gpu_memset")
    return [Kernel(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") in launched]


def flops_of(case: Case) -> int:
    """Floating-point operations of a KD step's networks: the teacher's forward, the student's both ways."""
    images = torch.randn(len(case.pixels.batch.labels), PICTURES.channels, *PICTURES.image_size)
    counted = FlopCounterMode(display=False)
    with counted:
        with torch.no_grad():
            copy.deepcopy(case.teacher).eval()(images)
        copy.deepcopy(case.student)(images).sum().backward()
    return counted.get_total_flops()


def matmul_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """What a product of two square matrices reaches: the median of five turns of ten."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    times: list[float] = []
    for _ in range(6):  # the first prepares
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / 10)
    return 2 * SIDE**3 / statistics.median(times[1:]) / 1e12


def main() -> None:
    """Measure, print, write."""
    command = parser(__doc__)
    command.add_argument("--batches", type=int, nargs="*", default=[128, 512])
    command.add_argument("--form", default="compiled", choices=["graph", "compiled"])
    options = command.parse_args()
    if options.device != "cuda":
        command.error("CUDA's kernels are profiled; there is no such device here")
    device = torch.device("cuda")
    apply_settings(config_of(options.precision, options.batches[0], torch.get_num_threads()))
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(options.precision, torch.float32)
    rate = matmul_tflops(dtype, device)
    print(f"a product of {SIDE}² matrices: {rate:.0f} TFLOP/s")
    found = {str(batch): _measured(options, batch, rate, device) for batch in options.batches}
    keep(options, "kernels", matmul_tflops=rate, batches=found)


def _measured(options: Any, batch: int, rate: float, device: torch.device) -> dict[str, Any]:
    case = case_of(options, batch)
    update = FORMS[options.form](case)
    seconds(update, 24, device)
    step_s = statistics.median(
        seconds(update, options.updates, device) for _ in range(options.rounds)
    )
    kernels = kernels_of(update, device)
    first, last = kernels[0].start_us, max(k.start_us + k.length_us for k in kernels)
    parts = _divided(shares(kernels, last - first), PROFILED)
    reached = flops_of(case) / step_s / 1e12
    print(f"batch {batch}: {1000 * step_s:.2f} ms a step, {reached:.0f} TFLOP/s, ", end="")
    print(f"{100 * reached / rate:.1f} % of the product's; by the profiler, in ms:")
    for name, ms in (*parts["kinds"].items(), *list(parts.items())[1:]):
        print(f"  {name:<54} {ms:6.2f}")
    return {"step_ms": 1000 * step_s, "step_tflops": reached, "of_matmul": reached / rate, **parts}


def _divided(found: dict[str, Any], updates: int) -> dict[str, Any]:
    kinds = {name: ms / updates for name, ms in found["kinds"].items()}
    return {"kinds": kinds, "at_once": found["at_once"] / updates, "idle": found["idle"] / updates}


if __name__ == "__main__":
    main()
