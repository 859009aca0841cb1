"""Strict parsing of a config's sections, and pydantic's errors as problems that a person can act on."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from yaml import YAMLError

from study.yaml import dump_yaml
from trainable.config import NUMBER, WORD
from trainable.errors import ConfigError, Problem

_Model = TypeVar("_Model", bound=BaseModel)

_SCALARS = {"bool": "bool_type", "int": "int_type", "float": "float_type", "str": "string_type"}
_FORMS = {
    "study.name": (
        "must be letters, digits, '.', '_' and '-', beginning with a letter or digit",
        "choose such a name, in quotes if it is a number",
    ),
    "distill.decomposition": ("must be written k/n", "write e.g. 5/2"),
    "resources.gpus_per_worker": ("must be a number or auto", "write e.g. 1, 0.25 or auto"),
}
_MAPPED = {
    "study.baseline": "write e.g. baseline: {optim.lr: 0.1}",
    "study.first_trials": "write e.g. first_trials: [{optim.lr: 0.1}]",
}
"""What to write where values by dotted path are meant."""
_OF_ANOTHER_FORM = ("string_type", "string_pattern_mismatch", "literal_error", "float_type")
_KEY = "[key]"
"""How pydantic's errors say that it is a mapping's key that is wrong."""
_SHOWN = 80


class Words(NamedTuple):
    """A rule and what to do where it is broken."""

    rule: str
    remedy: str


def parse(model: type[_Model], tree: Any) -> _Model:
    """Parse plain values: no `true` for a number, no `"1"` for one, no `2.0` for a whole one.

    Raises pydantic's ValidationError.
    """
    return model.model_validate(_with_tuples(tree), strict=True)


def parse_or_refuse(model: type[_Model], tree: Any) -> _Model:
    """As `parse`, but raises ConfigError."""
    try:
        return parse(model, tree)
    except ValidationError as error:
        raise ConfigError(problems_of(error, model)) from None


def broken_rule(rule: str, remedy: str) -> PydanticCustomError:
    """What a validator raises."""
    return PydanticCustomError("broken_rule", "{rule}", {"rule": rule, "remedy": remedy})


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """One problem for each thing that is wrong, in the config's words."""
    found = [_problem(details, model) for details in error.errors(include_url=False)]
    return list(dict.fromkeys(found))


def place_of(details: ErrorDetails) -> tuple[str, ...]:
    """The keys on the way to an error; positions in lists are numbers."""
    place = tuple(str(part) for part in details["loc"] if part not in (NUMBER, WORD, _KEY))
    return place[:-1] if _is_of_union(details) else place


def near_key(place: Sequence[str], model: type[BaseModel]) -> str | None:
    """The dotted path that was most likely meant by an unknown key."""
    return next(iter(near_keys(place, model)), None)


def near_keys(place: Sequence[str], model: type[BaseModel]) -> list[str]:
    """The dotted paths that an unknown key may mean, the likeliest first.

    That is what its section has of like spelling, and where a key of its very name belongs; without any of these what
    is spelt alike elsewhere.
    """
    *sections, key = place
    near = closest(key, _names_in(model, sections))
    found = [".".join((*sections, near))] if near else []
    paths = sorted(all_paths(model), key=lambda path: path.count("."))
    same = [path for path in paths if path.split(".")[-1] == key]
    inside = [path for path in same if path.startswith(".".join((*sections, "")))]
    for places in (inside, same):
        found += [path for path in places if path.count(".") == places[0].count(".")]
    if not found and (near := closest(key, [path.split(".")[-1] for path in paths], cutoff=0.75)):
        found.append(next(path for path in paths if path.split(".")[-1] == near))
    return list(dict.fromkeys(found))


def closest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The known word that is most like this one."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), None)


def all_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted path that a config may set, sections included."""
    result: list[str] = []
    for name, field in model.model_fields.items():
        result.append(f"{prefix}{name}")
        inner = _section(field.annotation)
        if inner is not None:
            result += all_paths(inner, f"{prefix}{name}.")
    return result


def keys_of(model: type[BaseModel], path: str) -> list[str]:
    """The keys of the section at a path; none where it is a value."""
    return _names_in(model, path.split("."))


def shown(value: object) -> str:
    """A value in a message, as YAML would have it in one line."""
    if value is None:
        return "nothing"
    text = repr(value)
    if isinstance(value, (bool, list, tuple, dict)):
        with suppress(YAMLError):  # of values that no YAML file holds
            text = dump_yaml(value, flow=True)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def touches(unknown: Collection[str], paths: Collection[str]) -> bool:
    """Whether one of the paths is unknown, or in a section that is."""
    return any(path == one or path.startswith(f"{one}.") for path in paths for one in unknown)


def _with_tuples(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _with_tuples(value) for key, value in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, (list, tuple)) else tree


def _is_of_union(details: ErrorDetails) -> bool:
    """Whether the value may have several types: it is refused once for each of them."""
    return _SCALARS.get("".join(map(str, details["loc"][-1:]))) == details["type"]


def _problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    place = place_of(details)
    path = ".".join(place)
    if details["type"] == "extra_forbidden":
        return Problem(path, "is not a known key", _remedy_for_unknown(place, model))
    if details["type"] == "missing" and place[-1].isdecimal():
        got = shown(details["input"])
        return Problem(".".join(place[:-1]), "must have two numbers", "give low and high", got)
    if details["type"] == "missing":
        return Problem(path, "is required", "add it")
    words = _words(details, path, is_union=_is_of_union(details))
    return Problem(path, *words, shown(details["input"]))


def _words(details: ErrorDetails, path: str, *, is_union: bool) -> Words:
    kind, value = details["type"], details["input"]
    context: dict[str, Any] = details.get("ctx", {})
    if kind == "broken_rule":
        return Words(context["rule"], context["remedy"])
    if is_union:
        hint = next((words for key, words in _MAPPED.items() if key in path), "give one value")
        return Words("must be a number, text, true or false", hint)
    if path in _FORMS and kind in _OF_ANOTHER_FORM:
        return Words(*_FORMS[path])
    if path.startswith("search.") and kind == "model_type":
        return Words("must be a range of values", "write e.g. {loguniform: [1e-4, 1e-1]}")
    if isinstance(value, float) and math.isnan(value):
        return Words("must be a number", "give one")
    return _words_of_bound(kind, context) or _words_of_type(kind, value, context, details["msg"])


def _words_of_bound(kind: str, context: Mapping[str, Any]) -> Words | None:
    match kind:
        case "greater_than":
            return Words(f"must be > {context['gt']:g}", "give a larger number")
        case "greater_than_equal":
            return Words(f"must be >= {context['ge']:g}", "give a larger number")
        case "less_than":
            return Words(f"must be < {context['lt']:g}", "give a smaller number")
        case "less_than_equal":
            return Words(f"must be <= {context['le']:g}", "give a smaller number")
        case "finite_number":
            return Words("must be finite", "give a number")
        case "too_long" | "string_too_long":
            return Words(f"must have at most {context['max_length']} of them", "shorten it")
        case _:
            return None


def _words_of_type(kind: str, value: object, context: Mapping[str, Any], message: str) -> Words:
    match kind:
        case "int_type" if isinstance(value, float) and value.is_integer():
            return Words("must be a whole number", f"write {int(value)}")
        case "int_type":
            return Words("must be a whole number", "write it in digits, e.g. 10")
        case "float_type":
            return Words("must be a number", "write it like 0.1 or 5e-4, without quotes")
        case "bool_type":
            return Words("must be true or false", "write one of the two, without quotes")
        case "string_type":
            return Words("must be text", "put it in quotes if it is meant")
        case "tuple_type":
            return Words("must be a list", "write it like [a, b]")
        case "model_type" | "dict_type" if value is None:
            return Words("must be a section with keys of its own", "give it keys, or remove it")
        case "model_type" | "dict_type":
            return Words("must be a section with keys of its own", "write its keys below it")
        case "literal_error":
            options: str = context["expected"]
            near = closest(value, options.split("'")[1::2]) if isinstance(value, str) else None
            remedy = f"did you mean {near}?" if near else "choose one of these"
            return Words(f"must be {options}", remedy)
        case _:
            return Words(message[0].lower() + message[1:], "give such a value")


def _remedy_for_unknown(place: Sequence[str], model: type[BaseModel]) -> str:
    *sections, key = place
    inner = ".".join(place[1:])
    if place[0] == "search" and len(place) > 2 and inner in all_paths(model):
        return f"write the searched path as one key, {inner}: {{…}}"
    if "." in key and key in all_paths(model):
        return f"write its sections as nested keys, {key.replace('.', ': {', 1)}: …}}"
    if near := near_keys(place, model):
        return f"did you mean {' or '.join(near)}?"
    names = sorted(_names_in(model, sections))
    return f"choose from {', '.join('.'.join((*sections, name)) for name in names)}"


def _names_in(model: type[BaseModel], sections: Sequence[str]) -> list[str]:
    """The keys of a section as a config writes them; none where the place is no section."""
    for number, section in enumerate(sections):
        field = model.model_fields.get(section)
        if field is None:
            return []
        inner = _section(field.annotation)
        if inner is None:
            # The keys of a mapping are free; one more step leads to its values.
            values = _models_in(field.annotation)
            return _names_in(values[0], sections[number + 2 :]) if values else []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, also of an optional one; None for a plain value or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = _models_in(annotation)
    return models[0] if models and str not in get_args(annotation) else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    parts = get_args(annotation)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
