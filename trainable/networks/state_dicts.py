"""Which of the tensors in a file are a network's: other people's loops wrap, nest and add to a state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor

from trainable.errors import CheckpointError, input_error

COUNT = "num_batches_tracked"
"""Old or exported files lack these, which only BatchNorm without a momentum reads."""
_COMPILED = "_orig_mod."

StateDict = Mapping[str, Tensor]


def state_dict_in(held: object, expected: StateDict, place: str, config_path: str) -> StateDict:
    """The state dict in what the file `place` holds whose names and shapes are the `expected` ones.

    It may be nested under any names, and all its own may begin with the same ones, as with DataParallel's `module.`.
    Where none fits, that with most of the expected names, so that it can be said what is wrong with it.

    Raises:
        CheckpointError: There is none, or several fit; in the name of `config_path`.
    """
    found = dict(_found(held, expected))
    if not found:
        rule = f"{place} must hold a state dict, names with their tensors"
        remedy = "save one with torch.save(network.state_dict(), …) or safetensors"
        raise input_error(CheckpointError, config_path, rule, remedy)
    fitting = [name for name, tensors in found.items() if _fits(tensors, expected)]
    if len(fitting) > 1:
        rule = f"{place} must hold one state dict that fits the network"
        remedy = "save the one that is meant in a file of its own"
        raise input_error(CheckpointError, config_path, rule, remedy, ", ".join(fitting))
    if fitting:
        return found[fitting[0]]
    return max(found.values(), key=lambda tensors: len(tensors.keys() & expected.keys()))


def _found(held: object, expected: StateDict, place: str = "") -> Iterator[tuple[str, StateDict]]:
    """Every state dict in what a file holds, by the names that lead there."""
    if not isinstance(held, Mapping):
        return
    named = {str(name): value for name, value in cast("Mapping[object, object]", held).items()}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(named):
        for name, value in named.items():
            yield from _found(value, expected, _joined(place, name))
        return
    tensors = {name.replace(_COMPILED, ""): value for name, value in tensors.items()}
    yield place, tensors
    if not _has_names(tensors, expected):
        yield from _parts(tensors, expected, place)


def _parts(tensors: StateDict, expected: StateDict, place: str) -> Iterator[tuple[str, StateDict]]:
    """What follows each prefix of a state dict that the first expected name follows."""
    first = next((name for name in expected if not name.endswith(COUNT)), None)
    if first is None:
        return
    for name in tensors:
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            part = {key: value for key, value in tensors.items() if key.startswith(prefix)}
            yield (
                _joined(place, prefix[:-1]),
                {key.removeprefix(prefix): value for key, value in part.items()},
            )


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _has_names(tensors: StateDict, expected: StateDict) -> bool:
    missing = expected.keys() - tensors.keys()
    return tensors.keys() <= expected.keys() and all(name.endswith(COUNT) for name in missing)


def _fits(tensors: StateDict, expected: StateDict) -> bool:
    return _has_names(tensors, expected) and all(
        tensor.shape == expected[name].shape for name, tensor in tensors.items()
    )
