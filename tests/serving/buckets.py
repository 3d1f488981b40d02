"""Just enough of the interfaces of S3 and Google Cloud Storage to read a folder as a bucket."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from web_folder import listening

BUCKET = "bucket"
DAY = "2026-01-01T00:00:00.000Z"


class Handler(BaseHTTPRequestHandler):
    def __init__(self, *given: object, folder: Path) -> None:
        self.folder = folder
        super().__init__(*given)  # type: ignore[arg-type]

    def log_message(self, *_given: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path.startswith(f"/{BUCKET}"):
            self.s3(unquote(address.path).removeprefix(f"/{BUCKET}").lstrip("/"), asked)
        else:
            self.gcs(unquote(address.path.rpartition(f"/b/{BUCKET}/o")[2].lstrip("/")), asked)

    def s3(self, key: str, asked: dict[str, str]) -> None:
        if not key:
            keys, folders = self.listed(asked)
            files = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{self.size(name)}</Size>"
                f"<ETag>{self.size(name)}</ETag><LastModified>{DAY}</LastModified></Contents>"
                for name in keys
            )
            common = "".join(
                f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
                for name in folders
            )
            message = (
                f"<KeyCount>{len(keys) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
            )
            self.send(
                200, f"<ListBucketResult>{message}{files}{common}</ListBucketResult>".encode()
            )
        elif (self.folder / key).is_file():
            self.send(200, (self.folder / key).read_bytes())
        else:
            self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def gcs(self, key: str, asked: dict[str, str]) -> None:
        if not key:
            keys, folders = self.listed(asked)
            message = {"items": [self.about(name) for name in keys], "prefixes": folders}
            self.send(200, json.dumps(message).encode())
        elif not (self.folder / key).is_file():
            self.send(404, b'{"error": {"code": 404, "message": "none"}}')
        elif asked.get("alt") == "media":
            self.send(200, (self.folder / key).read_bytes())
        else:
            self.send(200, json.dumps(self.about(key)).encode())

    def about(self, key: str) -> dict[str, object]:
        size = str(self.size(key))
        return {"name": key, "bucket": BUCKET, "size": size, "etag": size, "updated": DAY}

    def listed(self, asked: dict[str, str]) -> tuple[list[str], list[str]]:
        """The keys with a prefix, and what they have in common up to the delimiter."""
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        names = [name for name in names if name.startswith(prefix)]
        if not delimiter:
            return names, []
        within = {name: name.removeprefix(prefix).partition("/") for name in names}
        folders = sorted({f"{prefix}{first}/" for first, slash, _ in within.values() if slash})
        return [name for name, (_, slash, _) in within.items() if not slash], folders

    def size(self, key: str) -> int:
        return (self.folder / key).stat().st_size

    def send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            with suppress(BrokenPipeError):  # gcsfs leaves what it has no use for
                self.wfile.write(content)


@contextmanager
def buckets(folder: Path) -> Iterator[dict[str, str]]:
    """The folder as `s3://bucket` and `gs://bucket`, with the environment that leads there."""
    with listening(partial(Handler, folder=folder)) as url:
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "STORAGE_EMULATOR_HOST": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks for the kind of bucket by gRPC
            "FSSPEC_GS": '{"token": "anon"}',
            "NO_PROXY": "*",
        }
