"""A signature that is good, one that is not, and keys of every kind."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import refused, run
from tiny_classifier import contents, forge, profile

from serving.bundles.bundle import open_bundle, read_manifest
from serving.bundles.integrity import (
    SIGNATURE,
    N,
    P,
    RunnerError,
    authenticated,
    check,
    check_signature,
    public_key,
    sealed,
    verified,
)
from serving.bundles.signing import sign
from serving.bundles.verify import Trust, VerifyReport, as_table, verify
from serving.bundles.writing import copy_bundle, write_bundle, write_profile
from serving.errors import (
    FerryError,
    InputError,
    IntegrityError,
    MissingInputError,
    OutputError,
    UsageError,
)
from serving.files import sha256_of_bytes

ECDSA = ec.ECDSA(hashes.SHA256())
PRIVATE = ec.derive_private_key(20_261_126, ec.SECP256R1())


def private_pem(key: object, password: bytes = b"") -> bytes:
    hidden = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden)  # type: ignore[attr-defined]


def public_pem(key: object) -> bytes:
    public = key.public_key()  # type: ignore[attr-defined]
    return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key.pem and pub.pem."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "key.pem").write_bytes(private_pem(PRIVATE))
    (folder / "pub.pem").write_bytes(public_pem(PRIVATE))
    return folder


@pytest.fixture(scope="session")
def signed_once(built_bundle: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(built_bundle, tmp_path_factory.mktemp("signed") / "tiny"))
    sign(folder, keys / "key.pem")
    return folder


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    """A signed bundle that a test may spoil."""
    return Path(shutil.copytree(signed_once, tmp_path / "tiny"))


def resign(folder: Path, change: object) -> None:
    """Sign another statement than that of the bundle, with the right key."""
    record = json.loads((folder / SIGNATURE).read_bytes())
    statement = json.loads(base64.b64decode(record["dsseEnvelope"]["payload"]))
    payload = change(statement)  # type: ignore[operator]
    payload = payload if isinstance(payload, bytes) else json.dumps(payload or statement).encode()
    signature = PRIVATE.sign(authenticated(payload), ECDSA)
    name = sha256_of_bytes(public_pem(PRIVATE))
    (folder / SIGNATURE).write_bytes(sealed(payload, signature, name))


def failed(report: VerifyReport) -> dict[str, str]:
    assert not report.passed
    assert as_table(report).startswith("promise: none: a check failed\n")
    return {check.name: check.detail for check in report.checks if check.status == "failed"}


def test_a_signed_bundle_passes_by_the_word_of_its_key(signed: Path, keys: Path) -> None:
    digest = read_manifest(signed).digest
    report = verify(signed, trust=Trust(keys / "pub.pem", digest.upper()))
    assert report.passed
    assert report.vouched == ("key", "digest")
    first = as_table(report).splitlines()[0]
    who = f"signed by the holder of {keys / 'pub.pem'} and known by the digest that was given"
    assert first == f"promise: these are the files that were shipped: {who}"
    for options in (("--key", str(keys / "pub.pem")), ("--digest", digest)):
        done = run(signed, "selftest", *options)
        assert done.stdout.endswith(f"vouched for by {options[0][2:]}\n"), done
    done = run(signed, "bench", "--seconds", "0.01", "--key", str(keys / "pub.pem"))
    assert json.loads(done.stdout)["vouched"] == ["key"]


def test_what_was_not_verified_is_not_signed(
    bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altering(folder: Path, **how: int) -> VerifyReport:
        report = verify(folder, threads=how["threads"])
        forge(folder, metrics={"accuracy": 100.0})
        return report

    monkeypatch.setattr("serving.bundles.signing.verify", altering)
    with pytest.raises(IntegrityError, match="was changed while it was verified"):
        sign(bundle, keys / "key.pem")
    assert not (bundle / SIGNATURE).exists()


def test_what_nobody_vouches_for_says_so_in_the_first_line(signed: Path, bundle: Path) -> None:
    for folder, hint in ((bundle, "--key or --digest tells"), (signed, "it is signed, and --key")):
        report = verify(folder)
        assert (report.passed, report.vouched) == (True, ())
        first = as_table(report).splitlines()[0]
        assert first.startswith("promise: the files are those that the manifest lists; who made ")
        assert hint in first
    assert "vouched for by nobody" in run(bundle, "selftest").stdout


def test_a_manifest_written_anew_is_found_by_key_or_digest_alone(signed: Path, keys: Path) -> None:
    digest = read_manifest(signed).digest
    forge(signed, metrics={"accuracy": 100.0})
    assert verify(signed).passed
    assert failed(verify(signed, trust=Trust(keys / "pub.pem"))) == {
        "key": "model.sig signs another manifest.json"
    }
    assert list(failed(verify(signed, trust=Trust(digest=digest)))) == ["digest"]
    refused(run(signed, "selftest", "--key", str(keys / "pub.pem")), "signs another manifest.json")
    refused(run(signed, "predict", "../rows.npy", "--digest", digest), "the digest is ")


def test_every_bit_of_the_signature_counts(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, key = (signed / SIGNATURE).read_bytes(), keys / "pub.pem"
    manifest, _ = check(signed, key)
    shipped = {name: info["sha256"] for name, info in manifest["files"].items()}
    shipped["manifest.json"] = sha256_of_bytes((signed / "manifest.json").read_bytes())

    def is_refused(text: bytes) -> None:
        with pytest.raises(RunnerError, match=r"^model\.sig "):
            check_signature(text, key, shipped)

    check_signature(whole, key, shipped)
    flips = [(at, bit) for at in range(len(whole)) for bit in range(8)]
    # Much quicker, and the same: see below.
    monkeypatch.setattr("serving.bundles.integrity.verified", by_cryptography)
    check_signature(whole, key, shipped)
    for at, bit in flips:
        is_refused(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    monkeypatch.undo()
    for at, bit in flips[::101]:
        is_refused(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    for other in (b"", whole + b"\n", b" " + whole, whole[:-1], b"[" * 100_000, b"{}", b"null"):
        is_refused(other)


def by_cryptography(key: tuple[int, int], message: bytes, signature: bytes) -> bool:
    public = ec.EllipticCurvePublicNumbers(*key, ec.SECP256R1()).public_key()
    try:
        public.verify(signature, message, ECDSA)
    except InvalidSignature:
        return False
    return True


def test_a_byte_of_any_file_is_refused_with_a_key(signed: Path, keys: Path) -> None:
    for path in sorted(signed.iterdir()):
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert failed(verify(signed, trust=Trust(keys / "pub.pem")))
            with pytest.raises(RunnerError, match=path.name):
                check(signed, keys / "pub.pem")
        path.write_bytes(whole)
    assert verify(signed, trust=Trust(keys / "pub.pem")).passed


# What is signed


def doubled(statement: dict[str, object]) -> bytes:
    return json.dumps(statement).encode().replace(b'{"_type"', b'{"_type": "x", "_type"', 1)


def without_a_file(statement: dict[str, dict[str, list[object]]]) -> None:
    resources = statement["predicate"]["resources"]
    resources.pop()
    sums = b"".join(bytes.fromhex(one["digest"]) for one in resources)  # type: ignore[index]
    statement["subject"][0]["digest"]["sha256"] = sha256_of_bytes(sums)  # type: ignore[index]


STATEMENTS = {
    "another type": lambda one: one.update(_type="x"),
    "another predicate": lambda one: one.update(predicateType="x"),
    "a key more": lambda one: one.update(more=1),
    "a key twice": doubled,
    "two subjects": lambda one: one["subject"].append(one["subject"][0]),
    "another root": lambda one: one["subject"][0]["digest"].update(sha256="0" * 64),
    "a file twice": lambda one: one["predicate"]["resources"].append(
        one["predicate"]["resources"][0]
    ),
    "another hash": lambda one: one["predicate"]["serialization"].update(hash_type="blake2b"),
    "shards": lambda one: one["predicate"]["serialization"].update(method="shards"),
    "a file less": without_a_file,
    "no object": lambda _: b"[]",
    "no JSON": lambda _: b"\xff",
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_a_statement_of_something_else_is_refused(signed: Path, keys: Path, case: str) -> None:
    resign(signed, lambda _: None)
    assert verify(signed, trust=Trust(keys / "pub.pem")).vouched == ("key",)
    resign(signed, STATEMENTS[case])
    with pytest.raises(RunnerError, match=r"model\.sig (signs something else|does not sign run)"):
        check(signed, keys / "pub.pem")


# Beside another implementation


def model_signing(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def test_model_signing_takes_our_signature_and_we_take_its(signed: Path, keys: Path) -> None:
    pytest.importorskip("model_signing")
    options = ("--public_key", keys / "pub.pem", "--signature", signed / SIGNATURE)
    ours = (signed / SIGNATURE).read_bytes()
    done = model_signing("verify", "key", signed, *options)
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done
    (signed / "labels.txt").write_bytes(b"a\nb\nc\n")
    assert model_signing("verify", "key", signed, *options).returncode == 1
    with pytest.raises(FerryError):
        sign(signed, keys / "key.pem")
    assert (signed / SIGNATURE).read_bytes() == ours


def test_we_take_the_signature_of_model_signing(bundle: Path, keys: Path) -> None:
    pytest.importorskip("model_signing")
    options = ("--private_key", keys / "key.pem", "--signature", bundle / SIGNATURE)
    assert model_signing("sign", "key", bundle, *options).returncode == 0
    assert verify(bundle, trust=Trust(keys / "pub.pem")).vouched == ("key",)
    assert run(bundle, "selftest", "--key", str(keys / "pub.pem")).returncode == 0


def signatures(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """Two numbers in DER, a byte of which may be another one."""

    def spoil(one: tuple[int, int, int, int]) -> bytes:
        r, s, at, by = one
        content = bytearray(encode_dss_signature(r, s))
        content[at % len(content)] ^= by
        return bytes(content)

    return st.tuples(numbers, numbers, st.integers(0, 80), st.sampled_from([0, 0, 1, 128])).map(
        spoil
    )


BORDERS = st.sampled_from([0, 1, 2, 127, 128, N - 1, N, N + 1, P - 1, P, 2**256 - 1, 2**256])
NUMBERS = BORDERS | st.integers(0, 2**257)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, N - 1), st.binary(max_size=40), signatures(NUMBERS), st.booleans())
def test_verified_is_what_cryptography_says(
    secret: int, message: bytes, signature: bytes, right: bool
) -> None:
    key = ec.derive_private_key(secret, ec.SECP256R1())
    if right:
        signature = key.sign(message, ECDSA)
        r, s = decode_dss_signature(signature)
        assert verified(point(key), message, encode_dss_signature(r, N - s))  # as for everybody
        assert not verified(point(key), message + b"x", signature)
    expected = by_cryptography(point(key), message, signature)
    assert verified(point(key), message, signature) == expected == right


def point(key: ec.EllipticCurvePrivateKey) -> tuple[int, int]:
    numbers = key.public_key().public_numbers()
    return numbers.x, numbers.y


@given(st.binary(max_size=80))
def test_bytes_that_are_no_signature(content: bytes) -> None:
    assert not verified(point(PRIVATE), b"", content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
)
WORDS = (
    "dsseEnvelope",
    "verificationMaterial",
    "publicKey",
    "payload",
    "signatures",
    "sig",
    "hint",
)
ENVELOPES = st.fixed_dictionaries(
    {
        "dsseEnvelope": JSON | st.fixed_dictionaries({"payload": JSON, "signatures": JSON}),
        "verificationMaterial": JSON | st.fixed_dictionaries({"publicKey": JSON}),
    }
)


@settings(max_examples=60, deadline=None)
@given((ENVELOPES | JSON).map(json.dumps) | st.text(max_size=30))
def test_what_is_no_signature_file_is_one_error(keys: Path, text: str) -> None:
    with pytest.raises(RunnerError, match=r"^model\.sig was altered"):
        check_signature(text.encode(), keys / "pub.pem", {})


# Keys


def compressed(key: ec.EllipticCurvePrivateKey) -> bytes:
    x, y = point(key)
    der = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    content = base64.encodebytes(der + bytes([2 + y % 2]) + x.to_bytes(32, "big"))
    return b"-----BEGIN PUBLIC KEY-----\n" + content + b"-----END PUBLIC KEY-----\n"


def off_the_curve(key: ec.EllipticCurvePrivateKey) -> bytes:
    der = bytearray(base64.b64decode(b"".join(public_pem(key).splitlines()[1:-1])))
    der[-1] ^= 1
    return b"-----BEGIN PUBLIC KEY-----\n%s-----END PUBLIC KEY-----\n" % base64.encodebytes(der)


PUBLIC = {
    "Ed25519": (public_pem(ed25519.Ed25519PrivateKey.generate()), "is a key for Ed25519; a P-256"),
    "RSA": (public_pem(rsa.generate_private_key(65537, 2048)), "is a key for RSA; a P-256 key is"),
    "P-384": (public_pem(ec.generate_private_key(ec.SECP384R1())), "is a key for P-384; a P-256"),
    "P-521": (public_pem(ec.generate_private_key(ec.SECP521R1())), "is a key for P-521; a P-256"),
    "secp256k1": (public_pem(ec.generate_private_key(ec.SECP256K1())), "is a key for secp256k1"),
    "compressed": (compressed(PRIVATE), "is a key for P-256, but compressed or cut short"),
    "off the curve": (off_the_curve(PRIVATE), "its point is not on the curve"),
    "private": (private_pem(PRIVATE), "holds a private key; the public one is needed: openssl ec"),
    "empty": (b"", "holds no public key in PEM"),
    "no PEM": (b"\xff\xfe\x00", "holds no public key in PEM"),
    "two keys": (public_pem(PRIVATE) * 2, "holds no public key in PEM"),
    "cut": (public_pem(PRIVATE)[:-40], "holds no public key in PEM"),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_a_public_key_of_another_kind(signed: Path, tmp_path: Path, case: str) -> None:
    content, message = PUBLIC[case]
    (tmp_path / "pub.pem").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        verify(signed, trust=Trust(tmp_path / "pub.pem"))
    assert "\n" not in str(caught.value)


def test_a_key_may_have_other_line_ends(keys: Path, tmp_path: Path) -> None:
    text = (keys / "pub.pem").read_bytes()
    (tmp_path / "pub.pem").write_bytes(b"\n" + text.replace(b"\n", b"\r\n") + b"\n")
    assert public_key(tmp_path / "pub.pem") == public_key(keys / "pub.pem")


def test_another_key_no_key_and_no_signature(signed: Path, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(public_pem(ec.generate_private_key(ec.SECP256R1())))
    assert "is by another key than" in failed(verify(signed, trust=Trust(other)))["key"]
    assert "is not signed: `ferry sign`" in failed(verify(bundle, trust=Trust(other)))["key"]
    refused(run(signed, "selftest", "--key", str(other)), "is by another key than")
    refused(run(bundle, "selftest", "--key", str(other)), "is not signed")
    with pytest.raises(InputError, match=r"gone\.pem: No such file"):
        verify(signed, trust=Trust(tmp_path / "gone.pem"))
    with pytest.raises(UsageError, match="'abc' is no digest: one has 64 hexadecimal digits"):
        verify(signed, trust=Trust(digest="abc"))


SECRET = {
    "Ed25519": (private_pem(ed25519.Ed25519PrivateKey.generate()), "is a key for Ed25519; a P-256"),
    "RSA": (private_pem(rsa.generate_private_key(65537, 2048)), "is a key for RSA; a P-256 key is"),
    "P-384": (
        private_pem(ec.generate_private_key(ec.SECP384R1())),
        "is a key for secp384r1; a P-256",
    ),
    "password": (private_pem(PRIVATE, b"secret"), "has a password: `openssl ec -in"),
    "public": (public_pem(PRIVATE), "is no private key in PEM but a public one; `openssl ecparam"),
    "empty": (b"", "is no private key in PEM; `openssl ecparam"),
}


@pytest.mark.parametrize("case", SECRET)
def test_a_private_key_of_another_kind(signed: Path, tmp_path: Path, case: str) -> None:
    content, message = SECRET[case]
    (tmp_path / "key.pem").write_bytes(content)
    before = (signed / SIGNATURE).read_bytes()
    with pytest.raises(InputError, match=message) as caught:
        sign(signed, tmp_path / "key.pem")
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingInputError, match="openssl ecparam"):
        sign(signed, tmp_path / "gone.pem")
    assert (signed / SIGNATURE).read_bytes() == before


# What may be signed, and what becomes of it


def test_an_altered_bundle_is_not_signed(bundle: Path, keys: Path) -> None:
    (bundle / "labels.txt").write_bytes(b"a\n")
    with pytest.raises(IntegrityError, match="failed verification: files: "):
        sign(bundle, keys / "key.pem")
    assert not (bundle / SIGNATURE).exists()


def test_a_registered_bundle_is_not_signed_but_keeps_its_signature(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "registry" / "bundles" / "0123456789abcdef"
    copy_bundle(open_bundle(signed), copy)
    assert verify(copy, trust=Trust(keys / "pub.pem")).vouched == ("key",)
    with pytest.raises(OutputError, match="is registered and stays as it is"):
        sign(copy, keys / "key.pem")


def test_tuning_would_make_a_signature_void(signed: Path) -> None:
    before = (signed / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match=r"is signed, and tuning it would make that void"):
        write_profile(signed, profile())
    assert (signed / "manifest.json").read_bytes() == before


def test_a_bundle_made_anew_is_not_signed(signed: Path) -> None:
    write_bundle(signed, contents())
    assert not (signed / SIGNATURE).exists()


def test_an_interruption_leaves_the_old_signature(
    signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    before = (signed / SIGNATURE).read_bytes()
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sign(signed, keys / "key.pem")
    assert (signed / SIGNATURE).read_bytes() == before
    assert [path.name for path in signed.parent.iterdir() if path.name.startswith(".")] == []
