"""A server that answers with raw bytes, in the ways in which no server should.

`FAULTS` is a table of answers by name. Each is a function of the body that is asked for, which
gives the bytes to send piece by piece; when it ends, the connection is closed.
"""

import contextlib
import gzip
import itertools
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["ENDLESS", "FAULTS", "GREETINGS", "Answer", "RawServer", "good", "redirect"]

Answer = Callable[[bytes], Iterable[bytes]]
"""The bytes to send piece by piece, given the body that is asked for."""
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SECONDS_BETWEEN_BYTES = 0.05
MEGABYTE = b"x" * (1 << 20)
BOMB = gzip.compress(bytes(1 << 25))


class RawServer:
    """Answers every request by `answer`, or by that of its path in `answers`."""

    def __init__(
        self, body: bytes, answer: Answer, *, certificate: Path | None = None, waits: bool = True
    ) -> None:
        """With the file of a certificate and its key for TLS, or answering before it is asked."""
        self.body, self.answer, self.waits = body, answer, waits
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if self._tls and certificate:
            self._tls.load_cert_chain(certificate)
        self.answers: dict[str, Answer] = {}
        self.seen: list[bytes] = []
        """The heads of the requests."""
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if waits and not certificate else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "RawServer":
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            head = _head(connection) if self.waits else b""
            self.seen.append(head)
            path = head.partition(b" ")[2].partition(b" ")[0].partition(b"?")[0].decode("latin-1")
            for piece in self.answers.get(path, self.answer)(self.body):
                if self.ended.is_set():
                    return
                if piece is SLOW:
                    self.ended.wait(SECONDS_BETWEEN_BYTES)
                elif piece is RESET:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                elif not head.startswith(b"HEAD") or b"\r\n\r\n" not in piece:
                    connection.sendall(piece)
                else:
                    connection.sendall(piece.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
                    return


SLOW, RESET = bytes(3), bytes(4)
"""Pieces that are not sent: a pause, and a connection that is reset when it is closed."""


def _head(connection: socket.socket) -> bytes:
    """What is asked; nothing where the line is cut before its end."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        some = connection.recv(1 << 16)
        if not some:
            raise ConnectionResetError
        head += some
    return head


def good(body: bytes) -> Iterator[bytes]:
    """The answer that is asked for."""
    yield OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def redirect(location: bytes, more: bytes = b"Content-Length: 0\r\n\r\n") -> Answer:
    """An answer that sends elsewhere."""
    return lambda _: [b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n" + more]


def _with(headers: bytes, *, most: int | None = None) -> Answer:
    """The body after some headers; of it the first `most` bytes."""
    return lambda body: [OK + headers + b"\r\n\r\n" + body[:most]]


def _chunks(*pieces: bytes) -> Answer:
    """Raw bytes after the head of a body that comes in chunks; BODY stands for it."""
    return lambda body: [CHUNKED, *(piece.replace(b"BODY", body) for piece in pieces)]


def _forever(begin: bytes, *pieces: bytes) -> Answer:
    return lambda _: itertools.chain([begin], itertools.cycle(pieces))


def _slowly(begin: bytes, again: bytes | None = None) -> Answer:
    """What comes byte by byte; the body where nothing else is given, and for ever."""

    def answer(body: bytes) -> Iterator[bytes]:
        yield begin % len(body) if b"%d" in begin else begin
        for one in itertools.cycle(again or body):
            yield SLOW
            yield bytes([one])

    return answer


def _sized(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


ENDLESS: dict[str, Answer] = {
    "1xx": _forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints": _forever(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "status line": _forever(b"HTTP/1.1 200 ", MEGABYTE),
    "header line": _forever(OK + b"X-A: ", MEGABYTE),
    "headers": _forever(OK, b"X-A: b\r\n" * 1000),
    "body of an error": _forever(b"HTTP/1.1 404 Not Found\r\n\r\n", MEGABYTE),
    "body of a redirect": _forever(b"HTTP/1.1 302 F\r\nLocation: /good\r\n\r\n", MEGABYTE),
    "body": _forever(OK + b"\r\n", MEGABYTE),
    "chunks": _forever(CHUNKED, _sized(MEGABYTE)),
    "chunk size": _forever(CHUNKED, b"0" * (1 << 20)),
    "chunk extension": _forever(CHUNKED + b"5;", MEGABYTE),
    "chunk of size -1": _forever(CHUNKED + b"-1\r\n", MEGABYTE),
    "trailer": _forever(CHUNKED + b"0\r\n", b"X-A: b\r\n" * 1000),
    "trailer line": _forever(CHUNKED + b"0\r\nX-A: ", MEGABYTE),
    "gzip": _forever(OK + b"Content-Encoding: gzip\r\n\r\n", BOMB),
    "slow status": _slowly(b"", b"HTTP/1.1 200 OK "),
    "slow headers": _slowly(OK, b"X-A: b\r\n"),
    "slow 1xx": _slowly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "slow body": _slowly(OK + b"Content-Length: %d\r\n\r\n"),
    "slow chunks": _slowly(CHUNKED, b"1\r\nx\r\n"),
    "silence": lambda _: itertools.repeat(SLOW),
    "silence after the head": lambda _: itertools.chain([OK + b"\r\n"], itertools.repeat(SLOW)),
}
"""Answers that never end, or not in time."""

GREETINGS: dict[str, Answer] = {
    "nothing": lambda _: [],
    "reset": lambda _: [RESET],
    "no TLS": lambda _: [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "half a record": lambda _: [b"\x16\x03\x03\x40\x00\x02"],
    "an alert": lambda _: [b"\x15\x03\x03\x00\x02\x02\x28"],
    "control characters": lambda _: [b"\x1b]0;owned\x07" * 100],
    "silence": lambda _: itertools.repeat(SLOW),
    "bytes one by one": _slowly(b"\x16\x03\x03\x40\x00", b"\x02"),
}
"""What a server of TLS should not begin with."""

FAULTS: dict[str, Answer] = {
    # The first line
    "nothing": lambda _: [],
    "reset": lambda _: [RESET],
    "half a status": lambda _: [b"HTTP/1."],
    "no HTTP": lambda _: [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "bytes alone": lambda body: [body],
    "NULs": lambda _: [bytes(5000)],
    "blank lines": lambda _: [b"\r\n" * 5000],
    "status of letters": lambda _: [b"HTTP/1.1 abc OK\r\n\r\n"],
    "status below zero": lambda _: [b"HTTP/1.1 -200 OK\r\n\r\n"],
    "status 99999": lambda _: [b"HTTP/1.1 99999 OK\r\n\r\n"],
    "status 1000": lambda _: [b"HTTP/1.1 1000 OK\r\n\r\n"],
    "version 9": lambda _: [b"HTTP/9.9 200 OK\r\n\r\n"],
    "reason with control characters": lambda _: [
        b"HTTP/1.1 404 \x1b]0;owned\x07\x9b31m\xe2\x80\xae\r\nContent-Length: 0\r\n\r\n"
    ],
    "long reason": lambda _: [b"HTTP/1.1 404 " + b"r" * 60_000 + b"\r\n\r\n"],
    "reason that is not UTF-8": lambda _: [b"HTTP/1.1 404 \xff\xfe\r\n\r\n"],
    "switching protocols": lambda _: [b"HTTP/1.1 101 S\r\nUpgrade: h2c\r\n\r\n"],
    "100 and the end": lambda _: [b"HTTP/1.1 100 Continue\r\n\r\n"],
    "204": lambda _: [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "205": lambda _: [b"HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n"],
    "304": lambda _: [b"HTTP/1.1 304 Not Modified\r\n\r\n"],
    "401": lambda _: [b"HTTP/1.1 401 No\r\nWWW-Authenticate: \xff\r\nContent-Length: 0\r\n\r\n"],
    "407": lambda _: [b"HTTP/1.1 407 No\r\nProxy-Authenticate: B\r\nContent-Length: 0\r\n\r\n"],
    "416": lambda _: [b"HTTP/1.1 416 No\r\nContent-Range: bytes */-5\r\n\r\n"],
    "500": lambda _: [b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"],
    "503 with a time": lambda _: [b"HTTP/1.1 503 No\r\nRetry-After: -99999999999\r\n\r\n"],
    # Headers
    "10^6 headers": lambda _: [OK, b"X-A: b\r\n" * 1_000_000, b"\r\n"],
    "a header of 10 MB": lambda _: [OK, b"X-A: ", MEGABYTE * 10, b"\r\n\r\n"],
    "header without a colon": _with(b"nothing here"),
    "header of NULs": _with(b"X-A: \0\0\0"),
    "header that is not UTF-8": _with(b"\xff\xfe: \xff"),
    "header without a name": _with(b": b"),
    "folded header": _with(b" b\r\n c"),
    "half a header": lambda _: [OK + b"Content-Le"],
    "cookies": _with(b"Set-Cookie: \xff=\0; Expires=never; Max-Age=9e999; Domain=..\r\n" * 50),
    "length below zero": _with(b"Content-Length: -5"),
    "length of letters": _with(b"Content-Length: five"),
    "length of another script": _with("Content-Length: \u0665".encode()),
    "no length": _with(b"Content-Length: "),
    "two lengths": _with(b"Content-Length: 5\r\nContent-Length: 6"),
    "a list of lengths": _with(b"Content-Length: 5, 6"),
    "length 2^80": _with(b"Content-Length: %d" % (1 << 80)),
    "length of 5,000 digits": _with(b"Content-Length: " + b"9" * 5000),
    "length with a sign": _with(b"Content-Length: +5"),
    "length too small": _with(b"Content-Length: 5"),
    "length too large": lambda body: [OK + b"Content-Length: %d\r\n\r\n%b" % (len(body) + 1, body)],
    "length with chunks": _with(b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
    "transfer by gzip": _with(b"Transfer-Encoding: gzip"),
    "transfer by nothing known": _with(b"Transfer-Encoding: a\r\nTransfer-Encoding: b"),
    # Bodies
    "cut": lambda body: [
        OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body[: len(body) // 2])
    ],
    "cut and reset": lambda body: [
        OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body[: len(body) // 2]),
        RESET,
    ],
    "bytes after the end": lambda body: [OK + b"\r\n" + body + b"more"],
    "another body": lambda body: [
        OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), bytes(len(body)))
    ],
    "empty": _with(b"Content-Length: 0", most=0),
    "a page": _with(b"Content-Type: text/html\r\nContent-Length: 15", most=0),
    "gzip that is none": _with(b"Content-Encoding: gzip"),
    "gzip bomb": lambda _: [OK + b"Content-Encoding: gzip\r\n\r\n" + BOMB],
    "gzip of gzip": lambda _: [
        OK + b"Content-Encoding: gzip, gzip\r\n\r\n" + gzip.compress(gzip.compress(BOMB))
    ],
    "unknown encoding": _with(b"Content-Encoding: rot13\r\nContent-Length: 1", most=1),
    # Parts
    "206 without a range": lambda body: [b"HTTP/1.1 206 P\r\n\r\n" + body],
    "206 of another range": lambda body: [
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 5-9/%d\r\n\r\n%b" % (len(body), body[5:10])
    ],
    "206 of another file": lambda _: [b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-1/2\r\n\r\nab"],
    "206 below zero": lambda _: [b"HTTP/1.1 206 P\r\nContent-Range: bytes -9--5/-1\r\n\r\nab"],
    "206 of words": lambda _: [b"HTTP/1.1 206 P\r\nContent-Range: all of it\r\n\r\nab"],
    "206 of parts": lambda _: [
        b"HTTP/1.1 206 P\r\nContent-Type: multipart/byteranges; boundary=\xff\r\n\r\n--\xff--"
    ],
    # Chunks
    "chunk of size -5": _chunks(b"-5\r\nBODY"),
    "chunk of size -1": _chunks(b"-1\r\nBODY"),
    "chunk of size -0": _chunks(b"-0\r\n\r\n"),
    "chunk size of letters": _chunks(b"xyz\r\nBODY"),
    "chunk without a size": _chunks(b"\r\nBODY\r\n0\r\n\r\n"),
    "chunk of 2^80 bytes": _chunks(b"%x\r\nBODY" % (1 << 80)),
    "chunk size of 5,000 digits": _chunks(b"f" * 5000 + b"\r\nBODY"),
    "chunk size with a prefix": _chunks(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size of another script": _chunks("\u0665\r\nhello\r\n0\r\n\r\n".encode()),
    "chunk longer than it says": _chunks(b"5\r\nBODY\r\n0\r\n\r\n"),
    "chunks without an end": lambda body: [CHUNKED + _sized(body[:100])],
    "chunks with a line of 10 MB": _chunks(b"5;" + MEGABYTE * 10 + b"\r\nhello\r\n0\r\n\r\n"),
    "chunks and 10^6 trailers": lambda body: [
        CHUNKED + _sized(body[:100]) + b"0\r\n" + b"X-A: b\r\n" * 1_000_000 + b"\r\n"
    ],
    # Redirects
    "redirect without a place": lambda _: [b"HTTP/1.1 302 Found\r\n\r\n"],
    "redirect to nothing": redirect(b""),
    "redirect to half an address": redirect(b"http://[::1"),
    "redirect to no host": redirect(b"http://"),
    "redirect to a port of letters": redirect(b"http://127.0.0.1:port/"),
    "redirect to port 99999": redirect(b"http://127.0.0.1:99999/"),
    "redirect to port 0": redirect(b"http://127.0.0.1:0/"),
    "redirect to bytes": redirect(b"http://127.0.0.1/\xff\xfe"),
    "redirect to a host of bytes": redirect(b"http://\xff\xfe/"),
    "redirect to a host of dots": redirect(b"http://.../"),
    "redirect to a long label": redirect(b"http://" + b"a" * 300 + b".invalid/"),
    "redirect to control characters": redirect(b"http://127.0.0.1:9/\x1b]0;owned\x07"),
    "redirect to NULs": redirect(b"http://127.0.0.1:9/\0\0"),
    "redirect to a host with blanks": redirect(b"http://a b/"),
    "redirect to a file": redirect(b"file:///etc/passwd"),
    "redirect to ftp": redirect(b"ftp://127.0.0.1/"),
    "redirect to data": redirect(b"data:,hello"),
    "redirect to a script": redirect(b"javascript:alert(1)"),
    "redirect to a scheme of bytes": redirect(b"\xff://a/"),
    "redirect to itself": redirect(b"/rows.bin"),
    "redirect to longer and longer": redirect(b"a/a"),
    "redirect to 60 kB": redirect(b"/" + b"a" * 60_000),
    "redirect with a password": redirect(b"http://user:hunter2@127.0.0.1:9/?sig=hunter2"),
    "redirect with half a body": redirect(b"/good", b"Content-Length: 99\r\n\r\nhalf"),
    "redirect with a gzip bomb": redirect(b"http://[::1", b"Content-Encoding: gzip\r\n\r\n" + BOMB),
    "two places": redirect(b"http://[::1", b"Location: file:///etc/passwd\r\n\r\n"),
}
"""Answers that are wrong."""
