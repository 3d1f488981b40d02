"""Mutated files of rows, through every reader of `ferry predict`, in children.

Bytes of a good file are altered. Whatever comes of it must be an error of ferry's own or rows; and
where the reader could know that rows are not those of the file, it must say so. A line of text, a
row of an array and a record touch themselves alone, and a sum within the file guards all of it;
where a format has neither (pages of Parquet, JPEG), the numbers are not judged.
"""

import functools
import gzip
import io
import itertools
import json
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from cases import Case, Outcome, Task
from children import DIED, HUNG, RAISED, attempts
from pyarrow import ipc, parquet
from samples_of_rows import FEATURES, IMAGES, TEXT, target
from tiny_classifier import images
from tiny_images import encoded

from serving.errors import FerryError
from serving.inputs.inputs import Inputs, open_source
from serving.inputs.names import format_of_file
from serving.inputs.sources import InputRow
from serving.runtime.tensors import TensorInfo

MUTATIONS = 10_000
"""Of each file."""
PER_CASE = 1000
SHORT = 8
COUNT, PIXELS = 12, 300
"""The rows of a table, and of an array of images."""
ODD = (
    b"\0",
    b"\xff",
    b'"',
    b"\n",
    b"\r",
    b",",
    b"}",
    b"-",
    b"e999",
    b"\xef\xbb\xbf",
    b"NaN",
    b"\x1f\x8b",
)
WRONG = "other rows, and nothing told"
FAULTS = {DIED: "deaths", HUNG: "hangs", RAISED: "tracebacks", WRONG: "lost"}
"""What an outcome counts, by how the word of an attempt begins."""
Span = tuple[int, int]
"""The first, and the one after the last."""
Touched = Callable[[bytes, Span], Span | None]
"""Which rows some bytes of a good file belong to; None where nothing tells."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A good file."""

    info: TensorInfo
    content: bytes
    touched: Touched


def cases(task: Task) -> Iterator[Case]:
    """So many mutations of each file at a time."""
    count = SHORT if task.short else task.count(MUTATIONS)
    for name, sample in samples().items():
        for start in range(0, count, PER_CASE):
            numbers = range(start, min(start + PER_CASE, count))
            run = functools.partial(mutated, task, name, sample, numbers)
            yield Case(f"{name} {start} to {numbers[-1]}", run, seconds=1800.0)


def samples() -> dict[str, Sample]:
    """A file of each format that `ferry predict` reads."""
    pixels = images(PIXELS)
    values = np.random.default_rng(5).normal(size=(COUNT, 3)).astype(np.float32)
    texts = [f"{'naïve, but ' * (at % 3)}good {at}" for at in range(COUNT)]
    pngs = [encoded(one, "PNG") for one in pixels[:COUNT]]
    csv = "a,b,c\n" + "".join(f"{a},{b},{c}\n" for a, b, c in values)
    quoted = "".join(f'"{a}";"{b}";"{c}"\n'.replace(".", ",") for a, b, c in values)
    json_lines = "".join(f"{json.dumps({'a': a, 'b': b, 'c': c})}\n" for a, b, c in values.tolist())
    lists = "".join(f"{json.dumps({'features': row})}\n" for row in values.tolist())
    text = "".join(f"{one}\n" for one in texts)
    records = "".join(f"{json.dumps({'text': one})}\n" for one in texts)
    zst = pa.compress(csv.encode(), "zstd", asbytes=True)
    idx = bytes([0, 0, 8, 4]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    idx += pixels.tobytes()
    numbers = pa.table({name: values[:, at] for at, name in enumerate("abc")})
    npy, npz, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, pixels)
    np.savez(npz, images=pixels)
    np.savez_compressed(packed, images=pixels)
    return {
        "rows.csv": Sample(FEATURES, csv.encode(), lines_below_header),
        "quoted.csv": Sample(FEATURES, f"a;b;c\n{quoted}".encode(), lines_below_header),
        "rows.csv.gz": Sample(FEATURES, gzip.compress(csv.encode()), summed),
        "rows.csv.zst": Sample(FEATURES, zst, unguarded),
        "rows.jsonl": Sample(FEATURES, json_lines.encode(), lines),
        "lists.jsonl": Sample(FEATURES, lists.encode(), lines),
        "rows.jsonl.gz": Sample(FEATURES, gzip.compress(lists.encode()), summed),
        "rows.txt": Sample(TEXT, text.encode(), lines),
        "rows.txt.gz": Sample(TEXT, gzip.compress(text.encode()), summed),
        "texts.jsonl": Sample(TEXT, records.encode(), lines),
        "rows.npy": Sample(IMAGES, npy.getvalue(), array),
        "rows.npz": Sample(IMAGES, npz.getvalue(), summed),
        "packed.npz": Sample(IMAGES, packed.getvalue(), summed),
        "rows-idx4-ubyte": Sample(IMAGES, idx, array),
        "rows-idx4-ubyte.gz": Sample(IMAGES, gzip.compress(idx), summed),
        "image.png": Sample(IMAGES, pngs[0], summed),
        "image.jpeg": Sample(IMAGES, encoded(pixels[0], "JPEG"), unguarded),
        "rows.tar": Sample(IMAGES, tar(pngs, "w"), summed),
        "rows.tar.gz": Sample(IMAGES, tar(pngs, "w:gz"), summed),
        "rows.parquet": Sample(FEATURES, in_parquet(numbers), unguarded),
        "images.parquet": Sample(IMAGES, in_parquet(pa.table({"image": pngs})), unguarded),
        "rows.arrow": Sample(FEATURES, in_arrow(numbers), unguarded),
        "images.arrow": Sample(IMAGES, in_arrow(pa.table({"image": pngs})), summed),
    }


def tar(contents: Sequence[bytes], mode: Literal["w", "w:gz"]) -> bytes:
    """Files of an archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for at, content in enumerate(contents):
            member = tarfile.TarInfo(f"{at:02}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def in_parquet(table: pa.Table) -> bytes:
    """A table with a sum in each page."""
    file = io.BytesIO()
    parquet.write_table(table, file, write_page_checksum=True, row_group_size=5)
    return file.getvalue()


def in_arrow(table: pa.Table) -> bytes:
    """A table as a file of Arrow."""
    file = io.BytesIO()
    with ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, 5)
    return file.getvalue()


# What may differ


def lines(content: bytes, at: Span) -> Span | None:
    """The lines of some bytes, and their neighbours."""
    return content[: at[0]].count(b"\n") - 1, content[: at[1]].count(b"\n") + 2


def lines_below_header(content: bytes, at: Span) -> Span | None:
    """The same where the first line names the columns."""
    head = content.index(b"\n") + 1
    return lines(content[head:], (at[0] - head, at[1] - head)) if at[0] >= head else None


def array(content: bytes, at: Span) -> Span | None:
    """The rows at the end of a file of rows of one size; its head tells what all of them are."""
    size = images(1).nbytes
    head = len(content) - PIXELS * size
    return ((at[0] - head) // size, (at[1] - head) // size + 1) if at[0] >= head else None


def summed(content: bytes, at: Span) -> Span | None:  # noqa: ARG001
    """None: sums within the file guard all of it."""
    return 0, 0


def unguarded(content: bytes, at: Span) -> Span | None:  # noqa: ARG001
    """Nothing tells."""
    return None


# Mutations


def mutated(task: Task, name: str, sample: Sample, numbers: Sequence[int]) -> Outcome:
    """Try mutations in children."""
    folder = task.scratch / name
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(sample.content)
    whole, _ = read(path, sample.info)

    def attempt(number: int) -> str:
        content, at = mutation(sample.content, f"{task.seed} {name} {number}")
        path.write_bytes(content)
        try:
            rows, told = read(path, sample.info)
        except FerryError as error:
            str(error).encode()  # whoever prints it must
            return "refused"
        if told:
            return "rows told"
        touched = sample.touched(sample.content, at)
        return "not judged" if touched is None else compared(whole, rows, touched)

    outcome = Outcome()
    for number, word in attempts(numbers, attempt):
        fault = next((count for start, count in FAULTS.items() if word.startswith(start)), None)
        counts: dict[str, Any] = {fault: 1} if fault else {"held": 1, "seen": {word: 1}}
        outcome += Outcome(**counts, notes=(f"{number}: {word}",) if fault else ())
    return outcome


def read(path: Path, info: TensorInfo) -> tuple[list[str], bool]:
    """The rows that can be read, and whether any cannot."""
    source = open_source(format_of_file(path.name) or "", [str(path)], target(info))
    items = list(Inputs((source,)))
    found = [repr(one.value.tolist()) for one in items if isinstance(one, InputRow)]
    return found, len(found) < len(items)


def compared(whole: Sequence[str], rows: Sequence[str], touched: Span) -> str:
    """Whether the rows before and after those that were touched are as they were."""
    before, after = alike(whole, rows), alike(whole[::-1], rows[::-1])
    if before == len(whole) == len(rows):
        return "the same rows"
    if before < touched[0] or len(whole) - after > touched[1]:
        return f"{WRONG}: {before} before, {after} after, of {len(rows)}; {touched} were touched"
    return "others where it was touched"


def alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many are alike from the first on."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def mutation(content: bytes, seed: str) -> tuple[bytes, Span]:
    """A place of the content altered, the same way each time."""
    chance = random.Random(seed)  # noqa: S311 - no secret is drawn
    at = chance.randrange(len(content))
    end = min(len(content), at + chance.choice((1, 1, 1, 2, 4, 32)))
    old = content[at:end]
    match chance.randrange(6):
        case 0:
            new = bytes([old[0] ^ 1 << chance.randrange(8)]) + old[1:]
        case 1:
            new = chance.randbytes(len(old))
        case 2:
            new = b""
        case 3:
            new = old + old
        case 4:
            new, end = b"", len(content)
        case _:
            new = chance.choice(ODD) + old[1:]
    return content[:at] + new + content[end:], (at, end)
