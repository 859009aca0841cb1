"""Made-up studies with real weights: what there is to export and to predict with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from study.cli import _app
from study.config import RESOLVED, dump_config, parse_config
from study.jobs import Job
from study.ledger import LEDGER, find_results, save_results
from study.results import StudyResults, TrialRow
from tests.study.studies import TREE, write_study
from tests.trainable.exports import keep
from trainable import tasks
from trainable.config import TrialConfig


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(_app, [str(argument) for argument in arguments])


class MadeUp:
    """A finished study of three complete trials, whose best two have weights; the winner is trial 1."""

    name = "made-up"

    def __init__(self, storage: Path, **sections: Any) -> None:
        self.storage = storage
        self.folder = write_study(storage, trials=3, epochs=3)
        self.configure(**sections)
        for number, value in ((0, 0.8), (1, 0.9), (2, 0.7)):
            test = {"test_accuracy": 0.85 if number == 1 else None}
            self.put(number, state="complete", value=value, error=None, **test)
        for number in (0, 1):
            keep(self.trial(number), self.weights(number))

    def configure(self, **sections: Any) -> None:
        """Begin as with these sections of the config."""
        self.config = parse_config(TREE | {"storage": {"path": str(self.storage)}} | sections)
        (self.folder / RESOLVED).write_text(dump_config(self.config))

    def row(self, number: int) -> TrialRow:
        found = self.results.row("trial", number)
        assert found is not None
        return found

    def trial(self, number: int) -> TrialConfig:
        return Job.of_row(self.row(number), self.config).config(self.config)

    def weights(self, number: int) -> Path:
        return tasks.best_weights(Path(self.row(number).directory))

    @property
    def results(self) -> StudyResults:
        return find_results(self.storage, self.name)

    def change(self, results: StudyResults) -> None:
        save_results(results, self.folder / LEDGER)

    def put(self, number: int, **changes: Any) -> None:
        """Change a row of the ledger."""
        self.change(self.results.with_row(self.row(number).model_copy(update=changes)))

    def export(self, *arguments: object) -> Result:
        return invoke("export", self.name, "--storage", self.storage, *arguments)
