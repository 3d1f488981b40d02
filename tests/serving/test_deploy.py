"""Roll out over a real ssh: what is served, what is refused, and what a cut leaves."""

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from closure import ROOT
from rolled_out import below, names, plan, rolled_back, rolled_out, served, stub, whole
from ssh_server import ALIAS, SshServer, make_key, missing, ssh_server
from tiny_classifier import contents

from serving.bundles.bundle import read_manifest
from serving.bundles.signing import sign
from serving.bundles.writing import write_bundle
from serving.edge import ssh
from serving.edge.deploy import DeployPlan, deploy
from serving.edge.folder import Installed
from serving.edge.targets import all_targets, parse_target, read_hosts
from serving.errors import FerryError, InputError, IntegrityError, UsageError

Built = Callable[..., Path]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An sshd that no test stops."""
    if lack := missing():
        pytest.skip(lack)
    with ssh_server(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python whose numpy and onnxruntime are there and do nothing: enough for a stub."""
    folder = tmp_path_factory.mktemp("quick")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in ("numpy", "onnxruntime"):
        (packages / f"{name}.py").write_text("__version__ = '2.5.0'\n")
    return str(folder / "bin" / "python")


@pytest.fixture
def given(server: SshServer, quick: str) -> DeployPlan:
    """To the device of the server."""
    return plan(server.config, python=quick)


@pytest.fixture
def local(quick: str) -> DeployPlan:
    """To folders of this machine."""
    return plan(Path("/nowhere"), python=quick)


@pytest.fixture
def built(built_bundle: Path, tmp_path: Path) -> Built:
    """Makes a stub of a bundle by its name."""
    return lambda name, **how: stub(built_bundle, tmp_path / "made" / name, **how)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of the device."""
    return tmp_path / "device" / "model"


def digest(bundle: Path) -> str:
    return read_manifest(bundle).digest


# What is served


def test_a_bundle_is_tested_there_and_served(
    built_bundle: Path, built: Built, home: Path, server: SshServer
) -> None:
    """With the runner that ferry ships, and the packages that it needs."""
    given = plan(server.config)
    report = rolled_out(built_bundle, f"{ALIAS}:{home}", given)
    assert (report.outcome, report.problem, report.over) == ("deployed", None, None)
    assert whole(home) == digest(built_bundle)
    assert (home / "current").readlink() == Path("versions") / digest(built_bundle)[:12]
    state = served(f"{ALIAS}:{home}", given)
    assert state == report.state
    assert (state.name, state.variant, state.path) == ("tiny", "fp32", str(home))
    assert state.selftest == report.selftest is not None
    assert state.machine is not None
    assert state.machine.cores == os.cpu_count()
    assert (state.problems, state.notes, state.busy, state.before) == ((), (), None, None)

    other = rolled_out(built("other"), f"{ALIAS}:{home}", given)
    assert (other.outcome, other.over) == ("deployed", digest(built_bundle))
    assert rolled_back(f"{ALIAS}:{home}", given).outcome == "rolled back"
    assert whole(home) == digest(built_bundle)


def test_versions_follow_one_another_and_go_back(
    built: Built, home: Path, local: DeployPlan
) -> None:
    target, made = str(home), [built(str(at), accuracy=90 + at) for at in range(4)]
    for at, bundle in enumerate(made):
        report = rolled_out(bundle, target, local)
        assert report.outcome == "deployed"
        assert report.over == (digest(made[at - 1]) if at else None)
        assert report.state is not None
        assert dict(report.state.bench) == {"p50_ms": 0.25, "rows_per_second": 4000.0}
    kept = sorted(digest(one)[:12] for one in made[1:])
    assert names(home) == sorted([".history.json", *kept, *(f"{one}.json" for one in kept)])
    model = [(home / "versions" / one / "model.onnx").stat() for one in kept]
    assert {one.st_nlink for one in model} == {1}, "what spoils one version spoils no other"

    before = served(target, local)
    again = rolled_out(made[3], target, local)
    assert (again.outcome, again.selftest) == ("present", 1.5e-06)
    assert served(target, local) == before, "nothing is changed, not even since when"

    for at in (2, 1):
        back = rolled_back(target, local)
        assert (back.outcome, back.over) == ("rolled back", digest(made[at + 1]))
        assert whole(home) == digest(made[at])
    assert "no version before" in str(rolled_back(target, local).problem)
    assert whole(home) == digest(made[1])

    forward = rolled_out(made[3], target, local)
    assert forward.outcome == "deployed", "what is still there is served without an upload"
    assert served(target, local).before == digest(made[1])


@pytest.mark.parametrize("how", ["selftest", "bench"])
def test_a_test_that_fails_there_changes_nothing(
    built: Built, home: Path, local: DeployPlan, how: str
) -> None:
    target, bad = (
        str(home),
        built("bad", accuracy=1, **{how: "sys.exit('runner: too hot')"}),
    )
    report = rolled_out(bad, target, local)
    assert report.problem == f"the {how} failed: too hot"
    assert not home.parent.exists(), "nor is a folder left"
    rolled_out(built("good"), target, local)
    before = list(below(home))
    assert rolled_out(bad, target, local).outcome == "failed"
    assert list(below(home)) == before


def test_a_version_that_was_altered_is_told_and_mended(
    built: Built, home: Path, local: DeployPlan
) -> None:
    target, bundle = str(home), built("one")
    rolled_out(bundle, target, local)
    other = built("two", accuracy=50)
    rolled_out(other, target, local)
    (home / "versions" / digest(bundle)[:12] / "labels.txt").write_text("other\n")
    assert "labels.txt was altered" in str(rolled_back(target, local).problem)
    assert rolled_out(bundle, target, local).outcome == "deployed"
    assert whole(home) == digest(bundle)
    (home / "current" / "numpy.py").write_text("")
    assert served(target, local).problems == (
        f"versions/{digest(bundle)[:12]} is not whole: numpy.py is added",
    )
    damaged = (home / "current").resolve()
    assert rolled_out(bundle, target, local).outcome == "deployed", "the present version too"
    assert whole(home) == digest(bundle)
    assert damaged.exists(), "who reads it can go on"
    assert rolled_back(target, local).outcome == "rolled back"
    assert whole(home) == digest(other), "and not to the damaged one"
    rolled_out(bundle, target, local)
    assert served(target, local).problems == ()


def test_a_link_that_leads_nowhere_is_told_and_mended(
    built: Built, home: Path, local: DeployPlan
) -> None:
    target, bundle, other = str(home), built("one"), built("two", accuracy=50)
    rolled_out(bundle, target, local)
    rolled_out(other, target, local)
    shutil.rmtree(home / "versions" / digest(other)[:12])
    (problem,) = served(target, local).problems
    assert problem == f"the link leads to versions/{digest(other)[:12]}, which is missing"
    assert rolled_back(target, local).outcome == "rolled back"
    assert whole(home) == digest(bundle)


def test_what_a_cut_left_is_told_and_taken_away(
    built: Built, home: Path, local: DeployPlan
) -> None:
    target, bundle = str(home), built("one")
    rolled_out(bundle, target, local)
    half = home / "versions" / f".{'0' * 12}.0123abcd.tmp"
    half.mkdir()
    (half / "model.onnx").write_bytes(b"half")
    (home / ".current.0123abcd").symlink_to("versions/x")
    state = served(target, local)
    assert (state.problems, state.notes) == ((), ("2 half uploads left",))
    (about,) = home.glob("versions/[0-9a-f]*.json")
    about.write_text(about.read_text().replace("0.25", '"quick"'))
    assert "p50_ms must be float" in served(target, local).notes[1]
    assert rolled_out(bundle, target, local).outcome == "present"
    about.write_text("{")
    assert rolled_out(bundle, target, local).outcome == "deployed", "it is tested again"
    assert (served(target, local).notes, served(target, local).p50_ms) == ((), 0.25)


def test_the_history_follows_the_link(tmp_path: Path) -> None:
    """A kill may fall between the two."""
    installed = Installed(str(tmp_path))
    for name in "abc":
        (tmp_path / "versions" / name).mkdir(parents=True)

    def after(told: list[str], served: str) -> list[str]:
        installed.history_file.write_text(json.dumps(told))
        installed.link.unlink(missing_ok=True)
        installed.link.symlink_to(f"versions/{served}")
        return installed.history()

    assert after(["a", "b"], "b") == ["a", "b"]
    assert after(["a", "b"], "c") == ["a", "b", "c"], "deployed"
    assert after(["a", "b"], "a") == ["a"], "gone back"
    assert after(["a", "gone", "a", "b"], "b") == ["a", "b"]
    installed.history_file.write_text("[1")
    assert installed.history() == ["b"]


def test_a_manifest_of_another_shape_is_told_and_mended(
    built: Built, home: Path, local: DeployPlan
) -> None:
    target, bundle = str(home), built("one")
    rolled_out(bundle, target, local)
    manifest = home / "current" / "manifest.json"
    for content in ("[" * 100_000, '{"files": []}', '{"files": {"model.onnx": 5}}'):
        manifest.write_text(content)
        (problem,) = served(target, local).problems
        assert problem.endswith("is not whole: manifest.json was altered")
    assert rolled_out(built("two", accuracy=50), target, local).outcome == "deployed"


def test_a_pipe_in_the_place_of_a_file_is_told_and_not_read(
    built: Built, home: Path, local: DeployPlan
) -> None:
    rolled_out(built("one"), str(home), local)
    (home / "current" / "labels.txt").unlink()
    os.mkfifo(home / "current" / "labels.txt")
    (problem,) = served(str(home), local).problems
    assert "labels.txt is a link or a device, not a plain file" in problem


def test_another_provider_is_tested_and_told(built: Built, home: Path, local: DeployPlan) -> None:
    """Of the version that is served already, too."""
    bundle = built("one")
    for provider in ("cpu", "cuda"):
        given = dataclasses.replace(local, provider=provider)
        assert rolled_out(bundle, str(home), given).outcome == "deployed"
        assert served(str(home), local).provider == provider
        assert rolled_out(bundle, str(home), given).outcome == "present"


# Where it goes


def test_a_home_folder_of_nobody_is_one_line(given: DeployPlan) -> None:
    (problem,) = served(f"{ALIAS}:~nobody-of-that-name/model", given).problems
    assert problem.startswith("~nobody-of-that-name/model: there is no such user")


@pytest.mark.parametrize("path", ["-with a space", """quo'te "$(touch x)" `id`;*""", "émeu\\n"])
def test_a_path_is_a_path_whatever_is_in_it(
    built: Built, tmp_path: Path, given: DeployPlan, path: str
) -> None:
    home, bundle = tmp_path / "there" / path, built("one")
    assert rolled_out(bundle, f"{ALIAS}:{home}", given).outcome == "deployed"
    assert rolled_out(built("two", accuracy=9), f"{ALIAS}:{home}", given).outcome == "deployed"
    assert [one.name for one in (tmp_path / "there").iterdir()] == [path]


def test_a_folder_here_needs_no_ssh(built: Built, home: Path, local: DeployPlan) -> None:
    assert rolled_out(built("one"), str(home), local).outcome == "deployed"
    assert served(str(home), local).host == "localhost"


def test_a_link_to_a_folder_is_followed(built: Built, tmp_path: Path, local: DeployPlan) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "opt").symlink_to("disk")
    report = rolled_out(built("one"), f"{tmp_path}/opt/model", local)
    assert report.state is not None
    assert report.state.path == str(tmp_path / "disk/model")


def test_what_is_no_folder_for_it_is_left_alone(
    built: Built, tmp_path: Path, local: DeployPlan
) -> None:
    bundle = built("one")
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "current").mkdir()
    for name, told in {
        "file": "is a file; a deployment is a folder",
        "file/below": "Not a directory",
        "lost": "is a link to",
        "other": "holds thesis.tex and no deployment",
        "taken": "is no link that ferry made",
    }.items():
        before = list(below(tmp_path))
        assert told in str(rolled_out(bundle, str(tmp_path / name), local).problem)
        assert list(below(tmp_path)) == before
    assert served(str(tmp_path / "nothing"), local).problems == ("nothing is deployed",)
    assert "nothing is deployed" in str(rolled_back(str(tmp_path / "nothing"), local).problem)


@pytest.mark.parametrize(
    ("typed", "login", "path"),
    [
        ("pi@sensor:/opt/model", "pi@sensor", "/opt/model"),
        ("sensor:model", "sensor", "model"),
        ("pi@[::1]:/opt/a:b", "pi@::1", "/opt/a:b"),
        ("[fe80::1%eth0]:/m", "fe80::1%eth0", "/m"),
        ("/opt/a:b", None, "/opt/a:b"),
    ],
)
def test_a_target_is_written_as_scp_takes_it(typed: str, login: str | None, path: str) -> None:
    found = parse_target(typed)
    assert (found.login, found.path) == (login, path)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("-oProxyCommand=id:/x", "does not begin with a dash"),
        ("pi@-oProxyCommand=id:/x", "is no target"),
        ("ssh://pi@sensor/opt", "a port into ~/.ssh/config"),
        ("sensor:", "has no path; write sensor:/opt/model"),
        ("::1:/opt/model", "[::1]:/opt/model"),
        ("a b:/opt", "is no target"),
        ("$(id):/opt", "is no target"),
        ("", "is no target"),
        # A host whose path was forgotten, or the bundle typed in its place: no folder to make here.
        ("sensor", "write sensor:/opt/model, or ./sensor for a folder of this machine"),
        ("sensor:/a\nb", "is no target"),
        ("~nobody-of-that-name/model", "is in the home folder of a user who is not here"),
    ],
)
def test_what_is_no_target_is_told_how_one_is_written(typed: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_target(typed)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "fleet.txt"
    path.write_text("\ufeff# the hall\n\n  pi@one:/opt/model  # left\ntwo:/opt/model#2\n", "utf-8")
    found = [(one.host, one.path) for one in read_hosts(path)]
    assert found == [("one", "/opt/model"), ("two", "/opt/model#2")]
    with pytest.raises(UsageError, match="two:/opt/model#2 is named twice"):
        all_targets(["two:/opt/model#2"], path)
    path.write_text("one:/x\n\nthree\tfour:/x\n")
    with pytest.raises(InputError, match=r"fleet.txt, line 3: 'three\\tfour:/x' is no target"):
        read_hosts(path)
    path.write_text("# nobody\n")
    with pytest.raises(InputError, match="names no target"):
        read_hosts(path)
    with pytest.raises(FerryError, match=r"none\.txt is not there"):
        read_hosts(tmp_path / "none.txt")


# What is wrong with a device


@pytest.mark.parametrize("name", ["folder", "on_device"])
def test_an_old_python_there_can_read_it(name: str) -> None:
    text = (ROOT / f"serving/edge/{name}.py").read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 8))


def test_a_device_that_cannot_be_reached_is_one_line(
    built: Built, home: Path, server: SshServer
) -> None:
    bundle, folder = built("one"), server.folder
    changed, unknown = folder / "changed", folder / "unknown"
    other = make_key(folder / "other_host_key")
    changed.write_text(f"[127.0.0.1]:{server.port} {other}")
    unknown.write_text("")
    for settings, told in (
        (
            {"UserKnownHostsFile": changed},
            f"ssh-keygen -f {changed} -R '[127.0.0.1]:{server.port}'",
        ),
        ({"UserKnownHostsFile": unknown}, "its host key is not known"),
        ({"IdentityFile": folder / "stranger"}, "may not log in: `ssh-copy-id device`"),
        ({"Port": 1}, "Connection refused"),
        ({"HostName": "nowhere.invalid"}, "there is no such host"),
        ({"Banana": "yes"}, "terminating, 1 bad configuration options"),
    ):
        given = plan(server.settings("other_config", **settings))
        report = rolled_out(bundle, f"{ALIAS}:{home}", given)
        assert report.outcome == "failed"
        assert told in str(report.problem)
        assert "\n" not in str(report.problem)
        assert served(f"{ALIAS}:{home}", given).problems == (report.problem,)
    assert not home.exists()


def test_a_device_without_what_it_needs_is_one_line(
    built: Built, tmp_path: Path, home: Path, given: DeployPlan
) -> None:
    empty = tmp_path / "an empty one"
    command = [sys.executable, "-m", "venv", "--without-pip", str(empty)]
    subprocess.run(command, check=True)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 'too old: 3.6' >&2; exit 1\n")
    old.chmod(0o755)
    target, bundle = f"{ALIAS}:{home}", built("one")
    for python, told in (
        ("python9", "there is no python9 there that can be run"),
        (str(empty / "bin/python"), "has no numpy: "),
        (str(old), "is 3.6; it must be 3.8 or newer"),
        ("/etc/passwd", "there is no /etc/passwd there that can be run"),
        ("false", "false there ended at once: exit status 1"),
    ):
        report = rolled_out(bundle, target, plan(given.access.ssh_config, python=python))
        assert told in str(report.problem)
    for python in ("/etc/passwd", str(tmp_path / "none")):
        report = rolled_out(bundle, str(home), plan(python=python))
        assert f"{python} cannot be run here" in str(report.problem)
    newer = built("newer", minimum_runtime="99.0")
    assert "needs onnxruntime 99.0 or newer" in str(rolled_out(newer, target, given).problem)
    assert not home.exists()


@pytest.mark.parametrize(
    "said",
    ["no JSON", "[" * 100_000, "5", '{"step": []}', '{"step": "done"}', '{"step": "upload"}'],
)
def test_a_device_that_talks_otherwise_is_one_line(
    built: Built, tmp_path: Path, home: Path, said: str
) -> None:
    talker = tmp_path / "talker"
    talker.write_text(f"#!/bin/sh\necho 'ferry: {said}'\n")
    talker.chmod(0o755)
    report = rolled_out(built("one"), str(home), plan(python=str(talker)))
    assert report.outcome == "failed"
    assert "it does not answer as ferry does" in str(report.problem)


def test_a_device_does_not_write_on_the_terminal(built: Built, tmp_path: Path, home: Path) -> None:
    talker, told = tmp_path / "talker", list[str]()
    step = json.dumps({"step": "\x1b[2J"})
    talker.write_text(f"#!/bin/sh\ncat <<'X'\nferry: {step}\nX\n")
    talker.chmod(0o755)
    given = dataclasses.replace(
        plan(python=str(talker)), tell=lambda _target, said: told.append(said)
    )
    rolled_out(built("one"), str(home), given)
    assert told[:2] == ["connecting", " [2J"]


def test_an_rsync_that_ends_at_once_is_one_line(
    built: Built, home: Path, local: DeployPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody has looked whether it runs."""
    start = ssh._started

    def ended(command: Sequence[str], stderr: Any) -> Any:
        if command[0] != "rsync":
            return start(command, stderr)
        process = start(["rsync", "--no-such-option"], stderr)
        process.wait()
        return process

    monkeypatch.setattr(ssh, "_started", ended)
    assert "the upload failed: " in str(rolled_out(built("one"), str(home), local).problem)


def test_a_login_shell_that_talks_is_not_listened_to(
    built: Built, home: Path, tmp_path: Path, local: DeployPlan
) -> None:
    talks = tmp_path / "talks"
    talks.write_text(f'#!/bin/sh\necho Welcome; echo ferry:; exec {local.access.python} "$@"\n')
    talks.chmod(0o755)
    given = plan(python=str(talks))
    assert rolled_out(built("one"), str(home), given).outcome == "deployed"


def test_who_signed_it_is_asked_here(home: Path, tmp_path: Path) -> None:
    """Of a bundle with a folder in it."""
    bundle = tmp_path / "signed"
    write_bundle(bundle, contents(parts=(lambda _manifest, _files: {"sub/folder/a.txt": b"part"},)))
    keys = [tmp_path / f"{name}.pem" for name in ("own", "other")]
    for key in keys:
        command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key]
        subprocess.run(command, check=True, capture_output=True)
        command = ["openssl", "ec", "-in", key, "-pubout", "-out", key.with_suffix(".pub")]
        subprocess.run(command, check=True, capture_output=True)
    own, other = (dataclasses.replace(plan(), key=key.with_suffix(".pub")) for key in keys)
    with pytest.raises(IntegrityError, match="is not signed, so no key can vouch for it"):
        rolled_out(bundle, str(home), own)
    sign(bundle, keys[0])
    with pytest.raises(IntegrityError, match="is by another key than"):
        rolled_out(bundle, str(home), other)
    assert not home.exists()
    assert rolled_out(bundle, str(home), own).outcome == "deployed"
    assert (home / "current/model.sig").read_bytes() == (bundle / "model.sig").read_bytes()
    assert (home / "current/sub/folder/a.txt").read_bytes() == b"part"
    assert served(str(home), own).problems == ()


def test_several_devices_are_served_and_the_bad_one_is_named(
    built: Built, tmp_path: Path, given: DeployPlan
) -> None:
    words = [f"{ALIAS}:{tmp_path}/device/{at}" for at in range(3)]
    targets = all_targets([*words, "nowhere.invalid:/x"], None)
    report = deploy(built("one"), targets, given)
    outcomes = [one.outcome for one in report.devices]
    assert outcomes == ["deployed", "deployed", "deployed", "failed"]
    with pytest.raises(FerryError, match=r"^nowhere\.invalid:/x: there is no such host"):
        report.require()


def test_no_space_is_told_before_and_handled_during(
    built: Built, tmp_path: Path, local: DeployPlan
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k,nr_inodes=32", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk here")
    target, bundle, other = f"{disk}/m", built("one"), built("two", accuracy=9)
    try:
        assert rolled_out(bundle, target, local).outcome == "deployed"
        # Names run out before bytes do, which the check beforehand does not count.
        for number in range(os.statvfs(disk).f_ffree):
            (disk / f"fill{number:02}").write_bytes(b"")
        outcomes = []
        for filler in sorted(disk.glob("fill*"))[:12]:
            before, report = list(below(disk)), rolled_out(other, target, local)
            outcomes.append(report.outcome)
            if report.outcome == "deployed":
                break
            assert "not enough space there: the disk became full" in str(report.problem)
            assert (list(below(disk)), whole(disk / "m")) == (before, digest(bundle))
            filler.unlink()
        assert outcomes[-1] == "deployed"
        assert len(outcomes) > 4
        for one in disk.glob("fill*"):
            one.unlink()
        (disk / "fill").write_bytes(bytes(400_000))
        third = built("three", accuracy=8)
        assert "are free, the bundle needs" in str(rolled_out(third, target, local).problem)
        assert whole(disk / "m") == digest(other)
        assert served(target, local).notes == ()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_of_somebody_else_is_refused(
    built: Built, tmp_path: Path, local: DeployPlan
) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    report = rolled_out(built("one"), f"{tmp_path}/locked/model", local)
    assert report.problem == f"{tmp_path}/locked/model: Permission denied"


# Two at once, and cuts


WAITS = "pathlib.Path({0!r}).touch(); time.sleep(60)"


def started(target: str, bundle: Path, mark: Path, given: DeployPlan) -> "subprocess.Popen[str]":
    """A client whose device is in the self-test, which waits."""
    words = ["deploy", str(bundle), target, "--no-track", "--python", given.access.python]
    command = [sys.executable, "-m", "pipeline.cli", *words]
    if given.access.ssh_config:
        command += ["--ssh-config", str(given.access.ssh_config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT", "the connection"])
def test_a_client_that_is_killed_leaves_the_version_before(
    built: Built, tmp_path: Path, home: Path, server: SshServer, given: DeployPlan, how: str
) -> None:
    target, good = f"{ALIAS}:{home}", built("good")
    rolled_out(good, target, given)
    before, mark = list(below(home)), tmp_path / "mark"
    slow = built("slow", accuracy=1, selftest=WAITS.format(str(mark)))
    process = started(target, slow, mark, given)
    if how == "SIGKILL":
        busy = served(target, given)
        assert busy.busy is not None
        assert busy.notes == (), "what is going on is not left over"
        met = rolled_out(built("other", accuracy=2), target, given)
        assert str(met.problem).startswith("another deployment is going on there, of ")
    if how == "the connection":
        for session in server.sessions():
            os.kill(session, signal.SIGKILL)
    else:
        process.send_signal(getattr(signal, how))
    _, told = process.communicate(timeout=60)
    if how == "SIGINT":
        assert (process.returncode, "given up here" in told) == (130, True)
    if how == "the connection":
        assert (process.returncode, "the connection was lost" in told) == (1, True)
    after = rolled_out(good, target, given)
    assert after.outcome == "present", "its lock is free at once"
    assert (list(below(home)), whole(home)) == (before, digest(good))


def test_a_reader_never_meets_half_a_version(built: Built, home: Path, local: DeployPlan) -> None:
    made = [built("one"), built("two", accuracy=9)]
    rolled_out(made[1], str(home), local)
    stop, reads = threading.Event(), 0

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            manifest = json.loads((home / "current/manifest.json").read_bytes())
            folder = home / "versions" / manifest["digest"][:12]
            found = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
            assert found == manifest["files"]["model.onnx"]["sha256"]
            reads += 1

    reader = threading.Thread(target=read)
    reader.start()
    for at in range(3):
        assert rolled_out(made[at % 2], str(home), local).outcome == "deployed"
    alive = reader.is_alive()
    stop.set()
    reader.join()
    assert alive
    assert reads > 3
