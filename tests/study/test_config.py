"""From YAML and `--set` to a config, and what is wrong with it, all at once."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.config import (
    StudyConfig,
    differences,
    draft_config,
    dump_config,
    flat,
    load_config,
    load_for_cluster,
    load_single,
    parse_config,
    with_values,
    without_search,
)
from study.problems import all_paths
from study.replicates import replicate_seeds
from study.yaml import dump_yaml, parse_yaml
from trainable.errors import ConfigError, Problem

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
STUDIES = [p for p in sorted(CONFIGS.glob("*.yaml")) if "\nstudy:\n" in p.read_text("utf-8")]


def tree() -> dict[str, Any]:
    return {
        "study": {"name": "s"},
        "data": {"source": "digits"},
        "student": {"model": "resnet18"},
        "teacher": {"model": "resnet34", "train": {"epochs": 2}},
        "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"},
        "search": {"optim.lr": {"loguniform": [1e-3, 1e-1]}},
    }


def config_with(*settings: str) -> StudyConfig:
    return parse_config(tree(), settings)


def wrong(*settings: str) -> list[str]:
    """The lines that settings over a good config give."""
    with pytest.raises(ConfigError) as caught:
        config_with(*settings)
    return str(caught.value).splitlines()


def paths(lines: list[str]) -> list[str]:
    return [line.split(": ")[0] for line in lines]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_config_of_the_repository_survives_writing_and_reading(path: Path) -> None:
    config = load_config(path)
    again = parse_config(parse_yaml(dump_config(config), "dump"))
    assert again == config
    assert differences(config, again) == {}
    assert dump_config(again) == dump_config(config)


NUMBERS = st.floats(1e-12, 1e12)
RANGES = st.one_of(
    st.tuples(NUMBERS, NUMBERS).map(lambda b: {"loguniform": sorted(b)}),
    st.lists(NUMBERS, min_size=1, max_size=3, unique=True).map(lambda values: {"choice": values}),
)


@settings(max_examples=30)
@given(
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,9}\Z"),
    experiment=st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lr=NUMBERS,
    decay=st.integers(0, 3) | st.floats(0, 1),
    clip=st.none() | NUMBERS,
    classes=st.none() | st.lists(st.text(max_size=5), max_size=3),
    ranges=st.dictionaries(st.sampled_from(["optim.lr", "train.clip"]), RANGES),
)
def test_any_config_survives_writing_and_reading(
    name: str,
    experiment: str,
    lr: float,
    decay: float,
    clip: float | None,
    classes: list[str] | None,
    ranges: dict[str, Any],
) -> None:
    values = {
        "study.name": name,
        "tracking.experiment": experiment,
        "optim.lr": lr,
        "optim.weight_decay": decay,
        "train.clip": clip,
        "data.classes": classes,
    }
    config = parse_config({**with_values(tree(), values), "search": ranges})
    assert parse_config(parse_yaml(dump_config(config), "dump")) == config


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["lr", "optim.lr", "choice", "int", "x", ""]), inner, max_size=2
        )
    ),
    max_leaves=4,
)
ANY_PLACE = st.sampled_from(
    [*all_paths(StudyConfig), "search.optim.lr", "search.x", "x.y", "teacher.x"]
)


@settings(max_examples=200)
@given(st.dictionaries(ANY_PLACE, ANY_VALUE, min_size=1, max_size=3))
def test_any_tree_is_a_config_or_has_problems_with_a_path_each(values: dict[str, Any]) -> None:
    problems: Sequence[Problem] = ()
    try:
        config = parse_config(with_values(tree(), values))
        assert parse_config(parse_yaml(dump_config(config), "dump")) == config
    except ConfigError as error:
        problems = error.problems
    assert all(problem.path and problem.rule and problem.remedy for problem in problems)


def test_numbers_are_numbers_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    text = dump_yaml({k: v for k, v in tree().items() if k != "search"})
    path.write_text(
        f"{text}optim: {{weight_decay: 5e-4}}\nsearch: {{optim.lr: {{uniform: [1e-4, 1]}}}}"
    )
    config = load_config(path, ["optim.momentum=5e-1", "search.train.clip={uniform: [1e-1, 1e0]}"])
    assert config.optim.weight_decay == 5e-4
    assert config.optim.momentum == 0.5
    assert config.search["optim.lr"].uniform == (1e-4, 1.0)
    assert config.search["train.clip"].uniform == (0.1, 1.0)


def test_later_settings_win_and_make_the_sections_they_need() -> None:
    config = config_with(
        "optim.lr=1", "optim.lr=2", "train.batchnorm.sync=true", " train.epochs = 7"
    )
    assert (config.optim.lr, config.train.batchnorm.sync, config.train.epochs) == (2, True, 7)


def test_settings_reach_keys_that_hold_dots() -> None:
    config = config_with(
        "search.optim.momentum={uniform: [0.1, 0.9]}",
        "search.optim.lr.choice=[0.1, 0.2]",
        "study.baseline.optim.lr=0.3",
    )
    assert config.search["optim.momentum"].uniform == (0.1, 0.9)
    assert config.search["optim.lr"].choice == (0.1, 0.2)
    assert config.search["optim.lr"].loguniform is None
    assert config.baseline().optim.lr == 0.3


def test_a_setting_replaces_a_value_by_a_section_and_leaves_the_given_tree_alone() -> None:
    given_tree = tree()
    before = copy.deepcopy(given_tree)
    assert parse_config(given_tree, ["teacher=null", "distill={method: none}"]).teacher is None
    assert given_tree == before


@pytest.mark.parametrize("setting", ["optim.lr", "=3", "a..b=1", ".a=1", "optim.=1", " =1", ""])
def test_a_setting_that_is_not_path_and_value_is_refused(setting: str) -> None:
    (line,) = wrong(setting)
    assert line.startswith("--set: must be written path=value, got ")


def test_all_wrong_settings_are_reported_at_once() -> None:
    lines = wrong("optim.lr", "optim.lr=[1", "train.epochs=3")
    assert paths(lines) == ["--set", "--set optim.lr"]


def test_relative_places_are_made_absolute_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert config_with().folder == tmp_path / "runs" / "s"
    config = config_with(
        "data.source=parquet",
        "data.root=../images",
        "teacher.train=null",
        "teacher.checkpoint=~/teacher.pt",
    )
    assert config.data.root == str(tmp_path.parent / "images")
    assert config.teacher is not None
    assert config.teacher.checkpoint == "/home/someone/teacher.pt"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must be a mapping of sections"),
        (b"# nothing\n", "must be a mapping of sections"),
        (b"- a\n- b\n", "must be a mapping of sections"),
        (b"just words", "must be a mapping of sections"),
        (b"study:\n\tname: x\n", "must be YAML"),
        (b"data: {source: digits}\ndata: {}\n", "found the key 'data' twice"),
        (b"study: {name: caf\xe9}", "must be text in UTF-8, but byte 17 is not"),
        (b"\xff\xfes\x00", "must be text in UTF-8"),
    ],
)
def test_a_file_that_holds_no_sections_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))


def test_a_config_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError, match="must be a config file"):
            load_config(path)


def test_everything_wrong_is_reported_at_once_in_every_part() -> None:
    lines = wrong(
        "optim.lr=fast",
        "train.epoch=3",
        "data.batch_size=0",
        "train.launcher=inline",
        "train.workers=2",
        "distill.lam=1",
        "distill.decomposition=5/7",
        "search.optim.momentum={uniform: [0, 2]}",
        "search.optm.lr={uniform: [0, 2]}",
        "search.train.clip={uniform: [2, 1]}",
        "study.baseline={optim.lr: -1}",
        "data.val_fraction=0",
    )
    assert sorted(paths(lines)) == sorted(
        [
            "optim.lr",
            "train.epoch",
            "data.batch_size",
            "train.launcher",
            "distill",
            "distill.decomposition",
            "search.optim.momentum",
            "search.optm.lr",
            "search.train.clip",
            "study.baseline.optim.lr",
            "data.val_fraction",
        ]
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["distill.alpha=high"], ["distill.alpha"]),
        (["distill.alpha=null", "distill.lamb=1"], ["distill.lamb"]),
        (["distill.method=stable"], ["distill.method"]),
        (["distill.decomposition=5"], ["distill.decomposition"]),
        (["distill=3"], ["distill"]),
        (["teacher=3"], ["teacher"]),
        (["teacher.train=3"], ["teacher.train"]),
        (["teacher.train={}"], ["teacher.train.epochs"]),
        (["data.channels=2", "data.mean=[0.5]"], ["data.channels"]),
        (["data={}"], ["data.source"]),
        (["data.source=zip", "data.root=/x"], ["data.source"]),
        (["student={}"], ["student.model"]),
        (
            ["distill.alpha=null", "search.distill.alpha={unifrom: [0, 1]}"],
            ["search.distill.alpha.unifrom"],
        ),
        (
            ["distill.alpha=null", "search.distill.alpha={uniform: [2, 3]}"],
            ["search.distill.alpha"] * 2,
        ),
        (["distill.alpha=null", "search.distill.alpa={uniform: [0, 1]}"], ["search.distill.alpa"]),
        (["distill.alpha=null", "search=3"], ["search"]),
        (["data.batch_size=x", "train.accumulate=60"], ["data.batch_size"]),
        (["study.baseline=3", "train.accumulate=2"], ["study.baseline"]),
    ],
)
def test_a_wrong_value_gives_no_further_error_of_its_own_making(
    settings: list[str], expected: list[str]
) -> None:
    assert paths(wrong(*settings)) == expected


def test_what_is_missing_hides_nothing_else() -> None:
    lines = wrong("study={}", "data={}", "student={}", "distill.lam=1", "train.epochs=1")
    assert set(paths(lines)) == {
        "study.name",
        "data.source",
        "student.model",
        "distill",
        "train.epochs",
    }


@pytest.mark.parametrize(
    ("path", "values", "words"),
    [
        ("optim.lr", "{uniform: [-1, 1]}", "must be > 0, got -1.0; leave it out of the range"),
        ("optim.lr", "{choice: [a, 0.1]}", "must be a number, got 'a'; leave it out"),
        ("optim.lr", "{choice: [.nan]}", "must be a number, got nan"),
        ("optim.nesterov", "{choice: [0, true]}", "must be true or false, got 0"),
        (
            "train.epochs",
            "{uniform: [4, 9.5]}",
            "must be a whole number, got 4.0; search it with int:",
        ),
        ("optim", "{choice: [1]}", "is a section, not a value; name one of its keys: optim.name, "),
        ("optim.wd", "{choice: [1]}", "is not a path of the config"),
        ("lr", "{choice: [1]}", "is not a path of the config; did you mean search.optim.lr?"),
        ("student.modle", "{choice: [a]}", "did you mean search.student.model?"),
        ("study.trials", "{choice: [1]}", "belongs to the study, not to a trial"),
        ("storage.path", "{choice: [x]}", "belongs to the study, not to a trial"),
        ("teacher.model", "{choice: [x]}", "belongs to what all trials of a study share"),
        ("data.source", "{choice: [digits]}", "belongs to what all trials of a study share"),
        ("data.drop_last", "{choice: [true]}", "belongs to what all trials of a study share"),
        ("data.unseen_classes", "{choice: ['9']}", "belongs to what all trials of a study share"),
        ("train.workers", "{choice: [1]}", "belongs to what all trials of a study share"),
        ("student.cuts", "{choice: [layer1]}", "holds no single value"),
        ("distill.stage_epochs", "{choice: [3]}", "no single value; search distill.stage_split in"),
        ("distill.feature_weights", "{choice: [3]}", "value; search distill.feature_scale in its"),
        ("optim.milestones", "{choice: [3]}", "holds no single value"),
        ("distill.lam", "{uniform: [0, 1]}", "is read by no trial of this search, only where"),
        ("distill.decomposition", "{choice: [5/2, 0/0]}", "k >= 1 must hold"),
        ("distill.decomposition", "{choice: [5/2, 3/9]}", "n <= 2 must hold for k = 3"),
        ("data.batch_size", "{choice: [64, 1]}", "must be >= 2"),
    ],
)
def test_every_value_of_the_search_must_be_valid(path: str, values: str, words: str) -> None:
    lines = wrong(f"search.{path}={values}")
    assert any(words in line for line in lines)
    assert all(line.startswith((f"search.{path}: ", "distill: ")) for line in lines)


def test_searched_values_are_tried_together_where_a_rule_reads_them_together() -> None:
    lines = wrong(
        "search.distill.method={choice: [kd, stablekd]}",
        "search.distill.decomposition={choice: [1/0, 5/2]}",
        "search.train.epochs={int: [2, 20]}",
        "search.data.batch_size={choice: [128, 8]}",
        "search.train.accumulate={choice: [1, 8]}",
    )
    assert len(lines) == 2
    batch, epochs = sorted(lines)
    assert batch.startswith("search.data.batch_size: must be >= 16")
    assert "(where search gives train.accumulate: 8), got 8; " in batch
    assert epochs.startswith("search.train.epochs: must be >= 3")
    assert "distill.method: stablekd, distill.decomposition: 5/2), got 2; " in epochs


def test_epochs_given_to_each_stage_bind_the_searched_n_and_epochs() -> None:
    stages = "distill.stage_epochs=[4, 4, 12]"
    assert config_with(stages, "search.distill.decomposition={choice: [5/2, 4/2]}")
    (line,) = wrong(stages, "search.distill.decomposition={choice: [5/2, 5/1]}")
    assert line.startswith("distill.stage_epochs: must have 2 number(s), one for each stage of 5/1")
    assert "(where search gives distill.decomposition: 5/1), got [4, 4, 12]; " in line
    (line,) = wrong(stages, "search.train.epochs={int: [20, 21]}")
    assert line.startswith("distill.stage_epochs: must add up to 21, which is train.epochs")
    assert "(where search gives train.epochs: 21), got [4, 4, 12] = 20; " in line


def test_a_search_over_everything_at_once_is_checked_in_no_time() -> None:
    config_with(
        "search.distill.decomposition={choice: [1/0, 2/1, 3/1, 3/2, 4/2, 5/1, 5/2, 5/3]}",
        "search.train.epochs={int: [4, 20]}",
        "search.data.batch_size={choice: [32, 64, 128, 256, 512]}",
        "search.train.accumulate={choice: [1, 2, 4]}",
        "search.optim.momentum={uniform: [0, 0.99]}",
        "search.optim.weight_decay={loguniform: [1e-6, 1e-2]}",
        "search.train.precision={choice: [fp32, bf16]}",
    )


def test_a_searched_value_replaces_the_base_value() -> None:
    trial = config_with("optim.lr=0.5").trial({"optim.lr": 0.01, "distill.decomposition": "3/1"})
    assert (trial.optim.lr, trial.distill.decomposition) == (0.01, "3/1")
    assert not hasattr(trial, "search")


def test_one_of_lam_and_alpha_may_come_from_the_search() -> None:
    settings = ("distill.decomposition=5/3", "search.distill.lam={loguniform: [0.1, 10]}")
    config = config_with("distill.alpha=null", *settings)
    assert config.trial({"distill.lam": 2.0}).distill.lam == 2.0
    (line,) = wrong(*settings)
    assert line.endswith("remove one, got both") or "got both" in line


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ("{optim.l: 1}", "is not a path of the config; did you mean study.baseline.optim.lr?"),
        ("{optim: 1}", "is a section, not a value"),
        ("{data.root: x}", "belongs to what all trials of a study share"),
        ("{distill.alpha: 0.1}", "learns without a teacher"),
        ("{optim.lr: -1}", "must be > 0, got -1"),
        ("{train.epochs: 2.5}", "must be a whole number"),
        ("{data.batch_size: 1}", "must be >= 2"),
        ("{optim.lr: [1]}", "must be a number, text, true or false"),
    ],
)
def test_the_baseline_must_be_a_valid_trial(baseline: str, words: str) -> None:
    (line,) = wrong(f"study.baseline={baseline}")
    assert line.startswith("study.baseline.")
    assert words in line


def test_the_baseline_trains_at_the_base_value_of_what_is_searched() -> None:
    (line,) = wrong("data.batch_size=1", "search.data.batch_size={choice: [32]}")
    assert line.startswith("data.batch_size: must be >= 2")
    assert "for the student without a teacher" in line


def test_the_baseline_learns_from_the_labels_alone() -> None:
    config = config_with("study.baseline={optim.lr: 0.3, train.epochs: 5}")
    baseline = config.baseline()
    assert (baseline.distill.method, baseline.optim.lr, baseline.train.epochs) == ("none", 0.3, 5)


def test_the_teachers_own_batch_must_suit_the_workers() -> None:
    (line,) = wrong("teacher.train.batch_size=2", "train.accumulate=4")
    assert line.startswith("teacher.train.batch_size: must be >= 8")


def test_the_teachers_own_schedule_must_suit_its_own_epochs() -> None:
    multistep = "{schedule: multistep, milestones: [2, 4]}"
    (line,) = wrong(f"teacher.train.optim={multistep}")
    assert line.startswith("teacher.train.optim.milestones: must be < 2, the epochs of training")
    assert config_with("teacher.train.epochs=5", f"teacher.train.optim={multistep}")
    assert paths(wrong("teacher.train.optim.warmup_fraction=0")) == [
        "teacher.train.optim.warmup_fraction"
    ]


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        (
            "teacher.train.optim={schedule: multistp, milestones: [1]}",
            "teacher.train.optim.schedule",
        ),
        ("teacher.train.epochs=many", "teacher.train.epochs"),
        ("teacher.train.optim=3", "teacher.train.optim"),
    ],
)
def test_nothing_is_said_of_what_depends_on_a_wrong_value_of_the_teachers(
    setting: str, path: str
) -> None:
    milestones = (
        [] if "optim" in path else ["teacher.train.optim={schedule: multistep, milestones: [9]}"]
    )
    assert paths(wrong(*milestones, setting)) == [path]


def test_a_wrong_schedule_of_the_trials_leaves_the_teachers_own_checked() -> None:
    lines = wrong("optim.schedule=sometimes", "teacher.train.optim.milestones=[1]")
    assert sorted(paths(lines)) == ["optim.schedule", "teacher.train.optim.milestones"]


def test_the_teacher_trains_with_its_own_epochs_batch_and_optimizer() -> None:
    config = config_with("teacher.train={epochs: 3, batch_size: 32, optim: {lr: 0.7}, seed: 9}")
    training = config.teacher_training()
    assert training.student.model == "resnet34"
    assert (training.train.epochs, training.train.seed) == (3, 9)
    assert (training.data.batch_size, training.optim.lr) == (32, 0.7)
    assert training.distill.method == "none"


def test_the_teacher_trains_on_all_that_a_subset_leaves_out() -> None:
    teacher = "teacher.train={epochs: 3}"
    whole, part = (config_with(teacher, f"data.subset={share}") for share in (1, 0.2))
    assert part.trial(part.space.usual).data.subset == 0.2
    assert part.teacher_training() == whole.teacher_training()


def test_what_changes_single_pictures_can_be_searched() -> None:
    search = "search.data.augment.rand_augment.magnitude={choice: [5, 9]}"
    config = config_with(search, "search.data.augment.mixup={uniform: [0.1, 1]}")
    sample = {"data.augment.rand_augment.magnitude": 5, "data.augment.mixup": 0.3}
    augment = config.trial({**config.space.usual, **sample}).data.augment
    assert augment.rand_augment is not None
    assert (augment.rand_augment.magnitude, augment.mixup) == (5, 0.3)


def test_a_range_of_areas_is_no_single_value_to_search() -> None:
    (line,) = wrong("search.data.augment.resized_crop={choice: [0.1, 0.5]}")
    assert line.startswith("search.data.augment.resized_crop: holds no single value")


def test_all_trials_of_a_study_have_the_same_subset() -> None:
    (line,) = wrong("search.data.subset={choice: [0.2, 0.4]}")
    assert line.startswith("search.data.subset: belongs to what all trials of a study share")


def test_a_study_without_a_teacher_to_train_has_no_teacher_training() -> None:
    with pytest.raises(ValueError, match="trains no teacher"):
        config_with("teacher=null", "distill={method: none}").teacher_training()


def test_no_validation_is_no_search() -> None:
    assert paths(wrong("data.val_fraction=0")) == ["data.val_fraction"]
    assert config_with("data.val_fraction=0", "search={}").data.val_fraction == 0


@pytest.mark.parametrize("pruner", ["none", "halving"])
def test_keys_of_asha_are_refused_beside_another_pruner(pruner: str) -> None:
    given = f"study.pruner={{name: {pruner}, grace_epochs: 3, reduction_factor: 2}}"
    rule = f"is read by the pruner asha alone, and study.pruner.name is {pruner}"
    assert wrong(given) == [
        f"study.pruner.grace_epochs: {rule}, got 3; remove it, or use asha",
        f"study.pruner.reduction_factor: {rule}, got 2.0; remove it, or use asha",
    ]
    kept = parse_yaml(dump_config(config_with(f"study.pruner={{name: {pruner}}}")), "kept")
    assert kept["study"]["pruner"]["grace_epochs"] == 1  # which a study writes, and reads again
    assert parse_config(kept).study.pruner.name == pruner
    assert config_with(given, "search={}").search == {}


def test_a_first_rung_beyond_the_last_epoch_is_refused() -> None:
    def asha(grace: int) -> str:
        return f"study.pruner={{name: asha, grace_epochs: {grace}}}"

    rule = "study.pruner.grace_epochs: must be <= 30, the epochs of a trial, or no trial is ever stopped, got 31"
    assert wrong(asha(31), "train.epochs=30") == [f"{rule}; lower it, or use the pruner none"]
    searched = "search.train.epochs={int: [20, 30]}"
    assert wrong(asha(31), searched) == [f"{rule}; lower it, or use the pruner none"]
    assert config_with(asha(30), searched).study.pruner.grace_epochs == 30
    assert paths(wrong(asha(31), "train.epochs=many")) == ["train.epochs"]
    assert config_with(asha(31), "train.epochs=30", "search={}").train.epochs == 30


def test_a_single_trial_takes_the_base_values() -> None:
    single = without_search(config_with("optim.lr=0.2"))
    assert (single.search, single.optim.lr) == ({}, 0.2)
    assert (single.study.name, single.study.trials) == ("s-train", 1)


def test_a_single_trials_name_is_longer_than_its_studys() -> None:
    assert len(without_search(config_with(f"study.name={'s' * 94}")).study.name) == 100
    told = (
        r"^study\.name: must have at most 94 characters: the single trial's is called <name>-train"
    )
    with pytest.raises(ConfigError, match=told):
        without_search(config_with(f"study.name={'s' * 95}"))


def test_a_seed_leaves_room_for_those_of_replicates() -> None:
    assert paths(wrong(f"study.seed={2**53 + 1}")) == ["study.seed"]
    (seed,) = replicate_seeds(2**53, 0, 1)
    assert seed < 2**63


def test_searched_paths_without_a_base_value_are_named_for_a_single_trial() -> None:
    config = config_with(
        "distill.alpha=null",
        "distill.decomposition=null",
        "search.distill.lam={uniform: [0.5, 2]}",
        "search.distill.decomposition={choice: [3/2, 5/3]}",
    )
    with pytest.raises(ConfigError) as caught:
        without_search(config)
    assert str(caught.value).splitlines() == [
        "distill.lam: is searched and has no base value; give it one, or --set distill.lam=0.5",
        "distill.decomposition: is searched and has no base value; "
        "give it one, or --set distill.decomposition=3/2",
    ]


def test_a_single_trial_whose_base_values_are_wrong_is_told_so() -> None:
    config = config_with(
        "distill.decomposition=5/9", "search.distill.decomposition={choice: [5/2]}"
    )
    with pytest.raises(ConfigError, match=r"^distill.decomposition: n <= 3 must hold"):
        without_search(config)


QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_searched_paths_that_take_their_default_are_known() -> None:
    single, defaults = load_single(QUICKSTART)
    assert defaults == {"optim.weight_decay": 5e-4}
    assert single.optim.weight_decay == 5e-4


def test_a_path_in_a_section_that_is_not_there_has_no_default() -> None:
    path = "data.augment.rand_augment.magnitude"
    assert load_single(QUICKSTART, [f"search.{path}={{int: [3, 9]}}"])[1][path] is None


def test_a_single_trial_does_not_mind_what_the_search_would_make_of_it() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        load_config(QUICKSTART, ["train.epochs=3"])  # too few for the 5/3 of its search
    single, _ = load_single(QUICKSTART, ["train.epochs=3"])
    assert single.train.epochs == 3


def test_a_single_trial_minds_a_search_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match=r"search\.optim\.lr"):
        load_single(QUICKSTART, ["search.optim.lr={uniform: [2, 1]}"])


def test_studies_are_kept_in_a_folder_or_a_bucket(node_cache: Path) -> None:
    folder = config_with("storage.path=file:///tmp/my%20runs")
    assert (folder.storage.path, folder.bucket) == ("/tmp/my runs", None)
    assert str(folder.folder) == folder.place == f"/tmp/my runs/{folder.study.name}"
    bucket = config_with("storage.path=s3://bucket/prefix/")
    assert bucket.bucket == bucket.place == f"s3://bucket/prefix/{bucket.study.name}"
    assert bucket.folder.is_relative_to(node_cache / "buckets")
    assert parse_config(parse_yaml(dump_config(bucket), "dumped")) == bucket


@pytest.mark.parametrize("place", ["hdfs://host/runs", "s3://", "s3:///", "file://host/runs"])
def test_places_where_no_studies_are_kept(place: str) -> None:
    (line,) = wrong(f"storage.path={place}")
    rule = "must be a folder, or s3://bucket/prefix or gs://bucket/prefix"
    assert line == f"storage.path: {rule}, got '{place}'; write e.g. ./runs"


def test_a_bucket_is_the_same_place_on_all_machines() -> None:
    settings = ["storage.path=s3://bucket/prefix"]
    assert load_for_cluster(QUICKSTART, settings).storage.path == "s3://bucket/prefix"


def test_credentials_do_not_belong_into_a_config() -> None:
    (line,) = wrong("storage.path=s3://me:secret@bucket/prefix")
    assert line.startswith("storage.path: must be without credentials: ")


def test_differences_are_by_dotted_path_without_the_place_of_the_study() -> None:
    one = config_with("storage.path=/a")
    other = config_with(
        "storage.path=/b", "optim.lr=3", "search.optim.lr={uniform: [1, 2]}", "train.clip=1"
    )
    assert differences(one, other) == {
        "optim.lr": (one.optim.lr, 3),
        "train.clip": (one.train.clip, 1),
        "search.optim.lr.loguniform": ([0.001, 0.1], None),
        "search.optim.lr.uniform": (None, [1, 2]),
    }


def test_a_draft_stands_in_for_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(with_values(tree(), {"student.model": 18, "optim.lr": "x"})))
    draft = draft_config(path)
    assert draft.unknown == {"student.model", "optim.lr"}
    assert draft.config is not None
    assert draft.config.distill.decomposition == "5/2"
    assert len(draft.problems) == 2


def test_flat_and_with_values_are_each_others_inverse() -> None:
    nested = {"a": {"b": {"c": 1, "d": [2]}}, "e": {}, "f": None}
    assert flat(nested) == {"a.b.c": 1, "a.b.d": [2], "e": {}, "f": None}
    assert with_values({}, flat(nested)) == nested


def test_reading_a_config_loads_no_heavy_library() -> None:
    code = (
        "import sys; from pathlib import Path; import study.cli; from study.config import load_config; "
        f"load_config(Path({str(QUICKSTART)!r})); "
        "print({'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'sqlalchemy'} & sys.modules.keys())"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"
