"""A damaged input among others: what it has lost is named once, and the run goes on with the next.

Whatever the run stopped in between.
"""

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from samples_of_rows import FEATURES, TEXT, as_stdin, target
from tiny_classifier import images
from tiny_images import encoded

from serving.batch.journal import read_journal
from serving.batch.predict import ShardedOutput, predict
from serving.batch.run import PredictOptions
from serving.errors import InputError
from serving.inputs.inputs import Inputs, open_source
from serving.inputs.names import format_of_file
from serving.inputs.sources import UnreadableRow

ONE = PredictOptions(workers=1, batch_rows=8)
ROWS = 3000


def tar_cut_short(path: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for index, pixels in enumerate(images(1500)):
            content = encoded(pixels, "PNG")
            member = tarfile.TarInfo(f"{index:05}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 8])
    return path


def npz_of_wrong_sum(path: Path) -> Path:
    np.savez_compressed(path, images=images(ROWS))
    with zipfile.ZipFile(path) as archive:
        (entry,) = archive.infolist()
    content = bytearray(path.read_bytes())
    content[entry.header_offset + entry.compress_size // 2] ^= 1
    path.write_bytes(content)
    return path


def npy_cut_short(path: Path) -> Path:
    np.save(path, images(ROWS))
    path.write_bytes(path.read_bytes()[:-1])
    return path


def tables(path: Path) -> pa.Table:
    cells = [row.tobytes() for row in images(ROWS)]
    return pa.table({"image": pa.array(cells, pa.binary(20))})


def parquet_of_a_spoilt_group(path: Path) -> Path:
    pyarrow.parquet.write_table(tables(path), path, row_group_size=1200, compression="snappy")
    place = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 400] = b"\xff" * 400
    path.write_bytes(content)
    return path


def arrow_stream_cut_short(path: Path) -> Path:
    table = tables(path)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, 1200)
    path.write_bytes(path.read_bytes()[:-20_000])
    return path


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "damaged.tar": (tar_cut_short, "is damaged after 13"),
    "damaged.tgz": (tar_cut_short, "is damaged after 1"),
    "damaged.npz": (npz_of_wrong_sum, "cannot be read to its end"),
    "damaged.npy": (npy_cut_short, "is not a .npy file that can be read"),
    "damaged.parquet": (parquet_of_a_spoilt_group, "cannot be read to its end"),
    "damaged.arrow": (arrow_stream_cut_short, "cannot be read to its end"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rest_is_named_once_and_the_next_input_is_read(
    model_file: Path,
    tmp_path: Path,
    name: str,
    cut_short: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, reason = CASES[name]
    damaged = make(tmp_path / name)
    np.save(tmp_path / "good.npy", images(2100))
    inputs = [damaged, tmp_path / "good.npy"]
    whole = predict(model_file, inputs, output=tmp_path / "whole.csv", options=ONE)
    assert whole.errors == 1
    listed = (tmp_path / "whole.csv.errors.jsonl").read_text()
    found = json.loads(listed)
    assert found["id"].startswith(str(damaged))
    assert reason in found["reason"]
    lines = (tmp_path / "whole.csv").read_text().splitlines()
    assert sum(line.startswith(f"{tmp_path}/good.npy:") for line in lines) == 2100
    monkeypatch.setattr("serving.batch.predict.SHARD_SECONDS", 0)
    for _ in range(3):
        cut_short[0] = 1
        with pytest.raises(RuntimeError, match="cut short"):
            predict(model_file, inputs, output=tmp_path / "out.csv", options=ONE)
    cut_short[0] = -1
    predict(model_file, inputs, output=tmp_path / "out.csv", options=ONE)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "out.csv.errors.jsonl").read_text() == listed


EMPTY = {
    "rows.npy": b"",
    "images-ubyte": b"\0\0\x08\x03\0\0\0\1\0\0\0\4\0\0\0\5",
    "rows.tar": b"",
    "rows.parquet": b"",
    "rows.jsonl": b"",
    "images.lst": b"\n",
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_file_without_rows_is_named(model_file: Path, tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "good.npy", images(11))
    (tmp_path / name).write_bytes(EMPTY[name])
    with pytest.raises(InputError, match=name):
        predict(model_file, [tmp_path / name], output=tmp_path / "out.csv")
    inputs = [tmp_path / name, tmp_path / "good.npy"]
    report = predict(model_file, inputs, output=tmp_path / "out.csv")
    assert (report.rows, report.errors) == (11, 1)
    assert report.first_error.startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.jsonl.gz", "rows.txt"])
def test_a_line_without_end_is_not_read_into_memory(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.inputs.text.MOST_LINE_BYTES", 1000)
    line = '{"a": 1, "b": 2, "c": 3}\n' if "jsonl" in name else "a,b,c\n1,2,3\n"
    content = (line + "1" * 5000).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = open_source(
        format_of_file(name) or "", [str(path)], target(TEXT if ".txt" in name else FEATURES)
    )
    *_, last = Inputs((source,))
    assert isinstance(last, UnreadableRow)
    assert "has a line of more than 1000 bytes" in last.reason


def test_many_columns_are_not_all_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",".join(f"c{at}" for at in range(100_000)) + "\n")
    with pytest.raises(InputError, match=r"c98, c99 and 99,900 more\); name 3 of them") as found:
        open_source("csv", [str(path)], target(FEATURES))
    assert len(str(found.value)) < 1000


def test_a_stream_after_a_damaged_input_goes_on(
    model_file: Path, tmp_path: Path, cut_short: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [arrow_stream_cut_short(tmp_path / "damaged.arrow"), "-"]
    content = io.BytesIO()
    np.save(content, images(1100))
    options = replace(ONE, input_format="npy")
    monkeypatch.setattr("serving.batch.predict.SHARD_SECONDS", 0)
    for _ in range(3):
        monkeypatch.setattr("sys.stdin", as_stdin(content.getvalue()))
        cut_short[0] = 1
        with pytest.raises(RuntimeError, match="cut short"):
            predict(model_file, inputs, output=tmp_path / "out.csv", options=options)
    cut_short[0] = -1
    monkeypatch.setattr("sys.stdin", as_stdin(content.getvalue()))
    report = predict(model_file, inputs, output=tmp_path / "out.csv", options=options)
    assert (report.rows, report.resumed_rows, report.errors) == (2124, 2048, 1)


def test_damage_counts_as_a_row_that_cannot_be_read(model_file: Path, tmp_path: Path) -> None:
    damaged = arrow_stream_cut_short(tmp_path / "damaged.arrow")
    strict = PredictOptions(workers=1, max_errors=0)
    with pytest.raises(
        InputError, match=r"1 rows cannot be read, --max-errors is 0, the first .*damaged"
    ):
        predict(model_file, [damaged], output=tmp_path / "out.csv", options=strict)
    with pytest.raises(InputError, match=r"damaged\.npy is not a \.npy file that can be read"):
        predict(model_file, [npy_cut_short(tmp_path / "damaged.npy")], output=tmp_path / "o.csv")


def test_a_file_that_is_cut_short_during_a_run_is_one_line(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, output = tmp_path / "rows.npy", tmp_path / "out.csv"
    np.save(rows, np.resize(images(1000), (30_000, 4, 5, 1)))
    take = ShardedOutput.take

    def cutting(self: ShardedOutput, *given: object) -> None:
        os.truncate(rows, 200)
        take(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardedOutput, "take", cutting)
    with pytest.raises(InputError, match=r"rows\.npy changed while it was read: it ends too early"):
        predict(model_file, [rows], output=output, options=ONE)
    journal = read_journal(tmp_path / "out.csv.parts" / "_manifest.jsonl")
    assert journal is not None
    assert journal.rows >= 1024
