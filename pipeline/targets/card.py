"""The model card of a bundle, `README.md`, and its bill of materials, `bom.json`.

Both say what the manifest says, in the forms that people and tools read: Markdown with the front
matter of the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards), and CycloneDX. What
nobody knows, such as the licence of a file's data, is said to be unknown.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.proof.gate import QUANTITIES
from pipeline.records.ready import DatasetManifest
from pipeline.targets.bom import bill_of_materials
from serving.bundles import Target
from serving.bundles.bundle import FOREIGN, MODEL, BundleManifest
from serving.bundles.writing import Part
from serving.files import json_line, sha256_of_bytes

CARD, BOM = "README.md", "bom.json"
TITLES = {one.name: one.title for one in QUANTITIES}
FORMS = {one.name: one.text for one in QUANTITIES}
HUB_TASKS = (
    *("image-classification", "text-classification"),
    *("tabular-classification", "tabular-regression"),
)
"""What the Hub calls the tasks; it has no word for others."""
SHOWN_CLASSES = 40
UNPRINTABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff]")
"""What YAML takes in a quoted text only if it is escaped, and JSON as it is."""
RUNS: Mapping[Target, str] = {
    "triton": "tritonserver --model-repository=.     # serves it over HTTP and gRPC",
    "web": "ferry demo .                          # its page; so does any server of static files",
    "c": "cc -std=c99 model.c selftest.c -lm -o ../selftest && ../selftest    # without Python",
}
"""How a target runs it besides."""
KINDS = {"image": "images", "text": "texts", "tabular": "rows of numbers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What there is to say of a model."""

    manifest: BundleManifest
    data: DatasetManifest | None
    """The data set that it was trained on; None for a file that ferry did not train."""
    architecture: str
    """A file of `pipeline/models`; "" where nobody knows it."""
    parameters: int | None

    @property
    def kind(self) -> str:
        """What its rows are: "image", "text" or "tabular"."""
        info = self.manifest.inputs[0]
        if info.is_text:
            return "text"
        return "image" if len(info.shape) == 4 else "tabular"

    @property
    def task(self) -> str:
        """What it does, for instance "image-classification"; "" where it does not say so."""
        classes = self.manifest.classes
        names = {info.name for info in self.manifest.outputs}
        if classes.scores or classes.label:
            return f"{self.kind}-classification"
        if "prediction" in names and self.data:
            return f"{self.kind}-regression"
        return f"{self.kind}-reconstruction" if "reconstruction" in names else ""

    @property
    def reference(self) -> str:
        """What it was proven against."""
        return "the file it was compared with" if self.data is None else "the trained weights"

    @property
    def licence(self) -> str:
        """Of the data, in words."""
        if self.data is None:
            return "unknown: the model is a file that was trained elsewhere"
        stated = self.data.licence or "none is stated in the project"
        return "none is stated by its authors" if stated == "none stated" else stated


def card_part(
    data: DatasetManifest | None, *, architecture: str = "", parameters: int | None = None
) -> Part:
    """The part that adds both files; it is the last one, as it lists the files of all others."""

    def part(manifest: BundleManifest, files: Mapping[str, bytes]) -> dict[str, bytes]:
        card = Card(manifest=manifest, data=data, architecture=architecture, parameters=parameters)
        text = "\n".join([*_front_matter(card), *_body(card)]).encode() + b"\n"
        sums = {name: sha256_of_bytes(content) for name, content in files.items()}
        bom = bill_of_materials(card, {**sums, CARD: sha256_of_bytes(text)})
        # On one line: it is for tools, and a bundle should be small.
        return {CARD: text, BOM: json_line(bom).encode()}

    return part


# The front matter


def _front_matter(card: Card) -> Iterator[str]:
    """YAML for the Hub; without a licence, as nobody told that of the model."""
    manifest = card.manifest
    yield "---"
    yield "library_name: onnx"
    if card.task in HUB_TASKS:
        yield f"pipeline_tag: {card.task}"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("onnx", "onnxruntime", "ferry", _quoted(manifest.variant)))
    if card.data:
        yield from ("datasets:", f"- {_quoted(card.data.dataset)}")
        yield from _results(card)
    yield "---"


def _results(card: Card) -> Iterator[str]:
    """The model's index of results, as Papers with Code read it."""
    data, metrics = card.data, card.manifest.metrics
    if not metrics or data is None:
        return
    yield from ("model-index:", f"- name: {_quoted(card.manifest.name)}", "  results:")
    yield f"  - task: {{type: {card.task or 'other'}}}"
    name = _quoted(data.dataset)
    yield f"    dataset: {{name: {name}, type: {name}, split: test}}"
    yield "    metrics:"
    for metric, value in metrics.items():
        yield f"    - {{type: {_quoted(metric)}, value: {value!r}}}"


def _quoted(text: str) -> str:
    """A text in YAML: JSON, but for what YAML wants escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


# The text


def _body(card: Card) -> Iterator[str]:
    manifest = card.manifest
    yield from ("", f"# {manifest.name}", "", _first(card))
    sections = {
        "Intended use": _use(card),
        "In and out": _in_and_out(card),
        "Classes": _classes(card),
        "Measured": _measured(card),
        "Golden rows": _golden(card),
        "Data": _data(card),
        "Origin": _origin(card),
        "Run it": _run_it(card),
        "Check it": _check_it(card),
        "Limits": _limits(card),
    }
    for title, lines in sections.items():
        written = list(lines)
        if written:
            yield from ("", f"## {title}", "", *written)


def _first(card: Card) -> str:
    variant = card.manifest.variant
    what = f"An ONNX model ({variant})" if variant != FOREIGN else "An ONNX model"
    does = f" for {card.task.replace('-', ' ')}" if card.task else ""
    facts = [f"architecture `{card.architecture}`"] if card.architecture else []
    facts += [f"{card.parameters:,} parameters"] if card.parameters else []
    tail = f": {', '.join(facts)}" if facts else ""
    return (
        f"{what}{does}{tail}. Preprocessing and post-processing are inside: raw rows in, answers "
        f"out. It is bundled for the target `{card.manifest.target}`."
    )


def _use(card: Card) -> Iterator[str]:
    if card.data:
        yield (
            f"To answer {KINDS[card.kind]} such as those of `{card.data.dataset}`. It was measured "
            f"on the {card.data.rows['test']:,} test rows of that data set alone."
        )
    else:
        yield (
            f"To answer {KINDS[card.kind]} such as those it was proven on, "
            f"`{card.manifest.source.dataset}`. What it was trained for, whoever trained it knows."
        )


def _in_and_out(card: Card) -> Iterator[str]:
    manifest = card.manifest
    yield from ("| | name | type | shape |", "|---|---|---|---|")
    shared = [one.info for one in manifest.shared]
    for side, infos in (("in", manifest.inputs), ("shared", shared), ("out", manifest.outputs)):
        for info in infos:
            shape = ", ".join("any" if axis is None else str(axis) for axis in info.shape)
            dtype = "string" if info.is_text else info.dtype
            name = _code(info.name).replace("|", "\\|")
            yield f"| {side} | {name} | {dtype} | [{shape}] |"


def _classes(card: Card) -> Iterator[str]:
    labels = card.manifest.labels
    if labels:
        shown = ", ".join(map(_code, labels[:SHOWN_CLASSES]))
        more = f" and {len(labels) - SHOWN_CLASSES} more" if len(labels) > SHOWN_CLASSES else ""
        yield f"{len(labels)}, in the order of the scores (`labels.txt`): {shown}{more}."


def _code(text: str) -> str:
    """A text as code in Markdown, also one that has backquotes."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _measured(card: Card) -> Iterator[str]:
    manifest = card.manifest
    yield from ("| quantity | measured | limit |", "|---|---|---|")
    for name, value in manifest.metrics.items():
        yield f"| {name} | {value:.6g} | – |"
    for name, gate in manifest.parity.items():
        form = FORMS.get(name, "{:.1e}".format)
        yield f"| {TITLES.get(name, name)} | {form(gate.measured)} | {form(gate.limit)} |"
    against = f"Every quantity with a limit is measured against {card.reference}"
    yield from ("", f"{against}, on the test rows.")


def _golden(card: Card) -> Iterator[str]:
    golden = card.manifest.golden
    yield (
        f"`golden.npz` holds {golden.rows} rows and their answers. On any device each number must "
        f"be within {golden.max_abs_diff:.1e} of them."
    )
    if golden.tie:
        yield (
            f"They are rows that are decided narrowly, but by more than {golden.tie:.1e}: scores "
            f"that lie nearer together may be told apart otherwise by kernels that are right."
        )


def _data(card: Card) -> Iterator[str]:
    data = card.data
    yield f"- data set: `{card.manifest.source.dataset}`"
    yield f"- licence: {card.licence}"
    if data is None:
        yield "- citation: unknown"
        return
    yield f"- citation: {data.citation or 'none is stated in the project'}"
    if data.homepage:
        yield f"- homepage: <{data.homepage}>"
    rows = ", ".join(f"{count:,} {split}" for split, count in data.rows.items())
    yield f"- rows: {rows}"


def _origin(card: Card) -> Iterator[str]:
    manifest, source = card.manifest, card.manifest.source
    of = "reference it was proven against" if card.data is None else "trained weights"
    yield f"- {of}, sha256: `{source.weights_sha256}`"
    yield f"- {MODEL}, sha256: `{manifest.files[MODEL].sha256}`"
    yield f"- git revision: `{source.git_revision}`"
    yield f"- ferry {source.ferry_version}; opset {manifest.opset}, IR {manifest.ir_version}"


def _run_it(card: Card) -> Iterator[str]:
    yield f"On a device with numpy and onnxruntime {card.manifest.minimum_runtime} or later:"
    yield from ("", "```sh")
    yield "python runner.py selftest              # the golden rows, answered here"
    yield "python runner.py predict rows.npy      # answers, as CSV"
    yield "python runner.py bench                 # how quick it is here"
    if card.manifest.target in RUNS:
        yield RUNS[card.manifest.target]
    yield "```"


def _check_it(_card: Card) -> Iterator[str]:
    yield (
        "`manifest.json` has the sha256 of every file, and the digest of all of them. The runner "
        "refuses a folder that was altered; `ferry verify .` checks all that the manifest says. "
        "Who made it, that digest tells if you have it from elsewhere, by `--digest`, or a "
        "signature, by `--key`. `bom.json` is the bill of materials (CycloneDX 1.6)."
    )


def _limits(card: Card) -> Iterator[str]:
    manifest = card.manifest
    if manifest.classes.scores or manifest.classes.label:
        yield "- It names one of its classes for every row, also for one that belongs to none."
    if card.data is None or not (card.data.licence or card.data.citation):
        yield "- Where its training data come from is not recorded."
    for need in manifest.needs:
        yield f"- It needs a processor with {need} to answer as was proven."
    yield f"- It runs on ONNX Runtime {manifest.minimum_runtime} or later."
    yield "- No licence of the model itself is recorded; ask whoever gave it to you."
