"""`ferry bundle MODEL.onnx`: make a bundle of an ONNX file that ferry did not export.

Nothing unproven ships: the report that `ferry parity A MODEL.onnx --data ROWS --output REPORT.json`
or `ferry export --module` left must be about this very file, and have passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from pipeline.bundling.proof import Proof, read_proof
from pipeline.bundling.reference import reference_of
from pipeline.exporting.onnxfile_checks import load_foreign
from pipeline.proof.rows import open_rows
from pipeline.proof.tracing.values import Array, fed
from serving.bundles.bundle import FOREIGN, ModelOrigin
from serving.bundles.reference import Reference
from serving.bundles.writing import BundleContents, write_bundle
from serving.errors import InputError
from serving.files import require, sha256_of_bytes
from serving.measuring.feeds import fixed_batch
from serving.runtime.session import Session, open_session
from serving.runtime.tensors import LOGITS, PROBABILITIES, is_table

GOLDEN_ROWS = 16
GOLDEN_DIFF = 1e-4
"""What a device may be off where no gate says it, relative to the largest golden output."""
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBundleReport:
    """The bundle that was made."""

    name: str
    sha256: str
    """Of the ONNX file."""
    proven_against: str
    """The reference of its parity report."""
    classes: int
    golden_rows: int
    reference_rows: int
    """Whose distribution the bundle keeps, 0 if none were given."""
    bytes: int
    """Of the whole folder."""
    digest: str
    """The identity of the bundle, as its manifest has it."""


def bundle_file(
    model: Path,
    folder: Path,
    *,
    rows: str,
    parity: Path,
    labels: Path | None = None,
    reference: str | None = None,
) -> FileBundleReport:
    """Write the bundle `folder` of the ONNX file `model`, byte for byte as it is.

    `rows` is what `open_rows` takes, whose first ones become the golden rows; `parity` the report
    of a comparison in which `model` was the candidate, or of its export; `labels` a text file with
    a line for each class. Without it the classes are numbered, as `ferry predict` does. `reference`
    is the rows that the model was trained on, or others like them, if their distribution is to be
    kept.

    Raises MissingInputError; ModelError for a file that `load_foreign` refuses or that does not
    run; GateError for a report that did not pass; IntegrityError for one about another file; and
    InputError for a model that has not one input with a batch axis, and for labels or rows that do
    not fit it.
    """
    load_foreign(model)
    content = model.read_bytes()
    proof = read_proof(parity, model, sha256_of_bytes(content))
    session = open_session(content, threads=1)
    _check_inputs(model, session)
    golden = _golden_rows(rows, session)
    answers = session.run({session.inputs[0].name: fed(golden)})
    names = _labels(labels, answers)
    training = None if reference is None else _reference(model, reference, session)
    contents = BundleContents(
        name=model.stem,
        variant=FOREIGN,
        model=content,
        labels=names,
        golden_input=golden,
        golden_max_abs_diff=_tolerance(proof, list(answers.values())),
        metrics={} if proof.accuracy is None else {"accuracy": proof.accuracy},
        parity=proof.gates,
        source=_source(proof),
        reference=training,
    )
    manifest = write_bundle(folder, contents)
    return FileBundleReport(
        name=model.stem,
        sha256=proof.sha256,
        proven_against=proof.reference,
        classes=len(names),
        golden_rows=len(golden),
        reference_rows=training.rows if training else 0,
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        digest=manifest.digest,
    )


def _source(proof: Proof) -> ModelOrigin:
    return ModelOrigin(
        dataset=proof.data,
        weights_sha256=proof.reference_sha256,
        git_revision=UNKNOWN,
        ferry_version=metadata.version("onnx-ferry"),
    )


def _reference(model: Path, rows: str, session: Session) -> Reference:
    opened = open_rows(rows, session.inputs)
    array = opened.inputs[session.inputs[0].name]
    return reference_of(model, array, held_out=array, data=opened.name)


def _check_inputs(model: Path, session: Session) -> None:
    names = [info.name for info in session.inputs]
    if len(names) != 1:
        raise InputError(
            f"{model} has the inputs {', '.join(names) or '(none)'}; a bundle's model has one, "
            f"which its golden rows and its runner feed"
        )
    if not session.inputs[0].shape:
        raise InputError(f"{model}: input {names[0]} has no batch axis")


def _golden_rows(rows: str, session: Session) -> Array:
    """The first rows; as many as a model takes that takes one number of them only."""
    info = session.inputs[0]
    array = open_rows(rows, session.inputs).inputs[info.name]
    wanted = fixed_batch(session.inputs)
    if wanted is not None and len(array) < wanted:
        raise InputError(f"{rows} holds {len(array)} rows, the model takes {wanted} at once")
    taken: Array = np.array(array[: wanted or GOLDEN_ROWS])
    return taken


def _labels(labels: Path | None, answers: dict[str, Array]) -> tuple[str, ...]:
    classes = _classes(answers)
    if labels is None:
        return tuple(str(index) for index in range(classes or 0))
    lines = require(labels, "your own list of the classes").read_bytes()
    try:
        names = tuple(lines.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise InputError(f"{labels} is not a text in UTF-8") from error
    if classes is None:
        raise InputError(
            f"{labels} has {len(names)} labels, but no output of the model tells classes: it has "
            f"{', '.join(answers)}"
        )
    if len(names) != classes:
        raise InputError(f"{labels} has {len(names)} labels, the model tells {classes} classes")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise InputError(
            f"{labels} has {'an empty label' if '' in names else f'{twice[0]!r} twice'}"
        )
    return names


def _classes(answers: dict[str, Array]) -> int | None:
    """How many classes the model tells: those of its scores, by their usual names, or its only."""
    tables = {
        name: value
        for name, value in answers.items()
        if isinstance(value, np.ndarray) and is_table(value)
    }
    for name in (PROBABILITIES, LOGITS):
        if name in tables:
            return int(tables[name].shape[1])
    return int(next(iter(tables.values())).shape[1]) if len(tables) == 1 else None


def _tolerance(proof: Proof, answers: Sequence[Array]) -> float:
    """What a device may be off: what the gate allowed, or a part of the largest output."""
    largest = [
        float(np.abs(one.astype(np.float64)).max(initial=0))
        for one in answers
        if isinstance(one, np.ndarray) and one.dtype.kind in "fiu"
    ]
    return proof.limit or GOLDEN_DIFF * max(largest, default=1.0)
