"""`ferry demo`: the page of a web bundle is served to this machine, with what its threads need."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from closure import ROOT
from model_pages import served
from tiny_classifier import contents
from tiny_kinds import Copies

from serving.bundles.bundle import BundleManifest, read_manifest
from serving.bundles.writing import BundleContents
from serving.cli import serving
from serving.edge.demo import WEB
from serving.errors import IntegrityError

PAGES = {"index.html": b"<!doctype html><title>tiny</title>", "app.mjs": b"1", "x.wasm": b"\0asm"}


def of_the_web() -> BundleContents:
    return contents(target=WEB, parts=(add_pages,))


def add_pages(_manifest: BundleManifest, _files: object) -> dict[str, bytes]:
    return PAGES


@pytest.fixture
def folder(bundle_of: Copies) -> Path:
    return bundle_of(of_the_web)


@pytest.fixture
def asked(folder: Path) -> Iterator[http.client.HTTPConnection]:
    with served(folder) as address:
        connection = http.client.HTTPConnection(address.split("/")[2], timeout=10)
        yield connection
        connection.close()


Answer = tuple[int, dict[str, str], bytes]


def get(asked: http.client.HTTPConnection, path: str, method: str = "GET", **more: str) -> Answer:
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    asked.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        asked.putheader(name, value)
    asked.endheaders()
    answer = asked.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        ("/", PAGES["index.html"], "text/html; charset=utf-8"),
        ("/index.html?x=1", PAGES["index.html"], "text/html; charset=utf-8"),
        ("/app.mjs", PAGES["app.mjs"], "text/javascript; charset=utf-8"),
        ("/x%2ewasm", PAGES["x.wasm"], "application/wasm"),
    ],
)
def test_a_file_of_the_bundle_is_served(
    asked: http.client.HTTPConnection, path: str, content: bytes, kind: str
) -> None:
    status, headers, found = get(asked, path)
    assert (status, found, headers["Content-Type"]) == (200, content, kind)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert get(asked, path, "HEAD")[::2] == (200, b"")
    status, known, found = get(asked, path, If_None_Match=headers["ETag"])
    assert (status, found) == (304, b"")
    assert {"Content-Type", "Content-Length"}.isdisjoint(known), "they are the page's, as it has it"


def test_the_manifest_and_the_model_are_the_very_files(
    asked: http.client.HTTPConnection, folder: Path
) -> None:
    for name in ("manifest.json", "model.onnx"):
        assert get(asked, f"/{name}")[2] == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "path",
    ["/../manifest.json", "/%2e%2e/tiny/model.onnx", "/nothing", "/.", "/%00"],
)
def test_nothing_else_is(asked: http.client.HTTPConnection, path: str) -> None:
    assert get(asked, path)[0] == 404


def test_an_address_that_is_none_is_answered(asked: http.client.HTTPConnection) -> None:
    with socket.create_connection((asked.host, asked.port), timeout=10) as raw:
        raw.sendall(b"GET http://[ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 404 ")


def test_nothing_is_taken_in(asked: http.client.HTTPConnection) -> None:
    assert get(asked, "/", "POST", Content_Length="0")[0] == 501


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org:80", "[::1]:80"])
def test_another_name_for_this_machine_is_refused(
    asked: http.client.HTTPConnection, host: str
) -> None:
    assert get(asked, "/", Host=host)[0] == 421


def test_what_is_served_is_what_was_checked(
    asked: http.client.HTTPConnection, folder: Path
) -> None:
    (folder / "index.html").write_bytes(b"another")
    assert get(asked, "/")[2] == PAGES["index.html"]


# The command


def refused(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(serving, ["demo", *map(str, arguments)])
    (line,) = result.stderr.splitlines()
    assert result.stdout == ""
    return result.exit_code, line


def test_an_altered_bundle_is_not_served(folder: Path) -> None:
    (folder / "app.mjs").write_bytes(b"2")
    code, line = refused(folder)
    assert code == IntegrityError.exit_code
    assert "app.mjs has sha256" in line


def test_a_bundle_for_another_place_is_refused_with_the_cure(bundle: Path) -> None:
    code, line = refused(bundle)
    assert code == 1
    assert read_manifest(bundle).target == "cpu"
    assert line.endswith(
        "is for cpu and has no page; `ferry bundle tiny --target web` makes the one that has"
    )


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        taken = one.getsockname()[1]
        code, line = refused(folder, "--port", taken)
    assert code == 2
    assert line.endswith(f"--port {taken} of 127.0.0.1: Address already in use; choose another one")


def test_the_page_is_served_until_ctrl_c(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "demo", str(folder), "--port", "0", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    address = json.loads("".join(process.stdout.readline() for _ in range(3)))["url"]
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=10)
    assert get(connection, "/")[2] == PAGES["index.html"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err.strip()) == (130, "Ctrl-C ends it")
    connection.close()
