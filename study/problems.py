"""pydantic's errors → problems that a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainable.errors import Problem

_REMEDIES = {
    "missing": "add it",
    "extra_forbidden": "remove it",
    "literal_error": "choose one of these",
    "string_pattern_mismatch": "write it in that form",
}


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """One problem for each of pydantic's errors, in the config's words."""
    return [_problem(details, model) for details in error.errors(include_url=False)]


def path_of(details: ErrorDetails) -> str:
    """The dotted path of an error."""
    return ".".join(str(part) for part in details["loc"])


def _problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    path = path_of(details)
    kind, value = details["type"], details["input"]
    if kind == "missing":
        return Problem(path, "is required", _REMEDIES[kind])
    if kind == "extra_forbidden":
        return _unknown_key(path, details, model)
    got = None if isinstance(value, dict) else repr(value)
    return Problem(path, _rule(details), _REMEDIES.get(kind, "give such a value"), got)


def _rule(details: ErrorDetails) -> str:
    context: dict[str, Any] = details.get("ctx", {})
    match details["type"]:
        case "greater_than":
            return f"must be > {context['gt']:g}"
        case "greater_than_equal":
            return f"must be >= {context['ge']:g}"
        case "less_than":
            return f"must be < {context['lt']:g}"
        case "less_than_equal":
            return f"must be <= {context['le']:g}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "string_pattern_mismatch" if context["pattern"] == r"^\d+/\d+$":
            return "must be written k/n, e.g. 5/2"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
        case "model_type" | "dict_type":
            return "must be a section with keys of its own"
        case "value_error":
            return str(context["error"])
        case _:
            message = details["msg"]
            return message[0].lower() + message[1:]


def _unknown_key(path: str, details: ErrorDetails, model: type[BaseModel]) -> Problem:
    *sections, key = (str(part) for part in details["loc"])
    names = sorted(_field_names(model, sections))
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if near:
        remedy = f"did you mean {'.'.join([*sections, near[0]])}?"
    else:
        elsewhere = [p for p in all_paths(model) if p.split(".")[-1] == key]
        place = ".".join(sections) or "the top level"
        remedy = (
            f"did you mean {elsewhere[0]}?"
            if elsewhere
            else f"{place} knows {', '.join(names) or 'no keys'}"
        )
    return Problem(path, "is not a known key", remedy)


def _field_names(model: type[BaseModel], sections: list[str]) -> list[str]:
    for section in sections:
        field = model.model_fields.get(section)
        inner = None if field is None else section_model(field.annotation)
        if inner is None:
            if field is None:
                continue  # a key of a free mapping, such as a path of `search`
            inner = next(iter(_models_in(field.annotation)), None)
            if inner is None:
                return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, also of an optional one; None for a plain value or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    options = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
    is_mapping = any(a is str for a in get_args(annotation))
    return options[0] if options and not is_mapping else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part


def all_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted path that a config may set."""
    result: list[str] = []
    for name, field in model.model_fields.items():
        inner = section_model(field.annotation)
        result.append(f"{prefix}{name}")
        if inner is not None:
            result += all_paths(inner, f"{prefix}{name}.")
    return result
