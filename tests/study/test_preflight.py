"""What is checked before the first trial, and what `validate` prints of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from study.cluster import Capacity
from study.config import draft_config, load_config, parse_config
from study.preflight import StudyPlan, preflight, preflight_draft, stages_by_decomposition
from study.report.plan import print_plan
from study.tree import with_settings
from study.yaml import dump_yaml
from trainable.errors import ConfigError, DataError

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
HERE = Capacity(cpus=2, gpus=0)
SMALL: dict[str, Any] = {
    "study": {"name": "small"},
    "data": {"source": "digits"},
    "student": {"model": "mini_resnet_10_4"},
    "teacher": {"model": "mini_resnet_10_4", "train": {"epochs": 1}},
    "distill": {"method": "kd", "alpha": 0.5},
    "train": {"epochs": 3},
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan_of(*settings: str, capacity: Capacity = HERE) -> StudyPlan:
    return preflight(parse_config(SMALL, settings), capacity)


def wrong(*settings: str, capacity: Capacity = HERE) -> list[str]:
    """The lines for settings over a small config, however far it can be read."""
    path = Path("study.yaml")
    path.write_text(dump_yaml(with_settings(SMALL, settings)))
    with pytest.raises(ConfigError) as caught:
        preflight_draft(draft_config(path), capacity)
    return str(caught.value).splitlines()


def printed(plan: StudyPlan, width: int = 120) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        print_plan(plan, console)
    return capture.get()


def test_a_sound_study_has_a_plan() -> None:
    plan = plan_of()
    assert plan.config.resources.gpus_per_worker == 0
    assert plan.concurrency == 2
    assert [block.name for block in plan.student.blocks][-1] == "head"
    assert plan.teacher is not None
    assert plan.teacher.parameters == plan.student.parameters
    assert len(plan.data.classes) == 10


NARROW = [
    "student.model=mini_resnet_10_2",
    "distill={method: stablekd, lam: 1, decomposition: 5/2}",
]
NETWORKS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes, *more):
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes), *more)

def seven():
    return Net(7)

class Spare(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net, self.spare = Net(classes), nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)

def spare(num_classes):
    return Spare(num_classes)

class NormAndMore(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()

class More(nn.Sequential):
    def __init__(self, num_classes):
        layers = nn.Conv2d(3, 4, 3), NormAndMore(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*layers, nn.Linear(4, num_classes))
"""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            [*NARROW, "search.student.projectors={choice: [fold, none]}"],
            ["at layer1 the student has (2, 8, 8)", "where search gives student.projectors: none"],
        ),
        (
            [
                "student.model=torchvision:squeezenet1_1",
                "student.cuts=[features.2]",
                "data.image_size=32",
                "teacher.cuts=[layer1]",
                "search.student.head.name={choice: [linear, am_softmax]}",
            ],
            ["must end in a linear layer", "where search gives student.head.name: am_softmax"],
        ),
        (
            ["distill={method: at, lam: 1000}", "teacher.cuts=[layer1]"],
            ["student.cuts: must cut both networks into as many blocks, not the teacher into 2"],
        ),
        (
            ["distill={method: mse, alpha: 0.5}", "student.cuts=[]"],
            ["student.cuts: mse compares features at the cuts, and there are none"],
        ),
        (
            ["teacher=null", "distill={method: none}", "student.projectors=fold"],
            ["student.projectors: needs a teacher"],
        ),
        (
            ["student.model=our_nets:seven", "student.cuts=[]"],
            ["must give 10 logits, one a class, got (7,)"],
        ),
        (["student.model=our_nets:spare", "student.cuts=[]"], ["2 unused, the first spare.weight"]),
        (
            [
                "data.unseen_classes=['3', '7']",
                "student.model=torchvision:squeezenet1_1",
                "student.cuts=[]",
                "data.image_size=32",
            ],
            ["student.model: data.unseen_classes needs a network whose last layer takes a vector"],
        ),
    ],
)
def test_what_would_fail_in_a_trial_is_refused_before(
    settings: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our_nets.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    text = "\n".join(wrong(*settings))
    assert all(word in text for word in words), text


@pytest.mark.parametrize("order", ["[false, true]", "[true, false]"])
def test_what_replaces_batchnorm_is_checked_wherever_it_stands_in_the_search(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our_nets.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    own = ("teacher=null", "distill={method: none}", "student.model=our_nets:More")
    searched = (*own, "student.cuts=['1']", f"search.train.batchnorm.sync={{choice: {order}}}")
    (line,) = wrong(*searched, "train.workers=2")
    assert line.startswith("search.train.batchnorm.sync: replaces BatchNorm layers, and 1 is a ")
    (line,) = wrong(*own, "student.cuts=['1']", "search.train.batchnorm.group_norm={int: [1, 2]}")
    assert line.startswith("search.train.batchnorm.group_norm: replaces BatchNorm layers, ")


def test_gpus_are_used_where_there_are_any() -> None:
    plan = plan_of("resources.gpus_per_worker=0.5", capacity=Capacity(cpus=8, gpus=2))
    assert plan.concurrency == 4
    assert plan_of(capacity=Capacity(8, 2)).config.resources.gpus_per_worker == 1


@pytest.mark.parametrize(
    ("settings", "gpus", "is_unsettled"),
    [
        (["resources.gpus_per_worker=auto"], 2, True),
        (["resources.gpus_per_worker=auto"], 0, False),
        (["resources.gpus_per_worker=auto", "train.workers=2"], 2, False),  # NCCL needs whole ones
        (["resources.gpus_per_worker=0.5"], 2, False),
    ],
)
def test_what_is_to_be_measured_is_said(
    settings: list[str], gpus: float, is_unsettled: bool
) -> None:
    plan = plan_of(*settings, capacity=Capacity(cpus=8, gpus=gpus))
    assert plan.is_unsettled == is_unsettled
    assert ("as many as a measurement" in printed(plan)) == is_unsettled


def test_5_2_of_the_quickstart_is_printed_with_groups_epochs_and_halved_peaks() -> None:
    text = printed(preflight(load_config(QUICKSTART), HERE))
    stages = text.split("stages of 5/2: 5 → 3 → 2 group(s)")[1].split("stages of")[0]
    rows = [line.split() for line in stages.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:2] + row[3:4] for row in rows] == [
        ["1", "4", "5"],
        ["2", "4", "3"],
        ["3", "4", "2"],
    ]
    assert [row[4] for row in rows] == ["1", "0.5", "0.25"]
    assert "layer1 layer2 | layer3 layer4 | head" in rows_text(rows[1])


def rows_text(row: list[str]) -> str:
    return " ".join(row)


def test_the_plan_shows_resources_concurrency_and_trials() -> None:
    search = "search.optim.momentum={uniform: [0, 0.9]}"
    text = printed(plan_of("train.workers=2", "study.trials=7", "optim.lr=0.2", search))
    assert "2 worker(s) of 1 CPU(s), 3 epochs, by a TorchTrainer" in text
    assert "2 CPU(s) and 0 GPU(s): 1 trial(s) at a time" in text
    assert "trials      7, seed 0, sampler tpe, pruner none" in text
    assert "stages of kd: 1 group(s)" in text
    assert "0.2" in text


STUDENTS = "search.student.model={choice: [mini_resnet_10_4, mini_resnet_10_2, mini_resnet_10_8]}"


def test_the_plan_shows_every_student_that_search_gives_and_what_is_sought() -> None:
    plan = plan_of(
        STUDENTS,
        "study.objectives=[accuracy, latency]",
        "study.constraints={parameters: 30000, accuracy: 0.5}",
    )
    narrow, usual, wide = (plan.parameters[f"mini_resnet_10_{width}"] for width in (2, 4, 8))
    assert narrow < usual < 30_000 < wide
    assert usual == plan.student.parameters  # without projectors
    lines = [" ".join(line.split()) for line in printed(plan).splitlines()]
    assert f"mini_resnet_10_4 {usual:,} yes" in lines
    assert f"mini_resnet_10_8 {wide:,} no: over the constraint" in lines
    assert "sought most accuracy, least latency" in lines
    assert "constraints accuracy >= 0.5, parameters <= 30000" in lines
    assert "constraint" not in printed(plan_of())


def test_a_folded_student_counts_as_it_is_used() -> None:
    projectors = "search.student.projectors={choice: [fold, keep, none]}"
    plan = plan_of("student.model=mini_resnet_10_2", projectors)
    plain, folded, kept = (plan.parameters[name] for name in ("none", "fold", "keep"))
    assert plain < folded < kept


def test_every_student_of_the_search_is_built_and_compared_with_the_teacher() -> None:
    stablekd = "distill={method: stablekd, lam: 1, decomposition: 5/2}"
    deep = "search.distill.decomposition={choice: [3/1, 5/2]}"
    found = "\n".join(wrong(STUDENTS, stablekd, deep))
    assert "at layer1 the student has (2, 8, 8) and the teacher (4, 8, 8)" in found
    assert "where search gives student.model: mini_resnet_10_8" in found
    assert set(plan_of(STUDENTS, stablekd, deep, "student.projectors=fold").parameters) == {
        f"mini_resnet_10_{width}" for width in (2, 4, 8)
    }


def test_a_bound_below_every_student_is_refused() -> None:
    smallest = plan_of(STUDENTS).parameters["mini_resnet_10_2"]
    assert wrong(STUDENTS, f"study.constraints.parameters={smallest - 1}") == [
        f"study.constraints.parameters: must be >= {smallest}, the parameters of the smallest "
        f"student that a trial may have, got {smallest - 1}; raise it, or search a smaller "
        "student.model"
    ]
    plan_of(STUDENTS, f"study.constraints.parameters={smallest}")


def test_a_sampler_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.samplers.find_spec", lambda name: None)
    (line,) = wrong("study.sampler=cmaes")
    assert "needs the package cmaes, which is not installed" in line


def test_stages_are_shown_for_every_method_and_decomposition_of_the_search() -> None:
    plan = plan_of(
        "distill.decomposition=5/2",
        "search.distill.method={choice: [kd, stablekd]}",
        "search.distill.decomposition={choice: [3/1, 5/2]}",
        "search.train.epochs={int: [4, 8]}",
    )
    assert {name: len(s) for name, s in stages_by_decomposition(plan).items()} == {
        "kd": 1,
        "3/1": 2,
        "5/2": 3,
    }
    text = printed(plan)
    assert "stages of 5/2: 5 → 3 → 2 group(s), where train.epochs is 4" in text
    assert "integers 4 … 8 epochs" in text


@pytest.mark.parametrize(
    "distill",
    [
        "{method: at, lam: 1000}",
        "{method: nst, lam: 50}",
        "{method: reviewkd, lam: 1}",
        "{method: sobolev, alpha: 0.5, lam: 1}",
        "{method: dkd}",
    ],
)
def test_methods_that_take_any_widths_have_a_plan(distill: str) -> None:
    plan = plan_of("student.model=mini_resnet_10_8", f"distill={distill}")
    assert plan.teacher is not None
    assert plan.teacher.parameters < plan.student.parameters


def test_names_that_look_like_markup_are_printed_as_they_are() -> None:
    text = printed(plan_of("storage.path=/tmp/[/bold]", "search.optim.lr={choice: [0.1]}"))
    assert "/tmp/[/bold]/small" in text


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        (["student.model=resnet33"], "student.model", "did you mean resnet"),
        (["student.model=mini_resnet_11_4"], "student.model", "depth of 8n + 2"),
        (["teacher.model=nonet"], "teacher.model", "must be a known network"),
        (["student.cuts=[layerX]"], "student.cuts", "choose from conv1, "),
        (["student.cuts=[layer2, layer1]"], "student.cuts", "must be in the network's order"),
        (
            ["distill={method: deit, alpha: 0.5}"],
            "student.model",
            "must be a vision transformer to have the distillation token",
        ),
        (
            ["distill={method: at, lam: 1}", "student.cuts=[]"],
            "student.cuts",
            "at compares features at the cuts, and there are none",
        ),
        (
            ["distill={method: stablekd, lam: 1, decomposition: 6/1}"],
            "distill.decomposition",
            "k <= 5 must hold for mini_resnet_10_4, which is cut into 5 blocks, got 6/1",
        ),
        (
            ["distill={method: stablekd, lam: 1, decomposition: 4/1}", "student.cuts=[layer2]"],
            "distill.decomposition",
            "k <= 2 must hold",
        ),
        (
            ["distill.method=kd_mse", "distill.feature_weights={layer9: 1}"],
            "distill.feature_weights",
            "must name cuts, got 'layer9'",
        ),
        (["train.precision=fp16"], "train.precision", "fp16 needs a GPU"),
        (["train.workers=3"], "resources", "one trial must fit on the cluster"),
        (["resources.gpus_per_worker=1"], "resources", "one trial must fit on the cluster"),
        (["storage.path=study.yaml/runs"], "storage.path", "must be a folder that can be written"),
        (["storage.optuna=database"], "storage.optuna", "must be the URL of a database"),
        (["storage.optuna=nosql://x"], "storage.optuna", "must be the URL of a database"),
        (["storage.optuna=sqlite:////nowhere/x.db"], "storage.optuna", "a folder that exists"),
        (
            ["study.baseline={student.model: nonet}", "search.optim.lr={uniform: [0.1, 1]}"],
            "study.baseline.student.model",
            "must be a known network",
        ),
        (
            ["search.student.model={choice: [mini_resnet_10_4, nonet]}"],
            "search.student.model",
            "must be a known network, got 'nonet'",
        ),
        (
            [
                "distill={method: stablekd, lam: 1, decomposition: 5/1}",
                "search.distill.decomposition={choice: [5/2, 7/1]}",
            ],
            "search.distill.decomposition",
            "k <= 5 must hold",
        ),
        (
            [
                "distill={method: stablekd, lam: 1, decomposition: 5/1}",
                "search.distill.decomposition={k: [4, 7], n: [1, 2]}",
            ],
            "search.distill.decomposition",
            "k <= 5 must hold for mini_resnet_10_4, which is cut into 5 blocks, got 6/1, 6/2, 7/1, 7/2; ",
        ),
    ],
)
def test_what_the_world_does_not_allow_is_refused(
    settings: list[str], path: str, words: str
) -> None:
    (line,) = wrong(*settings)
    assert line.startswith(f"{path}: ")
    assert words in line


def test_features_that_differ_are_named_cut_by_cut() -> None:
    settings = ["student.model=mini_resnet_10_8", "distill.method=kd_mse"]
    lines = wrong(*settings)
    assert len(lines) == 4
    assert "at layer1 the student has (8, 8, 8) and the teacher (4, 8, 8)" in lines[0]


def test_features_that_differ_for_a_searched_student_name_it() -> None:
    lines = wrong(
        "search.student.model={choice: [mini_resnet_10_4, mini_resnet_10_8]}",
        "search.distill.method={choice: [kd, kd_mse]}",
    )
    assert len(lines) == 4
    assert all("student.model: mini_resnet_10_8, distill.method: kd_mse" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "must be a file"),
        (b"not a checkpoint", "must be a .safetensors file or a state dict"),
        ({"fc.weight": torch.zeros(3, 32)}, "fc.weight is (3, 32) and must be (10, 32)"),
        ({"foreign": torch.zeros(1)}, "1 unexpected (foreign)"),
    ],
)
def test_a_checkpoint_must_fit_the_teacher(content: Any, words: str) -> None:
    if isinstance(content, bytes):
        Path("teacher.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "teacher.pt")
    lines = wrong("teacher={model: mini_resnet_10_4, checkpoint: teacher.pt}")
    assert [line.split(": ")[0] for line in lines] == ["teacher.checkpoint"]
    assert words in lines[0]


def test_a_data_set_that_cannot_be_read_is_a_data_error() -> None:
    with pytest.raises(DataError):
        plan_of("data.source=parquet", "data.root=nowhere")


def test_config_data_networks_checkpoint_and_resources_are_reported_at_once() -> None:
    lines = wrong(
        "optim.lr=fast",
        "train.epoch=3",
        "data.source=parquet",
        "data.root=nowhere",
        "student.model=nonet",
        "teacher={model: mini_resnet_18_4, checkpoint: nowhere.pt}",
        "train.workers=9",
        "train.precision=fp16",
        "storage.optuna=database",
    )
    places = {line.split(": ")[0].split("/")[0] for line in lines}
    assert {
        "optim.lr",
        "train.epoch",
        "student.model",
        "teacher.checkpoint",
        "resources",
        "train.precision",
        "storage.optuna",
    } <= places
    assert any("nowhere" in line and "teacher" not in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        (["student.modle=resnet18"], "student.modle"),
        (["student={}"], "student.model"),
        (["data={}"], "data.source"),
        (["teacher.model=3", "distill.method=kd_mse"], "teacher.model"),
        (["distill.method=kdd"], "distill.method"),
        (["train.workers=x"], "train.workers"),
        (["search.student.model={choice: [1]}"], "search.student.model"),
        (["study=3"], "study"),
        (["storage=3"], "storage"),
        (["resources=3", "train.precision=fp16"], "resources"),
    ],
)
def test_nothing_is_said_of_what_depends_on_a_wrong_value(settings: list[str], path: str) -> None:
    assert [line.split(": ")[0] for line in wrong(*settings)] == [path]


def test_workers_need_two_training_pictures_each() -> None:
    many = Capacity(cpus=1000, gpus=0)
    settings = ("train.workers=900", "data.batch_size=2000", "teacher.train.batch_size=2000")
    lines = wrong(*settings, capacity=many)
    assert any("train.workers: must leave two training pictures" in line for line in lines), lines


UNSEEN = "data.unseen_classes=['8', '9']"


def test_unseen_classes_are_counted_apart() -> None:
    plan = plan_of(UNSEEN)
    assert plan.data.classes == tuple("01234567")
    assert plan.student.blocks[-1].output == (8,)
    assert f"{plan.data.unseen} pictures of 2 unseen classes" in printed(plan)
    assert "verification" not in printed(plan_of())


def test_unseen_classes_must_be_in_the_data_set() -> None:
    with pytest.raises(DataError, match=r"data\.unseen_classes: must name classes .*, got 10; "):
        plan_of("data.unseen_classes=['9', '10']")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["data.batch_size=5000"], ["data.batch_size"]),
        (["teacher.train.batch_size=5000"], ["teacher.train.batch_size"]),
        (["search.data.batch_size={choice: [64, 5000, 6000]}"], ["search.data.batch_size"] * 2),
        (
            ["search.data.batch_size={int: [64, 5000]}", "data.batch_size=5000"],
            ["data.batch_size", "search.data.batch_size"],
        ),
        (
            ["search.optim.lr={uniform: [0.1, 1]}", "study.baseline.data.batch_size=5000"],
            ["study.baseline.data.batch_size"],
        ),
    ],
)
def test_with_drop_last_an_epoch_needs_a_whole_update(
    settings: list[str], expected: list[str]
) -> None:
    lines = wrong("data.drop_last=true", *settings)
    assert [line.split(": ")[0] for line in lines] == expected
    rule = "must be <= 1295, the training pictures, with data.drop_last, got "
    assert all(rule in line for line in lines)


def test_what_a_cached_teacher_says_must_fit_into_the_budget() -> None:
    """Of 1,295 pictures: 10 logits each, or 490 numbers with the features, of 4 or 2 bytes."""
    cached = ("teacher.cache=true", "data.cache_budget_gib=0.001")
    plan_of(*cached)
    features = (*cached, "distill={method: stablekd, lam: 1, decomposition: 5/2}")
    (line,) = wrong(*features)
    rule = "teacher.cache needs at least 0.00236 GiB for logits and features of 1,295 pictures"
    assert line == (
        f"data.cache_budget_gib: {rule}, got 0.001; raise it, or set teacher.cache to false"
    )
    (line,) = wrong(*features, "train.precision=bf16")
    assert "needs at least 0.00118 GiB" in line
    (line,) = wrong(*cached, "data.augment={crop: 2, flip: true}")
    assert "GiB for logits of 50 views of each of 1,295 pictures" in line
    (line,) = wrong(*cached, "search.data.augment.crop={choice: [0, 2]}")
    assert "GiB for logits of 25 views of each of 1,295 pictures" in line
    plan_of(*features[1:])


def test_replicates_ask_a_cached_teacher_about_the_pictures_that_trials_hold_out() -> None:
    features = "distill={method: stablekd, lam: 1, decomposition: 5/2}"
    cached = ("teacher.cache=true", "data.cache_budget_gib=0.0025", features)
    searched = (*cached, "search.optim.lr={uniform: [0.1, 1]}")
    plan_of(*searched)
    (line,) = wrong(*searched, "study.replicates={finalists: 1, seeds: 2}")
    assert "needs at least 0.00262 GiB for logits and features of 1,438 pictures" in line


def test_with_a_cached_teacher_the_search_has_methods_that_ask_for_the_same() -> None:
    methods = "search.distill.method={choice: [kd, none, sobolev]}"
    lines = wrong("teacher.cache=true", "distill.lam=1", methods)
    assert any("asks for slopes along directions drawn anew" in line for line in lines)


def test_the_plan_tells_how_many_of_the_pictures_are_trained_on() -> None:
    plan = plan_of("data.subset=0.2")
    assert (plan.data.train, plan.data.left_out) == (259, 1036)
    assert "digits: 259 (of 1295) training," in printed(plan)
    assert "digits: 1295 training," in printed(plan_of())


def test_with_drop_last_a_subset_leaves_the_teacher_all_pictures() -> None:
    settings = ("teacher.train.batch_size=1295", "data.subset=0.2", "data.batch_size=1295")
    lines = wrong("data.drop_last=true", *settings)
    assert {line.split(": ")[0] for line in lines} == {"data.batch_size"}
    assert "must be <= 259, the training pictures" in lines[0]


def test_a_batch_of_more_pictures_than_an_epoch_has_is_said_to_be_one_update() -> None:
    text = printed(plan_of("data.batch_size=1296", "teacher.train.batch_size=1295"))
    one_update = "is more than the 1295 training pictures: an epoch is one update of them all"
    assert f"data.batch_size 1296 {one_update}" in text
    assert "teacher.train.batch_size" not in text
    searched = printed(plan_of("search.data.batch_size={choice: [64, 5000]}"))
    assert f"search.data.batch_size 5000 {one_update}" in searched
    assert one_update not in printed(plan_of())


def test_drop_last_asks_nothing_more_of_a_set_that_is_large_enough() -> None:
    assert plan_of("data.drop_last=true", "data.batch_size=1295").config.data.drop_last
    settings = ("data.drop_last=true", "search.data.batch_size={choice: [64, x]}")
    (line,) = wrong(*settings)
    assert "must be a whole number, got 'x'" in line


def test_what_is_drawn_only_in_places_is_printed_with_where() -> None:
    text = printed(
        plan_of(
            "distill={method: stablekd, lam: 1, decomposition: 5/1}",
            "search.distill.decomposition={k: [4, 5], n: [0, 1]}",
            "search.distill.lam={uniform: [0, 1]}",
            "search.data.batch_size={choice: [32, 64]}",
        )
    )
    lines = " ".join(text.partition("searched")[2].split())
    assert lines.startswith("values drawn only where distill.decomposition 4/0, 4/1, 5/0, 5/1 ")
    assert "distill.lam 0 … 1 distill.method is at," in lines
    assert "more than the head in the last group" in lines
    assert "data.batch_size 32, 64 " in lines
    assert "drawn only where" not in printed(plan_of("search.optim.lr={uniform: [0.1, 1]}"))


@pytest.mark.parametrize(
    ("settings", "peak"),
    [
        (["optim.lr_batch_size=32", "data.batch_size=64"], "0.2"),
        (["search.optim.lr={uniform: [0.1, 1]}"], "1 × optim.lr"),
        (
            ["search.optim.lr={uniform: [0.1, 1]}", "optim.lr_batch_size=32"],
            "1 × optim.lr × (data.batch_size / 32)",
        ),
        (
            ["search.data.batch_size={choice: [32, 64]}", "optim={name: adamw, lr_batch_size: 32}"],
            "1 × optim.lr × √(data.batch_size / 32)",
        ),
        (
            ["search.optim.name={choice: [adamw, sgd]}", "optim.lr_batch_size=32"],
            "1 × optim.lr × (data.batch_size / 32), for adamw √(data.batch_size / 32)",
        ),
        (["search.data.batch_size={choice: [32, 64]}"], "0.1"),
    ],
)
def test_the_peak_is_printed_as_the_search_and_the_batch_size_make_it(
    settings: list[str], peak: str
) -> None:
    text = " ".join(printed(plan_of(*settings), width=200).partition("stages of kd")[2].split())
    assert f" 3 (1–3) 1 {peak} layer1 " in text


def test_a_searched_split_of_the_stages_is_printed_as_the_one_that_is_shown() -> None:
    stablekd = "distill={method: stablekd, lam: 1, decomposition: 5/1}"
    text = printed(plan_of(stablekd, "search.distill.stage_split={uniform: [0.5, 2]}"))
    assert "stages of 5/1: 5 → 3 group(s), where distill.stage_split is 0.5" in text


def test_a_warm_start_is_checked_before_the_first_trial() -> None:
    (line,) = wrong("study.warm_start=[gone]", "search.optim.lr={uniform: [0.1, 1]}")
    assert line.startswith("study.warm_start: must name finished studies, but gone: ")
