"""`ferry machine`: say what this machine is, for the stages whose results depend on its speed.

DVC runs it each time, and measures anew where the answer is another one: what a colleague trained,
exported and proved is restored here, what he timed is not. The file stays on its machine.
"""

from dataclasses import dataclass
from pathlib import Path

from serving.files import write_json
from serving.machine.environment import (
    MachineKind,
    installed_version,
    runtime_wheels,
    this_machine,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringMachine:
    """What speeds depend on beside the files that are timed."""

    kind: MachineKind
    onnxruntime: str | None
    """With the wheel that it came from, for instance "onnxruntime-gpu 1.31.1"."""
    torch: str | None


def machine(path: Path) -> MeasuringMachine:
    """Write to `path` what this machine is; the same machine and versions give the same bytes."""
    wheels = (f"{name} {version}" for name, version in runtime_wheels().items())
    found = MeasuringMachine(
        kind=this_machine("cuda"),
        onnxruntime=" + ".join(wheels) or None,
        torch=installed_version("torch"),
    )
    write_json(path, found)
    return found
