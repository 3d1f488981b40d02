"""Whether promotions and rollbacks that are killed, or meet, leave one champion everywhere.

Run: python benchmarks/registry_kills.py --kills 200 --pairs 100 [--publish docs/results]

Bundles of three small models that answer alike are registered. Then `ferry promote` and `ferry
rollback` are killed, by SIGKILL and Ctrl-C in turns: half of them at a random moment, half at a
random line of the code that writes, in which little time is spent. After the next
command, which is let be, the file must be whole, hold all that was in it before, and have one
champion, which is that of MLflow's aliases. Then two promotions of two models are started at once:
one wins, and the other is told so.

Commands are forked from a process that has imported everything, MLflow too; they mirror in
themselves, and record gates that were measured once. Some are whole programs, which measure, and
mirror in a process of their own. Aim: 200 kills and 100 pairs.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benching import Line, parser, show

from pipeline.cli import ferry
from pipeline.project.registry import mlflow_mirror, versions
from pipeline.project.registry.versions import Promotion, promote, register
from pipeline.tracking.store import load_mlflow
from serving.batch import lock
from serving.bundles.registry import Registry, registry_at
from serving.errors import FerryError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pipeline"))

from toy_registry import make_project

NAMES = ("first", "second", "third")
NAME, FILE, STORE = "toy", Path("registry/toy.jsonl"), Path("mlflow.db")
WRITING = {module.__file__ for module in (lock, mlflow_mirror, versions)}
SIGNALS = (signal.SIGKILL, signal.SIGINT)
WHOLE_PROGRAM = [sys.executable, "-c", "from pipeline.cli import main; main()"]
DEEPEST = 6
"""Champions to go back to, before the next command goes back."""
MIRROR_SECONDS = 30
DONE, FAILED, KILLED = "done", "refused", "killed"


def main() -> None:
    """Kill, let two meet, and look; exit status 1 when anything is not as it must be."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--pairs", type=int, default=100)
    arguments.add_argument("--programs", type=int, default=10, help="Whole programs of each.")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    publish = options.publish.absolute() if options.publish else None
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        trial = Trial(random.Random(options.seed))  # noqa: S311 - no secret is drawn
        lines = [*trial.kills(options.kills, options.programs)]
        lines += [*trial.pairs(options.pairs, options.programs)]
    os.chdir(home)
    show(lines, publish)


class Trial:
    """A registry of three models whose champion changes again and again."""

    def __init__(self, moments: random.Random) -> None:
        """Register them, and measure how long commands take that nobody disturbs."""
        self.moments = moments
        make_project(Path())
        self.mlflow = load_mlflow()
        # Stores are opened by the processes that use them; this brings in what that imports.
        client = self.mlflow.MlflowClient(f"sqlite:///{Path('other.db').absolute()}")
        client.search_registered_models()
        Path("other.db").rename(STORE)
        for name in NAMES:
            register(Path("bundles") / name, NAME, tags={})
        for version in (1, 2):
            found = promote(NAME, Promotion(version=version))
            found.require()
        versions.judge = lambda _contest, _log: found.gates
        ended(fork(self.promotion(1)))
        self.seconds, self.traced = {}, {}
        for words in (self.promotion(2), self.rollback()):
            begin = time.monotonic()
            ended(fork(words))
            self.seconds[words[0]] = time.monotonic() - begin
        for words in (self.promotion(2), self.rollback()):
            self.traced[words[0]] = traced(words)
        self.check()
        print(f"undisturbed: {self.seconds} s, {self.traced} lines", flush=True)

    def promotion(self, version: int) -> list[str]:
        """The command."""
        return ["promote", NAME, "--version", str(version)]

    def rollback(self) -> list[str]:
        """The command."""
        return ["rollback", NAME]

    def other(self) -> int:
        """A version that is not the champion."""
        return self.moments.choice([one for one in (1, 2, 3) if one != state().champion])

    def kills(self, count: int, programs: int) -> Iterator[Line]:
        """Kill a command, let another one be, and look, so many times."""
        outcomes: Counter[str] = Counter()
        late = 0
        for number in range(count):
            before = state()
            action = self.promotion(self.other()) if number % 2 else self.rollback()
            how = SIGNALS[number // 2 % 2]
            if number < programs:
                outcome = self.program_killed(action, how)
            elif number // 4 % 2:
                outcome = ended(fork(action, self.at_line(action, how)))
            else:
                outcome = self.killed_in_time(action, how)
            changed = len(registry_at(FILE).entries) - len(before.entries)
            outcomes[f"{outcome}, {'after' if changed else 'before'} its line"] += 1
            late += self.next_command(whole=number < programs)
            self.check(before)
            if number % 20 == 19:
                print(f"{number + 1} kills: {dict(outcomes)}", flush=True)
        killed = {what: some for what, some in outcomes.items() if what.startswith(KILLED)}
        print(f"{count} commands: {dict(outcomes)}")
        told = ", ".join(f"{some} {what.partition(', ')[2]}" for what, some in killed.items())
        whole = sum(killed.values())
        yield Line("commands that were killed", f"{whole} ({told})", "–", None)
        yield Line("one champion, whole lines and MLflow's alias after", f"{count} of {count}",
                   "all", True)  # fmt: skip
        told = f"{late} of {programs}"
        yield Line(
            "whole programs whose mirror took over 5 s, and ended by itself", told, "–", None
        )

    def pairs(self, count: int, programs: int) -> Iterator[Line]:
        """Promote two versions at once, both over the same champion, so many times."""
        winners: Counter[int] = Counter()
        for number in range(count):
            before = state()
            two = [one for one in (1, 2, 3) if one != before.champion]
            if number % 2:
                two.reverse()
            if number < programs:
                both = [program(self.promotion(version)) for version in two]
                outcomes = [DONE if one.wait() == 0 else FAILED for one in both]
            else:
                outcomes = [ended(one) for one in [fork(self.promotion(one)) for one in two]]
            after = registry_at(FILE)
            if sorted(outcomes) != [DONE, FAILED] or len(after.entries) != len(before.entries) + 1:
                sys.exit(
                    f"two at once: {outcomes}, {len(after.entries) - len(before.entries)} lines"
                )
            winners[outcomes.index(DONE)] += 1
            self.settle(whole=number < programs)
            self.check(before)
            if number % 20 == 19:
                print(f"{number + 1} pairs: {dict(winners)}", flush=True)
        told = f"{count} of {count} (the second to start won {winners[1]})"
        yield Line("two promotions at once: one wins, the other is told", told, "all", True)

    def killed_in_time(self, action: Sequence[str], how: signal.Signals) -> str:
        """Start a command and kill it at a random moment."""
        pid = fork(action)
        time.sleep(self.moments.uniform(0, self.seconds[action[0]]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        return ended(pid)

    def program_killed(self, action: Sequence[str], how: signal.Signals) -> str:
        """The same with a whole program, in whose last second most is written."""
        process = program(action)
        try:
            process.wait(self.moments.uniform(0.5, 2 * self.seconds[action[0]] + 5))
        except subprocess.TimeoutExpired:
            process.send_signal(how)
            process.wait()
            return KILLED
        return DONE if process.returncode == 0 else FAILED

    def at_line(self, action: Sequence[str], how: signal.Signals) -> Callable[[], None]:
        """What the process does first to be killed at a random line of the code that writes."""
        return lambda: count_lines(self.traced[action[0]], self.moments, how)

    def next_command(self, *, whole: bool) -> bool:
        """A command that nobody disturbs; whether MLflow had to be mirrored once more."""
        deep = len(registry_at(FILE).champions) > DEEPEST
        action = self.rollback() if deep else self.promotion(self.other())
        if whole:
            if program(action).wait():
                sys.exit(Path("log.txt").read_text())
        elif (outcome := ended(fork(action))) != DONE:
            sys.exit(f"{action} was {outcome}: {Path('log.txt').read_text()}")
        return self.settle(whole=whole)

    def settle(self, *, whole: bool) -> bool:
        """Wait for the mirror of a whole program, which may outlast it; whether that was needed."""
        late = whole and bool(self.disagrees())
        deadline = time.monotonic() + MIRROR_SECONDS
        while whole and self.disagrees() and time.monotonic() < deadline:
            time.sleep(0.2)
        return late

    def disagrees(self) -> str:
        """How MLflow's aliases differ from those of the file, or ""."""
        client = self.mlflow.MlflowClient(f"sqlite:///{STORE.absolute()}")
        model = client.get_registered_model(NAME)
        wanted = {key: value for key, value in state().aliases.items() if value}
        found = client.search_model_versions(f"name='{NAME}'")
        numbers = {str(one.version): int(one.tags["ferry.version"]) for one in found}
        have = {alias: numbers[str(version)] for alias, version in model.aliases.items()}
        if len(found) != len(NAMES) or sorted(numbers.values()) != [1, 2, 3]:
            return f"MLflow has the versions {numbers}"
        return "" if have == wanted else f"MLflow's aliases are {have}, the file's {wanted}"

    def check(self, before: Registry | None = None) -> None:
        """The file is whole and holds what was in it; there is a champion, MLflow's too."""
        now = state()
        if before and now.entries[: len(before.entries)] != before.entries:
            sys.exit("lines that were written are lost")
        if now.champion is None:
            sys.exit("there is no champion")
        if wrong := self.disagrees():
            sys.exit(wrong)


def state() -> Registry:
    """The registry, whose file must be whole to the byte."""
    found = registry_at(FILE)
    if FILE.read_bytes() != b"".join(entry.line for entry in found.entries):
        sys.exit(f"{FILE} ends in half a line")
    return found


def fork(words: Sequence[str], first: Callable[[], Any] = lambda: None) -> int:
    """Run a command in a process that has imported all of it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with Path("log.txt").open("w", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            mlflow_mirror.mirrored = mirrored_here  # type: ignore[assignment]
            first()
            code = run(words)
    finally:
        os._exit(code)


def run(words: Sequence[str]) -> int:
    """The exit status of a command."""
    try:
        ferry.main([*words], prog_name="ferry")
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@contextlib.contextmanager
def mirrored_here(name: str, *, wanted: bool) -> Iterator[None]:
    """As `mirrored`, in the same process."""
    try:
        yield
    except FerryError:
        mirror_here(name)
        raise
    if wanted:
        mirror_here(name)


def mirror_here(name: str) -> None:
    """Mirror into the store of the working folder."""
    mlflow = load_mlflow()
    mlflow.set_tracking_uri(f"sqlite:///{STORE.absolute()}")
    mlflow_mirror.mirror(mlflow, name)


def ended(pid: int) -> str:
    """Wait for a process; how it ended."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 128 + signal.SIGINT:
        return KILLED
    return DONE if status == 0 else FAILED


def program(words: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a command as a whole program."""
    with Path("log.txt").open("wb") as log:
        return subprocess.Popen([*WHOLE_PROGRAM, *words], stdout=log, stderr=log)


def traced(words: Sequence[str]) -> int:
    """How many lines of the code that writes a command runs."""

    def count() -> None:
        seen = [0]

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            if frame.f_code.co_filename not in WRITING:
                return None
            seen[0] += event == "line"
            os.pwrite(counted, str(seen[0]).encode(), 0)
            return trace

        counted = os.open("lines.txt", os.O_RDWR | os.O_CREAT)
        sys.settrace(trace)

    ended(fork(words, count))
    return int(Path("lines.txt").read_text())


def count_lines(most: int, moments: random.Random, how: signal.Signals) -> None:
    """Kill this process at a random line of the code that writes."""
    left = [moments.randint(1, most)]

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename not in WRITING:
            return None
        left[0] -= event == "line"
        if left[0] == 0:
            os.kill(os.getpid(), how)
        return trace

    sys.settrace(trace)


if __name__ == "__main__":
    main()
