"""The records of the benchmarks of speed in one table, with hardware and date.

    python benchmarks/table.py                           all of benchmarks/results
    python benchmarks/table.py --only step --markdown    as README.md shows them
    python benchmarks/table.py runs/benchmarks benchmarks/results

Every figure is read from a record, <benchmark>-<device>.json, as the script of that name wrote it; records of other
names (of what students learn) have no part in this. Of two records of one name the first folder's is shown. What is
the same in all rows stands once, above the table.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"


class Figure(NamedTuple):
    """One line of a record, in words."""

    case: str
    """What all forms do."""
    form: str
    figure: str
    compared: str
    """With another form of the same run."""


class Row(NamedTuple):
    """A line of the table."""

    benchmark: str
    case: str
    form: str
    figure: str
    compared: str
    hardware: str
    torch: str
    date: str


def of_step(record: dict[str, Any]) -> Iterator[Figure]:
    """Forms of a step: how much faster than the first each is, and what it takes beside its two parts.

    Forms of the teacher alone are compared with the plain one.
    """
    for batch, forms in record["batches"].items():
        case = f"{_networks(record['settings'])}, batch {batch}"
        first = next(iter(forms))
        has_parts = any("of_parts" in own for own in forms.values())
        for name, own in forms.items():
            compared: list[str] = []
            if name != first and (not has_parts or "of_parts" in own):
                compared.append(f"{own['gain']:.2f}× as fast as {first}")
            if "of_teacher" in own:
                compared = [f"{own['of_teacher']:.2f}× the time of teacher alone"]
            if "of_parts" in own:
                compared.append(f"{own['of_parts']:.2f}× the time of student + teacher alone")
            yield Figure(case, name, f"{own['step_ms']:.2f} ms a step", ", ".join(compared))


def of_peers(record: dict[str, Any]) -> Iterator[Figure]:
    """Other libraries' steps: how much longer than the product's best each takes."""
    for batch, forms in record["batches"].items():
        case = f"{_networks(record['settings'])}, batch {batch}"
        last = list(forms)[-1]
        for name, own in forms.items():
            compared = "" if name == last else f"{own['of_last']:.2f}× the time of {last}"
            yield Figure(case, name, f"{own['step_ms']:.2f} ms a step", compared)


def of_stages(record: dict[str, Any]) -> Iterator[Figure]:
    """Methods: their time over that of KD."""
    case = _case(record) + (", compiled" if record["settings"].get("compile") else "")
    for name, own in record["methods"].items():
        compared = "" if name == "kd" else f"{own['of_kd']:.3f}× the time of kd"
        yield Figure(case, name, f"{own['step_ms']:.2f} ms a step", compared)


def of_kernels(record: dict[str, Any]) -> Iterator[Figure]:
    """What kernels of each kind take of a step, and its rate against that of a product of matrices."""
    settings = record["settings"]
    for batch, own in record["batches"].items():
        case = f"{_networks(settings)}, {settings['form']}, batch {batch}"
        rate = f"{own['step_tflops']:.0f} TFLOP/s"
        compared = f"{own['of_matmul']:.1%} of {record['matmul_tflops']:.0f}, a product of matrices"
        yield Figure(case, f"{own['step_ms']:.2f} ms a step", rate, compared)
        parts = {
            **own["kinds"],
            "beside others, counted twice": own["at_once"],
            "idle": own["idle"],
        }
        for name, ms in parts.items():
            yield Figure(case, name, f"{ms:.2f} ms", "")


def of_observing(record: dict[str, Any]) -> Iterator[Figure]:
    """How often gradients are measured: the time over that of never."""
    first = next(iter(record["forms"]))
    for name, own in record["forms"].items():
        compared = "" if name == first else f"{own['ratio']:.3f}× the time of {first}"
        yield Figure(_case(record), name, f"{own['step_ms']:.2f} ms a step", compared)


def of_scaling(record: dict[str, Any]) -> Iterator[Figure]:
    """Ranks alone and together, and what they come to beside one another."""
    case = f"{_case(record)} a rank"
    compared = {
        "all ranks": ("weak_scaling", "the rate of one rank alone, each"),
        "all ranks, kernel by kernel": (
            "weak_scaling_kernel_by_kernel",
            "the rate of one rank alone, each",
        ),
        "all ranks, SyncBatchNorm": ("sync_batchnorm", "the time without"),
        "all ranks, 4 micro-batches": ("of_a_micro_batch", "the time of a micro-batch alone"),
    }
    for name, own in record["forms"].items():
        ratio, words = compared.get(name, ("", ""))
        known = record["ratios"].get(ratio)
        of_it = "" if known is None else f"{known['ratio']:.3f}× {words}"
        yield Figure(case, name, f"{own['pictures_per_s']:.0f} pictures/s", of_it)
    exchanges = ", ".join(f"{n:g} with {parts}" for parts, n in record["exchanges"].items())
    words = f"{exchanges} micro-batches"
    yield Figure(case, "all-reduces of an update", words, "")


def of_teacher_cache(record: dict[str, Any]) -> Iterator[Figure]:
    """An epoch's updates with a teacher that is asked in every one, and once."""
    settings, (plain, once) = record["settings"], record["epoch_s"]
    case = f"{_networks(settings)}, {settings['method']}, {record['pictures']} pictures"
    yield Figure(case, plain, f"{record['epoch_s'][plain]:.2f} s an epoch", "")
    same = "the same" if record["equal"] else "other"
    gain = f"{record['gain']:.2f}× as fast, {same} results"
    yield Figure(case, once, f"{record['epoch_s'][once]:.2f} s an epoch", gain)


def of_memory(record: dict[str, Any]) -> Iterator[Figure]:
    """Peaks without and with activation checkpointing."""
    settings = record["settings"]
    for precision, own in record["precisions"].items():
        case = f"{settings['student']}, {precision}, batch {settings['batch']}"
        yield Figure(case, "all activations kept", f"{own['peak_gib']:.2f} GiB", "")
        checkpointed = f"{own['peak_gib_checkpointed']:.2f} GiB"
        yield Figure(case, "activation checkpointing", checkpointed, f"{own['saved']:.1%} less")


def of_trials(record: dict[str, Any]) -> Iterator[Figure]:
    """What a trial costs beside its training."""
    for count, found in record["trials"].items():
        for way, own in found["ways"].items():
            cost = f"{own['cost_a_trial_s']:.2f} s a trial"
            beside = f"beside {found['training_s']:.2f} s of training"
            yield Figure(f"{count} trials", way, cost, beside)
    if own := record.get("efficiency"):
        case = f"{own['trials']} trials of {own['trial_s']:.0f} s, two at a time"
        whole = f"{own['of_the_study']:.1%} with its start and end"
        yield Figure(case, "study", f"{own['between_trials']:.1%} of the time in training", whole)


def of_scale(record: dict[str, Any]) -> Iterator[Figure]:
    """What a driver takes with many trials, and with many places."""
    if own := record.get("trials"):
        case, last = f"{own['trials']} trials, one at a time", own["at_the_end"]
        grown = f"{own['grown']:.1%} more than early on"
        yield Figure(case, "the driver's memory", f"{own['rss_mib']['largest']:.0f} MiB", grown)
        early = f"{own['around_the_100th']['driver_cpu_s']:.3f} s around the 100th trial"
        yield Figure(case, "the driver's CPU", f"{last['driver_cpu_s']:.3f} s a trial", early)
    if own := record.get("places"):
        case = f"{own['places']} trials at a time, epochs of {own['epoch_s']:g} s"
        rate = f"at {own['results_a_second']:.0f} results/s"
        cost = f"{1000 * own['driver_cpu_s_a_result']:.0f} ms of CPU a result"
        yield Figure(case, "the driver's CPU", cost, rate)


def of_packing(record: dict[str, Any]) -> Iterator[Figure]:
    """Trials at once on one device, and whether their results are those of trials alone."""
    settings = record["settings"]
    case = f"{settings['trials']} trials of {settings['config']}"
    for way, own in record["ways"].items():
        if "error" in own:
            continue
        compared = ""
        if "throughput" in own:
            same = "the same" if own["unchanged"] else "other"
            compared = f"{own['throughput']:.2f}× the rate, {same} results"
        yield Figure(case, way, f"{own['trials_per_hour']:.0f} trials an hour", compared)


def of_logging(record: dict[str, Any]) -> Iterator[Figure]:
    """Points a second into MLflow, and what an epoch costs the driver."""
    wall, case = record["wall"], record["what"]
    yield Figure(case, "log_batch alone", f"{wall['median_bare']} points/s", "")
    ratio = f"{wall['median_ratio_of_a_round']:.2f}× the rate of log_batch alone"
    yield Figure(case, "the writer", f"{wall['median_writer']} points/s", ratio)
    cost = record["driver_ms_per_epoch"]["spool_median"]
    yield Figure("an epoch's report", "the driver's thread", f"{cost:.3f} ms", "")


READERS: dict[str, Callable[[dict[str, Any]], Iterable[Figure]]] = {
    "step": of_step,
    "peers": of_peers,
    "kernels": of_kernels,
    "stages": of_stages,
    "observing": of_observing,
    "memory": of_memory,
    "teacher-cache": of_teacher_cache,
    "scaling": of_scaling,
    "trials": of_trials,
    "scale": of_scale,
    "packing": of_packing,
    "logging": of_logging,
}


def rows_of(name: str, record: dict[str, Any]) -> list[Row]:
    """The lines of the record <benchmark>-<device>, or <benchmark>-<ranks>x-<device>."""
    benchmarks = "|".join(READERS)
    match = re.fullmatch(rf"(?P<benchmark>{benchmarks})-((?P<ranks>\d+)x-)?(?P<device>.+)", name)
    if match is None:
        raise ValueError(f"a record must be called <benchmark>-<device>, but got {name}")
    benchmark, ranks, where = match["benchmark"], int(match["ranks"] or 1), record["environment"]
    hardware = f"{where['cpus']} CPUs"  # they decide where kernels are launched one by one
    if match["device"] != "cpu":
        # The environment lists all of a machine's, of which but one was used.
        gpu = where["gpus"][0] if ranks == 1 else f"{ranks} × {where['gpus'][0]}"
        hardware = f"{gpu}, {hardware}"
    version = f"torch {where['packages']['torch']}"
    figures = READERS[benchmark](record)
    return [Row(benchmark, *each, hardware, version, where["date"]) for each in figures]


def read(folders: Sequence[Path], only: Sequence[str]) -> list[Row]:
    """The lines of all records in the folders, benchmark by benchmark."""
    found: list[Row] = []
    for benchmark in only:
        paths = [path for folder in folders for path in sorted(folder.glob(f"{benchmark}-*.json"))]
        first = {path.stem: path for path in reversed(paths)}
        for name in sorted(first):
            found += rows_of(name, json.loads(first[name].read_text("utf-8")))
    return found


def columns(rows: Sequence[Row]) -> tuple[str, list[list[str]]]:
    """What all rows share, as a line, and the table of the rest with the names of its columns on top."""
    shared = [len(rows) > 1 and len(set(values)) == 1 for values in zip(*rows, strict=True)]
    caption = [value for value, is_shared in zip(rows[0], shared, strict=True) if is_shared]
    lines = [
        [value for value, is_shared in zip(row, shared, strict=True) if not is_shared]
        for row in (Row._fields, *rows)
    ]
    return " · ".join(filter(None, caption)), lines


def as_text(rows: Sequence[Row]) -> str:
    """For a terminal: a benchmark and a case are named in the first of their lines alone."""
    caption, (head, *lines) = columns(rows)
    named = sum(name in ("benchmark", "case") for name in head)
    shown, above = [head], [""] * len(head)
    for line in lines:
        shown.append([*(_unless_said(line, above, at) for at in range(named)), *line[named:]])
        above = line
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    ]
    return "\n".join([*([caption, ""] if caption else []), *padded])


def as_markdown(rows: Sequence[Row]) -> str:
    """For a page."""
    caption, (head, *lines) = columns(rows)
    table = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join([*([caption, ""] if caption else []), *table])


def main() -> None:
    """Read and print."""
    layout = argparse.RawTextHelpFormatter
    command = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    command.add_argument("folders", type=Path, nargs="*", default=[RESULTS])
    command.add_argument("--only", nargs="+", choices=list(READERS), default=list(READERS))
    command.add_argument("--markdown", action="store_true")
    options = command.parse_args()
    if not (rows := read(options.folders, options.only)):
        command.error(f"no record of {', '.join(options.only)} in {options.folders}")
    print(as_markdown(rows) if options.markdown else as_text(rows))


def _unless_said(line: list[str], above: list[str], at: int) -> str:
    return "" if line[: at + 1] == above[: at + 1] else line[at]


def _networks(settings: dict[str, Any]) -> str:
    return f"{settings['teacher']} → {settings['student']}, {settings['precision']}"


def _case(record: dict[str, Any]) -> str:
    return f"{_networks(record['settings'])}, batch {record['settings']['batch']}"


if __name__ == "__main__":
    main()
