# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
"""The CUDA kernels that `attention_kernels` launches, in Triton's language: a sample's map is a (P, C) matrix.

Its attention map is u = q/n, with q the sum of squares of each of the P rows, and n the length of q.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_error(
    student,
    teacher,
    energies,
    numbers,
    errors,
    P,
    CS,
    CT,
    floor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """errors, (samples,), of which this program makes one: mean (u_S − u_T)².

    energies, (2, samples, P), are q of both; numbers, (3, samples), n of both, at least `floor`, and how far n_S moves
    the error: Σ u_S·(u_S − u_T).
    """
    sample, samples = tl.program_id(0), tl.num_programs(0)
    mine = energies + sample.to(tl.int64) * P
    theirs = mine + samples.to(tl.int64) * P
    own = _energies(student + sample.to(tl.int64) * P * CS, mine, P, CS, floor, ROWS, WIDTH)
    others = _energies(teacher + sample.to(tl.int64) * P * CT, theirs, P, CT, floor, ROWS, WIDTH)
    tl.debug_barrier()  # all of the program's threads have stored theirs
    squares = tl.zeros([BLOCK], tl.float32)
    along = tl.zeros([BLOCK], tl.float32)
    for start in range(0, P, BLOCK):
        u, off = _difference(mine, theirs, own, others, start, P, BLOCK)
        squares += off * off
        along += u * off
    tl.store(errors + sample, tl.sum(squares, 0) / P)
    tl.store(numbers + sample, own)
    tl.store(numbers + samples + sample, others)
    # Shorter than `floor`, a map is divided by that, which does not change with it.
    tl.store(numbers + 2 * samples + sample, tl.where(own == floor, 0.0, tl.sum(along, 0)))


@triton.jit
def attention_gradient(
    student,
    energies,
    numbers,
    of_error,
    of_student,
    P,
    C,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """2·x·∂/∂q, with ∂/∂q = 2·of_error/(P·n)·((u_S − u_T) − u_S·Σ u_S·(u_S − u_T)), for some rows of a sample."""
    sample, samples = tl.program_id(0), tl.num_programs(0)
    mine = energies + sample.to(tl.int64) * P
    theirs = mine + samples.to(tl.int64) * P
    own, others = tl.load(numbers + sample), tl.load(numbers + samples + sample)
    total = tl.load(numbers + 2 * samples + sample)
    u, off = _difference(mine, theirs, own, others, tl.program_id(1) * ROWS, P, ROWS)
    slope = 4.0 * tl.load(of_error) / P * (off - u * total) / own
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    for first in range(0, C, WIDTH):
        c = first + tl.arange(0, WIDTH)
        is_in = (r < P)[:, None] & (c < C)[None, :]
        at = (sample.to(tl.int64) * P + r)[:, None] * C + c[None, :]
        x = tl.load(student + at, mask=is_in, other=0.0).to(tl.float32)
        tl.store(of_student + at, x * slope[:, None], mask=is_in)


@triton.jit
def _energies(x, energies, P, C, floor, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Stores q, and gives its length."""
    squares = tl.zeros([ROWS], tl.float32)
    for row in range(0, P, ROWS):
        r = row + tl.arange(0, ROWS)
        energy = tl.zeros([ROWS], tl.float32)
        for first in range(0, C, WIDTH):
            c = first + tl.arange(0, WIDTH)
            is_in = (r < P)[:, None] & (c < C)[None, :]
            v = tl.load(x + r[:, None] * C + c[None, :], mask=is_in, other=0.0).to(tl.float32)
            energy += tl.sum(v * v, 1)
        tl.store(energies + r, energy, mask=r < P)
        squares += energy * energy
    length = tl.sqrt(tl.sum(squares, 0))
    return tl.where(length < floor, floor, length)  # a maximum would make a number of NaN


@triton.jit
def _difference(mine, theirs, own, others, start, P, BLOCK: tl.constexpr):
    """u_S and u_S − u_T of some positions."""
    p = start + tl.arange(0, BLOCK)
    u = tl.load(mine + p, mask=p < P, other=0.0) / own
    return u, u - tl.load(theirs + p, mask=p < P, other=0.0) / others
