"""Names beside the ends of lines: apart, in order, and each of them once."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.stages.page.line_names import End, apart, name_ends

PLACES = st.lists(st.floats(-1, 2), max_size=12).map(sorted)
GAPS = st.floats(0.001, 0.5)


@given(wanted=PLACES, gap=GAPS)
def test_places_keep_their_order_and_their_gaps(wanted: Sequence[float], gap: float) -> None:
    found = apart(wanted, gap)
    assert len(found) == len(wanted)
    assert all(upper - lower >= gap - 1e-9 for lower, upper in pairwise(found))


@given(wanted=PLACES, gap=GAPS)
def test_names_move_up_as_much_as_down(wanted: Sequence[float], gap: float) -> None:
    assert sum(apart(wanted, gap)) == pytest.approx(sum(wanted), abs=1e-9)


@given(wanted=PLACES, gap=GAPS)
def test_other_places_that_are_apart_are_no_nearer(wanted: Sequence[float], gap: float) -> None:
    def distance(places: Sequence[float]) -> float:
        return sum((one - other) ** 2 for one, other in zip(places, wanted, strict=True))

    stacked = [wanted[0] + index * gap for index in range(len(wanted))] if wanted else []
    pushed: list[float] = []
    for place in wanted:
        pushed.append(max(place, pushed[-1] + gap) if pushed else place)
    assert distance(apart(wanted, gap)) <= min(distance(stacked), distance(pushed)) + 1e-9


@pytest.fixture
def panel() -> Iterator[tuple[Figure, Axes]]:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 100))
    yield figure, axes
    figure.clear()


def ends(**heights: float) -> list[End]:
    return [
        End(name=name, color=f"C{number}", x=9.0, y=height)
        for number, (name, height) in enumerate(heights.items())
    ]


def heights_of(axes: Axes) -> dict[str, float]:
    """Where each name was written, as a part of the panel's height."""
    return {text.get_text(): text.xyann[1] for text in axes.texts}  # type: ignore[attr-defined]


def test_each_name_is_written_once_in_the_colour_of_its_line(panel: tuple[Figure, Axes]) -> None:
    figure, axes = panel
    given_ends = ends(high=90, low=10, middle=50)
    name_ends(axes, figure, given_ends)
    assert {text.get_text(): text.get_color() for text in axes.texts} == {
        end.name: end.color for end in given_ends
    }
    assert len(axes.texts) == len(given_ends)


def test_names_rise_as_their_lines_do_and_leave_a_gap(panel: tuple[Figure, Axes]) -> None:
    figure, axes = panel
    name_ends(axes, figure, ends(c=52, a=50, b=51, far=95))
    found = heights_of(axes)
    assert sorted(found, key=lambda name: found[name]) == ["a", "b", "c", "far"]
    gaps = [found["b"] - found["a"], found["c"] - found["b"]]
    assert gaps == pytest.approx([gaps[0]] * 2)
    assert 0.04 < gaps[0] < 0.1
    assert found["b"] == pytest.approx(0.51)


def test_lines_that_end_together_are_named_by_the_alphabet(panel: tuple[Figure, Axes]) -> None:
    figure, axes = panel
    name_ends(axes, figure, ends(z=50, a=50, m=50))
    assert list(heights_of(axes)) == ["a", "m", "z"]


def test_a_higher_figure_needs_a_smaller_part_of_it() -> None:
    def gap(height: float) -> float:
        figure = Figure(figsize=(6, height))
        axes = figure.subplots()
        name_ends(axes, figure, ends(a=0.5, b=0.5))
        found = heights_of(axes)
        return found["b"] - found["a"]

    assert gap(3) == pytest.approx(2 * gap(6))


def test_heights_are_those_of_a_logarithmic_axis(panel: tuple[Figure, Axes]) -> None:
    figure, axes = panel
    axes.set(yscale="log", ylim=(1, 10_000))
    name_ends(axes, figure, ends(thousand=1000, ten=10))
    assert heights_of(axes) == pytest.approx({"ten": 0.25, "thousand": 0.75})


def test_the_panel_keeps_its_limits_when_more_is_drawn(panel: tuple[Figure, Axes]) -> None:
    figure, axes = panel
    name_ends(axes, figure, ends(a=50))
    axes.plot([0, 1000], [0, 1000])
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 10), (0, 100))


def test_no_line_needs_no_name(panel: tuple[Figure, Axes]) -> None:
    figure, axes = panel
    name_ends(axes, figure, [])
    assert list(axes.texts) == []
