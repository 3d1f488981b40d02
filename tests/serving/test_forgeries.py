"""What whoever can write a bundle can write: each of it is refused in a line, before it is used."""

import shutil
from pathlib import Path

import pytest
from forgeries import (
    ENTRIES,
    FORGERIES,
    GOLDEN,
    MANIFEST,
    MODEL,
    SLOW,
    UNSEEN_BY_THE_RUNNER,
    reseal,
)

from serving.bundles.inference import golden, opened
from serving.bundles.integrity import RunnerError
from serving.bundles.verify import verify


@pytest.fixture(scope="module")
def unrun(built_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle but for its runner, which `verify` would run for each forgery."""
    folder = Path(shutil.copytree(built_bundle, tmp_path_factory.mktemp("forged") / "tiny"))
    (folder / "runner.py").write_bytes(b"")
    reseal(folder)
    return folder


CHEAP = {**GOLDEN, **MANIFEST, **ENTRIES, **MODEL}.keys() - SLOW


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_a_forgery_is_refused_in_a_line(unrun: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(unrun, tmp_path / "forged"))
    FORGERIES[name](folder)
    checks = verify(folder, threads=1).checks
    told = [one.detail for one in checks if one.status == "failed" and one.name != "runner"]
    assert told
    try:
        said = golden(opened(folder=folder, threads=1)).error
    except RunnerError as error:
        said = str(error)
    assert bool(said) != (name in UNSEEN_BY_THE_RUNNER)
    assert max(map(len, [*told, said])) < 1000
