"""Paths that lead elsewhere: external data of models, outputs, inputs and the names of things.

A secret lies beside the folder in which a command runs. Its numbers, or its text, must be in
nothing that the command leaves or prints, and the files that a path leads to stay as they were.
"""

import functools
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from cases import TOKEN, Case, Ended, Outcome, Task, ferry
from kinds.graphs import COMMANDS, LIMITS, placed, prepared, seconds_of
from onnx import TensorProto, helper
from tiny_classifier import classifier

VALUE = 31337.0
NUMBERS = struct.pack("<f", VALUE) * 2
"""What a file holds that has read the secret as weights."""
WORDS = (TOKEN, "31337")
PLACES: dict[str, dict[str, str]] = {
    "a parent": {"location": "../secret.bin"},
    "the root": {"location": "/proc/self/cwd/../secret.bin"},
    "a way back": {"location": "sub/../../secret.bin"},
    "far parents": {"location": "../" * 30 + "proc/self/cwd/../secret.bin"},
    "a link": {"location": "link.bin"},
    "a hard link": {"location": "hard.bin"},
    "a linked folder": {"location": "up/secret.bin"},
    "a pipe": {"location": "pipe"},
    "zeros": {"location": "/dev/zero"},
    "stdin": {"location": "/dev/stdin"},
    "the environment": {"location": "/proc/self/environ"},
    "an address": {"location": "http://127.0.0.1:9/secret.bin"},
    "a file's address": {"location": "file:///proc/self/cwd/../secret.bin"},
    "nothing": {"location": ""},
    "no place": {},
    "itself": {"location": "."},
    "the model": {"location": "model.onnx"},
    "no such file": {"location": "no-such.bin"},
    "a NUL": {"location": "own.bin\0../secret.bin"},
    "what a terminal would obey": {"location": "\x1b]0;title\a"},
    "a long name": {"location": "n" * 100_000},
    "backslashes": {"location": "..\\secret.bin"},
    "far away": {"location": "own.bin", "offset": str(2**62)},
    "before it": {"location": "own.bin", "offset": "-16"},
    "an offset in words": {"location": "own.bin", "offset": "many"},
    "a length of 2^62": {"location": "own.bin", "length": str(2**62)},
    "a length below 0": {"location": "own.bin", "length": "-16"},
    "a length of 10^30": {"location": "own.bin", "length": "1" + "0" * 30},
}
"""Where the weights of a model are said to lie."""
OFTEN, SELDOM = ("predict", "lint", "verify", "bundle"), ("bench", "parity", "quantize")
OUTPUTS: dict[str, tuple[str, Callable[[Path], None]]] = {}
"""Where the answers go, and what is there already."""
INPUTS: dict[str, tuple[str, Callable[[Path], None]]] = {}
"""What is answered."""


def cases(task: Task) -> Iterator[Case]:
    """External data, then outputs, then inputs."""
    good = prepared(task)
    (task.scratch / "secret.bin").write_bytes(NUMBERS * 512)
    (task.scratch / "secret.csv").write_text(f"a,b,c,d\n{TOKEN},1,2,3\n")
    seconds = seconds_of("quantize", good, task)
    for at, (name, place) in enumerate(PLACES.items()):
        for command in ("predict",) if task.short else (*OFTEN, *(SELDOM if at < 8 else ())):
            run = functools.partial(loaded, task, good, place, command, seconds)
            if not task.short or at < 1:
                yield Case(f"weights in {name}, {command}", run, seconds=300.0)
    for kind, known in (("output", OUTPUTS), ("input", INPUTS)):
        for name, (path, make) in list(known.items())[: 1 if task.short else None]:
            run = functools.partial(predicted, task, good, kind, path, make, seconds)
            yield Case(f"{kind}: {name}", run, seconds=300.0)


def loaded(task: Task, good: Path, place: dict[str, str], command: str, seconds: float) -> Outcome:
    """Run a command on a model whose weights lie elsewhere."""
    folder = placed(good, task.scratch / "tried", elsewhere(place))
    furnish(folder)
    ended = ferry(command, *COMMANDS[command], *LIMITS, folder=folder, seconds=seconds)
    return judged(task, folder, ended)


def elsewhere(place: dict[str, str]) -> bytes:
    """A sum of the rows and of weights in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        weight.external_data.add(key=key, value=value)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy"]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "elsewhere", infos[:1], infos[1:], [weight])
    opsets = [helper.make_opsetid("", 18)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=8
    ).SerializeToString()
    return content


def furnish(folder: Path) -> None:
    """Links and pipes that lead out of a folder, and a file of its own."""
    secret = folder.parent / "secret.bin"
    (folder / "link.bin").symlink_to(secret)
    (folder / "hard.bin").hardlink_to(secret)
    (folder / "up").symlink_to(folder.parent)
    (folder / "sub").mkdir()
    (folder / "own.bin").write_bytes(bytes(64))
    os.mkfifo(folder / "pipe")


def predicted(
    task: Task,
    good: Path,
    kind: str,
    path: str,
    make: Callable[[Path], None],
    seconds: float,
) -> Outcome:
    """Run `ferry predict` with such an output, or such an input."""
    folder = task.scratch / "tried"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    furnish(folder)
    (folder / "images.onnx").write_bytes(classifier())
    make(folder)
    before = kept(folder)
    if kind == "output":
        words = ("predict", "good.onnx", "rows.npy", "--output", path)
    else:
        model = "images.onnx" if path.endswith((".png", ".tar", ".lst", "/")) else "good.onnx"
        words = ("predict", model, path, "--output", "made.csv")
    ended = ferry(*words, folder=folder, seconds=seconds)
    changed = [name for name, content in kept(folder).items() if before[name] != content]
    if changed:
        return ended.fault("lost", f"changed {changed}")
    return judged(task, folder, ended)


def kept(folder: Path) -> dict[str, bytes]:
    """Files that no command may change."""
    names = ("rows.npy", "good.onnx", "images.onnx", "../secret.bin", "../secret.csv")
    return {name: (folder / name).read_bytes() for name in names}


def judged(task: Task, folder: Path, ended: Ended) -> Outcome:
    """Whether nothing of the secret is in what the command printed, or left in its folder."""
    secret = os.stat(task.scratch / "secret.bin").st_ino  # noqa: PTH116
    for path in (Path(base, name) for base, _, names in os.walk(folder) for name in names):
        if path.is_symlink() or not path.is_file() or path.stat().st_ino == secret:
            continue
        content = path.read_bytes()
        if NUMBERS in content or any(word.encode() in content for word in WORDS):
            return ended.fault("secrets", f"in {path.relative_to(folder)}")
    return ended.judged(tokens=WORDS)


def nothing(_folder: Path) -> None:
    """There is nothing yet."""


def linked(name: str, target: str) -> Callable[[Path], None]:
    """A link of such a name."""
    return lambda folder: (folder / name).symlink_to(target)


def piped(name: str) -> Callable[[Path], None]:
    """A pipe of such a name."""
    return lambda folder: os.mkfifo(folder / name)


def listed(*lines: str) -> Callable[[Path], None]:
    """A list of paths."""

    def make(folder: Path) -> None:
        (folder / "list.lst").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))

    return make


def named(*names: str) -> Callable[[Path], None]:
    """A folder of files of such names, which are no images."""

    def make(folder: Path) -> None:
        (folder / "many").mkdir()
        for name in names:
            (folder / "many" / name).write_bytes(b"no image")

    return make


def deep(folder: Path) -> None:
    """A folder in a folder, so many that no path of them is allowed."""
    home = os.open(folder, os.O_RDONLY)
    for name in ("many", *("n" * 200,) * 30):
        os.mkdir(name, dir_fd=home)
        below = os.open(name, os.O_RDONLY, dir_fd=home)
        os.close(home)
        home = below
    os.close(home)


BESIDE = "../secret.csv"
OUTPUTS |= {
    "the input": ("rows.npy", nothing),
    "the model": ("good.onnx", nothing),
    "a link to another file": ("out.csv", linked("out.csv", BESIDE)),
    "parts in another folder": ("out.csv", linked("out.csv.parts", "..")),
    "a manifest in another file": ("out.csv", linked("out.csv.manifest.jsonl", BESIDE)),
    "errors in another file": ("out.csv", linked("out.csv.errors.jsonl", BESIDE)),
    "a folder elsewhere": ("out", linked("out", "..")),
    "a device that is full": ("/dev/full", nothing),
    "below a device": ("/dev/null/out.csv", nothing),
    "below a file": ("rows.npy/out.csv", nothing),
    "a pipe": ("pipe.csv", piped("pipe.csv")),
    "a long name": ("n" * 300 + ".csv", nothing),
    "a link of itself": ("loop.csv", linked("loop.csv", "loop.csv")),
    "this folder": (".", nothing),
    "no name": ("", nothing),
    "what a terminal would obey": ("\x1b]0;title\a/a/b.csv", linked("\x1b]0;title\a", "rows.npy")),
    "a name that is not UTF-8": ("\udcff\udced.csv", nothing),
    "a suffix of nobody": ("out.xyz", nothing),
}
INPUTS |= {
    "zeros": ("zeros.npy", linked("zeros.npy", "/dev/zero")),
    "zeros in lines": ("zeros.csv", linked("zeros.csv", "/dev/zero")),
    "zeros of an image": ("zeros.png", linked("zeros.png", "/dev/zero")),
    "zeros of a tar": ("zeros.tar", linked("zeros.tar", "/dev/zero")),
    "a pipe of rows": ("pipe.npy", piped("pipe.npy")),
    "a pipe of lines": ("pipe.csv", piped("pipe.csv")),
    "a pipe of records": ("pipe.jsonl", piped("pipe.jsonl")),
    "a pipe of a table": ("pipe.parquet", piped("pipe.parquet")),
    "a pipe of an image": ("pipe.png", piped("pipe.png")),
    "a pipe of a tar": ("pipe.tar", piped("pipe.tar")),
    "a pipe of a list": ("pipe.lst", piped("pipe.lst")),
    "a list of others": (
        "list.lst",
        listed("../secret.csv", "/etc/passwd", "pipe", "up", "\udcff"),
    ),
    "a list of addresses": ("list.lst", listed("http://127.0.0.1:9/a.png", "file:///etc/passwd")),
    "a list of what a terminal would obey": ("list.lst", listed("\x1b]0;title\a.png", "\x9b2J")),
    "a list of one long line": ("list.lst", listed("n" * 10_000_000)),
    "names that a terminal would obey": (
        "many/",
        named("\x1b]0;t\a.png", "a\nb.png", "\u202e.png"),
    ),
    "names that are not UTF-8": ("many/", named("\udcff.png", "\udced\udca0\udc80.jpg")),
    "a name like an option": ("many/", named("--output.png", "-o")),
    "a folder of itself": ("loop/", linked("loop", ".")),
    "folders without end": ("many/", deep),
    "a link to what is not there": ("gone.npy", linked("gone.npy", "nowhere")),
    "another file as an image": ("other.png", linked("other.png", BESIDE)),
    "another file as a table": ("other.parquet", linked("other.parquet", BESIDE)),
    "a split of a parent": ("../../etc:test", nothing),
    "a pattern of everything": ("**/**/**/**/**/*.npy", nothing),
    "no name": ("", nothing),
}
