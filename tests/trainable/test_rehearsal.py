"""How long kernels ran, as a trace tells; what a GPU makes of it is in tests/gpu."""

from __future__ import annotations

from typing import Any

import pytest

from trainable.engine.rehearsal import Use, use_of


def kernel(start: float, duration: float, blocks: float | None = None) -> dict[str, Any]:
    arguments = {} if blocks is None else {"blocks per SM": blocks}
    return {"cat": "kernel", "name": "k", "ts": start, "dur": duration, "args": arguments}


@pytest.mark.parametrize(
    ("events", "busy", "filled"),
    [
        ([], 0, 0),
        ([kernel(10, 5)], 5, 5),
        ([kernel(10, 5, 0.5), kernel(20, 5, 3.0)], 10, 7.5),
        ([kernel(20, 5, 0.1), kernel(10, 5, 0.1)], 10, 1.0),  # a trace is in no order
        ([kernel(0, 10, 0.25), kernel(4, 10, 0.25)], 14, 5.0),  # at the same time, on two streams
        ([kernel(0, 10, 0.25), kernel(2, 3, 0.25)], 10, 3.25),  # one within the other
    ],
)
def test_time_in_which_kernels_run(
    events: list[dict[str, Any]], busy: float, filled: float
) -> None:
    assert use_of(events) == pytest.approx(Use(busy / 1e6, filled / 1e6))


def test_copies_and_what_the_host_does_are_no_kernels() -> None:
    others: list[dict[str, Any]] = [
        {"cat": "gpu_memcpy", "ts": 0, "dur": 5, "args": {"bytes": 8}},
        {"cat": "cuda_runtime", "ts": 0, "dur": 5, "args": {}},
        {"ph": "M", "name": "process_name"},
    ]
    assert use_of(others) == Use(0, 0)
