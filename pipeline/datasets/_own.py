"""A user's own data: hashed where they lie by `ferry pull`, and read there by `ferry preprocess`.

Nothing is copied. `data/raw/D` holds one manifest of the files, so that a file that changes makes
everything stale that was made of it.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config.experiment import OwnDatasetConfig, OwnSection
from pipeline.datasets import Dataset, RawRows, readers, row_count, with_test_rows
from pipeline.datasets.readers import Part
from pipeline.records import read
from pipeline.records.ready import MANIFEST, Split
from serving.console import note
from serving.errors import InputError, IntegrityError
from serving.files import (
    dump_json,
    json_line,
    parse_json,
    sha256_of_bytes,
    sha256_of_file,
    write_text,
)

PLACES = ("path", "test")
"""Where an own data set lies, which may move."""
WHOLE_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of the user's."""

    name: str
    """Below the path that the section names, and the key that names it: `path/rose/1.png`."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceManifest:
    """What lies in `data/raw/D`, and all that does."""

    fingerprint: str
    """One sha256 over all names and sums."""
    files: tuple[SourceFile, ...]
    """Sorted by name."""


def hash_files(raw: Path, name: str, section: OwnSection) -> SourceManifest:
    """Write the manifest of the files of an own data set to the folder `raw`.

    Where the files are gone and there is a manifest, it is kept, with a word: the arrays may have
    come from another machine. Raises InputError for files that are not there or not laid out as the
    reader takes them, and as `readers.settings` does.
    """
    config = readers.settings(section, f"datasets.{name}")
    gone = readers.missing(config)
    if gone is not None:
        if not (raw / MANIFEST).is_file():
            raise InputError(f"datasets.{name}: {gone} is not there")
        note(f"Warning: {name}: {gone} is not there; {raw / MANIFEST} is kept as it was")
        return _manifest(raw)
    files = tuple(_hashed(readers.files(config), raw.with_name(f".{name}.sums.json")))
    manifest = SourceManifest(fingerprint=_fingerprint(files), files=files)
    # On one line: laid out over many, thousands of files take longer to write than to hash.
    write_text(raw / MANIFEST, json_line(manifest))
    return manifest


def _fingerprint(files: Iterable[SourceFile]) -> str:
    lines = (f"{file.name} {file.sha256}" for file in files)
    return sha256_of_bytes("\n".join(lines).encode())


def _hashed(files: Mapping[str, Path], sums: Path) -> Iterator[SourceFile]:
    """Hash the files, but for those of the size and the times of change that `sums` knows of.

    So a large folder costs a look and not a reading each time; `ferry preprocess` reads it all.
    """
    known, kept = _known(sums), {}
    for name, path in files.items():
        found = path.stat()
        # The time of the change of the file itself: a copy may keep the time of its contents.
        key = f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        kept[key] = known.get(key) or sha256_of_file(path)
        yield SourceFile(name=name, size=found.st_size, sha256=kept[key])
    if kept != known:
        text = json_line(kept)
        write_text(sums, f"{sha256_of_bytes(text.encode())}\n{text}")


def _known(sums: Path) -> Mapping[str, str]:
    """What was hashed before; nothing of a file that has rotted, for it would be believed."""
    with contextlib.suppress(OSError, IntegrityError):
        sha256, _, content = sums.read_bytes().partition(b"\n")
        if sha256 == sha256_of_bytes(content).encode():
            return dict(parse_json(content, str(sums)))
    return {}


def open_dataset(raw: Path, name: str, section: OwnSection) -> Dataset:
    """What is known of an own data set once its files are read, and held to the manifest in `raw`.

    Raises MissingInputError without a manifest, IntegrityError for a file that is not the recorded
    one, InputError for rows that cannot be used, and as `readers.settings` does.
    """
    config = readers.settings(section, f"datasets.{name}")
    manifest = _manifest(raw)
    gone = readers.missing(config)
    if gone is not None:
        raise InputError(f"datasets.{name}: {gone} is not there")
    _hold_to(manifest, readers.files(config), name)
    train, test = readers.read(config)
    for part in (train, test):
        for text in part.notes if part else ():
            note(f"{name}: {text}")
    labels = _labels(config, train) if not train.targets else ()
    rows = _split(config, train, test, labels, name)
    return Dataset(
        title=name,
        kind=train.kind,
        homepage="",
        citation=config.citation,
        licence=config.licence,
        labels=labels,
        targets=train.targets,
        files=(),
        read=lambda _raw: rows,
        features=train.features,
        source=source_of(manifest, section),
    )


def source_of(manifest: SourceManifest, section: OwnSection) -> str:
    """One sha256 over the files of an own data set and how they are read, wherever they lie."""
    settings = {key: value for key, value in section.settings.items() if key not in PLACES}
    return sha256_of_bytes(f"{manifest.fingerprint}\n{dump_json(settings)}".encode())


def _manifest(raw: Path) -> SourceManifest:
    path, again = raw / MANIFEST, f"ferry pull {raw.name}"
    manifest = read(SourceManifest, path, again)
    if manifest.fingerprint != _fingerprint(manifest.files):
        raise IntegrityError(f"{path} has another fingerprint than its files; `{again}` mends it")
    return manifest


def _hold_to(manifest: SourceManifest, files: dict[str, Path], name: str) -> None:
    """Refuse files that are not those that were hashed."""
    again = f"`ferry pull {name}` takes it as it is now"
    known = {file.name: file for file in manifest.files}
    for key in known.keys() - files.keys():
        raise IntegrityError(f"{key} of {name} is gone since it was hashed; {again}")
    for key, path in files.items():
        if key not in known:
            raise IntegrityError(f"{path} is new since {name} was hashed; {again}")
        found = path.stat().st_size, sha256_of_file(path)
        if found != (known[key].size, known[key].sha256):
            raise IntegrityError(f"{path} has changed since it was hashed; {again}")


def _labels(config: OwnDatasetConfig, train: Part) -> tuple[str, ...]:
    """The classes, in order; InputError for what no two classes can be learned from."""
    counts = Counter(str(answer) for answer in train.answers)
    if len(counts) < 2:
        raise InputError(
            f"{config.path} has one class, {next(iter(counts))!r}; a model tells two or more apart"
        )
    spellings: dict[str, str] = {}
    for label in counts:
        other = spellings.setdefault(" ".join(label.split()).casefold(), label)
        if other != label:
            raise InputError(
                f"{config.path} has the classes {other!r} and {label!r}, which differ in their "
                f"spelling alone; write one of them in all {counts[other] + counts[label]} rows"
            )
    _refuse_measurements(config, counts)
    least = 2 if config.test_path else 3
    label, count = min(counts.items(), key=lambda item: item[1])
    if count < least:
        parts = "training and validation" if config.test_path else "training, validation and test"
        raise InputError(
            f"{config.path}: class {label!r} has {count} of the {least} rows that it needs, one "
            f"for each of {parts}"
        )
    return tuple(sorted(counts, key=_order(counts)))


def _refuse_measurements(config: OwnDatasetConfig, labels: Counter[str]) -> None:
    """A column of numbers with fractions is no class, though it can be taken for one."""
    numbers = [label for label in labels if _is_fraction(label)]
    if numbers and len(numbers) > len(labels) / 2:
        raise InputError(
            f"{config.path}: labels such as {numbers[0]} are numbers and no classes; to predict "
            f"them, say target: [COLUMN] in place of label:"
        )


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:
        return False


def _order(labels: Iterable[str]) -> Callable[[str], int | str]:
    """By number where all labels are whole numbers, else by letters."""
    return int if all(WHOLE_NUMBER.fullmatch(label) for label in labels) else str


def _split(
    config: OwnDatasetConfig, train: Part, test: Part | None, labels: tuple[str, ...], name: str
) -> RawRows:
    rows = _rows(config.path, train, labels)
    if test is not None:
        return RawRows(train=rows, test=_rows(str(config.test_path), test, labels))
    total, classes = len(rows.labels), max(1, len(labels))
    count = row_count(config.test_rows, total, classes)
    if not classes <= count <= total - 2 * classes:
        raise InputError(
            f"datasets.{name}.test_rows comes to {count} of {total} rows, and must be from "
            f"{classes} to {total - 2 * classes}, so that each part has a row of each class"
        )
    return with_test_rows(rows, count, config.seed)


def _rows(path: str, part: Part, labels: tuple[str, ...]) -> Split:
    """A part as rows, its labels as indices; InputError for a class that the training has not."""
    names = np.array(part.names)
    if isinstance(part.answers, np.ndarray):
        return Split(part.inputs, part.answers, names)
    places = {label: index for index, label in enumerate(labels)}
    for row, label in enumerate(part.answers):
        if label not in places:
            raise InputError(
                f"{path}: {part.names[row]} is of class {label!r}, of which no training row is"
            )
    indices: npt.NDArray[np.int64] = np.array([places[label] for label in part.answers], np.int64)
    return Split(part.inputs, indices, names)
