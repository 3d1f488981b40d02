"""The command `ferry data`: what a data set holds, and what may be wrong with it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from serving.console import json_option, show, table

if TYPE_CHECKING:
    from pipeline.project.data import DataReport

KINDS = {"image": "images", "table": "rows of a table", "text": "texts"}
MOST_LINES = 30
"""Of a table of classes or columns; --json has them all."""
LONGEST_EXAMPLE = 60
"""Characters of a row that are shown; --json has them all."""


@click.command()
@click.argument("dataset")
@json_option
def data(dataset: str, as_json: bool) -> None:
    """Show what DATASET holds, and what may be wrong with it.

    That is its rows by split and class, the ranges of its values and examples, of images a contact
    sheet, and warnings. A data set of your own is read anew if its files or its section of
    params.yaml have changed.

    Example: ferry data digits
    """
    from pipeline.commands.options import enter_project
    from pipeline.config import layout, params
    from pipeline.project.data import bring_up_to_date, describe

    enter_project()
    config = params.dataset(params.load(), dataset)
    ready = layout.ready(dataset)
    bring_up_to_date(layout.raw(dataset), ready, name=dataset, config=config)
    report = describe(ready, layout.contact_sheet(dataset))
    show(report, as_json=as_json, text="\n\n".join(_sections(report)))


def _sections(report: "DataReport") -> Iterator[str]:
    total, row = sum(report.rows.values()), f" {list(report.row)}" if report.row else ""
    classes = f", {len(report.classes)} classes" if report.classes else ""
    each = f", {report.dtype}{row} each" if row else ""
    yield f"{report.dataset}: {total:,} {KINDS[report.kind]}{each}{classes}"
    lines = [
        [label, *map("{:,}".format, counts.values())] for label, counts in report.classes.items()
    ]
    rows = ["all", *map("{:,}".format, report.rows.values())]
    yield table(["class" if lines else "rows", *report.rows], [*_first(lines), rows])
    values = [
        [one.name, *(f"{value:.4g}" for value in (one.lowest, one.highest, one.mean, one.std))]
        for one in report.values
    ]
    yield table(["train", "lowest", "highest", "mean", "std"], _first(values))
    if report.contact_sheet:
        yield f"Examples: {report.contact_sheet}"
    else:
        examples = [[_shortened(one.text), one.label] for one in report.examples]
        yield table(["example", "answer"], examples)
    if report.warnings:
        yield "\n".join(f"Warning: {warning}" for warning in report.warnings)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_EXAMPLE else f"{text[: LONGEST_EXAMPLE - 1]}…"


def _first(lines: list[list[str]]) -> list[list[str]]:
    if len(lines) <= MOST_LINES:
        return lines
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], [f"and {left} more", *[""] * (len(lines[0]) - 1)]]
