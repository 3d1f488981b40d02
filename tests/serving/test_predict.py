import csv
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_classifier import LABELS, classifier, expected_scores, images, profile
from tiny_kinds import (
    TEXTS,
    Copies,
    autoencoder,
    autoencoder_contents,
    errors,
    features,
    halved,
    passing,
    positive,
    table_classifier,
    text_contents,
)
from tiny_onnx import FLOAT

from serving.batch.predict import predict
from serving.batch.report import summary
from serving.batch.run import PredictOptions, as_text, dry_run
from serving.bundles.writing import write_profile
from serving.cli import serving
from serving.errors import InputError, OutputError, UsageError
from serving.runtime.session import Session, open_session
from serving.runtime.settings import SessionSettings


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """An array of 70 rows."""
    path = tmp_path / "rows.npy"
    np.save(path, images(70))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 12 images, of which 2 cannot be used."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, row in enumerate(images(10)):
        Image.fromarray(row[..., 0]).save(folder / f"{index:02}.png")
    (folder / "03-broken.png").write_bytes(b"\x89PNG nothing")
    Image.new("RGB", (9, 9)).save(folder / "05-colour.png")
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_is_answered_in_order(built_bundle: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    report = predict(built_bundle, [rows], output=output)
    written = read(output)
    expected = expected_scores(images(70))
    assert [row["id"] for row in written] == [f"{rows}:{index}" for index in range(70)]
    assert [int(row["label_index"]) for row in written] == expected.argmax(axis=1).tolist()
    assert [row["label"] for row in written] == [LABELS[i] for i in expected.argmax(axis=1)]
    found = [float(row["probability"]) for row in written]
    np.testing.assert_allclose(found, expected.max(axis=1), atol=1e-6)
    assert (report.rows, report.errors, report.errors_file) == (70, 0, None)
    assert report.model_sha256 == open_session(built_bundle / "model.onnx").sha256
    assert report.proof.share == 1
    assert report.rows_per_second == pytest.approx(report.rows / report.seconds)
    assert f"70 rows to {output}; " in summary(report)


@pytest.mark.parametrize("binding", [False, True])
def test_a_profile_changes_no_answer(bundle: Path, tmp_path: Path, binding: bool) -> None:
    np.save(tmp_path / "rows.npy", images(1000))
    plain = PredictOptions(threads=1, batch_rows=16, probabilities=True)
    predict(bundle, [tmp_path / "rows.npy"], output=tmp_path / "plain.csv", options=plain)
    settings = SessionSettings(threads=1, parallel=2, binding=binding)
    write_profile(bundle, profile(settings=settings))
    report = predict(
        bundle,
        [tmp_path / "rows.npy"],
        output=tmp_path / "tuned.csv",
        options=PredictOptions(probabilities=True),
    )
    assert (tmp_path / "tuned.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    assert report.profile == profile(settings=settings)
    assert "profile throughput: threads 1, parallel 2, " in summary(report)


def test_a_failure_among_batches_side_by_side_surfaces(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(bundle, profile(batch_size=2))
    np.save(tmp_path / "rows.npy", images(100))
    before = threading.active_count()

    def broken(self: Session, feeds: Mapping[str, np.ndarray]) -> object:
        if (feeds["images"] == images(100)[40]).all(axis=(1, 2, 3)).any():
            raise InputError("the model refused its input: row 40")
        return run(self, feeds)

    run = Session.run
    monkeypatch.setattr(Session, "run", broken)
    with pytest.raises(InputError, match="row 40"):
        predict(bundle, [tmp_path / "rows.npy"], output=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert threading.active_count() == before


def test_unreadable_images_are_listed_and_do_not_stop_the_run(
    model_file: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    report = predict(model_file, [folder], output=output, options=PredictOptions(batch_rows=4))
    assert (report.rows, report.errors) == (10, 2)
    assert [Path(row["id"]).name for row in read(output)] == [f"{i:02}.png" for i in range(10)]
    expected = expected_scores(images(10)).argmax(axis=1).tolist()
    assert [int(row["label_index"]) for row in read(output)] == expected
    assert report.errors_file == tmp_path / "out.csv.errors.jsonl"
    listed = [json.loads(line) for line in report.errors_file.read_text().splitlines()]
    assert listed == [
        {
            "id": str(folder / "03-broken.png"),
            "reason": "it is not an image, or not of a known format",
        },
        {
            "id": str(folder / "05-colour.png"),
            "reason": "it is 9x9 RGB, the model takes 5x4 L; --resize fits it",
        },
    ]
    assert "2 not read (see" in summary(report)


def test_what_a_folder_holds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, of all the chunks and of the processes that decode them."""
    (tmp_path / "tiny.onnx").write_bytes(classifier(3))
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        Image.new("RGBA", (9, 9), (200, 0, 0, 90)).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("hello")
    monkeypatch.setattr("serving.batch.run.CHUNK_ROWS", 1)
    monkeypatch.setattr("serving.batch.engine.PROCESSES_PAY", 1)
    options = PredictOptions(resize=True, workers=2, batch_rows=1)
    report = predict(tmp_path / "tiny.onnx", [folder], output=tmp_path / "out", options=options)
    assert capsys.readouterr().err == "images with transparent parts are read over white\n"
    reason = "it is not an image, or not of a known format"
    assert report.first_error == f"{folder}/notes.txt: {reason}"
    listed = f"1 not read (see {tmp_path}/out/_errors.jsonl, the first {report.first_error})"
    assert listed in summary(report)


def test_a_later_run_without_errors_takes_the_old_list_away(
    model_file: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    predict(model_file, [folder], output=output)
    (folder / "03-broken.png").unlink()
    again = PredictOptions(resize=True, overwrite=True)
    report = predict(model_file, [folder], output=output, options=again)
    assert (report.rows, report.errors) == (11, 0)
    assert not (tmp_path / "out.csv.errors.jsonl").exists()


def test_nothing_readable_is_a_failure_with_the_reasons(
    model_file: Path, folder: Path, tmp_path: Path
) -> None:
    for index in range(10):
        (folder / f"{index:02}.png").unlink()
    with pytest.raises(InputError, match=r"not one of 2 rows can be used: .*03-broken\.png: "):
        predict(model_file, [folder], output=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert len((tmp_path / "out.csv.errors.jsonl").read_text().splitlines()) == 2


def test_without_an_output_rows_go_to_stdout(
    model_file: Path, folder: Path, rows: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    report = predict(model_file, [rows, folder], output=None)
    out, err = capfdbinary.readouterr()
    assert len(list(csv.DictReader(out.decode().splitlines()))) == report.rows == 80
    message = err.decode().splitlines()
    assert len(message) == 2
    assert all(line.startswith("not read: ") for line in message)


def test_many_errors_do_not_flood_the_terminal(
    model_file: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for index in range(30):
        (folder / f"bad{index}.png").write_bytes(b"")
    predict(model_file, [folder], output=None)
    message = capfd.readouterr().err.splitlines()
    assert len(message) == 11
    assert message[-1] == "not read: 22 more"


def test_a_model_without_probabilities_writes_scores(tmp_path: Path, rows: Path) -> None:
    (tmp_path / "raw.onnx").write_bytes(classifier(outputs=("logits",), metadata={}))
    options = PredictOptions(probabilities=True)
    predict(tmp_path / "raw.onnx", [rows], output=tmp_path / "out.csv", options=options)
    (first, *_) = read(tmp_path / "out.csv")
    assert list(first) == ["id", "label", "label_index", "score", "score_0", "score_1", "score_2"]
    assert first["label"] == first["label_index"]


def test_texts_are_classified_line_by_line(tmp_path: Path, bundle_of: Copies) -> None:
    bundle_of(text_contents)
    (tmp_path / "reviews.txt").write_text("\n".join([*TEXTS, ""]), encoding="utf-8")
    report = predict(tmp_path / "tiny", [tmp_path / "reviews.txt"], output=tmp_path / "out.csv")
    assert (report.rows, report.errors) == (len(TEXTS), 0)
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", "label", "label_index", "probability"]
    assert [row["id"] for row in rows] == [f"{tmp_path}/reviews.txt:{i}" for i in range(5)]
    chance = positive(TEXTS)
    assert [row["label"] for row in rows][:2] == ["positive", "negative"]
    found = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(found, np.maximum(chance, 1 - chance), atol=1e-6)


def test_columns_of_a_table_are_classified(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(table_classifier())
    rows = features(40)
    lines = [",".join(map(str, row)) for row in rows[:, ::-1]]
    (tmp_path / "rows.csv").write_text("\n".join(["c,b,a", *lines[:20], "1,x,3", *lines[20:]]))
    options = PredictOptions(columns=("a", "b", "c"), probabilities=True)
    report = predict(
        tmp_path / "m.onnx",
        [tmp_path / "rows.csv"],
        output=tmp_path / "out.parquet",
        options=options,
    )
    assert (report.rows, report.errors) == (40, 1)
    predict(tmp_path / "m.onnx", [saved(tmp_path, rows)], output=tmp_path / "same.csv")
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    expected = [row["label"] for row in read(tmp_path / "same.csv")]
    assert found["label"].to_pylist() == expected
    assert found["id"][20].as_py().endswith("rows.csv:21")
    (line,) = (tmp_path / "out.parquet.errors.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "line 22: column 'b' is 'x', not a number"


def saved(tmp_path: Path, rows: np.ndarray) -> Path:
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_reconstruction_is_written_with_its_error(
    tmp_path: Path, bundle_of: Copies, form: str
) -> None:
    bundle_of(autoencoder_contents)
    rows = images(40)
    output = tmp_path / f"out.{form}"
    predict(tmp_path / "tiny", [saved(tmp_path, rows)], output=output)
    if form == "csv":
        found = [
            row | {"reconstruction": json.loads(row["reconstruction"])} for row in read(output)
        ]
    elif form == "jsonl":
        found = [json.loads(line) for line in output.read_text().splitlines()]
        assert np.shape(found[0]["reconstruction"]) == (4, 5, 1)
    else:
        found = pyarrow.parquet.read_table(output).to_pylist()
    assert list(found[0]) == ["id", "error", "reconstruction"]
    np.testing.assert_allclose([float(row["error"]) for row in found], errors(rows), atol=1e-6)
    pixels = np.array([row["reconstruction"] for row in found]).reshape(rows.shape)
    np.testing.assert_allclose(pixels, halved(rows), atol=1e-6)


def test_probabilities_of_what_has_none(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(autoencoder())
    with pytest.raises(UsageError, match="--probabilities is for classifiers"):
        predict(
            tmp_path / "m.onnx",
            [saved(tmp_path, images(2))],
            output=tmp_path / "out.csv",
            options=PredictOptions(probabilities=True),
        )


def test_a_row_that_gives_no_number_has_no_label(tmp_path: Path) -> None:
    (tmp_path / "same.onnx").write_bytes(passing(FLOAT, ["n", 2]))
    np.save(tmp_path / "rows.npy", np.array([[1, 2], [np.nan, 1], [4, 3]], np.float32))
    report = predict(
        tmp_path / "same.onnx",
        [tmp_path / "rows.npy"],
        output=tmp_path / "out.csv",
        options=PredictOptions(task="classification"),
    )
    assert [row["label"] for row in read(tmp_path / "out.csv")] == ["1", "0"]
    assert report.errors_file is not None
    (line,) = report.errors_file.read_text().splitlines()
    assert json.loads(line)["id"].endswith("rows.npy:1")


def test_an_output_that_is_a_link_to_itself_is_replaced(
    model_file: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    output.symlink_to("out.csv")
    predict(model_file, [rows], output=output)
    assert output.read_text().startswith("id,label,")


def test_there_must_be_an_input(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no input"):
        predict(model_file, [], output=tmp_path / "out.csv")


def test_memory_does_not_grow_with_the_input(bundle: Path, tmp_path: Path) -> None:
    """Six times the rows, and no list of six times the length is ever held."""
    import tracemalloc

    write_profile(bundle, profile())
    peaks = []
    for rows in (10_000, 60_000):
        np.save(tmp_path / "rows.npy", images(rows))
        tracemalloc.start()
        options = PredictOptions(overwrite=True)
        predict(bundle, [tmp_path / "rows.npy"], output=tmp_path / "out.csv", options=options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5


def test_the_first_rows_and_the_plan(model_file: Path, folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    options = PredictOptions(workers=2, batch_rows=16)
    shown = dry_run(model_file, [folder], tmp_path / "out.parquet", options)
    assert sorted(tmp_path.rglob("*")) == before
    assert (shown.rows, shown.workers, shown.batch_rows, shown.format) == (12, 2, 16, "parquet")
    names = ["00.png", "01.png", "02.png", "03-broken.png", "03.png"]
    assert [Path(row.id).name for row in shown.first] == names
    assert [row.readable for row in shown.first] == [True, True, True, False, True]
    assert shown.first[0].text.startswith("uint8 [4, 5, 1], ")
    text = as_text(shown)
    assert "12 rows in batches of 16, 2 at a time, on cpu" in text
    assert "03-broken.png  not read: it is not an image" in text


def test_what_is_done_already_is_told(model_file: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    predict(model_file, [folder], output=output)
    assert "10 rows are there already" in as_text(
        dry_run(model_file, [folder], output, PredictOptions())
    )
    with pytest.raises(OutputError, match="other inputs"):
        dry_run(model_file, [folder / "00.png"], output, PredictOptions())
    again = PredictOptions(overwrite=True)
    assert dry_run(model_file, [folder / "00.png"], output, again).done_rows == 0
    assert output.exists()


def test_the_command(model_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", images(3))
    arguments = ["predict", str(model_file), str(tmp_path / "rows.npy"), "--dry-run"]
    result = CliRunner().invoke(serving, arguments)
    assert result.exit_code == 0, result.output
    assert "to stdout as csv" in result.stdout
    result = CliRunner().invoke(serving, [*arguments, "--json", "--limit", "2"])
    shown = json.loads(result.stdout)
    assert (shown["rows"], shown["output"], shown["done_rows"]) == (2, None, 0)
