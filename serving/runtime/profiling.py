"""How long each node of a model takes, by ONNX Runtime's own profile of some calls."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.runtime.session import open_session
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import Array

ENDING = "_kernel_time"
"""Of the events that are the work of a node itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """One call of one node, after ONNX Runtime's optimizations."""

    name: str
    operator: str
    dtype: str
    """Of its first input, as ONNX Runtime calls it: "float"; "" for a node without inputs."""
    provider: str
    us: float
    """Microseconds."""


def node_times(
    model: Path | bytes,
    calls: Iterable[Mapping[str, Array]],
    *,
    settings: SessionSettings,
    provider: str = "cpu",
) -> list[NodeTime]:
    """Answer each of some batches in a session made for it, for timing nodes costs time itself.

    Raises what `open_session` and a session raise.
    """
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        session = open_session(model, provider=provider, settings=settings, profile=profile)
        for feeds in calls:
            session.run(feeds)
        events = json.loads(Path(session.raw.end_profiling()).read_text(encoding="utf-8"))
    found = []
    for event in events:
        facts = event.get("args", {})
        if event.get("cat") == "Node" and facts.get("provider"):
            shapes = facts.get("input_type_shape") or [{}]
            found.append(
                NodeTime(
                    name=event["name"].removesuffix(ENDING),
                    operator=facts["op_name"],
                    dtype=next(iter(shapes[0]), ""),
                    provider=facts["provider"],
                    us=event["dur"],
                )
            )
    return found
