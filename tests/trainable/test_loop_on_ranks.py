"""A whole trial on three ranks (gloo): with two, sums and halves hide what order and rounding do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainable import ranks, records
from trainable.config import TrialConfig
from trainable.engine.checkpoint import BEST
from trainable.engine.loop import TrialTask, run
from trainable.networks.build import Pictures, build_teacher_network
from trainable.networks.weights import save_weights
from trainable.records import EpochRecord

RANKS = 3
OWN = {records.TRAIN_IMAGES_PER_SECOND}
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
        "train": {"epochs": 3, "workers": RANKS, "accumulate": 2, "clip": 5.0},
        "resources": {"gpus_per_worker": 0},
    }
)


class StoppedError(Exception):
    """As if the process died."""


def _rank(rank: int, folder: str, name: str, stop_after: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/{name}-{stop_after}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    found: list[EpochRecord] = []

    def report(record: EpochRecord) -> None:
        found.append(record)
        if record.epoch == stop_after:
            raise StoppedError

    task = TrialTask(CONFIG, Path(folder) / name, Path(folder) / "teacher.safetensors")
    try:
        run(task, report, torch.device("cpu"))
    except StoppedError:
        ranks.barrier(torch.device("cpu"))
    told = [asdict(record)["metrics"] for record in found]
    torch.save(told, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


def trained(folder: Path, name: str, stop_after: int = 0) -> list[list[dict[str, float]]]:
    """The metrics of every epoch, by rank."""
    mp.spawn(_rank, (str(folder), name, stop_after), nprocs=RANKS)
    told = [torch.load(folder / f"{name}-{r}.pt", weights_only=True) for r in range(RANKS)]
    return [[{k: v for k, v in m.items() if k not in OWN} for m in epochs] for epochs in told]


@pytest.mark.timeout(300)
def test_three_ranks_agree_and_a_resumed_trial_ends_in_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = build_teacher_network(CONFIG, Pictures(10, 3, (8, 8)))
    save_weights(teacher.network, tmp_path / "teacher.safetensors")
    whole = trained(tmp_path, "whole")
    assert len(whole[0]) == 3
    assert whole[0] == whole[1] == whole[2]
    assert records.BN_DRIFT in whole[0][0]
    trained(tmp_path, "cut", stop_after=1)
    assert trained(tmp_path, "cut") == whole
    assert (tmp_path / "cut" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
