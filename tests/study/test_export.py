"""`kd-study export`: what it writes and says, and that nothing is left of what it refuses."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from study.jobs import Job
from study.results import TrialRow
from tests.study.exported import MadeUp, invoke
from tests.study.studies import TREE
from tests.trainable.exports import keep
from trainable.export import write
from trainable.tasks import best_weights

LIGHT = ("--formats", "safetensors")


@pytest.fixture
def study(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_winner_goes_to_the_studys_folder(study: MadeUp) -> None:
    told = study.export("--fold")
    assert (told.exit_code, told.stderr) == (0, "")
    written = ["MODEL_CARD.md", "config.json", "student.pt2", "student.safetensors"]
    assert names(study.folder / "export") == written
    first, *lines = told.stdout.splitlines()
    assert first == f"made-up, trial 1, exported to {study.folder / 'export'}"
    assert [line.split()[0] for line in lines[:2]] == ["student.safetensors", "student.pt2"]
    assert "12 of 12 BatchNorm layers folded" in told.stdout


def test_another_trial_goes_elsewhere_and_again_in_its_place(study: MadeUp, tmp_path: Path) -> None:
    to = tmp_path / "new" / "place"
    for trial in (1, 0):
        assert study.export("--trial", trial, "--to", to, *LIGHT).exit_code == 0
    assert names(to) == ["MODEL_CARD.md", "config.json", "student.safetensors"]
    assert (to / "MODEL_CARD.md").read_text().startswith("# made-up, trial 0\n")
    assert names(to.parent) == ["place"]


def test_the_card_tells_what_is_known(study: MadeUp) -> None:
    assert study.export("--fold", *LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    baseline, teacher = (study.results.of(role)[0] for role in ("baseline", "teacher"))
    for row in (
        "| **this student** | 90.00 % | 85.00 % |",
        accuracies(baseline),
        accuracies(teacher),
    ):
        assert row in card
    assert "By it the trial is number 1 of 3." in card
    assert "All are of one seed each" in card
    assert f"`optim.lr` | {study.row(1).params['optim.lr']:.3g}" in card
    assert f"lr: {study.row(1).params['optim.lr']}" in card
    assert "Classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in card
    assert "12 of 12 BatchNorm layers are folded" in card
    assert re.search(r"\| `student.safetensors` \| \d+ KiB \| \S+ \|", card)
    assert str(study.storage) not in card


def accuracies(row: TrialRow) -> str:
    return f" | {100 * (row.value or 0):.2f} % | {100 * (row.test_accuracy or 0):.2f} % |"


def test_the_card_leaves_out_what_is_not_known(study: MadeUp) -> None:
    alone = [row for row in study.results.rows if row.role == "trial"]
    study.change(study.results.model_copy(update={"rows": tuple(alone)}))
    assert study.export("--trial", 0, *LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert "| **this student** | 80.00 % |  |" in card
    assert "The test split was not read for this trial." in card
    assert "By it the trial is number 2 of 3." in card
    assert "student without a teacher" not in card
    assert "None" not in card


def with_replicates(study: MadeUp, **sections: Any) -> None:
    """Two of the winner, the first with weights."""
    changes = {"replicates": {"finalists": 1, "seeds": 2}}
    study.configure(study=TREE["study"] | changes, **sections)
    results = study.results
    for number, accuracy in enumerate((0.8, 0.9)):
        whose = {"role": "replicate", "of": "trial 1", "number": number}
        found = {"test_accuracy": accuracy, "value": None, "best_epoch": None}
        results = results.with_row(study.row(1).model_copy(update=whose | found))
    study.change(results)
    row = study.results.of("replicate", "trial 1")[0]
    keep(Job.of_row(row, study.config).config(study.config), best_weights(Path(row.directory)))


def test_with_replicates_the_first_of_the_winner_is_the_answer(study: MadeUp) -> None:
    with_replicates(study)
    assert study.export(*LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert card.startswith("# made-up, trial 1 replicate 0\n")
    assert "| **this student** |  | 80.00 % |" in card
    assert "| trial 1, which it repeats | 90.00 % |  |" in card
    assert "| its hyperparameters over 2 seeds, mean ± sd |  | 85.00 ± 7.07 % |" in card
    assert "by its validation accuracy is number 1 of 3, and another seed" in card
    assert "nothing was selected by its own accuracy" in card
    assert "The validation accuracy is the best of several" not in card
    assert "one seed each" not in card


def test_a_replicate_of_a_share_of_the_pictures_says_so(study: MadeUp) -> None:
    with_replicates(study, data=TREE["data"] | {"subset": 0.2})
    assert study.export(*LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert "all training pictures" not in card
    assert "No picture was held out, and it was trained on 20 % of each class's." in card


def test_a_student_without_a_teacher_has_none_in_its_card(tmp_path: Path) -> None:
    search = {key: TREE["search"][key] for key in ("optim.lr", "data.batch_size")}
    study = MadeUp(tmp_path, distill={"method": "none"}, search=search)
    assert study.results.of("teacher")
    assert study.export(*LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert "A `mini_resnet_10_4` trained without a teacher on `digits`, for 10 classes." in card
    for text in ("distilled", "the teacher", "teacher:", "mini_resnet_18_4"):
        assert text not in card


def test_a_latency_that_was_measured_is_told(study: MadeUp) -> None:
    assert study.export(*LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert "how fast it runs were not measured" in card
    study.put(1, costs={"latency": 1.2345})
    assert study.export(*LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert "It took 1.23 ms for one picture" in card
    assert "how fast it runs on other devices were not measured" in card


def test_with_replicates_a_trial_of_the_search_can_be_had_all_the_same(study: MadeUp) -> None:
    with_replicates(study)
    assert study.export("--trial", 1, *LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert card.startswith("# made-up, trial 1\n")
    assert "which it repeats" not in card


def test_places_and_files_of_others_stay_out_of_the_card(tmp_path: Path) -> None:
    teacher = {
        "model": "mini_resnet_18_4",
        "checkpoint": str(tmp_path / "secret" / "t.safetensors"),
    }
    study = MadeUp(tmp_path, teacher=teacher)
    assert study.export(*LIGHT).exit_code == 0
    card = (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert "checkpoint: t.safetensors" in card
    assert "secret" not in card


def refused(study: MadeUp, *arguments: object, code: int = 2) -> str:
    """The one line that an export ends with, which leaves nothing."""
    before = names(study.folder)
    told = study.export(*arguments)
    assert told.exit_code == code
    assert isinstance(told.exception, SystemExit)
    assert names(study.folder) == before
    (line,) = told.stderr.splitlines()
    return line


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    told = invoke("export", "nobody", "--storage", tmp_path)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith(f"{tmp_path}: must hold the study, got 'nobody'; ")


def test_a_study_that_has_not_finished_gives_a_trial_but_no_winner(study: MadeUp) -> None:
    study.change(study.results.model_copy(update={"finished": False}))
    line = refused(study, *LIGHT)
    assert line.startswith(
        "made-up: must have finished, before its winner is known; `kd-study resume"
    )
    assert study.export("--trial", 0, *LIGHT).exit_code == 0


def test_no_complete_trial(study: MadeUp) -> None:
    for number in range(3):
        study.put(number, state="pruned")
    assert refused(study).startswith("made-up: must have a trial that is complete; ")
    assert refused(study, "--trial", 1).endswith(
        ": must be complete, and is pruned, got 1; there is none yet"
    )


def test_trials_that_cannot_be_had(study: MadeUp) -> None:
    assert refused(study, "--trial", 7).endswith(
        "must be a complete trial, got 7; choose from 0, 1, 2"
    )
    assert refused(study, "--trial", 2) == (
        "--trial: must be one whose weights are kept, as those of the best 3 are, got 2; choose from 1, 0"
    )
    study.weights(1).unlink()
    assert refused(study).startswith(f"{study.weights(1)}: must hold the winner's weights")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--formats", "pickle"], "--formats: must be of safetensors, program, onnx, got 'pickle'"),
        (["--formats", "safetensors,"], "--formats: must be of safetensors, program, onnx, got ''"),
        ([*LIGHT, "--register"], "--register: registers the program; add it to --formats"),
        ([*LIGHT, "--model-name", "m"], "--model-name: is of a registered model; add --register"),
    ],
)
def test_bad_arguments(study: MadeUp, arguments: list[str], line: str) -> None:
    assert refused(study, *arguments).startswith(line)


def test_a_bucket_needs_a_folder_to_export_to() -> None:
    told = invoke("export", "s", "--storage", "s3://bucket/prefix")
    assert told.exit_code == 2
    assert told.stderr.startswith("--to: must be given for a study in a bucket")


def test_what_lies_there_already_is_not_replaced(study: MadeUp, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert refused(study, "--to", tmp_path / "mine").startswith("--to: must be a new folder, ")
    assert names(tmp_path / "mine") == ["thesis.tex"]
    # Names alone do not make an export: another tool's folder, or a file, may have one of them.
    (tmp_path / "other").mkdir()
    for theirs in (tmp_path / "config.json", tmp_path / "other" / "config.json"):
        theirs.write_text("theirs")
    for to in (tmp_path / "config.json", tmp_path / "other"):
        assert refused(study, "--to", to).startswith("--to: must be a new folder, ")
    assert (tmp_path / "config.json").read_text() == "theirs"
    assert (tmp_path / "other" / "config.json").read_text() == "theirs"


def test_an_export_with_something_of_ones_own_beside_it_is_not_replaced(study: MadeUp) -> None:
    assert study.export(*LIGHT).exit_code == 0
    notes = study.folder / "export" / "notes.txt"
    notes.write_text("mine")
    assert "(it has notes.txt)" in refused(study, *LIGHT)
    assert notes.read_text() == "mine"
    assert (study.folder / "export" / "student.safetensors").is_file()
    notes.unlink()
    assert study.export(*LIGHT).exit_code == 0


def test_a_format_that_is_off_leaves_the_former_export(
    study: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.export(*LIGHT).exit_code == 0
    monkeypatch.setattr(write, "AGREEMENT", -1.0)
    line = refused(study, "--fold", *LIGHT, code=1)
    assert line.startswith("student.safetensors: must give the trained student's logits to ")
    written = json.loads((study.folder / "export" / "config.json").read_text())
    assert written["network"]["folded"] == []


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(study: MadeUp) -> None:
    """Files of more than 120 KB do not fit: the weights do, and the program does not."""
    before = names(study.folder)
    ended: Any = subprocess.run(
        [sys.executable, "-m", "study", "export", study.name, "--storage", str(study.storage)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000)),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 1, ended
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"{study.folder}: must take the exported files (")
    assert line.endswith("and run the same command again")
    assert names(study.folder) == before
