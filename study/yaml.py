"""YAML 1.2's core schema: `5e-4` is a number, `yes` a word, and a key given twice an error.

Plain PyYAML reads YAML 1.1, where `5e-4` is a string, `on` a bool and `1:30` ninety.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from trainable.errors import ConfigError, input_error

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL)$", "~nN"),
    ("null", r"^$", ("",)),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+."),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema only: its scalars, lists, and mappings whose keys are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[str | None, Callable[[Any, Any], Any]]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(_TAG + kind for kind in ("null", "bool", "float", "str", "seq")))
    }

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        # Depth first, so that an anchor inside itself is an error and not an endless structure.
        return super().construct_object(node, deep=True)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "found a key that is not a word", key.start_mark)
            if key.value in result:
                mark = key.start_mark
                raise ConstructorError(None, None, f"found the key {key.value!r} twice", mark)
            result[key.value] = self.construct_object(value)
        return result


class _Dumper(yaml.SafeDumper):
    """Quotes the words that are numbers to `_Loader`, and those that are not words to YAML 1.1."""


for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), list(_first))


def _construct_int(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


def _construct_map(loader: Any, node: Any) -> dict[str, Any]:
    return loader.construct_mapping(node)


def _represent_str(dumper: Any, text: str) -> yaml.ScalarNode:
    # Only this style escapes every kind of line break.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Loader.add_constructor(_TAG + "int", _construct_int)
_Loader.add_constructor(_TAG + "map", _construct_map)
_Dumper.add_representer(str, _represent_str)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one document; ConfigError names `where` and the line if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark is not None and "\n" in text:
            where = f"{where}:{mark.line + 1}"
        said = (getattr(error, "context", None), getattr(error, "problem", None))
        reason = ", ".join(filter(None, said)) or str(error).splitlines()[0]
    except (ValueError, KeyError):  # of a scalar under an explicit tag, such as `!!int x`
        reason = "found a value that its tag does not allow"
    except RecursionError:
        reason = "found more levels than can be read"
    remedy = "quote text that holds one of :{}[]#&*!|>%@, and indent with spaces"
    raise input_error(ConfigError, where, f"must be YAML, but: {reason}", remedy)


def dump_yaml(tree: Any, *, flow: bool = False) -> str:
    """Write a tree of plain values, in its order; `parse_yaml` gives it back. `flow` writes one line."""
    text = yaml.dump(
        tree,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=2**31 if flow else None,
    )
    return text.removesuffix("...\n").rstrip("\n") if flow else text
