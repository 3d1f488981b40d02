"""How near `ferry predict` comes to what the machine can do, beside the aims.

Run: python benchmarks/predicting.py [--publish docs/results] [packed|watched|csv|png|...]

Needs `dvc repro export@mnist-mlp export@mnist-cnn`; the images are made. Competing programs take
turns whose order is drawn from a seed, and the medians of the ratios of turns are quoted.
"""

import functools
import multiprocessing
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mobilenet
import numpy as np
import onnxruntime
from benching import Line, parser, show
from PIL import Image
from startup import COMPILED

from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.inputs.inputs import Inputs, open_inputs
from serving.inputs.sources import Chunk, ReadOptions, ReadTarget
from serving.inputs.tables import delimited
from serving.inputs.tables.delimited import open_csv
from serving.measuring.pairing import orders, ratio_of_turns
from serving.model import Model, open_model
from serving.runtime.cores import allowed_cores
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import TensorInfo

MLP, CNN = Path("models/mnist-mlp/model.onnx"), Path("models/mnist-cnn/model.onnx")
IMAGES = Path("data/ready/mnist/test_inputs.npy")
PHOTOS = Path("data/ready/cifar10/test_inputs.npy")
TURNS = 5


def main() -> None:
    """Print the table of aims."""
    arguments = parser(__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", choices=[*PARTS, []])
    given = arguments.parse_args()
    lines = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        for part in given.names or PARTS:
            for line in PARTS[part](Path(name)):
                print(f"{line.what}: {line.reached} (aim {line.aim})", flush=True)
                lines.append(line)
    show(lines, given.publish)


# Packed rows


def packed(folder: Path) -> Iterator[Line]:
    """A million rows against a bare loop over a session with as many threads."""
    for model, count in ((MLP, 1_000_000), (CNN, 100_000)):
        rows = repeated(folder / f"{count}.npy", count)
        for batch_rows in (32, 256):
            bare = functools.partial(bare_loop, model, rows, batch_rows)
            ours = functools.partial(written, model, rows, folder, batch_rows=batch_rows)
            ratio = turns(bare, ours)
            what = f"{model.parent.name}, {count:,} rows, batch {batch_rows}: rate over a bare loop"
            yield Line(what, f"{ratio:.2f}", "0.95, stretch 1.10", ratio >= 0.95)


def repeated(path: Path, count: int) -> Path:
    """The test images over and over."""
    images = np.load(IMAGES)
    rows = np.lib.format.open_memmap(path, "w+", images.dtype, (count, *images.shape[1:]))
    for start in range(0, count, len(images)):
        rows[start : start + len(images)] = images[: count - start]
    rows.flush()
    return path


def bare_loop(model: Path, rows: Path, batch_rows: int) -> None:
    """What one would write without ferry: no labels, no output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = allowed_cores()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    array = np.load(rows, mmap_mode="r")
    name = session.get_inputs()[0].name
    for start in range(0, len(array), batch_rows):
        session.run(None, {name: array[start : start + batch_rows]})


def written(model: Path, rows: Path, folder: Path, **settings: object) -> None:
    """Ferry, with its Parquet on the disk."""
    options = PredictOptions(overwrite=True, **settings)  # type: ignore[arg-type]
    predict(model, [rows], output=folder / "out.parquet", options=options)


def watched(folder: Path) -> Iterator[Line]:
    """A whole command, in a child that its parent watches, against the same without a parent."""
    rows = repeated(folder / "watched.npy", 2_000_000)
    alone = "from serving.cli import serving; serving(prog_name='ferry')"
    command = ["predict", str(MLP), str(rows), "-o", str(folder / "out.parquet"), "--overwrite"]

    def run(batch_rows: int, *words: str) -> None:
        whole = [sys.executable, *words, *command, "--batch-size", str(batch_rows)]
        subprocess.run(whole, check=True, capture_output=True)

    for batch_rows in (32, 256):
        without = functools.partial(run, batch_rows, "-c", alone)
        ratio = turns(without, functools.partial(run, batch_rows, "-m", "serving"))
        what = f"{MLP.parent.name}, 2,000,000 rows, batch {batch_rows}: rate watched over unwatched"
        yield Line(what, f"{ratio:.3f}", "0.95, own models 0.98", ratio >= 0.98)


# Tables


def csv(folder: Path) -> Iterator[Line]:
    """Numbers in blocks, which pyarrow reads, against the same ones record by record."""
    path = folder / "rows.csv"
    rows = np.random.default_rng(1).normal(size=(60_000, 10)).tolist()
    lines = (",".join(map(repr, row)) for row in rows)
    path.write_text("\n".join([",".join("abcdefghij"), *lines, ""]), encoding="utf-8")
    info = TensorInfo(name="features", dtype="float32", shape=("batch", 10))
    source = open_csv(path, ReadTarget(info, Path("model.onnx")))

    def read(first: int) -> None:
        delimited.FIRST_BYTES = first
        for chunk in source.chunks(1024):
            source.decode(chunk)

    read(0)  # imports pyarrow
    ratio = turns(functools.partial(read, 1 << 30), functools.partial(read, 0))
    yield Line(
        "60,000 x 10 floats of CSV: rate over the csv module", f"{ratio:.1f}", "5", ratio >= 5
    )


# Images


def png(folder: Path) -> Iterator[Line]:
    """A folder of small images."""
    images = np.load(IMAGES)
    source = folder / "png"
    source.mkdir()
    for index in range(50_000):
        Image.fromarray(images[index % len(images), ..., 0]).save(source / f"{index:05}.png")
    yield from decoded(CNN, source, folder, 2000)


def jpeg(folder: Path) -> Iterator[Line]:
    """A folder of larger ones, and a model of the size of a MobileNet."""
    photos = np.load(PHOTOS)
    source = folder / "jpeg"
    source.mkdir()
    for index in range(1_500):
        photo = Image.fromarray(photos[index]).resize((224, 224), Image.Resampling.BICUBIC)
        photo.save(source / f"{index:05}.jpg", quality=90)
    model = folder / "mobilenet.onnx"
    model.write_bytes(mobilenet.classifier())
    yield from decoded(model, source, folder, 200)


def decoded(model: Path, source: Path, folder: Path, sample: int) -> Iterator[Line]:
    """Beside the cores, which decode and infer and do nothing else, and a loop with Pillow."""
    cores, count = allowed_cores(), sum(1 for _ in source.iterdir())
    name = f"{count:,} {source.name}, {model.parent.name if model == CNN else model.stem}"
    with multiprocessing.get_context("spawn").Pool(cores, opened_there, (model, source)) as pool:
        shares = [(index, cores) for index in range(cores)]
        cores_alone = functools.partial(pool.map, decode_and_run, shares, 1)
        cores_alone()
        ratio = turns(cores_alone, functools.partial(written, model, source, folder))
    what = f"{name}: rate over that of cores that decode and infer alone"
    yield Line(what, f"{ratio:.2f}", "0.85", ratio >= 0.85)
    ours = timed(functools.partial(written, model, source, folder)) / count
    loop = timed(functools.partial(pillow_loop, model, source, sample)) / sample
    yield Line(f"{name}: over a Pillow loop", f"{loop / ours:.1f}", "5", loop / ours >= 5)


OPENED: list[tuple[Model, Inputs, list[Chunk]]] = []
"""What a process of the bound has ready before it is timed."""


def opened_there(model: Path, source: Path) -> None:
    """Make a process ready."""
    opened = open_model(model, settings=SessionSettings(threads=1))
    inputs = open_inputs([str(source)], opened, ReadOptions())
    OPENED.append((opened, inputs, list(inputs.sources[0].chunks(1024))))


def decode_and_run(share: tuple[int, int]) -> None:
    """Do every so many chunks, and throw the answers away."""
    model, inputs, chunks = OPENED[0]
    for chunk in chunks[share[0] :: share[1]]:
        model.predict(inputs.sources[0].decode(chunk).rows)


def pillow_loop(model: Path, source: Path, count: int) -> None:
    """What one would write at first: an image at a time."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    info = session.get_inputs()[0]
    for path in sorted(source.iterdir())[:count]:
        with Image.open(path) as image:
            row = np.asarray(image).reshape(1, *info.shape[1:])
        session.run(None, {info.name: row})


# Processes


def memory(folder: Path) -> Iterator[Line]:
    """The peak of ten million rows beside that of a thousand."""
    few, many = folder / "few.npy", folder / "many.npy"
    shape = np.load(IMAGES, mmap_mode="r").shape[1:]
    for path, count in ((few, 1_000), (many, 10_000_000)):
        # Never written: the file system keeps no block of it.
        np.lib.format.open_memmap(path, "w+", np.uint8, (count, *shape))
    peaks = [peak_mib(MLP, path, folder) for path in (few, many)]
    grown = peaks[1] - peaks[0]
    message = f"{grown:.0f} MiB ({peaks[1]:.0f} over {peaks[0]:.0f})"
    yield Line(
        "peak memory of 10,000,000 rows over that of 1,000", message, "400 MiB", grown <= 400
    )


def peak_mib(model: Path, rows: Path, folder: Path) -> float:
    """The most resident memory of `ferry predict` on some rows, as the kernel last told it."""
    output = folder / f"{rows.stem}.parquet"
    command = [sys.executable, "-m", "serving", "predict", str(model), str(rows), "-o", str(output)]
    quiet = subprocess.DEVNULL
    peak = 0
    with subprocess.Popen([*command, "--batch-size", "256"], stdout=quiet, stderr=quiet) as process:
        while process.poll() is None:
            # Not the usage that is told at the end: a child begins with the peak of its parent.
            status = watched_status(process.pid)
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            peak = int(found[1]) if found else peak
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return peak / 1024


def watched_status(parent: int) -> str:
    """What the kernel says of the child that a command watches; "" where it is not there yet."""
    try:
        child = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
        return Path(f"/proc/{child[0]}/status").read_text(encoding="utf-8")
    except (OSError, IndexError):
        return ""


BARE = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
rows = np.load(sys.argv[2])
print(session.run(None, {session.get_inputs()[0].name: rows})[0][0], flush=True)
"""


def cold(folder: Path) -> Iterator[Line]:
    """From starting a process to its first line."""
    rows = folder / "one.npy"
    np.save(rows, np.load(IMAGES)[:1])
    bare = [sys.executable, "-c", BARE, str(CNN), str(rows)]
    ours = [sys.executable, "-m", "serving", "predict", str(CNN), str(rows)]
    ratio = 1 / turns(functools.partial(first_line, bare), functools.partial(first_line, ours), 21)
    yield Line(
        "first row of a cold process over a bare script", f"{ratio:.2f}", "1.3", ratio <= 1.3
    )


def first_line(command: Sequence[str]) -> None:
    """Start a program and wait for its first line."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, env=COMPILED) as process:
        if process.stdout is None or not process.stdout.readline():
            raise SystemExit(f"{command} printed nothing")


CLUSTER = """
from serving.batch.engine import import_ray
ray = import_ray(None)
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


def ray(folder: Path) -> Iterator[Line]:
    """Whole commands with two actors, which start in each, against this machine's engine."""
    count = 1_000_000
    rows = repeated(folder / "ray.npy", count)
    ours = functools.partial(whole, rows, folder / "local.parquet")
    started = functools.partial(whole, rows, folder / "ray.parquet", "--engine", "ray")
    what = f"Ray, two actors, {CNN.parent.name}, {count:,} rows, batch 256: rate over this engine's"
    ratio = turns(ours, started)
    yield Line(f"{what}, start of the cluster included", f"{ratio:.2f}", "0.6", ratio >= 0.6)
    # Who joins a cluster has to know its token, and its own address as the cluster does.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(token, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        address = cluster.stdout.readline().strip() if cluster.stdout else ""
        ratio = turns(ours, functools.partial(started, "--ray-address", address))
        cluster.communicate("\n")
    yield Line(f"{what}, on a cluster that runs", f"{ratio:.2f}", "0.8", ratio >= 0.8)


def whole(rows: Path, output: Path, *words: str) -> None:
    """A command from its start to its end."""
    command = [sys.executable, "-m", "serving", "predict", str(CNN), str(rows), "-o", str(output)]
    command += ["--overwrite", "--batch-size", "256", "--workers", "2", *words]
    subprocess.run(command, check=True, capture_output=True)


def turns(first: Callable[[], None], second: Callable[[], None], count: int = TURNS) -> float:
    """How many times as fast the second one is: the median of the ratios of turns."""
    programs = {"first": first, "second": second}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for order in orders(list(programs), count, np.random.default_rng(1)):
        for name in order:
            taken[name].append(timed(programs[name]))
    return ratio_of_turns(taken["first"], taken["second"], seed=1).median


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


PARTS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "packed": packed,
    "watched": watched,
    "csv": csv,
    "png": png,
    "jpeg": jpeg,
    "memory": memory,
    "cold": cold,
    "ray": ray,
}

if __name__ == "__main__":
    main()
