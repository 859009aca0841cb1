"""A trial's student in a folder of its own, with its card: written beside, compared, and only then in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from study.card import model_card
from study.choice import Choice
from trainable import tasks
from trainable.errors import InputError, input_error
from trainable.storage import writing_to

CARD = "MODEL_CARD.md"
_WRITTEN = {CARD, tasks.RECIPE, *tasks.FILES.values()}
"""What an export consists of."""
_THEN = "run the same command again"


@dataclass(frozen=True)
class Export:
    """A student that was exported."""

    choice: Choice
    folder: Path
    facts: tasks.Exported
    card: str

    @property
    def program(self) -> Path:
        """Where its program lies, if it was written."""
        return self.folder / tasks.FILES["program"]


def export(choice: Choice, folder: Path, formats: Sequence[tasks.Format], *, fold: bool) -> Export:
    """Write the folder, in place of a former export; on any failure it stays as it was.

    Raises:
        InputError: The folder holds something else; the data, the weights or a package are not there.
        ExportError: A format does not say what the student says, or cannot be written of its network.
        StorageError: The disk is full, or the folder cannot be written.
    """
    _check_may_be_replaced(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with writing_to(folder.parent, "the exported files", _THEN):
            temporary.mkdir(parents=True)
            facts = tasks.export_student(
                choice.trial, choice.weights, temporary, formats, fold=fold
            )
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            card = model_card(choice, facts, sizes)
            (temporary / CARD).write_text(card, "utf-8")
            _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Export(choice, folder, facts, card)


def _check_may_be_replaced(folder: Path) -> None:
    if not folder.exists():
        return
    rule = "must be a new folder, an empty one, or one with an earlier export alone"
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if not names or (CARD in names and names <= _WRITTEN):
            return
        if foreign := sorted(names - _WRITTEN):
            rule += f" (it has {foreign[0]})"
    raise input_error(InputError, "--to", rule, "choose another", str(folder))


def _put(temporary: Path, folder: Path) -> None:
    """Another reader sees the former export, or for a moment none, or this one: never a mixture."""
    former = temporary.with_suffix(".old")
    if folder.exists():
        folder.rename(former)
    try:
        temporary.rename(folder)
    except OSError:
        if former.exists():
            former.rename(folder)
        raise
    shutil.rmtree(former, ignore_errors=True)
