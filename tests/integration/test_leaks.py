"""Two hundred trials in one driver and one reused process: neither may grow."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS, WARM = 200, 50
GROWTH_MIB = {"driver": 24.0, "trials": 12.0}
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
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    names = Counter((task / "comm").read_text().strip() for task in tasks)
    if process.pid == psutil.Process().pid:
        names = Counter(thread.name for thread in threading.enumerate()) + names
    files = Counter[str]()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # the one that lists them, or one just closed
        files[target.partition(":[")[0] if ":[" in target else target] += 1
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
    seen: dict[int, dict[str, Held]] = {}

    def at_epoch(row: Any, record: Any) -> None:
        if row.role == "trial" and row.number in (WARM, TRIALS - 1):
            # Between two trials threads come and go; while one waits for the driver they are all there.
            seen[row.number] = {"driver": held(psutil.Process()), "trials": held(of_the_trials())}

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
        before, after = seen[WARM][name], seen[TRIALS - 1][name]
        print(name, before.rss_mib, after.rss_mib, grown(before, after), file=sys.stderr)
        is_steady = (
            sum(after.threads.values()) == sum(before.threads.values())
            and sum(after.files.values()) == sum(before.files.values())
            and after.rss_mib - before.rss_mib < limit
        )
        if not is_steady:
            faults.append(f"the process of the {name}: {'; '.join(grown(before, after))}")
    assert not faults
