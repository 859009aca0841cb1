"""What a trial sets for its whole process."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from tests.trainable.conftest import MakeConfig
from trainable.engine.settings import apply_settings

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.mark.parametrize(
    ("own", "is_then"),
    [(None, ":4096:8"), (":4096:8", ":4096:8"), (":16:8", ":16:8"), (":4096:2:16:8", ":4096:8")],
)
def test_a_process_can_have_repeatable_matrix_products_after_any_trial(
    own: str | None, is_then: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch reads the variable once."""
    monkeypatch.setenv(WORKSPACE, own or "")  # put back, whatever is set
    if own is None:
        monkeypatch.delenv(WORKSPACE)
    try:
        for deterministic in (False, True, False):
            apply_settings(make_config(train={"deterministic": deterministic}))
            assert os.environ[WORKSPACE] == is_then
    finally:
        apply_settings(make_config())


@pytest.mark.skipif(
    torch.version.cuda is None or torch.cuda.is_available(),
    reason="is for a torch with CUDA on a machine without a GPU",
)
def test_one_thread_that_does_not_end_traces_before_all_others(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.11 crashes in the next thread to trace once the first has ended; each trial has its own."""
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    for _ in range(2):
        trial = threading.Thread(target=apply_settings, args=(make_config(),))
        trial.start()
        trial.join()
    assert [thread.name for thread in threading.enumerate()].count("traced-first") == 1
