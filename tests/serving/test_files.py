"""Files that are whole or absent, in what can happen to a process that writes them."""

import json
import math
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InputError, IntegrityError, MissingInputError
from serving.files import (
    atomic_write,
    blaming,
    building,
    csv_text,
    drop_abandoned,
    dump_json,
    read_json,
    read_record,
    require,
    sha256_of_bytes,
    sha256_of_file,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Inner:
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outer:
    zulu: str
    alpha: Inner
    path: Path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file with something in it, alone in its folder."""
    path = tmp_path / "folder" / "target.bin"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def alone(target: Path) -> bool:
    """Whether nothing lies beside the file, hidden or not."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_what_may_never_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.json")
    for read in (read_json, lambda path: require(path, "ferry parity")):
        with pytest.raises(InputError, match=r"report\.json is a pipe or a device, not a file"):
            read(tmp_path / "report.json")


def test_the_content_replaces_what_was_there(target: Path) -> None:
    with atomic_write(target) as file:
        file.write(b"ne")
        assert target.read_bytes() == b"old"
        file.write(b"w")
    assert target.read_bytes() == b"new"
    assert alone(target)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), OSError("x")]
)
def test_an_exception_keeps_the_old_file(target: Path, error: BaseException) -> None:
    def write() -> None:
        with atomic_write(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert target.read_bytes() == b"old"
    assert alone(target)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"")
        assert os.umask(umask) == umask, "the mask itself is left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_a_kill_in_the_middle_leaves_the_old_file(target: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from serving.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, str(target)).returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert not alone(target)
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new", "what the killed process left is in nobody's way"
    assert alone(target), "and is not left for ever"


def test_a_full_disk_names_the_target(target: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from serving.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_bytes(Path(sys.argv[1]), bytes(100_000))
except OSError as error:
    print(error.errno, error.filename, error.strerror, sep="|")
"""
    assert hasattr(resource, "RLIMIT_FSIZE")
    done = run(code, str(target))
    number, name, reason = done.stdout.strip().split("|")
    assert os.strerror(int(number)) == reason
    assert name == str(target)
    assert target.read_bytes() == b"old"
    assert alone(target)


def test_a_folder_that_cannot_be_made(target: Path) -> None:
    with pytest.raises(OSError, match=r"target\.bin"):
        write_bytes(target / "below" / "a-file", b"")


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "here" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_bytes(folder, b"")
    assert alone(folder)


def test_two_writers_do_not_meet(target: Path) -> None:
    with atomic_write(target) as first, atomic_write(target) as second:
        first.write(b"first")
        second.write(b"second")
    assert target.read_bytes() == b"first", "the one that ends last stands, whole"
    assert alone(target)


def test_what_a_living_writer_writes_is_not_taken_for_abandoned(target: Path) -> None:
    code = """
import sys
from pathlib import Path
from serving.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    print(flush=True)
    file.write(sys.stdin.buffer.read())
"""
    command = [sys.executable, "-c", code, str(target)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as other:
        assert other.stdout
        other.stdout.readline()
        write_bytes(target, b"ours")
        other.communicate(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert alone(target)


def test_many_writers_of_one_file_leave_nothing(target: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len([*pool.map(lambda n: write_bytes(target, b"%d" % n), range(400))]) == 400
    assert target.read_bytes().isdigit()
    assert alone(target)


def test_a_folder_that_is_swept_before_it_is_locked_gets_another_name(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, swept = Path.mkdir, list[bool]()

    def make_and_sweep(path: Path) -> None:
        make(path)
        if not swept:
            swept.append(drop_abandoned(path))

    monkeypatch.setattr(Path, "mkdir", make_and_sweep)
    with building(target, folder=True) as (path, _):
        assert path.is_dir()
    assert swept == [True]
    assert alone(target)


def test_all_that_writers_killed_together_left_is_removed(target: Path) -> None:
    for number in range(3):
        target.with_name(f".target.bin.{number:08}.tmp").touch()
    write_bytes(target, b"new")
    assert alone(target)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_another_put_at_the_temporary_name_is_not_written_through(
    target: Path, tmp_path: Path, kind: str
) -> None:
    there, elsewhere = target.with_name(".target.bin.00000000.tmp"), tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    match kind:
        case "link":
            there.symlink_to(elsewhere)
        case "fifo":
            os.mkfifo(there)
        case _:
            there.mkdir()
    write_bytes(target, b"new")
    assert (target.read_bytes(), elsewhere.read_bytes()) == (b"new", b"mine")


def test_a_folder_that_cannot_be_written_is_told_by_the_name_of_the_target(target: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from serving.files import blaming, building, write_bytes
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
try:
    write_bytes(Path("target.bin"), b"")
except OSError as error:
    print(error.filename)
try:
    with blaming(Path("bundle")), building(Path("bundle"), folder=True):
        pass
except OSError as error:
    print(error.filename)
"""
    target.parent.chmod(0o555)
    assert run(code, str(target.parent)).stdout == "target.bin\nbundle\n"


def test_what_cannot_be_written_in_a_new_folder_is_told_by_the_name_of_the_target(
    tmp_path: Path,
) -> None:
    def build() -> None:
        with blaming(tmp_path / "bundle"), building(tmp_path / "bundle", folder=True) as (new, _):
            (new / "model.onnx").mkdir()
            (new / "model.onnx").write_bytes(b"")

    with pytest.raises(IsADirectoryError) as raised:
        build()
    assert raised.value.filename == str(tmp_path / "bundle")


def test_the_name_may_be_long(tmp_path: Path) -> None:
    name = "x" * 200
    write_bytes(tmp_path / name, b"1")
    assert (tmp_path / name).read_bytes() == b"1"


def test_json_is_canonical(tmp_path: Path) -> None:
    record = Outer("é", Inner((1.0, 0.5)), Path("a") / "b")
    text = dump_json(record)
    assert text == (
        '{\n  "zulu": "é",\n  "alpha": {\n    "values": [\n      1.0,\n      0.5\n    ]\n  },\n'
        '  "path": "a/b"\n}\n'
    )
    write_json(tmp_path / "r.json", record)
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == text
    assert read_json(tmp_path / "r.json") == json.loads(text)


def test_numpy_scalars_are_numbers() -> None:
    values = [np.float32(0.5), np.int64(3), np.bool_(True), np.float64(0.1)]
    assert json.loads(dump_json(values)) == [0.5, 3, True, 0.1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_json_cannot_hold_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "r.json", {"a": [value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", Inner, 1j])
def test_other_objects_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=f"cannot write {type(value).__name__} as JSON"):
        dump_json({"a": value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(JSON)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / f"{os.getpid()}.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{'a': 1}", b"[" * 100_000, b"[NaN]"])
def test_what_is_no_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"r\.json is not a JSON file: ") as caught:
        read_json(path)
    assert len(str(caught.value).splitlines()) == 1


def test_sums(tmp_path: Path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256_of_bytes(b"") == empty
    assert sha256_of_bytes(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223")
    path = tmp_path / "file"
    for content in (b"", b"abc", bytes(range(256)) * 5000):
        path.write_bytes(content)
        assert sha256_of_file(path) == sha256_of_bytes(content)


def test_require(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(MissingInputError) as caught:
        require(path, "ferry export mine")
    assert str(caught.value) == f"{path} is not there; `ferry export mine` makes it"
    path.touch()
    assert require(path, "ferry export mine") is path
    assert require(tmp_path, "x") == tmp_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    name: str
    axes: tuple[int | str | None, ...]
    parts: Mapping[str, Part]
    items: tuple[Part, ...]


GOOD = {
    "name": "a",
    "axes": ["batch", 3, None],
    "parts": {"p": {"size": 1}},
    "items": [{"size": 2.5}],
}


def test_a_record_comes_back_with_its_types() -> None:
    assert read_record(Whole, GOOD, "file") == Whole(
        name="a", axes=("batch", 3, None), parts={"p": Part(size=1)}, items=(Part(size=2.5),)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "file.name must be str, got 1"),
        ({"name": None}, "file.name must be str, got None"),
        ({"axes": [1.5]}, "file.axes[0] must be int or str or NoneType, got 1.5"),
        ({"axes": {}}, "file.axes must be a list, got {}"),
        ({"parts": [1]}, "file.parts must be a JSON object, got [1]"),
        ({"parts": {"p": 3}}, "file.parts.p must be a JSON object, got 3"),
        ({"items": [{"size": True}]}, "file.items[0].size must be float, got True"),
        ({"items": [{"size": 1, "more": 2}]}, "file.items[0] has an unknown key 'more'"),
        ({"items": [{}]}, "file.items[0] lacks the key 'size'"),
        ({"name": ["x" * 100]}, "..."),
    ],
)
def test_what_is_wrong_is_named_by_its_path(changes: dict[str, object], message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_record(Whole, GOOD | changes, "file")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 120


@dataclass(frozen=True)
class Chosen:
    kind: Literal["NaN", "infinity"]


def test_a_literal_text_is_one_of_its_words() -> None:
    assert read_record(Chosen, {"kind": "infinity"}, "file") == Chosen("infinity")
    for wrong in ("nan", 1, None):
        with pytest.raises(IntegrityError, match=r"file\.kind must be NaN or infinity"):
            read_record(Chosen, {"kind": wrong}, "file")


def test_a_table_has_an_empty_cell_where_nothing_is_known() -> None:
    assert csv_text(("a", "b"), [(0.25, None), ("x,y", 1)]) == 'a,b\n0.25,\n"x,y",1\n'
