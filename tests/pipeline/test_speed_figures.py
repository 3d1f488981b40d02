"""The figures of a benchmark, crowded ones and empty ones alike."""

from dataclasses import replace

import pytest
import sample_benches

from pipeline.stages.page.speed_figures import (
    batch_sizes,
    cold_start_bars,
    colors,
    drawn_subjects,
    figures_of,
    latency_distribution,
    latency_throughput,
    scaling,
    styles,
)
from pipeline.tracking.figures import as_svg
from serving.measuring.report import ColdStart
from serving.runtime.settings import SessionSettings

FIGURES = (latency_throughput, scaling, latency_distribution, cold_start_bars)
NAMES = {
    *("fp32 · cpu", "fp16 · cpu", "int8 · cpu"),
    *("PyTorch eager", "PyTorch channels_last", "torch.compile", "MLflow pyfunc"),
}


@pytest.fixture(scope="module")
def crowded():
    return sample_benches.crowded()


def with_bench(report, **changes):
    return replace(report, bench=replace(report.bench, **changes))


def describe(axes):
    return [text.get_text() for text in axes.texts]


def lines(axes):
    """The lines that stand for something: those with a name of their own."""
    return {
        line.get_label(): line
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def legend(figure):
    """The names in the legend beside the panels, from above."""
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def named(report, subject, threads):
    return next(
        one
        for one in report.bench.measured
        if (one.subject, one.settings.threads) == (subject, threads)
    )


def test_what_was_measured_is_drawn_however_little_it_is(crowded):
    names = ["latency_throughput", "scaling", "latency_distribution", "cold_start"]
    assert list(figures_of(crowded)) == names
    little = figures_of(sample_benches.single())
    assert list(little) == names[:3]
    assert all(as_svg(figure, "x").endswith("</svg>") for figure in little.values())
    assert figures_of(sample_benches.empty()) == {}


@pytest.mark.parametrize("draw", FIGURES)
def test_the_same_report_gives_the_same_svg(draw, crowded):
    assert as_svg(draw(crowded), "x") == as_svg(draw(sample_benches.crowded()), "x")


# Latency against throughput


def test_everything_is_a_line_at_each_number_of_threads(crowded):
    (axes,) = latency_throughput(crowded).axes
    found = lines(axes)
    assert set(found) == {
        f"{name}, {threads}" for name in NAMES for threads in ("1 thread", "2 threads")
    }
    int8 = named(crowded, "int8", 1)
    line = found["int8 · cpu, 1 thread"]
    assert list(line.get_xdata()) == [row.timing.p50_ms for row in int8.rows]
    assert list(line.get_ydata()) == [row.timing.rows_per_second for row in int8.rows]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_rows_in_any_order_are_drawn_from_the_smallest_batch(crowded):
    fp32 = named(crowded, "fp32", 2)
    shuffled = replace(fp32, rows=fp32.rows[::-1])
    (axes,) = latency_throughput(with_bench(crowded, measured=(shuffled,))).axes
    (line,) = lines(axes).values()
    assert list(line.get_xdata()) == sorted(line.get_xdata())


def test_one_thread_is_dashed_and_the_best_number_of_threads_stands_out(crowded):
    (axes,) = latency_throughput(crowded).axes
    found = lines(axes)
    one, two = found["fp32 · cpu, 1 thread"], found["fp32 · cpu, 2 threads"]
    assert (one.get_linestyle(), two.get_linestyle()) == ("--", "-")
    assert one.get_color() == two.get_color()
    assert one.get_linewidth() < two.get_linewidth()
    assert one.get_markerfacecolor() == "none"
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["1 thread", "2 threads"]


def test_one_number_of_threads_needs_no_legend():
    (axes,) = latency_throughput(sample_benches.crowded((2,))).axes
    assert axes.get_legend() is None
    assert {line.get_linestyle() for line in lines(axes).values()} == {"-"}


def test_every_batch_size_is_written_once(crowded):
    (axes,) = latency_throughput(crowded).axes
    assert sorted(describe(axes)) == sorted(["batch 1", "8", "64", "256"])


@pytest.mark.parametrize("draw", FIGURES[:3])
def test_the_legend_names_each_subject_in_its_colour_from_the_highest_line(draw, crowded):
    figure = draw(crowded)
    assert set(legend(figure)) == NAMES
    known = colors(crowded.bench)
    for line in figure.legends[0].get_lines():
        assert line.get_color() == known[line.get_label()]
    found = lines(figure.axes[0])
    if draw is scaling:
        ends = [found[name].get_ydata()[-1] for name in legend(figure)]
        assert ends == sorted(ends, reverse=True)


@pytest.mark.parametrize("draw", FIGURES[:3])
def test_the_legend_is_inside_of_the_figure_and_beside_the_panels(draw, crowded):
    figure = draw(crowded)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= figure.bbox.y0
    assert all(axes.get_window_extent().x1 <= box.x0 for axes in figure.axes)


# Scaling


def test_rows_per_second_are_drawn_at_the_best_threads(crowded):
    rates, _ = scaling(crowded).axes
    found = lines(rates)
    assert set(found) == NAMES
    best = named(crowded, "fp32", 2)
    assert list(found["fp32 · cpu"].get_xdata()) == [1, 8, 64, 256]
    assert list(found["fp32 · cpu"].get_ydata()) == [
        row.timing.rows_per_second for row in best.rows
    ]
    assert [tick.get_text() for tick in rates.get_xticklabels()] == ["1", "8", "64", "256"]


def test_more_threads_are_drawn_over_one(crowded):
    _, gains = scaling(crowded).axes
    assert gains.get_title(loc="left") == "2 threads over 1"
    one, two = named(crowded, "fp32", 1), named(crowded, "fp32", 2)
    expected = [
        more.timing.rows_per_second / less.timing.rows_per_second
        for less, more in zip(one.rows, two.rows, strict=True)
    ]
    assert list(lines(gains)["fp32 · cpu"].get_ydata()) == pytest.approx(expected)
    lowest, highest = gains.get_ylim()
    assert 0 < lowest < 1
    assert 2 < highest < 2.5


def test_of_three_numbers_of_threads_the_ends_are_compared():
    _, gains = scaling(sample_benches.crowded((1, 2, 4))).axes
    assert gains.get_title(loc="left") == "4 threads over 1"
    assert set(lines(gains)) == NAMES


def test_what_lacks_a_number_of_threads_has_no_gain(crowded):
    kept = [one for one in crowded.bench.measured if one is not named(crowded, "int8", 1)]
    rates, gains = scaling(with_bench(crowded, measured=tuple(kept))).axes
    assert set(lines(rates)) == NAMES
    assert set(lines(gains)) == NAMES - {"int8 · cpu"}


def test_one_number_of_threads_is_said_instead_of_its_gain():
    _, gains = scaling(sample_benches.crowded((1,))).axes
    assert describe(gains) == ["measured with 1 thread alone"]


# Distribution of latencies


def test_tails_go_by_nines_and_end_at_the_slowest_call(crowded):
    (axes,) = latency_distribution(crowded).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        *("p50", "p90", "p99", "p99.9", "slowest")
    ]
    assert list(axes.get_xticks())[1:4] == pytest.approx([1, 2, 3])
    assert axes.get_yscale() == "log"
    found = lines(axes)
    assert set(found) == NAMES
    timing = min(
        (named(crowded, "fp32", threads).rows[0].timing for threads in (1, 2)),
        key=lambda timing: timing.p50_ms,
    )
    quantiles = [timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.p999_ms]
    assert list(found["fp32 · cpu"].get_ydata()) == quantiles
    tops = {max(line.get_ydata()) for line in axes.get_lines()}
    assert timing.max_ms in tops


def test_a_percentile_of_too_few_calls_is_hollow(crowded):
    def hollow(report):
        (axes,) = latency_distribution(report).axes
        return sum(line.get_markerfacecolor() == "none" for line in axes.get_lines())

    assert hollow(crowded) == 0
    fp32 = named(crowded, "fp32", 2)
    few = replace(fp32.rows[0], timing=replace(fp32.rows[0].timing, num_calls=999))
    assert hollow(with_bench(crowded, measured=(replace(fp32, rows=(few,)),))) == 1


def test_without_a_batch_of_one_the_smallest_is_drawn():
    (axes,) = latency_distribution(sample_benches.crowded(sizes=(8, 64))).axes
    assert axes.get_ylabel() == "latency at batch 8, ms"


# Cold starts


def test_cold_starts_are_bars_from_the_shortest_with_their_runs(crowded):
    (axes,) = cold_start_bars(crowded).axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["int8 · cpu", "fp32 · cpu", "PyTorch eager", "MLflow pyfunc"]
    assert [bar.get_width() for bar in axes.patches] == [301, 312, 2140, 3900]
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [4] * 4
    assert describe(axes)[2] == "median 2,140 ms"
    assert axes.get_xlim()[0] == 0
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first one is on top"


def test_a_bar_has_the_colour_of_its_lines(crowded):
    (axes,) = cold_start_bars(crowded).axes
    known = colors(crowded.bench)
    assert axes.get_lines()[1].get_color() == known["fp32"] == known["fp32 · cpu"]
    (throughput,) = latency_throughput(crowded).axes
    assert lines(throughput)["fp32 · cpu, 1 thread"].get_color() == known["fp32"]


def test_a_start_of_what_was_not_measured_is_drawn_too(crowded):
    stranger = ColdStart(subject="stranger", p50_ms=5.0, runs_ms=())
    (axes,) = cold_start_bars(with_bench(crowded, cold_starts=(stranger,))).axes
    assert describe(axes) == ["median 5 ms"]


# What is drawn


def test_subjects_have_colours_of_their_own_on_every_provider(crowded):
    fp32 = named(crowded, "fp32", 2)
    cuda = replace(fp32, provider="cuda")
    found = drawn_subjects(with_bench(crowded, measured=(*crowded.bench.measured, cuda)).bench)
    by_name = {one.name: one for one in found}
    assert by_name["fp32 · cuda"].color == by_name["fp32 · cpu"].color
    assert by_name["fp32 · cuda"].marker != by_name["fp32 · cpu"].marker
    assert len({one.color for one in found}) == len(NAMES)


def test_other_settings_make_another_subject(crowded):
    fp32 = named(crowded, "fp32", 2)
    parallel = replace(fp32, settings=SessionSettings(threads=1, parallel=2))
    found = drawn_subjects(with_bench(crowded, measured=(fp32, parallel)).bench)
    assert [one.name for one in found] == ["fp32 · cpu", "fp32 · cpu parallel=2"]


def test_what_has_no_rows_is_left_out(crowded):
    fp32 = named(crowded, "fp32", 2)
    assert drawn_subjects(with_bench(crowded, measured=(replace(fp32, rows=()),)).bench) == []


def test_lines_of_the_most_threads_are_solid():
    found = drawn_subjects(sample_benches.crowded((4, 1, 2)).bench)
    assert styles(found) == {1: "--", 2: ":", 4: "-"}


def test_batch_sizes_rise_and_each_begins_with_the_quickest(crowded):
    found = batch_sizes(crowded.bench)
    assert list(found) == [1, 8, 64, 256]
    assert all(len(timings) == 2 * len(NAMES) for timings in found.values())
    for timings in found.values():
        assert [one.p50_ms for one in timings] == sorted(one.p50_ms for one in timings)
