"""What ferry does under attack: killed at random moments, fed what is hostile, altered or rotted.

Run: python benchmarks/torture                            (all kinds; it takes hours)
     python benchmarks/torture graphs rows --short        (a few cases of each)
     python benchmarks/torture mutations --times 10       (ten times as many random cases)
     python benchmarks/torture --publish docs/results

Each module in kinds/ makes the cases of one kind. A case runs in a process of its own, with limits
of time and memory. What came of it is a line in build/torture, so that the same command goes on
after a kill or when its budget is spent, for as long as the sources are the same. Aims: nothing
lost, executed or leaked, no traceback, nothing that hangs, no death of a process in charge.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import psutil
from cases import COUNTS, Case, Outcome, Task

from pipeline.records.published import ScriptLine, reached_here, write_published
from serving.console import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = sorted(path.stem for path in (HERE / "kinds").glob("[!_]*.py"))
MEMORY = 8 << 30
"""Of one process of a case, in bytes; ferry's own limits must be found before it."""
FORK = multiprocessing.get_context("fork")


def main() -> None:
    """Torture, and print the table; exit status 1 where anything did not hold."""
    given = parser().parse_args()
    sys.path += [str(ROOT / "tests" / part) for part in ("", "serving", "pipeline")]
    end = time.monotonic() + given.budget
    task = Task(scratch=Path(), seed=given.seed, short=given.short, times=given.times)
    found = {}
    for kind in given.kinds or KINDS:
        found[kind] = tortured(kind, task, given.done, end)
    rows = [
        (kind, one.total, *(getattr(one, name) for name in COUNTS)) for kind, one in found.items()
    ]
    print(
        table(("kind", "cases", *COUNTS), [(kind, *map("{:,}".format, row)) for kind, *row in rows])
    )
    if given.publish:
        lines = [line(kind, outcome) for kind, outcome in found.items()]
        print(*write_published(given.publish, scripts=[reached_here(HERE.name, lines)]), sep="\n")
    sys.exit(any(one.held < one.total for one in found.values()))


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/{HERE.name}", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kinds", metavar="KIND", nargs="*", type=kind, help=", ".join(KINDS))
    parser.add_argument("--short", action="store_true", help="a few small cases of each kind")
    parser.add_argument(
        "--times", metavar="N", type=float, default=1.0, help="N times the random cases"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", metavar="SECONDS", type=float, default=float("inf"))
    parser.add_argument(
        "--done",
        metavar="DIR",
        type=Path,
        default=ROOT / "build" / "torture",
        help="where the outcomes are kept (build/torture)",
    )
    parser.add_argument("--publish", metavar="DIR", type=Path, help="write the figures to DIR")
    return parser


def kind(name: str) -> str:
    """A kind, by the name of its file."""
    if name not in KINDS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(KINDS)}")
    return name


def line(kind: str, outcome: Outcome) -> ScriptLine:
    """What is published of a kind."""
    faults = [f"{getattr(outcome, name)} {name}" for name in COUNTS[1:] if getattr(outcome, name)]
    seen = [f"{count:,} {what}" for what, count in outcome.seen.items()]
    held = f"{outcome.held:,} of {outcome.total:,}"
    words = ", ".join([*faults, *seen])
    what = f"{kind.replace('_', ' ')}: held"
    return ScriptLine(what, f"{held} ({words})" if words else held, "all", met=not faults)


def tortured(kind: str, task: Task, done: Path, end: float) -> Outcome:
    """Run the cases of a kind that were not run yet, until the time is up."""
    total = Outcome()
    path = done / f"{kind}.jsonl"
    key = f"{task.seed} {'short' if task.short else 'whole'} {sources()}"
    known = dict(outcomes(path, key))
    with tempfile.TemporaryDirectory(prefix=f"torture-{kind}-") as scratch:
        task = dataclasses.replace(task, scratch=Path(scratch))
        for case in importlib.import_module(f"kinds.{kind}").cases(task):
            outcome = known.get(case.name)
            if outcome is None and time.monotonic() > end:
                note(f"{kind}: the time is up; the same command goes on at {case.name}")
                break
            if outcome is None:
                outcome = bounded(case)
                keep(path, key, case, outcome)
            for told in outcome.notes:
                note(f"{kind}, {case.name}: {told}")
            total += outcome
    note(f"{kind}: {total.held:,} of {total.total:,} held {dict(total.seen) or ''}")
    return total


def sources() -> str:
    """A fingerprint of what is tortured, and of how."""
    digest = hashlib.sha256()
    for folder in ("pipeline", "serving", f"benchmarks/{HERE.name}"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def outcomes(path: Path, key: str) -> Iterator[tuple[str, Outcome]]:
    """What came of the cases that were run before; a line that a kill cut is none."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            one = json.loads(text)
        except json.JSONDecodeError:
            continue
        if one["key"] == key:
            outcome = one["outcome"]
            yield one["case"], Outcome(**{**outcome, "notes": tuple(outcome["notes"])})


def keep(path: Path, key: str, case: Case, outcome: Outcome) -> None:
    """Add a line for a case."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"key": key, "case": case.name, "outcome": dataclasses.asdict(outcome)}
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(found)}")


def bounded(case: Case) -> Outcome:
    """Run a case in a process of its own, and end that and all that it started."""
    receive, send = FORK.Pipe(duplex=False)
    streams = tempfile.TemporaryFile()  # noqa: SIM115 - which is closed below
    process = FORK.Process(target=alone, args=(case, send, streams))
    process.start()
    send.close()
    try:
        if receive.poll(case.seconds):
            outcome: Outcome = receive.recv()
            return outcome
        return Outcome(hangs=1, notes=(f"no end after {case.seconds:.0f} s",))
    except EOFError:
        process.join()
        streams.seek(0)
        last = streams.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        counts: dict[str, Any] = {"tracebacks" if process.exitcode == 1 else "deaths": 1}
        return Outcome(**counts, notes=(f"status {process.exitcode} of the case itself: {last}",))
    finally:
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == process.pid:
                    os.kill(pid, signal.SIGKILL)
        process.join()
        streams.close()


def alone(case: Case, send: Connection, streams: IO[bytes]) -> None:
    """What the process of a case does."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(streams.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    send.send(case.run())


def note(text: str) -> None:
    """Tell how it goes on."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
