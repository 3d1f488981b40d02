"""What one process of the tests makes, and the others copy."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


class Once:
    """Fills a folder by a function, or with what another process of this run has made by it."""

    def __init__(self, base: Path) -> None:
        """`base` is the folder of this process."""
        self._base = base

    def __call__(self, name: str, folder: Path, make: Callable[[], object]) -> None:
        """`name` is the same in each process."""
        if "PYTEST_XDIST_WORKER" not in os.environ:
            make()
            return
        kept = self._base.parent / f"once-{name}"
        with FileLock(f"{kept}.lock"):
            if kept.is_dir():
                shutil.copytree(kept, folder, dirs_exist_ok=True)
                return
            make()
            shutil.copytree(folder, self._base / kept.name).rename(kept)
