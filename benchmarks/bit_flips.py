"""How many random bit flips of a signed bundle are refused, by `ferry verify` and by the runner.

Run: python benchmarks/bit_flips.py        (after `dvc repro bundle@mnist-tiny`, or with a BUNDLE)
     python benchmarks/bit_flips.py --publish docs/results

The bundle is copied and signed with a new key; untouched it must pass. Each flip is of one bit in
one file, the files in turn: those that the manifest lists, the manifest and the signature. Most are
tried within this process: `verify` with the key, and the check that is in every runner. Some are
tried as whole programs, as on a device: there the runner that checks may be the altered file.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benching import Line, parser, show
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from serving.bundles.integrity import SIGNATURE, RunnerError, check
from serving.bundles.signing import sign
from serving.bundles.verify import Trust, verify

BUNDLE = Path("bundles/mnist-tiny")
NUM_FLIPS = 1000
NUM_PROGRAMS = 42
SEED = 20_261_126


def main() -> None:
    """Print the table of aims."""
    arguments = parser(__doc__)
    arguments.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, default=BUNDLE)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, key = signed(given.bundle, Path(name))
        show(list(lines(folder, key)), given.publish)


def signed(bundle: Path, place: Path) -> tuple[Path, Path]:
    """A copy of the bundle, signed, and the public key for it."""
    private = ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (place / "key.pem").write_bytes(secret)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (place / "pub.pem").write_bytes(public)
    folder = Path(shutil.copytree(bundle, place / bundle.name))
    sign(folder, place / "key.pem")
    return folder, place / "pub.pem"


def lines(folder: Path, key: Path) -> Iterator[Line]:
    """What passes untouched, and what is refused with a bit flipped."""
    name = folder.name
    untouched = [by_verify(folder, key), by_runner(folder, key), by_program(folder, key)]
    passed = untouched.count(False)
    yield Line(f"{name}: signed, untouched: passes", f"{passed} of 3", "all", passed == 3)
    chance = np.random.default_rng(SEED)
    refused = Counter[str]()
    for number in range(NUM_FLIPS):
        for path in flipped(folder, number, chance):
            refused["verify"] += by_verify(folder, key)
            refused["runner"] += by_runner(folder, key)
            refused[SIGNATURE] += path.name == SIGNATURE
    what = f"{name}: bit flips ({refused[SIGNATURE]} of them in {SIGNATURE}) refused by"
    for ours, words in (
        ("verify", "`ferry verify BUNDLE --key PUB.pem`"),
        ("runner", "the check of the runner"),
    ):
        found = f"{refused[ours]:,} of {NUM_FLIPS:,}"
        yield Line(f"{what} {words}", found, "all", refused[ours] == NUM_FLIPS)
    for number in range(NUM_PROGRAMS):
        for _ in flipped(folder, number, chance):
            refused["program"] += by_program(folder, key)
    found = f"{refused['program']} of {NUM_PROGRAMS}"
    what = f"{name}: bit flips refused by the runner with --key, whole programs"
    yield Line(what, found, "all", refused["program"] == NUM_PROGRAMS)


def flipped(folder: Path, number: int, chance: np.random.Generator) -> Iterator[Path]:
    """A file of the bundle with a bit flipped, which is put right again."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = paths[number % len(paths)]
    whole = path.read_bytes()
    content = bytearray(whole)
    content[chance.integers(len(whole))] ^= 1 << int(chance.integers(8))
    path.write_bytes(content)
    yield path
    path.write_bytes(whole)


def by_verify(folder: Path, key: Path) -> bool:
    """Whether `ferry verify --key` refuses it."""
    return not verify(folder, threads=1, trust=Trust(key)).passed


def by_runner(folder: Path, key: Path) -> bool:
    """Whether the check that is in every runner refuses it."""
    try:
        check(folder, key)
    except RunnerError:
        return True
    return False


def by_program(folder: Path, key: Path) -> bool:
    """Whether the bundle's own runner ends with a failure."""
    command = [sys.executable, "-B", str(folder / "runner.py"), "selftest", "--key", str(key)]
    return subprocess.run(command, capture_output=True).returncode != 0


if __name__ == "__main__":
    main()
