"""The spool on disk: what was added is read in order, once, by whoever comes next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from study.entries import Line, Points
from study.spool import Spool, unsent


def line(number: int, *runs: str) -> Line:
    entries = [Points(run=run, metrics={"a": 0.1}, step=number, time_ms=7) for run in runs]
    return Line(number=number, entries=tuple(entries))


def numbers(lines: list[Line]) -> list[int]:
    return [one.number for one in lines]


def test_lines_are_read_as_they_were_added(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        lines = [line(1, "trial 0"), line(2, "trial 0", "study"), line(3, "trial 1")]
        for one in lines:
            spool.add(one)
        assert spool.read(2) == lines[:2]
        spool.add(line(4, "study"))
        assert spool.read(100) == [lines[2], line(4, "study")]
        assert spool.read(100) == []
        assert unsent(tmp_path / "spool") == 5


def test_a_line_is_added_once(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for number in (1, 1, 2, 1):
            spool.add(line(number, "study"))
        assert numbers(spool.read(10)) == [1, 2]
        spool.mark("study", 2)
        spool.empty()
        spool.add(line(2, "study"))
    with Spool(tmp_path) as spool:
        spool.add(line(2, "study"))
        assert spool.read(10) == []
        assert (spool.last_number, spool.inherited) == (2, 2)


def test_the_next_driver_gets_what_was_not_sent(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for number, run in enumerate(["a", "b", "a", "b", "a"], start=1):
            spool.add(line(number, run))
        assert len(spool.read(3)) == 3
        spool.mark("a", 3)
        study = spool.study_id
    assert unsent(tmp_path) == 3
    with Spool(tmp_path) as spool:
        assert numbers(spool.read(10)) == [2, 4, 5]
        assert (spool.inherited, spool.study_id) == (5, study)
        assert (spool.reached("a"), spool.reached("b")) == (3, 0)


def test_lines_are_held_back_until_they_are_released(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.released = 1
        for number in (1, 2, 3):
            spool.add(line(number, "study"))
        assert numbers(spool.read(10)) == [1]
        assert spool.read(10) == []
        spool.mark("study", 1)
        spool.empty()  # it is not
        spool.released = 3
        assert numbers(spool.read(10)) == [2, 3]


def test_a_line_of_two_runs_is_kept_until_both_have_theirs(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.add(line(1, "trial 0", "study"))
        spool.mark("trial 0", 1)
    assert unsent(tmp_path) == 1
    with Spool(tmp_path) as spool:
        assert numbers(spool.read(10)) == [1]
        spool.mark("study", 1)
    assert unsent(tmp_path) == 0


def test_it_is_emptied_only_when_all_was_read(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.add(line(1, "a"))
        spool.add(line(2, "a"))
        assert len(spool.read(1)) == 1
        spool.empty()
        assert numbers(spool.read(10)) == [2]
        spool.mark("a", 2)
        spool.empty()
        assert (tmp_path / "lines.jsonl").stat().st_size == 0
        spool.add(line(3, "a"))
        assert numbers(spool.read(10)) == [3]


@pytest.mark.parametrize("torn", [b'{"number":2,"entr', b'{"number":2', b"\0\0\0\0"])
def test_half_a_line_is_no_line_and_spoils_no_other(tmp_path: Path, torn: bytes) -> None:
    with Spool(tmp_path) as spool:
        spool.add(line(1, "a"))
    with (tmp_path / "lines.jsonl").open("ab") as file:
        file.write(torn)
    assert unsent(tmp_path) == 1
    with Spool(tmp_path) as spool:
        spool.add(line(2, "a"))
        assert numbers(spool.read(10)) == [1, 2]


def test_half_a_line_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    texts = [line(1, "a").model_dump_json(), '{"number":2,', line(3, "a").model_dump_json()]
    (tmp_path / "lines.jsonl").write_text("\n".join(texts) + "\n")
    with Spool(tmp_path) as spool:
        assert numbers(spool.read(10)) == [1, 3]


def test_a_line_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        text = line(1, "a").model_dump_json().encode()
        with (tmp_path / "lines.jsonl").open("ab", buffering=0) as file:
            file.write(text[:9])
            assert spool.read(10) == []
            file.write(text[9:] + b"\n")
        assert numbers(spool.read(10)) == [1]


def test_ids_and_refusals_are_remembered(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.name_runs({"study": "p"})
        spool.name_runs({"trial 0": "c"})
        spool.count_refused(3)
        spool.count_refused(1)
    with Spool(tmp_path) as spool:
        assert dict(spool.runs) == {"study": "p", "trial 0": "c"}
        assert spool.refused == 4


def test_nothing_is_unsent_where_there_is_no_spool(tmp_path: Path) -> None:
    assert unsent(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()


def test_a_killed_driver_leaves_all_lines_that_it_added(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from study.entries import Line, Points\n"
        "from study.spool import Spool\n"
        "spool = Spool(pathlib.Path(sys.argv[1]))\n"
        "for number in range(1, 10**9):\n"
        "    entry = Points(run='a', metrics={'a': 1.0}, step=number, time_ms=7)\n"
        "    spool.add(Line(number=number, entries=(entry,)))\n"
        "    if number % 100 == 0:\n"
        "        print(number, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        said = [int(driver.stdout.readline()) for _ in range(5)][-1]
        driver.send_signal(signal.SIGKILL)
    with Spool(tmp_path) as spool:
        found = numbers(spool.read(10**9))
    assert found == list(range(1, len(found) + 1))
    assert len(found) >= said == 500
