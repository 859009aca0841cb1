"""The files of a trial: where it goes on, and the best student so far. Written, then renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from trainable.errors import CheckpointError, input_error
from trainable.networks.blocks import BlockNetwork
from trainable.networks.weights import save_weights

LAST, BEST = "last.pt", "best.safetensors"


class CheckpointFolder:
    """Owns the paths in a trial's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def best(self) -> Path:
        """The student of the best epoch, as the undivided network's state dict."""
        return self._folder / BEST

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` as what the trial goes on from."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{LAST}.{os.getpid()}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self._folder / LAST)

    def save_best(self, student: BlockNetwork) -> None:
        """Keep the student's weights."""
        save_weights(student.network, self.best)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What the trial goes on from, or None at its beginning."""
        path = self._folder / LAST
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as error:
            raise input_error(
                CheckpointError,
                str(path),
                f"must be a checkpoint of this trial ({type(error).__name__})",
                "delete it to start the trial again",
            ) from error
