"""The picture and the rows of a search: every try is there, whatever is known of it."""

import csv
import io
from collections.abc import Mapping
from dataclasses import replace

from tries import BUDGET, attempt

from pipeline.records.quantize import QuantizeReport, Search, Try, VariantFile, as_table
from pipeline.tracking import figures
from pipeline.tracking.figures import pareto, tries_csv


def search_of(*tries: Try, chosen: str | None) -> Search:
    return Search(
        budget=BUDGET,
        tries=tries,
        not_tried={"dynamic": "static-u8s8 is inside both budgets already"},
        chosen=chosen,
        reason="it is the fastest" if chosen else "none is inside, so fp32 ships",
        qat_epochs=0,
    )


def report_of(searches: Mapping[str, Search], **skipped: str) -> QuantizeReport:
    return QuantizeReport(
        experiment="mine",
        model_sha256="0" * 64,
        goal="speed",
        judged_on="mnist:validation",
        rows=1000,
        calibration_rows=64,
        machine="a processor",
        threads=1,
        seconds=1.0,
        variants={
            variant: VariantFile(recipe=one.chosen, bytes=10, sha256="0" * 64, size_ratio=0.3)
            for variant, one in searches.items()
            if one.chosen
        },
        skipped=skipped,
        searches=searches,
    )


FAILED = replace(
    attempt("static-u8u8", 1.0, 0.3),
    accurate=False,
    fast=False,
    verdict="cannot be applied: no kernel",
    quality=None,
    bytes=None,
    size_ratio=None,
    speedup={},
)
INT8 = search_of(
    attempt("static-u8s8", 2.0, 0.3),
    attempt("static-s8s8", 0.7, 0.31),
    attempt("dynamic", 3.0, 0.3, loss=2.0),
    FAILED,
    chosen="static-u8s8",
)
REPORT = report_of({"fp16": search_of(attempt("half", 1.1, 0.5), chosen="half"), "int8": INT8})


def test_a_row_for_every_try_empty_where_nothing_is_known() -> None:
    rows = list(csv.DictReader(io.StringIO(tries_csv(REPORT))))
    assert [row["recipe"] for row in rows] == [
        *("half", "static-u8s8", "static-s8s8", "dynamic", "static-u8u8"),
    ]
    assert rows[1] == {
        "variant": "int8",
        "recipe": "static-u8s8",
        "loss": "0",
        "low": "-0.1",
        "high": "0.1",
        "flips": "3",
        "size_ratio": "0.3",
        "speed": "2",
        "inside": "yes",
    }
    assert rows[4]["loss"] == rows[4]["speed"] == ""
    assert [row["inside"] for row in rows] == ["yes", "yes", "no", "no", "no"]


def test_the_picture_numbers_every_try_and_is_the_same_twice() -> None:
    text = figures.as_svg(pareto(REPORT), "mine")
    assert text == figures.as_svg(pareto(REPORT), "mine")
    for name in ("half", "static-u8s8", "dynamic"):
        assert name in text
    assert "times as fast as fp32" in text


def test_nothing_tried_is_a_picture_all_the_same() -> None:
    empty = report_of({})
    assert figures.as_svg(pareto(empty), "mine").startswith("<svg")
    assert tries_csv(empty).count("\n") == 1


def test_the_table_marks_what_was_kept_and_tells_why_the_others_were_not() -> None:
    lines = as_table(REPORT).splitlines()
    (kept,) = [line for line in lines if "static-u8s8 " in line and "KEPT" in line]
    assert "0.00 (-0.10 to 0.10)" in kept
    assert kept.split()[-3:] == ["2.00", "2.00", "KEPT"]
    words = {line.split()[1]: line.split("  ")[-1].strip() for line in lines[1:6]}
    assert words["static-s8s8"] == "slow or large"
    assert words["dynamic"] == "inaccurate"
    assert words["static-u8u8"] == "failed"
    assert "  static-u8u8: cannot be applied: no kernel" in lines
    assert "  not tried: dynamic: static-u8s8 is inside both budgets already" in lines
    slow = replace(INT8, slowness=("Conv in float: 40 % of the time in a",))
    assert "  slow: Conv in float: 40 % of the time in a" in as_table(report_of({"int8": slow}))


def test_the_table_tells_what_was_not_searched_at_all() -> None:
    assert as_table(report_of({}, int8="too small")) == "int8: not made: too small"
    refused = report_of({"int8": search_of(FAILED, chosen=None)}, int8="none is inside")
    assert as_table(refused).count("none is inside") == 1


def test_training_is_told_beside_the_recipe() -> None:
    trained = replace(attempt("dynamic", 3.0, 0.3), qat_epochs=4)
    plain = attempt("dynamic", 3.0, 0.3, loss=2.0)
    search = replace(search_of(plain, trained, chosen="dynamic"), qat_epochs=4)
    assert [search.kept(one) for one in (plain, trained)] == [False, True]
    assert "dynamic after training" in as_table(report_of({"int8": search}))


def test_the_speed_of_a_try_is_the_geometric_mean() -> None:
    one = attempt("dynamic", 1.0, 0.3)
    speedup = {
        "1": replace(one.speedup["1"], median=0.5),
        "32": replace(one.speedup["1"], median=2.0),
    }
    assert replace(one, speedup=speedup).speed == 1
    assert replace(one, speedup={}).speed == 0
