"""Sentence polarity 1.0: 5,331 positive and 5,331 negative sentences of film reviews, in English.

No official split exists, so a fixed, seeded, stratified tenth is the test set here; no sentence
comes twice. The authors ask for the citation below.
"""

from pathlib import Path

import numpy as np

from pipeline.datasets import Archive, Dataset, RawFile, RawRows, with_test_rows
from pipeline.records.ready import Split
from serving.errors import InputError
from serving.files import require

NAME = "rt-polaritydata.tar.gz"
FILES = ("rt-polaritydata/rt-polarity.neg", "rt-polaritydata/rt-polarity.pos")
"""In the order of the labels."""
ENCODING = "cp1252"
TEST_SHARE, TEST_SEED = 10, 1
"""One row in ten, by this seed: part of the data set's definition, so not in params.yaml."""


def read(raw: Path) -> RawRows:
    """Read the two files and split their rows: str [rows], one sentence each, as it stands there.

    Raises MissingInputError for a file that is not there and InputError, naming file and line, for
    one that is not what it should be.
    """
    parts = [_sentences(raw, name) for name in FILES]
    texts = np.array([text for part in parts for text in part])
    labels = np.repeat(np.arange(len(parts), dtype=np.int64), [len(part) for part in parts])
    return with_test_rows(Split(texts, labels), len(labels) // TEST_SHARE, TEST_SEED)


def _sentences(raw: Path, name: str) -> list[str]:
    path = require(raw / name, f"ferry pull {raw.name}")
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    if len(lines) < TEST_SHARE:
        raise InputError(f"{path} must have {TEST_SHARE} lines or more, it has {len(lines)}")
    return [_sentence(path, number, line) for number, line in enumerate(lines, 1)]


def _sentence(path: Path, number: int, line: bytes) -> str:
    try:
        text = line.decode(ENCODING)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {number} must be Windows-1252 text, which has no byte "
            f"0x{line[error.start]:02x}"
        ) from error
    if not text.strip():
        raise InputError(f"{path}: line {number} is empty, and must be a sentence")
    return text


DATASET = Dataset(
    title="Sentence polarity 1.0",
    kind="text",
    homepage="https://www.cs.cornell.edu/people/pabo/movie-review-data/",
    citation=(
        "B. Pang, L. Lee, Seeing stars: exploiting class relationships for sentiment "
        "categorization with respect to rating scales, ACL 2005"
    ),
    licence="none stated",
    labels=("negative", "positive"),
    files=(),
    archives=(
        Archive(
            name=NAME,
            size=487770,
            sha256="a05befe52aafda71d458d188a1c54506a998b1308613ba76bbda2e5029409ce9",
            urls=(
                f"https://www.cs.cornell.edu/people/pabo/movie-review-data/{NAME}",
                f"https://storage.googleapis.com/seldon-datasets/sentence_polarity_v1/{NAME}",
            ),
            members=(
                RawFile(
                    name=FILES[0],
                    size=612256,
                    sha256="4ace77d558c3714723843f1d65b60c01e3417b208180f0728808d76ad0eeeaca",
                ),
                RawFile(
                    name=FILES[1],
                    size=626139,
                    sha256="2da124ec187a9d5a29c9f04e91c540e02baed5af8868f550a26bd6fd4dbf8bf0",
                ),
            ),
        ),
    ),
    read=read,
    mirrored_as="rt-polarity",
)
