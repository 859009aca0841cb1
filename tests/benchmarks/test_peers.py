from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Script = Callable[[str], Any]
SETTINGS = Namespace(
    device="cpu", precision="fp32", student="mini_resnet_10_4", teacher="mini_resnet_10_8"
)


def test_a_library_that_is_missing_is_left_out(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = script("peers")
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "torchdistill" else name)
    monkeypatch.setattr(peers, "version", lambda name: f"{name} 1")
    assert peers.libraries() == {"timm": "timm 1"}
    names = list(peers.forms())
    assert names[:6] == ["two passes", "timm", "timm channels_last", *peers.COMPILED]
    assert names[6:] == peers.OURS


@pytest.mark.parametrize("name", ["shared", "channels_last", "eager", "timm", "torchdistill"])
def test_forms_take_the_same_update(
    script: Script, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    peers, step = script("peers"), script("step")
    if name in peers.PEERS:
        pytest.importorskip(name)
    form = {**step.FORMS, **peers.PEERS}[name]
    plainest = trained(step, step.FORMS["two passes"], monkeypatch)
    torch.testing.assert_close(trained(step, form, monkeypatch), plainest)


def trained(step: Any, form: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The student's parameters after two updates."""
    case = step.case_of(SETTINGS, 8)
    with monkeypatch.context() as patch:
        patch.setattr(copy, "deepcopy", lambda network: network)
        update = form(case)
    before = [parameter.detach().clone() for parameter in case.student.parameters()]
    for _ in range(2):
        update()
    after = list(case.student.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return [parameter.detach() for parameter in after]
