"""Whether a folder is the bundle that was shipped, by the standard library alone.

    check(Path("bundles/mnist-cnn"), key=Path("pub.pem"))

In a bundle this text is the beginning of its runner: see `runner_source`. It imports nothing but
`sys` until the folder of the runner is off the path, and is written for Python 3.9.
"""

import sys

PATH = list(sys.path)


def _is_ours(place: str) -> bool:
    """Whether this very file lies in a place of `sys.path`, whatever the place is called."""
    stat = (sys.modules.get("posix") or sys.modules["nt"]).stat
    try:
        found = stat(f"{place or '.'}/{__file__.replace(chr(92), '/').rpartition('/')[2]}")
        this = stat(__file__)
    except (OSError, ValueError):
        return False
    return bool((found.st_dev, found.st_ino) == (this.st_dev, this.st_ino))


# A json.py or a numpy.py beside this file would be imported. Nothing but `sys` is, up to here.
if not __package__:
    if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", 0)):
        del sys.path[0]
    sys.path[:] = [place for place in sys.path if not _is_ours(place)]

import base64
import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
MANIFEST, SIGNATURE = "manifest.json", "model.sig"
SCHEMA_VERSION = 4
"""Of the manifest."""
NEEDED = {"model.onnx", "golden.npz"}
MOST_BYTES, MOST_TEXT_BYTES = 2**31, 2**23
"""The most that all files of a bundle hold, as no ONNX file in one piece has more; and the most of
its manifest, its signature or a key."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys, which the manifest holds as escapes."""
WHOLE = re.compile(r"-?[0-9]{1,30}")
FILE_NAME = re.compile(r"[^/]{1,255}(/[^/]{1,255}){0,8}")
NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64")
DTYPES = (*NUMBERS, "uint8", "uint16", "uint32", "uint64", "bool", "object")
TENSOR = {"name": str, "dtype": DTYPES, "shape": [(int, str, None)]}
FORM: "dict[str, Any]" = {
    "minimum_runtime": re.compile(r"[0-9]{1,4}\.[0-9]{1,4}"),
    "needs": [str],
    "inputs": [TENSOR],
    "shared": [{"info": TENSOR, "value": str, "rows_axis": (int, None)}],
    "outputs": [TENSOR],
    "labels": [str],
    "classes": {
        "label": (TENSOR, None),
        "scores": (TENSOR, None),
        "are_probabilities": bool,
        "values": [str],
    },
    "golden": {"rows": int, "max_abs_diff": float},
    "files": {FILE_NAME: {"size": int, "sha256": re.compile("[0-9a-f]{64}")}},
}
"""What a runner takes from a manifest: types, patterns, choices, and lists and records of them."""


class RunnerError(Exception):
    """What went wrong, in one line for a person."""


def one_line(error: Exception) -> str:
    """What an error says; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


# The folder is the one that was shipped


def check(
    folder: Path = FOLDER, key: "Path | str | None" = None, digest: "str | None" = None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Compare every file with the manifest; return the manifest and the checked bytes.

    With `key`, a P-256 public key in PEM, `model.sig` must be its holder's signature of just these
    files; with `digest` the manifest must have that one. Raises RunnerError naming the first file
    that is not the one that was shipped.
    """
    manifest, text = _manifest(folder)
    files = manifest["files"]
    try:
        found = set(_found(folder, set(files))) - {MANIFEST}
    except OSError as error:
        raise RunnerError(f"{error.filename}: {error.strerror}") from error
    for name in sorted(found - set(files) - {SIGNATURE}):
        raise RunnerError(f"{name} was added: manifest.json does not list it")
    for name in sorted(set(files) - found):
        raise RunnerError(f"{name} is missing")
    contents = {name: _checked(folder / name, name, files[name]) for name in files}
    if digest is not None and digest.lower() != manifest["digest"]:
        raise RunnerError(f"the digest is {manifest['digest']}, not {digest}")
    if key is not None:
        if SIGNATURE not in found:
            raise RunnerError(f"{folder} is not signed, so no key can vouch for it: no {SIGNATURE}")
        sums = {name: info["sha256"] for name, info in files.items()}
        shipped = {**sums, MANIFEST: sha256(text).hexdigest()}
        check_signature(_text(folder / SIGNATURE), Path(key), shipped)
    return manifest, contents


def _manifest(folder: Path) -> tuple[dict[str, Any], bytes]:
    text = _text(folder / MANIFEST)
    try:
        manifest: dict[str, Any] = json.loads(
            text.decode(), parse_int=whole_number, parse_constant=_no_number
        )
        content = {name: value for name, value in manifest.items() if name != "digest"}
        digest = sha256(canonical(content)).hexdigest()
        intact = canonical(manifest) == text and digest == manifest["digest"]
        files = set(manifest["files"])
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise RunnerError("manifest.json was altered: it is no manifest any more") from error
    if not intact or {MANIFEST, SIGNATURE} & files:
        raise RunnerError("manifest.json was altered: its digest is another")
    schema = manifest.get("schema_version")
    if schema != SCHEMA_VERSION:
        known = f"this runner reads {SCHEMA_VERSION}: take the runner of its own time"
        raise RunnerError(f"manifest.json is of schema {str(schema)[:40]}, {known}")
    if missing := NEEDED - files:
        raise RunnerError(f"manifest.json does not list {min(missing)}")
    _refuse_senseless(manifest)
    return manifest, text


def _refuse_senseless(manifest: dict[str, Any]) -> None:
    """Raise RunnerError for what no ferry writes, whoever computed the digest of it."""
    if wrong := _misfit(manifest, FORM, ""):
        raise RunnerError(f"manifest.json is none of a bundle: see its {wrong[1:][:80]}")
    size = sum(one["size"] for one in manifest["files"].values())
    if size > MOST_BYTES:
        raise RunnerError(f"manifest.json lists {size} bytes of files, at most {MOST_BYTES} may be")
    named = [one["name"] for one in manifest["outputs"]]
    told = [one for one in (manifest["classes"][key] for key in ("label", "scores")) if one]
    rows = [one["shape"][0] for one in manifest["inputs"] if one["shape"]]
    if not (rows and named) or (type(rows[0]) is int and rows[0] < 1):
        raise RunnerError("manifest.json names no input of rows, or no output")
    # np.savez would take them for its own, or for the input.
    if {"input", "file", "allow_pickle"} & set(named) or len(set(named)) < len(named):
        raise RunnerError(f"manifest.json names outputs that cannot be: {', '.join(named)[:80]}")
    if not {one["name"] for one in told} <= set(named):
        raise RunnerError("manifest.json tells classes by an output that it does not name")


def _misfit(value: Any, form: Any, at: str) -> str:
    """Where a value is not of a form, as ".golden.rows"; "" if it is."""
    if isinstance(form, tuple):
        return "" if not all(_misfit(value, one, at) for one in form) else at
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return at
        if FILE_NAME in form:
            if any(not FILE_NAME.fullmatch(key) for key in value):
                return at
            pairs = [(f".{key}", one, form[FILE_NAME]) for key, one in value.items()]
        else:
            # What is not there is of no form: an ellipsis stands in no JSON.
            pairs = [(f".{key}", value.get(key, ...), one) for key, one in form.items()]
    elif isinstance(form, list):
        if not isinstance(value, list):
            return at
        pairs = [("[]", one, form[0]) for one in value]
    else:
        return "" if _is(value, form) else at
    return next(filter(None, (_misfit(one, part, at + key) for key, one, part in pairs)), "")


def _is(value: Any, form: Any) -> bool:
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if form is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is form if isinstance(form, type) else value == form


def whole_number(text: str) -> int:
    """A whole number of JSON; ValueError for one of so many digits that it is none of ours."""
    if not WHOLE.fullmatch(text):
        raise ValueError("a number of more than 30 digits")
    return int(text)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _found(folder: Path, listed: set[str], inside: str = "") -> Iterator[str]:
    """The name of every file of the folder; RunnerError for links and for folders of its own."""
    with os.scandir(folder / inside) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = inside + entry.name
            # An imported runner was compiled to there, before its first line.
            if name == "__pycache__" and folder == FOLDER and __name__ != "__main__":
                continue
            if entry.is_dir(follow_symlinks=False):
                if not any(one.startswith(f"{name}/") for one in listed):
                    raise RunnerError(f"{name}/ was added: manifest.json does not list it")
                yield from _found(folder, listed, f"{name}/")
            elif entry.is_file(follow_symlinks=False):
                yield name
            else:
                raise RunnerError(f"{name} is a link or a device, not a plain file")


def _checked(path: Path, name: str, info: dict[str, Any]) -> bytes:
    content = plain_bytes(path, info["size"])
    if len(content) != info["size"]:
        raise RunnerError(f"{name} was altered: its size is not the one in manifest.json")
    if sha256(content).hexdigest() != info["sha256"]:
        raise RunnerError(f"{name} was altered: its sha256 is not the one in manifest.json")
    return content


def _text(path: Path) -> bytes:
    content = plain_bytes(path, MOST_TEXT_BYTES)
    if len(content) > MOST_TEXT_BYTES:
        raise RunnerError(f"{path} has over {MOST_TEXT_BYTES} bytes, which no ferry writes")
    return content


def plain_bytes(path: Path, most: int) -> bytes:
    """The bytes of a file, the first `most` and one where it has more.

    RunnerError for a link, a pipe, a device and a folder, none of which is waited for.
    """
    # Looked at where it was opened: between two looks by its name it could become another.
    flags = [getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_BINARY")]
    try:
        with open(os.open(path, sum(flags)), "rb") as file:  # noqa: PTH123 - of a descriptor
            info = os.fstat(file.fileno())
            if stat.S_ISREG(info.st_mode):
                return file.read(min(most, info.st_size) + 1)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise RunnerError(f"{path}: {error.strerror}") from error
    raise RunnerError(f"{path} is a link or a device, not a plain file")


def canonical(record: object) -> bytes:
    """The canonical text that the manifest was written as."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


# The signature: OpenSSF model signing, that is in-toto in DSSE in a sigstore bundle, by ECDSA P-256

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""How the DER of a public key begins, before x and y (RFC 5480)."""
KINDS = {
    "2b6570": "Ed25519",
    "2b6571": "Ed448",
    "2a864886f70d010101": "RSA",
    "2b81040022": "P-384",
    "2b81040023": "P-521",
    "2b8104000a": "secp256k1",
    "2a8648ce3d030107": "P-256, but compressed or cut short",
}
"""Other keys by their object identifiers in DER."""
MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
PUBLISH = "openssl ec -in key.pem -pubout -out pub.pem"
MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0"


def check_signature(text: bytes, key: Path, shipped: dict[str, str]) -> None:
    """Check that `text`, a model.sig, signs exactly the files of which `shipped` has the sha256.

    It must be, to the byte, what `ferry sign` and model-signing 1.1 write. Raises RunnerError.
    """
    point, hint = public_key(key)
    try:
        record = json.loads(text, parse_int=whole_number)
        envelope = record["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        named = record["verificationMaterial"]["publicKey"]["hint"]
        intact = sealed(payload, signature, named) == text
    except (ValueError, RecursionError, LookupError, TypeError):
        intact = False
    if not intact:
        raise RunnerError("model.sig was altered, or is not as ferry and model-signing write it")
    if named != hint:
        raise RunnerError(f"model.sig is by another key than {key}, whose sha256 is {hint}")
    if not verified(point, authenticated(payload), signature):
        raise RunnerError(f"model.sig was altered: it is no signature by the key of {key}")
    signed = _signed(payload)
    for name in sorted(set(signed) | set(shipped)):
        if signed.get(name) != shipped.get(name):
            there = f"signs another {name}" if name in signed else f"does not sign {name}"
            gone = f"signs {name}, which is not there"
            raise RunnerError(f"model.sig {there if name in shipped else gone}")


def sealed(payload: bytes, signature: bytes, hint: str) -> bytes:
    """The one text of a model.sig: compact JSON, base64 with padding, no other field."""
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": hint}, "tlogEntries": []}
    record = {"mediaType": MEDIA, "verificationMaterial": material, "dsseEnvelope": envelope}
    return json.dumps(record, separators=(",", ":")).encode()


def authenticated(payload: bytes) -> bytes:
    """What is signed of a payload: its "pre-authentication encoding" (DSSE 1.0)."""
    return f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload


def _signed(payload: bytes) -> dict[str, str]:
    """The sha256 of each file, by name, that a signed statement tells."""
    try:
        statement = json.loads(payload, object_pairs_hook=_without_doubles, parse_int=whole_number)
        resources = statement["predicate"]["resources"]
        signed = {one["name"]: one["digest"] for one in resources}
        root = sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()
        name, how = statement["subject"][0]["name"], statement["predicate"]["serialization"]
        whole = (how["method"], how["hash_type"]) == ("files", "sha256")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise RunnerError("model.sig signs something else than a model") from error
    resources = [{"name": a, "digest": b, "algorithm": "sha256"} for a, b in signed.items()]
    expected = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE,
        "predicate": {"resources": resources, "serialization": how},
    }
    if not whole or statement != expected:
        raise RunnerError("model.sig signs something else than the sha256 of each file of a model")
    return signed


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def public_key(path: Path) -> tuple[tuple[int, int], str]:
    """The point of a P-256 key in PEM, and the sha256 of its canonical text, which names it."""
    try:
        text = path.read_bytes().decode("ascii", "replace")
    except OSError as error:
        raise RunnerError(f"{path}: {error.strerror}") from error
    lines = [line.strip() for line in text.strip().splitlines()]
    if lines and "PRIVATE KEY" in lines[0]:
        raise RunnerError(f"{path} holds a private key; the public one is needed: {PUBLISH}")
    try:
        der = base64.b64decode("".join(lines[1:-1]), validate=True)
    except ValueError:
        der = b""
    armour = [f"-----{word} PUBLIC KEY-----" for word in ("BEGIN", "END")]
    if not der or [lines[0], lines[-1]] != armour:
        raise RunnerError(f"{path} holds no public key in PEM: {MAKE}; {PUBLISH}")
    if not der.startswith(P256) or len(der) != len(P256) + 64:
        kinds = (kind for oid, kind in KINDS.items() if bytes.fromhex(oid) in der[:32])
        kind = next(kinds, "something else")
        raise RunnerError(f"{path} is a key for {kind}; a P-256 key is needed: {MAKE}; {PUBLISH}")
    x, y = (int.from_bytes(der[at : at + 32], "big") for at in (len(P256), len(P256) + 32))
    if x >= P or y >= P or (y * y - x * x * x + 3 * x - B) % P:
        raise RunnerError(f"{path} holds no P-256 key: its point is not on the curve")
    body = base64.b64encode(der).decode()
    parts = [armour[0], *(body[at : at + 64] for at in range(0, len(body), 64)), armour[1], ""]
    return (x, y), sha256("\n".join(parts).encode()).hexdigest()


def verified(point: tuple[int, int], message: bytes, signature: bytes) -> bool:
    """Whether a signature in DER is the message's, by ECDSA with SHA-256 (FIPS 186-5, 6.4.2)."""
    if not 8 <= len(signature) <= 72:
        return False
    r, s = (
        int.from_bytes(signature[start:end], "big")
        for start, end in ((4, 4 + signature[3]), (6 + signature[3], None))
    )
    if not (0 < r < N and 0 < s < N) or signature != _der(r, s):
        return False
    inverse = pow(s, -1, N)
    ours = int.from_bytes(sha256(message).digest(), "big") * inverse % N
    theirs = r * inverse % N
    addends = (None, G, point, _sum(G, point))
    total: tuple[int, int] | None = None
    for bit in range(255, -1, -1):
        total = _sum(total, total)
        total = _sum(total, addends[(ours >> bit & 1) + 2 * (theirs >> bit & 1)])
    return total is not None and total[0] % N == r


def _der(r: int, s: int) -> bytes:
    """The one way to write two numbers below N."""
    numbers = [number.to_bytes(number.bit_length() // 8 + 1, "big") for number in (r, s)]
    body = b"".join(b"\x02" + bytes([len(one)]) + one for one in numbers)
    return b"\x30" + bytes([len(body)]) + body


def _sum(one: "tuple[int, int] | None", two: "tuple[int, int] | None") -> "tuple[int, int] | None":
    """The sum of two points of the curve y² = x³ - 3x + B; None is the one at infinity."""
    if one is None or two is None:
        return one or two
    (x, y), (u, v) = one, two
    if x == u and (y + v) % P == 0:
        return None
    over, under = (3 * x * x - 3, 2 * y) if one == two else (v - y, u - x)
    slope = over * pow(under, -1, P)
    at = (slope * slope - x - u) % P
    return at, (slope * (x - at) - y) % P
