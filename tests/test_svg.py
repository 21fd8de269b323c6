"""Scales, ticks, escaping and label placement."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postgrad.svg import Scale, place_labels, scale, tag

numbers = st.floats(-1e6, 1e6)


def test_text_and_attributes_are_escaped() -> None:
    assert tag("text", "<b>", x=1.5, class_="a") == '<text x="1.5" class="a">&lt;b&gt;</text>'
    assert '"><script' not in tag("text", aria_label='"><script>')
    assert tag("line", stroke_width=2, fill=None) == '<line stroke-width="2"></line>'


@given(low=numbers, width=st.floats(1e-3, 1e6))
def test_linear_ticks_lie_inside_and_are_few(low: float, width: float) -> None:
    axis = Scale(low, low + width, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-6 * width <= t <= low + width * (1 + 1e-6) for t in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)


@given(low=st.floats(1e-6, 1e6), factor=st.floats(1.05, 1e6))
def test_logarithmic_ticks_lie_inside_and_are_few(low: float, factor: float) -> None:
    ticks = Scale(low, low * factor, 0, 100, log=True).ticks()
    assert 1 <= len(ticks) <= 7
    assert all(low * 0.999 <= t <= low * factor * 1.001 for t in ticks)


def test_scales_map_their_ends_and_middle() -> None:
    assert Scale(0, 10, 100, 0)(5) == 50
    assert Scale(1, 100, 0, 100, log=True)(10) == pytest.approx(50)


@pytest.mark.parametrize("values", [[0.0], [0.7, 0.7], [1e-9, 1e-9]])
def test_equal_values_still_make_a_scale(values: list[float]) -> None:
    axis = scale(values, 0, 100)
    assert axis(values[0]) == pytest.approx(50)
    assert math.isfinite(sum(axis.ticks()))
    if values[0]:
        assert scale(values, 0, 100, log=True)(values[0]) == pytest.approx(50)


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 240)), min_size=1, max_size=6))
def test_names_never_cover_each_other_and_stay_inside(dots: list[tuple[float, float]]) -> None:
    labels = place_labels(dots, ["fine-tuning"] * len(dots), 0, 400, 0, 240)
    assert all(label.inside(0, 400, 0, 240) for label in labels)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))


def test_a_name_alone_stands_right_of_its_dot_and_left_at_the_edge() -> None:
    (label,) = place_labels([(50, 100)], ["base"], 0, 400, 0, 240)
    assert (label.x, label.y, label.anchor) == (60, 100, "start")
    (label,) = place_labels([(390, 100)], ["base"], 0, 400, 0, 240)
    assert (label.x, label.y, label.anchor) == (380, 100, "end")
