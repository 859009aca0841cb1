"""Weights on disk."""

from __future__ import annotations

import argparse
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from trainable.errors import CheckpointError
from trainable.networks.blocks import BlockNetwork
from trainable.networks.weights import load_weights, save_weights

PLACE = "teacher.checkpoint"


def changed(student: BlockNetwork) -> torch.nn.Module:
    network = student.network
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(1)
    return network


def test_a_safetensors_round_trip_is_exact(student: BlockNetwork, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    save_weights(student.network, tmp_path / "deep" / "student.safetensors")
    load_weights(changed(student), tmp_path / "deep" / "student.safetensors", config_path=PLACE)
    after = student.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["student.safetensors"]


State = dict[str, torch.Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def narrower(state: State) -> State:
    """The same names with other shapes."""
    return {name: value[:1] if value.ndim else value for name, value in state.items()}


LOOPS: dict[str, Callable[[State], object]] = {
    "alone": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    **{
        name: lambda state, name=name: {name: state, "epoch": torch.tensor(3)}
        for name in ("model", "net", "network", "ema", "model_state_dict", "teacher", "best")
    },
    "a script's arguments and best accuracy": lambda state: {
        "model": state,
        "args": argparse.Namespace(lr=0.1, name="resnet"),
        "best": np.float64(0.75),
        "epoch": np.int64(3),
    },
    "nested": lambda state: {"checkpoint": {"model": {"state": state}}, "lr": 0.1},
    "an optimizer": lambda state: {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}, 1: {"exp_avg": torch.zeros(3)}}},
        "model": state,
    },
    "DataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "DataParallel, compiled": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "a compiled part": lambda state: {
        (f"_orig_mod.{name}" if name.startswith("fc") else name): v for name, v in state.items()
    },
    "AveragedModel": lambda state: {
        "n_averaged": torch.tensor(5),
        **prefixed(state, "module."),
    },
    "Lightning": lambda state: {
        "state_dict": {**prefixed(state, "net."), "loss.weight": torch.ones(10)}
    },
    "a pair by shape": lambda state: {"student": narrower(state), "teacher": state},
    "a pair by shape in one": lambda state: {
        **prefixed(narrower(state), "student."),
        **prefixed(state, "teacher."),
    },
}
"""What other people's loops save."""


@pytest.mark.parametrize("loop", LOOPS)
def test_state_dicts_of_other_code_are_found(
    loop: str, student: BlockNetwork, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in student.network.state_dict().items()}
    torch.save(LOOPS[loop](state), tmp_path / "teacher.pth")
    load_weights(changed(student), tmp_path / "teacher.pth", config_path=PLACE)
    after = student.network.state_dict()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_the_names_in_safetensors_may_begin_alike_too(
    student: BlockNetwork, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in student.network.state_dict().items()}
    safetensors.torch.save_file(prefixed(state, "module."), tmp_path / "teacher.safetensors")
    load_weights(changed(student), tmp_path / "teacher.safetensors", config_path=PLACE)
    after = student.network.state_dict()
    assert all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("loop", "places"),
    [
        (
            lambda state: {"state_dict": state, "state_dict_ema": state},
            "state_dict, state_dict_ema",
        ),
        (
            lambda state: {"kd": {**prefixed(state, "student."), **prefixed(state, "teacher.")}},
            r"kd\.student, kd\.teacher",
        ),
    ],
)
def test_of_several_that_fit_none_is_taken(
    loop: Callable[[State], object], places: str, student: BlockNetwork, tmp_path: Path
) -> None:
    torch.save(loop(student.network.state_dict()), tmp_path / "both.pth")
    told = rf"^{PLACE}: .*both\.pth must hold one state dict that fits .*, got '{places}'; save the"
    with pytest.raises(CheckpointError, match=told):
        load_weights(student.network, tmp_path / "both.pth", config_path=PLACE)


def test_where_none_fits_the_nearest_is_told_about(student: BlockNetwork, tmp_path: Path) -> None:
    state = prefixed(student.network.state_dict(), "module.")
    del state["module.fc.bias"]
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    torch.save({"optimizer": optimizer, "model": state}, tmp_path / "teacher.pth")
    with pytest.raises(CheckpointError, match=r"the network: 1 missing \(fc\.bias\); name"):
        load_weights(student.network, tmp_path / "teacher.pth", config_path=PLACE)


class Wrapping(torch.nn.Module):
    """With a submodule of the name that DataParallel gives, beside another or alone."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.module = torch.nn.Linear(2, 2)
        self.head = None if alone else torch.nn.Linear(2, 2)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("alone", [False, True])
def test_a_submodule_may_be_called_module(alone: bool, prefix: str, tmp_path: Path) -> None:
    one, other = Wrapping(alone=alone), Wrapping(alone=alone)
    state = {f"{prefix}{name}": value for name, value in one.state_dict().items()}
    torch.save(state, tmp_path / "teacher.pt")
    load_weights(other, tmp_path / "teacher.pt", config_path=PLACE)
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_does_not_fit_is_named(student: BlockNetwork, tmp_path: Path) -> None:
    state = dict(student.network.state_dict())
    state["fc.weight"] = torch.zeros(7, 32)
    state["extra"] = state.pop("fc.bias")
    torch.save(state, tmp_path / "teacher.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(student.network, tmp_path / "teacher.pth", config_path=PLACE)
    message = str(caught.value)
    assert message.startswith(f"{PLACE}: ")
    assert "fc.weight is (7, 32) and must be (10, 32)" in message
    assert "1 missing (fc.bias)" in message
    assert "1 unexpected (extra)" in message


def test_counts_that_old_files_lack_are_not_missed(student: BlockNetwork, tmp_path: Path) -> None:
    state = {n: v for n, v in student.network.state_dict().items() if not n.endswith("_tracked")}
    state = {name: value.clone() for name, value in state.items()}
    torch.save(state, tmp_path / "teacher.pth")
    load_weights(changed(student), tmp_path / "teacher.pth", config_path=PLACE)
    after = student.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert after["bn1.num_batches_tracked"] == 1  # as `changed` left it


def test_weights_that_are_not_finite_are_named(student: BlockNetwork, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in student.network.state_dict().items()}
    state["fc.bias"][3] = float("nan")
    torch.save(state, tmp_path / "teacher.pth")
    with pytest.raises(CheckpointError, match=r"1 not finite \(fc.bias\)"):
        load_weights(student.network, tmp_path / "teacher.pth", config_path=PLACE)


class Masked(torch.nn.Linear):
    """With a buffer that is meant to have infinities."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


def test_infinities_that_a_network_has_itself_are_no_fault(tmp_path: Path) -> None:
    save_weights(Masked(), tmp_path / "a.safetensors")
    load_weights(Masked(), tmp_path / "a.safetensors", config_path=PLACE)
    broken = Masked()
    broken.get_buffer("mask")[1, 0] = torch.nan
    save_weights(broken, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"1 not finite \(mask\)"):
        load_weights(Masked(), tmp_path / "b.safetensors", config_path=PLACE)


def test_networks_that_read_the_version_of_their_weights_are_loaded(tmp_path: Path) -> None:
    one, other = (torchvision.models.mnasnet0_5(num_classes=10) for _ in range(2))
    save_weights(one, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors", config_path=PLACE)
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("pickle ran",)


def half_of(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def saved(held: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


STATE = torch.nn.Linear(99, 99).state_dict()
OTHERS: dict[str, tuple[bytes | None, str]] = {
    "code": (saved({"weight": _Evil()}), "it holds objects such as print, which are never loaded"),
    "network": (saved(torch.nn.Linear(2, 2)), r"such as torch\.nn\.modules\.linear\.Linear, which"),
    "program": (None, "it is a TorchScript program; save it again with torch.save"),
    "number": (saved(3), "must hold a state dict, names with their tensors; save one with torch"),
    "list": (saved([torch.zeros(2)]), "must hold a state dict"),
    "absent": (None, r"must be a file, got .*; check the path"),
    "empty": (b"", "it is empty; fetch or save it again"),
    "text": (b"no weights here", "it is text; name the file that torch.save or safetensors has"),
    "text cut in a letter": (("x" + "ü" * 300).encode(), "it is text"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>Not found", "it is a web page; download the file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "run git lfs pull"),
    "noise": (bytes(range(255, 0, -1)), "it is none, or damaged; fetch or save it again"),
    "half of torch's": (half_of(saved(STATE)), "damaged, or only the beginning of a file; fetch"),
    "half of safetensors'": (
        half_of(safetensors.torch.save(STATE)),
        "damaged, or only the beginning of a file; fetch",
    ),
}
"""What files hold, and what is said of them."""


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", OTHERS)
def test_other_files_are_refused_with_what_they_seem_to_be_and_never_run(
    content: str,
    suffix: str,
    student: BlockNetwork,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    held, words = OTHERS[content]
    path = tmp_path / f"bad.{suffix}"
    if content == "program":
        with warnings.catch_warnings(action="ignore"):  # that such programs are deprecated
            held = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save_to_buffer()
    if held is not None:
        path.write_bytes(held)
    with pytest.raises(CheckpointError, match=rf"^{PLACE}: .*{words}") as caught:
        load_weights(student.network, path, config_path=PLACE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "pickle ran" not in capfd.readouterr().out


def test_numbers_that_an_old_numpy_has_saved_stand_beside_weights(
    student: BlockNetwork, tmp_path: Path
) -> None:
    state = {name: value + 1 for name, value in student.network.state_dict().items()}
    torch.save({"model": state, "best": np.float64(0.75)}, tmp_path / "new.pth")
    new, old = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as one,
        zipfile.ZipFile(tmp_path / "old.pth", "w") as other,
    ):
        for item in one.infolist():
            held = one.read(item)
            if item.filename.endswith("data.pkl"):
                assert new in held
                held = held.replace(new, old)
            other.writestr(item, held)
    load_weights(student.network, tmp_path / "old.pth", config_path=PLACE)
    assert all(torch.equal(v, state[n]) for n, v in student.network.state_dict().items())


def test_a_file_is_read_by_what_is_in_it_whatever_it_is_called(
    student: BlockNetwork, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in student.network.state_dict().items()}
    torch.save(state, tmp_path / "a.safetensors")
    save_weights(student.network, tmp_path / "b.pt")
    for name in ("a.safetensors", "b.pt"):
        load_weights(changed(student), tmp_path / name, config_path=PLACE)
        after = student.network.state_dict()
        assert all(torch.equal(after[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        KeyboardInterrupt(),
        OSError(5, "Input/output error"),
    ],
)
def test_no_file_is_to_blame_for_memory_disks_and_interrupts(
    error: BaseException, student: BlockNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    torch.save(student.network.state_dict(), tmp_path / "good.pth")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as caught:
        load_weights(student.network, tmp_path / "good.pth", config_path=PLACE)
    assert caught.value is error
