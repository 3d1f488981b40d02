"""A bundle is a folder that is deployed by copying: model, labels, golden rows, runner, manifest.

    open_bundle("bundles/mnist-cnn")    # refuses a folder in which one byte is not the one written

The manifest says what the model is, what was measured, and the sha256 of every file. Its bytes must
be the canonical text of what it says, and it holds the sha256 of that text, so that no byte of it
can change unnoticed.
"""

import ast
import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from serving.bundles import Target
from serving.bundles.finding import MANIFEST, not_there
from serving.bundles.integrity import (
    MOST_BYTES,
    MOST_TEXT_BYTES,
    SCHEMA_VERSION,
    SIGNATURE,
    RunnerError,
    plain_bytes,
)
from serving.bundles.profiles import Profile, check_profiles
from serving.bundles.reference import REFERENCE, Reference, check_schema, read_reference
from serving.errors import InputError, IntegrityError, MissingInputError, ModelError
from serving.files import dump_json, is_text, parse_json, read_record, sha256_of_bytes
from serving.runtime.classes import ClassOutputs
from serving.runtime.kernels import needs_in, refuse_lacking
from serving.runtime.onnxfile import read_header
from serving.runtime.shared import SharedInput
from serving.runtime.tensors import TensorInfo

MODEL, LABELS, GOLDEN, RUNNER = "model.onnx", "labels.txt", "golden.npz", "runner.py"
FILES = (MODEL, LABELS, GOLDEN, RUNNER)
"""What every bundle has; its target may add others, in folders of its own too."""
PLAIN_NAME = re.compile(r"(?![.])[\w.-]{1,255}(/(?![.])[\w.-]{1,255}){0,8}", re.ASCII)
RUNNER_PARTS = re.compile(
    r"^from serving\.bundles\.(\w+) import (?:\([^)]*\)|[^(\n]+)\n(?:\n# isort: split\n)?",
    re.MULTILINE,
)
"""The lines of a runner's source for which the text of that file stands in a bundle, once."""
FOREIGN = "file"
"""The variant of a model that ferry did not export, and that says nothing of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One file of a bundle."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A quantity that was measured over the test set, and the most it may be."""

    measured: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """What the model was made from."""

    dataset: str
    """The data set; for a file that ferry did not export, the rows it was proven on."""
    weights_sha256: str
    """The trained weights; for such a file, the reference it was proven against."""
    git_revision: str
    ferry_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """The rows of `golden.npz`, with the outputs that the bundle was shipped with."""

    rows: int
    max_abs_diff: float
    """Largest absolute difference of any output that a device may show."""
    tie: float
    """Two scores that lie within this may be told apart otherwise by kernels that are right. No
    golden row is so near a tie: none may be decided otherwise anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleManifest:
    """Everything that is known of a bundle."""

    schema_version: int
    name: str
    """The experiment, or the name of the file."""
    variant: str
    """For instance "fp32", "fp16" or "int8"; "file" for a model that ferry did not export."""
    target: Target
    opset: int
    ir_version: int
    minimum_runtime: str
    """The first ONNX Runtime that takes the model, for instance "1.17"."""
    needs: tuple[str, ...]
    """What a processor must have to answer as was proven: ("vnni",), or nothing."""
    inputs: tuple[TensorInfo, ...]
    shared: tuple[SharedInput, ...]
    """The inputs that are the same for all rows, with their values; `inputs` are the others."""
    outputs: tuple[TensorInfo, ...]
    """Those that are answered."""
    labels: tuple[str, ...]
    """The names of the classes; none for a model that has no classes, or does not name them."""
    classes: ClassOutputs
    """Which outputs tell the class of a row."""
    metrics: Mapping[str, float]
    """What the shipped variant reaches, for instance {"accuracy": 99.5}."""
    parity: Mapping[str, Gate]
    """Against the trained weights, over the test set; for instance {"flips": Gate(...)}."""
    source: ModelOrigin
    golden: Golden
    files: Mapping[str, FileInfo]
    """Every file of the folder but the manifest itself."""
    profiles: tuple[Profile, ...]
    """What `ferry bench --tune` found, one for each goal and kind of machine; none when built."""
    digest: str
    """The sha256 of the canonical text of all of the above: the identity of the bundle."""

    @property
    def given(self) -> dict[str, str]:
        """The shared inputs as `open_session` takes them."""
        return {one.info.name: one.value for one in self.shared}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose every byte is the one that was written."""

    folder: Path
    manifest: BundleManifest
    contents: Mapping[str, bytes]
    """The very bytes that were checked, by file name."""

    @property
    def model(self) -> bytes:
        """The ONNX file."""
        return self.contents[MODEL]

    def reference(self) -> Reference | None:
        """How the training data are distributed, or None; IntegrityError for a broken file."""
        if REFERENCE not in self.contents:
            return None
        return read_reference(self.contents[REFERENCE], str(self.folder / REFERENCE))


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle after checking the size and the sha256 of each of its files.

    Raises MissingInputError when `folder` is not there or no bundle, InputError when it is a file,
    and IntegrityError, naming every difference, when a file was altered, added or taken away.
    """
    if not folder.is_dir():
        raise not_there(folder) if not folder.exists() else _is_file(folder)
    manifest = read_manifest(folder)
    names = set(manifest.files)
    if missing := set(FILES) - names:
        raise IntegrityError(f"{folder / MANIFEST} does not list {', '.join(sorted(missing))}")
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise IntegrityError(
                f"{folder / MANIFEST} lists {name[:80]!r}, which is no file of a bundle"
            )
    wrong = _surprises(folder, names)
    contents: dict[str, bytes] = {}
    for name in sorted(names - set(wrong)):
        contents[name], difference = _read(folder / name, manifest.files[name])
        if difference:
            wrong[name] = difference
    if wrong:
        differences = "; ".join(f"{name} {reason}" for name, reason in wrong.items())
        raise IntegrityError(f"{folder} is not the bundle that was written: {differences}")
    return Bundle(folder=folder, manifest=manifest, contents=contents)


def _is_file(path: Path) -> InputError:
    """The error for a file where a bundle should be."""
    of = f" of the bundle {path.parent}" if (path.parent / MANIFEST).is_file() else ""
    return InputError(f"{path} is a file{of}; a bundle is a folder")


def read_reference_of(folder: Path) -> Reference | None:
    """The reference of a bundle, read alone, or None; IntegrityError for an altered one."""
    manifest = read_manifest(folder)
    if REFERENCE not in manifest.files:
        return None
    content, difference = _read(folder / REFERENCE, manifest.files[REFERENCE])
    if difference:
        raise IntegrityError(f"{folder / REFERENCE} {difference}")
    return read_reference(content, str(folder / REFERENCE))


def model_source(path: Path, provider: str) -> tuple[Path | bytes, dict[str, str]]:
    """What to make a session of: an ONNX file as it is, or that of a bundle, checked whole.

    With it are the inputs that the bundle says are the same for all rows.

    Raises ProviderError where this processor lacks what the model needs.
    """
    if path.is_dir():
        bundle = open_bundle(path)
        refuse_lacking(bundle.manifest.needs, str(path), provider)
        return bundle.model, bundle.manifest.given
    # What is no model, or not there, the session refuses in its own words.
    with contextlib.suppress(OSError, ModelError):
        metadata = read_header(path.read_bytes() if path.is_file() else b"").metadata
        refuse_lacking(needs_in(metadata), str(path), provider)
    return path, {}


@functools.cache
def runner_source() -> bytes:
    """The runner of a bundle as one file: `runner.py` with the files of ferry that it imports.

    Only what a user of it calls keeps its docstring, for a bundle shall be small.
    """
    taken: set[str] = set()

    def text(name: str) -> str:
        if name in taken:
            return ""
        taken.add(name)
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        return RUNNER_PARTS.sub(lambda found: text(found[1]), source)

    source = text("runner")
    lines = source.splitlines(keepends=True)
    for node in reversed(list(_spared(ast.parse(source)))):
        del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines).encode()


def _spared(tree: ast.Module) -> Iterator[ast.expr]:
    """The texts that a runner need not hold, from its first line to its last one."""
    (public,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    for node in tree.body[1:]:
        inside = node.body if isinstance(node, ast.FunctionDef | ast.ClassDef) else [node]
        words = inside[0].value if isinstance(inside[0], ast.Expr) else None
        alone = len(inside) == 1 and inside != [node]
        if (
            isinstance(words, ast.Constant)
            and not alone
            and getattr(node, "name", "") not in public
        ):
            yield words


def sealed(manifest: BundleManifest) -> BundleManifest:
    """The manifest with the right digest; InputError for a number that is not finite."""
    return dataclasses.replace(manifest, digest=_digest(manifest))


def read_manifest(folder: Path) -> BundleManifest:
    """Read `manifest.json` of a bundle and check it against itself.

    Raises MissingInputError when there is none and IntegrityError when it is not, to the byte,
    what ferry wrote, is of another schema, or has a profile that cannot be.
    """
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        raise MissingInputError(f"{folder} is not a bundle: it has no {MANIFEST}")
    content = _plain(path, MOST_TEXT_BYTES)
    if len(content) > MOST_TEXT_BYTES:
        raise IntegrityError(f"{path} has over {MOST_TEXT_BYTES:,} bytes, which no ferry writes")
    raw = parse_json(content, str(path))
    if not is_text(raw):
        raise IntegrityError(f"{path} holds half of a character, which no ferry writes")
    check_schema(raw, str(path), SCHEMA_VERSION)
    manifest = read_record(BundleManifest, raw, str(path))
    expected = _digest(manifest)
    if manifest.digest != expected:
        raise IntegrityError(
            f"{path} was altered: its digest is {manifest.digest[:12]}…, its content gives "
            f"{expected[:12]}…"
        )
    if content != dump_json(manifest).encode():
        raise IntegrityError(f"{path} was altered: its text is not the one that ferry writes")
    size = sum(one.size for one in manifest.files.values())
    if size > MOST_BYTES:
        raise IntegrityError(f"{path} lists {size:,} bytes of files, at most {MOST_BYTES:,} may be")
    check_profiles(manifest.profiles, str(path))
    return manifest


def _surprises(folder: Path, names: Set[str]) -> dict[str, str]:
    """Every entry of a bundle's folder that has no business there, and every file it lacks."""
    wrong: dict[str, str] = {}
    found = set()
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    for name, entry in _entries(folder, folders):
        found.add(name)
        if name not in {*names, MANIFEST, SIGNATURE}:
            wrong[name] = "is not listed in the manifest (take it away)"
        elif not entry.is_file(follow_symlinks=False):
            wrong[name] = "is a link or a folder, not a plain file"
    return wrong | {name: "is missing" for name in sorted(names) if name not in found}


def _entries(
    folder: Path, folders: Set[str], above: str = ""
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies in a bundle by its name there, also below those of `folders` that are folders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = above + entry.name
            if name in folders and entry.is_dir(follow_symlinks=False):
                yield from _entries(folder / entry.name, folders, f"{name}/")
            else:
                yield name, entry


def _read(path: Path, info: FileInfo) -> tuple[bytes, str]:
    """The bytes of a file, and how they differ from the recorded ones ("" if they do not)."""
    size = path.stat().st_size
    if size != info.size:
        return b"", f"has {size} bytes, expected {info.size}"
    content = _plain(path, info.size)
    found = sha256_of_bytes(content)
    if found != info.sha256:
        return content, f"has sha256 {found[:12]}…, expected {info.sha256[:12]}…"
    return content, ""


def _plain(path: Path, most: int) -> bytes:
    """As `plain_bytes`, with an IntegrityError."""
    try:
        return plain_bytes(path, most)
    except RunnerError as error:
        raise IntegrityError(str(error)) from error


def _digest(manifest: BundleManifest) -> str:
    names = [field.name for field in dataclasses.fields(manifest) if field.name != "digest"]
    try:
        text = dump_json({name: getattr(manifest, name) for name in names})
    except ValueError as error:
        raise InputError(
            "a manifest holds finite numbers only; a metric or a gate is not"
        ) from error
    return sha256_of_bytes(text.encode())
