"""Where a model comes from: the git revision of the sources that trained it."""

import subprocess
from pathlib import Path

__all__ = ["git_revision"]

SOURCES = ("pipeline", "serving", "params.yaml", "dvc.yaml")


def git_revision(folder: Path = Path()) -> str:
    """The commit of the checkout, with `-dirty` when a source differs from it.

    Metrics and plots do not count: each run writes them. "unknown" outside a git checkout.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision:
        return "unknown"
    return (
        f"{revision}-dirty" if _git(folder, "status", "--porcelain", "--", *SOURCES) else revision
    )


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
