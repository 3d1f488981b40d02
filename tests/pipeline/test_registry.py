"""The registry: what becomes the champion and what does not, and the way back."""

import json
import math
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import toy_registry
from click.testing import CliRunner
from project import REPOSITORY
from toy_registry import BRIEF, forge, make_project

from pipeline.cli import ferry
from pipeline.config import layout, params
from pipeline.errors import ConfigError, GateError
from pipeline.project.registry import gates, versions
from pipeline.project.registry.gates import is_as_good, p_value_of
from pipeline.project.registry.history import why, why_as_text
from pipeline.project.registry.versions import (
    PromoteReport,
    Promotion,
    append,
    promote,
    register,
    rollback,
)
from pipeline.records.quantize import Quality
from serving.batch.lock import lock_output
from serving.bundles.bundle import Gate, open_bundle
from serving.bundles.registry import Promoted, PromotionGate, read_registry
from serving.bundles.verify import VerifyReport
from serving.errors import (
    FerryError,
    IntegrityError,
    MissingInputError,
    ModelError,
    OutputError,
    UnknownNameError,
)
from serving.files import sha256_of_file

REGISTERED = Path("registry/toy.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("registry") / "project")


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with bundles of toy models, which is the working folder; the registry is empty."""
    home = Path(shutil.copytree(made, tmp_path / "project"))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promotions that measure nothing, where it is not the gates that are tested."""
    monkeypatch.setattr(versions, "judge", lambda _contest, _log: ())


def add(name: str) -> int:
    return register(Path("bundles") / name, "toy", tags={}).version


def copy_of(version: int) -> Path:
    registry = read_registry("toy")
    return registry.copy_of(registry.versions[version].digest)


def status(report: PromoteReport) -> dict[str, str]:
    return {gate.name: gate.status for gate in report.gates}


# What is registered


def test_a_bundle_is_registered_once_and_outlives_its_folder(home: Path) -> None:
    (home.parent / "registry").mkdir()  # which is not this project's
    report = register(Path("bundles/first"), "toy", description="the first", tags={"team": "a"})
    assert (report.version, report.new, report.alias) == (1, True, "challenger")
    again = register(Path("bundles/first"), "toy", tags={})
    assert (again.version, again.new) == (1, False)
    assert add("second") == 2
    shutil.rmtree(home / "bundles")
    registry = read_registry("toy")
    assert open_bundle(registry.copy_of(registry.versions[1].digest)).manifest.name == "first"
    assert registry.versions[1].tags == {"team": "a"}
    assert (home / "registry" / ".gitignore").read_text() == "/bundles/\n.*.lock\n"
    assert {path.name for path in (home / "registry").iterdir()} == {
        *(".gitignore", "bundles", "toy.jsonl")
    }


def test_a_copy_that_was_damaged_or_left_by_a_kill_is_made_anew(home: Path) -> None:
    add("first")
    copy = copy_of(1)
    (copy / "labels.txt").write_text("other\n")
    left = copy.with_name(f".{copy.name}.0a1b2c3d.tmp")
    left.mkdir()
    assert add("first") == 1
    open_bundle(copy)
    assert not left.exists()
    assert home.is_dir()


def test_a_signature_that_came_later_is_kept(home: Path) -> None:
    add("first")
    signature = home / "bundles" / "first" / "model.sig"
    signature.write_bytes(b"a signature")
    assert add("first") == 1
    signature.unlink()
    assert add("first") == 1
    assert (copy_of(1) / "model.sig").read_bytes() == b"a signature"
    open_bundle(copy_of(1))


def test_an_altered_bundle_is_not_registered(home: Path) -> None:
    forge(home / "bundles" / "first", parity={"flips": Gate(measured=3, limit=0)})
    with pytest.raises(FerryError, match="failed verification: parity: flips is 3, limit 0"):
        add("first")
    assert not (home / "registry").exists()


def test_two_names_of_a_bundle_do_not_copy_it_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("first")
    monkeypatch.setattr(versions, "LOCK_SECONDS", 0.0)
    with (
        lock_output(home / "registry" / "bundles"),
        pytest.raises(OutputError, match="writes registry/bundles"),
    ):
        register(Path("bundles/first"), "other", tags={})
    assert not (home / "registry" / "other.jsonl").exists()


def test_what_is_written_can_be_read_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = {"COUNT": "1", "KEY_0": "user.name", "VALUE_0": "J\udcf6rg"}  # in Latin 1
    for key, value in name.items():
        monkeypatch.setenv(f"GIT_CONFIG_{key}", value)
    register(Path("bundles/first"), "toy", description="gr\udcfcn", tags={})
    (entry,) = read_registry("toy").entries
    assert entry.who == "J\ufffdrg"
    with pytest.raises(IntegrityError):  # which is redacted otherwise a second time
        register(Path("bundles/second"), "toy", description="models:/;sig=h[***{:]@p", tags={})
    assert read_registry("toy").versions[1].description == "gr?n"
    assert home.is_dir()


@pytest.mark.parametrize("name", ["a/b", "toy/3", "toy@champion"])
def test_a_name_that_cannot_be_one_is_refused(home: Path, name: str) -> None:
    done = CliRunner().invoke(ferry, ["register", "first", "--name", name, "--no-track"])
    assert done.exit_code == 2
    assert f"{name!r} is not a name of letters, digits, '-' and '_'; give --name" in done.stderr
    assert home.is_dir()


# What is promoted


def test_a_champion_is_beaten_by_one_that_is_no_worse_and_no_slower(home: Path) -> None:
    add("first")
    first = promote("toy", Promotion())
    assert first.promoted
    assert status(first) == {
        **dict.fromkeys(("verified", "parity", "rows"), "passed"),
        **dict.fromkeys(("quality", "latency"), "skipped"),
    }
    add("second")
    second = promote("toy", Promotion(force="if need be"))
    assert (set(status(second).values()), second.forced) == ({"passed"}, "")
    assert read_registry("toy").champion == 2
    report = why("toy@champion")
    assert report.version == 2
    text = why_as_text(report)
    assert "version 2 was promoted over version 1: " in text
    assert "quality   passed  accuracy 90 %, the champion 90 %, on 400 rows (p 1)" in text
    assert why("toy/1").changes[1].event == why("toy").changes[0].event
    assert home.is_dir()


def test_a_worse_one_and_a_slower_one_are_refused_unless_forced(home: Path) -> None:
    add("first")
    promote("toy", Promotion())
    add("worse")
    worse = promote("toy", Promotion())
    assert (worse.promoted, [gate.name for gate in worse.failed]) == (False, ["quality"])
    with pytest.raises(GateError, match=r"^toy/2 is not promoted: quality: accuracy 28\.25 %, the"):
        worse.require()
    add("slower")
    slower = promote("toy", Promotion())
    assert (slower.promoted, [gate.name for gate in slower.failed]) == (False, ["latency"])
    assert read_registry("toy").champion == 1
    forced = promote("toy", Promotion(force="it must be fair, not fast"))
    forced.require()
    event = read_registry("toy").entries[-1].event
    assert isinstance(event, Promoted)
    assert event.forced == "it must be fair, not fast"
    assert [gate.name for gate in event.gates if gate.status == "failed"] == ["latency"]
    assert home.is_dir()


@pytest.mark.parametrize(
    ("parity", "message"),
    [
        ({}, "no parity was recorded"),
        ({"flips": Gate(measured=3, limit=0)}, "flips is 3, limit 0"),
    ],
)
def test_what_was_not_proven_is_no_champion(
    home: Path, monkeypatch: pytest.MonkeyPatch, parity: dict[str, Gate], message: str
) -> None:
    forge(home / "bundles" / "first", parity=parity)
    monkeypatch.setattr(VerifyReport, "require", lambda _: None)  # as another program might
    add("first")
    failed = {gate.name: gate.detail for gate in promote("toy", Promotion()).failed}
    assert failed["parity"] == message


def test_other_classes_are_not_compared(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / layout.details("first", "train")).unlink()
    add("first")
    promote("toy", Promotion(force="nobody knows its data"))
    monkeypatch.setattr(toy_registry, "LABELS", ("low", "middle", "top"))
    toy_registry.make_bundle(home, "second")
    add("second")
    report = promote("toy", Promotion())
    told = {gate.name: gate.detail for gate in report.gates}
    assert told["rows"].endswith("; the champion was trained on other data")
    assert told["quality"] == "the classes are others: 'high' before, 'top' now"


def test_rows_of_other_data_prove_nothing(home: Path) -> None:
    details = home / layout.details("first", "train")
    trained = json.loads(details.read_text())
    details.write_text(json.dumps(trained | {"weights_sha256": "0" * 64}))  # another training since
    add("first")
    report = promote("toy", Promotion())
    (gate,) = report.failed
    assert gate.name == "rows"
    assert "the challenger does not say what it was trained on" in gate.detail
    shutil.rmtree(home / "data")
    (gate,) = promote("toy", Promotion()).failed
    assert "`ferry preprocess toy` makes it" in gate.detail


def test_a_bundle_that_was_altered_after_it_was_registered_is_no_champion(home: Path) -> None:
    add("first")
    promote("toy", Promotion())
    add("second")
    copy = copy_of(2)
    (copy / "labels.txt").write_text("low\nmiddle\nhigh!\n")
    report = promote("toy", Promotion())
    assert {gate.name for gate in report.failed} == {"verified", "quality", "latency"}
    assert all("labels.txt has " in gate.detail for gate in report.failed)
    with pytest.raises(IntegrityError, match=r"labels\.txt has "):
        promote("toy", Promotion(force="it is fine"))
    shutil.rmtree(copy)
    shutil.rmtree(home / "bundles")
    with pytest.raises(MissingInputError, match=r"the bundle of toy/2 is not here"):
        promote("toy", Promotion(force="it is fine"))
    assert home.is_dir()


def test_a_benchmark_that_was_stopped_promotes_nobody(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("first")
    promote("toy", Promotion())
    add("second")
    monkeypatch.setattr(gates, "bench", lambda *_, **__: SimpleNamespace(partial=True))
    with pytest.raises(KeyboardInterrupt):
        promote("toy", Promotion(force="at any price"))
    assert read_registry("toy").champion == 1
    assert home.is_dir()


def test_models_of_other_outputs_are_not_compared() -> None:
    rows = np.zeros((2, 3), np.float32)
    for other in ({"b": rows}, {"a": rows[:, :2]}, {"a": rows.astype(np.float64)}):
        with pytest.raises(ModelError, match="they have no output in common: a of the champion, "):
            gates._common({"a": rows}, other)


def test_what_fails_for_one_reason_is_said_once() -> None:
    gates = tuple(
        PromotionGate(name=name, status="failed", detail="no data", figures={})
        for name in ("rows", "quality")
    )
    report = PromoteReport(name="toy", version=2, over=1, promoted=False, forced="", gates=gates)
    with pytest.raises(GateError, match=r"^toy/2 is not promoted: rows, quality: no data; --force"):
        report.require()


# Two at once


@pytest.mark.usefixtures("unjudged")
def test_another_champion_since_the_gates_began_is_not_overwritten(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second", "third"):
        add(name)
    promote("toy", Promotion(version=1))

    def overtaken(_contest: object, _log: object) -> tuple[()]:
        event = Promoted(version=2, over=1, gates=(), forced="")
        append(REGISTERED, lambda _: event)
        return ()

    monkeypatch.setattr(versions, "judge", overtaken)
    with pytest.raises(OutputError, match="is version 2, expected was version 1; nothing is chang"):
        promote("toy", Promotion(version=3, force="at any price"))
    assert read_registry("toy").champions == (1, 2)
    assert home.is_dir()


@pytest.mark.usefixtures("unjudged")
def test_the_champion_that_is_expected_must_be_it(home: Path) -> None:
    add("first")
    assert why("toy").alias == "challenger"  # as long as there is no champion
    with pytest.raises(OutputError, match="the champion of toy is none, expected was version 1;"):
        promote("toy", Promotion(expect=1))
    with pytest.raises(UnknownNameError, match="no version named 'toy/7'; did you mean 'toy/1'"):
        promote("toy", Promotion(version=7))
    promote("toy", Promotion(expect=0))
    add("second")
    promote("toy", Promotion(expect=1))
    assert not promote("toy", Promotion(version=2)).promoted
    with pytest.raises(OutputError, match="is version 2, expected was version 1"):
        rollback("toy", expect=1)
    assert len(read_registry("toy").entries) == 4
    assert home.is_dir()


def test_lines_of_many_writers_are_all_whole(home: Path) -> None:
    add("first")

    def decide(_registry: object) -> Promoted:
        time.sleep(0.01)  # so that they meet
        return Promoted(version=1, over=None, gates=(), forced="")

    threads = [threading.Thread(target=append, args=(REGISTERED, decide)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_registry("toy").entries) == 9
    assert home.is_dir()


# The way back


@pytest.mark.usefixtures("unjudged")
def test_a_rollback_goes_back_one_and_two_go_back_two(home: Path) -> None:
    for name in ("first", "second", "third"):
        add(name)
        promote("toy", Promotion())
    assert (rollback("toy").version, rollback("toy").version) == (2, 1)
    with pytest.raises(MissingInputError, match="toy/1 is the first champion: there is none to go"):
        rollback("toy")
    text = why_as_text(why("toy/3"))
    assert "version 3 was rolled back to version 2" in text
    promote("toy", Promotion(version=3))
    shutil.rmtree(copy_of(1))
    shutil.rmtree(home / "bundles")
    with pytest.raises(MissingInputError, match="the bundle of toy/1 is not here: git has no"):
        rollback("toy")
    assert read_registry("toy").champion == 3


@pytest.mark.usefixtures("unjudged")
@pytest.mark.parametrize("lost", [1, 10])
def test_a_torn_line_is_cut_off_by_the_next_one(home: Path, lost: int) -> None:
    add("first")
    add("second")
    path = home / "registry" / "toy.jsonl"
    os.truncate(path, path.stat().st_size - lost)
    promote("toy", Promotion(version=1))
    registry = read_registry("toy")
    assert path.read_bytes() == b"".join(entry.line for entry in registry.entries)
    assert len(registry.entries) == (3 if lost == 1 else 2)


# The commands


@pytest.mark.usefixtures("unjudged")
def test_the_commands(home: Path) -> None:
    def run(*words: str) -> "dict[str, object]":
        done = CliRunner().invoke(ferry, [*words, "--json"])
        assert done.exit_code == 0, done.output
        found: dict[str, object] = json.loads(done.stdout)
        return found

    for name in ("first", "second"):
        run("register", name, "--name", "toy", "--tag", "a=b", "--no-track")
        run("promote", "toy", "--no-track")
    assert run("why", "toy")["version"] == 2
    assert run("rollback", "toy", "--no-track")["version"] == 1
    model = home / "bundles" / "first" / "model.onnx"
    assert run("bundle", "models:/toy@champion", "-o", "out")["sha256"] == sha256_of_file(model)
    found = run("verify", "models:/toy@champion")
    assert found["vouched"] == ["registry"]
    assert "shipped: registered as toy/1, as the registry here says" in str(found["promise"])
    np.save("rows.npy", np.zeros((2, 4), np.float32))
    done = CliRunner().invoke(ferry, ["predict", "models:/toy@champion", "rows.npy"])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message", "exit_code"),
    [
        ("promote toy", "/registry is not there; `ferry register EXPERIMENT` makes one", 2),
        ("promote ../params", "'../params' is not the name of a registered model: give NAME", 2),
        ("promote toy --force=", "Invalid value for '--force': it is empty; say why", 2),
        ("register first --name=", "'' is not a name of letters, digits", 2),
        ("why toy@champion", "no registered model named 'toy'", 2),
        ("why /toy", "'/toy' is no name of a registered model", 2),
        ("register frist", "frist is not there; did you mean bundles/first?", 1),
        ("bundle models:/toy/1", "models:/toy/1 needs --output, and takes nothing else", 2),
    ],
)
def test_a_mistake_is_one_line(home: Path, words: str, message: str, exit_code: int) -> None:
    done = CliRunner().invoke(ferry, words.split())
    assert done.exit_code == exit_code
    assert message in done.stderr
    assert home.is_dir()


# The limits


def test_a_limit_that_is_not_given_is_ferrys_own(home: Path) -> None:
    path, text = home / layout.PARAMS, (home / layout.PARAMS).read_text()
    path.write_text(text.replace(BRIEF, "registry: {max_slowdown: 2}"))
    config = params.registry(path)
    assert (config.max_slowdown, config.batch_sizes, config.significance) == (2, (1, 32), 0.05)
    path.write_text(text.replace(BRIEF, ""))
    assert params.registry(path) == params.registry(REPOSITORY / layout.PARAMS)
    path.write_text(text.replace(BRIEF, "registry: {max_slowdwn: 2}"))
    with pytest.raises(ConfigError, match=r"registry\.max_slowdwn is not a key; did you mean 'max"):
        params.registry(path)


# The noise


def mean_error(loss: float, spread: float) -> Quality:
    return Quality(measure="mean error", rows=400, loss=loss, low=loss - spread, high=loss + spread)


@pytest.mark.parametrize(
    ("quality", "p_value"),
    [
        (mean_error(2.0, 2.0), 0.05),  # whose 95 % interval ends at zero
        (mean_error(-2.0, 2.0), 0.05),
        (mean_error(1.0, 4.0), 0.624),
        (mean_error(0.0, 0.0), 1.0),
        (mean_error(0.1, 0.0), 0.0),
        (Quality(measure="accuracy", rows=9, loss=1.0, rows_lost=5, rows_gained=0), 0.0625),
        (Quality(measure="accuracy", rows=9, loss=0.0, rows_lost=0, rows_gained=0), 1.0),
        (Quality(measure="not finite", rows=9), 0.0),
    ],
)
def test_how_likely_a_difference_is_by_chance(quality: Quality, p_value: float) -> None:
    assert p_value_of(quality) == pytest.approx(p_value, abs=5e-4)


@pytest.mark.parametrize(
    ("quality", "as_good"),
    [
        (mean_error(2.0, 1.9), False),
        (mean_error(2.0, 2.1), True),
        (mean_error(-2.0, 1.9), True),
        (mean_error(math.nan, math.nan), False),
        (Quality(measure="not finite", rows=9), False),
        (Quality(measure="agreement", rows=9, loss=0.0, rows_lost=0, rows_gained=0), False),
    ],
)
def test_a_loss_beyond_noise_is_worse_and_so_is_no_number(quality: Quality, as_good: bool) -> None:
    assert is_as_good(quality, 0.05) is as_good
