import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifier import forge, images, profile
from tiny_kinds import TEXTS, Copies, text_contents

from serving.bundles.bundle import MANIFEST, open_bundle, read_manifest
from serving.bundles.profiles import Profile, check_profiles, profile_for, with_profile
from serving.bundles.verify import verify
from serving.bundles.writing import write_profile
from serving.errors import IntegrityError, MissingInputError, ProviderError, UsageError
from serving.model import BATCH_ROWS, open_model
from serving.runtime.settings import SessionSettings


def elsewhere(one: Profile, **changes: Any) -> Profile:
    """The same profile, tuned on another machine."""
    return dataclasses.replace(one, machine=dataclasses.replace(one.machine, **changes))


def test_a_profile_tells_its_settings_on_one_line() -> None:
    assert profile().describe() == "profile throughput: threads 1, parallel 2, batch 16"
    settings = SessionSettings(threads=4, spinning=False, binding=True)
    message = profile(goal="latency", settings=settings, batch_size=1).describe()
    assert message == "profile latency: threads 4, spinning off, binding on, batch 1"


OTHERS = [
    {"processor": "Another CPU"},
    {"architecture": "riscv64"},
    {"flags": ("sve2",)},
    {"allowed_cores": 999},
    {"gpu": "A card"},
]


@pytest.mark.parametrize("changes", OTHERS, ids=[next(iter(one)) for one in OTHERS])
def test_it_fits_the_same_kind_of_machine_only(changes: dict[str, Any]) -> None:
    one = profile()
    assert profile_for([elsewhere(one, **changes), one], "cpu", "throughput") == one
    assert profile_for([elsewhere(one, **changes)], "cpu", "throughput") is None


def test_another_version_of_the_runtime_still_fits() -> None:
    one = profile(onnxruntime="0.0.1")
    assert profile_for([one], "cpu", "throughput") == one


def test_the_one_for_the_goal_and_the_provider_is_taken() -> None:
    latency, throughput = profile(goal="latency", batch_size=1), profile()
    both = [elsewhere(throughput, processor="Another"), latency, throughput]
    assert profile_for(both, "cpu", "throughput") == throughput
    assert profile_for(both, "cpu", "latency") == latency
    assert profile_for(both, "openvino", "latency") is None
    assert profile_for([], "cpu", "latency") is None


def test_no_machine_is_asked_for_without_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.bundles.profiles.this_machine", None)
    assert profile_for([profile()], "cuda", "latency") is None


def test_a_new_profile_replaces_its_like() -> None:
    old, latency = profile(batch_size=4), profile(goal="latency", batch_size=1)
    other = elsewhere(old, processor="Another")
    assert with_profile([old, latency, other], profile()) == (latency, other, profile())


SENSELESS = {
    "no thread": (profile(settings=SessionSettings(threads=0)), "threads must be 1 or more, got 0"),
    "of a GPU": (
        profile(settings=SessionSettings(threads=1, tf32=True)),
        "tf32=on is for cuda, not for cpu",
    ),
    "graph": (
        profile(provider="cuda", settings=SessionSettings(threads=1, cuda_graph=True)),
        "cuda_graph=on replays calls on bound memory: it needs binding=on",
    ),
    "more than there is": (
        elsewhere(profile(settings=SessionSettings(threads=4, parallel=2)), allowed_cores=2),
        "threads × parallel is 8, its machine has 2",
    ),
    "no batch": (profile(batch_size=0), "batch_size must be 1 or more, got 0"),
    "no time": (profile(p50_ms=0.0), "p50_ms must be above 0, got 0.0"),
    "negative": (profile(over_defaults=-1.0), "over_defaults must be above 0, got -1.0"),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_what_no_tuning_gives_is_refused(bundle: Path, case: str) -> None:
    bad, message = SENSELESS[case]
    forge(bundle, profiles=(profile(goal="latency"), bad))
    with pytest.raises(IntegrityError, match=r"manifest\.json\.profiles\[1\]: ") as caught:
        open_bundle(bundle)
    assert str(caught.value).endswith(message)


def test_two_for_the_same_are_refused() -> None:
    check_profiles([profile(), profile(goal="latency")], "here")
    with pytest.raises(IntegrityError, match=r"here\.profiles: two are for the same goal"):
        check_profiles([profile(), profile(batch_size=4)], "here")


# Into a bundle


def test_a_bundle_is_built_without_one(built_bundle: Path) -> None:
    assert read_manifest(built_bundle).profiles == ()
    assert open_model(built_bundle).profile is None
    report = verify(built_bundle)
    assert {check.name: check.detail for check in report.checks}["profiles"].startswith("none")


def test_a_profile_goes_into_a_bundle_and_comes_back(bundle: Path) -> None:
    before = open_bundle(bundle)
    written = write_profile(bundle, profile())
    after = open_bundle(bundle)
    assert after.manifest == written
    assert after.manifest.profiles == (profile(),)
    assert after.manifest.digest != before.manifest.digest
    changed = dataclasses.replace(before.manifest, profiles=(profile(),), digest=written.digest)
    assert after.manifest == changed
    assert after.contents == before.contents
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_verify_accepts_and_shows_it(bundle: Path) -> None:
    write_profile(bundle, profile())
    write_profile(bundle, profile(goal="latency", batch_size=1))
    report = verify(bundle)
    assert report.passed
    message = {check.name: check.detail for check in report.checks}["profiles"]
    assert "profile throughput: threads 1, parallel 2, batch 16, for cpu on " in message
    assert "profile latency: " in message
    assert profile().machine.processor in message


def test_its_runner_runs_on(bundle: Path) -> None:
    write_profile(bundle, profile())
    command = [sys.executable, "-I", "-B", str(bundle / "runner.py"), "selftest"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    (bundle / MANIFEST).write_text(text.replace('"batch_size": 16', '"batch_size": 17'))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "manifest.json was altered" in done.stderr


def test_a_bundle_that_is_not_intact_gets_none(bundle: Path, tmp_path: Path) -> None:
    (bundle / "labels.txt").write_text("a\n")
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(IntegrityError, match=r"labels\.txt"):
        write_profile(bundle, profile())
    assert (bundle / MANIFEST).read_bytes() == before
    with pytest.raises(MissingInputError):
        write_profile(tmp_path / "none", profile())


def test_a_senseless_profile_is_not_written(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(IntegrityError):
        write_profile(bundle, SENSELESS["no batch"][0])
    assert (bundle / MANIFEST).read_bytes() == before


def test_a_profile_that_cannot_be_proven_here_is_not_written(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(ProviderError):
        write_profile(bundle, profile(provider="coreml"))
    assert (bundle / MANIFEST).read_bytes() == before


def test_an_interruption_leaves_the_old_manifest(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_profile(bundle, profile())
    assert open_bundle(bundle).manifest.profiles == ()
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_bundle_named_by_a_dot(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    write_profile(Path(), profile())
    assert open_model(bundle).profile == profile()


# In use


def test_a_model_runs_as_its_profile_says(bundle: Path) -> None:
    write_profile(bundle, profile())
    model = open_model(bundle)
    assert model.profile == profile()
    assert model.session.settings == profile().settings
    assert (model.parallel, model.batch_rows) == (2, 16)


def test_the_goal_chooses_the_profile(bundle: Path) -> None:
    latency = profile(goal="latency", settings=SessionSettings(threads=1), batch_size=1)
    write_profile(bundle, latency)
    assert open_model(bundle).profile is None
    model = open_model(bundle, goal="latency")
    assert model.profile == latency
    assert model.batch_rows == BATCH_ROWS  # tuned for one row says nothing of many


@pytest.mark.parametrize("given", [{"threads": 1}, {"settings": SessionSettings(threads=1)}])
def test_what_the_caller_says_wins(bundle: Path, given: dict[str, Any]) -> None:
    write_profile(bundle, profile())
    model = open_model(bundle, **given)
    assert model.profile is None
    assert model.session.settings == SessionSettings(threads=1)
    assert model.batch_rows == BATCH_ROWS


def test_a_captured_graph_is_left_to_the_benchmark(bundle: Path) -> None:
    graph = SessionSettings(threads=1, binding=True, cuda_graph=True)
    one = profile(provider="cuda", settings=graph)
    assert one.applied == SessionSettings(threads=1, binding=True)
    with pytest.raises(UsageError, match="cuda_graph=on replays calls of one shape"):
        open_model(bundle, settings=graph)


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("rows", [5, 100])
def test_answers_are_the_same_to_the_bit(bundle: Path, binding: bool, rows: int) -> None:
    plain = open_model(bundle, threads=1)
    settings = SessionSettings(threads=1, parallel=2, binding=binding)
    write_profile(bundle, profile(settings=settings))
    tuned = open_model(bundle)
    assert (tuned.bound is not None) == binding
    expected = plain.answers(images(rows), batch_rows=16)
    for name, values in tuned.answers(images(rows)).items():
        np.testing.assert_array_equal(values, expected[name])
    np.testing.assert_array_equal(
        tuned.predict(images(rows)).scores, plain.predict(images(rows), batch_rows=16).scores
    )


def test_a_profile_of_a_model_of_texts(tmp_path: Path, bundle_of: Copies) -> None:
    bundle_of(text_contents)
    expected = open_model(tmp_path / "tiny", threads=1).predict(np.array(TEXTS * 9))
    write_profile(tmp_path / "tiny", profile(batch_size=4))
    model = open_model(tmp_path / "tiny")
    assert (model.parallel, model.bound) == (2, None)
    assert model.predict(np.array(TEXTS * 9)).label == expected.label
