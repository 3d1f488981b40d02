"""The model of a bundle, checked and then run with numpy and onnxruntime alone.

    golden(opened(folder=Path("bundles/mnist-cnn"))).worst

In a bundle this text is a part of its runner: see `runner_source`. Written for Python 3.9.
"""

from serving.bundles.integrity import FOLDER, RunnerError, check, one_line, whole_number
from serving.bundles.npz import MOST_UNPACKED, GoldenFile, difference, refuse_lax

# isort: split
import base64
import contextlib
import functools
import gc
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# ONNX Runtime reports its use by default; whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
BATCH_ROWS = 32
# Two bytes times two weights of 127, as ONNX: kernels that overflow do not answer SUM.
PROBE = (
    "CAU6TAoYCgFhCgFiEgF5Ig1NYXRNdWxJbnRlZ2VyEgFwKg0IAggBEANCAWJKAn9/WhMKAWESDgoMCAISCAoCCAEKAggC"
    "YgkKAXkSBAoCCAZCBAoAEAo="
)
SUM = 2 * 255 * 127
FAULTS = "EPFail Fail InvalidArgument InvalidGraph InvalidProtobuf NotImplemented RuntimeException"

WATCHER: "dict[str, Any]" = {}
"""The pipe to the process that watches this one, and when it is told next."""
np: Any = None
onnxruntime: Any = None
ORT_ERRORS: tuple[type[Exception], ...] = ()
"""All three are set by `import_runtime`."""


class Classification(NamedTuple):
    """The answer to some rows."""

    label: list[str]
    label_index: Any  # int64 [rows]
    probability: Any  # float32 [rows], of the label; its score where the model gives other scores
    probabilities: Any  # float32 [rows, classes], or scores


class SelfTest(NamedTuple):
    """What the golden rows gave here."""

    worst: float  # the largest difference to the outputs that were shipped
    limit: float
    flips: int  # rows of another class than shipped
    rows: int

    @property
    def error(self) -> str:
        """What is wrong with it, or nothing."""
        if not self.worst <= self.limit:  # nor if it is not a number
            return f"the golden outputs differ by {self.worst:.3e}, the limit is {self.limit:.3e}"
        return f"{self.flips} of {self.rows} golden rows get another class" if self.flips else ""


class Opened(NamedTuple):
    """A folder that was checked, and the session of its model."""

    manifest: dict[str, Any]
    golden: bytes
    session: Any
    load_ms: float  # to check the folder, import the runtime and make the session


def answers(rows: Any, *, batch_rows: int = BATCH_ROWS, **how: Any) -> dict[str, Any]:
    """Every output for `rows`, an array of the dtype and shape that the model takes: [rows, ...].

    `how` is what `opened` takes. Raises RunnerError when a file of the folder was altered, the rows
    do not fit, or the provider does not run the model.
    """
    return answers_of(opened(**how), rows, batch_rows)


def predict(rows: Any, *, batch_rows: int = BATCH_ROWS, **how: Any) -> Classification:
    """Classify `rows` as `answers` runs them; RunnerError for a model without known scores."""
    return classified(answers(rows, batch_rows=batch_rows, **how), opened(**how).manifest)


def selftest(**how: Any) -> SelfTest:
    """Run the golden rows and compare them with the outputs that were shipped.

    Raises RunnerError when a difference is over the limit in the manifest, when a row gets another
    class (golden rows are none that a correct device may decide otherwise), or a file was altered.
    """
    found = golden(opened(**how))
    if found.error:
        raise RunnerError(found.error)
    return found


@functools.lru_cache(maxsize=1)
def opened(
    *,
    provider: str = "cpu",
    threads: int = 0,
    folder: Path = FOLDER,
    key: "Path | str | None" = None,
    digest: "str | None" = None,
) -> Opened:
    """The folder, checked as `check` does, and its session, kept for the next call.

    `threads` 0 lets ONNX Runtime choose.
    """
    start = time.perf_counter()
    manifest, contents = check(folder, key, digest)
    import_runtime()
    session = _open(manifest, contents["model.onnx"], provider, threads)
    load_ms = 1000 * (time.perf_counter() - start)
    return Opened(manifest, contents["golden.npz"], session, load_ms)


def golden(one: Opened) -> SelfTest:
    """What the golden rows give here, whether that is good or not."""
    manifest, file, rows = one.manifest, *_golden_rows(one)
    found = answers_of(one, rows)
    shipped = {name: file.read(name, str(a.dtype), a.shape) for name, a in found.items()}
    decides, limit = is_classifier(manifest["classes"]), manifest["golden"]["max_abs_diff"]
    refuse_lax(limit, shipped, decides)
    worst = max(difference(shipped[name], found[name]) for name in found)
    flips = 0
    if decides:
        ours, theirs = (classified(each, manifest).label_index for each in (found, shipped))
        flips = int((ours != theirs).sum())
    return SelfTest(worst, limit, flips, len(rows))


def bench(one: Opened, *, seconds: float = 2.0, batch_size: int = 1) -> dict[str, Any]:
    """How quickly the model answers its golden rows here, and what that takes.

    Milliseconds of one call with a batch, the median and the 99th percentile by rank, after a
    warm-up; memory is the most that the process ever had, in MiB, or None where nobody counts it.
    """
    import platform

    _, rows = _golden_rows(one)
    size = one.manifest["inputs"][0]["shape"][0]
    size = size if isinstance(size, int) else batch_size
    places = [np.arange(at, at + size) % len(rows) for at in range(0, len(rows), size)]
    feeds = [_feeds(one.manifest, rows[place]) for place in places]
    with _running():
        first = _timed(one.session, feeds, 0.0)[0]
        _timed(one.session, feeds, seconds / 10)
        taken = sorted(_timed(one.session, feeds, seconds))
    p50, p99 = (1000 * taken[math.ceil(part * len(taken)) - 1] for part in (0.5, 0.99))
    found: dict[str, Any] = {
        "p50_ms": p50,
        "p99_ms": p99,
        "rows_per_second": size * len(taken) / sum(taken),
        "batch_size": size,
        "calls": len(taken),
        "load_ms": one.load_ms,
        "first_answer_ms": 1000 * first,
        "peak_memory_mib": _peak_memory_mib(),
    }
    found.update(provider=one.session.get_providers()[0], onnxruntime=onnxruntime.__version__)
    found.update(python=platform.python_version(), system=platform.platform())
    found.update(machine=platform.machine(), cores=os.cpu_count())
    return {**found, "digest": one.manifest["digest"]}


def _timed(session: Any, feeds: list[dict[str, Any]], seconds: float) -> list[float]:
    """The seconds of each call, one at least, until so many have passed."""
    taken: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while not taken or clock() < end:
        tick()
        feed = feeds[len(taken) % len(feeds)]
        start = clock()
        session.run(None, feed)
        taken.append(clock() - start)
    return taken


def _peak_memory_mib() -> "float | None":
    try:
        import resource
    except ImportError:  # on Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _golden_rows(one: Opened) -> "tuple[GoldenFile, Any]":
    """The file, and the rows in it."""
    info, rows = one.manifest["inputs"][0], one.manifest["golden"]["rows"]
    if rows < 1:
        raise RunnerError(f"golden.rows is {rows}, at least one is needed")
    file = GoldenFile(
        one.golden, ["input", *(output["name"] for output in one.manifest["outputs"])]
    )
    return file, file.read("input", info["dtype"], [rows, *info["shape"][1:]])


def answers_of(one: Opened, rows: Any, batch_rows: int = BATCH_ROWS) -> dict[str, Any]:
    """Every output for `rows`, as `answers` gives it."""
    info, outputs = one.manifest["inputs"][0], one.manifest["outputs"]
    names = [output["name"] for output in outputs]
    _check_rows(rows, info)
    parts, size = [], info["shape"][0] if isinstance(info["shape"][0], int) else batch_rows
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        tick()
        with _running():
            found = one.session.run(names, _feeds(one.manifest, batch))
        parts.append([_table(each) for each in found])
        for at, each in enumerate(parts[-1]):
            if each.ndim == 0 or len(each) != len(batch):
                shape = list(each.shape)
                raise RunnerError(f"output {names[at]} has shape {shape}, not one entry a row")
    if not parts:
        shapes = [[at if isinstance(at, int) else 0 for at in o["shape"][1:]] for o in outputs]
        parts = [[np.zeros((0, *shapes[at]), o["dtype"]) for at, o in enumerate(outputs)]]
    try:
        return {name: np.concatenate([part[at] for part in parts]) for at, name in enumerate(names)}
    except ValueError as error:
        raise RunnerError(f"an output has another shape from batch to batch: {error}") from error


@contextlib.contextmanager
def _running() -> "Iterator[None]":
    try:
        yield
    except ORT_ERRORS as error:
        raise RunnerError(f"the model refused its input: {one_line(error)}") from error


def tick() -> None:
    """Tell the process that watches this one, once a second, that it goes on."""
    if WATCHER and (now := time.monotonic()) >= WATCHER["next"]:
        WATCHER["next"] = now + 1
        os.write(WATCHER["pipe"], b".")


def _feeds(manifest: dict[str, Any], batch: Any) -> dict[str, Any]:
    """What the session takes: numbers stay what they are; strings become Python's own."""
    info = manifest["inputs"][0]
    shared = {one["info"]["name"]: _shared(one, len(batch)) for one in manifest["shared"]}
    return {info["name"]: batch.astype(info["dtype"], copy=False), **shared}


def _shared(one: dict[str, Any], rows: int) -> Any:
    """The array of an input that is the same for all rows, for so many of them."""
    axes, most = one["info"]["shape"], f"at most {MOST_UNPACKED} numbers may be"
    try:
        value = json.loads(one["value"], parse_int=whole_number)
    except (ValueError, RecursionError):  # a text
        value = one["value"]
    try:
        values = np.array(value, one["info"]["dtype"])
        shape = [rows if at == one["rows_axis"] else axis for at, axis in enumerate(axes)]
        if values.ndim == len(axes):
            shape = [a if isinstance(a, int) else values.shape[at] for at, a in enumerate(shape)]
        if math.prod(shape) <= MOST_UNPACKED:
            return np.broadcast_to(values, shape).copy()
    except (ArithmeticError, TypeError, ValueError) as error:
        most = one_line(error)
    raise RunnerError(f"the shared value of {one['info']['name']} does not fit: {most}")


def _table(value: Any) -> Any:
    """The scores of a ZipMap, a list of maps from each class, as an array of [rows, classes]."""
    if isinstance(value, list):
        try:
            return np.array([list(row.values()) for row in value], np.float32)
        except (AttributeError, TypeError, ValueError) as error:
            raise RunnerError("the model answers a list that is no table of scores") from error
    if not hasattr(value, "ndim"):
        raise RunnerError("the model answers what is no array")
    return value


def classified(found: dict[str, Any], manifest: dict[str, Any]) -> Classification:
    """The class of each row of the outputs; RunnerError for a model without known scores."""
    classes = manifest["classes"]
    if not is_classifier(classes):
        raise RunnerError(f"the model gives {', '.join(found)}, no known scores: use `answers`")
    names, scores = manifest["labels"], found[classes["scores"]["name"]]
    if scores.dtype.kind != "f" or scores.shape[1:] != (len(names),):
        held = f"{scores.dtype} {list(scores.shape)}"
        raise RunnerError(f"the scores are {held}, which are none of {len(names)} classes")
    scores = scores.astype(np.float32)
    label_index = scores.argmax(axis=1).astype(np.int64)
    if classes["label"]:
        number = {value: at for at, value in enumerate(classes["values"][: len(names)])}
        said = [str(one) for one in found[classes["label"]["name"]].ravel().tolist()]
        if strange := set(said) - set(number):
            raise RunnerError(f"the model says {min(strange)!r}, which is none of its classes")
        label_index = np.array([number[one] for one in said], np.int64)
    labels = [names[index] for index in label_index]
    return Classification(labels, label_index, scores[np.arange(len(scores)), label_index], scores)


def is_classifier(classes: dict[str, Any]) -> bool:
    """Whether each row has a class and a score, by `classes` of the manifest."""
    return bool(classes["scores"] and (classes["values"] or not classes["label"]))


def _open(manifest: dict[str, Any], model: bytes, provider: str, threads: int) -> Any:
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
    chosen = [(asked, exact)]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    except ORT_ERRORS as error:
        raise RunnerError(f"{asked} does not run the model here: {one_line(error)}") from error
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


def import_runtime() -> None:
    """Import numpy and ONNX Runtime, once it is known that the folder has none of its own."""
    global np, onnxruntime, ORT_ERRORS  # noqa: PLW0603 - an import that comes after the check
    gc.disable()  # there is no garbage in what is imported
    try:
        import numpy as np
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as missing:
        if __name__ != "__main__":
            raise
        raise RunnerError(f"{missing}; pip install numpy onnxruntime") from missing
    finally:
        if __name__ == "__main__":
            gc.freeze()  # nor at the end
        gc.enable()
    ORT_ERRORS = (
        MemoryError,
        RuntimeError,
        ValueError,
        *(getattr(state, name) for name in FAULTS.split()),
    )
