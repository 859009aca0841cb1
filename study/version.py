"""Which kd-study this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def kd_study_version() -> str:
    """The version of kd-study, or that its code lies here uninstalled."""
    try:
        return version("kd-study")
    except PackageNotFoundError:
        return "uninstalled"
