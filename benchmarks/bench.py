"""Run the benchmarks of speed that this machine can, then print their table: `make bench`.

    python benchmarks/bench.py                           a few minutes; on a GPU, or on two CPU cores in smaller forms
    python benchmarks/bench.py --only step observing

Each is its own script with settings for a first look: fewer rounds and smaller batches on CPUs than for the records in
benchmarks/results, which stay as they are. What is measured here is written to runs/benchmarks and shown in one
table with the records of other machines. A script that fails takes no other with it, and is named at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from table import RESULTS, as_text, read

ROOT = Path(__file__).parent.parent


class Benchmark(NamedTuple):
    """A script, and the least number of GPUs that its GPU form needs."""

    script: str
    on_gpus: str | None
    """Its arguments there; None, if it is measured on CPUs on every machine."""
    on_cpus: str | None
    """None, if it has no form for CPUs."""
    gpus: int = 1


BENCHMARKS = {
    "step": Benchmark("step.py", "--rounds 5", "--device cpu --batches 32 --rounds 3 --updates 2"),
    "peers": Benchmark(
        "peers.py", "--batches 128 --rounds 5", "--device cpu --batches 32 --rounds 3 --updates 2"
    ),
    "kernels": Benchmark("kernels.py", "--rounds 3", None),
    "stages": Benchmark(
        "stages.py", "--rounds 3", "--device cpu --batch 32 --rounds 3 --updates 2"
    ),
    "observing": Benchmark(
        "observing.py", "--rounds 3", "--device cpu --batch 32 --rounds 3 --updates 10"
    ),
    "memory": Benchmark("memory.py", "", None),
    "teacher-cache": Benchmark(
        "teacher_cache.py", "--rounds 3", "--device cpu --rounds 3 --epochs 4"
    ),
    "scaling": Benchmark("scaling.py", "--rounds 5", None, gpus=2),
    "trials": Benchmark("trials.py", "--ways study", "--ways study"),
    "scale": Benchmark("scale.py", None, "--trials 60 --places 2"),
    "packing": Benchmark("packing.py", "", None),
    "logging": Benchmark("logging_rate.py", None, "--rounds 1 --trials 20"),
}


def command_of(name: str, gpus: int, output: Path) -> list[str] | None:
    """What to run on a machine with so many GPUs; None where it has no form for them."""
    benchmark = BENCHMARKS[name]
    arguments = benchmark.on_cpus
    if benchmark.on_gpus is not None and gpus >= benchmark.gpus:
        arguments = benchmark.on_gpus
    if arguments is None:
        return None
    return [f"benchmarks/{benchmark.script}", *arguments.split(), "--output", str(output)]


def main() -> None:
    """Run, print, and fail where a script failed."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "benchmarks")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"something else runs here (load average {load:.1f}): expect figures that vary")
    failed: list[str] = []
    for name in options.only:
        command = command_of(name, torch.cuda.device_count(), output)
        if command is None:
            print(f"{name}: left out, it needs {BENCHMARKS[name].gpus} GPU(s)", flush=True)
            continue
        print(f"{name}: python {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            failed.append(name)
    print()
    print(as_text(read([output, RESULTS], options.only)))
    if failed:
        sys.exit(f"{', '.join(failed)} failed: see above")


if __name__ == "__main__":
    main()
