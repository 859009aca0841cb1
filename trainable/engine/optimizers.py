"""The optimizer of a trial: fused, with its learning rate in a tensor, and state from the start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from trainable.config import OptimConfig

_ADAM_BETA2 = 0.999


def build_optimizer(
    config: OptimConfig, parameters: Iterable[nn.Parameter], device: torch.device
) -> Optimizer:
    """SGD or AdamW over `parameters`. Fused kernels skip an update on the device, without a host sync."""
    parameters = list(parameters)
    lr = torch.tensor(config.lr, device=device)
    if config.name == "adamw":
        betas = (config.momentum, _ADAM_BETA2)
        return AdamW(
            parameters,
            lr,
            betas=betas,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
    optimizer = SGD(
        parameters,
        lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov and config.momentum > 0,
        fused=True,
    )
    if config.momentum > 0:
        # Fused SGD whose first update is skipped would leave its buffers uninitialised memory.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def reset_state(optimizer: Optimizer) -> None:
    """Make the next update the first one: momentum, moments and count of updates 0, where they lie in memory."""
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Write the learning rate of the next update into the optimizer's tensor."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


def step(optimizer: Optimizer, skipped: Tensor) -> None:
    """Take the optimizer's step unless `skipped` is 1: a fused one reads it on the device, and leaves all alone."""
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]
