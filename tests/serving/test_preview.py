"""`--dry-run` shows what a run would read, and touches nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_classifier import images

from serving.batch.predict import dry_run, predict
from serving.batch.run import PredictOptions, as_text
from serving.cli import serving
from serving.errors import OutputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, row in enumerate(images(10)):
        Image.fromarray(row[..., 0]).save(folder / f"{index}.png")
    (folder / "1.png").write_bytes(b"")
    return folder


def test_the_first_rows_and_the_plan(model_file: Path, folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    options = PredictOptions(workers=2, batch_rows=16)
    shown = dry_run(model_file, [folder], output=tmp_path / "out.parquet", options=options)
    assert sorted(tmp_path.rglob("*")) == before
    assert (shown.rows, shown.workers, shown.batch_rows, shown.format) == (10, 2, 16, "parquet")
    assert [Path(row.id).name for row in shown.first] == [f"{index}.png" for index in range(5)]
    assert [row.readable for row in shown.first] == [True, False, True, True, True]
    assert shown.first[0].message.startswith("uint8 [4, 5, 1], ")
    text = as_text(shown)
    assert "10 rows in batches of 16, 2 at a time, on cpu" in text
    assert "1.png  not read: it is empty" in text


def test_what_is_done_already_is_told(model_file: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    predict(model_file, [folder], output=output)
    assert "9 rows are there already" in as_text(dry_run(model_file, [folder], output=output))
    with pytest.raises(OutputError, match="other inputs"):
        dry_run(model_file, [folder / "0.png"], output=output)
    again = PredictOptions(overwrite=True)
    assert dry_run(model_file, [folder / "0.png"], output=output, options=again).done_rows == 0
    assert output.exists()


def test_the_command(model_file: Path, folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", images(3))
    arguments = ["predict", str(model_file), str(tmp_path / "rows.npy"), "--dry-run"]
    result = CliRunner().invoke(serving, arguments)
    assert result.exit_code == 0, result.output
    assert "to stdout as csv" in result.stdout
    result = CliRunner().invoke(serving, [*arguments, "--json", "--limit", "2"])
    shown = json.loads(result.stdout)
    assert (shown["rows"], shown["output"], shown["done_rows"]) == (2, None, 0)
