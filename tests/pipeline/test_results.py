import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sample_metrics
from sample_metrics import details

from pipeline.config import layout
from pipeline.config.params import load
from pipeline.stages.page.results import NOTHING, as_table, publishable, read_results, results
from serving.errors import IntegrityError, MissingInputError, UnknownNameError
from serving.files import dump_json, write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture
def root(tmp_path):
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    return tmp_path


def alter(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def test_each_variant_of_what_has_run_is_a_row(params, root):
    rows = results(params, root=root).rows
    assert [(row.experiment, row.variant) for row in rows] == [
        ("mnist-cnn", "fp32"),
        ("mnist-cnn", "fp16"),
        ("mnist-cnn", "int8"),
    ]


def test_a_row_holds_the_figures_of_its_variant(params, root):
    row = results(params, root=root).rows[2]
    timings = sample_metrics.timings(0.6)
    assert row.provider == "cpu"
    assert row.accuracy == 0.995
    assert row.max_abs_diff == 9.0e-5
    assert row.flips == 2
    assert row.p50_ms == timings[0].p50_ms
    assert row.rows_per_second == max(timing.rows_per_second for timing in timings)
    assert row.best_batch == 128
    assert row.bytes == 61_000


def test_the_variant_in_the_bundle_is_the_one_that_ships(params, root):
    rows = results(params, root=root).rows
    assert [row.shipped for row in rows] == [False, False, True]
    assert [row.passed for row in rows] == [True, False, True]


def test_experiments_are_in_the_order_of_params_or_of_their_names(params, root):
    for name in ("mnist-mlp", "digits-mlp"):
        sample_metrics.write_all(root, name)
    names = list(dict.fromkeys(row.experiment for row in results(params, root=root).rows))
    assert names == [name for name in params.experiments if name in set(names)]
    assert len(names) == 3
    named = results(params, ("mnist-cnn", "digits-mlp"), root=root).rows
    assert list(dict.fromkeys(row.experiment for row in named)) == ["mnist-cnn", "digits-mlp"]


def test_a_named_experiment_that_has_not_run_says_what_runs_it(params, root):
    with pytest.raises(MissingInputError, match="dvc repro bundle@digits-mlp"):
        results(params, ("mnist-cnn", "digits-mlp"), root=root)


def test_settings_of_one_run_are_told_and_never_published(params, root):
    alter(details(root, "mnist-cnn", "train"), overrides={"train.lr": "0.1"})
    found = results(params, root=root)
    assert len(found.rows) == 3
    (line,) = found.left_out
    assert line.startswith("mnist-cnn: trained with --set train.lr=0.1; `ferry train mnist-cnn` ")
    with pytest.raises(MissingInputError, match=f"^{re.escape(line)}$"):
        publishable(params, ("mnist-cnn",), root=root)


def test_speeds_of_another_machine_are_left_out_and_told(params, root, monkeypatch):
    monkeypatch.setenv("FERRY_PROCESSOR", "another one")
    found = results(params, root=root)
    assert [row.accuracy for row in found.rows] == [0.995] * 3
    assert [row.shipped for row in found.rows] == [False, False, True]
    assert {(row.p50_ms, row.rows_per_second) for row in found.rows} == {(None, None)}
    (line,) = found.left_out
    assert line.startswith("mnist-cnn: its speeds were measured on another machine (")
    assert line.endswith("; `dvc repro bundle@mnist-cnn` measures them here")
    (published,) = publishable(params, root=root)
    assert published.speed is None
    assert {len(one.speedup) for one in published.variants.values()} == {0}


def test_a_misspelt_experiment_is_told_from_one_that_has_not_run(params, root):
    with pytest.raises(UnknownNameError, match="did you mean 'mnist-cnn'"):
        results(params, ("mnist-cn",), root=root)


def test_nothing_has_run(params, tmp_path):
    assert results(params, root=tmp_path).rows == ()
    assert as_table(()) == NOTHING
    assert "`dvc repro` runs them all" in NOTHING


def test_before_the_benchmark_there_are_rows_without_speed(params, root):
    (details(root, "mnist-cnn", "benchmark")).unlink()
    rows = results(params, root=root).rows
    assert [row.p50_ms for row in rows] == [None, None, None]
    assert [row.shipped for row in rows] == [False, False, False]
    assert as_table(rows).splitlines()[1].split()[-4:] == ["–", "–", "–", "no"]


def test_before_parity_there_is_no_row(params, root):
    (details(root, "mnist-cnn", "parity")).unlink()
    assert results(params, root=root).rows == ()


@pytest.mark.parametrize("stage", ["parity", "benchmark"])
def test_figures_of_other_weights_are_not_shown(params, root, stage):
    alter(details(root, "mnist-cnn", stage), weights_sha256="00" * 32)
    rows = results(params, root=root).rows
    if stage == "parity":
        assert rows == ()
    else:
        assert {row.p50_ms for row in rows} == {None}
    assert not any(row.shipped for row in rows)


@pytest.mark.parametrize("content", [None, b"another model"])
def test_a_variant_whose_file_is_another_one_is_left_out_with_a_line(params, root, content):
    path = root / layout.variant("mnist-cnn", "int8")
    path.unlink() if content is None else path.write_bytes(content)
    found = results(params, root=root)
    assert [row.variant for row in found.rows] == ["fp32", "fp16"]
    (line,) = found.left_out
    why = "is not there any more" if content is None else "is not the file that was measured"
    assert line == (
        f"mnist-cnn: models/mnist-cnn/quantized/model.int8.onnx {why}; "
        "`dvc repro bundle@mnist-cnn` makes and measures it anew"
    )


def test_without_the_exported_model_or_the_weights_nothing_is_shown(params, root):
    (root / layout.model("mnist-cnn")).unlink()
    found = results(params, root=root)
    assert found.rows == ()
    (root / layout.weights("mnist-cnn")).write_bytes(b"other weights")
    (line,) = results(params, root=root).left_out
    assert "model.safetensors is not the file that was measured" in line
    with pytest.raises(MissingInputError, match=r"model\.safetensors is not the file"):
        results(params, ("mnist-cnn",), root=root)


def test_speeds_of_another_file_are_not_shown(params, root):
    def other(found):
        return [one | {"sha256": "00" * 32} if one["subject"] == "int8" else one for one in found]

    alter_bench(details(root, "mnist-cnn", "benchmark"), other)
    rows = results(params, root=root).rows
    assert [row.p50_ms is None for row in rows] == [False, False, True]


@pytest.mark.parametrize("digest", [None, "00" * 32])
def test_a_bundle_that_is_not_there_did_not_ship(params, root, digest):
    path = root / layout.bundle("mnist-cnn") / "manifest.json"
    path.unlink() if digest is None else write_json(path, {"digest": digest})
    assert not any(row.shipped for row in results(params, root=root).rows)


def alter_bench(path, change):
    """Change the list of what was measured."""
    raw = json.loads(path.read_text())
    raw["bench"]["measured"] = change(raw["bench"]["measured"])
    write_json(path, raw)


def test_each_figure_is_that_of_its_best_thread_count(params, root):
    def quicker_alone(found):
        alone = found[1]
        assert (alone["subject"], alone["settings"]["threads"]) == ("fp32", 1)
        alone["rows"][0]["timing"]["p50_ms"] = 0.001
        return found

    alter_bench(details(root, "mnist-cnn", "benchmark"), quicker_alone)
    row = results(params, root=root).rows[0]
    assert row.p50_ms == 0.001
    assert row.rows_per_second == sample_metrics.timings(1.0, threads=2)[-1].rows_per_second


def test_without_batch_one_there_is_no_latency(params, root):
    def without(found):
        return [one | {"rows": one["rows"][1:]} for one in found]

    alter_bench(details(root, "mnist-cnn", "benchmark"), without)
    row = results(params, root=root).rows[0]
    assert row.p50_ms is None
    assert row.rows_per_second is not None


def test_each_provider_that_ran_is_a_row(params, root):
    cuda = sample_metrics.measured("int8", 0.1, size=61_000, provider="cuda")
    added = [json.loads(dump_json(cuda))]
    alter_bench(details(root, "mnist-cnn", "benchmark"), lambda found: found + added)
    rows = results(params, root=root).rows
    assert [row.provider for row in rows] == ["cpu", "cpu", "cpu", "cuda"]
    assert rows[3].rows_per_second > rows[2].rows_per_second
    assert "provider" in as_table(rows).splitlines()[0]


def test_the_table_is_aligned_and_tells_units_and_verdicts(params, root):
    lines = as_table(results(params, root=root).rows).splitlines()
    assert "provider" not in lines[0]
    assert lines[1].split() == [
        *("mnist-cnn", "fp32", "99.50", "%", "3.1e-06", "0", "0.062", "80,706", "215", "KiB", "no"),
    ]
    assert lines[2].endswith("FAILED PARITY")
    assert lines[3].endswith("yes")
    assert len({len(line) for line in lines}) == 1


def test_an_altered_file_is_told_by_its_path_and_key(params, root):
    path = details(root, "mnist-cnn", "parity")
    alter(path, rows="many")
    with pytest.raises(IntegrityError, match=r"parity\.json\.rows must be int, got 'many'"):
        results(params, root=root)
    path.write_text("{")
    with pytest.raises(IntegrityError, match="is not a JSON file"):
        results(params, root=root)


def test_what_is_read_is_what_was_written(root):
    measured, _ = read_results("mnist-cnn", root)
    written = sample_metrics.training("mnist-cnn")
    assert measured.training.history == tuple(sample_metrics.epochs())
    assert measured.training.accuracy == written["accuracy"]
    assert measured.benchmark.bench.environment == sample_metrics.MACHINE
    assert measured.shipped.variant == "int8"
    assert measured.shipped.gains["int8"].low == 1.6
    assert read_results("digits-mlp", root) == (None, ())


def test_neither_torch_nor_matplotlib_is_needed():
    program = (
        "import sys, pipeline.stages.page.results; "
        "print([m for m in ('torch', 'matplotlib', 'mlflow', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
