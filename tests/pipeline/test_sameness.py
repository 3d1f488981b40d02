"""Whether two sets of answers decide alike, and the reports of it."""

from pathlib import Path

import numpy as np
import pytest
import sample_places
from sample_places import everywhere, report

from pipeline.proof.sameness import compare_answers
from pipeline.records.places import (
    ARM,
    decided_alike,
    edge_table,
    place_table,
    read_places,
    write_places,
)
from serving.errors import ModelError


def scores(*rows: tuple[float, float]) -> dict[str, np.ndarray]:
    return {"probabilities": np.array(rows, np.float32)}


def test_a_row_within_the_tie_is_no_flip_and_any_other_is() -> None:
    wanted = scores((0.9, 0.1), (0.501, 0.499), (0.6, 0.4), (0.2, 0.8))
    found = scores((0.8, 0.2), (0.499, 0.501), (0.4, 0.6), (0.2, 0.8))
    same = compare_answers(wanted, found, scores="probabilities", tie=0.01)
    assert (same.rows, same.equal, same.near_ties, same.flips) == (4, 2, 1, 1)
    assert same.largest_diff == pytest.approx(0.2)
    assert same.diff_of == "probabilities"


def test_the_margin_is_that_of_the_scores_that_the_tie_is_of() -> None:
    """Logits are far apart where their probabilities are not."""
    wanted = scores((0.501, 0.499)) | {"logits": np.array([[9.0, 1.0]], np.float32)}
    found = scores((0.499, 0.501)) | {"logits": np.array([[1.0, 9.0]], np.float32)}
    assert compare_answers(wanted, found, scores="probabilities", tie=0.01).flips == 0
    assert compare_answers(wanted, found, scores="logits", tie=0.01).flips == 1


def test_what_tells_one_of_the_outputs_alone_is_compared_by_it() -> None:
    wanted = scores((0.9, 0.1)) | {"logits": np.array([[4.0, 1.0]], np.float32)}
    same = compare_answers(wanted, scores((0.9, 0.1)), scores="probabilities", tie=0)
    assert (same.equal, same.largest_diff) == (1, 0)


def test_without_classes_there_is_nothing_decided() -> None:
    wanted = {"image": np.zeros((3, 4, 4), np.float32)}
    same = compare_answers(wanted, {"image": wanted["image"] + 1}, scores=None, tie=0)
    assert (same.equal, same.flips, same.largest_diff, same.diff_of) == (None, 0, 1, "image")


def test_answers_to_other_rows_or_of_other_outputs_are_refused() -> None:
    with pytest.raises(ModelError, match="1 rows were answered, 2 were asked"):
        compare_answers(scores((1, 0), (0, 1)), scores((1, 0)), scores="probabilities", tie=0)
    with pytest.raises(ModelError, match="no output is both in probabilities and in other"):
        compare_answers(scores((1, 0)), {"other": np.zeros(1)}, scores="probabilities", tie=0)


def test_reports_of_other_places_stay_while_the_file_is_the_same(tmp_path: Path) -> None:
    first, second = report(), report(ARM)
    write_places(tmp_path, "tiny", [first, second, report(variant="int8")])
    again = report(ARM, near_ties=1)
    write_places(tmp_path, "tiny", [again])
    (found,) = read_places(tmp_path)
    assert found.reports == (first, again, report(variant="int8"))
    write_places(tmp_path, "tiny", [report(ARM, sha256="ab" * 32)])
    (found,) = read_places(tmp_path)
    assert [(one.variant, one.place) for one in found.reports] == [
        ("fp32", ARM),
        ("int8", "x86 all"),
    ]


def test_the_tables_have_a_row_for_each_place_and_in_short_a_column() -> None:
    header, *rows = place_table([everywhere("mnist-tiny")])
    assert len(rows) == 7
    assert {len(row) for row in rows} == {len(header)}
    assert rows[-1][:4] == ("`mnist-tiny`", "int8", ARM, "998 of 1,000: 1 flip, 1 near-tie")
    assert rows[0][4:7] == ("0", "0.014 ms", "33.2 KiB")
    header, fp32, int8 = edge_table([everywhere("mnist-tiny")])
    assert header[1:4] == ("x86 all", "x86 none", ARM)
    assert fp32 == ("`mnist-tiny` fp32", "0", "0", "0", "0", "0")
    assert int8 == ("`mnist-tiny` int8", "0", "–", "1", "–", "–")


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "1,000 of 1,000"),
        ({"equal": None}, "–"),
        ({"equal": 995, "flips": 5}, "995 of 1,000: 5 flips"),
    ],
)
def test_what_is_decided_alike_is_told_in_words(facts: dict[str, int], text: str) -> None:
    assert decided_alike(sample_places.report(**facts)) == text
