"""Lines and tables of lines as sources: from any row on, from files and from stdin."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from samples_of_rows import (
    FEATURES,
    IDS,
    IMAGES,
    MODEL,
    TEXT,
    as_stdin,
    batches,
    faults_of,
    rows_of,
    sha256,
)

from serving.errors import InputError
from serving.inputs.items import Source
from serving.inputs.lines import open_lines
from serving.inputs.stdin import open_stdin
from serving.inputs.tables import open_table

TEXTS = ["good", "", "naïve", " b ", "\u2028", "x,y", "7", "8", "9", "10", "last"]
CSV = 'id,text\n0,good\n1,\n\n2,naïve\n3,"two\nlines"\n4,a\n5\n6,b\n'
JSONL = '{"a": 1, "b": 2, "c": 3}\n\n{"a": 4, "b": 5, "c": "6"}\n[]\n{"a": 7, "b": 8, "c": 9.5}\n'


def lines(path: Path) -> Source:
    path.write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8-sig")
    return open_lines(path, TEXT, MODEL)


@pytest.mark.parametrize("start", [0, 4, 8, 11])
def test_the_lines_from_any_chunk_on(tmp_path: Path, start: int) -> None:
    source = lines(tmp_path / "rows.txt")
    made = batches(source, 4, start)
    assert [text for batch in made for text in batch.rows] == TEXTS[start:]
    assert all(batch.rows.dtype == object for batch in made)
    assert [one for batch in made for one in batch.ids] == [
        f"{tmp_path / 'rows.txt'}:{index}" for index in range(start, 11)
    ]


@pytest.mark.parametrize("start", [0, 2, 4, 6])
def test_the_records_from_any_chunk_on(tmp_path: Path, start: int) -> None:
    """A fault tells its line, however the file was cut."""
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    made = batches(open_table(path, TEXT, MODEL), 2, start)
    texts = ["good", "", "naïve", "two\nlines", "a", None, "b"]
    left = [text for text in texts[start:] if text is not None]
    assert [text for batch in made for text in batch.rows] == left
    message = [batch.unreadable for batch in made if batch.faults]
    assert [(one.id, one.reason) for (one,) in message] == (
        [(f"{path}:5", "line 9: it has 1 fields, the header has 2")] if start < 6 else []
    )


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_the_objects_from_any_chunk_on(tmp_path: Path, start: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(JSONL)
    made = batches(open_table(path, FEATURES, MODEL), 1, start)
    rows = [[1, 2, 3], [4, 5, 6], None, [7, 8, 9.5]]
    assert [batch.rows.tolist() for batch in made] == [[row] if row else [] for row in rows[start:]]
    if start <= 2:
        assert made[2 - start].faults == {0: "line 4: it is not a JSON object"}


def test_more_than_is_there_was_read_before(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.txt holds 11 rows, and 16 were read of it before"):
        batches(lines(tmp_path / "rows.txt"), 4, 16)


def test_what_comes_before_a_fault_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\na\nb\nc\n"never closed\n' + "x" * 200_000)
    chunks = open_table(path, TEXT, MODEL).chunks(2)
    assert [next(chunks).count, next(chunks).count] == [2, 1]
    with pytest.raises(InputError, match="line 6: field larger than field limit"):
        next(chunks)


def test_a_chunk_with_a_spoilt_row_gives_the_same_numbers(tmp_path: Path) -> None:
    """A chunk of good rows is read at once, one with a fault row by row."""
    rows = np.random.default_rng(1).normal(size=(8, 3)) * 1e3
    text = [",".join(map(repr, row.tolist())) for row in rows]
    for spoilt in ("x,1,2", "1,2", "1_0,2,3", "nan,2,3", "1e39,2,3"):
        (tmp_path / "rows.csv").write_text("\n".join(["a,b,c", *text, spoilt]))
        source = open_table(tmp_path / "rows.csv", FEATURES, MODEL)
        for size in (8, 16):
            np.testing.assert_array_equal(rows_of(source, size), rows.astype(np.float32))
            assert list(faults_of(source, size)) == [8]


def test_whole_numbers_beyond_the_53_bits_of_a_float(tmp_path: Path) -> None:
    big = 2**53 + 1
    for spoilt in ("", "1.5,1\n"):
        (tmp_path / "rows.csv").write_text(f"a,b\n{big},-{big}\n{spoilt}")
        rows = rows_of(open_table(tmp_path / "rows.csv", IDS, MODEL))
        assert rows.tolist() == [[big, -big]]


def test_the_fingerprint_tells_a_change(tmp_path: Path) -> None:
    source = lines(tmp_path / "rows.txt")
    before = source.fingerprint()
    assert before == source.fingerprint()
    (tmp_path / "rows.txt").write_text("other\n")
    assert source.fingerprint() not in (None, before)


# Stdin


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes | str, form: str, info=TEXT) -> Source:
    content = content.encode() if isinstance(content, str) else content
    monkeypatch.setattr("sys.stdin", as_stdin(content))
    return open_stdin(form, info, MODEL, (), resize=False)


def test_lines_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    source = piped(monkeypatch, content, "text")
    assert source.count is None
    assert source.fingerprint() is None
    chunks = list(source.chunks(4))
    assert [text for chunk in chunks for text in source.decode(chunk).rows] == TEXTS
    assert source.decode(chunks[1]).ids[0] == "stdin:4"
    ends = ["".join(f"{text}\n" for text in TEXTS[:end]).encode() for end in (4, 8, 11)]
    assert [chunk.digest for chunk in chunks] == [sha256(end) for end in ends]


def test_a_later_part_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(f"{text}\n" for text in TEXTS).encode()
    source = piped(monkeypatch, content, "text")
    (chunk,) = source.chunks(8, 8)
    assert source.decode(chunk).rows.tolist() == TEXTS[8:]
    assert chunk.digest == sha256(content)
    with pytest.raises(InputError, match="stdin holds 11 rows, and 12 were read of it before"):
        list(piped(monkeypatch, content, "text").chunks(4, 12))


def test_a_table_on_stdin_is_read_up_to_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a chunk is that of all lines up to its end, the header's as well."""
    source = piped(monkeypatch, CSV, "csv")
    chunks = list(source.chunks(4))
    assert [text for chunk in chunks for text in source.decode(chunk).rows] == [
        *("good", "", "naïve", "two\nlines", "a", "b"),
    ]
    assert source.decode(chunks[1]).faults == {1: "line 9: it has 1 fields, the header has 2"}
    end = CSV.index("4,a")
    assert [chunk.digest for chunk in chunks] == [
        sha256(CSV[:end].encode()),
        sha256(CSV.encode()),
    ]


def test_objects_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    source = piped(monkeypatch, JSONL, "jsonl", FEATURES)
    chunks = list(source.chunks(8))
    assert source.decode(chunks[0]).rows.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9.5]]
    assert chunks[0].digest == sha256(JSONL.encode())


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        ("", "text", "stdin holds no rows"),
        ("", "csv", "stdin is empty; its first line should name the columns"),
        ("text\n", "csv", "stdin holds no rows"),
        ("\n[]\n", "jsonl", "stdin: line 1 should be a JSON object"),
        ("a,b\n1,2\n", "csv", "stdin has the columns a, b; name the one with the text"),
    ],
)
def test_stdin_that_holds_nothing_to_read(
    monkeypatch: pytest.MonkeyPatch, content: str, form: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        list(piped(monkeypatch, content, form).chunks(4))
    assert message in str(caught.value)


def test_stdin_for_a_model_of_something_else() -> None:
    for form, message in (("text", "no line of text is"), ("csv", "no record is")):
        with pytest.raises(
            InputError, match=rf"^stdin: model\.onnx takes uint8 .*, which {message}"
        ):
            open_stdin(form, IMAGES, MODEL, (), resize=False)


@pytest.mark.parametrize(
    ("form", "sent"),
    [("text", b"a\nb\n"), ("csv", b"text\na\nb\n"), ("jsonl", b'{"text": "a"}\n{"text": "b"}\n')],
)
def test_rows_are_there_as_soon_as_they_came(
    monkeypatch: pytest.MonkeyPatch, form: str, sent: bytes
) -> None:
    """The writer's end stays open: whoever waited for more would wait for ever."""
    reading, writing = os.pipe()
    with open(reading, "rb") as file, open(writing, "wb", buffering=0) as pipe:  # noqa: PTH123
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=file))
        pipe.write(sent)
        source = open_stdin(form, TEXT, MODEL, (), resize=False)
        chunks = source.chunks(2)
        assert source.decode(next(chunks)).rows.tolist() == ["a", "b"]
        pipe.write(sent.splitlines(keepends=True)[-1])
        pipe.close()
        assert source.decode(next(chunks)).rows.tolist() == ["b"]
        assert next(chunks, None) is None


def test_stdin_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    content = io.BytesIO(b"a long review of a film\n" * 100_000)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=content))
    source = open_stdin("text", TEXT, MODEL, (), resize=False)
    tracemalloc.start()
    assert sum(len(source.decode(chunk).rows) for chunk in source.chunks(64)) == 100_000
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()
