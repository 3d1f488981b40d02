"""Run the model of this folder, with numpy and onnxruntime alone: copying the folder deploys it.

    python runner.py selftest --key pub.pem                   (or --digest D, or neither)
    python runner.py predict rows.npy --output out.csv        (or reviews.txt, or --output out.npz)
    python runner.py bench                                    (the speed here, as JSON)

Before numpy is imported, every file of the folder is compared with manifest.json; one that was
altered, added or taken away is refused. That finds accidents. Whoever can write here can write a
manifest as well, and a runner: a key, or the digest, tells who made it, and a runner that you
trust tells it of another folder, with --folder. From Python:

    import runner
    runner.predict(rows).label, runner.answers(rows)["probabilities"]
"""

# In a bundle the texts of these files of ferry stand here, without their imports of each other.
from serving.bundles.inference import (
    WATCHER,
    Opened,
    answers,
    answers_of,
    bench,
    classified,
    golden,
    import_runtime,
    is_classifier,
    opened,
    predict,
    selftest,
)
from serving.bundles.integrity import (
    FOLDER,
    MANIFEST,
    PATH,
    RunnerError,
    canonical,
    check,
    one_line,
)

# isort: split
import argparse
import contextlib
import csv
import functools
import io
import json
import math
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

__all__ = ["RunnerError", "answers", "check", "predict", "selftest"]

LONGEST_SECONDS = 1e6
"""What a system can wait for."""
PDEATHSIG = 1
"""Of Linux's prctl: the signal when the parent dies."""


def _load_rows(path: Path) -> Any:
    import numpy as np

    try:
        if path.suffix.lower() == ".txt":
            lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
            return np.array(lines if lines[-1] else lines[:-1], dtype=object)
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise RunnerError(f"{path} cannot be read: {one_line(error)}") from error


def _columns(found: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """What `ferry predict` writes: label and score of a classifier, else every output."""
    classes = manifest["classes"]
    if is_classifier(classes):
        label, label_index, score, _ = classified(found, manifest)
        named = "probability" if classes["are_probabilities"] else "score"
        return {"label": label, "label_index": label_index, named: score}
    said = {classes["label"]["name"]: "label"} if classes["label"] else {}
    columns = {new: found[old].ravel() for old, new in said.items()}
    for name, values in found.items():
        if name not in said:
            columns[f"output_{name}" if name in columns else name] = values
    return columns


def _encoded(found: dict[str, Any], manifest: dict[str, Any], output: "Path | None") -> bytes:
    """A .npz of every output; else CSV of a classifier's labels or, as JSON, of every output."""
    import numpy as np

    if output is not None and output.suffix.lower() == ".npz":
        archive = io.BytesIO()
        plain = {n: a.astype(str) if a.dtype == object else a for n, a in found.items()}
        np.savez(archive, **plain)
        return archive.getvalue()
    columns = _columns(found, manifest)
    file = io.StringIO(newline="")
    write = csv.writer(file, lineterminator="\n").writerow
    write(["row", *columns])
    for row in range(len(next(iter(columns.values())))):
        values = [column[row] for column in columns.values()]
        cells = [json.dumps(v.tolist()) if np.ndim(v) else v for v in values]
        write([row, *cells])
    return file.getvalue().encode()


def _save(content: bytes, output: "Path | None") -> None:
    if output is None:
        with os.fdopen(os.dup(1), "wb") as file:
            file.write(content)
        return
    # The file appears whole or not at all.
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _arguments() -> argparse.Namespace:
    # Without a width argparse would import shutil, and with it every kind of compression.
    kind: Any = functools.partial(
        argparse.ArgumentParser,
        formatter_class=functools.partial(argparse.HelpFormatter, width=80),
    )
    parser = kind(prog="runner", description="Run the model of this folder.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=kind)
    test = commands.add_parser("selftest", help="run the golden rows and compare")
    test.add_argument("--json", action="store_true", help="print the result as JSON")
    answer = commands.add_parser("predict", help="answer the rows of a .npy or a .txt file")
    answer.add_argument("rows", type=Path, metavar="ROWS")
    answer.add_argument("--output", type=Path, help="a .csv, or a .npz of all outputs; else stdout")
    speed = commands.add_parser("bench", help="time the golden rows; prints JSON")
    speed.add_argument("--seconds", type=_above_zero(float), default=2.0, help="how long (2)")
    speed.add_argument("--batch-size", type=_above_zero(int), default=1, help="rows a call (1)")
    for command in (test, answer, speed):
        command.add_argument("--provider", default="cpu", help="cpu, cuda, coreml, ...")
        command.add_argument("--threads", type=int, default=0, help="0: ONNX Runtime chooses")
        longest = "how long one call of the model may take, in seconds (120)"
        command.add_argument("--call-timeout", type=_above_zero(float), default=120.0, help=longest)
        allow = "run although the processor lacks it"
        command.add_argument("--allow", choices=["vnni"], help=allow)
        key = "refuse what the holder of this P-256 key did not sign"
        command.add_argument("--key", type=Path, metavar="PUB.pem", help=key)
        command.add_argument("--digest", help="refuse a bundle of another digest than this")
        folder = "another bundle, which this runner checks and runs"
        command.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help=folder)
    found: argparse.Namespace = parser.parse_args()
    return found


def _above_zero(kind: Any) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError(text)
        return value

    return number


def _run(arguments: argparse.Namespace) -> None:
    """Run one command and write what it gives."""
    output = getattr(arguments, "output", None)
    if output is not None and output.resolve().is_relative_to(arguments.folder.resolve()):
        raise RunnerError(f"{output} would lie in the bundle, which holds what was shipped alone")
    if arguments.command == "selftest":
        _selftest(arguments)
        return
    one = _opened(arguments)
    if arguments.command == "predict":
        _save(_encoded(answers_of(one, _load_rows(arguments.rows)), one.manifest, output), output)
    else:
        found = bench(one, seconds=arguments.seconds, batch_size=arguments.batch_size)
        _save(canonical({**found, "vouched": _vouched(arguments)}), None)


def _selftest(arguments: argparse.Namespace) -> None:
    """Write what the self-test found; RunnerError if that is not good."""
    record: dict[str, Any] = {}
    try:
        one = _opened(arguments)
        found = golden(one)
        error, worst = found.error, found.worst if math.isfinite(found.worst) else None
        record.update(found._asdict(), worst=worst, digest=one.manifest["digest"])
        record.update(vouched=_vouched(arguments))
        said = f"largest difference {found.worst:.1e}, no flips in {found.rows} rows"
    except RunnerError as failed:
        error = str(failed)
    if arguments.json:
        _save(canonical({"passed": not error, "error": error or None, **record}), None)
    if error:
        raise RunnerError(error)
    if not arguments.json:
        word = " and ".join(_vouched(arguments)) or "nobody: give --key or --digest"
        _save(f"selftest: passed, {said}; vouched for by {word}\n".encode(), None)


def _opened(arguments: argparse.Namespace) -> Opened:
    names = ("provider", "threads", "folder", "key", "digest")
    return opened(**{name: getattr(arguments, name) for name in names})


def _vouched(arguments: argparse.Namespace) -> list[str]:
    """What says that these are the files that were shipped, and not only files that agree."""
    return [word for word in ("key", "digest") if getattr(arguments, word) is not None]


def main() -> int:
    """Run one command; 0 done, 1 failed, 2 usage."""
    arguments = _arguments()
    if arguments.allow:
        os.environ["FERRY_ALLOW"] = arguments.allow
    if not hasattr(os, "fork"):
        return _command(arguments)
    seen, pipe = os.pipe()
    # A model may never end, or end its process: then another one is left to say so.
    child = os.fork()
    if child:
        os.close(pipe)
        return _watch(child, seen, min(arguments.call_timeout, LONGEST_SECONDS))
    os.close(seen)
    WATCHER.update(pipe=pipe, next=0)
    _bound(arguments.provider)
    return _command(arguments)


def _watch(child: int, seen: int, seconds: float) -> int:
    """The exit status of the child, which says on a pipe that it goes on; 1 for one that died."""
    try:
        while (told := select.select([seen], [], [], seconds)[0]) and os.read(seen, 100):
            pass
    except KeyboardInterrupt:  # which the child has got as well, and has a second to tidy up
        select.select([seen], [], [], 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 130
    if not told:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not told:
        return _failed(f"the model has not ended in {seconds:g} s (--call-timeout)")
    if os.WIFSIGNALED(status):
        return _failed(f"the native runtime ended ({signal.Signals(os.WTERMSIG(status)).name})")
    return os.WEXITSTATUS(status)


def _bound(provider: str) -> None:
    """Let this child have no more memory than the machine has, and end with its parent."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if provider == "cpu" and not 0 <= soft < most:
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _command(arguments: argparse.Namespace) -> int:
    try:
        _run(arguments)
    except RunnerError as error:
        return _failed(str(error))
    except BrokenPipeError:  # the reader of stdout has left, as `head` does
        return 141
    except OSError as error:
        return _failed(f"{getattr(arguments, 'output', None) or 'stdout'}: {error.strerror}")
    except MemoryError as error:
        return _failed(f"more memory is needed than there is: {one_line(error)}")
    except KeyboardInterrupt:
        return 130
    return 0


def _failed(message: str) -> int:
    # A name may hold anything, a new line as well.
    line = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in message)
    sys.stderr.write(f"runner: {line}\n")
    return 1


def _forget_cache() -> None:
    """Take away the byte code that importing this file left: the folder stays as shipped."""
    cached = Path(globals().get("__cached__") or "")
    if cached.parent == FOLDER / "__pycache__" and (FOLDER / MANIFEST).exists():
        with contextlib.suppress(OSError):  # another version's byte code, or a read-only folder
            cached.unlink()
            cached.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
if not __package__:  # imported from the folder: it is checked before it is back on the path
    _forget_cache()
    check()
    import_runtime()
    sys.path[:] = PATH
