"""The regression gate, and what it may compare with."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import tiny_onnx
from bench_samples import MACHINE, measured, report, row

from serving.errors import InputError, IntegrityError, MissingInputError, SlowerError
from serving.files import write_json
from serving.measuring.compare import CompareTarget, as_text, compare, find_target
from serving.measuring.report import BEFORE, BenchReport
from serving.runtime.settings import SessionSettings

TURNS = CompareTarget(name="v1")


def old(saved: BenchReport, subject: str | None) -> CompareTarget:
    return CompareTarget(name="old.json", saved=saved, subject=subject)


def both(now: float, before: float):
    return report(
        measured(BEFORE, row(before), row(8.0, batch_size=8)),
        measured("model.onnx", row(now, over=before), row(8.0, batch_size=8, over=8.0)),
    )


def test_no_slower_than_the_limit_passes():
    compared = compare(both(1.04, 1.0), TURNS, 1.05)
    assert compared.passed
    compared.require()
    assert [round(one.ratio.median, 3) for one in compared.rows] == [1.04, 1.0]
    assert as_text(compared).endswith("passed: compared in turns, limit 1.05")


def test_slower_than_the_limit_fails_by_name():
    compared = compare(both(1.2, 1.0), TURNS, 1.05)
    assert not compared.passed
    with pytest.raises(
        SlowerError,
        match=r"model.onnx · cpu at batch 1, threads 1, takes 1.20 \(1.20 to 1.20\) times as long "
        r"as v1, the limit is 1.05; 1 of 2 rows are slower",
    ):
        compared.require()
    assert "SLOWER" in as_text(compared)
    assert "FAILED" in as_text(compared)


def test_weather_that_hits_both_is_no_regression():
    """Turns differ by a third; ratios pair by pair do not."""
    assert compare(both(1.0, 1.0), TURNS, 1.01).passed


def noisy(*turns: float):
    one = row(1.0)
    return dataclasses.replace(one, timing=dataclasses.replace(one.timing, turns_ms=turns))


def test_beyond_the_limit_but_within_the_noise_passes():
    before = report(measured("fp32", noisy(0.8, 1.4, 0.9, 1.5, 1.0, 1.6)))
    now = report(measured("m", noisy(0.9, 1.7, 1.0, 1.8, 1.1, 2.0)))
    compared = compare(now, old(before, "fp32"), 1.05)
    assert compared.rows[0].ratio.median > 1.05
    assert compared.passed
    assert "name a model file instead" in as_text(compared)


def test_saved_figures_of_the_same_machine_are_compared():
    before = report(measured("fp32", row(1.0)), measured("int8", row(0.5)))
    now = report(measured("model.onnx", row(1.1)))
    compared = compare(now, old(before, "fp32"), 1.05)
    assert compared.rows[0].before_ms == pytest.approx(1.0)
    slower = compare(now, old(before, "int8"), 1.05)
    with pytest.raises(SlowerError, match=r"times as long as old\.json"):
        slower.require()


def test_figures_of_another_machine_do_not_compare():
    other = dataclasses.replace(MACHINE, processor="Arm Neoverse")
    before = report(measured("fp32", row(1.0)), environment=other)
    with pytest.raises(InputError, match=r"machine \(processor Arm Neoverse, here AMD EPYC"):
        compare(both(1, 1), old(before, "fp32"), 1.05)


def test_what_was_measured_otherwise_is_not_compared():
    before = report(measured("fp32", row(1.0), threads=2))
    with pytest.raises(InputError, match="no row of the same provider, settings and batch size"):
        compare(both(1, 1), old(before, "fp32"), 1.05)
    with pytest.raises(InputError, match=r"old\.json has fp32, not int8"):
        compare(both(1, 1), old(before, "int8"), 1.05)
    two = report(measured("fp32", row(1.0)), measured("int8", row(1.0)))
    with pytest.raises(InputError, match="has fp32, int8, not one model"):
        compare(both(1, 1), old(two, None), 1.05)


def test_only_the_same_settings_are_pairs():
    spun = dataclasses.replace(
        measured(BEFORE, row(1.0)), settings=SessionSettings(threads=1, spinning=False)
    )
    with pytest.raises(InputError, match="no row of the same provider"):
        compare(report(spun, measured("model.onnx", row(1.0))), TURNS, 1.05)


# What --compare names


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model in a git checkout, whose first commit has another one."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models" / "tiny" / "model.onnx"
    path.parent.mkdir(parents=True)
    tiny_onnx.write(path, tiny_onnx.linear(["batch", 4]))
    details = tmp_path / "reports/details/tiny/benchmark.json"
    saved = report(measured("fp32", row(1.0)), measured("int8", row(0.5)))
    write_json(details, {"experiment": "tiny", "bench": saved})
    git("init", "--quiet")
    git("add", "reports")
    git("commit", "--quiet", "--message", "figures")
    git("tag", "figures")
    git("add", "models")
    git("commit", "--quiet", "--message", "model")
    git("tag", "model")
    tiny_onnx.write(path, tiny_onnx.linear(["batch", 8]))
    return Path("models/tiny/model.onnx")


def git(*arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], check=True)


def test_a_path_is_a_model(model, tmp_path):
    found = find_target(str(model), Path("other.onnx"), tmp_path)
    assert (found.model, found.saved) == (model, None)


def test_a_revision_with_the_model_gives_that(model, tmp_path):
    found = find_target("model", model, tmp_path)
    assert found.model
    assert found.model.read_bytes() == tiny_onnx.linear(["batch", 4])
    assert found.name == "models/tiny/model.onnx at model"


def test_a_revision_with_figures_alone_gives_those(model, tmp_path):
    found = find_target("figures", model, tmp_path)
    assert found.model is None
    assert found.saved
    assert found.subject == "fp32"
    assert found.name == "reports/details/tiny/benchmark.json at figures"
    quantized = Path("models/tiny/quantized/model.int8.onnx")
    assert find_target("figures", quantized, tmp_path).subject == "int8"


def test_a_revision_with_neither_is_refused(model, tmp_path):
    other = Path("models/other/model.onnx")
    with pytest.raises(MissingInputError, match=r"figures has neither models/other/model\.onnx"):
        find_target("figures", other, tmp_path)
    with pytest.raises(InputError, match="outside of this folder: no revision has it"):
        find_target("model", Path("/elsewhere/model.onnx"), tmp_path)


def test_what_is_nothing_is_refused(model, tmp_path):
    with pytest.raises(MissingInputError, match="v99 is neither a file nor a revision of git"):
        find_target("v99", model, tmp_path)


def test_a_saved_report_is_read_alone_or_inside_of_a_stages(model, tmp_path):
    alone = tmp_path / "alone.json"
    write_json(alone, report(measured("model.onnx", row(1.0))))
    assert find_target(str(alone), model, tmp_path).subject == "model.onnx"
    stage = "reports/details/tiny/benchmark.json"
    assert find_target(stage, model, tmp_path).subject == "fp32"
    alone.write_text(json.dumps({"model": "m"}))
    with pytest.raises(IntegrityError, match=r"alone\.json lacks the key"):
        find_target(str(alone), model, tmp_path)
    with pytest.raises(MissingInputError):
        find_target(str(tmp_path / "none.json"), model, tmp_path)
