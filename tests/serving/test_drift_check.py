"""Rows of the same distribution warn of nothing; rows that have moved do, and the run goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drift_samples import Array, classified, pictures, reference
from tiny_classifier import LABELS, contents, images
from tiny_kinds import errors, halved

from serving.batch.answers import answer
from serving.bundles.reference import Reference
from serving.bundles.writing import write_bundle
from serving.drift.check import DriftCheck, DriftReport, DriftState, open_check
from serving.drift.quantities import CLASS
from serving.errors import IntegrityError
from serving.files import dump_json, read_record
from serving.model import Model, open_model

TRAINING = 5000
WORDS = ["the", "film", "is", "a", "joy", "to", "see", "and", "so", "dull"]


def labels(rng: np.random.Generator, rows: int) -> Array:
    return rng.choice(10, rows, p=[0.2, 0.2, 0.15, 0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.02])


def sure(rng: np.random.Generator, rows: int) -> Array:
    """Most answers are as sure as float32 tells."""
    return 1 - np.minimum(0.9, rng.exponential(1e-4, rows) * 10 ** rng.uniform(-4, 3, rows))


def answers(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    return classified(labels(rng, rows), sure(rng, rows))


def table(rng: np.random.Generator, rows: int) -> Array:
    """Normal, skewed, whole, rarely not zero, constant, with holes."""
    columns = [
        rng.normal(size=rows),
        rng.lognormal(size=rows),
        rng.poisson(2, rows),
        rng.normal(size=rows) * (rng.random(rows) < 0.05),
        np.full(rows, 3.0),
        np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows)),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def texts(rng: np.random.Generator, rows: int) -> Array:
    counts = rng.poisson(12, rows)
    return np.array([" ".join(rng.choice(WORDS, count)) for count in counts], object)


MAKERS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "images": pictures,
    "table": table,
    "texts": texts,
}


def trained(maker: Callable[[np.random.Generator, int], Array], seed: int = 0) -> Reference:
    rng = np.random.default_rng(seed)
    known = " ".join(WORDS[:8])
    return reference(maker(rng, TRAINING), answers(rng, TRAINING), known=known)


def checked(given: Reference, rows: Array, columns: dict[str, Array]) -> DriftReport:
    check = DriftCheck(given)
    check.add(rows, columns)
    return check.report()


# The same distribution


@pytest.mark.parametrize("rows", [1, 100, 1000])
@pytest.mark.parametrize("kind", MAKERS)
def test_rows_like_the_training_data_do_not_warn(kind: str, rows: int) -> None:
    given = trained(MAKERS[kind])
    draws = 40 if kind == "texts" else 200
    warned = 0
    for seed in range(draws):
        rng = np.random.default_rng(1000 + seed)
        warned += bool(checked(given, MAKERS[kind](rng, rows), answers(rng, rows)).moved)
    assert warned <= draws / 100


def test_a_small_reference_does_not_warn_either() -> None:
    warned = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        given = reference(table(rng, 60), answers(rng, 60))
        warned += bool(checked(given, table(rng, 2000), answers(rng, 2000)).moved)
    assert warned <= 2


def test_the_training_rows_themselves_have_not_moved() -> None:
    rng = np.random.default_rng(0)
    rows, columns = table(rng, TRAINING), answers(rng, TRAINING)
    report = checked(reference(rows, columns), rows, columns)
    assert [one.psi for one in report.quantities] == [0] * 8


# What has moved


def moved(given: Reference, rows: Array, columns: dict[str, Array]) -> set[str]:
    return {one.name for one in checked(given, rows, columns).moved}


@pytest.mark.parametrize(
    ("shift", "names"),
    [
        (lambda rows: 255 - rows, {"mean brightness"}),
        (lambda rows: np.minimum(rows, 235) + 20, {"mean brightness"}),
        (lambda rows: rows // 2, {"mean brightness", "contrast"}),
        (lambda rows: rows.mean(axis=(1, 2, 3), keepdims=True) + 0 * rows, {"contrast"}),
        (lambda rows: rows * np.array([1, 1, 0]), {"mean blue"}),
        (lambda rows: rows // 255, {"mean brightness", "contrast"}),
        (lambda rows: np.random.default_rng(3).integers(0, 256, rows.shape), {"contrast"}),
    ],
    ids=["inverted", "brighter", "darker", "flat", "no blue", "zero to one", "another data set"],
)
def test_images_that_are_others(shift: Callable[[Array], Array], names: set[str]) -> None:
    given = trained(pictures)
    rng = np.random.default_rng(7)
    rows = shift(pictures(rng, 500)).astype(np.uint8)
    assert names <= moved(given, rows, answers(rng, 500))


@pytest.mark.parametrize(
    ("column", "shift"),
    [
        (0, lambda column: column + 0.6),
        (0, lambda column: column * 2),
        (1, lambda column: column * 1.8),
        (2, lambda column: column + 1),
        (3, lambda column: column + 1e-3),
        (4, lambda column: column + 1e-3),
        (5, lambda column: column * np.nan),
    ],
)
def test_a_feature_that_has_moved_is_named_alone(
    column: int, shift: Callable[[Array], Array]
) -> None:
    given = trained(table)
    rng = np.random.default_rng(8)
    rows = table(rng, 1000)
    rows[:, column] = shift(rows[:, column])
    assert moved(given, rows, answers(rng, 1000)) == {f"feature {column}"}


def test_texts_of_other_words_and_lengths() -> None:
    given = trained(texts)
    rng = np.random.default_rng(10)
    other = np.array([text.replace("film", "сериал") for text in texts(rng, 500)], object)
    assert "unknown words" in moved(given, other, answers(rng, 500))
    short = np.array([" ".join(text.split()[:6]) for text in texts(rng, 500)], object)
    assert {"characters", "words"} <= moved(given, short, answers(rng, 500))


def test_one_class_alone_and_less_sure_answers() -> None:
    given = trained(pictures)
    rng = np.random.default_rng(11)
    rows = pictures(rng, 300)
    alone = classified(np.full(300, 7), sure(rng, 300))
    (one,) = checked(given, rows, alone).moved
    assert (one.name, one.of, one.verdict) == (CLASS, "predictions", "strongly moved")
    unsure = classified(labels(rng, 300), np.full(300, 0.6))
    assert moved(given, rows, unsure) == {"confidence"}


def test_a_reconstruction_that_is_worse() -> None:
    rows = images(400)
    columns = {"error": errors(rows), "reconstruction": halved(rows)}
    given = reference(rows, columns, kind="reconstruction")
    assert moved(given, rows, columns) == set()
    assert moved(given, rows, columns | {"error": 3 * columns["error"]}) == {"error"}


def test_few_rows_of_a_strong_shift_are_enough() -> None:
    given = trained(pictures)
    rng = np.random.default_rng(12)
    dark = (pictures(rng, 40) // 5).astype(np.uint8)
    assert "mean brightness" in moved(given, dark, answers(rng, 40))


# What is told


def report_of(shift: float, rows: int = 1000) -> DriftReport:
    given = trained(table)
    rng = np.random.default_rng(13)
    found = table(rng, rows)
    found[:, 0] += shift
    return checked(given, found, answers(rng, rows))


def test_a_line_says_what_moved_and_where() -> None:
    (line,) = report_of(2.0).lines()
    start = "inputs strongly moved: feature 0 PSI "
    assert line.startswith(start)
    psi, rest = line.removeprefix(start).split(" ", 1)
    assert float(psi) > 1
    assert rest.startswith("over 1,000 rows (limit 0.25); over 1.2")
    assert "10.0% in training, " in rest


def test_a_smaller_move_has_the_smaller_limit() -> None:
    (one,) = report_of(0.42).moved
    assert (one.verdict, one.limit) == ("moved", 0.1)
    assert 0.1 < one.psi < 0.25


def test_without_a_move_one_line_says_so() -> None:
    assert report_of(0).lines() == ["no drift from toy in 8 quantities of 1,000 rows"]


def test_that_few_rows_tell_little_is_told() -> None:
    (line,) = report_of(0, rows=20).lines()
    assert line.startswith("no drift from toy in 8 quantities of 20 rows; so few show no PSI below")


@pytest.mark.parametrize(
    ("features", "last"),
    [(20, "and 15 more quantities moved"), (7, "and feature 1, feature 0 moved too")],
)
def test_many_moves_are_told_in_few_lines(features: int, last: str) -> None:
    rng = np.random.default_rng(14)
    given = reference(rng.normal(size=(2000, features)).astype(np.float32), answers(rng, 2000))
    rows = (rng.normal(size=(500, features)) + np.linspace(1, 3, features)).astype(np.float32)
    lines = checked(given, rows, answers(rng, 500)).lines()
    assert len(lines) == 6
    assert f"feature {features - 1}" in lines[0]
    assert lines[-1] == last


def test_no_rows_are_no_drift() -> None:
    check = DriftCheck(trained(table))
    check.add(np.zeros((0, 6), np.float32), classified(np.zeros(0, int)))
    assert check.report().rows == 0
    assert check.report().lines() == ["nothing to hold against the training data"]


# Batch by batch, and over several runs


def test_batches_add_up_to_the_whole() -> None:
    given = trained(table)
    rng = np.random.default_rng(15)
    rows, columns = table(rng, 1000), answers(rng, 1000)
    parts = DriftCheck(given)
    for at in range(0, 1000, 37):
        taken = slice(at, at + 37)
        parts.add(rows[taken], {name: one[taken] for name, one in columns.items()})
    assert parts.report() == checked(given, rows, columns)


def test_a_run_that_goes_on_counts_all_of_its_rows() -> None:
    given = trained(pictures)
    rng = np.random.default_rng(16)
    rows, columns = pictures(rng, 200), answers(rng, 200)
    before = DriftCheck(given)
    before.add(rows[:120], {name: one[:120] for name, one in columns.items()})
    text = dump_json(before.to_record())
    state = read_record(DriftState, json.loads(text), "the state")
    after = DriftCheck(given)
    after.restore(state)
    after.add(rows[120:], {name: one[120:] for name, one in columns.items()})
    assert after.report() == checked(given, rows, columns)
    assert len(text) < 3000
    assert before.report().rows == 120


def test_the_state_of_another_reference_is_refused() -> None:
    state = DriftCheck(trained(table)).to_record()
    with pytest.raises(IntegrityError, match=r"held against another reference\.json"):
        DriftCheck(trained(table, seed=1)).restore(state)


@pytest.mark.parametrize("spoilt", [{}, {"feature 0": (1, 2)}])
def test_a_state_with_other_counts_is_refused(spoilt: dict[str, tuple[int, ...]]) -> None:
    check = DriftCheck(trained(table))
    sha256 = check.to_record().reference_sha256
    with pytest.raises(IntegrityError):
        check.restore(DriftState(reference_sha256=sha256, rows=3, counts=spoilt))


def test_rows_of_another_model_are_refused() -> None:
    check = DriftCheck(trained(table))
    with pytest.raises(IntegrityError, match=r"reference\.json is of another model"):
        check.add(images(4), classified(np.zeros(4, int)))


def test_a_bundle_is_held_against_its_own_answers(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_bundle(folder, contents())
    model = open_model(folder)
    rng = np.random.default_rng(17)
    rows, columns = some_answers(model, rng)
    write_bundle(folder, contents(reference=reference(rows, columns, classes=3)))
    check = open_check(folder)
    check.add(*some_answers(model, rng))
    assert check.report().moved == ()
    of_one = columns["label_index"] == 0
    assert 0.1 < of_one.mean() < 0.5
    check.add(rows[of_one], {name: one[of_one] for name, one in columns.items()})
    check.add(rows[of_one], {name: one[of_one] for name, one in columns.items()})
    (moved,) = [one for one in check.report().moved if one.name == CLASS]
    assert moved.most.startswith(f"{LABELS[0]}: ")


def some_answers(model: Model, rng: np.random.Generator) -> tuple[Array, dict[str, Array]]:
    """Images of a few bright dots, which the tiny classifier tells apart, and what it says."""
    dots = rng.random((600, 4, 5, 1)) < 0.1
    rows = (rng.integers(0, 256, dots.shape) * dots).astype(np.uint8)
    return rows, answer(model, [""] * 600, rows).columns
