"""A whole trial on digits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainable.trials import (
    CPU,
    OF_THE_MACHINE,
    MakeConfig,
    digest,
    numbers,
    student_with_dropout,
    train,
    train_and_stop,
    untrained_teacher,
)
from trainable import records
from trainable.engine import loop
from trainable.engine.checkpoint import BEST, CHECKPOINTS
from trainable.engine.loop import TrialTask, run
from trainable.records import EpochRecord

STABLE = {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"}


@pytest.fixture
def teacher_file(tmp_path: Path, make_config: MakeConfig) -> Path:
    return untrained_teacher(make_config(), tmp_path)


@pytest.mark.parametrize(
    "distill",
    [{"method": "none"}, {"method": "kd"}, {"method": "kd_mse"}, STABLE],
    ids=lambda d: d["method"],
)
def test_every_method_learns_and_reports(
    distill: dict[str, object], make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    config = make_config(distill=distill, train={"epochs": 3, "clip": 5.0})
    before = digest(teacher_file)
    found = train(config, tmp_path / "trial", teacher_file)
    assert [record.epoch for record in found] == [1, 2, 3]
    assert digest(teacher_file) == before
    first, last = found[0].metrics, found[-1].metrics
    if distill["method"] != "stablekd":  # its loss changes meaning from stage to stage
        assert last[records.TRAIN_LOSS] < first[records.TRAIN_LOSS]
    expected = {
        records.TRAIN_LOSS,
        records.TRAIN_CE,
        records.TRAIN_LR,
        records.TRAIN_STAGE,
        records.TRAIN_IMAGES_PER_SECOND,
        records.TRAIN_DATA_WAIT,
        records.TRAIN_SECONDS,
        records.STUDENT_PARAMETERS,
        records.VAL_ACCURACY,
        records.VAL_LOSS,
        records.VAL_ACCURACY_BATCH_STATS,
        records.GRAD_NORM,
        records.GRAD_CLIP_RATE,
        records.GRAD_UPDATE_RATIO,
        records.GRAD_MEAN,
        records.GRAD_STD,
        records.GRAD_MAX,
        records.GRAD_PARAMETER_RATIO,
        records.GRAD_ZERO_SHARE,
        records.GRAD_NONFINITE_SHARE,
        records.GRAD_FIRST_TO_LAST,
        records.UPDATE_DISTANCE,
        records.UPDATE_TRAVELLED,
        records.AMP_SCALE,
        records.AMP_SKIPPED,
        records.BN_DRIFT,
        records.BN_DRIFT_MAX,
        records.BN_MIN_VAR,
        records.BN_DEAD_CHANNELS,
        records.BN_DEAD_SHARE,
        records.BN_MIN_SCALE,
        records.BN_MAX_SCALE,
    }
    for block in ("layer1", "layer2", "layer3", "layer4", "head"):
        expected |= {records.grad_norm_of(block), records.update_distance_of(block)}
        expected.add(records.update_travelled_of(block))
    if distill["method"] != "none":
        expected.add(records.TRAIN_KL)
    if distill["method"] in ("kd_mse", "stablekd"):
        expected.add(records.TRAIN_FEATURE)
    if distill["method"] != "stablekd":  # whose stages are of one epoch here
        expected.add(records.VAL_FLUCTUATION)
    assert set(last) == expected
    assert last[records.AMP_SCALE] == 1
    assert last[records.AMP_SKIPPED] == 0


def test_a_student_without_a_teacher_learns_digits(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(distill={"method": "none"}, train={"epochs": 4}, optim={"lr": 0.05})
    found = train(config, tmp_path, None)
    assert found[-1].metrics[records.VAL_ACCURACY] > 0.8


def test_stages_follow_the_plan(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    config = make_config(distill=STABLE, train={"epochs": 5})
    found = train(config, tmp_path / "trial", teacher_file)
    assert [r.metrics[records.TRAIN_STAGE] for r in found] == [1, 2, 3, 3, 3]


def test_one_group_with_alpha_trains_as_kd_to_the_bit(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    schedule = {"schedule": "onecycle"}
    one = {"method": "stablekd", "alpha": 0.5, "decomposition": "1/0"}
    kd = train(make_config(optim=schedule), tmp_path / "kd", teacher_file)
    stable = train(make_config(distill=one, optim=schedule), tmp_path / "one", teacher_file)
    without = [{k: v for k, v in m.items() if k != records.TRAIN_FEATURE} for m in numbers(stable)]
    assert without == numbers(kd)
    assert (tmp_path / "kd" / BEST).read_bytes() == (tmp_path / "one" / BEST).read_bytes()


@pytest.mark.parametrize("decomposition", ["5/0", "1/0", "2/1", "3/2", "4/0", "5/3"])
def test_every_decomposition_trains(
    decomposition: str, make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    stable = {**STABLE, "decomposition": decomposition}
    found = train(
        make_config(distill=stable, train={"epochs": 4}), tmp_path / "trial", teacher_file
    )
    assert len(found) == 4


def test_the_same_config_gives_the_same_bits_in_a_used_process(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    config = make_config(distill=STABLE, data={"augment": {"crop": 1}}, train={"epochs": 3})
    first = train(config, tmp_path / "a", teacher_file)
    other = make_config(train={"epochs": 1, "seed": 9}, resources={"cpus_per_worker": 2})
    train(other, tmp_path / "other", teacher_file)
    random.random(), np.random.rand(), torch.rand(3)
    second = train(config, tmp_path / "b", teacher_file)
    assert numbers(first) == numbers(second)
    assert (tmp_path / "a" / BEST).read_bytes() == (tmp_path / "b" / BEST).read_bytes()


def test_streamed_pictures_give_the_same_bits_with_any_number_of_processes(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same as pictures that are decoded once and kept."""
    monkeypatch.setattr(loop, "build_student", student_with_dropout)
    data = {"batch_size": 256, "augment": {"crop": 1, "flip": True}}
    # Moments of a streamed set are sums in another order.
    data |= {"mean": (0.3, 0.3, 0.3), "std": (0.4, 0.4, 0.4)}
    results: list[object] = []
    for workers in (None, 0, 1, 2):
        how = {} if workers is None else {"loader": "streamed", "decode_workers": workers}
        config = make_config(data={**data, **how}, train={"batchnorm": {"recalibrate": 2}})
        found = numbers(train(config, tmp_path / str(workers), teacher_file))
        results.append((found, digest(tmp_path / str(workers) / BEST)))
    assert results[1:] == [results[0]] * 3


def test_another_seed_gives_another_student(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    one = train(make_config(train={"epochs": 1}), tmp_path / "a", teacher_file)
    other = train(make_config(train={"epochs": 1, "seed": 1}), tmp_path / "b", teacher_file)
    assert numbers(one) != numbers(other)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_trial_ends_as_the_uninterrupted_one(
    stop_after: int,
    make_config: MakeConfig,
    teacher_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "build_student", student_with_dropout)
    config = make_config(
        distill=STABLE, data={"augment": {"crop": 1, "flip": True}}, train={"epochs": 5}
    )
    whole = train(config, tmp_path / "whole", teacher_file)
    train_and_stop(config, tmp_path / "cut", teacher_file, after=stop_after)
    rest = train(config, tmp_path / "cut", teacher_file)
    assert numbers(rest) == numbers(whole)  # what was told before the end is told again
    assert (tmp_path / "cut" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def test_a_finished_trial_trains_no_more(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    told = train(make_config(train={"epochs": 1}), tmp_path / "a", teacher_file)
    # The same record, with its time: MLflow takes it for the point that it has.
    assert train(make_config(train={"epochs": 1}), tmp_path / "a", teacher_file) == told


def test_checkpoints_leave_no_temporary_files(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    train(make_config(), tmp_path / "a", teacher_file)
    kept = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert kept == [BEST, CHECKPOINTS, records.STATISTICS]
    (last,) = (tmp_path / "a" / CHECKPOINTS).iterdir()
    assert not [p for p in last.iterdir() if p.name.startswith(".")]


def test_without_validation_the_last_student_is_kept(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    found = train(make_config(data={"val_fraction": 0}), tmp_path / "a", teacher_file)
    assert records.VAL_ACCURACY not in found[-1].metrics
    assert records.BN_MIN_VAR in found[-1].metrics
    assert (tmp_path / "a" / BEST).exists()


def test_frozen_running_statistics_stay_and_the_rest_learns_on(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even their mean over ranks is taken again, which rounds where there are three."""
    averaged: list[int] = []
    kept: list[dict[str, torch.Tensor]] = []

    def report(record: EpochRecord) -> None:
        newest = max((tmp_path / "a" / CHECKPOINTS).iterdir())
        kept.append(load_file(newest / "student.safetensors"))

    monkeypatch.setattr(
        loop.ranks, "average_over_ranks", lambda tensors: averaged.append(len(list(tensors)))
    )
    policy = {"freeze_after": 1, "recalibrate": 2}
    config = make_config(train={"epochs": 3, "batchnorm": policy})
    run(TrialTask(config, tmp_path / "a", teacher_file), report, CPU)
    assert len(averaged) == 1
    running = [name for name in kept[0] if "running_" in name or "num_batches" in name]
    assert len(running) >= 3
    for later in kept[1:]:
        assert all(torch.equal(later[name], kept[0][name]) for name in running)
        assert not torch.equal(later["fc.weight"], kept[0]["fc.weight"])
        assert not torch.equal(later["bn1.weight"], kept[0]["bn1.weight"])


def test_a_trial_in_pieces_learns_what_it_would_have_in_one(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    """Across a recomposition, too."""
    distill = {"method": "stablekd", "decomposition": "2/1", "alpha": 0.5}
    config = make_config(distill=distill, train={"epochs": 4})
    whole = train(config, tmp_path / "whole", teacher_file)
    for until, told in ((1, 1), (3, 3), (3, 3), (None, 4)):
        found: list[EpochRecord] = []
        task = TrialTask(config, tmp_path / "pieces", teacher_file, until=until)
        run(task, found.append, CPU)
        assert [record.epoch for record in found] == list(range(1, told + 1))
    for ours, theirs in zip(found, whole, strict=True):
        for name in theirs.metrics.keys() - {*OF_THE_MACHINE}:
            assert ours.metrics[name] == theirs.metrics[name], name
    ours, theirs = (load_file(tmp_path / n / "best.safetensors") for n in ("pieces", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_thread_count_is_the_configs(
    make_config: MakeConfig, teacher_file: Path, tmp_path: Path
) -> None:
    config = make_config(train={"epochs": 1}, resources={"cpus_per_worker": 2})
    train(config, tmp_path / "a", teacher_file)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
