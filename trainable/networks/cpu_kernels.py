"""The steps of BatchNorm over ranks as torch has them for CUDA, in plain tensor operations for the CPU.

Names and arguments are those of `torch.batch_norm_stats` and the others. Half precision is computed in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1/√(variance + eps) of each channel: (batch, channels, …) → (channels,) each."""
    variance, mean = torch.var_mean(_wide(x), _all_but_channels(x), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and 1/√(variance + eps) of parts with these (parts, channels) statistics and (parts,) counts, joined.

    The running statistics move towards them by `momentum`; as always the variance does so unbiased.
    """
    del x
    total = counts.sum()
    share = (counts / total).unsqueeze(1)
    mean = (share * means).sum(0)
    # A part's variance, and what its mean adds to that of the whole (Chan et al. 1979).
    variance = (share * (invstds.pow(-2) - eps + (means - mean).square())).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (total / (total - 1))
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """(x − mean)·invstd·weight + bias, in the type of `x`."""
    del eps
    scale = invstd if weight is None else invstd * weight
    y = (_wide(x) - _over_channels(mean, x)) * _over_channels(scale, x)
    if bias is not None:
        y = y + _over_channels(bias, x)
    # Under torch.compile torch 2.11 takes the gradient of an output to be zero that a cast has only passed on.
    return y if y.dtype == x.dtype else y.to(x.dtype)


def batch_norm_backward_reduce(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    of_input: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per channel, with g the gradient of the output: Σ g, Σ g·(x − mean), and what weight and bias get."""
    del weight, of_input, of_weight, of_bias
    dims = _all_but_channels(x)
    wide = _wide(gradient)
    total = wide.sum(dims)
    with_centred = (wide * (_wide(x) - _over_channels(mean, x))).sum(dims)
    return total, with_centred, with_centred * invstd, total


def batch_norm_backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    total: Tensor,
    with_centred: Tensor,
    counts: Tensor,
) -> Tensor:
    """The input's gradient, from the sums of `batch_norm_backward_reduce` over all parts."""
    samples = counts.sum()
    scale = invstd if weight is None else invstd * weight
    slope = invstd.square() * with_centred / samples
    centred = _wide(x) - _over_channels(mean, x)
    inner = _wide(gradient) - _over_channels(total / samples, x)
    found = (inner - centred * _over_channels(slope, x)) * _over_channels(scale, x)
    return found.to(x.dtype)


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _over_channels(values: Tensor, like: Tensor) -> Tensor:
    """(channels,) → a shape that broadcasts over `like`."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
