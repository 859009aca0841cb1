"""A trial that is given what its teacher once said ends as one that asks it in every update: to the last bit."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.trials import (
    CPU,
    MakeConfig,
    numbers,
    train,
    train_and_stop,
    untrained_teacher,
)
from trainable import records
from trainable.config import TrialConfig
from trainable.data.cache import Arrays
from trainable.engine import answers as answers_module
from trainable.engine import asking, loop
from trainable.engine.answers import Answers, Layout
from trainable.engine.asking import ASKED, CHECKED
from trainable.engine.checkpoint import BEST
from trainable.errors import ConfigError, DataError
from trainable.networks.build import Pictures, build_teacher_network
from trainable.networks.teacher import FrozenTeacher, Handed, TeacherOutputs, as_given
from trainable.networks.weights import load_weights

PICTURES = 359
"""Of the digits, without those held out: few, so that many trials take no time."""
STABLE = {"method": "stablekd", "alpha": 0.5, "decomposition": "5/2"}
AT = {"method": "at", "alpha": None, "lam": 10.0}


EXACT = {"teacher": {"precision": "fp32"}, "train": {"precision": "bf16"}}


class Ended(NamedTuple):
    records: list[dict[str, float]]
    best: bytes


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's cache folder."""
    monkeypatch.setenv("KD_STUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_config(make_config: MakeConfig) -> MakeConfig:
    def make(**sections: dict[str, Any]) -> TrialConfig:
        return make_config(
            **{**sections, "data": {"val_fraction": 0.75, **sections.get("data", {})}}
        )

    return make


@pytest.fixture
def weights(make_config: MakeConfig, tmp_path: Path) -> Path:
    return untrained_teacher(make_config(), tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures a teacher was asked about, each time that one was."""
    found: list[int] = []
    forward = FrozenTeacher.forward

    def counted(self: FrozenTeacher, images: Tensor, handed: Handed = as_given) -> TeacherOutputs:
        found.append(len(images))
        return forward(self, images, handed)

    monkeypatch.setattr(FrozenTeacher, "forward", counted)
    return found


def cached(config: TrialConfig, *, on: bool = True) -> TrialConfig:
    assert config.teacher is not None
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache": on})})


def ended(config: TrialConfig, place: Path, weights: Path) -> Ended:
    return Ended(numbers(train(config, place, weights)), (place / BEST).read_bytes())


def files(folder: Path) -> list[Path]:
    return sorted((folder / "teachers").glob("*.arrow"))


# ------------------------------------------------------------------------------------------ with and without
CASES: dict[str, dict[str, Any]] = {
    "kd": {},
    "views, features": {
        "data": {"augment": {"crop": 1, "flip": True}},
        "distill": STABLE,
        "train": {"epochs": 3},
    },
    "maps, accumulated": {"distill": AT, "train": {"epochs": 2, "accumulate": 2}},
    "bf16": {"distill": STABLE, "train": {"epochs": 3, "precision": "bf16"}},
    "bf16 for fp32": {
        "teacher": {"precision": "bf16"},
        "distill": STABLE,
        "train": {"epochs": 3, "accumulate": 2},
    },
    "fp32 for bf16": {
        "teacher": {"precision": "fp32"},
        "distill": AT,
        "train": {"epochs": 2, "precision": "bf16"},
    },
    "balanced": {"data": {"sampling": "balanced", "augment": {"flip": True}}},
    "subset": {"data": {"subset": 0.3, "batch_size": 50}},
    "streamed": {"data": {"loader": "streamed", "decode_workers": 0, "augment": {"flip": True}}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_trial_ends_in_the_same_bits(
    case: str, make_config: MakeConfig, tmp_path: Path, weights: Path, asked: list[int]
) -> None:
    """The teacher's answers round alike in whole micro-batches of any size, on a CPU."""
    sections = CASES[case]
    whole = {"drop_last": True, **sections.get("data", {})}
    config = make_config(**{**sections, "data": whole})
    live = ended(config, tmp_path / "live", weights)
    assert len(set(map(str, live.records))) == len(live.records) >= 2
    asked.clear()
    assert ended(cached(config), tmp_path / "first", weights) == live
    pictures = 109 if case == "subset" else PICTURES  # 30 % of each class
    views = {"views, features": 18, "balanced": 2, "streamed": 2}.get(case, 1)
    *of_all, again = asked
    assert again == CHECKED
    assert set(of_all) == {min(ASKED, pictures * views)}
    assert pictures * views <= sum(of_all) < pictures * views + ASKED
    asked.clear()
    assert ended(cached(config), tmp_path / "second", weights) == live
    assert sum(asked) == CHECKED


def test_what_the_teacher_was_asked_layer_by_layer_differs_by_rounding(
    make_config: MakeConfig, tmp_path: Path, weights: Path
) -> None:
    """In the short last update of each epoch."""
    config = make_config(distill=STABLE, train={"epochs": 3})
    live = ended(config, tmp_path / "live", weights)
    once = ended(cached(config), tmp_path / "once", weights)
    for ours, theirs in zip(live.records, once.records, strict=True):
        assert ours[records.TRAIN_LOSS] == pytest.approx(theirs[records.TRAIN_LOSS], rel=1e-3)


def test_a_stopped_trial_goes_on_with_the_file_or_a_new_one(
    make_config: MakeConfig, tmp_path: Path, weights: Path, folder: Path
) -> None:
    config = cached(make_config(distill=STABLE, train={"epochs": 3}))
    whole = ended(config, tmp_path / "whole", weights)
    for name in ("file", "no file"):
        train_and_stop(config, tmp_path / name, weights, after=2)
        if name == "no file":
            shutil.rmtree(folder / "teachers")
        assert ended(config, tmp_path / name, weights) == whole


def test_trials_share_a_file_where_the_answers_are_the_same(
    make_config: MakeConfig, tmp_path: Path, weights: Path, folder: Path
) -> None:
    """Whatever is the student's alone leaves it as it is, and what changes an answer makes another."""
    dark = {"mean": [0.1] * 3, "std": [0.5] * 3}
    variants = [
        [{}, {"data": {"batch_size": 32}}, {"train": {"epochs": 1, "accumulate": 2, "seed": 5}}],
        [{"teacher": {"precision": "bf16"}}, {"train": {"precision": "bf16"}}],
        [{"distill": STABLE | {"decomposition": "1/0"}}, {"distill": {**AT, "lam": 1.0}}],
        [{"data": {"subset": 0.5}}, {"data": {"subset": 0.5}, **EXACT}],
        [{"data": {"split_seed": 1}}],
        [{"data": {"augment": {"flip": True}}}],
        [{"data": {"augment": {"crop": 1}}}],
        [{"data": dark}],
        [{"distill": AT, "teacher": {"cuts": ["layer1"]}, "student": {"cuts": ["layer1"]}}],
    ]
    place = 0
    for count, equals in enumerate(variants, start=1):
        for sections in equals:
            place += 1
            first = {"train": {"epochs": 1, **sections.get("train", {})}}
            config = cached(make_config(**{**sections, **first}))
            train(config, tmp_path / str(place), weights)
            assert len(files(folder)) == count, sections


@pytest.mark.parametrize("size", [CHECKED, ASKED])
def test_what_is_kept_does_not_depend_on_what_the_process_has_fused(
    size: int,
    make_config: MakeConfig,
    tmp_path: Path,
    weights: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A teacher that trials asked before, in micro-batches of some size, and a fresh one."""
    config = make_config(distill=STABLE, train={"epochs": 3}, data={"batch_size": size})
    kept = loop.load_teacher(config, Pictures(10, 3, (8, 8)), weights)
    train(config, tmp_path / "live", weights)
    told: list[bytes] = []
    for number, load in enumerate((lambda *_: kept, loop.load_teacher)):
        monkeypatch.setattr(loop, "load_teacher", load)
        train(cached(config), tmp_path / str(number), weights)
        (path,) = files(folder)
        told.append(path.read_bytes())
        path.unlink()
    assert told[0] == told[1]


def test_other_weights_are_another_teacher(
    make_config: MakeConfig, tmp_path: Path, weights: Path, folder: Path
) -> None:
    config = make_config(data={"drop_last": True})
    ended(cached(config), tmp_path / "one", weights)
    torch.manual_seed(7)
    network = build_teacher_network(config, Pictures(10, 3, (8, 8))).network
    torch.save(network.state_dict(), tmp_path / "other.pt")
    other = ended(config, tmp_path / "live", tmp_path / "other.pt")
    assert ended(cached(config), tmp_path / "cached", tmp_path / "other.pt") == other
    assert len(files(folder)) == 2


# ------------------------------------------------------------------------------------------ files of no use
def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, flipped])
def test_a_damaged_file_is_made_again(
    damage: Callable[[Path], None],
    make_config: MakeConfig,
    tmp_path: Path,
    weights: Path,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = cached(make_config(distill=STABLE, train={"epochs": 3}))
    whole = ended(config, tmp_path / "whole", weights)
    (path,) = files(folder)
    sound = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert ended(config, tmp_path / "again", weights) == whole
    assert f"{path} cannot be used" in caplog.text
    assert path.read_bytes() == sound


class Scaled(nn.Module):
    """In the head's place: what it says is twice as much."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.head(x)


class OfTheBatch(Scaled):
    """What it says of a picture depends on the others."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x)
        return logits - logits.mean(0)


def with_head(monkeypatch: pytest.MonkeyPatch, kind: type[Scaled]) -> None:
    """A teacher's code that changes while its weights and its name stay."""

    def changed(config: TrialConfig, pictures: Pictures, weights: Path) -> FrozenTeacher:
        network = build_teacher_network(config, pictures)
        load_weights(network.network, weights, config_path="teacher.checkpoint")
        *others, head = network._blocks[-1]
        network._blocks = (*network._blocks[:-1], (*others, kind(head)))
        return FrozenTeacher(network)

    monkeypatch.setattr(loop, "load_teacher", changed)


def test_a_teacher_whose_code_changed_is_asked_anew(
    make_config: MakeConfig,
    tmp_path: Path,
    weights: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_config(data={"drop_last": True})
    before = ended(cached(config), tmp_path / "before", weights)
    with_head(monkeypatch, Scaled)
    live = ended(config, tmp_path / "live", weights)
    assert live != before
    with caplog.at_level(logging.WARNING):
        assert ended(cached(config), tmp_path / "after", weights) == live
    (apart, largest) = map(
        float, re.findall(r"differ by (.*), the largest is (.*)\)", caplog.text)[0]
    )
    assert apart == pytest.approx(largest / 2, rel=0.05)
    assert len(files(folder)) == 1


def test_a_teacher_that_looks_at_the_whole_batch_is_refused(
    make_config: MakeConfig, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_head(monkeypatch, OfTheBatch)
    with pytest.raises(ConfigError, match=r"teacher.cache: needs a teacher .* by itself"):
        train(cached(make_config()), tmp_path, weights)


# ------------------------------------------------------------------------------------------ room
def test_what_is_larger_than_the_budget_is_refused_with_its_size(
    make_config: MakeConfig, tmp_path: Path, weights: Path, folder: Path
) -> None:
    config = cached(make_config(data={"cache_budget_gib": 3e-4, "augment": {"crop": 2}}))
    # 25 views of 359 pictures, 10 logits of 4 bytes each
    rule = (
        r"data.cache_budget_gib: teacher.cache needs at least 0.000334 GiB for logits of 25 views "
    )
    with pytest.raises(ConfigError, match=rule + r"of each of 359 pictures, got 0.0003; raise it"):
        train(config, tmp_path, weights)
    assert files(folder) == []


@pytest.mark.parametrize(
    ("teacher", "student", "each"),
    [("bf16", "fp32", 2), ("fp32", "bf16", 4), (None, "bf16", 2), (None, "fp32", 4)],
)
def test_the_least_that_is_needed_is_that_of_the_teachers_precision(
    teacher: str | None, student: str, each: int, make_config: MakeConfig
) -> None:
    config = cached(
        make_config(
            teacher={"precision": teacher},
            train={"precision": student},
            data={"cache_budget_gib": 1e-9},
        )
    )
    gib = PICTURES * 10 * each / 2**30
    with pytest.raises(ConfigError, match=f"needs at least {gib:.3g} GiB"):
        asking.check_shapes(config, PICTURES, [(10,)])


def test_a_full_disk_is_seen_beforehand(
    make_config: MakeConfig, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(asking.shutil, "disk_usage", lambda _: full)
    with pytest.raises(DataError, match=r"must have room for 1.34e-05 GiB .*KD_STUDY_CACHE"):
        train(cached(make_config()), tmp_path, weights)


# ------------------------------------------------------------------------------------------ layout
def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(10,), (5, 8), (3, 4, 6), (7, 1, 1), (1, 4, 4)])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_answers_lie_in_memory_as_they_were_given(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channels_last: bool,
    resident: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gathered from the file, and as on a GPU from the device."""
    if resident:
        monkeypatch.setattr(answers_module, "_UPLOADED", 4)
        on_device = partial(answers_module._Resident, device=CPU)
        monkeypatch.setattr(answers_module, "_Mapped", on_device)
    given = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    given[2].flatten()[0] = torch.nan
    if channels_last and len(shape) == 3:
        given = given.contiguous(memory_format=torch.channels_last)
    layout = Layout.of(given)
    columns = {"logits": layout.to_bytes(given)}
    assert columns["logits"].shape == (6, layout.size)
    answers = Answers(Arrays(columns, {"logits": layout.text()}), CPU)
    rows = torch.tensor([4, 2, 2, 0])
    found = answers(rows).logits
    assert found.dtype == dtype
    assert found.shape == given[rows].shape
    assert as_bytes(found) == as_bytes(given[rows])
    formats = (torch.contiguous_format, torch.channels_last)[: 2 if len(shape) == 3 else 1]
    for memory_format in formats:
        expected = given[rows].is_contiguous(memory_format=memory_format)
        assert found.is_contiguous(memory_format=memory_format) == expected


# ------------------------------------------------------------------------------------------ ranks
RANKS = 2


def _rank(rank: int, place: str, config: TrialConfig) -> None:
    torch.set_num_threads(1)
    os.environ["KD_STUDY_CACHE"] = f"{place}/cache"
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=RANKS
    )
    about_all = asking._asked_about_all

    def counted(*arguments: Any) -> Arrays:
        Path(place, f"asked-by-{rank}").touch()
        return about_all(*arguments)

    asking._asked_about_all = counted
    weights = Path(place) / "teacher.safetensors"
    for on in (False, True):
        trial = cached(config, on=on)
        found = numbers(train(trial, Path(place, str(on)), weights))
        torch.save(found, f"{place}/{on}-{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_two_ranks_that_ask_at_once_ask_once_and_each_gathers_its_own(
    precision: str | None, make_config: MakeConfig, tmp_path: Path, weights: Path
) -> None:
    config = make_config(
        teacher={"precision": precision},
        data={"drop_last": True, "augment": {"flip": True}},
        distill=STABLE,
        train={"epochs": 3, "workers": RANKS, "accumulate": 2},
    )
    run_on_ranks(_rank, str(tmp_path), config, ranks=RANKS)
    assert len(list(tmp_path.glob("asked-by-*"))) == 1
    told = [
        torch.load(tmp_path / f"{on}-{rank}.pt", weights_only=True)
        for on in (False, True)
        for rank in range(RANKS)
    ]
    assert told[0] == told[1] == told[2] == told[3]
    best = [(tmp_path / str(on) / BEST).read_bytes() for on in (False, True)]
    assert best[0] == best[1]
    assert np.isfinite(list(told[0][-1].values())).all()
