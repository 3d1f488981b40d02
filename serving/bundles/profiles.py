"""Profiles: the settings that ran a bundle's model best on one kind of processor.

`ferry bench --tune` finds them and writes them into the manifest; `open_model` runs a bundle with
the one that fits the machine it is opened on.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.errors import IntegrityError, UsageError
from serving.machine.environment import MachineKind, this_machine
from serving.runtime.settings import SessionSettings, check_settings

Goal = Literal["latency", "throughput"]
"""The time of one call, or rows per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Settings that were tuned on one kind of machine, and what they reached there."""

    goal: Goal
    provider: str
    """A key of `serving.runtime.session.PROVIDERS`."""
    machine: MachineKind
    onnxruntime: str
    """The version that it was tuned with; the profile fits any other too."""
    settings: SessionSettings
    batch_size: int
    p50_ms: float
    """The median time of one call."""
    rows_per_second: float
    over_defaults: float
    """How many times as fast as with ONNX Runtime's own settings, by the paired median."""

    @property
    def applied(self) -> SessionSettings:
        """The settings that a model is opened with: all but `cuda_graph`.

        A captured graph replays calls of one shape in one thread's memory; `open_model` takes
        batches of any size from any thread.
        """
        return dataclasses.replace(self.settings, cuda_graph=False)

    def describe(self) -> str:
        """One line: "profile throughput: threads 1, parallel 2, batch 16"."""
        return f"profile {self.goal}: {in_words(self.settings, self.batch_size)}"


def in_words(settings: SessionSettings, batch_size: int) -> str:
    """For instance "threads 1, parallel 2, binding on, batch 16"."""
    differing = [word.replace("=", " ") for word in settings.describe().split()]
    return ", ".join([f"threads {settings.threads}", *differing, f"batch {batch_size}"])


def profile_for(profiles: Sequence[Profile], provider: str, goal: Goal) -> Profile | None:
    """The profile for a goal on a provider of this very kind of machine, or None.

    Processor, architecture, instruction sets, cores and graphics cards must be the same. The
    version of ONNX Runtime need not be: its settings rarely change their meaning, and a profile is
    never wrong, only perhaps not the fastest.
    """
    wanted = [one for one in profiles if (one.provider, one.goal) == (provider, goal)]
    if not wanted:
        return None  # without asking what machine this is
    machine = this_machine(provider)
    return next((one for one in wanted if one.machine == machine), None)


def with_profile(profiles: Sequence[Profile], new: Profile) -> tuple[Profile, ...]:
    """The profiles with `new`, in place of the one for the same goal, provider and machine."""
    return (*(one for one in profiles if _key(one) != _key(new)), new)


def check_profiles(profiles: Sequence[Profile], where: str) -> None:
    """Raise IntegrityError for a profile that `ferry bench --tune` cannot have written."""
    for index, profile in enumerate(profiles):
        reason = _why_senseless(profile)
        if reason:
            raise IntegrityError(f"{where}.profiles[{index}]: {reason}")
    if len({_key(one) for one in profiles}) < len(profiles):
        raise IntegrityError(f"{where}.profiles: two are for the same goal and machine")


def _key(profile: Profile) -> tuple[str, str, MachineKind]:
    return profile.goal, profile.provider, profile.machine


def _why_senseless(profile: Profile) -> str:
    """What no tuning gives, or ""."""
    try:
        check_settings(profile.settings, profile.provider)
    except UsageError as error:
        return str(error)
    if profile.settings.cores > profile.machine.allowed_cores:
        cores = profile.settings.cores
        return f"threads × parallel is {cores}, its machine has {profile.machine.allowed_cores}"
    if profile.batch_size < 1:
        return f"batch_size must be 1 or more, got {profile.batch_size}"
    for name in ("p50_ms", "rows_per_second", "over_defaults"):
        value = getattr(profile, name)
        if not 0 < value < math.inf:
            return f"{name} must be above 0, got {value}"
    return ""
