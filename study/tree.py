"""Configs as plain trees: dotted paths, `--set`, and the places of files."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from study.space import KINDS
from study.yaml import parse_yaml
from trainable.errors import ConfigError, Problem, input_error

Tree = dict[str, Any]
"""A config as YAML gives it, before it is parsed."""

_MAPPINGS = ("search", "study.baseline", "distill.feature_weights")
"""Mappings whose keys may hold dots themselves."""
_PLACES = (("storage", "path"), ("data", "root"), ("teacher", "checkpoint"))
STORAGE = "./runs"
"""Folder of all studies, unless the config says otherwise."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings → dotted paths; lists are values. Keys that hold dots themselves stay as they are."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            result |= flat(value, f"{path}.")
        else:
            result[path] = value
    return result


def with_values(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """A copy of a tree with values at dotted paths; missing sections are made."""
    result = copy.deepcopy(tree)
    for path, value in values.items():
        put(result, path.split("."), value)
    return result


def put(tree: Tree, keys: Sequence[str], value: Any) -> None:
    """Put a value in its place, making the sections that it needs."""
    place = tree
    for section in keys[:-1]:
        if not isinstance(place.get(section), dict):
            place[section] = {}
        place = place[section]
    place[keys[-1]] = value


def take(tree: Tree, keys: Sequence[str]) -> None:
    """Take out what stands at a place, or the list that holds it."""
    place: Any = tree
    for number, key in enumerate(keys):
        if not isinstance(place, dict) or key not in place:
            return
        if number == len(keys) - 1 or not isinstance(place[key], dict):
            del place[key]
            return
        place = place[key]


def with_settings(tree: Tree, settings: Sequence[str]) -> Tree:
    """A copy of a tree with `path=value` settings applied in their order; ConfigError has all that are wrong."""
    result = copy.deepcopy(tree)
    found: list[Problem] = []
    for setting in settings:
        try:
            put(result, *_read_setting(setting))
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(found)
    return result


def with_absolute_paths(tree: Tree) -> Tree:
    """A copy with absolute places of files: Ray changes the folder of its workers."""
    result = copy.deepcopy(tree)
    storage = result.setdefault("storage", {})
    if isinstance(storage, dict):
        storage.setdefault("path", STORAGE)
    for section, key in _PLACES:
        place = result.get(section)
        if isinstance(place, dict) and isinstance(place.get(key), str):
            place[key] = _absolute(place[key])
    return result


def is_uri(place: str) -> bool:
    """Whether the place of a file is written as a URI."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is not None


def _absolute(place: str) -> str:
    """A folder's or a file's absolute path, which may be given as `file:///path`; other URIs stay as they are."""
    if place.startswith("file:///"):
        place = unquote(place.removeprefix("file://"))
    return place if is_uri(place) else os.path.abspath(os.path.expanduser(place))


def relative_places(tree: Tree) -> list[Problem]:
    """The places of files that another machine would look for elsewhere."""
    found: list[Problem] = []
    for section, key in _PLACES:
        values = tree.get(section)
        place = values.get(key) if isinstance(values, dict) else None
        is_missing = place is None and (section, key) == ("storage", "path")
        if is_missing or (isinstance(place, str) and not (os.path.isabs(place) or is_uri(place))):
            path = f"{section}.{key}"
            rule = "must be an absolute path, the same on all nodes of the cluster"
            remedy = f"e.g. --set {path}=/shared/{Path(place or STORAGE).name}"
            found.append(Problem(path, rule, remedy, "nothing" if is_missing else repr(place)))
    for section, key in (("storage", "optuna"), ("tracking", "uri")):
        values = tree.get(section)
        url = values.get(key) if isinstance(values, dict) else None
        if isinstance(url, str) and re.match(r"sqlite:///(?!/)", url):
            rule = "must have an absolute path, which has a fourth slash"
            remedy = f"e.g. sqlite:////shared/{url.removeprefix('sqlite:///')}"
            found.append(Problem(f"{section}.{key}", rule, remedy, repr(url)))
    return found


def _read_setting(setting: str) -> tuple[list[str], Any]:
    path, equals, text = setting.partition("=")
    path = path.strip()
    if not equals or not all(part.strip() for part in path.split(".")):
        remedy = "e.g. --set optim.lr=5e-4"
        raise input_error(ConfigError, "--set", "must be written path=value", remedy, setting)
    value = parse_yaml(text, f"--set {path}")
    for mapping in _MAPPINGS:
        if path.startswith(f"{mapping}."):
            key = path.removeprefix(f"{mapping}.")
            searched, _, kind = key.rpartition(".")
            if mapping == "search" and searched and kind in KINDS:
                key, value = searched, {kind: value}
            return [*mapping.split("."), key], value
    return path.split("."), value
