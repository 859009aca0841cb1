"""The recipes of configs/, the configs of the documents and the cells of the benchmark: each could be trained."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from study.cluster import Capacity
from study.config import StudyConfig, load_config, load_single, parse_config
from study.preflight import StudyPlan, preflight
from study.yaml import parse_yaml
from trainable import tasks
from trainable.methods import METHODS
from trainable.tasks import DataSummary

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Capacity(cpus=128, gpus=8)
DATA = DataSummary(
    classes=tuple(str(label) for label in range(100)),
    train=45_000,
    left_out=0,
    val=5_000,
    test=10_000,
    unseen_classes=(),
    unseen=0,
    channels=3,
    image_size=(32, 32),
    fingerprint="",
    decoded_gib=0.0,
    streamed=False,
    overlap=0,
)


RECIPES = [
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if "\nstudy:\n" in path.read_text("utf-8")
]


def header(path: Path) -> str:
    """The comment that a recipe begins with."""
    return path.read_text("utf-8").split("\nstudy:\n")[0] + "\n"


def variants() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The recipes with each run of lines with `--set` in their headers."""
    for path in RECIPES:
        for lines in re.findall(r"(?:^# .*--set .*\n)+", header(path), flags=re.MULTILINE):
            words = shlex.split(lines.replace("\n#", " "))
            pairs = pairwise(words)
            yield path, tuple(value.rstrip(".,") for word, value in pairs if word == "--set")


VARIANTS = list(variants())


def plan_of(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch, machine: Capacity = MACHINE
) -> StudyPlan:
    """Everything that `validate` checks, but for the data and the teacher's file, which are not here."""
    side = config.data.image_size or (8 if config.data.source == "digits" else 32)
    data = replace(DATA, channels=config.data.channels, image_size=(side, side))
    monkeypatch.setattr(tasks, "inspect_data", lambda _: data)
    monkeypatch.setattr(tasks, "check_checkpoint", lambda *_: None)
    return preflight(config, machine)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_networks_that_all_its_trials_can_be_had_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(load_config(path), monkeypatch)
    assert plan.teacher is not None
    assert len(plan.teacher.blocks) == len(plan.student.blocks)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_where_it_comes_from(path: Path) -> None:
    assert re.search(r"(table|figure) \d|docs/\w+\.md|digits", header(path))


@pytest.mark.parametrize(
    ("path", "settings"), VARIANTS, ids=[" ".join((path.stem, *rest)) for path, rest in VARIANTS]
)
def test_what_a_recipe_says_can_be_set_makes_a_valid_trial(
    path: Path, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    single, _ = load_single(path, settings)
    assert single != load_single(path, ())[0]  # it changes something
    if any(setting.startswith(("student.", "teacher.model", "distill.")) for setting in settings):
        plan_of(single, monkeypatch)


def test_every_method_has_a_recipe_on_cifar100() -> None:
    found = {load_config(path).distill.method for path in RECIPES if "cifar100" in path.stem}
    found |= {
        load_single(path, settings)[0].distill.method
        for path, settings in VARIANTS
        if "cifar100" in path.stem
    }
    assert found == set(METHODS)


def test_the_speakers_can_be_trained_without_a_gpu_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = ROOT / "configs" / "speaker_amsoftmax.yaml"
    (line,) = re.findall(r"^# Without a GPU: (.*)$", header(recipe), flags=re.MULTILINE)
    settings = shlex.split(line)[1::2]
    plan = plan_of(load_single(recipe, settings)[0], monkeypatch, Capacity(cpus=2, gpus=0))
    assert plan.config.resources.gpus_per_worker == 0


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/stablekd_tables.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("stablekd_tables")


def test_every_cell_of_the_papers_tables_makes_a_valid_trial_of_its_own(
    tables: Any, tmp_path: Path
) -> None:
    options = argparse.Namespace(
        storage=tmp_path,
        data=tmp_path / "data",
        teacher=tmp_path / "teacher.safetensors",
        share=None,
    )
    names: set[str] = set()
    trials: set[str] = set()
    for cell in tables.CELLS:
        words = tables.arguments(cell, 1, options)
        config, _ = load_single(tables.CONFIGS / cell.config, words[1::2])
        assert (config.teacher is not None) == cell.has_teacher
        assert config.teacher is None or config.teacher.train is None
        assert config.data.val_fraction == (0.1 if cell.table == "figure 3" else 0)
        assert (config.train.epochs, config.train.seed) == (cell.epochs, 1)
        assert cell.pair == (cell.config.split("_")[0], config.student.model)
        names.add(config.study.name)
        trials.add(config.model_dump_json(exclude={"study", "storage"}))
    assert len(names) == len(trials) == len(tables.CELLS)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("1-deit-vit-s8-90", ("deit", 0.5, None, 2e-3, 512)),
        ("1-stablekd-5-3-swin-t-300", ("stablekd", None, 1.0, 2e-2, 256)),
        ("3-kd-vit-t8-600", ("kd", 0.5, None, 0.1, 128)),
        ("5-w-o-kd-20", ("none", None, None, 0.1, 128)),
        ("5-stablekd-5-2-20", ("stablekd", None, 1.0, 0.5, 128)),
        ("6-kd-wrn-16-8-keep-200", ("kd", 0.5, None, 0.1, 128)),
        ("figure-4b-stablekd-5-2-resnet18-20", ("stablekd", None, 1.0, 0.5, 128)),
    ],
)
def test_a_cell_has_the_papers_settings(
    tables: Any, tmp_path: Path, name: str, settings: tuple[Any, ...]
) -> None:
    (cell,) = [cell for cell in tables.CELLS if cell.name == name]
    options = argparse.Namespace(storage=tmp_path, data=tmp_path, teacher=None, share=0.5)
    words = tables.arguments(cell, 0, options)
    config, _ = load_single(tables.CONFIGS / cell.config, words[1::2])
    distill, optim = config.distill, config.optim
    found = (distill.method, distill.alpha, distill.lam, optim.lr, config.data.batch_size)
    assert found == settings
    assert config.resources.gpus_per_worker == 0.5


@pytest.mark.parametrize(
    ("gpus", "parallel", "share"),
    [(0, 3, None), (1, 1, 1.0), (2, 1, 1.0), (2, 12, 0.1666), (2, 15, 0.125), (1, 3, 0.3333)],
)
def test_runs_that_go_at_once_fit_on_the_gpus(
    tables: Any, gpus: int, parallel: int, share: float | None
) -> None:
    assert tables.share_of(gpus, parallel) == share


def test_the_tables_are_trained_one_student_and_data_set_at_a_time(
    tables: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stablekd_tables.py", "--table", "3", "--data", "."])
    with pytest.raises(SystemExit):
        tables.main()
    assert "got cifar100 swin_t; cifar100 vit_t8" in capsys.readouterr().err


def test_a_record_takes_no_runs_of_another_teacher(tables: Any, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text('{"environment": {"gpus": []}, "cells": {}}')
    alone = tables.opened(record, {"environment": {"gpus": []}, "teacher": "first"})
    assert "teacher" not in alone  # students without a teacher came first
    record.write_text('{"environment": {"gpus": []}, "teacher": "first", "cells": {}}')
    assert tables.opened(record, {"environment": {"gpus": []}})["teacher"] == "first"
    with pytest.raises(ValueError, match="another teacher"):
        tables.opened(record, {"environment": {"gpus": []}, "teacher": "second"})


@pytest.mark.parametrize(
    ("settings", "hundred_thousands"),
    [([], (23, 89)), (["teacher.model=wrn_16_10", "student.model=wrn_16_8"], (116, 171))],
)
def test_networks_with_projectors_have_the_parameters_of_table_6(
    settings: list[str], hundred_thousands: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ROOT / "configs" / "cifar100_wrn_projectors_stablekd.yaml"
    plan = plan_of(load_single(recipe, settings)[0], monkeypatch)
    assert plan.teacher is not None
    counts = (plan.student.parameters, plan.teacher.parameters)
    assert tuple(count // 100_000 for count in counts) == hundred_thousands


def test_the_document_on_networks_has_configs_that_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "networks_and_methods.md").read_text("utf-8")
    fences = re.findall(r"^```(python|yaml)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (network,) = [body for language, body in fences if language == "python"]
    configs = [body for language, body in fences if language == "yaml"]
    (tmp_path / "our_networks.py").write_text(network)
    monkeypatch.syspath_prepend(tmp_path)
    plans = [plan_of(parse_config(parse_yaml(body, "docs")), monkeypatch) for body in configs]
    assert [
        [block.projector for block in plan.student.blocks if block.projector is not None]
        for plan in plans
    ] == [[(24, 40), (48, 112)], [(8, 16)]]


def test_the_readme_trains_the_tables_teacher_as_the_records_say() -> None:
    def settings(command: str) -> list[str]:
        return [word for word in shlex.split(command)[3:] if word != "--set"]

    results = ROOT / "benchmarks" / "results"
    teacher = json.loads(
        (results / "cifar100-teacher-130-epochs-nvidia-h100-80gb-hbm3.json").read_text()
    )
    tables = json.loads((results / "stablekd-tables-nvidia-h100-80gb-hbm3.json").read_text())
    assert teacher["rounded_file_sha256"] == tables["teacher"]
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(
        r"^\$ (kd-study train (?:[^\\\n]*\\\n)+.*)$", readme, flags=re.MULTILINE
    )
    told = settings(command.replace("\\\n", ""))
    told.remove("data.root=/path/to/cifar100")
    assert told == settings(teacher["command"])
    recipe = ROOT / "configs" / "cifar100_kd.yaml"
    config, _ = load_single(recipe, told)
    assert config.teacher is not None
    assert config.teacher.train is not None
    assert config.teacher.train.epochs == 130


def test_the_readmes_own_data_and_search_make_a_valid_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    fences = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    own, search = (parse_yaml(body, "README.md") for body in fences)
    tree = parse_yaml((ROOT / "configs" / "cifar100_stablekd.yaml").read_text("utf-8"), "recipe")
    for key in ("source", "root", "download"):
        del tree["data"][key]
    tree["data"] |= own.pop("data")
    plan = plan_of(parse_config({**tree, **own, **search}), monkeypatch)
    assert plan.config.study.first_trials
    assert set(plan.config.search) == set(search["search"])


def test_the_readme_lists_what_each_method_reads() -> None:
    text = (ROOT / "README.md").read_text("utf-8").split("| `distill.method` |")[1]
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", text.split("\n\n")[0], flags=re.MULTILINE)
    found = {name: set(re.findall(r"`(\w+)`", keys)) for name, keys in rows}
    assert found == {name: set(traits.reads) for name, traits in METHODS.items()}
