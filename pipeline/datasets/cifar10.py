"""CIFAR-10: 50,000 training and 10,000 test photographs of ten things, in colour, 32 x 32.

The binary version is read, for the other ones would have to be unpickled: records of a label and
3,072 pixels, a red, a green and a blue plane. The author asks for the citation below.
"""

from pathlib import Path

import numpy as np

from pipeline.datasets import Archive, Dataset, RawFile, RawRows, check_labels
from pipeline.records.ready import Split
from serving.errors import InputError
from serving.files import require

SIDE, CHANNELS = 32, 3
RECORD = 1 + CHANNELS * SIDE * SIDE
LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6))
TEST = f"{FOLDER}/test_batch.bin"
SHA256 = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
)
"""Of these files, the test's last."""


def read(raw: Path) -> RawRows:
    """Read the six files: images uint8 [rows, 32, 32, 3], red, green and blue from 0 to 255.

    Raises MissingInputError for a file that is not there and InputError, naming file, record and
    value, for one that is not what it should be.
    """
    train = [_read_file(raw, name) for name in TRAIN]
    images = np.concatenate([part.inputs for part in train])
    labels = np.concatenate([part.labels for part in train])
    return RawRows(train=Split(images, labels), test=_read_file(raw, TEST))


def _read_file(raw: Path, name: str) -> Split:
    path = require(raw / name, f"ferry pull {raw.name}")
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise InputError(
            f"{path} must hold whole records of {RECORD} bytes, its {size} bytes are "
            f"{size // RECORD} records and {size % RECORD} bytes"
        )
    records = np.fromfile(path, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0]
    check_labels(path, labels, len(LABELS), "record")
    planes = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)
    return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int64))


DATASET = Dataset(
    title="CIFAR-10",
    kind="image",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    citation=(
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, "
        "University of Toronto, 2009"
    ),
    licence="none stated",
    labels=LABELS,
    files=(),
    archives=(
        Archive(
            name="cifar-10-binary.tar.gz",
            size=170052171,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            members=tuple(
                RawFile(name=name, size=10_000 * RECORD, sha256=sha256)
                for name, sha256 in zip((*TRAIN, TEST), SHA256, strict=True)
            ),
        ),
    ),
    read=read,
)
