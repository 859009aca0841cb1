"""What every test needs: a quiet environment of its own, and one small Ray cluster on request."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version

# Jobs look for kd-study as a shell does; Ray and MLflow read some of these once, at import.
os.environ |= {
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "RAY_AUTH_MODE": "disabled",  # otherwise ray.init() may leave a token in the home folder
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the poll for reports, 2 s by default
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

import torch
from hypothesis import settings

from tests import host_sync


def can_interpret() -> bool:
    """Whether Triton's kernels can run on a CPU: before 3.7 its loops count as NumPy 2.4 no longer lets them."""
    return (
        find_spec("triton") is None
        or Version(version("numpy")) < Version("2.4")
        or Version(version("triton")) >= Version("3.7")
    )


if not torch.cuda.is_available() and can_interpret():
    os.environ["TRITON_INTERPRET"] = "1"
# How long an example takes says how busy the machine is: `--timeout` bounds a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def node_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded data goes to a folder of this session, never to the user's cache."""
    cache = tmp_path_factory.mktemp("node-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_STUDY_CACHE", str(cache))
        yield cache


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_arrives() -> None:
    """Also in a shell's background, where it is ignored by all that is started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def torch_threads() -> None:
    """One thread: golden numbers depend on the count, and the machines that run tests are small."""
    torch.set_num_threads(1)


@pytest.fixture
def no_host_sync() -> Callable[[], AbstractContextManager[None]]:
    """A context in which an operation that waits for the CUDA device raises."""
    return host_sync.no_host_sync


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray cluster with two CPUs on this machine; the value is its address."""
    import ray

    context = ray.init(
        address="local",  # whatever else runs on this machine
        num_cpus=2,
        num_gpus=0,
        namespace="kd-study-tests",
        # The dashboard stays on: without it a crashed trial driver can leave its placement group.
        include_dashboard=True,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield context.address_info["address"]
    ray.shutdown()
