"""The first screen of the page: one line for each experiment, what it ships and why."""

import json
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import sample_metrics
import tries
from sample_metrics import details

from pipeline.config.params import load
from pipeline.stages.page.note import note_of
from pipeline.stages.page.results import read_results
from pipeline.stages.page.verdicts import Verdict, verdict_of
from pipeline.stages.report import report
from serving.files import write_json

NAME = "mnist-cnn"
CHROMIUM = shutil.which("chromium")
WIDTHS = (390, 1400)


def verdict(root: Path) -> Verdict:
    found, _ = read_results(NAME, root)
    assert found
    return verdict_of(found)


def ships_fp32(gains: dict[str, float]) -> dict[str, object]:
    """What `ferry bundle` wrote when nothing was enough better than fp32."""
    measured = {name: {"times": one, "low": one, "high": one} for name, one in gains.items()}
    return sample_metrics.bundle(NAME) | {"variant": "fp32", "gains": measured}


def test_what_ships_is_told_with_what_it_gained_and_what_it_cost(tmp_path: Path) -> None:
    sample_metrics.write_all(tmp_path, NAME)
    write_json(details(tmp_path, NAME, "evaluate"), sample_metrics.inside(NAME))
    found = verdict(tmp_path)
    assert (found.ships, found.why) == ("int8", "1.70 times as fast as fp32")
    assert (found.quality, found.change) == ("99.50 %", "-0.03")
    assert (found.failed, found.missing) == (("fp16",), None)
    assert found.row
    assert (found.row.variant, found.row.bytes) == ("int8", 61_000)


def test_the_note_of_a_run_begins_with_the_verdict_and_how_to_use_it(tmp_path: Path) -> None:
    sample_metrics.write_all(tmp_path, NAME)
    found, _ = read_results(NAME, tmp_path)
    assert found
    assert found.shipped
    verdict, use, table, *_ = note_of(found, Path("bundles") / NAME).split("\n\n")
    expected = "**99.50 %** on the test rows of digits with int8, which ships: 1.70 times as fast"
    assert verdict.startswith(expected)
    digest = found.shipped.digest[:10]
    assert use == f"`ferry predict bundles/{NAME} ROWS --output answers.csv` (bundle `{digest}`)"
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| fp32",
        "| fp16",
        "| int8",
    ]


@pytest.mark.parametrize(
    ("loss", "reason"),
    [(0.1, "no int8 was fast enough"), (2.0, "no int8 was accurate enough")],
)
def test_fp32_ships_for_what_became_of_the_others(tmp_path: Path, loss: float, reason: str) -> None:
    sample_metrics.write_all(tmp_path, NAME)
    write_json(details(tmp_path, NAME, "bundle"), ships_fp32({"fp32": 1.0, "fp16": 0.79}))
    parity: Any = sample_metrics.parity(NAME)
    del parity["variants"]["int8"]
    write_json(details(tmp_path, NAME, "parity"), parity)
    quantized = sample_metrics.quantized(NAME)
    attempt = tries.attempt("static-u8s8", 0.9, 0.3, loss=loss)
    search = replace(quantized.searches["int8"], tries=(attempt,), chosen=None)
    write_json(details(tmp_path, NAME, "quantize"), replace(quantized, searches={"int8": search}))
    found = verdict(tmp_path)
    assert (found.ships, found.why) == ("fp32", f"fp16 is 0.79 times as fast; {reason}")
    assert found.change == ""
    (details(tmp_path, NAME, "quantize")).unlink()
    assert verdict(tmp_path).why == "fp16 is 0.79 times as fast; no int8 was made"


def test_what_ships_by_the_speeds_of_another_machine_is_told_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_metrics.write_all(tmp_path, NAME)
    monkeypatch.setenv("FERRY_PROCESSOR", "another one")
    found = verdict(tmp_path)
    assert (found.ships, found.why) == ("int8", "chosen by the speeds of another machine")
    assert found.missing == "benchmark"


def test_what_failed_is_why_nothing_ships(tmp_path: Path) -> None:
    sample_metrics.write_all(tmp_path, NAME)
    for stage in ("benchmark", "bundle"):
        details(tmp_path, NAME, stage).unlink()
    found = verdict(tmp_path)
    assert found.ships is None
    assert found.why == "fp16 failed parity: 4.0e-03 at logits[812, 7], limit 1.0e-04"
    assert found.missing == "benchmark"
    assert found.row
    assert (found.row.variant, found.row.p50_ms) == ("fp32", None)


def test_before_parity_there_is_what_was_trained(tmp_path: Path) -> None:
    sample_metrics.write_files(tmp_path, NAME)
    write_json(details(tmp_path, NAME, "train"), sample_metrics.training(NAME))
    found = verdict(tmp_path)
    assert (found.ships, found.row, found.missing) == (None, None, "parity")
    assert (found.quality, found.why) == ("99.53 %", "")


def test_an_error_is_told_with_how_much_it_grew(tmp_path: Path) -> None:
    sample_metrics.write_all(tmp_path, NAME)
    training: Any = sample_metrics.training(NAME) | {"accuracy": None, "loss": 0.00321}
    write_json(details(tmp_path, NAME, "train"), training)
    parity: Any = sample_metrics.parity(NAME)
    nothing = {"accuracy": None, "accuracy_loss": None, "flips": None}
    parity["variants"]["int8"] = asdict(parity["variants"]["int8"]) | nothing
    write_json(details(tmp_path, NAME, "parity"), parity)
    quantized = sample_metrics.quantized(NAME)
    kept = quantized.searches["int8"].tries[0]
    assert kept.quality
    kept = replace(kept, quality=replace(kept.quality, measure="mean error", loss=3.21))
    search = replace(quantized.searches["int8"], tries=(kept,))
    write_json(details(tmp_path, NAME, "quantize"), replace(quantized, searches={"int8": search}))
    found = verdict(tmp_path)
    assert (found.quality, found.change) == ("MSE 0.0032", "+3.2 %")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_first_screen_fits_a_phone_and_a_desk_and_a_link_opens_a_fold(tmp_path: Path) -> None:
    name = "mnist-autoencoder"
    sample_metrics.write_all(tmp_path, name)
    page = tmp_path / "index.html"
    report(tmp_path, page, params=load(Path(__file__).parents[2] / "params.yaml"))
    # A window of chromium is never as narrow as a phone; a frame is.
    frames = "".join(
        f'<iframe src="index.html#{name}" width="{width}" height="900"></iframe>'
        for width in WIDTHS
    )
    script = """onload = () => document.title = JSON.stringify(
        Array.from(frames).map(({document: page}) => [
            page.documentElement.scrollWidth,
            page.querySelectorAll("section > details[open]").length]))"""
    outside = tmp_path / "outside.html"
    outside.write_text(f"<title></title>{frames}<script>{script}</script>")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'browser'}"]
    done = subprocess.run([*command, outside.as_uri()], capture_output=True, text=True, timeout=60)
    assert "<title>[[" in done.stdout, done.stderr
    measured = json.loads(done.stdout.split("<title>")[1].split("</title>")[0])
    for (used, num_open), width in zip(measured, WIDTHS, strict=True):
        assert used <= width
        assert num_open == 1
