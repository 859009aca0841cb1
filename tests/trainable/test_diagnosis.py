"""What the rules find: all of it in sick runs, nothing in healthy ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainable.recorded_runs import (
    HEALTHY,
    OF_THE_MACHINE,
    RUNS,
    SICK,
    Run,
    recorded,
    trained,
)
from trainable import tasks
from trainable.config import TrialConfig
from trainable.records import EpochRecord, Finding
from trainable.statistics.diagnosis import RULES, diagnose
from trainable.statistics.diagnosis.wording import in_epochs

STABLE = {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"}


def names(findings: Sequence[Finding]) -> set[str]:
    return {finding.name for finding in findings}


def config(**sections: Mapping[str, Any]) -> TrialConfig:
    return Run(sections).config


def history(epochs: int = 12, **metrics: Sequence[float | None]) -> list[EpochRecord]:
    """A healthy run's `epochs` with some metrics in place of its own; `/` is written `__`."""
    found: list[EpochRecord] = []
    for number, record in enumerate(recorded("none")[:epochs]):
        values: dict[str, float] = dict(record.metrics)
        for name, column in metrics.items():
            value = column[number]
            values.pop(name.replace("__", "/"), None)
            if value is not None:
                values[name.replace("__", "/")] = value
        found.append(EpochRecord(record.epoch, values, record.timestamp_ms))
    return found


def the_finding(name: str, config: TrialConfig, found: Sequence[EpochRecord]) -> Finding:
    return next(finding for finding in diagnose(config, found) if finding.name == name)


# ------------------------------------------------------------------------------------------ recorded runs
@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_has_the_findings_that_it_should(name: str) -> None:
    run = RUNS[name]
    assert names(diagnose(run.config, recorded(name))) == run.finds


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_healthy_after_every_epoch(name: str) -> None:
    """It may be pruned there."""
    found = recorded(name)
    told = {n: diagnose(RUNS[name].config, found[:n]) for n in range(len(found) + 1)}
    assert {n: findings for n, findings in told.items() if findings} == {}


def test_every_rule_is_found_in_a_sick_run() -> None:
    assert set().union(*(run.finds for run in SICK.values())) == set(RULES)
    assert not any(run.finds for run in HEALTHY.values())
    assert all(run.finds for run in SICK.values())


def test_the_gravest_comes_first() -> None:
    found = [f.name for f in diagnose(SICK["lr-50"].config, recorded("lr-50"))]
    assert found == ["non_finite", "exploding_gradients", "lr_too_high"]


@pytest.mark.parametrize("name", SICK)
def test_a_finding_names_a_key_of_the_config_and_is_a_sentence(name: str) -> None:
    run = SICK[name]
    sections = set(run.config.model_dump())
    for finding in diagnose(run.config, recorded(name)):
        keys = [word for word in finding.remedy.split() if word.partition(".")[0] in sections]
        assert keys
        assert finding.words.endswith(".")
        assert any(character.isdigit() for character in finding.evidence)


# ------------------------------------------------------------------------------------------ absences
@pytest.mark.parametrize("name", HEALTHY)
def test_a_metric_that_is_absent_raises_no_alarm(name: str) -> None:
    found = recorded(name)
    for metric in {m for record in found for m in record.metrics}:
        without = [
            EpochRecord(r.epoch, {n: v for n, v in r.metrics.items() if n != metric}, 0)
            for r in found
        ]
        assert diagnose(RUNS[name].config, without) == ()


@given(st.data())
@settings(max_examples=50)
def test_absences_of_any_kind_raise_no_alarm(data: st.DataObject) -> None:
    """Of metrics in single epochs too, as where an epoch's every update was skipped or not observed."""
    name = data.draw(st.sampled_from(sorted(HEALTHY)))
    random = Random(data.draw(st.integers(0, 2**32)))
    share = data.draw(st.floats(0, 1))
    kept = [
        EpochRecord(r.epoch, {n: v for n, v in r.metrics.items() if random.random() < share}, 0)
        for r in recorded(name)
    ]
    assert diagnose(RUNS[name].config, kept) == ()


def test_nothing_is_said_of_nothing() -> None:
    empty = [EpochRecord(epoch, {}, 0) for epoch in (1, 2, 3)]
    for run in RUNS.values():
        assert diagnose(run.config, ()) == ()
        assert diagnose(run.config, empty) == ()


METRICS = sorted({metric for name in RUNS for r in recorded(name) for metric in r.metrics})
finite = st.floats(allow_nan=False, allow_infinity=False)
measured = st.dictionaries(st.sampled_from(METRICS), finite | st.sampled_from([0.0, 0.5, 1.0]))


@given(st.lists(measured, max_size=12), st.sampled_from(sorted(RUNS)))
@settings(max_examples=200)
def test_no_history_makes_it_raise(metrics, name) -> None:
    found = [EpochRecord(epoch, m, 0) for epoch, m in enumerate(metrics, start=1)]
    for finding in diagnose(RUNS[name].config, found):
        assert finding.name in RULES
        assert finding.words
        assert finding.evidence
        assert finding.remedy


# ------------------------------------------------------------------------------------------ gradients
def test_exploded_gradients_are_told_with_the_block_and_a_bound() -> None:
    finding = the_finding("exploding_gradients", SICK["lr-50"].config, recorded("lr-50"))
    assert finding.evidence == "grad/norm was 84.3 in epoch 2, and 1.65 before; most in layer3"
    assert finding.remedy == "set train.clip, e.g. to 3, or lower optim.lr (now 50)"


def test_who_clips_is_not_told_to_clip() -> None:
    sick = recorded("lr-50")
    far = config(optim={"lr": 50.0}, train={"epochs": 12, "clip": 1000.0})
    remedy = the_finding("exploding_gradients", far, sick).remedy
    assert remedy == "lower optim.lr (now 50), or lower train.clip (now 1e+03), e.g. to 3"
    near = config(optim={"lr": 50.0}, train={"epochs": 12, "clip": 5.0})
    for finding in diagnose(near, sick):
        assert "train.clip" not in finding.remedy


def test_a_large_norm_alone_is_no_explosion() -> None:
    norms = [1.0, 1.0, 1.0, 1000.0, *[1.0] * 8]
    assert diagnose(config(), history(grad__norm=norms)) == ()
    losses = [2.0, 1.0, 0.8, 1.4, 0.5, *[0.4] * 7]
    spiked = history(grad__norm=norms, train__loss=losses)
    assert names(diagnose(config(), spiked)) == {"exploding_gradients"}
    # A new stage has another loss and another norm.
    stages = history(grad__norm=[*[1.0] * 4, *[1000.0] * 8], train__loss=[*[1.0] * 4, *[5.0] * 8])
    stable = config(distill=STABLE)
    assert names(diagnose(stable, stages)) == set()


def test_small_gradients_of_a_student_that_learns_are_no_illness() -> None:
    tiny = [1e-7] * 12
    small = history(grad__parameter_ratio=tiny, grad__first_to_last=tiny)
    assert diagnose(config(), small) == ()
    stuck = history(grad__parameter_ratio=tiny, train__loss=[2.3] * 12, val__accuracy=[0.1] * 12)
    assert "vanishing_gradients" in names(diagnose(config(), stuck))
    # One that knows it all before the first epoch has nothing to learn.
    done = history(grad__parameter_ratio=tiny, train__loss=[0.01] * 12, val__accuracy=[0.97] * 12)
    assert diagnose(config(), done) == ()


def test_clipping_often_or_a_little_is_no_illness() -> None:
    clipped = config(train={"epochs": 12, "clip": 0.01})
    at_first = history(grad__clip_rate=[*[1.0] * 9, 0.5, 0.1, 0.0])
    assert diagnose(clipped, at_first) == ()
    always = history(grad__clip_rate=[*[1.0] * 10, 0.5, 0.1])
    assert names(diagnose(clipped, always)) == {"always_clipped"}
    little = config(train={"epochs": 12, "clip": 0.1})
    assert diagnose(little, always) == ()  # the median norm of this run is 0.7
    # There the rate counts updates in which one layer or one element was bounded.
    for way in ("layer", "value"):
        by_parts = config(train={"epochs": 12, "clip": 0.01, "clip_by": way})
        assert diagnose(by_parts, always) == ()


@pytest.mark.parametrize(("clip", "never"), [(20.0, False), (100.0, True)])
def test_a_bound_for_rare_spikes_may_wait_for_one(clip: float, never: bool) -> None:
    bounded = config(train={"epochs": 12, "clip": clip})
    found = history(grad__norm=[4.0] * 12, grad__clip_rate=[0.0] * 12)
    assert names(diagnose(bounded, found)) == ({"never_clipped"} if never else set())
    by_value = config(train={"epochs": 12, "clip": clip, "clip_by": "value"})
    entries = history(grad__max=[4.0] * 12, grad__clip_rate=[0.0] * 12)
    assert names(diagnose(by_value, entries)) == ({"never_clipped"} if never else set())


# ------------------------------------------------------------------------------------------ overflow
FP16 = {"epochs": 12, "precision": "fp16"}


def overflowing(**skipped: float) -> list[EpochRecord]:
    """Updates skipped in epoch 2, by place."""
    columns = {f"amp/skipped.{place}": n for place, n in skipped.items()}
    columns |= {"amp/skipped": sum(skipped.values())}
    own = history(amp__scale=[65536.0] * 12)
    return [
        EpochRecord(r.epoch, r.metrics | columns if r.epoch == 2 else r.metrics, 0) for r in own
    ]


def test_what_the_loss_scaler_skips_on_its_search_is_no_illness() -> None:
    found = overflowing(layer4=7)
    assert diagnose(config(train=FP16), found) == ()
    assert names(diagnose(config(), found)) == {"non_finite"}


def test_the_first_place_is_named() -> None:
    finding = the_finding("non_finite", config(train=FP16), overflowing(kl=2, feature=5, head=30))
    assert finding.words.endswith("first in feature.")
    assert finding.evidence == "7 update(s) in epoch 2; first not finite: feature 5×, kl 2×"
    finding = the_finding("non_finite", config(), overflowing(input=1))
    assert finding.remedy == "check the pictures, data.mean and data.std"


def test_skipped_updates_without_a_place_count_too() -> None:
    found = history(amp__skipped=[0, 3, *[0] * 10], amp__scale=[65536.0] * 12)
    assert the_finding("non_finite", config(), found).evidence == "3 update(s) in epoch 2"
    assert diagnose(config(train=FP16), found) == ()


def test_a_low_scale_that_was_asked_for_has_not_collapsed() -> None:
    low = history(amp__scale=[8.0] * 12)
    assert names(diagnose(config(train=FP16), low)) == {"scale_collapse"}
    asked = config(train={**FP16, "loss_scale": {"initial": 8.0}})
    assert diagnose(asked, low) == ()
    assert diagnose(config(), low) == ()


# ------------------------------------------------------------------------------------------ learning rates
def test_a_loss_that_comes_back_is_no_illness() -> None:
    back = [2.0, 1.0, 1.5, 1.4, 0.9, *[0.5] * 7]
    assert diagnose(config(), history(train__loss=back)) == ()
    stays = [2.0, 1.0, 1.5, 1.4, *[1.3] * 8]
    finding = the_finding("lr_too_high", config(), history(train__loss=stays))
    assert finding.words == "The learning rate of the trial was too high to learn at."
    assert "rose from 1 in epoch 2 to 1.5 in epoch 3" in finding.evidence
    # Long after the peak it is not the learning rate.
    late = [2.0, 1.0, 0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.9]
    assert diagnose(config(), history(train__loss=late)) == ()


def test_the_noise_of_a_loss_near_0_is_no_illness() -> None:
    noise = [2.0, 0.1, 0.01, 0.05, 0.02, *[0.04] * 7]
    assert diagnose(config(), history(train__loss=noise)) == ()


def test_the_noise_of_mixed_labels_is_no_illness() -> None:
    """An epoch's mean follows the shares that were drawn: these losses are those of a healthy trial."""
    losses = [1.9, 0.9, 0.6, 0.408, 0.914, 0.609, 0.512, 0.4, 0.41, 0.444, 0.477, 0.454]
    mixed = config(data={"augment": {"mixup": 0.2}})
    assert diagnose(mixed, history(train__loss=losses)) == ()
    assert names(diagnose(config(), history(train__loss=losses))) == {"lr_too_high"}


def test_the_stage_is_named() -> None:
    stable = config(distill=STABLE, optim={"lr": 0.1})
    rates = [0.08, 0.07, 0.03, 0.0, 0.04, 0.04, 0.02, 0.0, 0.02, 0.02, 0.01, 0.0]
    losses = [2.0, 1.0, 0.8, 0.7, 0.8, 3.0, 3.0, 3.0, 0.7, 0.6, 0.5, 0.5]
    found = history(train__loss=losses, train__lr=rates)
    finding = the_finding("lr_too_high", stable, found)
    assert "stage 2 of 3 (epochs 5–8)" in finding.words
    # In a new stage the loss has another meaning: a higher one is none that has risen.
    assert diagnose(stable, history(train__loss=[*[0.7] * 4, *[2.0] * 8], train__lr=rates)) == ()


def test_a_trial_pruned_in_its_warm_up_has_no_low_learning_rate() -> None:
    still = {"grad__update_ratio": [1e-6] * 12, "train__loss": [2.3] * 12}
    waiting = config(train={"epochs": 100})
    assert diagnose(waiting, history(**still, train__lr=[1e-3] * 12)) == ()
    assert names(diagnose(waiting, history(**still, train__lr=[5e-2] * 12))) == {"lr_too_low"}


def test_small_updates_at_the_end_of_learning_are_no_illness() -> None:
    losses = [2.0, 1.0, *[0.3] * 10]
    slow = history(grad__update_ratio=[5e-5] * 12, train__loss=losses)
    assert diagnose(config(), slow) == ()


def test_a_student_thrown_about_from_the_first_epoch_has_too_high_a_rate() -> None:
    thrown = history(
        train__loss=[2.4] * 12,
        val__accuracy=[0.1] * 12,
        grad__update_ratio=[*[0.2] * 4, *[0.01] * 8],
    )
    finding = the_finding("lr_too_high", config(), thrown)
    assert finding.evidence == (
        "train/loss never fell, while an update moved the parameters by up to 20 % of their length "
        "(epochs 1–4)"
    )
    assert "lr_too_low" not in names(diagnose(config(), thrown))


def test_a_late_stage_that_stands_still_is_told_of_its_decay() -> None:
    idle = history(
        train__loss=[2.0] * 12,
        train__lr=[*[0.1] * 4, *[1e-4] * 4, *[1e-7] * 4],
        grad__update_ratio=[*[1e-3] * 4, *[1e-6] * 8],
    )
    stable = config(distill=STABLE, optim={"lr": 0.1, "peak_decay": 1e-3})
    finding = the_finding("lr_too_low", stable, idle)
    assert "stage 2 of 3" in finding.words
    assert finding.remedy.endswith("or raise optim.peak_decay (now 0.001)")


def test_who_uses_adam_is_not_told_to() -> None:
    sigmoids, found = SICK["sigmoids"], recorded("sigmoids")
    assert "adamw" in the_finding("vanishing_gradients", sigmoids.config, found).remedy
    adam = config(optim={"name": "adamw"})
    assert "adamw" not in the_finding("vanishing_gradients", adam, found).remedy


@pytest.mark.parametrize(
    ("epochs", "text"),
    [
        ([3], "epoch 3"),
        ([2, 3, 4], "epochs 2–4"),
        ([5, 1, 2, 2], "epochs 1–2, 5"),
        ([1, 3], "epochs 1, 3"),
    ],
)
def test_epochs_are_written_as_spans(epochs: list[int], text: str) -> None:
    assert in_epochs(epochs) == text


# ------------------------------------------------------------------------------------------ BatchNorm
def by_statistics(running: Sequence[float], batches: Sequence[float]) -> list[EpochRecord]:
    return history(val__accuracy=running, val__accuracy_batch_stats=batches)


RISING = [0.4, 0.6, 0.8, *[0.9] * 9]


def test_running_statistics_that_lag_behind_at_first_are_no_illness() -> None:
    assert diagnose(config(), by_statistics([0.1, 0.3, 0.5, 0.7, *[0.9] * 8], RISING)) == ()


def test_accuracy_lost_with_running_statistics_alone_is_found_although_it_comes_back() -> None:
    lost = [0.4, 0.6, 0.8, 0.3, 0.2, 0.3, *[0.9] * 6]
    finding = the_finding("batchnorm_drift", config(), by_statistics(lost, RISING))
    assert "in epochs 4–6 val/accuracy was 20 %" in finding.evidence
    assert diagnose(config(), by_statistics(lost, lost)) == ()


def test_statistics_off_to_the_end_are_found() -> None:
    low = [value - 0.2 for value in RISING]
    assert names(diagnose(config(), by_statistics(low, RISING))) == {"batchnorm_drift"}
    strayed = history(bn__drift=[*[0.1] * 7, *[2.0] * 5])
    assert names(diagnose(config(), strayed)) == {"batchnorm_drift"}


def test_before_the_last_stage_blocks_have_the_statistics_of_the_teachers_features() -> None:
    off = by_statistics([*[0.2] * 8, *[0.9] * 4], [0.9] * 12)
    assert diagnose(config(distill=STABLE), off) == ()
    low = by_statistics([0.2] * 12, [0.9] * 12)
    apart = config(distill={**STABLE, "decomposition": "5/0"})
    assert "the teacher's features" in the_finding("batchnorm_drift", apart, low).words
    together = the_finding("batchnorm_drift", config(distill=STABLE), low)
    assert "teacher" not in together.words


@pytest.mark.parametrize(
    ("sections", "told", "untold"),
    [
        ({}, "recalibrate", "momentum"),
        ({"train": {"batchnorm": {"recalibrate": 20}}}, "freeze_after: 4", "recalibrate"),
        ({"train": {"batchnorm": {"momentum": 0.01}}}, "momentum (now 0.01)", "balanced"),
        ({"train": {"batchnorm": {"freeze_after": 9}}}, "optim.lr (now 0.05)", "freeze_after"),
        ({"data": {"sampling": "balanced"}}, "(on pictures in their own mix)", "momentum"),
    ],
)
def test_what_is_set_already_is_no_remedy(sections: dict[str, Any], told: str, untold: str) -> None:
    low = by_statistics([*[0.9] * 4, *[0.2] * 8], [0.9] * 12)
    remedy = the_finding("batchnorm_drift", config(**sections), low).remedy
    assert told in remedy
    assert untold not in remedy


def test_balanced_sampling_is_named_where_it_shapes_the_statistics() -> None:
    run = SICK["dying-channels-balanced"]
    finding = the_finding("batchnorm_drift", run.config, recorded("dying-channels-balanced"))
    assert "oversampled mix of data.sampling: balanced" in finding.words


def test_channels_that_were_dead_from_the_start_are_no_illness() -> None:
    assert diagnose(config(), history(bn__dead_share=[0.3] * 12)) == ()
    dying = history(bn__dead_share=[0.02 * n for n in range(12)])
    assert names(diagnose(config(), dying)) == {"dead_channels"}


# ------------------------------------------------------------------------------------------ pictures
def test_one_slow_epoch_is_no_illness() -> None:
    assert diagnose(config(), history(train__data_wait=[0.9, *[0.1] * 11])) == ()
    assert diagnose(config(), history(epochs=1, train__data_wait=[0.9])) == ()
    slow = history(train__data_wait=[*[0.8] * 7, *[0.1] * 5])
    streamed = config(data={"loader": "streamed"})
    assert "set data.loader: auto" in the_finding("data_bound", streamed, slow).remedy


# ------------------------------------------------------------------------------------------ a study
def study(
    searched: Sequence[str] = (),
    trials: Sequence[TrialConfig] = (),
    teacher: float | None = None,
    students: Mapping[str, float] | None = None,
    pictures: int = 10_000,
) -> tuple[Finding, ...]:
    return tasks.diagnose_study(
        searched, trials, teacher=teacher, students=students or {}, pictures=pictures
    )


def decomposed(*texts: str) -> list[TrialConfig]:
    return [config(distill={**STABLE, "decomposition": text}) for text in texts]


@pytest.mark.parametrize("text", ["3/1", "5/0", "5/1", "5/2", "2/0"])
def test_alpha_that_moves_the_head_alone_is_not_worth_searching(text: str) -> None:
    (finding,) = study(["distill.alpha", "optim.lr"], decomposed(text))
    assert finding.name == "search_alpha_without_effect"
    assert text in finding.evidence
    assert "distill.alpha" in finding.remedy
    assert study(["optim.lr"], decomposed(text)) == ()


@pytest.mark.parametrize("text", ["1/0", "2/1", "4/1", "3/2", "5/3"])
def test_alpha_that_moves_blocks_is_worth_searching(text: str) -> None:
    assert study(["distill.alpha"], decomposed(text)) == ()
    assert study(["distill.alpha"], decomposed("5/2", text)) == ()


def test_alpha_of_other_methods_is_worth_searching() -> None:
    kd = config(distill={"method": "kd", "alpha": 0.5})
    assert study(["distill.alpha"], [kd]) == ()
    assert study(["distill.alpha"], []) == ()


def test_a_teacher_behind_a_student_is_told() -> None:
    (finding,) = study(teacher=0.70, students={"trial 9": 0.76, "student without a teacher": 0.69})
    assert finding.name == "teacher_worse_than_student"
    assert finding.evidence == "on 10,000 pictures the teacher has 70 % accuracy, and trial 9 76 %"
    assert "teacher.checkpoint" in finding.remedy


@pytest.mark.parametrize(
    ("teacher", "student", "pictures"),
    # A student a little ahead of its teacher is what StableKD is for; and four pictures are four pictures.
    [(0.7859, 0.7892, 10_000), (0.9833, 0.9944, 360), (0.8, 0.7, 100), (1.0, 1.0, 1)],
)
def test_a_student_that_may_be_ahead_by_chance_is_no_reproach(
    teacher: float, student: float, pictures: int
) -> None:
    assert study(teacher=teacher, students={"trial 1": student}, pictures=pictures) == ()


def test_a_study_without_a_teacher_has_no_worse_one() -> None:
    assert study(students={"trial 1": 0.9}) == ()


# ------------------------------------------------------------------------------------------ the task
def test_the_task_of_a_study_is_the_same() -> None:
    run = SICK["lr-5"]
    assert tasks.diagnose(run.config, recorded("lr-5")) == diagnose(run.config, recorded("lr-5"))


def test_the_recorded_metrics_are_those_that_a_trial_reports(tmp_path: Path) -> None:
    """`make recorded-runs` writes them anew where this fails."""
    (today,) = trained(HEALTHY["one-epoch"].config, tmp_path)
    (kept,) = recorded("one-epoch")
    assert set(kept.metrics) == set(today.metrics) - set(OF_THE_MACHINE)
