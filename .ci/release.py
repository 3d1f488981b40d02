"""Build what is released, into dist/: sdist, wheel, bill of materials, and the sums of all three.

    make release

One commit gives the same bytes wherever and whenever it is built: the files are those of a clone,
the time is the commit's, and the tools are those of requirements.lock. The bill, in CycloneDX, has
every package that the wheel brings along on this system, in the version of the lock.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from zipfile import Path as ZipPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipeline.targets import bom
from serving.files import dump_json, sha256_of_file, write_bytes

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = "dev"
"""The extra for those who work on ferry itself."""


def main() -> None:
    """Build the last commit; what is not committed is refused."""
    if changed := git("status", "--porcelain"):
        sys.exit(f"commit first: {', '.join(changed.splitlines())}")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "dist")
        git("clone", "--quiet", "--depth=1", f"file://{ROOT}", f"{folder}/clone")
        command = ("build", "--no-isolation", f"--outdir={built}", f"{folder}/clone")
        env = {**os.environ, "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct")}
        subprocess.run([sys.executable, "-m", *command], env=env, stdout=sys.stderr, check=True)
        (wheel,) = built.glob("*.whl")
        (sdist,) = built.glob("*.tar.gz")
        bill = sdist.with_name(sdist.name.replace(".tar.gz", ".cdx.json"))
        bill.write_text(dump_json(bill_of_materials(wheel, locked())), encoding="utf-8")
        sums = "".join(f"{sha256_of_file(one)}  {one.name}\n" for one in (sdist, wheel, bill))
        (built / "SHA256SUMS").write_text(sums, encoding="utf-8")
        for one in sorted(built.iterdir()):
            write_bytes(ROOT / "dist" / one.name, one.read_bytes())
            print(f"dist/{one.name}")


def git(*arguments: str) -> str:
    """What git says of this repository."""
    command = ("git", "-C", str(ROOT), *arguments)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def locked() -> dict[str, str]:
    """The versions of requirements.lock, by the names of packages."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    pairs = (line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pairs}


def bill_of_materials(wheel: Path, lock: Mapping[str, str]) -> bom.Json:
    """The bill of a wheel: what it needs, required, and what its extras add, optional."""
    (info,) = (one for one in ZipPath(wheel).iterdir() if one.name.endswith(".dist-info"))
    metadata = PathDistribution(info)
    extras = set(metadata.metadata.get_all("Provides-Extra", ())) - {NOT_SHIPPED}
    required = closure(metadata.requires or (), ())
    needs = closure(metadata.requires or (), extras)
    itself, sha256 = package(metadata, metadata.version), sha256_of_file(wheel)
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    itself |= {"hashes": bom.hashes(sha256), "properties": bom.properties({"system": system})}
    parts = []
    for name in needs:
        found, version = distribution(name), lock.get(name)
        if version and Version(found.version).public != version:
            sys.exit(f"{name} {found.version} is not the {version} of the lock; renew .venv")
        scope = "required" if name in required else "optional"
        parts.append(package(found, version) | {"scope": scope})
    direct = sorted({name for name, _ in wanted(metadata.requires or (), extras)})
    return bom.bill(sha256, metadata.version, itself, parts, {itself["bom-ref"]: direct, **needs})


def package(found: Distribution, version: str | None) -> bom.Json:
    """A package of a bill: its version if the lock has one, its licence if it is one of SPDX."""
    name, licence = canonicalize_name(found.name), found.metadata["License-Expression"]
    expression = {"expression": licence} if licence else None
    if version is None:  # pip and setuptools, which come with Python
        return bom.library(f"pkg:pypi/{name}", name, expression)
    return bom.library(f"pkg:pypi/{name}@{version}", name, expression) | {"version": version}


def closure(requirements: Iterable[str], extras: Collection[str]) -> dict[str, list[str]]:
    """What requirements bring along on this system, and what each of these needs itself."""
    found: dict[str, set[str]] = {}
    waiting, seen = [*wanted(requirements, extras)], set()
    while waiting:
        if (one := waiting.pop()) in seen:
            continue
        seen.add(one)
        below = [*wanted(distribution(one[0]).requires or (), one[1])]
        found.setdefault(one[0], set()).update(name for name, _ in below)
        waiting += below
    return {name: sorted(below) for name, below in sorted(found.items())}


def wanted(
    requirements: Iterable[str], extras: Collection[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """The packages, and the extras of each, that requirements ask for on this system."""
    for one in map(Requirement, requirements):
        if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras or ("",)):
            yield canonicalize_name(one.name), frozenset(one.extras)


if __name__ == "__main__":
    main()
