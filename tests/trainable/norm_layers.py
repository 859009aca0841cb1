"""BatchNorm layers of every kind on one rank and on several, for the tests of what joins them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.trainable.trials import CPU
from trainable import ranks
from trainable.config import BatchNormConfig
from trainable.networks.norms import with_norms

SHARES = {2: (5, 2), 3: (4, 1, 2)}
"""Pictures of each rank in a batch of seven."""
CHANNELS, BATCHES = 3, 3
LAYERS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "pictures": (nn.BatchNorm2d, {}, (4, 5)),
    "one pixel": (nn.BatchNorm2d, {}, (1, 1)),
    "vectors": (nn.BatchNorm1d, {}, ()),
    "sequences": (nn.BatchNorm1d, {}, (6,)),
    "volumes": (nn.BatchNorm3d, {}, (2, 3, 2)),
    "plain": (nn.BatchNorm2d, {"affine": False}, (4, 5)),
    "cumulative": (nn.BatchNorm2d, {"momentum": None}, (4, 5)),
    "settings": (nn.BatchNorm2d, {"momentum": 0.7, "eps": 0.3}, (4, 5)),
    "no statistics": (nn.BatchNorm2d, {"track_running_stats": False}, (4, 5)),
}


def layer_of(case: str, kind: torch.dtype) -> nn.Module:
    """With weights and running statistics that are not those of a new layer."""
    make, settings, _ = LAYERS[case]
    generator = torch.Generator().manual_seed(1)
    layer = make(CHANNELS, **settings)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(CHANNELS, generator=generator))
    return layer.to(kind)


def joined_batch(case: str, number: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Seven samples whose ranks' means lie apart, and the gradient of the layer's output."""
    generator = torch.Generator().manual_seed(number)
    shape = (7, CHANNELS, *LAYERS[case][2])
    x, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = x * 3 + torch.arange(7.0).view(-1, *[1] * (len(shape) - 1))
    return x.to(kind), gradient.to(kind)


def own_share() -> slice:
    """All of the batch, where there is one rank."""
    if ranks.world_size() == 1:
        return slice(None)
    before = sum(SHARES[ranks.world_size()][: ranks.rank()])
    return slice(before, before + SHARES[ranks.world_size()][ranks.rank()])


def results_of(
    layer: nn.Module,
    case: str,
    kind: torch.dtype,
    *,
    channels_last: bool = False,
    half: torch.dtype | None = None,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Of some batches in training, the last one's outputs and gradients; then of one in eval mode, all on the CPU."""
    layer, share = layer.to(device), own_share()
    for number in range(BATCHES):
        batch = joined_batch(case, number, kind)
        x, gradient = (tensor[share].to(device, half or kind) for tensor in batch)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        layer.zero_grad()
        with torch.autocast(device.type, half, enabled=half is not None):
            output = layer(x.requires_grad_())
        output.backward(gradient)
    evaluated = layer.eval()(x.detach())
    for parameter in layer.parameters():
        ranks.sum_over_ranks(parameter.grad)  # type: ignore[arg-type] # as a step does
    return {
        "output": output.detach().cpu(),
        "input": x.grad.cpu(),  # type: ignore[union-attr]
        "evaluated": evaluated.detach().cpu(),
        "weights": {name: p.grad.cpu() for name, p in layer.named_parameters()},  # type: ignore[union-attr]
        "state": {name: value.cpu() for name, value in layer.state_dict().items()},
        "is last": output.is_contiguous(memory_format=torch.channels_last),
    }


def sync(layer: nn.Module) -> nn.Module:
    return with_norms(nn.Sequential(layer), BatchNormConfig(sync=True), workers=2)[0]  # type: ignore[index]


def check_joined(found: list[dict[str, Any]], expected: dict[str, Any], bound: float) -> None:
    """What `results_of` gave on each rank, against that of one rank with torch's layer."""
    # A layer without running statistics evaluates by those of each rank's own batch, as torch's layers do.
    evaluated = ("evaluated",) if expected["state"].keys() & {"running_mean"} else ()
    for name in ("output", "input", *evaluated):
        check_close(torch.cat([each[name] for each in found]), expected[name], bound)
    for each in found:
        assert each["is last"] == expected["is last"]
        for name in ("weights", "state"):
            assert each[name].keys() == expected[name].keys()
            for key, value in expected[name].items():
                check_close(each[name][key], value, bound)
                assert torch.equal(each[name][key], found[0][name][key]), key
        assert each["state"].get("num_batches_tracked", BATCHES) == BATCHES


def check_close(mine: Tensor, theirs: Tensor, bound: float) -> None:
    """Up to `bound` of the largest."""
    assert mine.dtype == theirs.dtype
    assert (mine - theirs).abs().max() <= bound * max(1.0, float(theirs.abs().max()))
