"""`ferry why`: what happened to a version, as the registry's file says it, and as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serving.bundles.registry import (
    CHALLENGER,
    CHAMPION,
    Promoted,
    PromotionGate,
    Registered,
    RegistryEntry,
    RolledBack,
    is_name,
    read_registry,
    version_named,
)
from serving.console import columns


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyReport:
    """Everything that is known of a version."""

    name: str
    version: int
    alias: str
    """Or ""."""
    registered: RegistryEntry
    changes: tuple[RegistryEntry, ...]
    """When it became the champion, and when it was no longer, in order."""

    @property
    def what(self) -> Registered:
        """The version itself."""
        event = self.registered.event
        assert isinstance(event, Registered)  # noqa: S101 - by how `why` finds it
        return event


def why(text: str) -> WhyReport:
    """What happened to a version: "NAME@champion", "NAME/3", or "NAME" for the champion.

    Without a champion a name alone means the challenger. Raises as `version_named` does.
    """
    alone = read_registry(text) if is_name(text) else None
    registry, version = version_named(
        text, CHALLENGER if alone and alone.champion is None else CHAMPION
    )
    about = [entry for entry in registry.entries if _is_about(entry, version)]
    return WhyReport(
        name=registry.name,
        version=version,
        alias=registry.alias_of(version),
        registered=about[0],
        changes=tuple(about[1:]),
    )


def _is_about(entry: RegistryEntry, version: int) -> bool:
    return version in (entry.event.version, getattr(entry.event, "over", None))


def gates_as_text(gates: Sequence[PromotionGate]) -> str:
    """A line for each gate."""
    return columns([(gate.name, gate.status, gate.detail) for gate in gates])


def why_as_text(report: WhyReport) -> str:
    """The version, where it is from, and what happened to it."""
    one = report.what
    metrics = ", ".join(f"{name} {value:g}" for name, value in one.metrics.items())
    rows = [
        (f"{report.name}/{report.version}", report.alias or "no alias"),
        ("bundle", f"{one.variant} of {one.experiment}, digest {one.digest[:16]}"),
        ("figures", metrics or "none"),
        ("data", f"{one.dataset} {one.data_sha256[:16] or 'of unknown sha256'}"),
        ("weights", one.weights_sha256[:16]),
        ("model", one.model_sha256[:16]),
        ("registered", signed(report.registered)),
        *((f"tag {name}", value) for name, value in one.tags.items()),
    ]
    if one.description:
        rows.insert(1, ("description", one.description))
    return "\n\n".join([columns(rows), *_changes(report)])


def _changes(report: WhyReport) -> Iterator[str]:
    for entry in report.changes:
        yield "\n".join(
            filter(None, [f"{describe(entry)}: {signed(entry)}", _gates(entry, report)])
        )


def _gates(entry: RegistryEntry, report: WhyReport) -> str:
    event = entry.event
    if isinstance(event, Promoted) and event.version == report.version:
        return gates_as_text(event.gates)
    return ""


def describe(entry: RegistryEntry) -> str:
    """What happened, in a few words."""
    event = entry.event
    if isinstance(event, RolledBack):
        return f"version {event.over} was rolled back to version {event.version}"
    if isinstance(event, Promoted):
        forced = f", forced ({event.forced})" if event.forced else ""
        beaten = f"over version {event.over}" if event.over else "as the first champion"
        return f"version {event.version} was promoted {beaten}{forced}"
    return f"version {event.version} was registered"


def signed(entry: RegistryEntry) -> str:
    """When, by whom and where."""
    return f"{entry.time} by {entry.who} at {entry.revision[:12]} on {entry.machine}"
