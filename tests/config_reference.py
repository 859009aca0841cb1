"""`docs/config.md`: every key of a config, as its class says. `make reference` writes it anew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study.config import StudyConfig
from study.yaml import dump_yaml

PAGE = Path(__file__).resolve().parent.parent / "docs" / "config.md"
_HEAD = """# Every key of a config

A key that is left out has its default; `null` is nothing, and numbers may be written `5e-4`. Rules between keys are not
told here: `kd-study validate` says everything that is wrong with a config.

`make reference` writes this page from the classes that read a config: [a trial's](../trainable/config.py),
[a study's](../study/schema.py), and [the ranges of a search](../study/space.py).
"""
_UNTOLD = 1_000_000
"""Bounds from here on only catch what was mistyped."""
_SCALARS = [{"type": kind} for kind in ("boolean", "integer", "number", "string")]

Node = dict[str, Any]
"""A part of the classes' JSON schema."""


def page() -> str:
    """The whole page."""
    schema = StudyConfig.model_json_schema()
    places = _places(schema)
    parts = [_HEAD.rstrip()]
    for name, place in places.items():
        model, above = schema["$defs"][name], schema["properties"].get(place, {})
        prefix, required = "" if place == "search" else f"{place}.", model.get("required", ())
        rows = [
            _row(prefix + key, node, key in required, schema, places)
            for key, node in model["properties"].items()
        ]
        heading = f"{'#' * (2 + place.count('.'))} {place}"
        words = f"{above.get('description', '')} {model['description']}"
        words += " **Required.**" if place in schema["required"] else ""
        table = ["| key | values | default | meaning |", "|---|---|---|---|", *rows]
        parts += [heading, _text(words), "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _places(schema: Node) -> dict[str, str]:
    """The class of each section, with the shortest of its places, in the order of a config."""
    places: dict[str, str] = {}
    waiting = list(schema["properties"].items())
    while waiting:
        place, node = waiting.pop(0)
        name = _section(node)
        if name is not None and name not in places:
            places[name] = place
            inner = schema["$defs"][name]["properties"]
            waiting += [(f"{place}.{key}", below) for key, below in inner.items()]
    first = list(schema["properties"])
    return dict(sorted(places.items(), key=lambda item: first.index(item[1].split(".")[0])))


def _section(node: Node) -> str | None:
    """The class of a section, of one that may be left out, or of those of a mapping."""
    if "$ref" in node:
        return node["$ref"].rpartition("/")[2]
    below = [*node.get("anyOf", ()), node.get("additionalProperties")]
    found = [_section(part) for part in below if isinstance(part, dict)]
    return next(filter(None, found), None)


def _row(path: str, node: Node, is_required: bool, schema: Node, places: dict[str, str]) -> str:
    words, default = node.get("description", ""), f"`{_yaml(node.get('default', {}))}`"
    if (name := _section(node)) is None:
        values = " or ".join(_values(node))
    else:
        values = f"keys of [{places[name]}](#{places[name].replace('.', '')})"
        words = words or schema["$defs"][name]["description"].partition("\n")[0]
        default = default if node["default"] is None else "their own"
    return (
        f"| `{path}` | {values} | {'**required**' if is_required else default} | {_text(words)} |"
    )


def _values(node: Node) -> Iterator[str]:
    """The kinds of values that a key takes, without null, which its default says."""
    match node:
        case {"anyOf": parts} if parts == _SCALARS:
            yield "value"
        case {"anyOf": parts} | {"oneOf": parts}:
            for part in parts:
                yield from _values(part)
        case {"enum": options}:
            yield ", ".join(f"`{option}`" for option in options)
        case {"const": option}:
            yield f"`{option}`"
        case {"type": "array", "prefixItems": [first, *_]}:
            yield f"[low, high], each a {' or '.join(_values(first))}"
        case {"type": "array", "items": items}:
            yield f"list, each {' or '.join(_values(items))}"
        case {"type": "object"}:
            yield f"mapping of a name to a {' or '.join(_values(node['additionalProperties']))}"
        case {"type": "boolean"}:
            yield "`true`, `false`"
        case {"type": "string"}:
            yield "text"
        case {"type": "integer"}:
            yield f"whole number{_bounds(node)}"
        case {"type": "number"}:
            yield f"number{_bounds(node)}"
        case {"type": "null"}:
            return
        case _:
            raise ValueError(f"no words for {node}")


def _bounds(node: Node) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    told = {sign: node[key] for key, sign in signs.items() if node.get(key, _UNTOLD) < _UNTOLD}
    return ",".join(f" {sign} {bound:g}" for sign, bound in told.items())


def _yaml(value: Any) -> str:
    return "null" if value is None else dump_yaml(value, flow=True)


def _text(description: str) -> str:
    """A docstring as the page has it: in one line, with YAML's word for nothing, and links to other pages."""
    text = re.sub(r"\bNone\b", "`null`", " ".join(description.split()))
    return re.sub(r"`?docs/(\w+\.md)`?", r"[\1](\1)", text)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
