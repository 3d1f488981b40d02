"""A report for people and spreadsheets."""

import csv
import dataclasses
import io

from bench_samples import COLD, CPU, SKIPPED, SKIPPED_BATCH, measured, report, row

from serving.measuring.report import as_csv, as_table
from serving.measuring.scenarios import ScenarioResult
from serving.runtime.settings import SessionSettings


def two():
    eager = measured("PyTorch eager", row(0.5), provider="torch")
    fp32 = measured("fp32", row(0.1, over=0.5), row(0.505, batch_size=8, over=0.5))
    return report(eager, fp32)


def test_a_line_a_row_with_what_it_is_over():
    lines = as_table(two()).splitlines()
    assert lines[0].split()[:4] == ["what", "threads", "batch", "p50"]
    assert lines[0].endswith("× PyTorch eager")
    assert lines[1].split() == [
        *("PyTorch", "eager", "1", "1", "0.500", "0.550", "0.750", "1.500", "2,000")
    ]
    assert lines[2].split()[:3] == ["fp32", "·", "cpu"]
    assert lines[2].endswith("5.00 (5.00–5.00)")
    assert lines[3].endswith("0.99 (0.99–0.99) =")


def test_every_process_tells_its_proof_and_what_it_took():
    text = as_table(two())
    assert "PyTorch eager, threads 1: not in ONNX Runtime; ready in 2.5 ms" in text
    assert f"fp32 · cpu, threads 1: 9 nodes on {CPU}, 100 % of the time there" in text
    assert "file 40,000 bytes; peak 70 MiB; grew 5.0 MiB over 10,000 calls" in text


def test_what_was_not_measured_says_why():
    skipping = dataclasses.replace(measured("fp32", row(0.1)), skipped=SKIPPED_BATCH)
    text = as_table(report(skipping, skipped=SKIPPED))
    assert "fp32 · cpu: batch 8 skipped: batches of 4 and no other" in text
    assert "fp32 · cuda: skipped: no card" in text


def test_doubts_are_told():
    load = dataclasses.replace(two().load, warning="other programs kept 1.5 of 2 cores busy")
    text = as_table(dataclasses.replace(two(), load=load, partial=True))
    assert "warning: other programs kept 1.5 of 2 cores busy" in text
    assert text.endswith("interrupted: only what was measured until then is here")
    assert "warning" not in as_table(two())


def test_a_rate_that_did_not_settle_is_marked():
    wild = row(0.1)
    wild = dataclasses.replace(wild, timing=dataclasses.replace(wild.timing, steady=False))
    assert as_table(report(measured("fp32", wild))).splitlines()[1].endswith("not steady")


def test_settings_are_in_the_name():
    changed = SessionSettings(threads=1, parallel=2, binding=True)
    one = dataclasses.replace(measured("fp32", row(0.1)), settings=changed)
    assert "fp32 · cpu parallel=2 binding=on" in as_table(report(one))


def test_scenarios_have_a_table_of_their_own():
    found = ScenarioResult(
        scenario="server",
        subject="fp32",
        provider="cpu",
        settings=SessionSettings(threads=1),
        batch_size=1,
        rows_per_query=1,
        num_queries=12_000,
        seconds=4.0,
        p50_ms=0.5,
        p90_ms=0.75,
        p99_ms=1.25,
        p999_ms=2.0,
        rows_per_second=3000.0,
        rate_per_second=3000.0,
        p99_limit_ms=2.0,
        probes=(),
    )
    lines = as_table(report(scenarios=(found,))).splitlines()
    assert lines[0].split()[0] == "scenario"
    assert lines[1].startswith("server, 3,000 queries/s")
    assert lines[1].split()[-5:] == ["0.500", "0.750", "1.250", "2.000", "3,000"]


def test_cold_starts_are_told():
    text = as_table(report(measured("fp32", row(0.1)), cold_starts=COLD))
    assert "fp32 · cpu: 310 ms from starting a process to its first answer" in text


def test_csv_has_a_line_a_row_and_units_in_its_names():
    rows = list(csv.DictReader(io.StringIO(as_csv(two()))))
    assert [(one["subject"], one["batch_size"]) for one in rows] == [
        ("PyTorch eager", "1"),
        ("fp32", "1"),
        ("fp32", "8"),
    ]
    eager, fp32, eight = rows
    assert eager["speedup"] == eager["asked_provider"] == eager["time_share"] == ""
    assert float(fp32["speedup"]) == 5
    assert (fp32["verdict"], eight["verdict"]) == ("faster", "no difference")
    assert fp32["asked_provider"] == CPU
    assert float(fp32["node_share"]) == float(fp32["time_share"]) == 1
    assert fp32["p999_ms"] == "0.30000000000000004"
    assert fp32["peak_memory_bytes"] == str(70 * 2**20)
    assert fp32["arena_growth_bytes"] == str(5 * 2**20)
    assert fp32["steady"] == "true"
    assert all(None not in one and None not in one.values() for one in rows)
