"""A subject that takes as long as it is told to, for tests of what measures: `python -m sleeper`.

Bounded by sleeping, its times do not depend on who else uses the machine by much. A row takes
0.2 ms and a call 2 ms more; each thread beyond the first adds 4 ms to a call. It refuses batches of
13 and ends its process at batches of 66; memory grows by a MiB per row.
"""

import os
from collections.abc import Mapping
from time import sleep
from typing import Any

import numpy as np

from serving.errors import InputError
from serving.measuring.subject import Started, serve
from serving.runtime.settings import SessionSettings

MIB = 2**20


class Sleeper:
    def start(self, settings: SessionSettings) -> Started:
        if settings.optimize == "none":
            raise InputError("these settings cannot be opened")
        self.settings = settings
        return Started(ready_ms=1.0, sha256=None, file_bytes=None, proof=None, fixed_batch=None)

    def call(self, batch_size: int) -> Any:
        if batch_size == 13:
            raise InputError("the model refuses 13 rows")
        if batch_size == 66:
            os._exit(3)
        seconds = 0.002 + 0.0002 * batch_size + 0.004 * (self.settings.threads - 1)
        ballast = np.ones(batch_size * MIB, np.uint8)

        def call() -> int:
            sleep(seconds)
            return ballast.size

        return call

    def share(self, _batch_size: int) -> None:
        return None

    def gpu_bytes(self) -> int | None:
        return None


def _open(_: Mapping[str, Any]) -> Sleeper:
    return Sleeper()


if __name__ == "__main__":
    serve(_open)
