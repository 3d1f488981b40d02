"""Forged bundles, every sum computed anew: through `ferry verify` and the runner of a good one.

Each must be refused by `ferry verify`, and but for what it does not look at by the self-test of the
runner; whatever a command says, it says in one line.
"""

import functools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cases import Case, Ended, Outcome, Task, ferry
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from forgeries import (
    ENTRIES,
    FORGERIES,
    GOLDEN,
    MANIFEST,
    MODEL,
    SIGNATURE,
    UNSEEN_BY_THE_RUNNER,
    Forgery,
)
from tiny_classifier import contents, images

from serving.bundles.writing import write_bundle

SHORT = [next(iter(table)) for table in (GOLDEN, MANIFEST, ENTRIES, MODEL, SIGNATURE)]
CALL_SECONDS = "4"


def cases(task: Task) -> Iterator[Case]:
    """Each forgery of a good bundle."""
    good = task.scratch / "good"
    write_bundle(good, contents())
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (task.scratch / "pub.pem").write_bytes(pem)
    for number, (name, forge) in enumerate(FORGERIES.items()):
        if not task.short or name in SHORT:
            folder = task.scratch / str(number)
            yield Case(name, functools.partial(forged, good, folder, name, forge))


def forged(good: Path, folder: Path, name: str, forge: Forgery) -> Outcome:
    """What every command says of a forgery."""
    bundle = folder / "forged"
    shutil.copytree(good, bundle)
    forge(bundle)
    np.save(folder / "rows.npy", images(3))
    key = ("--key", good.parent / "pub.pem") if (bundle / "model.sig").exists() else ()
    limits = ("--call-timeout", CALL_SECONDS, *key)
    verified = ferry("verify", bundle.name, *limits, folder=folder)
    outcome = judged(verified, seen=True)
    runner = (sys.executable, "-I", "-B", good / "runner.py")
    for words in (("selftest",), ("predict", "rows.npy"), ("bench", "--seconds", "0.1")):
        limited = (*words, "--folder", bundle, *limits)
        seen = words == ("selftest",) and name not in UNSEEN_BY_THE_RUNNER
        outcome += judged(ferry(*limited, folder=folder, program=runner), seen=seen)
    shutil.rmtree(folder)
    return outcome


def judged(ended: Ended, *, seen: bool) -> Outcome:
    """It is refused in one line, or taken where it is not `seen`."""
    if ended.status and len(ended.stderr.strip().splitlines()) > 1:
        return ended.fault("lost", f"{len(ended.stderr.splitlines())} lines of stderr")
    if seen and ended.status == 0:
        return ended.fault("lost", "it was taken")
    return ended.judged()
