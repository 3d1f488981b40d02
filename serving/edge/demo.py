"""`ferry demo`: the page of a web bundle, for browsers on this machine alone.

It is served from the very bytes that were checked, and from no folder. The headers isolate the page
from all others, as browsers ask of one whose threads share memory.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from socketserver import TCPServer
from typing import Any
from urllib.parse import unquote

from serving.bundles.bundle import Bundle, open_bundle
from serving.bundles.finding import MANIFEST
from serving.errors import InputError, UsageError
from serving.files import dump_json, sha256_of_bytes

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
PAGE = "index.html"
WEB = "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".py": "text/plain; charset=utf-8",
}
OTHER = "application/octet-stream"
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; "
    "style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for anew each time: another bundle may be served at this address.
    "Cache-Control": "no-cache",
}


def pages_of(bundle: Bundle) -> dict[str, bytes]:
    """What is served of a bundle, by path; InputError for one that was not made for browsers."""
    manifest = bundle.manifest
    if manifest.target != WEB:
        raise InputError(
            f"{bundle.folder} is for {manifest.target} and has no page; "
            f"`ferry bundle {manifest.name} --target {WEB}` makes the one that has"
        )
    files = {**bundle.contents, MANIFEST: dump_json(manifest).encode()}
    return {"/": files[PAGE], **{f"/{name}": content for name, content in files.items()}}


@contextmanager
def serving(folder: Path, port: int) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server of the bundle `folder` and its address; it answers while `serve_forever` runs.

    Port 0 is any that is free. Raises what `open_bundle` does, InputError for a bundle of another
    target, and UsageError for a port that is taken.
    """
    pages = pages_of(open_bundle(folder))
    try:
        server = _Server(port, pages)
    except OSError as error:
        raise UsageError(
            f"--port {port} of {HOST}: {error.strerror}; choose another one"
        ) from error
    with server:
        yield server, f"http://{HOST}:{server.server_port}/"


class _Server(ThreadingHTTPServer):
    """Holds what is served, and the sha256 of each for browsers that have it already."""

    daemon_threads = True

    def __init__(self, port: int, pages: Mapping[str, bytes]) -> None:
        self.pages = pages
        self.tags = {path: f'"{sha256_of_bytes(content)}"' for path, content in pages.items()}
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers requests for the server's pages and for nothing else."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ferry", ""

    def do_GET(self) -> None:
        """Answer with a page, or say why not."""
        path = unquote(self.path.partition("?")[0])
        tag = self.server.tags.get(path)
        if not self._is_for_us():
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"not served under this name\n")
        elif tag is None:
            self._answer(HTTPStatus.NOT_FOUND, b"not in the bundle\n")
        elif self.headers["If-None-Match"] == tag:
            # Without a type or a size: they would be those of the page that the browser has.
            self._answer(HTTPStatus.NOT_MODIFIED, b"", "", ETag=tag)
        else:
            kind = TYPES.get(PurePosixPath(PAGE if path == "/" else path).suffix, OTHER)
            self._answer(HTTPStatus.OK, self.server.pages[path], kind, ETag=tag)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.do_GET()

    def _is_for_us(self) -> bool:
        """Whether it is asked by an address of this machine; a foreign name may lead here."""
        return self.headers.get("Host", "").partition(":")[0] in HOSTS

    def _answer(
        self, status: HTTPStatus, content: bytes, kind: str = TYPES[".txt"], **more: str
    ) -> None:
        self.send_response(status)
        sizes = {"Content-Type": kind, "Content-Length": str(len(content))} if kind else {}
        for name, value in {**HEADERS, **sizes, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""
