"""Networks that name their blocks themselves, in a method `blocks_in_order`, where tracing cannot go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainable.errors import ConfigError, InputError, input_error, reason_of
from trainable.memory import is_out_of_memory

HAND_MADE = "blocks_in_order"
"""A method of a network: () → [(name, module), …], which applied one after the other are its forward."""

_NEAR = 1e-3
"""Root mean square of what the blocks are off by, over that of the forward: rounding is far below, a layer above."""
_PICTURES = 2
_FORM = "it gives its blocks as [(name, module), …], the first one first"


def is_by_hand(network: nn.Module) -> bool:
    """Whether the network names its blocks itself."""
    return hasattr(network, HAND_MADE)


def in_a_row(network: nn.Module, path: str) -> nn.Sequential:
    """The blocks that a network names itself; ConfigError, in the name of `path`, where they cannot be its own."""
    root = nn.Sequential()
    held = {id(tensor) for tensor in (*network.parameters(), *network.buffers())}
    for name, module in _pairs(network, path):
        if not name or "." in name or hasattr(root, name):
            rule = "must name each block once, without dots, and not as an attribute of a module"
            raise _refusal(network, path, rule, "choose another name", name)
        root.add_module(name, module)
        foreign = [
            key
            for key, tensor in (*module.named_parameters(), *module.named_buffers())
            if id(tensor) not in held
        ]
        if foreign:
            got = f"{name} with {', '.join(foreign)}"
            raise _refusal(
                network, path, "must give what the network holds", "make it in __init__", got
            )
    if not len(root):
        raise _refusal(network, path, "must give one block or more", _FORM, "none")
    return root.train(network.training)


def check_composition(
    network: nn.Module, blocks: nn.Module, size: Sequence[int], path: str
) -> None:
    """ConfigError unless blocks applied one after the other are the network's forward, in evaluation.

    Compared on noise of `size` (channels, height, width). For this the network, which nobody else may use, gets
    other weights where they are all alike, as those that begin as zeros would hide what a block leaves out; it
    seeds torch's generator of the CPU, so that layers that draw draw the same twice.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[:1]).all()):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        images = torch.randn(_PICTURES, *size, generator=generator)
        whole = _tensors(_answer(network, network, images, path, "forward"))
        composed = _answer(network, blocks, images, path, f"blocks of {HAND_MADE}")
    rule = "must give what the forward gives, applied one after the other"
    remedy = f"let {HAND_MADE} give every step of the forward once, in its order"
    if not isinstance(composed, Tensor):
        raise _refusal(network, path, rule, remedy, type(composed).__name__)
    alike = [answer for answer in whole if answer.shape == composed.shape]
    if not alike:
        shapes = [str(tuple(answer.shape[1:])) for answer in (composed, *whole)]
        got = f"{shapes[0]} of a picture, and {' and '.join(shapes[1:]) or 'no tensor'} of the forward"
        raise _refusal(network, path, rule, remedy, got)
    off = min(_distance(composed, answer) for answer in alike)
    if off > _NEAR:
        got = f"logits that are {100 * off:,.1f} % off"
        raise _refusal(network, path, rule, remedy, got)


def _pairs(network: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """What the method gives, seen to be pairs."""
    own: Any = getattr(network, HAND_MADE)
    if not callable(own):
        rule = "must be a method without arguments"
        raise _refusal(network, path, rule, _FORM, type(own).__name__)
    try:
        given = list(cast("Iterable[Any]", own()))
    except Exception as error:  # whatever a person's own code raises
        rule = f"must be a method without arguments that gives pairs ({reason_of(error)})"
        raise _refusal(network, path, rule, _FORM) from error
    for pair in given:
        if not isinstance(pair, (tuple, list)) or len(cast("Sequence[Any]", pair)) != 2:
            raise _refusal(network, path, "must give pairs", _FORM, _shown(pair))
        name, module = cast("Sequence[Any]", pair)
        if not isinstance(name, str) or not isinstance(module, nn.Module):
            rule = "must give pairs of a name and a torch.nn.Module"
            got = f"({_shown(name)}, {_shown(module)})"
            raise _refusal(network, path, rule, _FORM, got)
        yield name, module


def _answer(network: nn.Module, module: nn.Module, images: Tensor, path: str, what: str) -> Any:
    torch.default_generator.manual_seed(0)
    try:
        return module.eval()(images.clone())
    except Exception as error:  # whatever a person's own code raises
        if is_out_of_memory(error):
            raise
        size = "×".join(str(side) for side in images.shape[1:])
        rule = (
            f"{type(network).__name__}'s {what} must take pictures of {size} ({reason_of(error)})"
        )
        remedy = f"correct the forward or {HAND_MADE}, which are compared"
        raise input_error(ConfigError, path, rule, remedy) from error


def _tensors(given: Any) -> list[Tensor]:
    """Those of a forward's output: some give features beside the logits."""
    if isinstance(given, Mapping):
        given = tuple(cast("Mapping[Any, Any]", given).values())
    given = cast("Sequence[Any]", given) if isinstance(given, (tuple, list)) else (given,)
    return [value for value in given if isinstance(value, Tensor)]


def _distance(answer: Tensor, right: Tensor) -> float:
    """Root mean square of what an answer is off by, over that of the right one."""
    if not right.isfinite().all():
        return 0.0  # fresh weights can be too large to tell
    off, size = ((t.double().square().mean().sqrt().item()) for t in (answer - right, right))
    return 0.0 if off == 0 else off / size if size and math.isfinite(off) else math.inf


def _shown(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


def _refusal(
    network: nn.Module, path: str, rule: str, remedy: str, got: str | None = None
) -> InputError:
    return input_error(
        ConfigError, path, f"{type(network).__name__}.{HAND_MADE} {rule}", remedy, got
    )
