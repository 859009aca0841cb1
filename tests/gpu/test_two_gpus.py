"""Two ranks (NCCL), each with a GPU, against one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.gpu.stepping import SIZE, STABLE, TOO_LARGE, Setup, changed
from tests.host_sync import no_host_sync
from tests.trainable import norm_layers
from tests.trainable.norm_layers import LAYERS, check_joined, layer_of
from tests.trainable.stepping import gradients_at_step
from trainable import ranks
from trainable.networks import peers
from trainable.networks.joined_norm import Exchanges
from trainable.networks.sync_batchnorm import SyncBatchNorm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.timeout(300),
]
KD = {"method": "kd", "alpha": 0.5}
UPDATES = 3
GRADIENT = 1e-3
"""Allowed |a − b|₂ / |b|₂ of each parameter's gradient: fp32 sums in another order."""
BY_NCCL = "own kernels, by NCCL"
OWN_KERNELS = ("own kernels, by peers", BY_NCCL)
"""Of SyncBatchNorm, with unequal shares."""
CASES = ("equal shares", "recomputed", *OWN_KERNELS)
FORMS: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {
    "fp64": (torch.float64, {}, 1e-9),
    "fp32": (torch.float32, {}, 1e-5),
    "fp16": (torch.float32, {"half": torch.float16}, 5e-3),
    "bf16": (torch.float32, {"half": torch.bfloat16}, 4e-2),
}
"""Types of a layer, of what it takes, and the allowed difference."""
FEATURES: dict[str, dict[str, Any]] = {
    "kd": {"distill": KD},
    "stages": {"distill": STABLE},
    "all": {
        "distill": KD,
        "precision": "fp16",
        "accumulate": 2,
        "clip": 5.0,
        "recompute": True,
        "observe_every": 1,
    },
}


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank)


def results_of(setup: Setup) -> dict[str, Any]:
    """What the optimizer was given, and what some updates left in the running statistics."""
    gradients = gradients_at_step(setup.step)
    for _ in range(UPDATES):
        setup.update()
    return {
        "gradients": [[g.cpu() for g in update] for update in gradients],
        "buffers": {name: b.cpu() for name, b in setup.student.named_buffers()},
        "losses": setup.step.losses.flush(over_ranks=True),
    }


def overflow_on_rank_one(device: torch.device, *, sync: bool) -> dict[str, Any]:
    setup = Setup(distill=KD, sync=sync, device=device, precision="fp16")
    setup.share = share_of(ranks.rank())
    for _ in range(20):
        setup.update()
    setup.step.health.flush()
    scale, before = setup.scale, setup.state()
    setup.update(factor=TOO_LARGE if ranks.rank() == 1 else 1.0)
    result = {
        "changed": list(changed(before, setup.state())),
        "skipped": dict(setup.step.health.flush().by_place),
        "scale": setup.scale / scale,
    }
    for _ in range(3):
        setup.update()
    result["after"] = setup.step.health.flush().total
    result["weights"] = [p.detach().cpu() for p in setup.student.parameters()]
    return result


def layers(make: Callable[[nn.Module], nn.Module], device: torch.device) -> dict[str, Any]:
    """BatchNorm of every kind and layout; `make` gives what takes the place of torch's layer."""
    found: dict[str, Any] = {}
    for form, (kind, settings, _) in FORMS.items():
        for case, (_, _, sides) in LAYERS.items():
            for last in {False, len(sides) == 2}:
                layer, settings = make(layer_of(case, kind)), {**settings, "channels_last": last}
                results = norm_layers.results_of(layer, case, kind, device=device, **settings)
                found[f"{form}, {case}{', channels last' if last else ''}"] = results
    return found


def waits(device: torch.device) -> dict[str, str]:
    """What was said of waits for the device in twenty updates with SyncBatchNorm, and in one wait."""
    found: dict[str, str] = {}
    for name, features in FEATURES.items():
        setup = Setup(sync=True, device=device, **features)
        setup.share = share_of(ranks.rank())
        setup.update()
        found[name] = said(lambda setup=setup: [setup.update() for _ in range(20)])
    return {**found, "one": said(lambda: torch.ones(1, device=device).item())}


def said(act: Callable[[], object]) -> str:
    torch.cuda.synchronize()
    try:
        with no_host_sync():
            act()
    except RuntimeError as error:
        return str(error)
    return "nothing"


def share_of(rank: int) -> slice:
    half = SIZE // 2
    return slice(rank * half, (rank + 1) * half)


def _rank(rank: int, folder: str) -> None:
    device = device_of(rank)
    torch.cuda.set_device(device)
    without_tf32()
    store = f"file://{folder}/store"
    dist.init_process_group("nccl", init_method=store, rank=rank, world_size=2, device_id=device)
    results: dict[str, Any] = {}
    for recompute in (False, True):
        setup = Setup(distill=KD, sync=True, recompute=recompute, device=device)
        setup.share = share_of(rank)
        results["recomputed" if recompute else "equal shares"] = results_of(setup)
    for case in OWN_KERNELS:
        setup = Setup(distill=KD, sync=True, device=device)
        setup.share = (slice(0, 40), slice(40, SIZE))[rank]
        with pytest.MonkeyPatch.context() as patch:
            if case == BY_NCCL:
                patch.setattr(peers, "inboxes", lambda *_: None)
            setup.step.choose_kernels(compiles=False, own_norms=True)
        norms = [layer for layer in setup.student.modules() if isinstance(layer, SyncBatchNorm)]
        assert all((layer.exchanges == Exchanges()) == (case == BY_NCCL) for layer in norms)
        setup.step.compile_for(40)  # not rank 1's
        results[case] = results_of(setup)
    for sync in (False, True):
        results[f"overflow {sync}"] = overflow_on_rank_one(device, sync=sync)
    results["layers"] = layers(norm_layers.sync, device)
    results["waits"] = waits(device)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def without_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One spawn for all tests; by rank and what was done."""
    folder = tmp_path_factory.mktemp("gpus")
    mp.spawn(_rank, (str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture
def alone(restored_determinism: None) -> dict[str, Any]:
    """One process with the joined batch and plain BatchNorm, nothing computed twice."""
    without_tf32()
    return results_of(Setup(distill=KD, device=device_of(0)))


@pytest.mark.parametrize("case", CASES)
def test_sync_batchnorm_has_the_statistics_of_the_joined_batch(
    case: str, on_ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for results in on_ranks:
        buffers = results[case]["buffers"]
        assert buffers.keys() == alone["buffers"].keys()
        for name, expected in alone["buffers"].items():
            if name.endswith("num_batches_tracked"):
                assert int(buffers[name]) == UPDATES
            torch.testing.assert_close(buffers[name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_gpus_have_the_gradients_of_the_joined_batch(
    case: str, on_ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    """The first update's, before rounding has moved the weights apart, and all losses."""
    first, second = (results[case] for results in on_ranks)
    for a, b in zip(first["gradients"], second["gradients"], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for mine, theirs in zip(first["gradients"][0], alone["gradients"][0], strict=True):
        assert relative(mine, theirs) <= GRADIENT
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("sync", [False, True])
def test_an_overflow_on_one_gpu_is_skipped_on_both(
    sync: bool, on_ranks: list[dict[str, Any]]
) -> None:
    found = [results[f"overflow {sync}"] for results in on_ranks]
    for result in found:
        assert result["changed"] == []
        assert result["skipped"] == {"ce": 1}
        assert result["scale"] == 0.5
        assert result["after"] == 0
    for a, b in zip(found[0]["weights"], found[1]["weights"], strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def layers_alone() -> dict[str, Any]:
    """torch's layers on the joined batch."""
    without_tf32()
    return layers(lambda layer: layer, device_of(0))


@pytest.mark.parametrize("form", FORMS)
def test_sync_batchnorm_is_batchnorm_of_the_joined_batch(
    form: str, on_ranks: list[dict[str, Any]], layers_alone: dict[str, Any]
) -> None:
    """Outputs, gradients and statistics, of unequal shares."""
    cases = [case for case in layers_alone if case.startswith(f"{form}, ")]
    assert len(cases) > len(LAYERS)
    for case in cases:
        found = [results["layers"][case] for results in on_ranks]
        check_joined(found, layers_alone[case], FORMS[form][2])


@pytest.mark.parametrize("name", FEATURES)
def test_sync_batchnorm_waits_for_nothing(name: str, on_ranks: list[dict[str, Any]]) -> None:
    assert [results["waits"][name] for results in on_ranks] == ["nothing"] * 2


def test_a_wait_would_be_seen(on_ranks: list[dict[str, Any]]) -> None:
    assert all("synchroniz" in results["waits"]["one"] for results in on_ranks)
