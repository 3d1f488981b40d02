import contextlib
import gzip
import hashlib
import io
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from file_server import FileServer, cut, status
from raw_server import ENDLESS, FAULTS, GREETINGS, Answer, RawServer, good, redirect

import pipeline
from pipeline.datasets import RawFile, _download
from pipeline.datasets._download import PAUSES, UnavailableError, fetch, finish, part_of, unpack

BODY = np.random.default_rng(1).bytes(300_000)
HALF = len(BODY) // 2


def record(body: bytes = BODY, name: str = "rows.bin") -> RawFile:
    return RawFile(name=name, size=len(body), sha256=hashlib.sha256(body).hexdigest())


FILE = record()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        running.files["/rows.bin"] = BODY
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "rows.bin"


def leave_part(target: Path, content: bytes) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(content)


def assert_done(target: Path) -> None:
    assert target.read_bytes() == BODY
    assert list(target.parent.iterdir()) == [target]


def test_a_file_comes_whole_and_alone(server: FileServer, target: Path) -> None:
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_cut_connection_is_resumed_where_it_was_cut(server: FileServer, target: Path) -> None:
    server.script = [cut(after=HALF)]
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)
    ranges = [asked for _, asked in server.seen]
    assert ranges[0] is None
    offset = int(str(ranges[1]).removeprefix("bytes=").removesuffix("-"))
    assert 0 < offset <= HALF  # what had not filled a piece may be asked for again


def test_a_line_that_is_always_cut_is_given_up(server: FileServer, target: Path) -> None:
    server.ranges = False
    server.script = [cut(after=HALF)] * 3
    with pytest.raises(UnavailableError, match=r"^the connection was cut \(3 tries\)$"):
        fetch(FILE, target, f"{server.url}/rows.bin")
    assert not target.exists()
    assert part_of(target).exists()


def test_a_cut_without_a_length_is_resumed_too(server: FileServer, target: Path) -> None:
    def close_early(handler, body: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body[:HALF])

    server.script = [close_early]
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)
    assert server.seen[1][1] == f"bytes={HALF}-"


def test_a_server_that_ignores_ranges_starts_again(server: FileServer, target: Path) -> None:
    server.ranges = False
    leave_part(target, BODY[:HALF])
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)
    assert server.seen == [("/rows.bin", f"bytes={HALF}-")]


@pytest.mark.parametrize(
    "part",
    [b"x" * HALF, b"x" * len(BODY), BODY + b"x"],
    ids=["wrong-start", "whole-but-wrong", "too-long"],
)
def test_a_wrong_part_file_is_thrown_away(server: FileServer, target: Path, part: bytes) -> None:
    leave_part(target, part)
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)


def test_a_part_file_that_is_whole_needs_no_server(target: Path) -> None:
    leave_part(target, BODY)
    assert finish(FILE, target)
    assert_done(target)


def test_a_range_of_another_file_is_not_believed(server: FileServer, target: Path) -> None:
    def lie(handler, body: bytes) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    leave_part(target, BODY[:HALF])
    server.script = [lie]
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)
    assert server.seen[1][1] is None


def test_a_server_that_was_busy_is_asked_again(server: FileServer, target: Path) -> None:
    server.script = [status(500), status(503)]
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)
    assert len(server.seen) == 3


def test_the_pauses_grow(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(_download, "PAUSES", PAUSES)
    monkeypatch.setattr("time.sleep", slept.append)
    server.script = [status(503)] * 9
    with pytest.raises(UnavailableError):
        fetch(FILE, target, f"{server.url}/rows.bin")
    assert slept == sorted(slept)
    assert len(slept) == 2
    assert slept[1] > slept[0] > 0


def test_a_missing_file_is_asked_for_once(server: FileServer, target: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^404 Not Found$"):
        fetch(FILE, target, f"{server.url}/other.bin")
    assert len(server.seen) == 1
    assert not target.exists()


def test_corrupt_bytes_leave_nothing(server: FileServer, target: Path) -> None:
    server.files["/rows.bin"] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    with pytest.raises(UnavailableError, match="the sha256 is not the recorded one"):
        fetch(FILE, target, f"{server.url}/rows.bin")
    assert list(target.parent.iterdir()) == []
    assert len(server.seen) == 1


def test_an_answer_of_another_length_is_refused_unread(server: FileServer, target: Path) -> None:
    server.files["/rows.bin"] = b"<html>please log in</html>"
    with pytest.raises(UnavailableError, match=r"it has 26 bytes, 300000 expected"):
        fetch(FILE, target, f"{server.url}/rows.bin")
    assert not target.parent.exists()


def test_an_endless_answer_is_stopped(server: FileServer, target: Path) -> None:
    def flood(handler, body: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):  # the reader hangs up
            while True:
                handler.wfile.write(body)

    server.script = [flood]
    with pytest.raises(UnavailableError, match="sent more than the 300000 bytes expected"):
        fetch(FILE, target, f"{server.url}/rows.bin")
    assert list(target.parent.iterdir()) == []


def test_a_gzip_file_is_kept_as_it_is(server: FileServer, target: Path) -> None:
    def declared_as_encoding(handler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server.script = [declared_as_encoding]
    fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)


def test_silence_is_a_timeout(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "TIMEOUT", (0.2, 0.2))
    server.goes_on.clear()
    with pytest.raises(UnavailableError, match=r"^no answer in time \(3 tries\)$"):
        fetch(FILE, target, f"{server.url}/rows.bin")


def test_a_redirect_to_a_local_file_is_refused(server: FileServer, target: Path) -> None:
    def redirect(handler, body: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", "file:///etc/passwd")
        handler.end_headers()

    server.script = [redirect] * 3
    with pytest.raises(UnavailableError, match=r"file:///etc/.*, which is no http address"):
        fetch(FILE, target, f"{server.url}/rows.bin")
    assert not target.exists()


def test_servers_that_do_what_no_server_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "PAUSES", ())
    with monkeypatch.context() as impatient, ThreadPoolExecutor(32) as pool:
        impatient.setattr(_download, "TIMEOUT", (0.3, 0.3))
        impatient.setattr(_download, "PATIENCE", 0.3)
        said = dict(pool.map(partial(refusal, tmp_path), {**FAULTS, **ENDLESS}.items()))
    assert all(said[name] for name in ENDLESS if "redirect" not in name)
    with RawServer(BODY, good) as server:
        for name, line in said.items():
            assert line.isprintable(), name
            assert len(line) < 250, name
            assert (tmp_path / name).exists() == (not line), name
            # As of the next mirror, behind what came.
            fetch(FILE, tmp_path / name, server.url)
            assert (tmp_path / name).read_bytes() == BODY, name


def refusal(folder: Path, fault: tuple[str, Answer]) -> tuple[str, str]:
    """What is said of a server; nothing where the file came all the same."""
    name, answer = fault
    with RawServer(BODY, answer) as server:
        server.answers["/good"] = good
        try:
            fetch(FILE, folder / name, f"{server.url}/rows.bin")
        except UnavailableError as error:
            return name, str(error)
    return name, ""


@pytest.mark.parametrize("name", GREETINGS)
def test_what_is_no_tls(target: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_download, "TIMEOUT", (0.2, 0.2))
    monkeypatch.setattr(_download, "PATIENCE", 0.3)
    with (
        RawServer(BODY, GREETINGS[name], waits=False) as server,
        pytest.raises(UnavailableError) as error,
    ):
        fetch(FILE, target, server.url)
    assert str(error.value).isprintable()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this machine, signed by itself, with its key; it is trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + secret)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    return path


def test_a_line_of_tls_that_is_cut(certificate: Path, target: Path) -> None:
    with RawServer(BODY, FAULTS["cut and reset"], certificate=certificate) as server:
        with pytest.raises(UnavailableError):
            fetch(FILE, target, f"{server.url}/rows.bin")
        server.answer = good
        fetch(FILE, target, f"{server.url}/rows.bin")
    assert_done(target)


def test_a_redirect_may_not_give_up_encryption(certificate: Path, target: Path) -> None:
    with (
        RawServer(BODY, good) as plain,
        RawServer(BODY, redirect(plain.url.encode()), certificate=certificate) as server,
        pytest.raises(UnavailableError, match=r"^it redirects from https to http$"),
    ):
        fetch(FILE, target, server.url)
    assert not plain.seen


def test_a_certificate_that_nobody_vouches_for(
    certificate: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with (
        RawServer(BODY, good, certificate=certificate) as server,
        pytest.raises(UnavailableError, match=r"(?i)certificate.verify.failed"),
    ):
        fetch(FILE, target, server.url)


def test_a_path_that_cannot_serve_says_why(tmp_path: Path, target: Path) -> None:
    (tmp_path / "short.bin").write_bytes(BODY[:-1])
    wrong = {
        "short.bin": "it has 299999 bytes, 300000 expected",
        "no.bin": "there is no such file",
        "": "it is not a file",
        "a/b/no.bin": f"there is no folder {tmp_path / 'a'}",
    }
    for name, reason in wrong.items():
        with pytest.raises(UnavailableError) as caught:
            fetch(FILE, target, str(tmp_path / name))
        assert str(caught.value) == reason
    assert not target.parent.exists()


def test_a_full_disk_is_an_error_here_and_names_the_file(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(BODY)
    script = f"""
import sys
from pathlib import Path
from pipeline.datasets import RawFile
from pipeline.datasets._download import fetch
file = RawFile(name="rows.bin", size={FILE.size}, sha256="{FILE.sha256}")
try:
    fetch(file, Path({str(target)!r}), {str(source)!r})
except OSError as error:
    sys.exit(f"{{error.filename}}: {{error.strerror}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(pipeline.__file__).parents[1],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, HALF)),
    )
    assert done.stderr.splitlines() == [f"{part_of(target)}: File too large"]
    assert done.returncode == 1
    assert not target.exists()


ROWS = b"0123456789" * 1000
WANTED = RawFile(name="set/rows.bin", size=len(ROWS), sha256=hashlib.sha256(ROWS).hexdigest())


def archive(path: Path, *entries: tuple[str, bytes | Callable[[tarfile.TarInfo], None]]) -> Path:
    """Make a tar.gz; an entry is a name and its bytes, or what makes its header a special one."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if callable(content):
                content(info)
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def link(kind: bytes, to: str) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, to

    return change


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_member_is_taken_and_the_rest_is_not(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/readme", b"no"), ("set/rows.bin", ROWS))
    unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == ["set/rows.bin"]
    assert (tmp_path / "raw/set/rows.bin").read_bytes() == ROWS


def test_a_plain_tar_is_read_too(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/rows.bin", ROWS))
    plain = tmp_path / "a.tar"
    plain.write_bytes(gzip.decompress(made.read_bytes()))
    unpack(plain, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == ["set/rows.bin"]


@pytest.mark.parametrize(
    "entry",
    [
        ("../rows.bin", ROWS),
        ("/set/rows.bin", ROWS),
        ("set/rows.bin", ROWS + b"!"),
        ("set/rows.bin", ROWS[:-1]),
        ("set/rows.bin", link(tarfile.SYMTYPE, "/etc/passwd")),
        ("set/rows.bin", link(tarfile.FIFOTYPE, "")),
        ("set", link(tarfile.SYMTYPE, "/tmp")),
    ],
)
def test_a_hostile_archive_does_no_harm(tmp_path: Path, entry) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    made = archive(tmp_path / "a.tar.gz", entry)
    with pytest.raises(UnavailableError, match=r"no regular member set/rows\.bin of 10000 bytes"):
        unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path) == ["a.tar.gz", "outside"]
    assert outside.read_bytes() == b"precious"


def test_a_link_before_the_member_leads_nowhere(tmp_path: Path) -> None:
    trap = ("set", link(tarfile.SYMTYPE, str(tmp_path / "elsewhere")))
    made = archive(tmp_path / "a.tar.gz", trap, ("set/rows.bin", ROWS))
    (tmp_path / "elsewhere").mkdir()
    unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "elsewhere") == []
    assert not (tmp_path / "raw/set").is_symlink()


def test_a_member_with_other_bytes_is_refused(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/rows.bin", b"x" * len(ROWS)))
    with pytest.raises(UnavailableError, match="sha256"):
        unpack(made, [WANTED], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == []


def claiming(size: int, pax: dict[str, str]) -> bytes:
    """The header of a member, and what is said before it."""
    info = tarfile.TarInfo("set/readme")
    info.size, info.pax_headers = size, pax
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(512)


NO_END = tarfile.TarInfo("././@LongLink")
NO_END.type, NO_END.size = tarfile.GNUTYPE_LONGNAME, 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive" * 100,
        claiming(2**62, {}),
        claiming(0, {"GNU.sparse.map": ",", "GNU.sparse.size": "9"}),
        (NO_END.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 2000,
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    made = tmp_path / "a.tar.gz"
    made.write_bytes(content)
    with pytest.raises(UnavailableError, match=r"a\.tar\.gz cannot be read as a tar archive"):
        unpack(made, [WANTED], tmp_path / "raw")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    made = archive(tmp_path / "a.tar.gz", ("set/readme", b"x" * 5000), ("set/rows.bin", ROWS))
    made.write_bytes(made.read_bytes()[:-40])
    with pytest.raises(UnavailableError):
        unpack(made, [WANTED], tmp_path / "raw")
    assert not (tmp_path / "raw/set/rows.bin").exists()
