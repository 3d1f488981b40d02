"""`ferry lint MODEL.onnx`: whether int8 answers alike on every processor, by the file itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.exporting.onnxmodel import load_foreign
from pipeline.proof.overflow import SAFE, integer_products, needs_of, without_vnni
from pipeline.proof.rows import open_rows
from pipeline.proof.sides import model_side
from pipeline.proof.tracing.values import node_name
from pipeline.quantization.judging import OVERFLOW_ROWS, lost_without_vnni
from pipeline.records.quantize import WithoutVnni
from serving.measuring.feeds import fixed_batch
from serving.runtime.classes import Task
from serving.runtime.kernels import overflows

MOST_NAMED = 8
CURE = (
    "cure: quantize with weights of 7 bits, by `ferry quantize` or with reduce_range=True of "
    "onnxruntime's quantizers"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsafeProduct:
    """A node whose sums of integer products may overflow without VNNI."""

    node: str
    operator: str
    largest: int | None
    """The largest size of its weights; None for weights that are computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintReport:
    """What was found."""

    model: str
    sha256: str
    products: int
    """Of integers, in the top graph."""
    unsafe: tuple[UnsafeProduct, ...]
    needs: tuple[str, ...]
    """What a processor must have to answer as the graph says: ("vnni",), or nothing."""
    overflows_here: bool
    """Whether such sums overflow on this processor."""
    rows: int
    without_vnni: WithoutVnni | None
    """Beside the graph as it is written, on these rows; None where none were given or needed."""


def lint(
    model: Path,
    rows: str | None = None,
    task: Task | None = None,
    shared: Mapping[str, str] | None = None,
) -> LintReport:
    """Judge an ONNX file; with `rows`, as `open_rows` takes them, compute what it would lose.

    `shared` are inputs that are the same for all rows, as `open_session` takes them.

    Raises MissingInputError, ModelError for a file that cannot be run, and InputError for rows that
    it does not take.
    """
    graph = load_foreign(model)
    side = model_side(model.name, model.read_bytes(), level="none", shared=shared)
    products = list(integer_products(graph.graph))
    needs = needs_of(graph)
    count, found = 0, None
    if rows is not None and needs:
        opened = open_rows(rows, side.inputs)
        count = fixed_batch(side.inputs) or min(OVERFLOW_ROWS, len(opened))
        feeds = opened.slice(0, count)
        lost = without_vnni(graph, side.session.whole(feeds))
        wanted = {info.name: lost.exact[info.name] for info in side.outputs}
        found = lost_without_vnni(wanted, lost, opened, task)
    return LintReport(
        model=str(model),
        sha256=side.sha256,
        products=len(products),
        unsafe=tuple(
            UnsafeProduct(node=node_name(one.node), operator=one.node.op_type, largest=one.largest)
            for one in products
            if not one.safe
        ),
        needs=needs,
        overflows_here=overflows(),
        rows=count,
        without_vnni=found,
    )


def as_text(report: LintReport) -> str:
    """The findings for a person, each with its cure."""
    if not report.products:
        return "no products of integers: nothing can overflow"
    if not report.needs:
        return f"alike everywhere: no sum of {report.products} integer products can overflow"
    of = f"{len(report.unsafe)} of {report.products} integer products"
    lines = [f"needs VNNI: weights of {of} go beyond ±{SAFE}, or are computed"]
    for one in report.unsafe[:MOST_NAMED]:
        largest = "computed" if one.largest is None else f"up to {one.largest}"
        lines.append(f"  {one.operator} {one.node}: {largest}")
    if len(report.unsafe) > MOST_NAMED:
        lines.append(f"  and {len(report.unsafe) - MOST_NAMED} more")
    if report.without_vnni:
        lines.append(f"on {report.rows:,} rows, {report.without_vnni.describe()}")
    here = "overflow" if report.overflows_here else "do not overflow"
    return "\n".join([*lines, f"on this processor such sums {here}", CURE])
