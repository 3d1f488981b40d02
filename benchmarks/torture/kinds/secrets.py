"""Addresses that hold secrets, through the program: none is in what it shows, leaves or starts.

A password and a signature stand in each, and each time the run goes on with others. What is left is
searched as it lies and unpacked, and so are the arguments of all processes that are started.
"""

import contextlib
import gzip
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psutil
import pyarrow as pa
from cases import TOKEN, Case, Ended, Outcome, Task, ferry
from pyarrow import feather, parquet
from raw_server import FAULTS, RawServer, good
from tiny_classifier import classifier, images
from tiny_images import encoded

from serving.batch.writers import FORMATS

PNG = encoded(images(1)[0], "PNG")
QUERIES = {
    "Amazon": f"versionId=1&X-Amz-Date=2&X-Amz-Security-Token={TOKEN}&X-Amz-Signature={TOKEN}",
    "Google": f"X-Goog-Credential={TOKEN}&X-Goog-Signature={TOKEN}",
    "Azure": f"sv=1&se=2&sp=r&sig={TOKEN}",
    "old Amazon": f"AWSAccessKeyId={TOKEN}&Expires=1&Signature={TOKEN}",
    "encoded": f"X%2DAmz%2DSignature={TOKEN}&to={quote(f'http://u:{TOKEN}@h/?sig={TOKEN}', '')}",
    "a fragment": f"a=1#access_token={TOKEN}",
    "an API key": f"api_key={TOKEN}",
}
ANSWERS = (good, FAULTS["another body"], FAULTS["cut"])
REFUSALS = ("401", "500", "redirect to itself", "redirect with a password", "reset")


def cases(task: Task) -> Iterator[Case]:
    """Each query with each format, each fault, and the commands that take an address otherwise."""
    if task.short:  # the tests of the program hold the rest
        yield Case("verify", partial(refused, task.scratch / "verify", COMMANDS["verify"]))
        return
    for number, form in enumerate(FORMATS):
        for query, text in QUERIES.items():
            folder = task.scratch / f"{number}-{query.replace(' ', '-')}"
            name = f"predict to {form}, signed as {query}"
            yield Case(name, partial(predicted, folder, form, text), seconds=200)
    for name, words in COMMANDS.items():
        folder = task.scratch / name.replace(" ", "-")
        yield Case(name, partial(refused, folder, words), seconds=100)


def predicted(folder: Path, form: str, query: str) -> Outcome:
    """Images of which some come; then again, with another secret."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(classifier())
    (folder / f"saved.png?sig={TOKEN}").write_bytes(PNG)
    with RawServer(PNG, good) as server:
        server.answers = {f"/{place}.png": one for place, one in enumerate(ANSWERS)}
        base = server.url.replace("//", f"//user:{TOKEN}@")
        names = [f"{base}/{place}.png?{query}" for place in range(len(ANSWERS))]
        (folder / "images.lst").write_text(f"saved.png?sig={TOKEN}\n{names[0]}\n")
        output = ("--output", f"labels.{form}", "--format", form)
        first = watched("predict", "model.onnx", *names, "images.lst", *output, folder=folder)
        others = [name.replace(TOKEN, "another") for name in names]
        again = watched("predict", "model.onnx", *others, "images.lst", *output, folder=folder)
        server.answer = FAULTS[REFUSALS[len(form + query) % len(REFUSALS)]]
        none = watched("predict", "model.onnx", f"{base}/none.png?{query}", folder=folder)
    total = first.judged() + again.judged() + none.judged() + searched(folder, first)
    # The rows of the second run would be other ones if it had not been taken for the same.
    if first.status or again.status or not (folder / f"labels.{form}").exists():
        total += again.fault("lost", f"{first.message}; {again.message}")
    return total


COMMANDS = {
    "pull from a mirror": ("pull", "rt_polarity", "--mirror", f"http://u:{TOKEN}@127.0.0.1:9/m"),
    "verify": ("verify", f"http://u:{TOKEN}@h/?token={TOKEN}"),
    "bench": ("bench", f"http://u:{TOKEN}@h/a.onnx"),
    "deploy": ("deploy", "b", f"ssh://u:{TOKEN}@h/opt"),
    "register": ("register", f"http://u:{TOKEN}@h/?token={TOKEN}"),
    "an option that is none": ("predict", f"--http://u:{TOKEN}@h"),
    "a command that is none": (f"http://u:{TOKEN}@h/?sig={TOKEN}",),
    "the doctor": ("doctor", "--json"),
    "a store that is down": ("track",),
    "pages of a store elsewhere": ("ui",),
}


def refused(folder: Path, words: tuple[str, ...]) -> Outcome:
    """A command that does not take the address, or cannot reach what is there."""
    folder.mkdir()
    os.environ["MLFLOW_TRACKING_URI"] = f"http://user:{TOKEN}@127.0.0.1:9/?token={TOKEN}"
    os.environ["https_proxy"] = f"http://u:{TOKEN}@127.0.0.1:9"
    ended = watched(*words, folder=folder)
    return ended.judged() + searched(folder, ended)


def watched(*words: str, folder: Path) -> Ended:
    """Run it, and add to its stderr the arguments of the processes that it starts."""
    seen: set[str] = set()
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(seen, done, words))
    watcher.start()
    ended = ferry(*words, folder=folder, seconds=60)
    done.set()
    watcher.join()
    return replace(ended, stderr=ended.stderr + "\n".join(seen), words=words[:1])


def _watch(seen: set[str], done: threading.Event, own: tuple[str, ...]) -> None:
    while not done.wait(0.05):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                # What was typed, everybody has seen; a fork has the same arguments.
                given = process.cmdline()
                if given[-len(own) :] != list(own):
                    seen.add(ascii(given))


def searched(folder: Path, ended: Ended) -> Outcome:
    """Look for the token in all that lies in a folder, but for what the user has put there."""
    total = Outcome()
    for path in folder.rglob("*"):
        if path.name == "images.lst" or path.name.startswith("saved"):
            continue
        content = path.read_bytes() + unpacked(path) if path.is_file() else b""
        if TOKEN in str(path) or TOKEN.encode() in content:
            total += ended.fault("secrets", f"in {path.relative_to(folder)}")
    return total


def unpacked(path: Path) -> bytes:
    """What a file holds beneath its compression."""
    match path.suffix:
        case ".parquet":
            table = parquet.read_table(path)
        case ".arrow":
            table = feather.read_table(path)
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            with pa.input_stream(str(path), compression="zstd") as stream:
                return bytes(stream.read())
        case _:
            return b""
    return f"{table.to_pydict()} {table.schema.metadata}".encode()
