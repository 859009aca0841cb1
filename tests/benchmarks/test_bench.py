from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.conftest import BENCHMARKS

Script = Callable[[str], Any]


def test_every_benchmark_of_the_table_is_run(script: Script) -> None:
    bench, table = script("bench"), script("table")
    assert list(bench.BENCHMARKS) == list(table.READERS)
    for benchmark in bench.BENCHMARKS.values():
        assert (BENCHMARKS / benchmark.script).is_file()


def test_a_form_suits_the_machine(script: Script) -> None:
    bench = script("bench")
    on_cpus, on_a_gpu = (bench.command_of("step", gpus, Path("out")) for gpus in (0, 1))
    assert on_cpus[:3] == ["benchmarks/step.py", "--device", "cpu"]
    assert "cpu" not in on_a_gpu
    assert on_cpus[-2:] == on_a_gpu[-2:] == ["--output", "out"]
    assert bench.command_of("memory", 0, Path("out")) is None
    assert bench.command_of("memory", 1, Path("out")) is not None
    logging = [bench.command_of("logging", gpus, Path("out")) for gpus in (0, 8)]
    assert logging[0] == logging[1]
