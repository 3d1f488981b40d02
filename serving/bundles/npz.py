"""The arrays of golden.npz, of which nothing is unpacked that is not as it must be.

    GoldenFile(content, ["input", "logits"]).read("logits", "float32", [64, 10])

In a bundle this text is a part of its runner: see `runner_source`. Written for Python 3.9.
"""

from serving.bundles.integrity import RunnerError, one_line

# isort: split
import contextlib
import io
import math
import re
from collections.abc import Iterator
from typing import Any

PART = 2**20
"""The numbers that are compared at a time."""
MOST_UNPACKED = 2**30
"""The most bytes that an array of golden.npz, or a shared input, may take."""
DIRECTORY_BYTES = 2**20
"""The most that the directory of an archive may take: some thousand arrays."""
ARRAY = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]{0,200})\), \} *\n"
)
"""The header of a .npy as `np.save` writes it, which is not evaluated."""
LEAST_ANSWER = 0.01
"""What the largest golden answer counts as at least, for how far off a device may be."""
DECIDED = 10
"""How many times the largest golden answer that is for a classifier, whose classes must agree
besides: its golden rows are the most narrow ones, with the smallest scores."""


class GoldenFile:
    """A golden.npz, of which no array is unpacked that is not as it must be.

    Raises RunnerError, here and in `read`, for what `np.savez` does not write.
    """

    def __init__(self, content: bytes, names: "list[str]") -> None:
        import zipfile

        at = content.rfind(b"PK\5\6")
        size = int.from_bytes(content[at + 12 : at + 16], "little")
        if at < 0 or size > DIRECTORY_BYTES or content[at - 20 : at - 16] == b"PK\6\7":
            raise RunnerError("golden.npz is no archive of some arrays")
        with _unpacking():
            self.archive = zipfile.ZipFile(io.BytesIO(content))
        members = self.archive.infolist()
        held = sorted(one.filename[:-4] for one in members if one.filename.endswith(".npy"))
        if held != sorted(names) or len(held) != len(members):
            raise RunnerError(
                f"golden.npz holds {str(held)[:200]}, expected {str(sorted(names))[:200]}"
            )
        plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if any(one.flag_bits & 1 or one.compress_type not in plain for one in members):
            raise RunnerError("golden.npz is encrypted, or not compressed as ferry does it")

    def read(self, name: str, dtype: str, shape: "Any") -> Any:
        """The array of a name, if it has just that dtype and shape; a free axis is no number."""
        import numpy as np

        with _unpacking(), self.archive.open(f"{name}.npy") as file:
            start = file.read(10)
            text = file.read(int.from_bytes(start[8:], "little"))
            header = ARRAY.fullmatch(text) if start.startswith(b"\x93NUMPY\1\0") else None
            if not header:
                raise RunnerError(f"golden.npz: {name} is no array as ferry writes it")
            kind = np.dtype(header[1].decode())
            held = [int(axis) for axis in header[3].decode().replace(" ", "").split(",") if axis]
            said = "object" if kind.kind == "U" else kind.name
            fits = len(held) == len(shape) and all(
                axis == held[at] for at, axis in enumerate(shape) if isinstance(axis, int)
            )
            if said != dtype or not fits:
                raise RunnerError(
                    f"golden.npz: {name} is {said} {held}, expected {dtype} {list(shape)}"
                )
            size = math.prod(held) * kind.itemsize
            most = max(size, math.prod(held))
            whole = self.archive.getinfo(f"{name}.npy").file_size
            if most > MOST_UNPACKED or whole != len(start) + len(text) + size:
                raise RunnerError(
                    f"golden.npz: {name} is {said} {held} in {whole} bytes; {MOST_UNPACKED} may be"
                )
            data = file.read(size)
            flat = np.frombuffer(data, kind) if size else np.zeros(math.prod(held), kind)
        array = flat.reshape(held, order="F" if header[2] == b"True" else "C")
        return array.astype(kind.newbyteorder("="), order="C")


@contextlib.contextmanager
def _unpacking() -> "Iterator[None]":
    import zipfile
    import zlib

    broken = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError)
    try:
        yield
    except (*broken, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise RunnerError(f"golden.npz cannot be read: {one_line(error)}") from error


def refuse_lax(limit: float, shipped: "dict[str, Any]", decides: bool) -> None:
    """Raise RunnerError for a limit within which answers could be anything.

    It may be the largest golden answer: a device that answers nothing but 0 would pass then.
    """
    numbers = [one for one in shipped.values() if one.dtype.kind in "fiu" and one.size]
    largest = max([LEAST_ANSWER, *(max(-float(one.min()), float(one.max())) for one in numbers)])
    most = largest * (DECIDED if decides else 1)
    if limit > most:
        raise RunnerError(
            f"golden.max_abs_diff is {limit:.3e}, which any answer meets: at most {most:.3e} may be"
        )


def difference(expected: Any, found: Any) -> float:
    """The largest absolute difference of two arrays of one shape; infinite for texts and NaN."""
    import numpy as np

    if expected.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(expected.astype(str), found.astype(str)) else np.inf
    ours, theirs = expected.ravel(), found.ravel()
    worst = [0.0]
    for at in range(0, ours.size, PART):  # so that a large array is not there several times
        one, other = (each[at : at + PART].astype(np.float64) for each in (ours, theirs))
        with np.errstate(all="ignore"):
            worst.append(float(np.abs(one - other).max()))
    return max(math.inf if math.isnan(one) else one for one in worst)
