"""`ferry bundle`: make the folder that is deployed, of an experiment's best variant or of a file.

Nothing unproven ships. A variant without a passed gate, or one whose file is not the one that was
compared and timed, is never chosen. A file that ferry did not export must be the very one that its
report of `ferry parity`, or of `ferry export --module`, is about, and have passed.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx

from pipeline import tracking
from pipeline.config import layout
from pipeline.config.experiment import Experiment
from pipeline.errors import GateError
from pipeline.exporting.onnxmodel import load_foreign
from pipeline.exporting.tokenizer import known_words
from pipeline.proof.gate import QUANTITIES
from pipeline.proof.overflow import needs_of
from pipeline.proof.rows import open_rows
from pipeline.records import ReportFiles, read, read_recorded, ready, write
from pipeline.records.benchmark import BenchmarkReport, BundleReport, on_cpu, speeds
from pipeline.records.parity import PairReport, ParityReport, VariantParity
from pipeline.records.quantize import QuantizeReport
from pipeline.records.train import TrainReport
from pipeline.stages.page.note import note_of
from pipeline.stages.page.results import ExperimentResults, rows_of
from pipeline.targets import c99
from pipeline.targets.card import card_part
from pipeline.targets.choice import Choice, choose_for
from pipeline.targets.triton import triton
from pipeline.targets.web import web_page
from serving.bundles import Target
from serving.bundles.bundle import FOREIGN, MODEL, Gate, ModelOrigin, open_bundle
from serving.bundles.finding import MANIFEST, located
from serving.bundles.golden import hardest
from serving.bundles.reference import Reference
from serving.bundles.writing import BundleContents, Part, copy_bundle, write_bundle
from serving.drift.quantities import reference_of
from serving.errors import InputError, IntegrityError
from serving.files import require, sha256_of_bytes
from serving.measuring.feeds import fixed_batch
from serving.runtime.classes import Task
from serving.runtime.session import Session, open_session
from serving.runtime.tensors import Array, as_fed

GOLDEN_DIFF = 1e-4
"""What a device may be off where no gate says it, relative to the largest golden output."""
UNKNOWN = "unknown"
TARGET_PARTS: Mapping[Target, tuple[Part, ...]] = {
    "c": (c99.parts,),
    "triton": (triton,),
    "web": (web_page,),
}
"""What adds the files that a target needs; the card comes last, as its bill lists all others."""


def bundle(
    models: Mapping[str, Path],
    data: Path,
    details: Path,
    folder: Path,
    files: ReportFiles | None,
    *,
    experiment: Experiment,
    target: Target = "cpu",
    track: bool = True,
) -> BundleReport:
    """Write the bundle `folder` of the best of `models` for a target.

    `details` is the folder of what the stages before this one reported, `data` the preprocessed
    data set that the golden rows and the statistics of `reference.json` come from. The report goes
    to `files`; without them it is a bundle beside the one that the pipeline ships.

    Raises MissingInputError, GateError when fp32 did not pass its gate, TargetError when the target
    takes no variant, and IntegrityError when a file is not the one that was measured.
    """
    name, config = experiment.name, experiment.bundle
    trained = read(TrainReport, details / "train.json", f"ferry train {name}")
    parity = read(ParityReport, details / "parity.json", f"ferry parity {name}")
    timed = read(BenchmarkReport, details / "benchmark.json", f"ferry benchmark {name}")
    passed = _proven_files(models, parity, timed)
    chosen = choose_for(name, target, passed, timed, config)
    variant = chosen.variant
    proven, content = parity.variants[variant], passed[variant]
    test = ready.open_split(data, "test").inputs
    golden, tie = hardest(content, test, config.golden_rows, trained.labels)
    known = ready.open_manifest(data)
    architecture = trained.settings.get("model.name", "")
    card = card_part(known, architecture=architecture, parameters=trained.parameters)
    contents = BundleContents(
        name=name,
        variant=variant,
        target=target,
        model=content,
        labels=trained.labels,
        golden_input=golden,
        golden_tie=tie,
        golden_max_abs_diff=_golden_limit(proven, known.target_std),
        metrics=_metrics(trained, proven),
        parity=_gates(proven),
        source=_origin(experiment, trained, content),
        needs=needs_of(onnx.load_model_from_string(content)),
        reference=_reference_of_splits(models[variant], data),
        parts=(*TARGET_PARTS.get(target, ()), card),
    )
    report = _ship(folder, contents, chosen)
    if files is None:
        _record_target(report, trained.weights_sha256, track=track)
        return report
    write(report, files)
    quantized = read(QuantizeReport, details / "quantize.json", f"ferry quantize {name}")
    measured = ExperimentResults(
        training=trained, parity=parity, quantized=quantized, benchmark=timed, shipped=report
    )
    _record(measured, report, folder, track=track)
    return report


def bundle_file(
    model: Path,
    folder: Path,
    *,
    rows: str,
    parity: Path,
    golden_rows: int,
    labels: Path | None = None,
    reference: str | None = None,
) -> BundleReport:
    """Write the bundle `folder` of any ONNX file, byte for byte as it is.

    `rows` is what `open_rows` takes, whose `golden_rows` hardest become the golden rows; `parity`
    the report of a comparison in which `model` was the candidate, or of its export; `labels` a text
    file with a line for each class, without which they are numbered, as in `ferry predict`.
    `reference` is the rows that the model was trained on, or others like them, if their
    distribution is to be kept.

    Raises MissingInputError; ModelError for a file that `load_foreign` refuses or that does not
    run; GateError for a report that did not pass; IntegrityError for one about another file; and
    InputError for a model that has not one input with a batch axis, and for labels or rows that do
    not fit it.
    """
    load_foreign(model)
    content = model.read_bytes()
    proof = _read_proof(parity, model, sha256_of_bytes(content))
    session = open_session(content, threads=1, shared=proof.shared)
    _check_inputs(model, session)
    session.answered(str(model))
    given, batch = _given_rows(rows, session), fixed_batch(session.inputs)
    first = np.array(given[: batch or golden_rows])
    answers = session.run({session.inputs[0].name: as_fed(first)})
    known = _labels(labels, session, answers)
    golden, tie = hardest(content, given, len(first), known, proof.shared, batch=batch)
    contents = BundleContents(
        name=model.stem,
        variant=FOREIGN,
        model=content,
        labels=known,
        shared=proof.shared,
        golden_input=golden,
        golden_tie=tie,
        golden_max_abs_diff=_tolerance(proof.result, list(answers.values())),
        metrics={} if proof.result.accuracy is None else {"accuracy": proof.result.accuracy},
        parity=_gates(proof.result),
        source=ModelOrigin(
            dataset=proof.data,
            weights_sha256=proof.reference.sha256,
            git_revision=UNKNOWN,
            ferry_version=metadata.version("onnx-ferry"),
        ),
        needs=needs_of(onnx.load_model_from_string(content)),
        reference=_reference_of_rows(model, reference, session, labels) if reference else None,
        parts=(card_part(None),),
    )
    reason = f"it answers as {proof.reference.name} does, on {proof.data}"
    return _ship(folder, contents, Choice(variant=FOREIGN, reason=reason))


def _ship(folder: Path, contents: BundleContents, chosen: Choice) -> BundleReport:
    write_bundle(folder, contents)
    return _report(folder, chosen)


def copy_registered(name: str, folder: Path) -> BundleReport:
    """Write the bundle `folder` of a registered one, "models:/NAME@champion" or "models:/NAME/3".

    Raises what `located` does, and IntegrityError for a bundle that was altered.
    """
    source = open_bundle(located(name))
    copy_bundle(source, folder)
    return _report(folder, Choice(variant=source.manifest.variant, reason=f"it is {name}"))


def _report(folder: Path, chosen: Choice) -> BundleReport:
    """What is said of a bundle that was written."""
    bundle = open_bundle(folder)
    manifest, reference = bundle.manifest, bundle.reference()
    return BundleReport(
        experiment=manifest.name,
        variant=manifest.variant,
        target=manifest.target,
        reason=chosen.reason,
        goal=chosen.goal,
        gains=chosen.gains,
        flash_bytes=chosen.flash_bytes,
        ram_bytes=chosen.ram_bytes,
        boards=chosen.boards,
        sha256=manifest.files[MODEL].sha256,
        classes=len(manifest.labels),
        golden_rows=manifest.golden.rows,
        reference_rows=reference.rows if reference else 0,
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        digest=manifest.digest,
    )


def _origin(experiment: Experiment, trained: TrainReport, content: bytes) -> ModelOrigin:
    return ModelOrigin(
        dataset=experiment.dataset,
        weights_sha256=trained.weights_sha256,
        git_revision=trained.git_revision,
        ferry_version=open_session(content, threads=1).metadata["ferry.version"],
    )


def _record_target(report: BundleReport, weights_sha256: str, *, track: bool) -> None:
    """Say in the run that its model has a bundle for another kind of place too."""
    with tracking.run_of_weights(report.experiment, weights_sha256, track=track) as tracker:
        tracker.log_tags({f"ferry.bundle.{report.target}": report.digest})


def _record(
    measured: ExperimentResults, report: BundleReport, folder: Path, *, track: bool
) -> None:
    """Give the run the figures of what ships, and say on its page how to use it."""
    (row,) = (row for row in rows_of(measured) if row.shipped and row.provider == "cpu")
    speed = speeds(measured.benchmark)[report.variant] if measured.benchmark else {}
    weights = measured.training.weights_sha256
    with tracking.run_of_weights(report.experiment, weights, track=track) as tracker:
        tracker.log_tags({"ferry.ships": report.variant, "ferry.bundle": report.digest})
        compared = ("accuracy", "r2", "flips", "p50_ms", "bytes")
        figures = {name: getattr(row, name) for name in compared}
        tracker.log_metrics(figures | {"speedup": speed.get("speedup")})
        tracker.log_note(note_of(measured, folder))
        tracker.log_artifact((folder / MANIFEST).read_bytes(), f"bundle/{MANIFEST}")


def _reference(
    model: Path, training: Array, held_out: Array, data: str, task: Task | None = None
) -> Reference:
    words = known_words(onnx.load(model, load_external_data=False))
    return reference_of(model, training, held_out=held_out, data=data, known_words=words, task=task)


def _reference_of_splits(model: Path, data: Path) -> Reference:
    training, held_out = (ready.open_split(data, one).inputs for one in ("train", "validation"))
    return _reference(model, training, held_out, data.name)


def _gates(proven: VariantParity) -> dict[str, Gate]:
    """The quantities that must be small, each beside its limit; a gate holds nothing else."""
    return {
        one.name: Gate(measured=measured, limit=limit)
        for one in QUANTITIES
        if not one.least
        and (measured := one.measured(proven)) is not None
        and (limit := one.allowed(proven.limits)) is not None
    }


def _proven_files(
    models: Mapping[str, Path], parity: ParityReport, timed: BenchmarkReport
) -> dict[str, bytes]:
    """The files of the variants that passed their gates; GateError where fp32 did not."""
    if not parity.variants["fp32"].passed:
        raise GateError(
            f"{parity.experiment} fp32 did not pass its gate: "
            f"{', '.join(parity.variants['fp32'].failures)}"
        )
    if timed.bench.partial:
        raise IntegrityError(
            f"{timed.experiment}: benchmark.json is of an interrupted run; "
            f"`ferry benchmark {timed.experiment}` measures it anew"
        )
    return {
        variant: _proven_bytes(models[variant], proven, timed, variant)
        for variant, proven in parity.variants.items()
        if proven.passed
    }


def _proven_bytes(path: Path, proven: VariantParity, timed: BenchmarkReport, variant: str) -> bytes:
    content = read_recorded(path, layout.maker(path, timed.experiment))
    found = sha256_of_bytes(content)
    for stage, recorded in (
        ("parity", proven.sha256),
        ("benchmark", on_cpu(timed, variant)[0].sha256 or ""),
    ):
        if found != recorded:
            raise IntegrityError(
                f"{path} has sha256 {found[:12]}…, but {stage}.json is about {recorded[:12]}…; "
                f"`dvc repro {stage}@{timed.experiment}` measures it anew"
            )
    return content


def _metrics(trained: TrainReport, proven: VariantParity) -> dict[str, float]:
    """How good the shipped variant is; of a reconstruction, how good the weights are."""
    if proven.r2 is not None:
        return {"r2": proven.r2}
    if proven.accuracy is None:
        return {trained.loss_name: trained.loss}
    return {"accuracy": proven.accuracy}


def _golden_limit(proven: VariantParity, target_std: Sequence[float]) -> float:
    """How far off a device may be: as far as the gate allows, else as far as was measured."""
    limits, measured = proven.limits, max(proven.max_abs_diff, proven.max_probability_diff or 0.0)
    if limits.max_abs_diff is not None:
        return limits.max_abs_diff
    scaled = (limits.max_scaled_diff or 0.0) * max(target_std, default=0.0)
    return max(measured, scaled)


# The parts of a file's bundle


def _read_proof(path: Path, model: Path, sha256: str) -> PairReport:
    """The report `path` about the file `model`; it raises for another file and for a failed one."""
    again = f"ferry parity REFERENCE {model} --data ROWS --output {path}"
    proof = read(PairReport, path, again)
    if proof.other.sha256 != sha256:
        raise IntegrityError(
            f"{model} has sha256 {sha256[:12]}…, but {path} proves {proof.other.name} of sha256 "
            f"{proof.other.sha256[:12]}…; `{again}` proves this one"
        )
    if not (proof.passed and proof.result.passed):
        raise GateError(
            f"{model} did not pass its gate, so it is not bundled: "
            f"{'; '.join(proof.result.failures) or 'no reason is given'}; see {path}"
        )
    return proof


def _reference_of_rows(model: Path, rows: str, session: Session, labels: Path | None) -> Reference:
    opened = open_rows(rows, session.inputs)
    array = opened.inputs[session.inputs[0].name]
    task: Task | None = "classification" if labels else None
    return _reference(model, array, array, opened.name, task)


def _check_inputs(model: Path, session: Session) -> None:
    names = [info.name for info in session.inputs]
    if len(names) != 1:
        raise InputError(
            f"{model} has the inputs {', '.join(names) or '(none)'}; a bundle's model has one of "
            f"rows, which its golden rows and its runner feed; others are proven by `ferry parity "
            f"--shared NAME=VALUE`"
        )
    if not session.inputs[0].shape:
        raise InputError(f"{model}: input {names[0]} has no batch axis")


def _given_rows(rows: str, session: Session) -> Array:
    """The rows of a file, as many as the model takes at once or more."""
    array: Array = open_rows(rows, session.inputs).inputs[session.inputs[0].name]
    wanted = fixed_batch(session.inputs)
    if wanted is not None and len(array) < wanted:
        raise InputError(f"{rows} holds {len(array)} rows, the model takes {wanted} at once")
    return array


def _labels(given: Path | None, session: Session, answers: Mapping[str, Array]) -> tuple[str, ...]:
    """The labels that are given, else those that the model knows, else the numbers of its classes.

    None for a model that tells no class, or tells it without saying which of its scores is whose.
    """
    labels = _read_labels(given) if given else ()
    which = session.tells(labels)
    if which.scores is None:
        if given:
            raise InputError(
                f"{given} has {len(labels)} labels, but no output of the model tells classes: it "
                f"has {', '.join(answers)}"
            )
        return ()
    classes = answers[which.scores.name].shape[1]
    if not given:
        return (which.values or tuple(map(str, range(classes)))) if which.complete else ()
    if len(labels) != classes:
        raise InputError(f"{given} has {len(labels)} labels, the model tells {classes} classes")
    said = set(map(str, answers[which.label.name].ravel().tolist())) if which.label else set()
    if unknown := sorted(said - set(which.values)):
        raise InputError(
            f"{given} does not say which of its labels is {unknown[0]!r}, as the model's output "
            f"{which.label.name if which.label else ''} has it; leave out --labels"
        )
    return labels


def _read_labels(path: Path) -> tuple[str, ...]:
    """The lines of a file of labels, each once."""
    try:
        content = require(path, "your own list of the classes").read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8") from error
    names = tuple(content.splitlines())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise InputError(f"{path} has {'an empty label' if '' in names else f'{twice[0]!r} twice'}")
    return names


def _tolerance(proven: VariantParity, answers: Sequence[Array]) -> float:
    """What a device may be off: what the gate allowed, or a part of the largest output."""
    limits = (proven.limits.max_abs_diff, proven.limits.max_probability_diff)
    allowed = max((limit for limit in limits if limit is not None), default=None)
    largest = [
        float(np.abs(one.astype(np.float64)).max(initial=0))
        for one in answers
        if isinstance(one, np.ndarray) and one.dtype.kind in "fiu"
    ]
    return allowed or GOLDEN_DIFF * max(largest, default=1.0)
