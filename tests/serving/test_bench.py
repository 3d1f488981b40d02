"""Measuring a model: rows with their proof, reasons for what did not run, and mistakes."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from odd_models import reshaping_to_two_rows
from tiny_kinds import TEXTS, text_classifier

from serving.errors import (
    InputError,
    IntegrityError,
    MissingInputError,
    ModelError,
    ProviderError,
    UnknownNameError,
    UsageError,
)
from serving.files import dump_json, read_record, sha256_of_file
from serving.measuring.bench import bench
from serving.measuring.report import BEFORE, BenchReport
from serving.measuring.rounds import BenchFindings, BenchOptions, measure
from serving.measuring.subject import SubjectSpec

QUICK = BenchOptions(batch_sizes=(1, 4), seconds=0.02, num_rounds=2, threads=(1,))
CPU = "CPUExecutionProvider"


def quick(**changes):
    return dataclasses.replace(QUICK, **changes)


@pytest.fixture
def model(tmp_path):
    content = tiny_onnx.linear(["batch", 16], tiny_onnx.UINT8)
    return tiny_onnx.write(tmp_path / "model.onnx", content)


@pytest.fixture
def fixed(tmp_path):
    return tiny_onnx.write(tmp_path / "fixed.onnx", tiny_onnx.linear([4, 16]))


@pytest.fixture
def of_text(tmp_path):
    return tiny_onnx.write(tmp_path / "text.onnx", text_classifier())


@pytest.fixture
def reviews(tmp_path):
    (tmp_path / "reviews.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return tmp_path / "reviews.txt"


def only(report):
    (measured,) = report.measured
    return measured


def sizes(report):
    return [row.timing.batch_size for row in only(report).rows]


@pytest.fixture(scope="module")
def measured_model(tmp_path_factory):
    content = tiny_onnx.linear(["batch", 16], tiny_onnx.UINT8)
    return tiny_onnx.write(tmp_path_factory.mktemp("bench") / "model.onnx", content)


@pytest.fixture(scope="module")
def report(measured_model):
    """One run with everything that a report holds."""
    return bench(measured_model, quick(growth_calls=200, num_cold_starts=2))


def test_a_report_says_what_ran_where_and_how_fast(report, measured_model):
    measured = only(report)
    assert sizes(report) == [1, 4]
    for row in measured.rows:
        timing = row.timing
        assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms <= timing.p999_ms
        assert timing.p999_ms <= timing.max_ms
        assert len(timing.turns_ms) == 2
        assert timing.num_calls >= 4
        assert row.first_call_ms > 0
        assert row.speedup is None
    assert measured.proof.asked == CPU
    assert set(measured.proof.nodes) == {CPU}
    assert measured.proof.share == measured.share.share == 1
    assert set(measured.share.time_us) == {CPU}
    assert measured.settings.threads == 1
    assert measured.sha256 == sha256_of_file(measured_model)
    assert measured.file_bytes == measured_model.stat().st_size
    assert measured.ready_ms > 0
    assert measured.peak_memory_bytes > 10 * 2**20
    assert not report.partial
    assert report.clock.resolution_ns >= 1
    assert report.load.seconds > 0
    assert report.environment.git_revision


def test_each_process_is_pinned_to_its_cores(report):
    measured = only(report)
    assert len(measured.cores) == 1
    assert set(measured.cores) <= os.sched_getaffinity(0)


def test_thread_counts_are_measured_each_in_a_process_of_its_own(model):
    report = bench(model, quick(threads=(1, 2), settings=("spinning=off",)))
    assert [one.settings.threads for one in report.measured] == [1, 2]
    assert not any(one.settings.spinning for one in report.measured)


def test_bound_memory_and_parallel_calls_are_settings(model):
    report = bench(model, quick(settings=("binding=on", "parallel=2")))
    settings = only(report).settings
    assert (settings.binding, settings.parallel) == (True, 2)
    assert sizes(report) == [1, 4]


def test_throughput_and_latency_agree(model):
    report = bench(model, quick(batch_sizes=(64,), seconds=0.1))
    timing = only(report).row(64).timing
    assert timing.rows_per_second <= 64 / (timing.p50_ms / 1000) * 1.5


def test_the_fastest_batch_and_a_batch_that_was_not_measured(report):
    measured = only(report)
    rates = [row.timing.rows_per_second for row in measured.rows]
    assert measured.fastest.rows_per_second == max(rates)
    assert measured.row(2) is None


def test_a_report_survives_json(report):
    raw = json.loads(dump_json(report))
    assert read_record(BenchReport, raw, "it") == report
    with pytest.raises(IntegrityError, match="lacks the key 'clock'"):
        read_record(BenchReport, {key: raw[key] for key in raw if key != "clock"}, "it")


def test_a_model_against_itself_is_no_difference(model):
    report = bench(model, quick(seconds=0.1, num_rounds=8, batch_sizes=(1,)), against=model)
    assert report.baseline == f"{BEFORE} · cpu"
    before, now = report.measured
    assert before.rows[0].speedup is None
    ratio = now.rows[0].speedup
    assert ratio.num_pairs == 8
    assert ratio.low <= ratio.median <= ratio.high
    turns = np.array(before.rows[0].timing.turns_ms) / np.array(now.rows[0].timing.turns_ms)
    assert ratio.median == pytest.approx(np.median(turns), rel=1e-5)
    # On a busy machine the interval is wide, which is no difference either.
    assert ratio.low <= 1.2
    assert ratio.high >= 0.8


def test_memory_is_looked_at_after_many_calls(report):
    growth = only(report).growth
    assert growth.num_calls == 200
    assert growth.batch_sizes == (1, 4)
    assert growth.drift_bytes < 8 * 2**20


@pytest.mark.parametrize(("provider", "looked"), [("cpu", True), ("cuda", False)])
def test_the_arena_of_a_gpu_is_not_in_this_memory(monkeypatch, provider, looked):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    spec = SubjectSpec(name="sleeper", provider=provider, module="sleeper", setup={})
    findings = BenchFindings()
    measure([spec], quick(batch_sizes=(1, 2), growth_calls=20), findings, lambda _: None)
    assert (only(findings).growth is not None) == looked


def test_cold_starts_take_longer_than_calls(report):
    (cold,) = report.cold_starts
    assert cold.subject == "model.onnx · cpu"
    assert len(cold.runs_ms) == 2
    assert cold.p50_ms > only(report).rows[0].timing.p50_ms


# What a model does not take


def test_a_fixed_batch_is_respected_and_the_others_say_why(fixed):
    report = bench(fixed, quick(batch_sizes=(1, 4, 8)))
    assert sizes(report) == [4]
    assert [batch.batch_size for batch in only(report).skipped] == [1, 8]
    assert "batches of 4" in only(report).skipped[0].skipped


def test_a_fixed_batch_that_nobody_asked_for_is_named(fixed):
    with pytest.raises(InputError, match="batches of 4 and no other; ask for batch size 4"):
        bench(fixed, quick(batch_sizes=(1, 8)))


@pytest.mark.parametrize("batch_sizes", [(2, 3), (3, 2)])
def test_a_batch_that_the_graph_cannot_take_is_skipped_with_its_reason(tmp_path, batch_sizes):
    path = tiny_onnx.write(tmp_path / "m.onnx", reshaping_to_two_rows())
    report = bench(path, quick(batch_sizes=batch_sizes))
    assert sizes(report) == [2]
    assert [batch.batch_size for batch in only(report).skipped] == [3]
    assert "refused its input" in only(report).skipped[0].skipped


def test_a_model_that_runs_no_batch_asked_for_is_an_error(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", reshaping_to_two_rows())
    with pytest.raises(InputError, match="refused its input"):
        bench(path, quick(batch_sizes=(3, 5)))


# Rows


def test_made_up_text_is_refused(of_text):
    with pytest.raises(InputError, match="name a file of real rows with --data"):
        bench(of_text, QUICK)


def test_real_rows_of_text_are_timed_and_named(of_text, reviews):
    report = bench(of_text, quick(rows=reviews, num_cold_starts=1))
    assert sizes(report) == [1, 4]
    assert report.rows == "reviews.txt"
    assert report.cold_starts


def test_real_rows_give_a_free_axis_its_length(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", tiny_onnx.linear(["batch", "length", 8]))
    with pytest.raises(InputError, match=r"axis 1 \(length\) of input 'inputs'"):
        bench(path, QUICK)
    np.save(tmp_path / "rows.npy", np.zeros((2, 5, 8), np.float32))
    assert sizes(bench(path, quick(rows=tmp_path / "rows.npy"))) == [1, 4]


# Mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_sizes": ()}, "neither a batch size nor a scenario"),
        ({"batch_sizes": (1, 0)}, "got 0"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
        ({"num_rounds": 0}, "rounds must be 1 or more, got 0"),
        ({"threads": (0,)}, "threads must be 1 or more, got 0"),
        ({"settings": ("parallel=0",)}, "parallel must be 1 or more, got 0"),
        ({"settings": ("cuda_graph=on", "binding=on")}, "is for cuda and tensorrt, not for cpu"),
    ],
)
def test_senseless_options_are_refused(model, changes, words):
    with pytest.raises(UsageError, match=words):
        bench(model, quick(**changes))


def test_what_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match=r"nothing\.onnx is not there"):
        bench(tmp_path / "nothing.onnx", QUICK)
    with pytest.raises(ModelError, match="cannot be loaded"):
        bench(tiny_onnx.write(tmp_path / "m.onnx", b"not a model"), QUICK)
    with pytest.raises(MissingInputError, match=r"manifest\.json"):
        bench(tmp_path, QUICK)


def test_a_provider_asked_for_by_name_runs_or_is_an_error(model):
    with pytest.raises(UnknownNameError, match=r"did you mean 'cuda'.*onnxruntime \S+ has .*cpu"):
        bench(model, quick(providers=("cdua",)))
    with pytest.raises(ProviderError, match="qnn is not there: the installed onnxruntime"):
        bench(model, quick(providers=("qnn",)))


def test_all_providers_are_rows_or_say_why_not(model):
    report = bench(model, quick(providers=("all",)))
    assert report.measured[0].provider == "cpu"
    for skipped in report.skipped:
        assert skipped.provider != "cpu"
        assert skipped.skipped


def test_all_providers_of_a_broken_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        bench(tiny_onnx.write(tmp_path / "m.onnx", b"no model"), quick(providers=("all",)))


# Its processes


def test_a_process_holds_nothing_of_ours(model):
    ballast = np.ones(300 * 2**17)
    assert only(bench(model, QUICK)).peak_memory_bytes < ballast.nbytes


def test_it_works_from_any_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    assert bench(Path(model.name), QUICK).model == model.name


def test_options_of_the_command_in_the_environment_do_not_reach_them(of_text, reviews, monkeypatch):
    monkeypatch.setenv("FERRY_BENCH_DATA", "of somebody else")
    assert bench(of_text, quick(rows=reviews)).rows == "reviews.txt"


def test_libraries_may_print_what_they_like(model, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('Initialising device')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = bench(model, quick(num_cold_starts=1))
    assert sizes(report) == [1, 4]
    assert report.cold_starts


def test_a_process_that_is_killed_is_told(model, tmp_path, monkeypatch):
    program = "import os, signal, sys\nif 'onnx_subject' in ' '.join(sys.orig_argv): "
    program += "os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "sitecustomize.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"measured model\.onnx was ended by SIGKILL"):
        bench(model, QUICK)


def test_interrupted_it_keeps_what_was_measured(model):
    def log(step):
        if step == "batch 4, round 1 of 2":
            raise KeyboardInterrupt

    report = bench(model, QUICK, log=log)
    assert report.partial
    assert sizes(report) == [1]
    assert only(report).peak_memory_bytes > 0
    assert read_record(BenchReport, json.loads(dump_json(report)), "it") == report


# Bundles


def test_a_bundle_is_timed_as_the_model_in_it(bundle):
    report = bench(bundle, quick(num_cold_starts=1))
    assert only(report).sha256 == sha256_of_file(bundle / "model.onnx")
    assert only(report).file_bytes == (bundle / "model.onnx").stat().st_size
    assert report.model == str(bundle)
    assert report.cold_starts


def test_a_bundle_with_another_byte_is_not_timed(bundle):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        bench(bundle, QUICK)


def test_all_cores_are_the_default_of_threads():
    (settings,) = BenchOptions().session_settings()
    assert settings.threads == len(os.sched_getaffinity(0))
