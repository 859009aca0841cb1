"""BatchNorm over the pictures of all ranks, without a wait for the device.

torch's own `nn.SyncBatchNorm` looks for ranks without pictures, and so waits for the GPU in every layer's
forward; here no rank is without (`data/sampling.py` plans it so). It runs on CPUs too.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from trainable import branches, ranks
from trainable.networks import cpu_kernels, joined_norm, peers
from trainable.networks.joined_norm import Exchanges

_log = logging.getLogger(__name__)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose batch in training is that of all ranks; each must have a picture of its own.

    Output, gradients and running statistics are those of `nn.BatchNorm` on the joined batch, however unequal
    the ranks' shares of it. In eval mode, and on one rank, it is `nn.BatchNorm`. Ranks exchange 2·C + 1 numbers
    each in the forward and 2·C in the backward; it cannot be differentiated twice.
    """

    exchanges: Exchanges | None = None
    """In own kernels, for pictures that they can take; None: in torch's. All ranks must have the same of both."""

    @classmethod
    def in_place_of(cls, old: _BatchNorm) -> SyncBatchNorm:
        """A layer with the very parameters and buffers of `old`, and its settings."""
        new = cls(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
        new.weight, new.bias = old.weight, old.bias
        new.running_mean, new.running_var = old.running_mean, old.running_var
        new.num_batches_tracked = old.num_batches_tracked
        return new.train(old.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (batch, channels, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, …) → the same shape, type and memory format."""
        if not self.training or ranks.world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        running, momentum = (None, None), 0.0
        if self.num_batches_tracked is not None:
            running = (self.running_mean, self.running_var)
            self.num_batches_tracked.add_(1)
            # Without a momentum all batches weigh the same, and the count is read: a wait, as in nn.BatchNorm.
            momentum = self.momentum
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        mean, variance = running
        over = self.exchanges
        if over is not None and joined_norm.takes(input, self.weight, self.bias, mean, variance):
            # Beside each other, the GPUs' own exchanges might wait for one another for ever.
            over = Exchanges() if branches.is_inside() else over
            tensors = (input, None, self.weight, self.bias, mean, variance, None)
            return joined_norm.joined(*tensors, momentum, self.eps, relu=False, over=over)
        return _Joined.apply(input, self.weight, self.bias, running, momentum, self.eps)


def take_own_kernels(network: nn.Module, device: torch.device) -> None:
    """Have the network's SyncBatchNorm run in them from now on, on every rank; dynamo does not see through them.

    By exchanges from GPU to GPU, where one that is tried ends well on all ranks, and else by NCCL.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, SyncBatchNorm)]
    if not layers or ranks.world_size() == 1:
        return
    widths = [_TRIED, *(layer.num_features for layer in layers)]
    inboxes = peers.inboxes([length * width for width in widths for length in (3, 2)], device)
    found = [Exchanges() for _ in widths]
    if inboxes is not None:
        tried, *of_layers = map(Exchanges, inboxes[::2], inboxes[1::2])
        # Some ranks may take longer to compile the kernels: that is over, and agreed on, before anybody waits.
        is_right = all(
            not ranks.on_any_rank(not _ends_well(tried, tries, device), device)
            for tries in (None, _TRIES)
        )
        found = [tried, *of_layers] if is_right else found
    for layer, exchanges in zip(layers, found[1:], strict=True):
        layer.exchanges = exchanges


_TRIED, _TRIES = 32, 2**25
"""Channels of the exchange that is tried, and how often it looks for what comes, each way, before it gives up."""


def _ends_well(tried: Exchanges, tries: int | None, device: torch.device) -> bool:
    """Whether each rank gets what the others send, or without `tries` whether it can ask; if not, the log says so."""
    from trainable.networks import norm_kernels

    world = ranks.world_size()
    each = (tries or 0) // (3 * (world - 1))  # of three words of each other rank
    forward, backward = (inbox and inbox._replace(tries=each) for inbox in tried)
    x = torch.full((1, _TRIED, 1, 2), float(ranks.rank()), device=device)
    x = x.to(memory_format=torch.channels_last)
    weight, bias, mean, variance = torch.ones(4, _TRIED, device=device)
    try:
        found = norm_kernels.statistics_over_ranks(
            x, weight, bias, mean, variance, 0.1, 1e-5, forward
        )
        numbers = [found[row].unique().tolist() for row in (0, 4)]
        is_right = tries is None or numbers == [[(world - 1) / 2], [2 * world]]
        if is_right:
            gradient, _, _ = norm_kernels.gradients(x, x, x, found, False, False, True, backward)
            is_right = bool(gradient.isfinite().all()) or tries is None
        reason = "" if is_right else "what one GPU writes does not reach another"
    except Exception as error:  # of a compiler or a driver: each has its own
        reason = f"{type(error).__name__}: {error}"
    if reason:
        _log.warning("SyncBatchNorm exchanges by NCCL: %s", reason)
    return not reason


class _Joined(torch.autograd.Function):
    """Normalises by the joined batch's statistics, and moves the running ones towards them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _dense(x)
        kernels = _kernels(x)
        mean, invstd = kernels.batch_norm_stats(x, eps)
        channels = mean.numel()
        count = mean.new_full((1,), x.numel() // channels)
        rows = mean.new_zeros(ranks.world_size(), 2 * channels + 1)
        torch.cat([mean, invstd, count], out=rows[ranks.rank()])
        # A sum with zeros, which changes nothing: gathering has another name in each torch and backend.
        ranks.sum_over_ranks(rows)
        means, invstds, counts = rows.split([channels, channels, 1], dim=1)
        counts = counts.reshape(-1)
        # CUDA's takes its numbers to be of the type of the running statistics, or without any of its first argument.
        mean, invstd = kernels.batch_norm_gather_stats_with_counts(
            means, means, invstds, *running, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, invstd, counts.to(torch.int32))
        return kernels.batch_norm_elemt(x, weight, bias, mean, invstd, eps)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, counts = ctx.saved_tensors
        gradient = _dense(gradients[0])
        kernels = _kernels(x)
        # Those of weight and bias stay this rank's: they are summed with all other gradients.
        total, with_centred, of_weight, of_bias = kernels.batch_norm_backward_reduce(
            gradient, x, mean, invstd, weight, *ctx.needs_input_grad[:3]
        )
        of_input = None
        if ctx.needs_input_grad[0]:
            sums = ranks.sum_over_ranks(torch.cat([total, with_centred]))
            of_input = kernels.batch_norm_backward_elemt(
                gradient, x, mean, invstd, weight, *sums.chunk(2), counts
            )
        wanted = zip((of_input, of_weight, of_bias), ctx.needs_input_grad, strict=False)
        return (*(found if needed else None for found, needed in wanted), None, None, None)


def _kernels(x: Tensor) -> Any:
    """torch has these only for CUDA; those for the CPU have the same names and arguments."""
    return torch if x.is_cuda else cpu_kernels


def _dense(x: Tensor) -> Tensor:
    """`x` in a layout that the kernels read: channels last if it has it, or else contiguous."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return x
    return x.contiguous()
