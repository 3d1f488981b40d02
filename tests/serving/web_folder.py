"""A folder of files on the web, with servers' faults."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Web:
    """What is served, and what was asked for."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """`GET /rows.npy`, ..."""
    failures: dict[str, list[int]] = field(default_factory=dict)
    """The statuses of the next answers to `GET /rows.npy`, ..., before it is sent."""
    short: set[str] = field(default_factory=set)
    """Paths of which only half is sent."""
    endless: set[str] = field(default_factory=set)
    """Paths whose size is not told."""


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *given: Any, web: Web) -> None:
        self.web = web
        super().__init__(*given, directory=str(web.folder))

    def log_message(self, *_given: object) -> None:
        pass

    def parse_request(self) -> bool:
        fine = super().parse_request()
        self.path = self.path.partition("?")[0] if fine else ""
        return fine

    def do_HEAD(self) -> None:
        if not self.fails():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self.fails():
            return
        if self.path in self.web.short:
            content = (self.web.folder / self.path[1:]).read_bytes()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        super().do_GET()

    def send_header(self, keyword: str, value: str) -> None:
        if not (keyword == "Content-Length" and self.path in self.web.endless):
            super().send_header(keyword, value)

    def fails(self) -> bool:
        asked = f"{self.command} {self.path}"
        self.web.asked.append(asked)
        left = self.web.failures.get(asked)
        if not left:
            return False
        self.send_error(left.pop(0))
        return True


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # a full queue makes clients wait for a second


@contextmanager
def listening(handler: Any) -> Iterator[str]:
    """The address of a server of this machine that ends with the block."""
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def served(folder: Path) -> Iterator[Web]:
    """A folder that is served until the block ends."""
    web = Web(folder)
    with listening(partial(Handler, web=web)) as web.url:
        yield web
