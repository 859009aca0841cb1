"""A whole trial on three ranks (gloo): with two, sums and halves hide what order and rounding do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.trainable.on_ranks import run_on_ranks
from tests.trainable.trials import CPU, numbers, student_with_dropout, untrained_teacher
from trainable import ranks, records
from trainable.config import TrialConfig
from trainable.engine import loop
from trainable.engine.checkpoint import BEST, CHECKPOINTS
from trainable.engine.loop import TrialTask, run
from trainable.engine.step import Step
from trainable.errors import TrainingError
from trainable.records import EpochRecord

RANKS, PER_EPOCH = 3, 17
CONFIG = TrialConfig.model_validate(
    {
        "data": {
            "source": "digits",
            "val_fraction": 0.25,
            "batch_size": 66,
            "augment": {"crop": 1},
        },
        "teacher": {"model": "mini_resnet_10_4", "checkpoint": "/nowhere.safetensors"},
        "student": {"model": "mini_resnet_10_4"},
        "distill": {"method": "stablekd", "alpha": 0.5, "decomposition": "2/1"},
        "train": {
            "epochs": 3,
            "workers": RANKS,
            "accumulate": 2,
            "clip": 5.0,
            "checkpoint": {"every": 5},
        },
        "resources": {"gpus_per_worker": 0},
    }
)

SYNC = {"batchnorm": {"sync": True}, "activation_checkpointing": True}
STOP = 25
"""Update, counted from 0 over all epochs: in the middle of the second of three epochs of 17."""


def _stop(self: Step, lr: float) -> None:
    """`Step.finish` that fails on every rank at once, as if the machine died."""
    if self._updates == STOP:
        raise RuntimeError("stopped by the test")
    _finish(self, lr)


_finish = Step.finish


def _rank(rank: int, folder: str, config: TrialConfig, name: str, stops: bool) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/{name}-{stops}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    loop.build_student = student_with_dropout  # each rank draws its own: their generators differ
    found: list[EpochRecord] = []
    task = TrialTask(config, Path(folder) / name, Path(folder) / "teacher.safetensors")
    if stops:
        Step.finish = _stop
        with pytest.raises(TrainingError, match=rf"\(rank {rank}, epoch 2, update 9, applying"):
            run(task, found.append, CPU)
        ranks.barrier(CPU)
    else:
        run(task, found.append, CPU)
    torch.save(numbers(found), f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


def trained(
    folder: Path, config: TrialConfig, name: str, *, stops: bool = False
) -> list[list[dict[str, float]]]:
    """The metrics of every epoch, by rank."""
    run_on_ranks(_rank, str(folder), config, name, stops, ranks=RANKS)
    return [torch.load(folder / f"{name}-{r}.pt", weights_only=True) for r in range(RANKS)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("settings", [{}, SYNC], ids=["plain", "sync"])
def test_three_ranks_agree_and_a_resumed_trial_ends_in_the_same_bits(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    tree = CONFIG.model_dump()
    config = TrialConfig.model_validate({**tree, "train": {**tree["train"], **settings}})
    untrained_teacher(CONFIG, tmp_path)
    whole = trained(tmp_path, config, "whole")
    assert len(whole[0]) == 3
    assert whole[0] == whole[1] == whole[2]
    assert records.BN_DRIFT in whole[0][0]
    cut = trained(tmp_path, config, "cut", stops=True)
    assert [len(told) for told in cut] == [1, 1, 1]
    names = sorted(path.name for path in (tmp_path / "cut" / CHECKPOINTS).iterdir())
    assert names == ["000000020", "000000025"]
    own = {path.name for path in (tmp_path / "cut" / CHECKPOINTS / names[-1]).glob("rank-*")}
    assert own == {"rank-0.pt", "rank-1.pt", "rank-2.pt"}
    assert trained(tmp_path, config, "cut") == whole
    assert (tmp_path / "cut" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
    for name in ("student.safetensors", *own):
        last = Path(CHECKPOINTS) / f"{3 * PER_EPOCH:09d}" / name
        ours, theirs = (read(tmp_path / kind / last) for kind in ("cut", "whole"))
        assert ours == theirs, name


def read(path: Path) -> object:
    """Bytes of weights; what a rank has for itself as text, whose tensors are few and short."""
    if path.suffix == ".safetensors":
        return path.read_bytes()
    own = torch.load(path, weights_only=True)
    buffers = {name: tensor.tolist() for name, tensor in own.pop("buffers").items()}
    states = own["generators"].pop("torch").tolist()
    return buffers, states, repr(own)
