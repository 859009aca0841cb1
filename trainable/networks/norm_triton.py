# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportMissingTypeStubs=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
"""The CUDA kernels that `norm_kernels` launches, in Triton's language.

A tile has ROWS rows and WIDTH channels of the (m, C) matrix x. Sums over the rows are made in `count` parts, each by a
program that asks for AT_ONCE tiles before it needs the first.
"""

from __future__ import annotations

import triton
import triton.language as tl

BY_OUTPUT, BY_INPUT = tl.constexpr(1), tl.constexpr(2)
"""How the backward pass knows where ReLU let pass: by its output, or from x, where nothing was added in between."""
_SAMPLED = tl.constexpr(32)
"""Rows whose mean a channel's sums are made about."""
_PARTS = tl.constexpr(64)
"""Read at once by the program that adds them up."""


@triton.jit
def norm_statistics(
    x,
    parts,
    arrivals,
    found,
    weight,
    bias,
    running_mean,
    running_var,
    tracked,
    m,
    rows_of_part,
    count,
    eps,
    momentum,
    TRACKED: tl.constexpr,
    C,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The numbers of each channel (`_settle`) from all rows of x."""
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_channel = c < C
    about = _about(x, m, c, is_channel, C)
    one, two = _sums_about(x, about, m, rows_of_part, c, is_channel, C, ROWS, AT_ONCE, WIDTH)
    if _is_last(parts, arrivals, one, two, c, is_channel, count, C):
        mean, variance = _moments(parts, about, m, c, is_channel, count, C, WIDTH)
        _settle(
            mean,
            variance,
            m,
            found,
            weight,
            bias,
            running_mean,
            running_var,
            eps,
            momentum,
            c,
            is_channel,
            C,
        )
        if TRACKED and tl.program_id(1) == 0:
            tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def norm_moments(
    x,
    parts,
    arrivals,
    of_ranks,
    own,
    ranks,
    m,
    rows_of_part,
    count,
    C,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """(ranks, 2·C + 1): mean and variance of each channel over the rows of x, and their number; zeros of others."""
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_channel = c < C
    about = _about(x, m, c, is_channel, C)
    one, two = _sums_about(x, about, m, rows_of_part, c, is_channel, C, ROWS, AT_ONCE, WIDTH)
    if _is_last(parts, arrivals, one, two, c, is_channel, count, C):
        mean, variance = _moments(parts, about, m, c, is_channel, count, C, WIDTH)
        for rank in range(ranks):
            at = of_ranks + rank * (2 * C + 1)
            tl.store(at + c, tl.where(rank == own, mean, 0.0), mask=is_channel)
            tl.store(at + C + c, tl.where(rank == own, variance, 0.0), mask=is_channel)
            if tl.program_id(1) == 0:
                tl.store(at + 2 * C, tl.where(rank == own, m * 1.0, 0.0))


@triton.jit(do_not_specialize=["tries"])
def norm_statistics_over_peers(
    x,
    parts,
    arrivals,
    found,
    weight,
    bias,
    running_mean,
    running_var,
    inboxes,
    numbers,
    tries,
    own,
    ranks,
    m,
    rows_of_part,
    count,
    eps,
    momentum,
    C,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The numbers of each channel (`_settle`) from the rows of all ranks, which each sends the others itself.

    Means and variances are joined one after the other (Chan et al. 1979), in the order of the ranks.
    """
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_channel = c < C
    about = _about(x, m, c, is_channel, C)
    one, two = _sums_about(x, about, m, rows_of_part, c, is_channel, C, ROWS, AT_ONCE, WIDTH)
    if _is_last(parts, arrivals, one, two, c, is_channel, count, C):
        mean, variance = _moments(parts, about, m, c, is_channel, count, C, WIDTH)
        number = tl.load(numbers + tl.program_id(1)) + 1
        own_m = tl.zeros([WIDTH], tl.float32) + m
        for rank in range(ranks):
            if rank != own:
                to = _place_of(inboxes, rank, own, ranks, number, 3 * C) + c
                _push(to, mean, number, is_channel)
                _push(to + C, variance, number, is_channel)
                _push(to + 2 * C, own_m, number, is_channel)
        joined_m = tl.zeros([WIDTH], tl.float32)
        joined_mean = tl.zeros([WIDTH], tl.float32)
        squares = tl.zeros([WIDTH], tl.float32)
        for rank in range(ranks):
            if rank == own:
                its_mean, its_variance, its_m = mean, variance, own_m
            else:
                at = _place_of(inboxes, own, rank, ranks, number, 3 * C) + c
                its_mean = _pulled(at, number, tries, is_channel)
                its_variance = _pulled(at + C, number, tries, is_channel)
                its_m = _pulled(at + 2 * C, number, tries, is_channel)
            both = joined_m + its_m
            off = its_mean - joined_mean
            squares += its_m * its_variance + off * off * (joined_m * its_m / both)
            joined_mean += off * (its_m / both)
            joined_m = both
        _settle(
            joined_mean,
            squares / joined_m,
            joined_m,
            found,
            weight,
            bias,
            running_mean,
            running_var,
            eps,
            momentum,
            c,
            is_channel,
            C,
        )
        tl.debug_barrier()  # every warp has read the last one's
        tl.store(numbers + tl.program_id(1), number)


@triton.jit
def norm_join(
    rows,
    found,
    weight,
    bias,
    running_mean,
    running_var,
    ranks,
    eps,
    momentum,
    C,
    WIDTH: tl.constexpr,
):
    """The numbers of each channel (`_settle`) from the moments of all ranks (Chan et al. 1979)."""
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    is_channel = c < C
    m = 0.0
    mean = tl.zeros([WIDTH], tl.float32)
    for rank in range(ranks):
        at = rows + rank * (2 * C + 1)
        m += tl.load(at + 2 * C)
        mean += tl.load(at + 2 * C) * tl.load(at + c, mask=is_channel, other=0.0)
    mean = mean / m
    variance = tl.zeros([WIDTH], tl.float32)
    for rank in range(ranks):
        at = rows + rank * (2 * C + 1)
        off = tl.load(at + c, mask=is_channel, other=0.0) - mean
        own = tl.load(at + C + c, mask=is_channel, other=0.0)
        variance += tl.load(at + 2 * C) * (own + off * off)
    _settle(
        mean,
        variance / m,
        m,
        found,
        weight,
        bias,
        running_mean,
        running_var,
        eps,
        momentum,
        c,
        is_channel,
        C,
    )


@triton.jit
def norm_output(
    x,
    shortcut,
    y,
    found,
    m,
    C,
    ADDED: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """y = x·factor + shift + shortcut, and its ReLU."""
    at, is_in, c, is_channel = _place(m, C, ROWS, WIDTH)
    factor = tl.load(found + 2 * C + c, mask=is_channel, other=0.0)[None, :]
    shift = tl.load(found + 3 * C + c, mask=is_channel, other=0.0)[None, :]
    v = tl.load(x + at, mask=is_in, other=0.0).to(tl.float32) * factor + shift
    if ADDED:
        v += tl.load(shortcut + at, mask=is_in, other=0.0).to(tl.float32)
    if RELU:
        v = tl.where(v <= 0, 0.0, v)  # NaN stays: what is not finite is to be found
    tl.store(y + at, v, mask=is_in)


@triton.jit(do_not_specialize=["tries"])
def norm_gradient_sums(
    x,
    y,
    dy,
    of_shortcut,
    parts,
    arrivals,
    found,
    of_channels,
    joined,
    inboxes,
    numbers,
    tries,
    own,
    ranks,
    m,
    rows_of_part,
    count,
    ADDED: tl.constexpr,
    PASSED: tl.constexpr,
    C,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of γ and of β: Σ g·(x − mean)/√(variance + ε) and Σ g, where g is what ReLU lets pass of dy.

    The gradient of the shortcut, if there is one, is g, which `norm_gradients` reads there in place of dy.
    `joined`, if there is any, gets the same for all ranks to sum, or where there are `inboxes` the ranks' sums.
    """
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_channel = c < C
    mean = tl.load(found + c, mask=is_channel, other=0.0)
    factor = tl.load(found + 2 * C + c, mask=is_channel, other=0.0)
    shift = tl.load(found + 3 * C + c, mask=is_channel, other=0.0)
    first = tl.program_id(0) * rows_of_part
    last = tl.minimum(first + rows_of_part, m)
    one = tl.zeros([ROWS, WIDTH], tl.float32)
    two = tl.zeros([ROWS, WIDTH], tl.float32)
    for row in tl.range(first, last, ROWS, loop_unroll_factor=AT_ONCE):
        r = row + tl.arange(0, ROWS)
        is_in = (r < last)[:, None] & is_channel[None, :]
        at = r[:, None].to(tl.int64) * C + c[None, :]
        v = tl.load(x + at, mask=is_in, other=0.0).to(tl.float32)
        g = _passed(dy, y, v, at, is_in, factor[None, :], shift[None, :], PASSED)
        if ADDED:
            tl.store(of_shortcut + at, g, mask=is_in)
        one += g
        two += tl.where(is_in, g * (v - mean[None, :]), 0.0)
    if _is_last(parts, arrivals, tl.sum(one, 0), tl.sum(two, 0), c, is_channel, count, C):
        total, centred = _both(parts, c, is_channel, count, C, WIDTH)
        invstd = tl.load(found + C + c, mask=is_channel, other=0.0)
        tl.store(of_channels + c, centred * invstd, mask=is_channel)
        tl.store(of_channels + C + c, total, mask=is_channel)
        if joined is not None:
            of_weight, of_bias = centred * invstd, total
            if inboxes is not None:
                number = tl.load(numbers + tl.program_id(1)) + 1
                for rank in range(ranks):
                    if rank != own:
                        to = _place_of(inboxes, rank, own, ranks, number, 2 * C) + c
                        _push(to, centred * invstd, number, is_channel)
                        _push(to + C, total, number, is_channel)
                of_weight = tl.zeros([WIDTH], tl.float32)
                of_bias = tl.zeros([WIDTH], tl.float32)
                for rank in range(ranks):
                    if rank == own:
                        of_weight += centred * invstd
                        of_bias += total
                    else:
                        at_rank = _place_of(inboxes, own, rank, ranks, number, 2 * C) + c
                        of_weight += _pulled(at_rank, number, tries, is_channel)
                        of_bias += _pulled(at_rank + C, number, tries, is_channel)
                tl.debug_barrier()
                tl.store(numbers + tl.program_id(1), number)
            tl.store(joined + c, of_weight, mask=is_channel)
            tl.store(joined + C + c, of_bias, mask=is_channel)


@triton.jit
def norm_gradients(
    x,
    dy,
    dx,
    of_channels,
    found,
    m,
    C,
    PASSED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of x, factor·(g − Σ g/M − x̂·Σ g·x̂/M) with x̂ = (x − mean)/√(variance + ε), and g what passed of dy."""
    at, is_in, c, is_channel = _place(m, C, ROWS, WIDTH)
    mean = tl.load(found + c, mask=is_channel, other=0.0)
    invstd = tl.load(found + C + c, mask=is_channel, other=0.0)
    factor = tl.load(found + 2 * C + c, mask=is_channel, other=0.0)
    shift = tl.load(found + 3 * C + c, mask=is_channel, other=0.0)
    over = factor / tl.load(found + 4 * C + c, mask=is_channel, other=1.0)
    slope = -over * invstd * tl.load(of_channels + c, mask=is_channel, other=0.0)
    level = -over * tl.load(of_channels + C + c, mask=is_channel, other=0.0) - slope * mean
    v = tl.load(x + at, mask=is_in, other=0.0).to(tl.float32)
    g = _passed(dy, None, v, at, is_in, factor[None, :], shift[None, :], PASSED)
    tl.store(dx + at, g * factor[None, :] + v * slope[None, :] + level[None, :], mask=is_in)


@triton.jit
def _place(m, C, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_channel = c < C
    at = r[:, None].to(tl.int64) * C + c[None, :]
    return at, (r < m)[:, None] & is_channel[None, :], c, is_channel


@triton.jit
def _passed(dy, y, v, at, is_in, factor, shift, PASSED: tl.constexpr):
    g = tl.load(dy + at, mask=is_in, other=0.0).to(tl.float32)
    if PASSED == BY_OUTPUT:
        g = tl.where(tl.load(y + at, mask=is_in, other=0.0) > 0, g, 0.0)
    if PASSED == BY_INPUT:
        g = tl.where(v * factor + shift > 0, g, 0.0)
    return g


@triton.jit
def _is_last(parts, arrivals, one, two, c, is_channel, count, C):
    """Leaves this program's sums for the last of its column, and says whether it is that one."""
    at = parts + tl.program_id(0) * C + c
    tl.store(at, one, mask=is_channel)
    tl.store(at + count * C, two, mask=is_channel)
    tl.debug_barrier()  # all of the program's threads have stored theirs
    before = tl.atomic_add(arrivals + tl.program_id(1), 1, sem="acq_rel")
    if before == count - 1:
        tl.store(arrivals + tl.program_id(1), 0)
    return before == count - 1


@triton.jit
def _place_of(inboxes, receiver, sender, ranks, number, length):
    """Where a sender's words of the exchange of this number are in the receiver's inbox, (2, ranks, length).

    Two halves are enough: who is at number n + 2 has all that was sent at n + 1, by programs that had ended n.
    """
    inbox = tl.load(inboxes + receiver).to(tl.pointer_type(tl.int64))
    return inbox + ((number & 1) * ranks + sender) * length


@triton.jit
def _push(to, values, number, is_channel):
    """Send values, each in one word with the exchange's number: who sees that has the value."""
    low = values.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    words = low | (number.to(tl.int64) << 32)
    tl.atomic_xchg(to, words, mask=is_channel, sem="relaxed", scope="sys")


@triton.jit
def _pulled(at, number, tries, is_channel):
    """The values that were sent with this number, as soon as they are there; NaN if they are not after many tries."""
    words = tl.load(at, mask=is_channel, other=0, volatile=True)
    done = 0
    while (_is_late(words, number, is_channel) > 0) & (done < tries):
        words = tl.load(at, mask=is_channel, other=0, volatile=True)
        done += 1
    # Warps that hold the same words have loaded them each for itself, and only one of them has been asked.
    words = tl.load(at, mask=is_channel, other=0, volatile=True)
    values = (words & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where((words >> 32).to(tl.int32) == number, values, float("nan"))


@triton.jit
def _is_late(words, number, is_channel):
    return tl.max(tl.where(is_channel & ((words >> 32).to(tl.int32) != number), 1, 0), 0)


@triton.jit
def _both(parts, c, is_channel, count, C, WIDTH: tl.constexpr):
    """The two sums over all parts."""
    one = tl.zeros([_PARTS, WIDTH], tl.float32)
    two = tl.zeros([_PARTS, WIDTH], tl.float32)
    for part in range(0, count, _PARTS):
        p = part + tl.arange(0, _PARTS)
        is_in = (p < count)[:, None] & is_channel[None, :]
        at = parts + p[:, None] * C + c[None, :]
        one += tl.load(at, mask=is_in, other=0.0, cache_modifier=".cg")
        two += tl.load(at + count * C, mask=is_in, other=0.0, cache_modifier=".cg")
    return tl.sum(one, 0), tl.sum(two, 0)


@triton.jit
def _move(running, value, momentum, c, is_channel):
    old = tl.load(running + c, mask=is_channel, other=0.0)
    tl.store(running + c, old + momentum * (value - old), mask=is_channel)


@triton.jit
def _sums_about(
    x,
    about,
    m,
    rows_of_part,
    c,
    is_channel,
    C,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of this program's rows: Σ d and Σ d², with d what a value is off one of its channel.

    Σ x² − M·μ² would lose what is small beside the mean.
    """
    first = tl.program_id(0) * rows_of_part
    last = tl.minimum(first + rows_of_part, m)
    one = tl.zeros([ROWS, WIDTH], tl.float32)
    two = tl.zeros([ROWS, WIDTH], tl.float32)
    for row in tl.range(first, last, ROWS, loop_unroll_factor=AT_ONCE):
        r = row + tl.arange(0, ROWS)
        is_in = (r < last)[:, None] & is_channel[None, :]
        v = tl.load(x + r[:, None].to(tl.int64) * C + c[None, :], mask=is_in, other=0.0)
        d = tl.where(is_in, v.to(tl.float32) - about[None, :], 0.0)
        one += d
        two += d * d
    return tl.sum(one, 0), tl.sum(two, 0)


@triton.jit
def _about(x, m, c, is_channel, C):
    """A value near each channel's mean, however far off a single one is: the mean of rows all over x."""
    r = tl.arange(0, _SAMPLED).to(tl.int64) * m // _SAMPLED
    at = r[:, None] * C + c[None, :]
    v = tl.load(x + at, mask=is_channel[None, :], other=0.0).to(tl.float32)
    return tl.sum(v, 0) / _SAMPLED


@triton.jit
def _moments(parts, about, m, c, is_channel, count, C, WIDTH: tl.constexpr):
    """Mean and variance from the sums of all parts."""
    total, squares = _both(parts, c, is_channel, count, C, WIDTH)
    off = total / m
    variance = squares / m - off * off
    return about + off, tl.where(variance < 0, 0.0, variance)  # a maximum would make 0 of NaN


@triton.jit
def _settle(
    mean,
    variance,
    m,
    found,
    weight,
    bias,
    running_mean,
    running_var,
    eps,
    momentum,
    c,
    is_channel,
    C,
):
    """Stores mean, 1/√(variance + ε), factor, shift and M in `found`, (5, C), and moves the running statistics."""
    invstd = 1.0 / tl.sqrt(variance + eps)
    factor = tl.load(weight + c, mask=is_channel, other=0.0) * invstd
    shift = tl.load(bias + c, mask=is_channel, other=0.0) - mean * factor
    tl.store(found + c, mean, mask=is_channel)
    tl.store(found + C + c, invstd, mask=is_channel)
    tl.store(found + 2 * C + c, factor, mask=is_channel)
    tl.store(found + 3 * C + c, shift, mask=is_channel)
    tl.store(found + 4 * C + c, invstd * 0 + m, mask=is_channel)
    _move(running_mean, mean, momentum, c, is_channel)
    _move(running_var, variance * (m / (m - 1.0)), momentum, c, is_channel)
