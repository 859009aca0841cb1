"""Which keys a trial reads: as the table says it, and as its weights have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from study.problems import all_paths
from study.tree import with_values
from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.trials import CPU, untrained_teacher
from trainable.config import TrialConfig
from trainable.engine.checkpoint import BEST
from trainable.engine.loop import TrialTask, run
from trainable.methods import METHODS
from trainable.records import VAL_LOSS, EpochRecord
from trainable.rules import problems
from trainable.rules.reading import READINGS, is_read, with_value, without_unused

TREE: dict[str, Any] = {
    "data": {"source": "digits", "val_fraction": 0.0, "subset": 0.06, "batch_size": 32},
    "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "kd", "alpha": 0.5},
    "optim": {"lr": 0.05},
    "train": {"epochs": 3},
    "resources": {"gpus_per_worker": 0},
}
"""Three epochs of four updates on digits, without validation: the student that is kept is the last."""


def stablekd(decomposition: str, weight: str = "alpha") -> dict[str, Any]:
    values: dict[str, Any] = {"distill.method": "stablekd", "distill.decomposition": decomposition}
    return values | ({} if weight == "alpha" else {"distill.alpha": None, "distill.lam": 1.0})


NONE = {"distill.method": "none", "distill.alpha": None}
MARGIN = {"student.head.name": "am_softmax"}
CLIPPED = {"train.clip": 0.1}

CASES: dict[str, tuple[tuple[Any, Any], list[dict[str, Any]], list[dict[str, Any]]]] = {
    "distill.alpha": (
        (0.2, 0.7),
        [{}, stablekd("1/0"), stablekd("2/1"), stablekd("5/2") | CLIPPED],
        [stablekd("3/1"), stablekd("5/2"), stablekd("5/2") | CLIPPED | {"train.clip_by": "layer"}],
    ),
    "distill.lam": (
        (0.5, 5.0),
        [stablekd("3/2", "lam"), {"distill.method": "at", "distill.alpha": None}],
        [stablekd("5/1", "lam")],
    ),
    "distill.temperature": (
        (1.0, 4.0),
        [{}, stablekd("4/1")],
        [stablekd("5/2"), NONE, {"distill.method": "mse"}],
    ),
    "distill.decomposition": (("3/0", "5/0"), [{"distill.method": "stablekd"}], [{}]),
    "distill.stage_split": (
        (0.3, 3.0),
        [stablekd("3/1") | {"train.epochs": 5}],
        [{}, stablekd("5/0")],
    ),
    "distill.feature_scale": (
        (0.5, 5.0),
        [{"distill.method": "mse"}, {"distill.method": "kd_mse"}],
        [{}, stablekd("5/2")],
    ),
    "distill.target_weight": (
        (0.5, 2.0),
        [{"distill.method": "dkd", "distill.alpha": None}],
        [{}],
    ),
    "distill.hard": (
        (True, False),
        [{"distill.method": "deit", "student.model": "vit_t8", "optim.lr": 1e-3}],
        [{}],
    ),
    "distill.nontarget_weight": (
        (1.0, 8.0),
        [{"distill.method": "dkd", "distill.alpha": None}],
        [{}],
    ),
    "student.head.margin": (
        (0.1, 0.4),
        [MARGIN, MARGIN | stablekd("2/1")],
        [MARGIN | stablekd("5/2")],
    ),
    "student.head.scale": (
        (5.0, 30.0),
        [MARGIN, MARGIN | stablekd("2/1")],
        [MARGIN | stablekd("5/2")],
    ),
    "optim.nesterov": (
        (True, False),
        [{}],
        [{"optim.name": "adamw", "optim.lr": 1e-3}, {"optim.momentum": 0.0}],
    ),
    "optim.peak_decay": (
        (0.2, 0.9),
        [stablekd("5/2")],
        [{}, stablekd("5/0"), stablekd("5/2") | {"optim.schedule": "cosine"}],
    ),
    "optim.reset_at_stages": (
        (True, False),
        [stablekd("5/2"), stablekd("5/2") | {"optim.name": "adamw", "optim.momentum": 0.0}],
        [{}, stablekd("5/0"), stablekd("5/2") | {"optim.momentum": 0.0}],
    ),
    "optim.milestone_decay": (
        (0.1, 0.5),
        [{"optim.schedule": "multistep", "optim.milestones": (1,)}],
        [{}, {"optim.schedule": "cosine"}],
    ),
    "train.clip_by": (("norm", "layer"), [CLIPPED], []),
    "train.loss_scale.initial": ((1024.0, 2.0**20), [], [{}]),
    "train.loss_scale.growth_interval": ((1, 2000), [], [{}]),
    "train.loss_scale.floor": ((0.5, 2.0), [], [{}]),
    "train.batchnorm.sync": ((True, False), [], [{}]),
    "train.batchnorm.momentum": ((0.1, 0.5), [{}], []),
    "train.batchnorm.eps": ((1e-5, 1e-2), [{}], []),
    "train.batchnorm.freeze_after": ((1, 3), [{}], []),
    "train.batchnorm.recalibrate": ((0, 2), [{}], []),
}
"""Path → two values, settings of trials that read it, and of trials that do not."""

_FAST = [("distill.alpha", 0)]
READ = [(path, number) for path, (_, read, _) in CASES.items() for number in range(len(read))]
UNREAD = [(path, number) for path, (_, _, no) in CASES.items() for number in range(len(no))]


def marked(cases: list[tuple[str, int]]) -> list[Any]:
    slow = pytest.mark.slow
    return [
        pytest.param(
            path, number, marks=() if (path, number) in _FAST else slow, id=f"{path} {number}"
        )
        for path, number in cases
    ]


def config(values: dict[str, Any]) -> TrialConfig:
    return TrialConfig.model_validate(with_values(TREE, values))


def trained(trial: TrialConfig, folder: Path) -> dict[str, Tensor]:
    """Weights and running statistics of all blocks but the head."""
    folder.mkdir()
    weights = None
    if METHODS[trial.distill.method].teacher:
        weights = untrained_teacher(trial, folder)
    run(TrialTask(trial, folder, weights), lambda _: None, CPU)
    return {k: v for k, v in load_file(folder / BEST).items() if not k.startswith(("fc.", "head."))}


def both(path: str, settings: dict[str, Any], folder: Path) -> list[dict[str, Tensor]]:
    """What two trials become that differ at the path alone."""
    values, _, _ = CASES[path]
    trials = [config({**settings, path: value}) for value in values]
    assert trials[0] != trials[1]
    return [trained(trial, folder / str(number)) for number, trial in enumerate(trials)]


@pytest.mark.parametrize(("path", "number"), marked(READ))
def test_what_is_read_changes_more_than_the_head(path: str, number: int, tmp_path: Path) -> None:
    settings = CASES[path][1][number]
    assert is_read(config(settings), path)
    one, other = both(path, settings, tmp_path)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("path", "number"), marked(UNREAD))
def test_what_is_not_read_leaves_all_but_the_head_as_it_is(
    path: str, number: int, tmp_path: Path
) -> None:
    settings = CASES[path][2][number]
    assert not is_read(config(settings), path)
    one, other = both(path, settings, tmp_path)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def _rank(rank: int, folder: str, trial: TrialConfig) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    run(TrialTask(trial, Path(folder), None), lambda _: None, CPU)
    dist.destroy_process_group()


@pytest.mark.slow
def test_statistics_over_all_workers_train_another_student(tmp_path: Path) -> None:
    students = []
    for sync in (True, False):
        trial = config(NONE | {"train.workers": 2, "train.batchnorm.sync": sync})
        assert is_read(trial, "train.batchnorm.sync")
        folder = tmp_path / str(sync)
        folder.mkdir()
        run_on_ranks(_rank, str(folder), trial, ranks=2)
        students.append(load_file(folder / BEST))
    one, other = students
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


@pytest.mark.slow
def test_when_statistics_are_measured_changes_what_is_seen_of_a_student(tmp_path: Path) -> None:
    """And so which of its epochs is kept; the last has them measured in either case."""
    seen = []
    for at in ("epoch", "stage"):
        changes = {"data.val_fraction": 0.5, "train.batchnorm.recalibrate": 2}
        trial = config(NONE | changes | {"train.batchnorm.recalibrate_at": at})
        assert is_read(trial, "train.batchnorm.recalibrate_at")
        found = list[EpochRecord]()
        (tmp_path / at).mkdir()
        run(TrialTask(trial, tmp_path / at, None), found.append, CPU)
        seen.append([record.metrics[VAL_LOSS] for record in found])
    one, other = seen
    assert one[0] != other[0]
    assert one[-1] == other[-1]


def test_the_table_names_keys_of_the_config_alone() -> None:
    known = set(all_paths(TrialConfig))
    for path, reading in READINGS.items():
        assert {path, *reading.decided_by} <= known
        assert path not in reading.decided_by


@pytest.mark.parametrize("method", METHODS)
def test_every_key_of_a_method_that_the_table_of_methods_has_is_in_this_one(method: str) -> None:
    for key in METHODS[method].reads:  # type: ignore[index]
        assert READINGS[f"distill.{key}"].has_use(
            config({"distill.method": method, "distill.hard": False})
        )


def test_what_does_not_decide_a_key_does_not_change_whether_it_is_read() -> None:
    """So the paths in `decided_by` are all that a search must draw before it."""
    changes: list[dict[str, Any]] = [
        {"distill.method": "none"},
        {"distill.method": "deit", "distill.hard": False},
        stablekd("5/2"),
        stablekd("5/3"),
        {"optim.name": "adamw"},
        {"optim.momentum": 0.0},
        {"optim.schedule": "multistep"},
        {"optim.schedule": "triangle"},
        {"train.clip": 1.0},
        {"train.clip": 1.0, "train.clip_by": "value"},
        {"train.precision": "fp16"},
        {"train.batchnorm.group_norm": 8},
        {"train.batchnorm.recalibrate": 3},
        {"student.head.name": "am_softmax"},
    ]
    for before in changes:
        for change in changes:
            for path, reading in READINGS.items():
                kept = {k: v for k, v in change.items() if k not in reading.decided_by}
                assert is_read(config(before), path) == is_read(config(before | kept), path)


def test_a_key_without_a_use_has_its_default_where_the_search_decides_so() -> None:
    trial = config({"distill.method": "at", "distill.lam": 2.0, "train.precision": "bf16"})
    assert problems(trial)  # at has no alpha
    left = without_unused(trial, ["distill.method"])
    assert (left.distill.alpha, left.distill.lam) == (None, 2.0)
    assert problems(left) == []
    assert without_unused(trial, ["optim.lr"]) == trial
    alone = config(stablekd("5/2"))
    assert without_unused(alone, ["distill.method", "distill.decomposition"]) == alone


def test_a_value_is_put_in_its_place_alone() -> None:
    trial = config({})
    changed = with_value(trial, "train.loss_scale.floor", 2.0)
    assert changed == config({"train.loss_scale.floor": 2.0})
    assert trial == config({})


@pytest.mark.parametrize(("name", "factor"), [("sgd", 0.25), ("adamw", 0.5)])
def test_a_rate_for_a_batch_size_trains_as_the_rate_that_it_makes(
    name: str, factor: float, tmp_path: Path
) -> None:
    settings = {"optim.name": name, "optim.lr": 0.04, "optim.lr_batch_size": 128}
    scaled = trained(config(settings), tmp_path / "scaled")
    written = trained(config({"optim.name": name, "optim.lr": 0.04 * factor}), tmp_path / "written")
    assert all(torch.equal(scaled[key], written[key]) for key in scaled)
