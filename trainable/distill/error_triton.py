# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
"""The CUDA kernels that `error_kernels` launches, in Triton's language; the maps are rows of n numbers."""

from __future__ import annotations

import triton
import triton.language as tl

_PARTS = tl.constexpr(512)
"""Read at once by the program that adds them up."""


@triton.jit
def squared_error_sum(
    student, teacher, parts, arrivals, total, n, of_part, count, factor, BLOCK: tl.constexpr
):
    """total = factor·Σ (student − teacher)², in `count` parts that are always added in the same order."""
    part = tl.program_id(0)
    first = part.to(tl.int64) * of_part
    last = tl.minimum(first + of_part, n)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, of_part, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        off = _difference(student, teacher, at, at < last)
        sums += off * off
    tl.store(parts + part, tl.sum(sums, 0))
    tl.debug_barrier()  # all of the program's threads are through
    before = tl.atomic_add(arrivals, 1, sem="acq_rel")
    if before == count - 1:
        tl.store(arrivals, 0)
        sums_of_parts = tl.zeros([_PARTS], tl.float32)
        for start in range(0, count, _PARTS):
            p = start + tl.arange(0, _PARTS)
            sums_of_parts += tl.load(parts + p, mask=p < count, other=0.0, cache_modifier=".cg")
        tl.store(total, factor * tl.sum(sums_of_parts, 0))


@triton.jit
def squared_error_gradient(student, teacher, of_total, of_student, n, factor, BLOCK: tl.constexpr):
    """2·factor·of_total·(student − teacher)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    slope = 2.0 * factor * tl.load(of_total)
    tl.store(of_student + at, slope * _difference(student, teacher, at, at < n), mask=at < n)


@triton.jit
def _difference(student, teacher, at, is_in):
    one = tl.load(student + at, mask=is_in, other=0.0).to(tl.float32)
    return one - tl.load(teacher + at, mask=is_in, other=0.0).to(tl.float32)
