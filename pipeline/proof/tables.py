"""What parity found, for a terminal and for a page: the verdict first, then what is behind it."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.proof.gate import QUANTITIES, probabilities, values
from pipeline.records.parity import (
    SECOND_EXPORTER,
    Cell,
    OnnxReferenceAnswer,
    PairReport,
    ParityReport,
    SkippedCell,
    VariantParity,
)
from serving.console import DASH, number, table

OUTPUT_HEADER = ("output", "max diff", "at", "largest", "SNR", "flips")


def parity_table(report: ParityReport) -> str:
    """Lay out a report: one line per variant, then what failed, what was skipped and why."""
    accuracy = "" if report.torch_accuracy is None else f"accuracy {report.torch_accuracy:.2%} "
    if report.torch_r2 is not None:
        accuracy = f"R² {report.torch_r2:.4f} "
    variants = report.variants
    # Why a way was not run is said once, not once per variant.
    skipped = {
        cell.provider if cell.exporter != SECOND_EXPORTER else SECOND_EXPORTER: cell.reason
        for one in variants.values()
        for cell in one.cells
        if isinstance(cell, SkippedCell)
    }
    remarks = [f"{name}: {note}" for name, one in variants.items() for note in notes(one)]
    remarks += [f"{way}: skipped: {reason}" for way, reason in skipped.items()]
    head = f"PyTorch: {accuracy}on {report.rows:,} rows"
    return "\n\n".join([head, _lines(variants), "\n".join(remarks)]).rstrip()


def pair_table(report: PairReport) -> str:
    """Lay out the comparison of two models."""
    run = report.result.run
    decided = [one for cell in run for one in cell.decisions]
    known = decided[0].reference_accuracy if decided else None
    accuracy = "" if known is None else f", accuracy {known:.2%}"
    head = f"{report.reference.name}{accuracy}, on {report.rows:,} rows of {report.data}"
    parts = [head, _lines({report.other.name: report.result})]
    if len(run[0].outputs) > 1:
        outputs = [_output_line(one.output, run) for one in run[0].outputs]
        parts.append(table(OUTPUT_HEADER, outputs))
    remarks = [*notes(report.result), *(axis.describe() for axis in report.axes)]
    return "\n\n".join([*parts, "\n".join(remarks)]).rstrip()


def notes(variant: VariantParity) -> Iterator[str]:
    """What a person should know beside the figures, one line each."""
    for failure in variant.failures:
        yield f"FAILED: {failure}"
    if variant.first_nonfinite is not None:
        yield variant.first_nonfinite.describe()
    if variant.first_divergence is not None:
        yield f"largest divergence: {variant.first_divergence.describe()}"
    yield from _flipped(variant)
    for row in variant.hostile:
        if row.message:
            yield f"hostile row {row.name!r}: {row.message}"
    beyond = [row for row in variant.hostile if not row.gated and row.max_abs_diff is not None]
    if beyond:
        far = ", ".join(f"{row.name!r} {row.max_abs_diff:.1e}" for row in beyond)
        yield f"at and beyond the ends of the rows' range, where no limit holds: {far}"
    if variant.zero_rows not in ("answered 0 rows", "not asked"):
        yield f"a batch without rows {variant.zero_rows}"
    yield from variant.notes
    yield from _onnx_reference(variant.onnx_reference)


def facts(variant: VariantParity) -> tuple[tuple[str, str], ...]:
    """What is behind a verdict, by what a person calls it."""
    found = [
        ("signal to noise", _decibels(variant.snr_db)),
        ("largest relative difference", f"{variant.max_rel_diff:.1e}"),
    ]
    if variant.flips is not None and variant.flip_rate is not None:
        low, high = variant.flip_rate.low, variant.flip_rate.high
        found.append(("real flips (95 %)", f"{variant.flips} ({low:.2%} to {high:.2%})"))
        found.append(("flipped near-ties", str(variant.near_ties)))
    if variant.mcnemar_p is not None:
        found.append(("McNemar p", f"{variant.mcnemar_p:.2g}"))
    if variant.hostile:
        most = f"{len(variant.hostile)}, up to {variant.hostile_max_abs_diff:.1e}"
        found.append(("hostile rows", most))
    found.append(("batch without rows", variant.zero_rows))
    answer = variant.onnx_reference
    if answer.to_model is None or answer.to_reference is None:
        found.append(("onnx.reference", f"no answer: {answer.skipped}"))
    else:
        text = f"{answer.to_model:.1e} from this, {answer.to_reference:.1e} from PyTorch"
        found.append((f"onnx.reference, {answer.rows} rows", text))
    return tuple(found)


def cell_lines(variant: VariantParity) -> list[tuple[str, ...]]:
    """Every way a model was run, a line each: how, the verdict, and the figures."""
    return [_cell_line(cell) for cell in variant.cells]


def ulps(report: ParityReport) -> dict[str, tuple[int, ...]]:
    """The histogram of units in the last place of each variant's first output.

    Of the cell with the largest difference, among those of all rows that ship.
    """
    found = {}
    for name, variant in report.variants.items():
        whole = [cell.outputs[0] for cell in variant.run if cell.ships and cell.rows == report.rows]
        worst = max(whole, key=lambda output: output.max_abs_diff, default=None)
        if worst is not None:
            found[name] = worst.ulps
    return found


def _lines(variants: Mapping[str, VariantParity]) -> str:
    """A table with a line for each variant, and a column for each quantity that is measured."""
    rows = [dict(_columns(name, variant)) for name, variant in variants.items()]
    header = [key for key in rows[0] if any(row[key] != DASH for row in rows)] if rows else []
    return table(tuple(header), [tuple(row[key] for key in header) for row in rows])


def _columns(name: str, variant: VariantParity) -> Iterator[tuple[str, str]]:
    """The cells of a variant's line, each with its heading."""
    yield "variant", name
    yield "gate", "passed" if variant.passed else "FAILED"
    yield "accuracy", number(variant.accuracy, ".2%")
    yield "R²", number(variant.r2, ".4f")
    # Decisions come first, numbers after them.
    for quantity in sorted(QUANTITIES, key=lambda one: not one.of_classes):
        if quantity.heading:
            yield quantity.heading, quantity.text(quantity.measured(variant))
        if quantity.name == "max_abs_diff":
            place = f"{variant.max_abs_output}{list(variant.max_abs_at)}"
            yield "at", place if variant.max_abs_at else DASH
        if quantity.name == "flips":
            yield "near-ties", number(variant.near_ties)


def _output_line(name: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The worst of one output over all cells."""
    found = [one for cell in cells for one in cell.outputs if one.output == name]
    worst = max(found, key=lambda one: (one.nonfinite > 0, one.max_abs_diff))
    ratios = [one.snr_db for one in found if one.snr_db is not None]
    flips = [one.flips for cell in cells for one in cell.decisions if one.output == name]
    return (
        name,
        f"{worst.max_abs_diff:.1e}",
        str(list(worst.max_abs_at)) if worst.max_abs_at else DASH,
        f"{worst.largest:.3g}",
        _decibels(min(ratios, default=None)),
        number(max(flips, default=None)),
    )


def _cell_line(cell: Cell | SkippedCell) -> tuple[str, ...]:
    way = (cell.exporter, cell.provider, cell.level or "any")
    if isinstance(cell, SkippedCell):
        return (*way, DASH, DASH, "skipped", cell.reason)
    worst = [
        max((one.max_abs_diff for _, one in of_kind([cell])), default=None)
        for of_kind in (values, probabilities)
    ]
    ratios = [one.snr_db for one in cell.outputs if one.snr_db is not None]
    flips = [(str(one.flips), str(one.near_ties)) for one in cell.decisions]
    return (
        *way,
        str(cell.batch_size),
        f"{cell.rows:,}",
        "passed" if cell.passed else "failed",
        *(number(diff, ".1e") for diff in worst),
        _decibels(min(ratios, default=None)),
        *(flips[0] if flips else (DASH, DASH)),
    )


def _decibels(snr_db: float | None) -> str:
    return "exact" if snr_db is None else f"{snr_db:.0f} dB"


def _flipped(variant: VariantParity) -> Iterator[str]:
    """The first rows that really flip, by number, and how sure that is."""
    if variant.flips and variant.flip_rate is not None:
        decided = [one for cell in variant.run for one in cell.decisions]
        worst = max(decided, key=lambda one: one.flips)
        rows = [str(flip.row) for flip in worst.named if not flip.near_tie][:5]
        more = ", …" if worst.flips > len(rows) else ""
        low, high = variant.flip_rate.low, variant.flip_rate.high
        p_value = "" if variant.mcnemar_p is None else f", McNemar p = {variant.mcnemar_p:.2g}"
        yield (
            f"flips of rows {', '.join(rows)}{more}: {low:.2%} to {high:.2%} of all rows{p_value}"
        )


def _onnx_reference(answer: OnnxReferenceAnswer) -> Iterator[str]:
    if answer.warning:
        yield answer.warning
    if answer.skipped not in (None, "not asked"):
        yield f"no answer of onnx.reference: {answer.skipped}"
    elif answer.to_reference is not None and answer.to_model is not None:
        yield (
            f"onnx.reference on {answer.rows} rows: {answer.to_model:.1e} from this model, "
            f"{answer.to_reference:.1e} from the reference"
        )
