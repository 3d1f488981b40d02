"""Whether deployments that are cut, meet, or find no room leave a whole version on the device.

Run: python benchmarks/deploy_kills.py --cuts 100 [--publish docs/results]

The device is an sshd on loopback, with a folder of this machine. Deployments of five bundles in
turn are cut at random moments, in turns by SIGKILL of the client, by Ctrl-C, by SIGKILL of the
client with its ssh and rsync, of the connection on the device, and of all of ferry on the device.
Every second bundle has the runner that ferry ships, the others one that answers at once, so that
uploading and switching are a larger part of the time. Meanwhile a process reads what is served,
without a pause, and compares the sha256 of the model with its manifest. After each cut the device
must serve a whole version, and `ferry devices` say the same as the folder itself.

Then: a self-test that fails, two deployments at once, the present version again, and a disk that
becomes full in the middle, of a small file system in memory where this may be mounted.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
from benching import Line, parser, show

from pipeline.cli import ferry
from serving.bundles.bundle import MODEL, FileInfo, read_manifest
from serving.edge.state import DeviceState

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "serving"))

from rolled_out import names, plan, rolled_out, served, stub, whole
from ssh_server import ALIAS, SshServer, below, missing, ssh_server
from tiny_classifier import contents, forge

from serving.bundles.writing import write_bundle

WAYS = ("SIGKILL", "SIGINT", "with ssh", "connection", "device")
WEIGHT = 1_000_000
"""Bytes of the model of a stub, which differ from bundle to bundle."""
SETTLE_SECONDS = 30


def main() -> None:
    """Cut, let two meet, fill, and look; exit status 1 when anything is not as it must be."""
    arguments = parser(__doc__)
    arguments.add_argument("--cuts", type=int, default=100)
    arguments.add_argument("--others", type=int, default=20, help="Of each other kind.")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    if lack := missing():
        sys.exit(lack)
    moments = random.Random(options.seed)  # noqa: S311 - no secret is drawn
    with tempfile.TemporaryDirectory() as folder, ssh_server(Path(folder)) as server:
        trial = Trial(Path(folder), server, moments)
        with reading(trial.home, Path(folder) / "reads.json") as reads:
            lines = [*trial.cuts(options.cuts), *trial.others(options.others)]
        lines[2:2] = [reads.line()]
        lines += trial.full_disks(options.others)
    show(lines, options.publish)


class Trial:
    """A device that serves one of five bundles."""

    def __init__(self, folder: Path, server: SshServer, moments: random.Random) -> None:
        """Make the bundles, deploy the first, and time what nobody disturbs."""
        self.folder, self.server, self.moments = folder, server, moments
        self.home, self.plan = folder / "device" / "model", plan(server.config)
        self.target = f"{ALIAS}:{self.home}"
        self.bundles = list(self.make_bundles())
        self.seconds = {}
        for bundle in self.bundles:
            self.seconds[bundle] = self.deploy(bundle)
        print(
            "undisturbed:", ", ".join(f"{one:.1f} s" for one in self.seconds.values()), flush=True
        )

    def make_bundles(self) -> Iterator[Path]:
        """Three with ferry's own runner, and two stubs with large models."""
        for at in range(5):
            bundle = self.folder / "made" / str(at)
            if at % 2 == 0:
                write_bundle(bundle, contents(metrics={"accuracy": 90.0 + at}))
            else:
                yield self.heavy(stub(self.bundle_zero(), bundle, accuracy=90.0 + at), at)
                continue
            yield bundle

    def bundle_zero(self) -> Path:
        """The first that was made."""
        return self.folder / "made" / "0"

    def heavy(self, bundle: Path, seed: int) -> Path:
        """Give a stub a model that takes a while to upload."""
        content = np.random.default_rng(seed).bytes(WEIGHT)
        (bundle / MODEL).write_bytes(content)
        files = dict(read_manifest(bundle).files)
        files[MODEL] = FileInfo(size=WEIGHT, sha256=sha256(content).hexdigest())
        forge(bundle, files=files)
        return bundle

    def deploy(self, bundle: Path) -> float:
        """Deploy without disturbance; the seconds it took."""
        begin = time.monotonic()
        report = rolled_out(bundle, self.target, self.plan)
        if report.problem:
            sys.exit(f"undisturbed: {report.problem}")
        return time.monotonic() - begin

    def cuts(self, count: int) -> Iterator[Line]:
        """Cut a deployment and look, so many times."""
        outcomes: Counter[str] = Counter()
        late = left = 0
        for number in range(count):
            way, before, old = WAYS[number % len(WAYS)], whole(self.home), hidden(self.home)
            others = [one for one in self.bundles if read_manifest(one).digest != before]
            bundle = self.moments.choice(others)
            ended, at_once = self.cut(bundle, way)
            state = self.settled()
            after = whole(self.home)
            if after not in (before, read_manifest(bundle).digest) or state.digest != after:
                sys.exit(f"{way}: {before}, then {after}; devices says {state.digest}")
            if state.problems:
                sys.exit(f"{way}: devices says {state.problems}")
            late += at_once != after
            if bool(hidden(self.home)) != bool(state.notes):
                sys.exit(f"{way}: {hidden(self.home)} is left, devices says {state.notes}")
            left += bool(hidden(self.home) - old)
            outcomes["ended before" if ended else "after" if after != before else "cut before"] += 1
            if number % 10 == 9:
                print(f"{number + 1} cuts: {dict(outcomes)}, {left} left half uploads", flush=True)
                self.deploy(self.bundles[(number + 3) % 5])
                self.in_order()
        told = f"{count - outcomes['ended before']} ({outcomes['after']} after the switch, {late} "
        yield Line("deployments that were cut", told + "ended after the cut)", "–", None)
        yield Line(
            "a whole version served, and devices says which", f"{count} of {count}", "all", True
        )
        yield Line("half uploads left by a cut, all told by devices and taken away by the next",
                   str(left), "–", None)  # fmt: skip

    def cut(self, bundle: Path, way: str) -> tuple[bool, str]:
        """Start a deployment and cut it; whether it had ended, and what is served right then."""
        pid = self.forked(bundle)
        time.sleep(self.moments.uniform(0, 1.1 * self.seconds[bundle]))
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        children = below(pid)
        victims = {
            "SIGKILL": [pid],
            "SIGINT": [],
            "with ssh": [pid, *children],
            "connection": self.server.sessions(),
            "device": [one for one in below(self.server.process.pid) if is_ours(one)],
        }[way]
        if way == "SIGINT" and not ended:
            os.kill(pid, signal.SIGINT)
        for one in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        at_once = whole(self.home)
        os.waitpid(pid, 0)
        return ended, at_once

    def forked(self, bundle: Path) -> int:
        """Deploy in a process that has imported all of it."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            with (self.folder / "log").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(self.folder)
            words = ["deploy", str(bundle), self.target, "--no-track", "--python", sys.executable]
            ferry.main([*words, "--ssh-config", str(self.server.config)], prog_name="ferry")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)

    def settled(self) -> DeviceState:
        """What `ferry devices` says when nothing goes on there any more."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (state := served(self.target, self.plan)).busy:
            if time.monotonic() > deadline:
                sys.exit(f"busy for {SETTLE_SECONDS} s: {state.busy}")
        return state

    def in_order(self) -> None:
        """After a deployment that nobody disturbed three versions are there, and nothing else."""
        found, state = names(self.home), served(self.target, self.plan)
        if len(found) != 7 or state.notes or state.problems or state.digest != whole(self.home):
            sys.exit(f"not in order: {found}, {state}")

    def others(self, count: int) -> Iterator[Line]:
        """What is refused, what meets, and what is there already."""
        bad = stub(self.bundle_zero(), self.folder / "bad", accuracy=1, selftest="sys.exit('bad')")
        for _ in range(count):
            before = (whole(self.home), names(self.home))
            report = rolled_out(bad, self.target, self.plan)
            if report.outcome != "failed" or before != (whole(self.home), names(self.home)):
                sys.exit(f"a self-test that fails: {report}")
        yield Line(
            "a self-test that fails there: nothing changed", f"{count} of {count}", "all", True
        )
        told = Counter(self.two_at_once() for _ in range(count))
        words = f"{count} of {count} ({told[1]} times the second was refused, else it came after)"
        yield Line("two at once: one whole version, which devices tells", words, "all", True)
        for at in range(count):
            bundle = self.bundles[at % 2]
            self.deploy(bundle)
            before = served(self.target, self.plan)
            if rolled_out(bundle, self.target, self.plan).outcome != "present":
                sys.exit("the present version is not told to be there")
            if served(self.target, self.plan) != before:
                sys.exit("the present version again changed something")
        yield Line("the present version again: nothing changed", f"{count} of {count}", "all", True)

    def two_at_once(self) -> int:
        """Start two, and look; how many were refused."""
        two = self.moments.sample(self.bundles, 2)
        pids = [self.forked(one) for one in two]
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        state, found = self.settled(), whole(self.home)
        if found not in [read_manifest(one).digest for one in two] or state.digest != found:
            sys.exit(f"two at once: {found}; devices says {state}")
        return sum(map(bool, statuses))

    def full_disks(self, count: int) -> Iterator[Line]:
        """Deploy to a disk that has room for some of it, before and during."""
        what, disk = "a disk that becomes full: the version before, nothing left", self.folder / "d"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=40", "none", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            yield Line(what, "skipped: only root can mount one", "all", None)
            return
        try:
            target, told = f"{ALIAS}:{disk}/m", Counter[str]()
            rolled_out(self.bundles[1], target, self.plan)
            for number in range(count):
                told[self.full_disk(disk, target, number)] += 1
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        words = ", ".join(f"{many} {how}" for how, many in told.items())
        yield Line(what, f"{count} of {count} ({words})", "all", True)

    def full_disk(self, disk: Path, target: str, number: int) -> str:
        """Leave so little room that the deployment fails; how it did."""
        before = (whole(disk / "m"), names(disk / "m"))
        free, fillers = os.statvfs(disk), []
        if number % 2:  # names, which run out in the middle
            count = free.f_ffree - self.moments.randint(0, 5)
            fillers = [disk / f"filler{at}" for at in range(count)]
            for one in fillers:
                one.touch()
        else:  # bytes, which another program takes in the middle
            fillers = [disk / "filler"]
            room = self.moments.randint(0, WEIGHT)
            fillers[0].write_bytes(bytes(free.f_bavail * free.f_bsize - room))
        report = rolled_out(self.bundles[3], target, self.plan)
        for one in fillers:
            one.unlink()
        state = served(target, self.plan)
        if report.outcome != "failed" or "space" not in str(report.problem):
            sys.exit(f"a full disk: {report}")
        if before != (whole(disk / "m"), names(disk / "m")) or state.digest != before[0]:
            sys.exit(f"a full disk: {before}, then {names(disk / 'm')}, {state}")
        return "during" if "became full" in str(report.problem) else "before"


class Reads:
    """What the reader counted."""

    def __init__(self, told: Path) -> None:
        """In the file `told`, when it has ended."""
        self.told = told

    def line(self) -> Line:
        """Of what was published."""
        found = json.loads(self.told.read_text())
        reached = f"{found['failed']} of {found['reads']:,}"
        return Line("reads that failed meanwhile", reached, "0", found["failed"] == 0)


@contextlib.contextmanager
def reading(home: Path, told: Path) -> Iterator[Reads]:
    """Read what is served in a process of its own, without a pause."""
    process = multiprocessing.get_context("fork").Process(target=read, args=(home, told))
    process.start()
    try:
        yield Reads(told)
    finally:
        os.kill(process.pid or 0, signal.SIGUSR1)
        process.join()


def read(home: Path, told: Path) -> None:
    """Read until SIGUSR1, and tell how often, and how often it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ends: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: ends.append(number))
    reads, failed, reasons = 0, 0, Counter[str]()
    while not ends:
        try:
            version = os.open(home / "current", os.O_DIRECTORY)
            try:
                manifest = json.loads(content(version, "manifest.json"))
                found = sha256(content(version, MODEL)).hexdigest()
            finally:
                os.close(version)
            failed += found != manifest["files"][MODEL]["sha256"]
        except (OSError, ValueError) as error:
            failed += 1
            reasons[str(error)] += 1
        reads += 1
        time.sleep(0.001)  # two cores are shared with what is measured
    told.write_text(json.dumps({"reads": reads, "failed": failed, "why": reasons}))


def content(version: int, name: str) -> bytes:
    """The bytes of a file of an open folder."""
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=version), "rb") as file:
        return file.read()


def hidden(home: Path) -> set[str]:
    """The uploads and the links that were not taken away."""
    there = [*(home / "versions").iterdir(), *home.iterdir()]
    named = {one.name for one in there if one.name.startswith(".")}
    return named - {".lock", ".history.json"}


def is_ours(pid: int) -> bool:
    """Whether a process of the device runs ferry's text."""
    with contextlib.suppress(OSError):
        return b"sys.stdin.buffer.readline" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


if __name__ == "__main__":
    main()
