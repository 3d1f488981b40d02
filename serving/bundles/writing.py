"""Write a bundle whole or not at all, and prove it before it takes the place of another.

`write_bundle` makes the folder of what a stage hands over; `write_profile` adds what was tuned;
`copy_bundle` makes another folder of the same.
"""

import contextlib
import ctypes
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from serving.bundles import Target
from serving.bundles.bundle import (
    GOLDEN,
    LABELS,
    MODEL,
    RUNNER,
    Bundle,
    BundleManifest,
    FileInfo,
    Gate,
    Golden,
    ModelOrigin,
    open_bundle,
    runner_source,
    sealed,
)
from serving.bundles.finding import MANIFEST, set_aside
from serving.bundles.golden import INPUT, check_golden, make_golden
from serving.bundles.integrity import MOST_TEXT_BYTES, SCHEMA_VERSION, SIGNATURE, plain_bytes
from serving.bundles.profiles import Profile, check_profiles, with_profile
from serving.bundles.reference import REFERENCE, Reference
from serving.bundles.registry import is_registered
from serving.bundles.verify import verify
from serving.errors import InputError, OutputError
from serving.files import (
    blaming,
    building,
    drop_abandoned,
    dump_json,
    locked,
    remove,
    resolved,
    sha256_of_bytes,
    write_bytes,
    write_json,
)
from serving.runtime.onnxfile import minimum_runtime, read_header
from serving.runtime.session import Session, open_session

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux: the working folder, and two names that change places."""
NPZ_ARGUMENTS = ("file", "allow_pickle")
"""Names that an array cannot have: `np.savez` would take them for its own arguments."""


Part = Callable[[BundleManifest, Mapping[str, bytes]], Mapping[str, bytes]]
"""Files to add to a bundle, by name, of its manifest and the bytes of its files until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContents:
    """What a bundle is made of."""

    name: str
    """The experiment."""
    variant: str
    """One of "fp32", "fp16" and "int8"."""
    model: bytes
    """The ONNX file."""
    labels: tuple[str, ...]
    """The names of the classes; none for a model that has no classes."""
    golden_input: npt.NDArray[Any]
    """Rows of the model's own dtype and shape; their outputs are computed here, on the CPU."""
    golden_max_abs_diff: float
    """Largest absolute difference of any output that a device may show."""
    metrics: Mapping[str, float]
    parity: Mapping[str, Gate]
    source: ModelOrigin
    shared: Mapping[str, str] = field(default_factory=dict)
    """The values of inputs that are the same for all rows."""
    needs: tuple[str, ...] = ()
    """What a processor must have for the model; `needs` of the manifest."""
    reference: Reference | None = None
    """How the training data are distributed; None where nobody has them."""
    golden_tie: float = 0.0
    """The margin of scores that says nothing of a device; `tie` of the manifest."""
    target: Target = "cpu"
    parts: tuple[Part, ...] = ()
    """What the target adds."""


def write_bundle(folder: Path, contents: BundleContents) -> BundleManifest:
    """Make the bundle `folder`, in place of the bundle that may lie there, and return its manifest.

    The bundle is built beside its target and verified there in full; then the two exchange names,
    so that at every moment a whole bundle has the name, whenever this is killed. Raises
    InputError for contents that do not fit together, ModelError for a model that does not run,
    IntegrityError when the verification fails, and OSError when the folder cannot be written; in
    each case the old bundle stays.
    """
    _refuse_foreign(folder)
    session = open_session(contents.model, threads=1, shared=contents.shared)
    files = _files(contents, session)
    manifest = _manifest(contents, session, files)
    for part in contents.parts:
        files |= part(manifest, files)
        manifest = _manifest(contents, session, files)
    with _replacing(folder) as new:
        _write_files(new, files)
        write_json(new / MANIFEST, manifest)
        dataclasses.replace(verify(new, threads=1), bundle=folder).require()
    return manifest


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Make the bundle `folder` of the very bytes that were checked, in place of another bundle.

    Raises InputError for a folder that holds anything else, and OSError when it cannot be written.
    """
    _refuse_foreign(folder)
    with _replacing(folder) as new:
        _write_files(new, bundle.contents)
        if (signature := bundle.folder / SIGNATURE).is_file():
            write_bytes(new / SIGNATURE, plain_bytes(signature, MOST_TEXT_BYTES))
        write_json(new / MANIFEST, bundle.manifest)


def write_profile(folder: Path, profile: Profile) -> BundleManifest:
    """Add a profile to the bundle's manifest and seal it anew; returns the manifest.

    It takes the place of the one for the same goal, provider and kind of machine. The bundle is
    verified first, and its golden rows are run with the profile's settings: nothing unproven ships.
    Raises IntegrityError when one of the two fails, with the old manifest left, OSError when the
    bundle, or the folder that holds it, cannot be written, and OutputError for a registered or a
    signed one.
    """
    folder = resolved(folder)
    refuse_untunable(folder)
    verify(folder, provider=profile.provider).require()
    bundle = open_bundle(folder)
    session = open_session(
        bundle.model,
        provider=profile.provider,
        settings=profile.applied,
        shared=bundle.manifest.given,
    )
    check_golden(session, bundle.contents[GOLDEN], bundle.manifest)
    profiles = with_profile(bundle.manifest.profiles, profile)
    manifest = sealed(dataclasses.replace(bundle.manifest, profiles=profiles))
    check_profiles(profiles, str(folder / MANIFEST))
    put_into(folder, MANIFEST, dump_json(manifest).encode())
    return manifest


def put_into(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a bundle, whole or not at all, in place of the one of that name."""
    # Written beside the bundle: a file more in it, for a moment even, makes it none.
    write_bytes(folder / name, content, beside=folder)


def refuse_untunable(folder: Path) -> None:
    """Refuse to change the registry's copy of a bundle, or one that is signed."""
    if (folder / SIGNATURE).is_file():
        raise OutputError(
            f"{folder} is signed, and tuning it would make that void: remove its {SIGNATURE}, tune "
            f"it, and sign it again"
        )
    if is_registered(folder):
        raise OutputError(
            f"{folder} is registered and stays as it is: tune its bundle in bundles/, and register "
            f"that as a new version"
        )


def _files(contents: BundleContents, session: Session) -> dict[str, bytes]:
    reserved = {INPUT, *NPZ_ARGUMENTS} & {output.name for output in session.outputs}
    if len(session.inputs) != 1 or reserved:
        raise InputError(
            f"a bundle's model has one input, and no output named {min(reserved, default=INPUT)!r}"
        )
    if any(len(label.splitlines()) != 1 for label in contents.labels):
        raise InputError("a label is one line of text")
    files = {
        MODEL: contents.model,
        LABELS: "".join(f"{label}\n" for label in contents.labels).encode(),
        GOLDEN: make_golden(session, contents.golden_input),
        RUNNER: runner_source(),
    }
    if contents.reference:
        files[REFERENCE] = contents.reference.content()
    return files


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, content)


def _manifest(
    contents: BundleContents, session: Session, files: Mapping[str, bytes]
) -> BundleManifest:
    header = read_header(contents.model)
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        name=contents.name,
        variant=contents.variant,
        target=contents.target,
        opset=header.opset,
        ir_version=header.ir_version,
        minimum_runtime=minimum_runtime(header),
        needs=contents.needs,
        inputs=session.inputs,
        shared=session.shared,
        outputs=session.answered(contents.name),
        labels=contents.labels,
        classes=session.tells(contents.labels),
        metrics=contents.metrics,
        parity=contents.parity,
        source=contents.source,
        golden=Golden(
            rows=len(contents.golden_input),
            max_abs_diff=contents.golden_max_abs_diff,
            tie=contents.golden_tie,
        ),
        files={
            name: FileInfo(size=len(content), sha256=sha256_of_bytes(content))
            for name, content in files.items()
        },
        profiles=(),
        digest="",
    )
    return sealed(manifest)


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace what is not a bundle."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} holds files but no {MANIFEST}: not a bundle, so it stays")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, else vanishes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    with blaming(folder), building(folder, folder=True) as (new, _):
        yield new
        if folder.exists():
            _take_the_place(new, folder)
        else:
            new.rename(folder)


def _take_the_place(new: Path, folder: Path) -> None:
    """Give `new` the name of `folder`, in one step where the system can, and remove the old one."""
    with locked(folder):  # else what is to be removed could be taken for abandoned by another
        if _exchanged(new, folder):
            remove(new)
            return
        old = set_aside(folder)
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        remove(old)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders exchange their names; False where the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # of Linux
    if call is None:
        return False
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    return bool(call(*names, RENAME_EXCHANGE) == 0)


def _recover(folder: Path) -> None:
    """Give a bundle its name back that a killed writer had set aside, or remove it."""
    old = set_aside(folder)
    if folder.exists():
        drop_abandoned(old)
        return
    with locked(old) as ours:
        if ours:  # else another one is about to rename it
            old.rename(folder)
