"""A small HTTP server for the tests of downloads: it can be told to fail in the ways servers do."""

import contextlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["FileServer", "cut", "status"]

Action = Callable[[BaseHTTPRequestHandler, bytes], None]


class FileServer:
    """Serves `files` (path -> bytes) from 127.0.0.1; `script` holds what the next answers do."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.script: list[Action] = []
        self.seen: list[tuple[str, str | None]] = []
        self.ranges = True
        self.lengths = True
        self.goes_on = threading.Event()
        self.goes_on.set()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FileServer":
        # A short poll, so that leaving the block does not cost half a second.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.goes_on.set()
        self._server.shutdown()
        self._server.server_close()


def cut(after: int) -> Action:
    """Promise the whole file, send `after` bytes of it and close the connection."""

    def action(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:after])

    return action


def status(code: int) -> Action:
    """Answer with an error status."""
    return lambda handler, body: handler.send_error(code)


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.owner.seen.append((self.path, asked))
        body = self.owner.files.get(self.path)
        if body is None:
            self.send_error(404)
        elif self.owner.script:
            self.owner.script.pop(0)(self, body)
        else:
            self._send(body, asked if self.owner.ranges else None)

    def _send(self, body: bytes, asked: str | None) -> None:
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.owner.lengths:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        half = (len(body) + start) // 2
        with contextlib.suppress(OSError):  # the reader may have been killed
            self.wfile.write(body[start:half])
            self.owner.goes_on.wait(timeout=30)
            self.wfile.write(body[half:])

    def log_message(self, *_: object) -> None:
        pass
