"""What must hold between the keys of a trial."""

from __future__ import annotations

from typing import Any

import pytest

from trainable import rules
from trainable.config import TrialConfig
from trainable.errors import Problem

BASE: dict[str, Any] = {
    "data.source": "digits",
    "student.model": "resnet18",
    "teacher.model": "resnet34",
    "teacher.checkpoint": "teacher.safetensors",
    "distill.method": "kd",
    "distill.alpha": 0.5,
}
STABLEKD = {"distill.method": "stablekd", "distill.decomposition": "5/2"}


def trial(**changes: Any) -> TrialConfig:
    """The base with changes at dotted paths, written with `__`."""
    tree: dict[str, Any] = {}
    for path, value in {
        **BASE,
        **{key.replace("__", "."): v for key, v in changes.items()},
    }.items():
        *sections, key = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return TrialConfig.model_validate(tree)


def changed(values: dict[str, Any]) -> TrialConfig:
    return trial(**{path.replace(".", "__"): value for path, value in values.items()})


def without_teacher(**changes: Any) -> TrialConfig:
    return trial(**changes).model_copy(update={"teacher": None})


def the_only_problem(config: TrialConfig, blocks: int | None = None) -> Problem:
    (problem,) = rules.problems(config, blocks)
    assert problem.rule
    assert problem.remedy
    return problem


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"distill.method": "kd_mse", "distill.feature_weights": {"layer1": 1.0}},
        {"distill.method": "none", "distill.alpha": None},
        STABLEKD,
        {**STABLEKD, "distill.alpha": None, "distill.lam": 1.0},
        {**STABLEKD, "distill.decomposition": "5/3"},
        {**STABLEKD, "train.epochs": 3},
        {"data.batch_size": 16, "train.workers": 2, "train.accumulate": 4},
        {"resources.gpus_per_worker": 0.5},
        {"resources.gpus_per_worker": 2.0, "train.workers": 2},
        {"train.precision": "bf16", "resources.gpus_per_worker": 0},
        {"train.precision": "fp16", "resources.gpus_per_worker": 1},
        {"teacher.precision": "bf16", "resources.gpus_per_worker": 0},
        {"teacher.precision": "fp16", "resources.gpus_per_worker": 1, "train.precision": "tf32"},
        {"teacher.precision": "fp32", "train.precision": "bf16"},
        {"teacher.precision": "fp32", "distill.method": "sobolev", "distill.lam": 1.0},
        {
            "teacher.precision": "fp16",
            "resources.gpus_per_worker": 0,
            "distill.method": "none",
            "distill.alpha": None,
        },
        {"train.precision": "fp16", "train.batchnorm": {"sync": True}},
        {"resources.gpus_per_worker": 0, "train.workers": 2, "train.batchnorm": {"sync": True}},
        {"data.mean": [0.5], "data.std": [0.5], "data.channels": 1},
        {"data.mean": [0, 0, 1], "data.std": [1, 1, 1]},
        {"data.source": "parquet", "data.root": "folder"},
        {"distill.method": "mse", "distill.feature_weights": {"layer4": 0.5}},
        *(
            {"distill.method": name, "distill.alpha": None, "distill.lam": 1000.0}
            for name in ("at", "nst", "reviewkd")
        ),
        {"distill.method": "sobolev", "distill.lam": 1.0},
        {"distill.method": "sobolev", "distill.lam": 1.0, "train.batchnorm": {"sync": True}},
        {"distill.method": "dkd", "distill.alpha": None, "distill.nontarget_weight": 2.0},
        {"distill.method": "deit", "distill.hard": False},
        {"student.head": {"name": "am_softmax", "margin": 0.0, "scale": 16.0}},
        {"teacher.head": {"name": "am_softmax"}, "data.augment": {"mixup": 0.8, "cutmix": 1.0}},
        {"data.augment": {"resized_crop": [0.08, 1.0], "erase": 0.25}, "data.loader": "streamed"},
        {"data.resize": 256, "data.image_size": 224},
        {"train.clip": 1.0, "train.clip_by": "layer", "train.gradient_noise": 1e-3},
        {"train.batchnorm": {"group_norm": 8}},
        {"train.batchnorm": {"momentum": 0.01, "freeze_after": 1, "recalibrate": 10}},
        {"train.batchnorm": {"recalibrate": 10, "recalibrate_at": "stage"}},
        {**STABLEKD, "distill.stage_epochs": [1, 1, 18]},
        {**STABLEKD, "distill.stage_split": 0.5},
        {"distill.stage_epochs": [1, 1]},  # of no method with stages, as a decomposition is
        {"optim.schedule": "cosine", "optim.warmup_fraction": 0.0},
        {"optim.schedule": "multistep", "optim.milestones": [1, 19]},
        {"teacher.cache": True, "data.augment": {"crop": 4, "flip": True}},
        {"teacher.cache": True, "data.loader": "streamed", "data.sampling": "balanced"},
        {
            "teacher.cache": True,
            "distill.method": "none",
            "distill.alpha": None,
            "data.augment": {"mixup": 0.8},
        },
    ],
)
def test_a_sound_trial_has_no_problems(changes: dict[str, Any]) -> None:
    assert rules.problems(changed(changes), blocks=5) == []


def test_a_trial_without_a_method_needs_no_teacher() -> None:
    assert rules.problems(without_teacher(distill__method="none", distill__alpha=None)) == []


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"teacher.train": {"epochs": 1}}, "teacher", "exactly one of checkpoint and train"),
        ({"teacher.checkpoint": None}, "teacher", "exactly one of checkpoint and train"),
        ({"distill.alpha": None}, "distill.alpha", "kd needs it"),
        ({"distill.method": "kd_mse", "distill.alpha": None}, "distill.alpha", "kd_mse needs it"),
        (
            {"distill.lam": 1.0},
            "distill.lam",
            "belongs to at, sobolev, nst, reviewkd and stablekd, not to kd",
        ),
        (
            {"distill.method": "at", "distill.alpha": None},
            "distill.lam",
            "at needs it: CE + λ·AT, got nothing",
        ),
        ({"distill.method": "sobolev"}, "distill.lam", "sobolev needs it: (1 − α)·CE + α·T²·KL"),
        (
            {"distill.method": "sobolev", "distill.alpha": None, "distill.lam": 1.0},
            "distill.alpha",
            "sobolev needs it: (1 − α)·CE + α·T²·KL + λ·",
        ),
        (
            {"distill.method": "nst", "distill.lam": 1.0},
            "distill.alpha",
            "belongs to kd, mse, kd_mse, sobolev, deit and stablekd, not to nst",
        ),
        ({"distill.method": "dkd"}, "distill.alpha", "stablekd, not to dkd"),
        ({"distill.method": "deit", "distill.alpha": None}, "distill.alpha", "deit needs it"),
        (
            {
                "distill.method": "sobolev",
                "distill.lam": 1.0,
                "train.batchnorm": {"sync": True},
                "train.workers": 2,
                "resources.gpus_per_worker": 0,
            },
            "train.batchnorm.sync",
            "sobolev differentiates twice, which SyncBatchNorm cannot",
        ),
        ({"distill.feature_weights": {"a": 1.0}}, "distill.feature_weights", "belongs to mse"),
        ({"distill.method": "mse", "distill.alpha": None}, "distill.alpha", "α·Σ w·MSE"),
        ({"distill.method": "mse", "distill.lam": 1.0}, "distill.lam", "not to mse"),
        (
            {"distill.method": "mse", "distill.feature_weights": {"layer4": 0.0}},
            "distill.feature_weights",
            "must weigh a cut above 0",
        ),
        ({**STABLEKD, "distill.lam": 1.0}, "distill", "got both"),
        ({**STABLEKD, "distill.alpha": None}, "distill", "got neither"),
        ({"distill.method": "stablekd"}, "distill.decomposition", "got nothing"),
        ({**STABLEKD, "distill.decomposition": "0/0"}, "distill.decomposition", "k >= 1"),
        ({**STABLEKD, "distill.decomposition": "6/1"}, "distill.decomposition", "k <= 5"),
        ({**STABLEKD, "distill.decomposition": "5/4"}, "distill.decomposition", "n <= 3"),
        ({**STABLEKD, "distill.decomposition": "1/1"}, "distill.decomposition", "n <= 0"),
        ({**STABLEKD, "train.epochs": 2}, "train.epochs", "must be >= 3"),
        (
            {**STABLEKD, "distill.stage_epochs": [6, 6, 8], "distill.stage_split": 2.0},
            "distill.stage_split",
            "says what distill.stage_epochs says as well, got 2; remove one of the two",
        ),
        (
            {**STABLEKD, "distill.stage_epochs": [10, 10]},
            "distill.stage_epochs",
            "must have 3 number(s), one for each stage of 5/2, got [10, 10]",
        ),
        (
            {**STABLEKD, "distill.stage_epochs": [6, 6, 9]},
            "distill.stage_epochs",
            "must add up to 20, which is train.epochs, got [6, 6, 9] = 21",
        ),
        (
            {**STABLEKD, "distill.stage_epochs": [1, 1], "train.epochs": 2},
            "distill.stage_epochs",
            "must have 3 number(s)",
        ),
        (
            {**STABLEKD, "distill.decomposition": "5/4", "distill.stage_epochs": [4, 4, 4, 4, 4]},
            "distill.decomposition",
            "n <= 3",
        ),
        ({"optim.warmup_fraction": 0}, "optim.warmup_fraction", "must be > 0 for onecycle, which"),
        (
            {**STABLEKD, "optim.warmup_fraction": 0},
            "optim.warmup_fraction",
            "must be > 0 for triangle, which",
        ),
        ({"optim.milestones": [5]}, "optim.milestones", "to multistep, not to onecycle, got [5]"),
        (
            {"optim.milestones": [5], "optim.schedule": "cosine"},
            "optim.milestones",
            "belongs to multistep, not to cosine",
        ),
        ({"optim.schedule": "multistep"}, "optim.milestones", "multistep needs it, got nothing"),
        (
            {"optim.schedule": "multistep", "optim.milestones": []},
            "optim.milestones",
            "multistep needs it",
        ),
        (
            {"optim.schedule": "multistep", "optim.milestones": [3, 9, 9]},
            "optim.milestones",
            "must rise from each to the next, got [3, 9, 9]",
        ),
        (
            {"optim.schedule": "multistep", "optim.milestones": [3, 20]},
            "optim.milestones",
            "must be < 20, the epochs of training, got [3, 20]",
        ),
        (
            {"train.batchnorm": {"recalibrate_at": "stage"}},
            "train.batchnorm.recalibrate_at",
            "needs train.batchnorm.recalibrate, got 'stage'",
        ),
        ({"data.batch_size": 1}, "data.batch_size", "must be >= 2"),
        (
            {"data.batch_size": 15, "train.workers": 2, "train.accumulate": 4},
            "data.batch_size",
            "16",
        ),
        ({"train.workers": 2, "train.launcher": "inline"}, "train.launcher", "inline runs one"),
        ({"resources.gpus_per_worker": 1.5}, "resources.gpus_per_worker", "whole above 1"),
        (
            {"resources.gpus_per_worker": 0.5, "train.workers": 2},
            "resources.gpus_per_worker",
            "NCCL needs a whole GPU",
        ),
        (
            {"resources.gpus_per_worker": 0, "train.precision": "fp16"},
            "train.precision",
            "fp16 needs a GPU",
        ),
        (
            {"resources.gpus_per_worker": 0, "train.precision": "tf32"},
            "train.precision",
            "tf32 needs a GPU",
        ),
        (
            {"resources.gpus_per_worker": 0, "teacher.precision": "fp16"},
            "teacher.precision",
            "fp16 needs a GPU, got 'fp16' with 0 GPUs a worker; use fp32 or bf16 on CPUs",
        ),
        (
            {"teacher.precision": "fp32", "train.precision": "tf32"},
            "teacher.precision",
            "fp32 cannot be had beside train.precision: tf32, a setting of the whole process",
        ),
        (
            {
                "teacher.precision": "fp16",
                "resources.gpus_per_worker": 0,
                "distill.method": "sobolev",
                "distill.lam": 1.0,
            },
            "teacher.precision",
            "sobolev takes the slope of the teacher's answer in fp32, got 'fp16'",
        ),
        (
            {"train.loss_scale": {"initial": 1.0, "floor": 2.0}},
            "train.loss_scale.initial",
            "must be >= train.loss_scale.floor, which is 2",
        ),
        ({"train.clip_by": "value"}, "train.clip_by", "needs train.clip"),
        (
            {"train.compile": True, "train.activation_checkpointing": True},
            "train.compile",
            "kernels that train.activation_checkpointing cannot repeat, got true",
        ),
        (
            {"train.batchnorm": {"group_norm": 8, "freeze_after": 3}},
            "train.batchnorm.freeze_after",
            "belongs to BatchNorm",
        ),
        (
            {"student.head": {"margin": 0.2}},
            "student.head.margin",
            "belongs to am_softmax, not to linear",
        ),
        ({"teacher.head": {"scale": 30.0}}, "teacher.head.scale", "belongs to am_softmax"),
        ({"data.resize": 256}, "data.resize", "needs data.image_size, got 256"),
        ({"data.resize": 200, "data.image_size": 224}, "data.resize", "must be >= data.image_size"),
        (
            {"data.augment": {"resized_crop": [0.8, 0.2]}},
            "data.augment.resized_crop",
            "must be the smallest and the largest share, got [0.8, 0.2]",
        ),
        (
            {"data.augment": {"erase": 0.1}, "data.loader": "resident"},
            "data.loader",
            "data.augment.erase changes pictures one by one",
        ),
        (
            {"distill.method": "dkd", "distill.alpha": None, "data.augment": {"mixup": 0.2}},
            "data.augment.mixup",
            "gives a picture the labels of two, and dkd needs one, got 0.2",
        ),
        (
            {"student.head": {"name": "am_softmax"}, "data.augment": {"cutmix": 1.0}},
            "data.augment.cutmix",
            "and the margin of student.head needs one",
        ),
        (
            {
                "teacher.head": {"name": "am_softmax"},
                "teacher.checkpoint": None,
                "teacher.train": {"epochs": 1},
                "data.augment": {"mixup": 1.0},
            },
            "data.augment.mixup",
            "and the margin of teacher.head needs one",
        ),
        (
            {"teacher.cache": True, "data.augment": {"resized_crop": [0.08, 1.0]}},
            "data.augment.resized_crop",
            "makes other pictures in each epoch, and teacher.cache keeps what was said of one",
        ),
        (
            {"teacher.cache": True, "data.augment": {"rand_augment": {}}},
            "data.augment.rand_augment",
            "remove it, or set teacher.cache to false",
        ),
        (
            {"teacher.cache": True, "data.augment": {"erase": 0.25}},
            "data.augment.erase",
            "got 0.25",
        ),
        ({"teacher.cache": True, "data.augment": {"mixup": 1}}, "data.augment.mixup", "got 1.0"),
        ({"teacher.cache": True, "data.augment": {"cutmix": 1}}, "data.augment.cutmix", "got 1.0"),
        (
            {"teacher.cache": True, "distill.method": "sobolev", "distill.lam": 1.0},
            "teacher.cache",
            "sobolev asks for slopes along directions drawn anew each time, got true",
        ),
        ({"data.root": "folder"}, "data.root", "digits needs no folder"),
        ({"data.source": "cifar10"}, "data.root", "cifar10 needs a folder"),
        ({"data.mean": [0.5]}, "data.mean", "must have 3 value(s)"),
        ({"data.std": [0.5, 0.5]}, "data.std", "must have 3 value(s)"),
        ({"data.mean": [0.5, 0.5, float("nan")]}, "data.mean", "must be finite"),
        (
            {"data.mean": [125.3, 123.0, 113.9]},
            "data.mean",
            "in [0, 1], as pixels are, got [125.3, 123.0, 113.9]; divide it by 255",
        ),
        ({"data.mean": [0.5, 0.5, -0.1]}, "data.mean", "in [0, 1]"),
        ({"data.std": [63.0, 62.1, 66.7]}, "data.std", "must be <= 1, as pixels are in [0, 1]"),
    ],
)
def test_a_broken_rule_names_path_rule_and_value(
    changes: dict[str, Any], path: str, words: str
) -> None:
    problem = the_only_problem(changed(changes), blocks=5)
    assert problem.path == path
    assert words in str(problem)


def test_a_method_without_a_teacher_is_told_to_name_one() -> None:
    problem = the_only_problem(without_teacher())
    assert (problem.path, problem.remedy[:18]) == ("teacher", "name teacher.model")


def test_k_is_not_bounded_before_the_blocks_are_known() -> None:
    assert rules.problems(changed({**STABLEKD, "distill.decomposition": "9/4"})) == []


def test_all_broken_rules_are_reported_at_once() -> None:
    broken = {
        "data.batch_size": 1,
        "data.root": "x",
        "distill.alpha": None,
        "teacher.checkpoint": None,
    }
    found = rules.problems(changed(broken))
    assert {problem.path for problem in found} == {
        "data.batch_size",
        "data.root",
        "distill.alpha",
        "teacher",
    }


@pytest.mark.parametrize("unknown", ["distill.alpha", "distill.method", "distill"])
def test_rules_that_read_an_unknown_key_are_left_out(unknown: str) -> None:
    broken = changed({"distill.alpha": None, "data.root": "x"})
    assert [p.path for p in rules.problems(broken, unknown=[unknown])] == ["data.root"]


def test_a_wrong_key_of_a_section_leaves_rules_about_the_section_in_force() -> None:
    found = rules.problems(without_teacher(), unknown=["teacher.model"])
    assert [problem.path for problem in found] == ["teacher"]


class Recorder:
    """Stands for a config and writes down which keys are read."""

    def __init__(self, value: object, path: str, seen: set[str]) -> None:
        self._value, self._path, self._seen = value, path, seen

    def __getattr__(self, name: str) -> object:
        derived = getattr(type(self._value), name, None)
        if isinstance(derived, property) and derived.fget is not None:
            return derived.fget(self)  # of keys, which are read
        value, path = getattr(self._value, name), f"{self._path}.{name}".removeprefix(".")
        self._seen.add(path)
        return Recorder(value, path, self._seen) if hasattr(value, "model_fields_set") else value


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.check.__name__.strip("_"))
def test_a_rule_declares_every_key_that_it_reads(rule: rules.Rule) -> None:
    configs = [
        changed(changes)
        for changes in (
            {},
            {"distill.alpha": None, "distill.lam": 1.0},
            STABLEKD,
            {**STABLEKD, "distill.decomposition": "9/1", "train.epochs": 1},
            {**STABLEKD, "distill.stage_epochs": [1, 2]},
            {"optim.schedule": "multistep", "optim.milestones": [1, 99]},
            {"distill.method": "kd_mse"},
            {"resources.gpus_per_worker": 0.5, "train.workers": 2, "train.launcher": "inline"},
            {"resources.gpus_per_worker": 0, "data.batch_size": 1, "data.root": "x"},
            {"data.mean": [1], "data.std": [1], "data.source": "cifar10"},
            {"data.resize": 4, "data.image_size": 8, "data.augment": {"mixup": 1, "cutmix": 1}},
            {"data.loader": "resident", "data.augment": {"resized_crop": [0.9, 0.1], "erase": 1}},
            {"train.clip_by": "layer", "train.batchnorm": {"group_norm": 8}},
            {"teacher.cache": True, "data.augment": {"mixup": 1}},
            {"teacher.precision": "fp16", "resources.gpus_per_worker": 0},
            {"teacher.precision": "fp32", "train.precision": "tf32"},
        )
    ]
    for config in configs:
        seen: set[str] = set()
        list(rule.check(Recorder(config, "", seen), 5))  # type: ignore[arg-type]
        sections = {
            "data",
            "data.augment",
            "distill",
            "optim",
            "train",
            "resources",
            "student",
            "student.head",
            "teacher",
            "teacher.head",
            "train.batchnorm",
            "train.loss_scale",
        }
        assert seen - sections <= set(rule.reads)
