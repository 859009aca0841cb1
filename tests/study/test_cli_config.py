"""The command on configs that are wrong, and `validate` on one that is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from study.cli import _app

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
HEAD = "study: {name: s}\ndata: {source: digits}\nstudent: {model: mini_resnet_10_4}\n"
PLAIN = f"{HEAD}distill: {{method: none}}\n"


def invoke(command: str, config: Path, *settings: str) -> Result:
    options = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(_app, [command, str(config), *options])


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr
    for line in result.stderr.splitlines():
        assert ": " in line
        assert "; " in line


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "study.yaml: "),
        ("- a\n- b\n", "study.yaml: "),
        ("study:\n\tname: s\n", "study.yaml:2: "),
        (f"{PLAIN}data: {{}}\n", "study.yaml:5: "),
        ("study: [s\n", "study.yaml"),
        ("study: s\n", "study: "),
        ("study: {name: s}\n", "data: is required"),
        (f"{PLAIN}optimizer: {{lr: 0.1}}\n", "optimizer: is not a known key; did you mean optim"),
        (f"{PLAIN}optim:\n", "optim: must be a section with keys of its own, got nothing"),
        (f"{PLAIN}optim: {{lr: fast}}\n", "optim.lr: must be a number, got 'fast'"),
        (f"{PLAIN}optim: {{lr: .nan}}\n", "optim.lr: must be a number, got nan"),
        (f"{PLAIN}optim: {{lr: .inf}}\n", "optim.lr: must be finite, got inf"),
        (f"{PLAIN}optim: {{lr: '5e-4'}}\n", "optim.lr: must be a number, got '5e-4'"),
        (f"{PLAIN}optim: {{lr: 0}}\n", "optim.lr: must be > 0, got 0"),
        (f"{PLAIN}optim: {{learning_rate: 1}}\n", "optim.learning_rate: is not a known key"),
        (f"{PLAIN}train: {{epochs: 2.5}}\n", "train.epochs: must be a whole number, got 2.5"),
        (f"{PLAIN}train: {{batchnorm: {{synk: true}}}}\n", "did you mean train.batchnorm.sync?"),
        (f"{PLAIN}train: {{workers: 2, launcher: inline}}\n", "train.launcher: inline runs one"),
        (f"{PLAIN}train: {{accumulate: 99}}\n", "data.batch_size: must be >= 198"),
        (f"{PLAIN}search: []\n", "search: must be a section with keys of its own, got []"),
        (f"{PLAIN}search: {{optim.lr: 5}}\n", "search.optim.lr: must be a range of values, got 5"),
        (f"{PLAIN}search: {{optim.lr: {{uniform: [2, 1]}}}}\n", "search.optim.lr: low <= high"),
        (f"{PLAIN}search: {{optim.lr: {{choice: [a, b]}}}}\n", "search.optim.lr: must be a number"),
        (f"{PLAIN}search: {{optim: {{choice: [1]}}}}\n", "search.optim: is a section"),
        (f"{PLAIN}search: {{optm.lr: {{choice: [1]}}}}\n", "did you mean search.optim.lr?"),
        (f"{PLAIN}search: {{data.source: {{choice: [digits]}}}}\n", "search.data.source: belongs"),
        (f"{HEAD}distill: {{alpha: 0.5}}\n", "teacher: distill.method kd needs a teacher"),
        (f"{HEAD}teacher: {{model: resnet18}}\n", "teacher: must have exactly one of checkpoint"),
        (f"{HEAD}distill: {{method: kdd}}\n", "distill.method: must be 'none', 'kd', "),
    ],
)
def test_a_malformed_config_exits_2_and_names_the_place(command: str, text: str, path: str) -> None:
    config = Path("study.yaml")
    config.write_text(text, encoding="utf-8")
    assert_refused(invoke(command, config), path)


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("optim.lr", "--set: must be written path=value, got 'optim.lr'"),
        ("optim=3", "optim: must be a section with keys of its own, got 3"),
        ("a..b=1", "--set: must be written path=value, got 'a..b=1'"),
        ("optim.lr=[1", "--set optim.lr: must be YAML"),
        ("optim.lr.x=1", "optim.lr: must be a number, got {x: 1}"),
        ("data=3", "data: must be a section with keys of its own, got 3"),
        ("study.name=a/b", "study.name: must be letters, digits, "),
        ("study.baseline={optim.l: 1}", "study.baseline.optim.l: is not a path of the config"),
        ("distill.lam=1", "distill: stablekd needs exactly one of lam"),
        ("search.distill.lam={uniform: [0, 1]}", "distill: stablekd needs exactly one of lam"),
        ("search.distill.decomposition.choice=[5/4]", "search.distill.decomposition: n <= 3"),
        ("train.epochs=3", "train.epochs: must be >= 4, one for each stage of 5/3"),
        ("data.val_fraction=0", "data.val_fraction: must be > 0 for a search"),
        ("data.mean=[0.5]", "data.mean: must have 3 value(s)"),
        ("data.root=/tmp", "data.root: digits needs no folder"),
        ("data.source=parquet", "data.root: parquet needs a folder"),
        ("teacher=null", "teacher: distill.method stablekd needs a teacher"),
        ("teacher.checkpoint=x.pt", "teacher: must have exactly one of checkpoint and train"),
        ("search.teacher.model={choice: [resnet18]}", "search.teacher.model: belongs to what all"),
        ("search.train.epochs={uniform: [4, 9]}", "search.train.epochs: must be a whole number"),
    ],
)
def test_a_wrong_setting_exits_2_and_names_the_place(setting: str, path: str) -> None:
    assert_refused(invoke("run", QUICKSTART, setting), path)


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("student.model=resnet19", "student.model: must be a known network, got 'resnet19'"),
        ("student.model=mini_resnet_10_8", "student.cuts: stablekd compares features"),
        ("student.cuts=[stem]", "student.cuts: must name submodules"),
        ("search.distill.decomposition.choice=[7/1]", "search.distill.decomposition: k <= 5"),
        ("train.workers=1000", "resources: one trial must fit on the cluster"),
        ("train={epochs: 12, precision: fp16, epoch: 3}", "train.precision: fp16 needs a GPU"),
        (
            "teacher={model: mini_resnet_18_16, checkpoint: x.pt}",
            "teacher.checkpoint: must be a file",
        ),
    ],
)
def test_what_cannot_run_here_is_refused_by_validate(setting: str, path: str) -> None:
    gpus = "resources.gpus_per_worker=0"
    assert_refused(invoke("validate", QUICKSTART, gpus, setting), path)


def test_a_folder_as_config_is_refused(tmp_path: Path) -> None:
    for command in ("run", "train", "validate"):
        assert_refused(invoke(command, tmp_path), f"{tmp_path}: must be a config file")


def test_a_config_in_another_encoding_is_refused() -> None:
    Path("study.yaml").write_bytes("study: {name: é}".encode("latin-1"))
    assert_refused(invoke("validate", Path("study.yaml")), "study.yaml: must be text in UTF-8")


def test_train_says_which_searched_path_has_no_base_value() -> None:
    result = invoke("train", QUICKSTART, "distill.alpha=null")
    assert_refused(
        result, "distill.alpha: is searched and has no base value; give it one, or --set"
    )
    assert len(result.stderr.splitlines()) == 1


def test_validate_prints_the_plan_of_the_quickstart(tmp_path: Path) -> None:
    result = invoke("validate", QUICKSTART)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    stages = result.stdout.split("stages of 5/2: 5 → 3 → 2 group(s)")[1].split("stages of")[0]
    rows = [line.split() for line in stages.splitlines() if line[:1].isdigit()]
    assert [row[1:6] for row in rows] == [
        ["4", "(1–4)", "5", "1", "×"],
        ["4", "(5–8)", "3", "0.5", "×"],
        ["4", "(9–12)", "2", "0.25", "×"],
    ]
    assert str(tmp_path) in result.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("trials", [1, 20])
def test_validate_says_what_run_makes_of_a_config_without_a_search(
    tmp_path: Path, trials: int
) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(f"{PLAIN}search: {{}}\n")
    result = invoke("validate", config, f"study.trials={trials}")
    assert result.exit_code == 0, result.output  # `kd-study train` takes it
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("trials ")]
    told = "trials      1, at the base values: nothing is searched"
    refused = (
        ". `kd-study train` trains it; `kd-study run` needs a path under search, or study.trials: 1"
    )
    assert line == told + (refused if trials > 1 else "")
    if trials > 1:
        assert_refused(
            invoke("run", config, f"study.trials={trials}"), "search: run needs at least one path"
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quickstart.yaml", "--set", "optim.lr=fast"], "optim.lr: must be a number"),
        (["train", "missing.yaml"], "missing.yaml: must be a config file"),
    ],
)
def test_the_command_itself_exits_2_without_a_traceback(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "study", arguments[0], str(ROOT / "configs" / arguments[1])]
    done = subprocess.run(
        [*command, *arguments[2:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
