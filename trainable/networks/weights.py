"""Weights on disk: safetensors, or a state dict loaded with weights only."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trainable.errors import CheckpointError, Problem
from trainable.networks.state_dicts import COUNT, state_dict_in
from trainable.networks.weight_files import load_file

_SHOWN = 4


def save_weights(network: nn.Module, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write the state dict as safetensors: to a temporary file first, so that a reader never sees half.

    `facts` are kept in the file's header: see `facts_of`.
    """
    save_tensors(network.state_dict(), path, facts)


def save_tensors(
    weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None
) -> None:
    """As `save_weights`, of tensors by name."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    safetensors.torch.save_file(tensors, temporary, None if facts is None else dict(facts))
    os.replace(temporary, path)


def facts_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; of others, and of one that says nothing, an empty dict."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def load_weights(network: nn.Module, path: Path, *, config_path: str) -> None:
    """Load a `.safetensors` file or a `torch.save`d state dict into `network`, every tensor by name and shape.

    It may be one of several things in the file: see `state_dict_in`. `config_path` names the setting in the
    CheckpointError that a file which does not fit raises.
    """
    expected = network.state_dict()
    tensors = state_dict_in(load_file(path, config_path), expected, str(path), config_path)
    counts = {name: count for name, count in expected.items() if name.endswith(COUNT)}
    tensors = {**counts, **tensors}
    found = _mismatches(expected, tensors)
    if found:
        raise CheckpointError(
            [
                Problem(
                    config_path,
                    f"{path} must fit the network: {'; '.join(found)}",
                    "name the network that the checkpoint was made with, with as many classes and channels",
                )
            ]
        )
    put_weights(network, tensors)


def put_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network the tensors of its state dict, which are of the versions of its modules: some read those."""
    own = network.state_dict()
    state = OrderedDict(tensors)
    state._metadata = getattr(own, "_metadata", None)  # type: ignore[attr-defined]
    network.load_state_dict(state)


def _mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = {
        name: f"{name} is {tuple(found[name].shape)} and must be {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    }
    broken = [
        name
        for name, tensor in found.items()
        if name in expected and name not in shapes and _is_broken(tensor, expected[name])
    ]
    lists = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", list(shapes.values())),
        ("not finite", broken),
    )
    return [f"{len(names)} {what} ({_some(names)})" for what, names in lists if names]


def _is_broken(tensor: Tensor, expected: Tensor) -> bool:
    """Whether it is not finite where the network's own is: a mask of −∞ is no fault."""
    if not tensor.is_floating_point():
        return False
    bad = ~tensor.isfinite()
    if not expected.is_meta:
        bad &= expected.cpu().isfinite()
    return bool(bad.any())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
