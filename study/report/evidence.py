"""What a report is made from: the ledger, the config and the learning curves of a study's folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from study.config import RESOLVED, StudyConfig, parse_config
from study.curves import read_curve
from study.jobs import Job
from study.packing import as_packed
from study.results import Key, StudyResults, TrialRow
from study.yaml import parse_yaml
from trainable.errors import InputError
from trainable.records import EpochRecord

Series = list[tuple[float, float]]
"""(epoch, value), in order."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of a study."""

    results: StudyResults
    folder: Path
    config_text: str | None
    """The resolved config as it was kept; None where there is none."""
    config: StudyConfig | None
    """None where the text is missing, or is not one that this version reads."""
    curves: dict[Key, tuple[EpochRecord, ...]]

    def curve(self, row: TrialRow) -> tuple[EpochRecord, ...]:
        """The epochs of a trial."""
        return self.curves.get(row.key, ())

    def series(self, row: TrialRow, metric: str) -> Series:
        """A metric over a trial's epochs, without what is not finite."""
        values = ((record.epoch, record.metrics.get(metric)) for record in self.curve(row))
        return [(epoch, v) for epoch, v in values if v is not None and math.isfinite(v)]

    def epochs_planned(self, row: TrialRow) -> int | None:
        """Of a trial that is not stopped early; None where that is not known."""
        if self.config is None:
            return None
        if row.role == "teacher":
            training = self.config.teacher.train if self.config.teacher is not None else None
            return None if training is None else training.epochs
        if row.role in ("baseline", "screening") or row.of:
            return Job.of_row(row, self.config).config(self.config).train.epochs
        searched = row.params.get("train.epochs")
        return int(searched) if searched is not None else self.config.train.epochs


def gather(results: StudyResults, folder: Path) -> Evidence:
    """Read what the study's folder holds beside the ledger; what is missing is left out."""
    path = folder / RESOLVED
    text = path.read_text(encoding="utf-8") if path.exists() else None
    config = None
    if text is not None:
        try:
            config = as_packed(parse_config(parse_yaml(text, str(path)), where=str(path)), folder)
        except InputError:
            config = None  # of another version: the page shows its text all the same
    rows = tuple(map(_finite, results.rows))
    return Evidence(
        results=results.model_copy(update={"rows": rows}),
        folder=folder,
        config_text=text,
        config=config,
        curves={row.key: read_curve(Path(row.directory)) for row in rows},
    )


def _finite(row: TrialRow) -> TrialRow:
    """The row without figures that are no numbers."""
    figures = {
        "value": row.value,
        "val_eer": row.val_eer,
        "test_accuracy": row.test_accuracy,
        "test_eer": row.test_eer,
    }
    broken = [name for name, v in figures.items() if v is not None and not math.isfinite(v)]
    return row.model_copy(update=dict.fromkeys(broken))
