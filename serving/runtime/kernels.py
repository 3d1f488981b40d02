"""What a model's integer arithmetic needs of a processor, asked of ONNX Runtime's own kernels.

Kernels of x86 without VNNI add two products of bytes in 16 bits, where weights of int8 beyond ±64
may overflow. A file of such weights says `needs: vnni`, and is refused where they do.
"""

import base64
import functools
import os
from collections.abc import Iterable, Mapping

import numpy as np

from serving.console import ALLOW
from serving.errors import ProviderError
from serving.runtime.session import open_session

VNNI = "vnni"
PROBE = base64.b64decode(
    "CAU6TAoYCgFhCgFiEgF5Ig1NYXRNdWxJbnRlZ2VyEgFwKg0IAggBEANCAWJKAn9/WhMKAWESDgoMCAISCAoCCAEKAggC"
    "YgkKAXkSBAoCCAZCBAoAEAo="
)
"""`MatMulInteger` of two bytes `a` with two weights of 127."""
BYTES, SUM = np.full((1, 2), 255, np.uint8), 2 * 255 * 127


def needs_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What a model says in its metadata that it needs, for instance ("vnni",)."""
    return tuple(filter(None, metadata.get("ferry.needs", "").split(",")))


def refuse_lacking(needs: Iterable[str], name: str, provider: str = "cpu") -> None:
    """Raise ProviderError where this processor lacks what a model needs, unless it is allowed.

    `name` is the model's, for the message. Providers other than the CPU's have kernels of their
    own.
    """
    allowed = os.environ.get(ALLOW, "").split(",")
    if provider == "cpu" and VNNI in needs and VNNI not in allowed and overflows():
        raise ProviderError(
            f"{name} needs {VNNI}, which this processor lacks: sums of its int8 products overflow "
            f"here, so that it answers otherwise than it was proven to; --allow {VNNI} or {ALLOW}="
            f"{VNNI} runs it all the same, and recipes with -reduced make one that answers alike "
            f"everywhere"
        )


@functools.cache
def overflows() -> bool:
    """Whether pairs of products overflow on this processor."""
    session = open_session(PROBE, threads=1)
    return bool(session.run({"a": BYTES})["y"].item() != SUM)
