"""YAML as configs are written in."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from study.yaml import dump_yaml, parse_yaml
from trainable.errors import ConfigError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.from_regex(r"\A[-+.0-9eE_:yYnNox~<=]{1,8}\Z")
)
TREES = st.dictionaries(
    st.from_regex(r"\A[a-z.]{1,8}\Z"),
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6),
    max_size=4,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("-1E3", -1e3),
        ("1.", 1.0),
        (".5", 0.5),
        ("+7", 7),
        ("007", 7),
        ("[1e-4, 1e-1]", [1e-4, 1e-1]),
        ("{loguniform: [1e-4, 1e-1]}", {"loguniform": [1e-4, 1e-1]}),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("5/2", "5/2"),
        ("1e-4x", "1e-4x"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'5e-4'", "5e-4"),
        ("{1: a, yes: b}", {"1": "a", "yes": "b"}),
        ("- a\n- 1e3", ["a", 1000.0]),
        ("\ufeffa: 1", {"a": 1}),
        ("a: &x {lr: 1e-3}\nb: *x", {"a": {"lr": 1e-3}, "b": {"lr": 1e-3}}),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "it")
    assert parsed == value
    assert type(parsed) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_yaml(".nan", "it"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "file.yaml:3: must be YAML, but: found the key 'a' twice"),
        ("a: {x: 1,\n  x: 2}", "file.yaml:2: must be YAML, but: found the key 'x' twice"),
        ("a:\n\tb: 1", "file.yaml:2: "),
        ("a: [1, 2", "file.yaml: "),
        ("a: b: c", "mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "a single document"),
        ("? [a, b]\n: 1", "a key that is not a word"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!timestamp x", "could not determine a constructor"),
        ("a: !!int x", "a value that its tag does not allow"),
        ("a: !!float x", "a value that its tag does not allow"),
        ("a: !!bool x", "a value that its tag does not allow"),
        ("a: " + "9" * 5000, "a value that its tag does not allow"),
        ("a: &x [*x]", "recursive"),
        ("a: *nowhere", "undefined alias"),
        ("a: \x07", "special characters are not allowed"),
        ("[" * 1000, "more levels than can be read"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "file.yaml")
    (problem,) = caught.value.problems
    assert words in str(problem)
    assert problem.remedy


@settings(max_examples=50, deadline=None)
@given(TREES)
@example({"a": "5e-4", "b": ["1e3", "yes", "null", "1:30", "", " ", "#", "a: b", "\x85"]})
def test_what_is_dumped_reads_back_the_same(tree: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(tree), "it") == tree
    line = dump_yaml(tree, flow=True)
    assert "\n" not in line
    assert parse_yaml(line, "it") == tree


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("0123456789+-.eExoyYnN_:"), max_size=8))
def test_other_readers_of_yaml_see_text_as_text_too(text: str) -> None:
    assert yaml.safe_load(dump_yaml({"a": text})) == {"a": text}
