import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tiny_kinds import TEXTS, text_classifier

from serving.bench import bench, bench_in_subprocess, bench_providers
from serving.bench_report import BenchReport, SkippedProvider, as_table, report_from
from serving.cli import serving
from serving.errors import (
    FerryError,
    InputError,
    IntegrityError,
    MissingInputError,
    ModelError,
    ProviderError,
    UnknownNameError,
    UsageError,
)
from serving.feeds import fixed_batch, random_feeds, read_rows, row_feeds
from serving.files import dump_json, sha256_of_file
from serving.probe import probe
from serving.session import TensorInfo

QUICK = {"batch_sizes": (1, 4), "seconds": 0.02}
CPU = "CPUExecutionProvider"


@pytest.fixture
def model(tmp_path):
    content = tiny_onnx.linear(["batch", 16], tiny_onnx.UINT8)
    return tiny_onnx.write(tmp_path / "model.onnx", content)


@pytest.fixture
def fixed(tmp_path):
    return tiny_onnx.write(tmp_path / "fixed.onnx", tiny_onnx.linear([4, 16]))


def test_a_report_says_what_ran_where_and_how_fast(model):
    report = bench(model, **QUICK, threads=1)
    assert [row.batch_size for row in report.batches] == [1, 4]
    for row in report.batches:
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.num_calls >= 20
    assert report.proof.asked == CPU
    assert set(report.proof.nodes) == {CPU}
    assert report.share == 1
    assert report.threads == 1
    assert report.sha256 == sha256_of_file(model)
    assert report.file_bytes == model.stat().st_size
    assert report.session_ms > 0
    assert report.first_call_ms > 0
    assert report.peak_memory_bytes > 10 * 2**20


def test_throughput_and_latency_agree(model):
    row = bench(model, batch_sizes=(64,), seconds=0.05).timing(64)
    assert row.rows_per_second <= 64 / (row.p50_ms / 1000) * 1.5


def test_the_fastest_batch_and_a_batch_that_was_not_measured(model):
    report = bench(model, **QUICK)
    assert report.fastest.rows_per_second == max(r.rows_per_second for r in report.batches)
    assert report.timing(2) is None


def test_a_report_survives_json(model):
    report = bench(model, **QUICK)
    raw = json.loads(dump_json(report))
    assert report_from(raw) == report
    with pytest.raises(IntegrityError, match="lacks the key 'threads'"):
        report_from({key: value for key, value in raw.items() if key != "threads"})


@pytest.mark.parametrize("dtype", [tiny_onnx.FLOAT, tiny_onnx.UINT8, tiny_onnx.INT64])
def test_inputs_of_each_dtype_can_be_timed(tmp_path, dtype):
    path = tiny_onnx.write(tmp_path / "m.onnx", tiny_onnx.linear([None, 8], dtype))
    assert bench(path, batch_sizes=(2,), seconds=0.01).timing(2)


def test_a_fixed_batch_is_respected_and_the_others_say_why(fixed):
    report = bench(fixed, batch_sizes=(1, 4, 8), seconds=0.01)
    assert [row.batch_size for row in report.batches] == [4]
    assert [row.batch_size for row in report.skipped] == [1, 8]
    assert "batches of 4" in report.skipped[0].skipped


def test_a_fixed_batch_that_nobody_asked_for_is_named(fixed):
    with pytest.raises(InputError, match="batches of 4 and no other; ask for batch size 4"):
        bench(fixed, batch_sizes=(1, 8), seconds=0.01)


def test_another_free_axis_is_refused_by_name(tmp_path):
    content = tiny_onnx.linear(["batch", "length", 8])
    path = tiny_onnx.write(tmp_path / "m.onnx", content)
    with pytest.raises(InputError, match=r"axis 1 \(length\) of input 'inputs'"):
        bench(path, **QUICK)


@pytest.fixture
def of_text(tmp_path):
    return tiny_onnx.write(tmp_path / "text.onnx", text_classifier())


@pytest.fixture
def reviews(tmp_path):
    (tmp_path / "reviews.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    np.save(tmp_path / "reviews.npy", np.array(TEXTS))
    return tmp_path / "reviews.txt"


def test_text_is_refused(of_text):
    info = TensorInfo(name="sentences", dtype="object", shape=("batch",))
    with pytest.raises(InputError, match="'sentences' takes text"):
        random_feeds([info], 2)
    with pytest.raises(InputError, match="name a file of real rows with --rows"):
        bench(of_text, **QUICK)


@pytest.mark.parametrize("suffix", [".txt", ".npy"])
def test_real_rows_of_text_are_timed_and_named(of_text, reviews, suffix):
    report = bench(of_text, **QUICK, rows=reviews.with_suffix(suffix))
    assert [row.batch_size for row in report.batches] == [1, 4]
    assert report.rows == f"reviews{suffix}"
    assert f"rows of reviews{suffix}" in as_table([report])
    assert report_from(json.loads(dump_json(report))) == report


def test_the_first_rows_are_fed_over_again_to_fill_a_batch(reviews):
    info = TensorInfo(name="text", dtype="object", shape=("batch",))
    rows = read_rows(reviews, [info], Path("m.onnx"), 3)
    assert rows["text"].tolist() == TEXTS[:3]
    (batch,) = row_feeds([info], rows, 7).values()
    assert batch.tolist() == [*TEXTS[:3], *TEXTS[:3], TEXTS[0]]
    pixels = TensorInfo(name="pixels", dtype="uint8", shape=("n", 2))
    np.save(reviews.with_name("p.npy"), np.arange(6, dtype=np.uint8).reshape(3, 2))
    rows = read_rows(reviews.with_name("p.npy"), [pixels], Path("m.onnx"), 128)
    assert row_feeds([pixels], rows, 4)["pixels"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_rows_that_cannot_be_timed(model, of_text, reviews, tmp_path):
    with pytest.raises(InputError, match="which no line of text is"):
        bench(model, **QUICK, rows=reviews)
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"takes string \[rows\]"):
        bench(of_text, **QUICK, rows=tmp_path / "numbers.npy")
    with pytest.raises(InputError, match="rows for timing are"):
        bench(of_text, **QUICK, rows=of_text)
    with pytest.raises(MissingInputError, match=r"none\.txt is not there"):
        bench(of_text, **QUICK, rows=tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="line 1 is not UTF-8"):
        bench(of_text, **QUICK, rows=tmp_path / "latin.txt")


def test_real_rows_give_a_free_axis_its_length(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", tiny_onnx.linear(["batch", "length", 8]))
    np.save(tmp_path / "rows.npy", np.zeros((2, 5, 8), np.float32))
    assert bench(path, **QUICK, rows=tmp_path / "rows.npy").timing(4)


def test_rows_for_each_of_several_inputs(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", _of_two_inputs())
    with pytest.raises(InputError, match=r"axis 1 \(length\) of input 'words'"):
        bench(path, **QUICK)
    rows = tmp_path / "rows.npz"
    np.savez(rows, words=np.zeros((3, 5), np.float32), other=np.zeros((3, 1), np.float32))
    assert bench(path, **QUICK, rows=rows).timing(4)
    np.savez(rows, words=np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match="holds no array named 'other'; there are: words"):
        bench(path, **QUICK, rows=rows)
    np.savez(rows, words=np.zeros((3, 5), np.float32), other=np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match=r"takes float32 \[rows, 1\]"):
        bench(path, **QUICK, rows=rows)
    np.save(tmp_path / "rows.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match="has the inputs words, other; give its rows"):
        bench(path, **QUICK, rows=tmp_path / "rows.npy")


def _of_two_inputs():
    graph = helper.make_graph(
        [helper.make_node("Add", ["words", "other"], ["sums"])],
        "two-inputs",
        [
            helper.make_tensor_value_info("words", TensorProto.FLOAT, ["batch", "length"]),
            helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 1]),
        ],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["batch", "length"])],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def test_real_rows_reach_every_process(of_text, reviews, monkeypatch):
    monkeypatch.setenv("FERRY_BENCH_ROWS", "of somebody else")
    assert bench_in_subprocess(of_text, **QUICK, rows=reviews).rows == "reviews.txt"
    first, *_ = bench_providers(of_text, **QUICK, rows=reviews)
    assert first.rows == "reviews.txt"
    with pytest.raises(ModelError, match="with --rows"):
        bench_in_subprocess(of_text, **QUICK)


def test_a_batch_that_the_graph_cannot_take_is_a_row_with_its_reason(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", _reshaping_to_two_rows())
    report = bench(path, batch_sizes=(2, 3), seconds=0.01)
    assert [row.batch_size for row in report.batches] == [2]
    assert [row.batch_size for row in report.skipped] == [3]
    assert "refused its input" in report.skipped[0].skipped


def test_the_batch_that_does_not_run_may_come_first(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", _reshaping_to_two_rows())
    report = bench(path, batch_sizes=(3, 2), seconds=0.01)
    assert [row.batch_size for row in report.batches] == [2]


def test_a_model_that_runs_no_batch_asked_for_is_an_error(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", _reshaping_to_two_rows())
    with pytest.raises(InputError, match="refused its input"):
        bench(path, batch_sizes=(3, 5), seconds=0.01)


def _reshaping_to_two_rows():
    """A model that declares a free batch and reshapes to two rows inside."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["inputs", "shape"], ["outputs"])],
        "two-rows",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(np.array([2, 4], np.int64), "shape")],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def test_feeds_are_seeded_and_cover_the_range_of_their_dtype():
    infos = [
        TensorInfo(name="pixels", dtype="uint8", shape=("n", 32, 32, 3)),
        TensorInfo(name="tokens", dtype="int64", shape=("n", 16)),
        TensorInfo(name="table", dtype="float32", shape=("n", 7)),
        TensorInfo(name="scale", dtype="float16", shape=()),
    ]
    first, second = random_feeds(infos, 5), random_feeds(infos, 5)
    for info in infos:
        np.testing.assert_array_equal(first[info.name], second[info.name])
        assert first[info.name].dtype == info.dtype
    assert first["pixels"].shape == (5, 32, 32, 3)
    assert (first["pixels"].min(), first["pixels"].max()) == (0, 255)
    assert set(first["tokens"].ravel()) == {0, 1}
    assert first["scale"].shape == ()
    assert not np.array_equal(random_feeds(infos, 5, seed=2)["pixels"], first["pixels"])


def test_the_batch_is_free_when_one_input_says_so():
    table = TensorInfo(name="table", dtype="float32", shape=("n", 7))
    constant = TensorInfo(name="constant", dtype="float32", shape=(3, 7))
    assert fixed_batch([table, constant]) is None
    assert fixed_batch([constant]) == 3
    assert fixed_batch([]) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_sizes": ()}, "got none"),
        ({"batch_sizes": (1, 0)}, "got 0"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
    ],
)
def test_senseless_arguments_are_refused(model, arguments, words):
    with pytest.raises(UsageError, match=words):
        bench(model, **{**QUICK, **arguments})


def test_what_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match=r"nothing\.onnx is not there"):
        bench(tmp_path / "nothing.onnx", **QUICK)
    with pytest.raises(ModelError, match="cannot be loaded"):
        bench(tiny_onnx.write(tmp_path / "m.onnx", b"not a model"), **QUICK)


def test_a_provider_asked_for_by_name_runs_or_is_an_error(model):
    with pytest.raises(UnknownNameError, match="did you mean 'cuda'"):
        bench(model, provider="cdua", **QUICK)
    with pytest.raises(ProviderError):
        bench(model, provider="qnn", **QUICK)


def test_a_process_of_its_own_measures_the_same_model(model):
    report = bench_in_subprocess(model, **QUICK, threads=1)
    assert isinstance(report, BenchReport)
    assert report.sha256 == sha256_of_file(model)
    assert [row.batch_size for row in report.batches] == [1, 4]
    assert report.threads == 1


def test_a_process_of_its_own_holds_nothing_of_ours(model):
    ballast = np.ones(300 * 2**17)
    report = bench_in_subprocess(model, **QUICK)
    assert report.peak_memory_bytes < ballast.nbytes


def test_a_process_of_its_own_works_from_any_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    assert bench_in_subprocess(Path(model.name), **QUICK).model == model.name


def test_an_error_of_that_process_is_ours(tmp_path, model):
    with pytest.raises(ModelError, match=r"^.*nothing\.onnx is not there$"):
        bench_in_subprocess(tmp_path / "nothing.onnx", **QUICK)
    with pytest.raises(ProviderError, match="qnn is not part"):
        bench_in_subprocess(model, provider="qnn", **QUICK)
    with pytest.raises(UsageError, match="seconds"):
        bench_in_subprocess(model, batch_sizes=(1,), seconds=-1)


def test_all_providers_are_rows_and_those_that_cannot_run_say_why(model):
    rows = bench_providers(model, **QUICK, threads=1)
    assert isinstance(rows[0], BenchReport)
    assert rows[0].provider == "cpu"
    for row in rows[1:]:
        assert row.provider != "cpu"
        if isinstance(row, SkippedProvider):
            assert row.skipped


def test_all_providers_of_a_broken_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        bench_providers(tiny_onnx.write(tmp_path / "m.onnx", b"not a model"), **QUICK)


def test_the_probe_is_what_the_helper_makes_and_runs():
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["inputs", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["outputs"]),
        ],
        "probe",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [1, 4])],
        [
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight"),
            numpy_helper.from_array(np.zeros(4, np.float32), "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 13)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="ferry")
    assert made.SerializeToString(deterministic=True) == probe()
    assert len(probe()) < 500


def test_a_folder_that_is_no_bundle_is_refused(model, tmp_path):
    with pytest.raises(FerryError, match=r"manifest\.json"):
        bench(tmp_path, **QUICK)


def test_a_bundle_is_timed_as_the_model_in_it(bundle):
    report = bench(bundle, **QUICK)
    assert report.sha256 == sha256_of_file(bundle / "model.onnx")
    assert report.file_bytes == (bundle / "model.onnx").stat().st_size
    assert report.model == str(bundle)


def test_a_bundle_with_another_byte_is_not_timed(bundle):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        bench(bundle, **QUICK)


def test_a_library_that_writes_to_stdout_is_told(model, tmp_path, monkeypatch):
    """A provider's own libraries may print whatever they like there."""
    (tmp_path / "sitecustomize.py").write_text("print('Initialising device')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ProviderError, match="where JSON was due: Initialising device"):
        bench_in_subprocess(model, **QUICK)


def test_a_process_that_is_killed_is_told(model, tmp_path, monkeypatch):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match="on cpu was killed by signal 9"):
        bench_in_subprocess(model, **QUICK)


def run(*arguments):
    return CliRunner().invoke(serving, ["bench", *map(str, arguments)])


def test_the_command_prints_a_table(model):
    result = run(model, "--batch-size", 2, "--seconds", "0.01", "--threads", 1)
    assert result.exit_code == 0, result.output
    header, row = result.stdout.splitlines()[:2]
    assert header.split()[:2] == ["provider", "batch"]
    assert row.split()[:2] == ["cpu", "2"]
    assert f"nodes on {CPU}; threads 1; random inputs" in result.stdout


def test_the_command_takes_real_rows(of_text, reviews):
    result = run(of_text, "--batch-size", 2, "--seconds", "0.01", "--rows", reviews, "--json")
    assert json.loads(result.stdout)["rows"] == "reviews.txt"


def test_the_command_prints_json_and_nothing_else(model):
    result = run(model, "--batch-size", 2, "--seconds", "0.01", "--json")
    assert report_from(json.loads(result.stdout)).timing(2)


def test_the_command_measures_all_providers(model):
    result = run(model, "--batch-size", 1, "--seconds", "0.01", "--json", "--provider", "all")
    rows = json.loads(result.stdout)
    assert rows[0]["provider"] == "cpu"
    assert all("skipped" in row for row in rows)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [(("--provider", "nope"), 2), (("--provider", "qnn"), 1), (("--seconds", "0"), 2)],
)
def test_the_command_tells_mistakes_in_one_line(model, arguments, exit_code):
    result = run(model, *arguments)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_skipped_rows_are_in_the_table(fixed):
    report = bench(fixed, batch_sizes=(4, 8), seconds=0.01)
    text = as_table([report, SkippedProvider(provider="cuda", skipped="no card")])
    assert "cpu: batch 8 skipped: the model takes batches of 4" in text
    assert "cuda: skipped: no card" in text
    assert as_table([SkippedProvider(provider="cuda", skipped="no card")]).startswith("cuda")


def test_the_library_reads_no_torch():
    program = "import sys, serving.bench; print([m for m in sys.modules if m in ('torch', 'onnx')])"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )
    assert done.stdout.strip() == "[]"
