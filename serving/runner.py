"""Run the model of this folder, with numpy and onnxruntime alone: copying the folder deploys it.

    python runner.py selftest
    python runner.py predict rows.npy --output out.csv

Every file's sha256 is checked against manifest.json before the model is loaded. From Python:

    import runner
    runner.predict(rows).label
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NamedTuple

# ONNX Runtime reports its use by default; whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import numpy as np
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"runner: {missing}; pip install numpy onnxruntime")

__all__ = ["Prediction", "RunnerError", "check", "predict", "selftest"]

FOLDER = Path(__file__).resolve().parent
BATCH_ROWS = 32
FAULTS = "EPFail Fail InvalidArgument InvalidGraph InvalidProtobuf NotImplemented RuntimeException"
ORT_ERRORS = (RuntimeError, ValueError, *(getattr(ort_state, name) for name in FAULTS.split()))


class RunnerError(Exception):
    """What went wrong, in one line for a person."""


class Prediction(NamedTuple):
    """The answer to some rows."""

    label_index: Any
    """int64 [rows]."""
    label: list[str]
    probability: Any
    """float32 [rows], of the label."""
    probabilities: Any
    """float32 [rows, classes]."""


def check() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Compare every file with the manifest; return the manifest and the checked bytes.

    Raises RunnerError naming the first file that is not the one that was shipped.
    """
    text = _read("manifest.json")
    try:
        manifest: dict[str, Any] = json.loads(text)
        content = {name: value for name, value in manifest.items() if name != "digest"}
        intact = (
            _text(manifest) == text and sha256(_text(content)).hexdigest() == manifest["digest"]
        )
        files = manifest["files"].items()
    except (ValueError, RecursionError, KeyError, AttributeError) as error:
        raise RunnerError("manifest.json was altered: it is no manifest any more") from error
    if not intact:
        raise RunnerError("manifest.json was altered: its digest is another")
    contents = {name: _read(Path(name).name) for name, _ in files}
    for name, info in files:
        if sha256(contents[name]).hexdigest() != info["sha256"]:
            raise RunnerError(f"{name} was altered: its sha256 is not the one in manifest.json")
    return manifest, contents


def predict(
    rows: Any, *, provider: str = "cpu", threads: int = 0, batch_rows: int = BATCH_ROWS
) -> Prediction:
    """Answer `rows`, an array of the dtype and shape that the model takes: [rows, ...].

    `threads` 0 lets ONNX Runtime choose. Raises RunnerError when a file of the folder was altered,
    the rows do not fit, or `provider` does not run the model.
    """
    manifest, _, session = _opened(provider, threads)
    info = manifest["inputs"][0]
    _check_rows(rows, info)
    names = [output["name"] for output in manifest["outputs"]]
    if "probabilities" not in names:
        raise RunnerError(f"the model gives {', '.join(names)}, no probabilities")
    batches = [
        _run(session, ["probabilities"], {info["name"]: rows[start : start + batch_rows]})[0]
        for start in range(0, len(rows), batch_rows)
    ]
    labels = manifest["labels"]
    empty = np.zeros((0, len(labels)), np.float32)
    probabilities = np.concatenate([empty, *batches]).astype(np.float32)
    label_index = probabilities.argmax(axis=1).astype(np.int64)
    return Prediction(
        label_index=label_index,
        label=[labels[index] for index in label_index],
        probability=probabilities[np.arange(len(rows)), label_index],
        probabilities=probabilities,
    )


def selftest(*, provider: str = "cpu", threads: int = 0) -> float:
    """Run the golden rows and return the largest difference to the outputs that were shipped.

    Raises RunnerError when that is over the limit in the manifest, or a file was altered.
    """
    manifest, contents, session = _opened(provider, threads)
    with np.load(io.BytesIO(contents["golden.npz"]), allow_pickle=False) as archive:
        golden = {name: archive[name] for name in archive.files}
    names = [output["name"] for output in manifest["outputs"]]
    found = _run(session, names, {manifest["inputs"][0]["name"]: golden["input"]})
    differences = [np.abs(golden[name] - found[at]).max() for at, name in enumerate(names)]
    worst = float(np.max(differences))  # not a number if one of them is not
    limit = manifest["golden"]["max_abs_diff"]
    if not worst <= limit:
        raise RunnerError(f"the golden outputs differ by {worst:.3e}, the limit is {limit:.3e}")
    return worst


@functools.lru_cache(maxsize=1)
def _opened(provider: str, threads: int) -> tuple[dict[str, Any], dict[str, bytes], Any]:
    """The checked folder and its session, kept for the next call."""
    manifest, contents = check()
    return manifest, contents, _open(manifest, contents, provider, threads)


def _open(manifest: dict[str, Any], contents: dict[str, bytes], provider: str, threads: int) -> Any:
    """A session on exactly the provider that was asked for: "cpu", "cuda", "coreml", ..."""
    _check_runtime(manifest["minimum_runtime"])
    available = onnxruntime.get_available_providers()
    known = {name[: -len("ExecutionProvider")].lower(): name for name in available}
    asked = known.get(provider.lower())
    if asked is None:
        raise RunnerError(
            f"provider {provider} is not part of onnxruntime {onnxruntime.__version__}; "
            f"there are {', '.join(sorted(known))}"
        )
    options = _options(asked, threads)
    try:
        session = onnxruntime.InferenceSession(
            contents["model.onnx"], options, providers=[asked], enable_fallback=0
        )
    except ORT_ERRORS as error:
        raise RunnerError(f"{asked} does not run the model here: {_one_line(error)}") from error
    if session.get_providers()[0] != asked:
        raise RunnerError(f"{asked} was asked for, but {session.get_providers()[0]} would run")
    return session


def _options(asked: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong arrives as an exception
    onnxruntime.set_default_logger_severity(4)
    # Weights in other files are none of the checked bytes: look for them where nothing can be.
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, os.devnull)
    if asked != "CPUExecutionProvider":
        # Else ONNX Runtime runs on the CPU, without a word, what the provider does not.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _run(session: Any, names: list[str], feeds: dict[str, Any]) -> list[Any]:
    try:
        outputs: list[Any] = session.run(names, feeds)
    except ORT_ERRORS as error:
        raise RunnerError(f"the model refused its input: {_one_line(error)}") from error
    return outputs


def _check_runtime(minimum: str) -> None:
    installed = onnxruntime.__version__
    if [int(part) for part in installed.split(".")[:2]] < [
        int(part) for part in minimum.split(".")
    ]:
        raise RunnerError(f"the model needs onnxruntime {minimum} or newer, this is {installed}")


def _check_rows(rows: Any, info: dict[str, Any]) -> None:
    """Refuse rows of another dtype or shape, saying what the model takes."""
    shape = ["rows", *info["shape"][1:]]
    dtype = str(getattr(rows, "dtype", type(rows).__name__))
    found = list(getattr(rows, "shape", ()))
    fixed = [at for at, axis in enumerate(shape) if isinstance(axis, int)]
    fits = len(found) == len(shape) and all(found[at] == shape[at] for at in fixed)
    if dtype != info["dtype"] or not fits:
        takes = f"{info['dtype']} [{', '.join(str(axis) for axis in shape)}]"
        raise RunnerError(f"the model takes {takes}, got {dtype} {found}")


def _read(name: str) -> bytes:
    try:
        return (FOLDER / name).read_bytes()
    except OSError as error:
        raise RunnerError(f"{FOLDER / name}: {error.strerror}") from error


def _text(record: object) -> bytes:
    """The canonical text that the manifest was written as."""
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _load_rows(path: Path) -> Any:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise RunnerError(f"{path} cannot be read as a .npy file: {_one_line(error)}") from error


def _write(prediction: Prediction, file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "label", "label_index", "probability"])
    for row, label in enumerate(prediction.label):
        writer.writerow([row, label, prediction.label_index[row], prediction.probability[row]])


def _save(prediction: Prediction, output: Path | None) -> None:
    """Write CSV to stdout, or to a file that appears whole."""
    if output is None:
        with os.fdopen(os.dup(1), "w", encoding="utf-8", newline="") as file:
            _write(prediction, file)
        return
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            _write(prediction, file)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="runner", description="Run the model of this folder.")
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser("selftest", help="run the golden rows and compare")
    answer = commands.add_parser("predict", help="answer the rows of a .npy file, as CSV")
    answer.add_argument("rows", type=Path, metavar="ROWS.npy")
    answer.add_argument("--output", type=Path, metavar="OUT.csv", help="default: stdout")
    for command in (test, answer):
        command.add_argument("--provider", default="cpu", help="cpu, cuda, coreml, ...")
        command.add_argument("--threads", type=int, default=0, help="0: as ONNX Runtime likes")
    return parser.parse_args()


def main() -> int:
    """Run one command; 0 done, 1 failed, 2 usage."""
    arguments = _arguments()
    options: dict[str, Any] = {"provider": arguments.provider, "threads": arguments.threads}
    try:
        if arguments.command == "selftest":
            worst = selftest(**options)
            sys.stdout.write(f"selftest: passed, largest difference {worst:.1e}\n")
        else:
            _save(predict(_load_rows(arguments.rows), **options), arguments.output)
    except RunnerError as error:
        sys.stderr.write(f"runner: {error}\n")
        return 1
    except BrokenPipeError:  # the reader of stdout has left, as `head` does
        return 141
    except OSError as error:
        output = getattr(arguments, "output", None) or "stdout"
        sys.stderr.write(f"runner: {output}: {error.strerror}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _forget_cache() -> None:
    """Take away the byte code that importing this file left: the folder stays as shipped."""
    cached = Path(globals().get("__cached__") or "")
    if cached.parent == FOLDER / "__pycache__" and (FOLDER / "manifest.json").exists():
        with contextlib.suppress(OSError):  # another version's byte code, or a read-only folder
            cached.unlink()
            cached.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
_forget_cache()
