"""Two hundred trials in one driver and one reused process: neither may grow."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS, WARM, LOOKS = 200, 50, 5
GROWTH_MIB = {"driver": 24.0, "trials": 16.0}
"""Between the trials `WARM` and `TRIALS`. The driver holds what Tune, Optuna and the ledger know of each trial."""


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    rss_mib: float
    threads: Counter[str]
    files: Counter[str]
    mappings: dict[str, float] = field(compare=False)
    """Resident MiB by what is mapped."""


def held(process: psutil.Process) -> Held:
    names, files = Counter[str](), Counter[str]()
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has just ended
            names[(task / "comm").read_text().strip()] += 1
    if process.pid == psutil.Process().pid:
        names = Counter(thread.name for thread in threading.enumerate()) + names
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them, or one just closed
            files[str(link.readlink()).partition(":[")[0]] += 1
    resident = Counter[str]()
    for mapping in process.memory_maps():
        resident[mapping.path] += mapping.rss / 2**20
    return Held(process.memory_info().rss / 2**20, names, files, dict(resident))


def grown(before: Held, after: Held) -> list[str]:
    """What there is more of, in words."""
    told = [
        f"{count} more {kind} {name!r}"
        for kind in ("threads", "files")
        for name, count in (getattr(after, kind) - getattr(before, kind)).items()
    ]
    more = {name: size - before.mappings.get(name, 0.0) for name, size in after.mappings.items()}
    largest = sorted(more.items(), key=lambda item: -item[1])[:4]
    return [*told, *(f"{size:+.1f} MiB {name}" for name, size in largest if size > 0.5)]


def of_the_trials() -> psutil.Process:
    ours = psutil.Process().children(recursive=True) or list(psutil.process_iter())
    names = ("ray::ImplicitFunc", "ray::run_job")
    (found,) = [p for p in ours if any(p.cmdline()[:1] and n in p.cmdline()[0] for n in names)]
    return found


def test_nothing_leaks_over_two_hundred_trials(
    tmp_path: Path, configure: Any, conduct: Any, make_spy: Any
) -> None:
    spy = make_spy()
    early: dict[str, list[Held]] = {name: [] for name in GROWTH_MIB}
    late: dict[str, list[Held]] = {name: [] for name in GROWTH_MIB}

    def at_epoch(row: Any, record: Any) -> None:
        # Several times, since threads and files also come and go.
        for seen, first in ((early, WARM), (late, TRIALS - LOOKS)):
            if row.role == "trial" and first <= row.number < first + LOOKS:
                seen["driver"].append(held(psutil.Process()))
                seen["trials"].append(held(of_the_trials()))

    spy.at_epoch = at_epoch
    config = configure(
        tmp_path,
        study={"trials": TRIALS, "concurrency": 1, "sampler": "random"},
        data={"subset": 0.2},
        train={"epochs": 1},
        search={"optim.lr": {"loguniform": [0.01, 0.1]}},
    )
    left = conduct(config, spy)
    assert [row.state for row in left.results.of("trial")] == ["complete"] * TRIALS
    faults = list[str]()
    for name, limit in GROWTH_MIB.items():
        before, after = early[name], late[name]
        is_steady = (
            min(h.threads.total() for h in after) <= max(h.threads.total() for h in before)
            and min(h.files.total() for h in after) <= max(h.files.total() for h in before)
            and after[-1].rss_mib - before[0].rss_mib < limit
        )
        if not is_steady:
            what = "; ".join(grown(before[0], after[-1]))
            faults.append(f"the process of the {name} grew: {what}")
    assert not faults
