import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from sample_metrics import LABELS, confusion, epochs

from pipeline.tracking.figures import (
    as_svg,
    confusion_matrix,
    learning_curve,
    logarithmic,
    ulp_histogram,
)


def texts(figure):
    root = ET.fromstring(as_svg(figure, "test"))
    return ["".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("text")]


def test_a_learning_curve_draws_both_parts_of_the_data_over_epochs():
    losses, errors = learning_curve(epochs(6)).axes
    training, validation = losses.get_lines()
    assert list(training.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(training.get_ydata()) == [epoch.loss for epoch in epochs(6)]
    assert list(validation.get_ydata()) == [epoch.validation_loss for epoch in epochs(6)]
    wrong = [100 * (1 - epoch.validation_accuracy) for epoch in epochs(6)]
    assert list(errors.get_lines()[1].get_ydata()) == pytest.approx(wrong)
    assert {text.get_text() for text in errors.get_legend().get_texts()} == {
        "training",
        "validation",
    }


@pytest.mark.parametrize("count", [1, 2, 40])
def test_any_number_of_epochs_can_be_drawn_with_whole_numbers_below(count):
    figure = learning_curve(epochs(count))
    figure.canvas.draw()
    ticks = figure.axes[0].get_xticks()
    assert all(float(tick).is_integer() for tick in ticks)
    assert as_svg(figure, "curve").startswith("<svg ")


def test_a_loss_of_a_narrow_range_still_has_labelled_ticks():
    found = texts(learning_curve(epochs(3)))
    assert "1" in found
    assert "0.5" in found


def test_every_count_of_a_confusion_matrix_can_be_read():
    found = texts(confusion_matrix(confusion(), LABELS))
    assert found.count("95") == 10
    assert {"7", "3", "2"} <= set(found)
    assert {"actual", "answered"} <= set(found)


def test_rows_are_the_actual_class_and_columns_the_answer():
    (axes,) = confusion_matrix(confusion(), LABELS).axes
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places["7"] == (9, 4)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_the_worst_mistake_is_the_deepest_and_right_answers_are_pale():
    (axes,) = confusion_matrix(confusion(), LABELS).axes
    alphas = {
        (round(patch.get_y()), round(patch.get_x())): patch.get_alpha() for patch in axes.patches
    }
    assert alphas[4, 9] == max(alphas.values())
    assert alphas[4, 9] > alphas[9, 4] > alphas[7, 2] > alphas[0, 0]
    assert (0, 1) not in alphas


def test_a_faultless_and_an_empty_class_are_drawn():
    figure = confusion_matrix([[5, 0], [0, 0]], ["yes", "no"])
    assert texts(figure).count("5") == 1


def test_many_classes_are_drawn_without_counts():
    size = 30
    matrix = [[9 if row == column else 0 for column in range(size)] for row in range(size)]
    (axes,) = confusion_matrix(matrix, [f"class {number}" for number in range(size)]).axes
    assert len(axes.patches) == size
    assert not axes.texts


@pytest.mark.parametrize(
    ("lowest", "highest", "shown"),
    [(0.02, 3, {"0.05", "0.5", "2"}), (900, 3e6, {"1k", "50k", "2M"})],
)
def test_a_logarithmic_axis_tells_short_numbers(lowest, highest, shown):
    figure = Figure()
    axes = figure.subplots()
    axes.set(yscale="log", ylim=(lowest, highest))
    logarithmic(axes.yaxis)
    assert shown <= set(texts(figure))


def test_the_same_figure_gives_the_same_svg():
    first = as_svg(learning_curve(epochs()), "curve")
    assert first == as_svg(learning_curve(epochs()), "curve")
    assert "dc:date" not in first


def test_two_figures_of_a_page_share_no_id():
    ids = [
        set(re.findall(r'id="([^"]+)"', as_svg(learning_curve(epochs()), title)))
        for title in ("first", "second")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_ids_that_are_referred_to_are_there():
    svg = as_svg(learning_curve(epochs()), "curve")
    referred = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    assert referred
    assert referred <= set(re.findall(r'id="([^"]+)"', svg))


def test_ink_follows_the_page_and_the_title_is_said():
    svg = as_svg(learning_curve(epochs()), 'a "title" & more')
    assert "currentColor" in svg
    assert "#3b4252" not in svg
    assert 'aria-label="a &quot;title&quot; &amp; more"' in svg
    assert ET.fromstring(svg).attrib["role"] == "img"


def test_text_stays_text():
    assert "cross-entropy, nats" in texts(learning_curve(epochs()))


def test_labels_cannot_break_out_of_the_figure():
    svg = as_svg(confusion_matrix([[1, 0], [0, 1]], ["<script>", "a&b"]), "x")
    assert "<script>" not in svg
    ET.fromstring(svg)


def test_pyplot_is_never_imported_and_nothing_is_left_set():
    program = (
        "import sys, matplotlib as mpl; keys = 'font.size', 'axes.grid', 'svg.fonttype'; "
        "before = [mpl.rcParams[key] for key in keys]; "
        "from pipeline.tracking.figures import ulp_histogram, as_svg; "
        "as_svg(ulp_histogram({'fp32': (1, 2)}), 'x'); "
        "print('matplotlib.pyplot' in sys.modules, before == [mpl.rcParams[key] for key in keys], "
        "'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
    )
    assert done.stdout.split() == ["False", "True", "False"]


def test_without_classes_the_loss_stands_alone() -> None:
    history = [replace(epoch, accuracy=None, validation_accuracy=None) for epoch in epochs()]
    figure = learning_curve(history)
    assert len(figure.axes) == 1
    assert figure.axes[0].get_ylabel() == "mean squared error"
    assert figure.axes[0].get_legend() is not None


def test_units_in_the_last_place_are_drawn_for_each_variant() -> None:
    counts = {"fp32": (900, 50, 50), "int8": (0, 0, 100, 200, 9000, 699, 0, 0, 0, 0, 0, 0, 1)}
    figure = ulp_histogram(counts)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["fp32", "int8"]
    # 0, 1, 2 and then every second bin by the most that it holds.
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2", "8"]
    assert axes.get_xlim()[1] < 7, "a single value far out does not stretch the figure"
    assert "<svg" in as_svg(figure, "units")


def test_no_variants_are_an_empty_figure() -> None:
    assert "<svg" in as_svg(ulp_histogram({}), "units")
