"""Files with weights in them, and what else a file may be that was meant to be one."""

from __future__ import annotations

import argparse
import errno
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from trainable.errors import CheckpointError, input_error
from trainable.memory import is_out_of_memory

_MAKE_SCALAR: Any = np.float64(0).__reduce__()[0]
_BESIDE_WEIGHTS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    *((_MAKE_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What training scripts keep in a checkpoint beside its weights, their arguments and the best accuracy, and torch does
not load by itself; to make one runs no code of the file. NumPy 2 has
renamed its core."""
_BEGINNING = 512
"""Bytes that are looked at where a file cannot be loaded."""
_SAVE_AGAIN = "save it again with torch.save(network.state_dict(), …) or safetensors"
_FETCH_AGAIN = "fetch or save it again"


def load_file(path: Path, config_path: str) -> Any:
    """What a file of safetensors or torch.save holds, on the CPU; code that a file may hold is never run.

    CheckpointError, in the name of `config_path`, for any other file. Where memory is wanting, or the disk fails,
    that is raised: no file is to blame.
    """
    if not path.is_file():
        raise input_error(
            CheckpointError, config_path, "must be a file", "check the path", str(path)
        )
    try:
        if _is_safetensors(path):
            return safetensors.torch.load_file(path)
        safe = torch.serialization.safe_globals(_BESIDE_WEIGHTS)
        with warnings.catch_warnings(), safe, path.open("rb") as file:
            # Advice to load a program with torch.jit, or to write to PyTorch: it cannot be followed here.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise whatever they stumble over
        # Half an archive has torch seek where nothing is, which the system calls an invalid argument.
        is_disk = isinstance(error, OSError) and error.errno != errno.EINVAL
        if is_disk or is_out_of_memory(error):
            raise
        seems, remedy = _seems(path, error)
        rule = f"{path} must be a .safetensors file or a state dict of torch.save, but {seems}"
        raise input_error(CheckpointError, config_path, rule, remedy) from error


def _is_safetensors(path: Path) -> bool:
    """By its beginning, the length of a header in JSON and that: whatever it is called."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _seems(path: Path, error: Exception) -> tuple[str, str]:
    """What a file that cannot be loaded seems to be, and what to do about it."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if not beginning:
        return "it is empty", _FETCH_AGAIN
    if beginning.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS to the file", "run git lfs pull where it was cloned"
    if re.match(rb"\s*(<!doctype html|<html)", beginning, re.IGNORECASE):
        return "it is a web page", "download the file itself, not the page that offers it"
    if _is_text(beginning):
        return "it is text", "name the file that torch.save or safetensors has written"
    if "TorchScript" in str(error):
        return "it is a TorchScript program", _SAVE_AGAIN
    if isinstance(error, pickle.UnpicklingError) and beginning.startswith((b"PK", b"\x80")):
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = "objects that are no tensors" if found is None else f"objects such as {found[1]}"
        return f"it holds {what}, which are never loaded", _SAVE_AGAIN
    if beginning.startswith(b"PK") or _is_safetensors(path):
        return "it is damaged, or only the beginning of a file", _FETCH_AGAIN
    return "it is none, or damaged", _FETCH_AGAIN


def _is_text(beginning: bytes) -> bool:
    try:
        text = beginning.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3:  # else a letter was cut off
            return False
        text = beginning[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter.isspace() for letter in text)
