"""A bundle is a folder that is deployed by copying: model, labels, golden rows, runner, manifest.

open_bundle("bundles/mnist-cnn")  refuses a folder in which one byte is not the one written
"""

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from serving.bundles.manifest import (
    MANIFEST,
    FileInfo,
    Manifest,
    read_manifest,
)
from serving.bundles.reference import REFERENCE, Reference, read_reference
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_bytes

MODEL, LABELS, GOLDEN, RUNNER = "model.onnx", "labels.txt", "golden.npz", "runner.py"
FILES = (MODEL, LABELS, GOLDEN, RUNNER)
OPTIONAL = (REFERENCE,)
RUNNER_SOURCE = Path(__file__).with_name(RUNNER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle whose every byte is the one that was written."""

    folder: Path
    manifest: Manifest
    contents: Mapping[str, bytes]
    """The very bytes that were checked, by file name."""

    @property
    def model(self) -> bytes:
        """The ONNX file."""
        return self.contents[MODEL]

    def reference(self) -> Reference | None:
        """How the training data are distributed, None if nobody had them.

        Raises IntegrityError for one that ferry did not write.
        """
        if REFERENCE not in self.contents:
            return None
        return read_reference(self.contents[REFERENCE], str(self.folder / REFERENCE))


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle after checking the size and the sha256 of each of its files.

    Raises MissingInputError when `folder` is not a bundle and IntegrityError, naming every
    difference, when a file was altered, added or taken away.
    """
    if not folder.is_dir():
        raise MissingInputError(f"{folder} is not a folder; `ferry bundle {folder.name}` makes it")
    manifest = read_manifest(folder)
    names = set(manifest.files)
    if names - set(OPTIONAL) != set(FILES):
        raise IntegrityError(
            f"{folder / MANIFEST} lists {sorted(names)}, a bundle has {sorted(FILES)} and may have "
            f"{', '.join(OPTIONAL)}"
        )
    wrong = _surprises(folder, names)
    contents: dict[str, bytes] = {}
    for name in sorted(names - set(wrong)):
        contents[name], difference = _read(folder / name, manifest.files[name])
        if difference:
            wrong[name] = difference
    if wrong:
        message = "; ".join(f"{name} {reason}" for name, reason in wrong.items())
        raise IntegrityError(f"{folder} is not the bundle that was written: {message}")
    return Bundle(folder=folder, manifest=manifest, contents=contents)


def model_source(path: Path) -> Path | bytes:
    """What to make a session of: an ONNX file as it is, or that of a bundle, checked whole."""
    return open_bundle(path).model if path.is_dir() else path


def _surprises(folder: Path, names: Set[str]) -> dict[str, str]:
    """Every entry of a bundle's folder that has no business there, and every file it lacks."""
    wrong: dict[str, str] = {}
    found = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            found.add(entry.name)
            if entry.name not in {*names, MANIFEST}:
                wrong[entry.name] = "is not listed in the manifest (take it away)"
            elif not entry.is_file(follow_symlinks=False):
                wrong[entry.name] = "is a link or a folder, not a plain file"
    return wrong | {name: "is missing" for name in sorted(names) if name not in found}


def _read(path: Path, info: FileInfo) -> tuple[bytes, str]:
    """The bytes of a file, and how they differ from the recorded ones ("" if they do not)."""
    size = path.stat().st_size
    if size != info.size:
        return b"", f"has {size} bytes, expected {info.size}"
    content = path.read_bytes()
    found = sha256_of_bytes(content)
    if found != info.sha256:
        return content, f"has sha256 {found[:12]}…, expected {info.sha256[:12]}…"
    return content, ""
