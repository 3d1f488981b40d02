"""`ferry lint`: whether a model runs, and answers alike, where it is to go, by the file itself.

The rule of int8 is judged here, for every model; of the runtimes and the execution providers that
were asked for, the modules beside this one know what there is to know.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.exporting.onnxmodel import load_foreign
from pipeline.proof.overflow import SAFE, integer_products, needs_of, without_vnni
from pipeline.proof.rows import open_rows
from pipeline.proof.sides import model_side
from pipeline.proof.tracing.values import node_name
from pipeline.quantization.judging import OVERFLOW_ROWS, lost_without_vnni
from pipeline.records.quantize import WithoutVnni
from pipeline.targets.lint.findings import LintFinding, LintModel
from pipeline.targets.lint.providers import of_provider
from pipeline.targets.lint.runtimes import Version, of_runtime, of_runtimes
from serving.bundles.bundle import MODEL, open_bundle
from serving.bundles.finding import not_there
from serving.measuring.feeds import fixed_batch
from serving.runtime.classes import Task
from serving.runtime.kernels import overflows

MOST_NAMED = 8
RUNTIME_TARGETS = ("cpu", "arm64", "triton")
"""Those whose bundles run on whatever ONNX Runtime is installed there."""
TARGET_PROVIDERS: Mapping[str, tuple[str, ...]] = {"web": ("web",)}
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
    findings: tuple[LintFinding, ...]
    """Of the runtimes and providers that were asked for, or that its bundle was made for."""

    @property
    def failed(self) -> bool:
        """Whether something that was asked for does not run it, or int8 is not alike everywhere."""
        return bool(self.needs) or any(one.severity == "error" for one in self.findings)


def lint(
    model: Path,
    rows: str | None = None,
    task: Task | None = None,
    shared: Mapping[str, str] | None = None,
    runtime: Version | None = None,
    providers: Sequence[str] = (),
) -> LintReport:
    """Judge an ONNX file or a bundle; with `rows`, as `open_rows` takes them, what it would lose.

    `shared` are inputs that are the same for all rows, as `open_session` takes them; a bundle has
    its own. `runtime` is a version of ONNX Runtime and `providers` are names of `PROVIDER_RULES`
    where the model is to go; of a bundle without either it is what its target needs.

    Raises MissingInputError, ModelError for a file that cannot be run, InputError for rows that
    it does not take, and IntegrityError for a bundle that was altered.
    """
    target = ""
    if not model.exists():
        raise not_there(model)
    if model.is_dir():
        bundle = open_bundle(model)
        target, shared = bundle.manifest.target, {**bundle.manifest.given, **(shared or {})}
        model /= MODEL
    report, judged = _judged(model, rows, task, shared, target)
    return dataclasses.replace(report, findings=tuple(_findings(judged, runtime, providers)))


def _findings(
    model: LintModel, runtime: Version | None, providers: Sequence[str]
) -> Iterator[LintFinding]:
    """What was asked for; of a bundle for which nothing was, what its target asks for."""
    if runtime:
        yield from of_runtime(model, runtime)
    elif model.target in RUNTIME_TARGETS and not providers:
        yield from of_runtimes(model)
    for provider in providers or TARGET_PROVIDERS.get(model.target, ()):
        yield from of_provider(model, provider)


def _judged(
    model: Path,
    rows: str | None,
    task: Task | None,
    shared: Mapping[str, str] | None,
    target: str,
) -> tuple[LintReport, LintModel]:
    """The rule of int8, and the model for the rules of the places."""
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
    report = LintReport(
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
        findings=(),
    )
    return report, LintModel(
        name=model.parent.name if target else model.stem,
        path=str(model),
        content=side.content,
        model=graph,
        inputs=side.inputs,
        target=target,
    )


def as_text(report: LintReport) -> str:
    """The findings for a person, each with its cure."""
    blocks = [_of_int8(report), *map(_of_finding, report.findings)]
    return "\n".join(blocks)


def _of_finding(one: LintFinding) -> str:
    lines = [f"{one.severity:<7}  {one.place}: {one.what}"]
    lines += [f"{'':9}cure: {one.cure}"] if one.cure else []
    return "\n".join([*lines, *(f"{'':9}see {address}" for address in one.see)])


def _of_int8(report: LintReport) -> str:
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
