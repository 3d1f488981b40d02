"""`ferry sign BUNDLE --key PRIVATE.pem`: put one's name to a bundle, in OpenSSF model signing.

`model.sig` is an in-toto statement of the sha256 of every file of the bundle, signed as DSSE by
ECDSA on P-256 with SHA-256, and kept in a sigstore bundle: `model_signing verify key` of the
package model-signing takes it, and so do `ferry verify --key` and the runner in the bundle.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from serving.bundles.bundle import Bundle, open_bundle
from serving.bundles.finding import MANIFEST
from serving.bundles.integrity import (
    MAKE,
    PREDICATE,
    SIGNATURE,
    STATEMENT,
    authenticated,
    sealed,
)
from serving.bundles.registry import is_registered
from serving.bundles.verify import verify
from serving.bundles.writing import put_into
from serving.errors import InputError, IntegrityError, MissingInputError, OutputError
from serving.files import dump_json, sha256_of_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SignReport:
    """What `sign` did."""

    bundle: Path
    digest: str
    """Of the bundle."""
    key_sha256: str
    """Of the public key as PEM: what `model.sig` names it by."""
    num_files: int
    """How many files are signed, the manifest with them."""


def sign(folder: Path, key: Path) -> SignReport:
    """Sign every file of a bundle, in place of the signature that it may have.

    Raises InputError for a key that is not a P-256 private key without a password, IntegrityError
    for a bundle that does not pass `verify`, OutputError for a registered one, and OSError when the
    bundle, or the folder that holds it, cannot be written. In each case the folder stays as it was.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    private = read_private_key(key)
    if is_registered(folder):
        raise OutputError(
            f"{folder} is registered and stays as it is: sign a bundle before that, or a "
            f"copy, as `ferry bundle models:/NAME/VERSION --output DIR` makes one"
        )
    report = verify(folder, threads=1)
    report.require()
    bundle = open_bundle(folder)
    if bundle.manifest.digest != report.digest:
        raise IntegrityError(f"{folder} was changed while it was verified: nothing is signed")
    payload = statement(bundle)
    signature = private.sign(authenticated(payload), ECDSA(hashes.SHA256()))
    name = key_sha256(private)
    put_into(folder.resolve(), SIGNATURE, sealed(payload, signature, name))
    return SignReport(
        bundle=folder,
        digest=bundle.manifest.digest,
        key_sha256=name,
        num_files=len(bundle.contents) + 1,
    )


def statement(bundle: Bundle) -> bytes:
    """What is signed: an in-toto statement of the sha256 of every file, by name."""
    files = {name: sha256_of_bytes(content) for name, content in bundle.contents.items()}
    files[MANIFEST] = sha256_of_bytes(dump_json(bundle.manifest).encode())
    names = sorted(files, key=PurePosixPath)
    resources = [{"algorithm": "sha256", "digest": files[name], "name": name} for name in names]
    root = sha256_of_bytes(b"".join(bytes.fromhex(files[name]) for name in names))
    serialization = {
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
        "ignore_paths": [SIGNATURE],
    }
    record = {
        "_type": STATEMENT,
        "subject": [{"name": bundle.manifest.name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE,
        "predicate": {"resources": resources, "serialization": serialization},
    }
    return json.dumps(record, separators=(",", ":")).encode()


def read_private_key(path: Path) -> "EllipticCurvePrivateKey":
    """A P-256 private key in PEM; InputError, saying what it is, for any other."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not path.is_file():
        raise MissingInputError(f"the key {path} is not there; `{MAKE}` makes one")
    content = path.read_bytes()
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:  # its only sign of a password
        plain = f"openssl ec -in {path} -out plain.pem"
        raise InputError(f"{path} has a password: `{plain}` writes it without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        public = " but a public one" if b"PUBLIC KEY" in content else ""
        raise InputError(f"{path} is no private key in PEM{public}; `{MAKE}` makes one") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        kind = type(key).__name__.removesuffix("PrivateKey").strip("_")
        raise InputError(f"{path} is a key for {kind}; a P-256 key is needed: `{MAKE}` makes one")
    if not isinstance(key.curve, SECP256R1):
        curve = key.curve.name
        raise InputError(f"{path} is a key for {curve}; a P-256 key is needed: `{MAKE}` makes one")
    return key


def key_sha256(private: "EllipticCurvePrivateKey") -> str:
    """What names a key: the sha256 of its public half, as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return sha256_of_bytes(public)
