"""Scales, ticks and thinning of the report's charts."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.report.svg import Plot, Scale, scale_of, tag, thinned, tick_names

FINITE = st.floats(-1e9, 1e9, allow_subnormal=False)


def test_a_scale_is_even_or_even_in_the_logarithm() -> None:
    assert [Scale(0, 4).at(value) for value in (0, 1, 4)] == [0, 25, 100]
    assert [Scale(1, 100, log=True).at(value) for value in (1, 10, 100)] == [0, 50, 100]


def test_a_scale_covers_what_can_be_drawn() -> None:
    assert scale_of([]) is None
    assert scale_of([math.nan, math.inf]) is None
    assert scale_of([0.0, -1.0], log=True) is None
    scale = scale_of([0.0, 1e-3, math.nan, 10.0], log=True)
    assert scale is not None
    assert 0 < scale.low < 1e-3 < 10 < scale.high


@settings(max_examples=50)
@given(st.lists(FINITE, min_size=1, max_size=20))
def test_ticks_are_few_and_inside(values: list[float]) -> None:
    scale = scale_of(values)
    assert scale is not None
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 11
    assert all(-1e-6 <= scale.at(tick) <= 100 + 1e-6 for tick in ticks)


@settings(max_examples=50)
@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=20))
def test_ticks_of_a_logarithm_are_few_inside_and_told_apart(values: list[float]) -> None:
    scale = scale_of(values, log=True)
    assert scale is not None
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 11
    assert all(-1e-6 <= scale.at(tick) <= 100 + 1e-6 for tick in ticks)
    names = tick_names(ticks)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("ticks", "names"),
    [
        ([0.2, 0.4], ["0.2", "0.4"]),
        ([0.0, 50.0, 100.0], ["0", "50", "100"]),
        ([1e-11, 1e-8], ["1e-11", "1e-8"]),
        ([1e-5, 0.01, 10, 1e4], ["1e-5", "0.01", "10", "1e4"]),
        ([0.01, 0.03, 0.1], ["0.01", "0.03", "0.10"]),
        ([0.1, 10, 1000], ["0.1", "10", "1000"]),
    ],
)
def test_tick_names(ticks: list[float], names: list[str]) -> None:
    assert tick_names(ticks) == names


def test_shares_are_written_as_percentages() -> None:
    assert tick_names([0.25, 0.3], percent=True) == ["25", "30"]
    assert tick_names([0.985, 0.99], percent=True) == ["98.5", "99.0"]


def test_thinning_keeps_the_ends_and_every_spike() -> None:
    points = [(float(x), 1000.0 if x == 613 else float(x % 7)) for x in range(1000)]
    kept = thinned(points, 100)
    assert len(kept) <= 110
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (613.0, 1000.0) in kept
    assert kept == sorted(kept)
    assert thinned(points[:100], 100) == points[:100]


def test_an_element_escapes_what_it_is_given() -> None:
    element = tag("text", {"class": 'a"b', "x": None}, "<&")
    assert element == '<text class="a&#34;b">&lt;&amp;</text>'


def test_a_plot_is_well_formed_and_describes_itself() -> None:
    plot = Plot(Scale(1, 10), Scale(0, 1), x_name="epoch", percent=True)
    plot.line([(1, 0.1), (2, math.nan), (10, 0.9)], "winner", "trial 1")
    plot.line([(4, 0.5)], "other")
    plot.mark((5, 0.5), "pruned", title="a < b")
    plot.mark((5, math.nan), "pruned")
    plot.rule(5, "stage 2")
    plot.labels([(0.9, "a", "winner"), (0.901, "b", "baseline")], 22)
    root = ElementTree.fromstring(plot.svg("Accuracy of <trial>."))
    assert root.attrib["aria-label"] == "Accuracy of <trial>."
    first, second = root.iter("polyline")
    assert first.attrib["points"] == "0,900 1000,100"
    assert second.attrib["points"] == "333,500 333,500"
    (mark,) = root.iter("use")
    assert (mark.attrib["x"], mark.attrib["y"]) == ("44.44%", "50.00%")
    upper, lower = (
        float(t.attrib["y"].rstrip("%")) for t in root.iter("text") if t.text in ("a", "b")
    )
    assert abs(upper - lower) > 4  # one line of text of 22
