"""The process that a subject is measured in, as its parent sees it: start it, ask it, end it.

`serving.measuring.subject` is what runs inside.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serving import errors
from serving.errors import FerryError, ModelError, UnknownNameError, UsageError

ENDING_SECONDS = 10
TORCH = "torch"
"""What stands for a provider where ONNX Runtime does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectSpec:
    """What a process is to measure."""

    name: str
    """In tables and records, for instance "fp32" or "PyTorch eager"."""
    provider: str
    """A key of `serving.runtime.session.PROVIDERS`, or "torch"."""
    module: str
    """Its program: `python -m module`."""
    setup: Mapping[str, Any]
    """What the program reads first: plain values."""

    @property
    def label(self) -> str:
        """The name, with the provider where that is one of ONNX Runtime's."""
        return label_of(self.name, self.provider)


def label_of(name: str, provider: str) -> str:
    """How tables call a subject on a provider: "fp32 · cpu", or "PyTorch eager"."""
    return name if provider in ("", TORCH) else f"{name} · {provider}"


class SubjectProcess:
    """A process that measures a subject, ended when the block is left."""

    def __init__(self, spec: SubjectSpec) -> None:
        """Start the process and have it open its subject; raises what that raises there."""
        self.spec = spec
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", spec.module, str(writing)],
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=self._printed,
            pass_fds=(writing,),
            env=child_environment(),
        )
        os.close(writing)
        self._answers = os.fdopen(reading, encoding="utf-8")
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._send(spec.setup)
            undo.pop_all()  # it runs: the block that it is used in ends it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have a method of `subject.SubjectServer` called there, and return what it answers.

        Raises the FerryError that it raises there, and ModelError when the process has died.
        """
        return self._send({"do": do, **arguments})

    def close(self) -> None:
        """End the process, in the middle of a turn too."""
        self._process.terminate()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._answers.close()
        self._printed.close()

    def _send(self, request: Mapping[str, Any]) -> Any:
        try:
            if self._process.stdin:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ModelError(self._why_dead())
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise _error(answer["error"], answer["message"])
        return answer

    def _why_dead(self) -> str:
        code = self._process.wait()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            return f"the process that measured {self.spec.name} was killed by signal {-code}"
        message = lines[-1] if lines else f"exit status {code}"
        return f"the process that measured {self.spec.name} ended: {message}"


def child_environment() -> dict[str, str]:
    """This process's environment, with the folder that `serving` lies in on the path.

    It lacks the options of `ferry bench`: those that count were read already.
    """
    kept = {name: value for name, value in os.environ.items() if name[:12] != "FERRY_BENCH_"}
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def _error(kind: str, message: str) -> FerryError:
    """The exception of that name that was raised in the process."""
    if kind == UnknownNameError.__name__:  # which makes its message of parts; this one is made
        return UsageError(message)
    known: type[FerryError] = getattr(errors, kind, ModelError)
    return known(message)
