"""How numbers, durations and hyperparameters are written for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from study.results import TrialRow, Value

UNKNOWN = "—"

_DECOMPOSITION = "distill.decomposition"
_DECOMPOSITION_PARTS = ("distill.k", "distill.n")
_DECOMPOSITION_NAME = "k/n"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with two decimals, without the sign."""
    return UNKNOWN if share is None else f"{100 * share:.2f}"


def counted(count: int, what: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count} {what}{'s' * (count != 1)}"


def duration(seconds: float | None) -> str:
    """`8 s`, `4 min 05 s` or `2 h 07 min`."""
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int) -> str:
    """Bytes as `830 KiB`, `14 MiB` or `2.3 GiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return (
                f"{count / unit:.1f} {name}" if count < 10 * unit else f"{count / unit:.0f} {name}"
            )
    return f"{count / 2**10:.0f} KiB"


def value_text(value: Value | None) -> str:
    """A hyperparameter; floats to three significant digits."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def short_names(rows: Iterable[TrialRow]) -> dict[str, str]:
    """A column name for each searched path, in the order in which they were met.

    The name is the end of the path that no other path shares; a decomposition stands for its k
    and n under the name `k/n`.
    """
    paths = list(dict.fromkeys(path for row in rows for path in row.params))
    if _DECOMPOSITION in paths:
        paths = [path for path in paths if path not in _DECOMPOSITION_PARTS]
    names = {path: _unique_end(path, paths) for path in paths}
    if _DECOMPOSITION in names:
        names[_DECOMPOSITION] = _DECOMPOSITION_NAME
    return names


def params_text(params: Mapping[str, Value], names: Mapping[str, str]) -> str:
    """`lr=0.05, k/n=5/2`: the parameters that are set, by their short names."""
    return ", ".join(
        f"{name}={value_text(params[path])}" for path, name in names.items() if path in params
    )


def one_line(text: str | None) -> str:
    """A reason that may span lines, on one."""
    return " ".join(text.split()) if text else "no reason was recorded"


def _unique_end(path: str, paths: list[str]) -> str:
    parts = path.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, 0, -1))
    shared = [f".{other}" for other in paths if other != path]
    return next((end for end in ends if not any(o.endswith(f".{end}") for o in shared)), path)
