"""`ferry verify BUNDLE`: check everything that a bundle says of itself, and who vouches for it.

Only the model is run, and the runner if its bytes are those of the runner that this ferry ships.
What is found out by the files alone finds accidents: whoever can write a bundle can write files
that agree. Only a key, or the digest that one knows, tells a forgery.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.bundles.bundle import (
    FOREIGN,
    GOLDEN,
    LABELS,
    RUNNER,
    Bundle,
    BundleManifest,
    open_bundle,
    runner_source,
)
from serving.bundles.golden import check_golden
from serving.bundles.integrity import (
    MANIFEST,
    MOST_TEXT_BYTES,
    SIGNATURE,
    RunnerError,
    check_signature,
    plain_bytes,
    public_key,
)
from serving.bundles.reference import REFERENCE, read_reference
from serving.errors import InputError, IntegrityError, ModelError, UsageError
from serving.files import dump_json, sha256_of_bytes
from serving.runtime import guard
from serving.runtime.kernels import refuse_lacking
from serving.runtime.onnxfile import minimum_runtime, read_header
from serving.runtime.session import ProviderProof, Session, open_session
from serving.runtime.tensors import TensorInfo

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
RUNNER_SECONDS, RUNNER_TIMES = 30, 10
"""How long a step of the runner's self-test may take: so long, and so many times what it took
here."""
MOST_SAID = 200
"""The characters of a value that a message quotes."""
DIGEST = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked."""

    name: str
    status: str
    """One of "passed", "failed" and "skipped"."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` found."""

    bundle: Path
    digest: str | None
    """The identity of the bundle, or None when its files are not the ones written."""
    passed: bool
    promise: str
    """What that means, and what it does not."""
    vouched: tuple[str, ...]
    """Whose word it is that these are the files that were shipped: "key", "digest", "registry", or
    nobody's."""
    checks: tuple[Check, ...]
    proof: ProviderProof | None
    """Where the model ran."""

    def require(self) -> None:
        """Raise IntegrityError naming each failed check, if there is one."""
        failed = [f"{one.name}: {one.detail}" for one in self.checks if one.status == FAILED]
        if failed:
            raise IntegrityError(f"{self.bundle} failed verification: {'; '.join(failed)}")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a bundle must agree with, from elsewhere than its own folder."""

    key: Path | None = None
    """The public P-256 key, in PEM, of whoever must have signed it."""
    digest: str | None = None
    """The identity that it must have, 64 hexadecimal digits."""
    registered: tuple[str, str] | None = None
    """The version that it is in the registry, as NAME/3, and the digest that stands there."""

    def refuse_unusable(self) -> None:
        """Raise InputError for a key that is none, UsageError for what can be no digest."""
        if self.digest is not None and not DIGEST.fullmatch(self.digest):
            raise UsageError(f"{self.digest!r} is no digest: one has 64 hexadecimal digits")
        if self.key is not None:
            try:
                public_key(self.key)
            except RunnerError as error:
                raise InputError(str(error)) from error


NOBODY = Trust()


def verify(
    folder: Path, provider: str = "cpu", threads: int | None = None, trust: Trust = NOBODY
) -> VerifyReport:
    """Check a bundle's files, metadata, signature, labels, gates, golden outputs and runner.

    A failed check is part of the report, never an exception. Raises MissingInputError when
    `folder` is not a bundle, ProviderError when `provider` cannot run the model here or the
    processor lacks what it needs, and what `Trust.refuse_unusable` does.
    """
    trust.refuse_unusable()
    bundle: Bundle | None = None
    proof: ProviderProof | None = None
    checks: list[Check] = []
    vouched: tuple[str, ...] = ()
    try:
        bundle = open_bundle(folder)
        checks.append(Check("files", PASSED, f"{len(bundle.contents)} files and manifest"))
        checks += _vouching(bundle, trust)
        if all(check.status == PASSED for check in checks):
            vouched = tuple(check.name for check in checks[1:])
            refuse_lacking(bundle.manifest.needs, str(folder), provider)
            session = _session(bundle, provider, threads)
            proof = session.proof
            checks += _checks(bundle, session, vouched)
    except (IntegrityError, ModelError) as error:
        # What is not intact, or does not load, is not run: nothing else can be said of it.
        checks.append(Check("model" if bundle else "files", FAILED, str(error)))
    passed = all(check.status != FAILED for check in checks)
    return VerifyReport(
        bundle=folder,
        digest=bundle.manifest.digest if bundle else None,
        passed=passed,
        promise=_promise(folder, trust) if passed else "none: a check failed",
        vouched=vouched,
        checks=tuple(checks),
        proof=proof,
    )


def _session(bundle: Bundle, provider: str, threads: int | None) -> Session:
    given = bundle.manifest.given
    try:
        return open_session(bundle.model, provider=provider, threads=threads, shared=given)
    except InputError as error:  # of a shared value
        raise IntegrityError(str(error)) from error


def _vouching(bundle: Bundle, trust: Trust) -> Iterator[Check]:
    """Whether the files are those that were signed, and those that are known by their digest."""
    files = {name: info.sha256 for name, info in bundle.manifest.files.items()}
    manifest = sha256_of_bytes(dump_json(bundle.manifest).encode())
    if trust.key is not None:
        path, key = bundle.folder / SIGNATURE, trust.key
        yield _check("key", lambda: _signed(path, key, files | {MANIFEST: manifest}))
    if trust.digest is not None:
        wanted = trust.digest.lower()
        yield _check("digest", lambda: _has_digest(bundle.manifest, wanted, "the one given"))
    if trust.registered is not None:
        name, registered = trust.registered
        yield _check("registry", lambda: _has_digest(bundle.manifest, registered, f"of {name}"))


def _signed(path: Path, key: Path, files: Mapping[str, str]) -> str:
    if not path.exists():
        raise IntegrityError(f"{path.parent} is not signed: `ferry sign` makes its {SIGNATURE}")
    try:
        check_signature(plain_bytes(path, MOST_TEXT_BYTES), key, dict(files))
    except RunnerError as error:
        raise IntegrityError(str(error)) from error
    return f"{len(files)} files are signed by {key}, whose sha256 is {public_key(key)[1]}"


def _has_digest(manifest: BundleManifest, wanted: str, whose: str) -> str:
    _same("digest", manifest.digest, wanted)
    return f"the digest is {whose}"


def _promise(folder: Path, trust: Trust) -> str:
    """What it means that a bundle passes, and what it does not."""
    words = []
    if trust.key is not None:
        words.append(f"signed by the holder of {trust.key}")
    if trust.digest is not None:
        words.append("known by the digest that was given")
    if trust.registered is not None:
        words.append(f"registered as {trust.registered[0]}, as the registry here says")
    if words:
        return f"these are the files that were shipped: {' and '.join(words)}"
    signed = (folder / SIGNATURE).is_file()
    return (
        f"the files are those that the manifest lists; who made them is not known, as whoever can "
        f"write the folder can write a manifest that fits: "
        f"{'it is signed, and --key' if signed else '--key or --digest'} tells"
    )


def as_table(report: VerifyReport) -> str:
    """What it promises, the checks, one a line, and the digest of a bundle that is intact."""
    lines = [f"promise: {report.promise}"]
    lines += [f"{check.name:<9}  {check.status:<7}  {check.detail}" for check in report.checks]
    return "\n".join([*lines, *([f"digest {report.digest}"] if report.digest else [])])


def _checks(bundle: Bundle, session: Session, vouched: tuple[str, ...]) -> Iterator[Check]:
    start = time.monotonic()
    yield _check("metadata", lambda: _metadata(bundle.manifest, session))
    yield _check("signature", lambda: _signature(bundle, session))
    yield _check("labels", lambda: _labels(bundle, session))
    yield _check("parity", lambda: check_parity(bundle.manifest))
    yield _check("golden", lambda: _golden(bundle, session))
    yield _check("profiles", lambda: _profiles(bundle.manifest))
    if REFERENCE in bundle.contents:
        yield _check("reference", lambda: _reference(bundle.contents[REFERENCE], bundle.manifest))
    if bundle.contents[RUNNER] == runner_source():
        seconds = RUNNER_SECONDS + RUNNER_TIMES * (time.monotonic() - start)
        yield _check("runner", lambda: _runner(bundle, seconds))
    elif vouched:
        word = " and ".join(vouched)
        yield Check(
            "runner", SKIPPED, f"not the one of this ferry, so not run; its {word} is right"
        )
    else:
        yield Check(
            "runner",
            FAILED,
            "not the one of this ferry: older, newer or replaced; --key or --digest tells which",
        )


def _check(name: str, work: Callable[[], str]) -> Check:
    try:
        return Check(name, PASSED, work())
    except (IntegrityError, ModelError) as error:
        return Check(name, FAILED, str(error))


def _metadata(manifest: BundleManifest, session: Session) -> str:
    """The model says of itself what the manifest says of it."""
    if manifest.variant == FOREIGN:
        return "not a model of ferry's export, which says nothing of itself"
    source = manifest.source
    expected = {
        "ferry.experiment": manifest.name,
        "ferry.variant": manifest.variant,
        "ferry.dataset": source.dataset,
        "ferry.labels": list(manifest.labels),
        "ferry.weights_sha256": source.weights_sha256,
        "ferry.git_revision": source.git_revision,
        "ferry.version": source.ferry_version,
    }
    found = dict(session.metadata)
    wrong = [
        f"{key} is {_quoted(found.get(key))} in the model and {_quoted(value)} in the manifest"
        for key, value in expected.items()
        if (_labels_of(found) if key == "ferry.labels" else found.get(key)) != value
    ]
    if wrong:
        raise IntegrityError("; ".join(wrong))
    return f"{len(expected)} entries agree"


def _labels_of(metadata: Mapping[str, str]) -> object:
    """The class names of a model's metadata; a model without classes need not say so."""
    text = metadata.get("ferry.labels", "[]")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _signature(bundle: Bundle, session: Session) -> str:
    """Inputs, outputs and versions are those of the manifest."""
    manifest = bundle.manifest
    header = read_header(bundle.model)
    _same("inputs", session.inputs, manifest.inputs)
    _same("outputs", session.answered("the model"), manifest.outputs)
    _same("opset", header.opset, manifest.opset)
    _same("IR version", header.ir_version, manifest.ir_version)
    _same("minimum runtime", minimum_runtime(header), manifest.minimum_runtime)
    tensors = ", ".join(_tensor(info) for info in (*session.inputs, *manifest.outputs))
    return f"{tensors}; opset {header.opset}, ONNX Runtime {manifest.minimum_runtime} or newer"


def _labels(bundle: Bundle, session: Session) -> str:
    """labels.txt, the manifest and the width of the outputs agree."""
    labels = bundle.manifest.labels
    _same(LABELS, tuple(bundle.contents[LABELS].decode(errors="replace").splitlines()), labels)
    if len(set(labels)) != len(labels):
        raise IntegrityError("two classes have the same label")
    classes = bundle.manifest.classes
    if classes != session.tells(labels):
        raise IntegrityError("the model tells its classes by other outputs than the manifest says")
    if classes.scores and classes.complete and isinstance(classes.scores.shape[1], int):
        _same(f"classes of {classes.scores.name}", classes.scores.shape[1], len(labels))
    return f"{len(labels)} classes" if labels else "no classes"


def check_parity(manifest: BundleManifest) -> str:
    """How many gates of parity were met; IntegrityError for one that was not, and for none."""
    if not manifest.parity:
        raise IntegrityError("no parity was recorded")
    over = [
        f"{name} is {gate.measured:g}, limit {gate.limit:g}"
        for name, gate in manifest.parity.items()
        if not gate.measured <= gate.limit
    ]
    if over:
        raise IntegrityError("; ".join(over))
    return f"{len(manifest.parity)} gates met"


def _golden(bundle: Bundle, session: Session) -> str:
    golden = bundle.manifest.golden
    worst = check_golden(session, bundle.contents[GOLDEN], bundle.manifest)
    limit = f"limit {golden.max_abs_diff:.1e}"
    return f"{golden.rows} rows differ by {worst:.1e} at most, {limit}; none is decided otherwise"


def _profiles(manifest: BundleManifest) -> str:
    """What was tuned, each for its processor; the manifest was refused if one cannot be."""
    lines = []
    for one in manifest.profiles:
        machine = ", ".join(filter(None, [one.machine.processor, one.machine.gpu]))
        cores = one.machine.allowed_cores
        lines.append(f"{one.describe()}, for {one.provider} on {cores} × {machine}")
    return "; ".join(lines) or "none; `ferry bench --tune` makes one"


def _reference(content: bytes, manifest: BundleManifest) -> str:
    """It can be read, and is of these classes; only the training data could prove what it says."""
    reference = read_reference(content, REFERENCE)
    if reference.classes:
        _same(f"classes of {REFERENCE}", len(reference.classes), len(manifest.labels))
    return f"{len(reference.quantities)} quantities of {reference.rows} rows of {reference.data}"


def _runner(bundle: Bundle, seconds: float) -> str:
    """The bundle's own runner passes its self-test, on the CPU, in a process of its own."""
    # Isolated, so that neither PYTHONPATH nor the folder can slip another module under it.
    program = [sys.executable, "-I", "-B", str(bundle.folder / RUNNER)]
    command = [*program, "selftest", "--call-timeout", f"{seconds:.0f}"]
    guard.step("the self-test of the runner", seconds=3 * seconds)
    try:
        done = subprocess.run(command, capture_output=True, timeout=3 * seconds)
    except subprocess.TimeoutExpired as error:
        raise IntegrityError(f"the self-test took longer than {3 * seconds:.0f} s") from error
    said = (done.stderr if done.returncode else done.stdout).decode(errors="replace").strip()
    last = said.splitlines()[-1] if said else "it said nothing"
    if done.returncode:
        raise IntegrityError(f"the self-test failed: {last.removeprefix('runner: ')}")
    return last.removeprefix("selftest: ").partition(";")[0]


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise IntegrityError(f"{what}: found {_quoted(found)}, expected {_quoted(expected)}")


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}…"


def _tensor(info: TensorInfo) -> str:
    axes = ", ".join(str(axis) for axis in info.shape)
    return f"{info.name} {info.dtype} [{axes}]"
