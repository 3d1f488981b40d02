"""Run the model of this folder, with numpy and onnxruntime alone: copying the folder deploys it.

    python runner.py selftest
    python runner.py predict rows.npy --output out.csv        (or reviews.txt, or --output out.npz)

Every file's sha256 is checked against manifest.json before the model is loaded. From Python:

    import runner
    runner.predict(rows).label, runner.answers(rows)["probabilities"]
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import functools
import io
import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

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

GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
FOLDER = Path(__file__).resolve().parent
BATCH_ROWS = 32
# Two bytes times two weights of 127, as ONNX: kernels that overflow do not answer SUM.
PROBE = (
    "CAU6TAoYCgFhCgFiEgF5Ig1NYXRNdWxJbnRlZ2VyEgFwKg0IAggBEANCAWJKAn9/WhMKAWESDgoMCAISCAoCCAEKAggC"
    "YgkKAXkSBAoCCAZCBAoAEAo="
)
SUM = 2 * 255 * 127
FAULTS = "EPFail Fail InvalidArgument InvalidGraph InvalidProtobuf NotImplemented RuntimeException"
ORT_ERRORS = (RuntimeError, ValueError, *(getattr(ort_state, name) for name in FAULTS.split()))


class RunnerError(Exception):
    """What went wrong, in one line for a person."""


class Classification(NamedTuple):
    """The answer to some rows."""

    label: list[str]
    label_index: Any  # int64 [rows]
    probability: Any  # float32 [rows], of the label; its score where the model gives other scores
    probabilities: Any  # float32 [rows, classes], or scores


def check() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Compare every file with the manifest; return the manifest and the checked bytes.

    Raises RunnerError naming the first file that is not the one that was shipped.
    """
    text = _read("manifest.json")
    try:
        manifest: dict[str, Any] = json.loads(text)
        content = {name: value for name, value in manifest.items() if name != "digest"}
        digest = sha256(_text(content)).hexdigest()
        intact = _text(manifest) == text and digest == manifest["digest"]
        files = manifest["files"].items()
    except (ValueError, RecursionError, KeyError, AttributeError) as error:
        raise RunnerError("manifest.json was altered: it is no manifest any more") from error
    if not intact:
        raise RunnerError("manifest.json was altered: its digest is another")
    if outside := [name for name, _ in files if name.startswith("/") or ".." in name.split("/")]:
        raise RunnerError(f"manifest.json was altered: {outside[0]} is no file of this folder")
    contents = {name: _read(name) for name, _ in files}
    for name, info in files:
        if sha256(contents[name]).hexdigest() != info["sha256"]:
            raise RunnerError(f"{name} was altered: its sha256 is not the one in manifest.json")
    return manifest, contents


def answers(
    rows: Any, *, provider: str = "cpu", threads: int = 0, batch_rows: int = BATCH_ROWS
) -> dict[str, Any]:
    """Every output for `rows`, an array of the dtype and shape that the model takes: [rows, ...].

    `threads` 0 lets ONNX Runtime choose. Raises RunnerError when a file of the folder was altered,
    the rows do not fit, or `provider` does not run the model.
    """
    manifest, _, session = _opened(provider, threads)
    info, outputs = manifest["inputs"][0], manifest["outputs"]
    names = [output["name"] for output in outputs]
    _check_rows(rows, info)
    parts, size = [], info["shape"][0] if isinstance(info["shape"][0], int) else batch_rows
    for start in range(0, len(rows), size):
        # Numbers stay what they are; strings become Python's own.
        batch = rows[start : start + size].astype(info["dtype"], copy=False)
        try:
            shared = {one["info"]["name"]: _shared(one, len(batch)) for one in manifest["shared"]}
            found = [_table(one) for one in session.run(names, {info["name"]: batch, **shared})]
        except ORT_ERRORS as error:
            raise RunnerError(f"the model refused its input: {_one_line(error)}") from error
        for name, one in zip(names, found, strict=True):
            if one.ndim == 0 or len(one) != len(batch):
                raise RunnerError(f"output {name} has shape {list(one.shape)}, not one entry a row")
        parts.append(found)
    if not parts:
        shapes = [[at if isinstance(at, int) else 0 for at in o["shape"][1:]] for o in outputs]
        parts = [[np.zeros((0, *shapes[at]), o["dtype"]) for at, o in enumerate(outputs)]]
    return {name: np.concatenate([part[at] for part in parts]) for at, name in enumerate(names)}


def predict(
    rows: Any, *, provider: str = "cpu", threads: int = 0, batch_rows: int = BATCH_ROWS
) -> Classification:
    """Classify `rows` as `answers` runs them; RunnerError for a model without known scores."""
    found = answers(rows, provider=provider, threads=threads, batch_rows=batch_rows)
    return _classified(found, _opened(provider, threads)[0])


def selftest(*, provider: str = "cpu", threads: int = 0) -> float:
    """Run the golden rows and return the largest difference to the outputs that were shipped.

    Raises RunnerError when that is over the limit in the manifest, or a file was altered.
    """
    manifest, contents, _ = _opened(provider, threads)
    with np.load(io.BytesIO(contents["golden.npz"]), allow_pickle=False) as archive:
        golden = {name: archive[name] for name in archive.files}
    found = answers(golden["input"], provider=provider, threads=threads)
    # Not a number if one of the differences is not.
    worst = float(np.max([_difference(golden[name], found[name]) for name in found]))
    limit = manifest["golden"]["max_abs_diff"]
    if not worst <= limit:
        raise RunnerError(f"the golden outputs differ by {worst:.3e}, the limit is {limit:.3e}")
    return worst


def _shared(one: dict[str, Any], rows: int) -> Any:
    """The array of an input that is the same for all rows, for so many of them."""
    try:
        value = json.loads(one["value"])
    except ValueError:  # a text
        value = one["value"]
    values, axes = np.array(value, one["info"]["dtype"]), one["info"]["shape"]
    shape = [rows if at == one["rows_axis"] else axis for at, axis in enumerate(axes)]
    shape = [axis if isinstance(axis, int) else values.shape[at] for at, axis in enumerate(shape)]
    return np.broadcast_to(values, shape).copy()


def _table(value: Any) -> Any:
    """The scores of a ZipMap, a list of maps from each class, as an array of [rows, classes]."""
    if not isinstance(value, list):
        return value
    return np.array([list(row.values()) for row in value], np.float32)


def _classified(found: dict[str, Any], manifest: dict[str, Any]) -> Classification:
    classes = manifest["classes"]
    if not _is_classifier(classes):
        raise RunnerError(f"the model gives {', '.join(found)}, no known scores: use `answers`")
    scores = found[classes["scores"]["name"]].astype(np.float32)
    label_index = scores.argmax(axis=1).astype(np.int64)
    if classes["label"]:
        number = {value: at for at, value in enumerate(classes["values"])}
        said = [str(one) for one in found[classes["label"]["name"]].ravel().tolist()]
        if strange := set(said) - set(number):
            raise RunnerError(f"the model says {min(strange)!r}, which is none of its classes")
        label_index = np.array([number[one] for one in said], np.int64)
    names = [manifest["labels"][index] for index in label_index]
    return Classification(names, label_index, scores[np.arange(len(scores)), label_index], scores)


def _is_classifier(classes: dict[str, Any]) -> bool:
    return bool(classes["scores"] and (classes["values"] or not classes["label"]))


def _difference(expected: Any, found: Any) -> Any:
    if expected.dtype.kind == "U":
        return 0.0 if np.array_equal(expected, found.astype(str)) else np.inf
    return np.abs(expected.astype(np.float64) - found).max(initial=0.0)


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
        there = f"onnxruntime {onnxruntime.__version__} has {', '.join(sorted(known))}"
        raise RunnerError(f"provider {provider} is not there; {there}")
    options = _options(asked, threads)
    if asked == "CPUExecutionProvider":
        _check_kernels(manifest["needs"], options)
    if asked in GPU_PROVIDERS and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(None):  # it prints what it did not find
            onnxruntime.preload_dlls()
    # TF32 keeps ten bits of what it multiplies: no longer the model that was proven.
    exact = {"use_tf32": "0"} if asked == "CUDAExecutionProvider" else {}
    model, chosen = contents["model.onnx"], [(asked, exact)]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)
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


def _check_runtime(minimum: str) -> None:
    installed = onnxruntime.__version__
    if [int(n) for n in installed.split(".")[:2]] < [int(n) for n in minimum.split(".")]:
        raise RunnerError(f"the model needs onnxruntime {minimum} or newer, this is {installed}")


def _check_kernels(needs: list[str], options: Any) -> None:
    if not needs or os.environ.get("FERRY_ALLOW") in needs:
        return
    probe, cpu = base64.b64decode(PROBE), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(probe, options, providers=cpu)
    if session.run(None, {"a": np.full((1, 2), 255, np.uint8)})[0].item() != SUM:
        raise RunnerError(
            f"the model needs {needs[0]}, which this processor lacks: it would answer otherwise "
            f"than it was proven to; --allow {needs[0]} runs it all the same"
        )


def _check_rows(rows: Any, info: dict[str, Any]) -> None:
    shape = ["rows", *info["shape"][1:]]
    wanted = info["dtype"].replace("object", "string")
    dtype = str(getattr(rows, "dtype", type(rows).__name__))
    if dtype == "object" or dtype.startswith("<U"):
        dtype = "string"
    found = list(getattr(rows, "shape", ()))
    fixed = [at for at, axis in enumerate(shape) if isinstance(axis, int)]
    fits = len(found) == len(shape) and all(found[at] == shape[at] for at in fixed)
    if dtype != wanted or not fits:
        takes = f"{wanted} [{', '.join(str(axis) for axis in shape)}]"
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
        if path.suffix.lower() == ".txt":
            lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
            return np.array(lines if lines[-1] else lines[:-1], dtype=object)
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise RunnerError(f"{path} cannot be read: {_one_line(error)}") from error


def _columns(found: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """What `ferry predict` writes: label and score of a classifier, else every output."""
    classes = manifest["classes"]
    if _is_classifier(classes):
        label, label_index, score, _ = _classified(found, manifest)
        named = "probability" if classes["are_probabilities"] else "score"
        return {"label": label, "label_index": label_index, named: score}
    said = {classes["label"]["name"]: "label"} if classes["label"] else {}
    columns = {new: found[old].ravel() for old, new in said.items()}
    for name, values in found.items():
        if name not in said:
            columns[f"output_{name}" if name in columns else name] = values
    return columns


def _encoded(found: dict[str, Any], manifest: dict[str, Any], output: Path | None) -> bytes:
    """A .npz of every output; else CSV of a classifier's labels or, as JSON, of every output."""
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


def _save(content: bytes, output: Path | None) -> None:
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
    parser = argparse.ArgumentParser(prog="runner", description="Run the model of this folder.")
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser("selftest", help="run the golden rows and compare")
    answer = commands.add_parser("predict", help="answer the rows of a .npy or a .txt file")
    answer.add_argument("rows", type=Path, metavar="ROWS")
    answer.add_argument("--output", type=Path, help="a .csv, or a .npz of all outputs; else stdout")
    for command in (test, answer):
        command.add_argument("--provider", default="cpu", help="cpu, cuda, coreml, ...")
        command.add_argument("--threads", type=int, default=0, help="0: as ONNX Runtime likes")
        command.add_argument(
            "--allow", choices=["vnni"], help="run although the processor lacks it"
        )
    return parser.parse_args()


def main() -> int:
    """Run one command; 0 done, 1 failed, 2 usage."""
    arguments = _arguments()
    options = {"provider": arguments.provider, "threads": arguments.threads}
    if arguments.allow:
        os.environ["FERRY_ALLOW"] = arguments.allow
    try:
        if arguments.command == "selftest":
            worst = selftest(**options)
            sys.stdout.write(f"selftest: passed, largest difference {worst:.1e}\n")
        else:
            found, output = answers(_load_rows(arguments.rows), **options), arguments.output
            _save(_encoded(found, _opened(**options)[0], output), output)
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
