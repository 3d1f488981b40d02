"""A model is found by its registered name, and the registry's file is the one that was written."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_classifier import contents, images, profile

from serving.bundles.bundle import MODEL, open_bundle, read_manifest
from serving.bundles.finding import located
from serving.bundles.registry import (
    Promoted,
    Registered,
    Registry,
    RegistryEntry,
    RolledBack,
    read_registry,
    registry_at,
)
from serving.bundles.writing import copy_bundle, write_bundle, write_profile
from serving.cli import serving
from serving.errors import (
    FerryError,
    IntegrityError,
    MissingInputError,
    OutputError,
    UsageError,
)
from serving.files import write_bytes
from serving.model import open_model

Event = Registered | Promoted | RolledBack


def registered(version: int, digest: str = "ab" * 32) -> Registered:
    return Registered(
        version=version,
        experiment="tiny",
        variant="fp32",
        digest=digest,
        model_sha256="cd" * 32,
        weights_sha256="1" * 64,
        dataset="toy",
        data_sha256="",
        metrics={"accuracy": 97.5},
        description="",
        tags={},
    )


def promoted(version: int, over: int | None = None) -> Promoted:
    return Promoted(version=version, over=over, gates=(), forced="")


def written(path: Path, *events: Event) -> Registry:
    """A file of such events."""
    entries: list[RegistryEntry] = []
    for number, event in enumerate(events, start=1):
        entry = RegistryEntry(
            number=number,
            time="2026-11-26T16:00:00+00:00",
            who="ada",
            machine="here",
            revision="0" * 40,
            event=event,
            previous=entries[-1].sha256 if entries else "",
            sha256="",
        )
        entries.append(entry.sealed())
    write_bytes(path, b"".join(entry.line for entry in entries))
    return registry_at(path)


@pytest.fixture
def home(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: tiny/1 is bundles/tiny and champion, tiny/2 is nowhere."""
    monkeypatch.chdir(bundle.parents[1])
    first = registered(1, read_manifest(bundle).digest)
    registry = written(Path("registry/tiny.jsonl"), first, promoted(1), registered(2))
    copy_bundle(open_bundle(bundle), registry.copy_of(first.digest))
    return bundle.parents[1]


def git(*arguments: str) -> str:
    author = ("-c", "user.name=ada", "-c", "user.email=ada@example.org")
    return subprocess.run(
        ("git", *author, *arguments), check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("name", ["models:/tiny@champion", "models:/tiny/1"])
def test_a_registered_model_is_opened_by_its_name(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert located(name).parent == Path("registry/bundles")
    assert len(open_model(name).predict(images(2))) == 2
    (home / "below").mkdir()
    monkeypatch.chdir(home / "below")
    assert len(open_model(name).predict(images(2))) == 2


def test_commands_take_the_name(home: Path) -> None:
    assert home.is_dir()
    done = CliRunner().invoke(serving, ["verify", "models:/tiny@champion"])
    assert done.exit_code == 0, done.output
    assert f"digest {read_manifest(Path('bundles/tiny')).digest}" in done.stdout
    done = CliRunner().invoke(serving, ["verify", "models:/tiny@challenge"])
    assert done.exit_code == 2
    assert "did you mean 'challenger'?" in done.stderr


def test_without_its_copy_a_bundle_of_the_same_digest_is_taken(home: Path) -> None:
    shutil.rmtree(home / "registry" / "bundles")
    assert located("models:/tiny/1") == Path("bundles/tiny")
    write_bundle(home / "bundles" / "tiny", contents(metrics={"accuracy": 98.0}))
    with pytest.raises(MissingInputError) as caught:
        located("models:/tiny/1")
    assert str(caught.value).startswith(
        "the bundle of tiny/1 is not here: git has no commit of it; `dvc checkout bundles/tiny` "
    )
    git("init", "--quiet")
    git("add", "registry")
    git("commit", "--quiet", "--message", "the line of tiny/1")
    made = git("rev-parse", "--short", "HEAD").strip()
    git("rm", "--quiet", "registry/tiny.jsonl", "--cached")
    git("commit", "--quiet", "--message", "another")
    with pytest.raises(MissingInputError, match=f"bundles/tiny --rev {made} --out registry/bund"):
        located("models:/tiny/1")


def test_another_bundle_in_place_of_the_copy_is_not_taken(home: Path) -> None:
    assert home.is_dir()
    copy = located("models:/tiny/1")
    write_bundle(copy, contents(metrics={"accuracy": 98.0}))
    with pytest.raises(IntegrityError, match=r"is not the bundle that was registered as tiny/1"):
        open_model("models:/tiny/1")


def test_one_byte_less_in_the_copy_is_noticed(home: Path) -> None:
    assert home.is_dir()
    model = located("models:/tiny/1") / MODEL
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model\.onnx has \d+ bytes, expected"):
        open_model("models:/tiny@champion")


def test_the_copy_cannot_be_tuned(home: Path) -> None:
    assert home.is_dir()
    with pytest.raises(OutputError, match="is registered and stays as it is"):
        write_profile(located("models:/tiny/1"), profile())


@pytest.mark.parametrize(
    ("name", "message", "exit_code"),
    [
        ("models:/tinny/1", "no registered model named 'tinny'; did you mean 'tiny'?; `ferry", 2),
        ("models:/tiny/7", "no version named 'tiny/7'; did you mean 'tiny/2'", 2),
        ("models:/tiny", "models:/tiny says neither alias nor version: name one as models:/N", 2),
        ("models:/tiny@1/2", "'models:/tiny@1/2' is no name of a registered model: name one", 2),
        ("models:/../tiny", "'models:/../tiny' is no name of a registered model: name one", 2),
        ("models:/tiny@", "'models:/tiny@' is no name of a registered model: name one", 2),
        ("models:/tiny@champ", "no alias of tiny named 'champ'; did you mean 'champion'?", 2),
        ("models:/tiny/2", "the bundle of tiny/2 is not here: git has no commit of it; `dvc", 1),
    ],
)
def test_what_is_no_name_is_told(home: Path, name: str, message: str, exit_code: int) -> None:
    assert home.is_dir()
    with pytest.raises(FerryError) as caught:
        located(name)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize("name", ["tiny@champion", "models:tiny@champion"])
def test_a_name_without_its_scheme_is_told_the_whole_of_it(home: Path, name: str) -> None:
    assert home.is_dir()
    with pytest.raises(MissingInputError, match=r"registered model: name one as models:/NAME@ch"):
        open_model(name)


@pytest.mark.parametrize("name", ["../tiny", "tiny@champion", "models:/tiny", "a b", ""])
def test_a_name_alone_is_no_path_and_has_no_alias(home: Path, name: str) -> None:
    assert home.is_dir()
    with pytest.raises(UsageError, match="give NAME, without alias and version"):
        read_registry(name)


def test_two_sides_of_a_merge_are_called_that(home: Path) -> None:
    path = home / "registry" / "tiny.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, b"<<<<<<< HEAD\n", *others, b"=======\n>>>>>>> main\n"]))
    with pytest.raises(IntegrityError, match=r"tiny\.jsonl, line 2 is git's mark of a conflict"):
        located("models:/tiny/1")


def test_an_alias_of_no_version_says_what_there_is(tmp_path: Path) -> None:
    fresh = written(tmp_path / "fresh.jsonl", registered(1))
    with pytest.raises(MissingInputError, match="fresh has no champion: challenger is version 1; "):
        fresh.version_of("champion")


def test_aliases_follow_from_the_events(tmp_path: Path) -> None:
    events = [
        (registered(1), (None, 1)),
        (promoted(1), (1, None)),
        (registered(2), (1, 2)),
        (registered(3), (1, 3)),
        (promoted(2, 1), (2, 3)),
        (promoted(3, 2), (3, None)),
        (RolledBack(version=2, over=3), (2, None)),
        (RolledBack(version=1, over=2), (1, None)),
        (promoted(3, 1), (3, None)),
        (RolledBack(version=1, over=3), (1, None)),
    ]
    for count, (_, (champion, challenger)) in enumerate(events, start=1):
        state = written(tmp_path / "tiny.jsonl", *(event for event, _ in events[:count]))
        assert (state.champion, state.challenger) == (champion, challenger), count


# The file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    written(path, registered(1), promoted(1), registered(2), promoted(2, 1))
    return path


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_changed_line_is_named(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    for before, after in ((b'"ada"', b'"eve"'), (b'": "', b'":  "'), (b'"who"', b'"whu"')):
        changed = [*lines]
        changed[number - 1] = lines[number - 1].replace(before, after, 1)
        path.write_bytes(b"".join(changed))
        with pytest.raises(IntegrityError, match=rf"tiny\.jsonl, line {number}\b.*git log -p"):
            registry_at(path)


def test_a_line_that_was_sealed_anew_does_not_fit_the_next(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    forged = replace(registry_at(path).entries[1], who="eve").sealed()
    path.write_bytes(b"".join([lines[0], forged.line, *lines[2:]]))
    with pytest.raises(IntegrityError, match="line 3 was not written after line 2"):
        registry_at(path)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 2, 3], "line 1 is entry 2: lines are missing or out of order"),
        ([0, 2, 3], "line 2 is entry 3"),
        ([0, 2, 1, 3], "line 2 is entry 3"),
        ([0, 0, 1, 2, 3], "line 2 is entry 1"),
    ],
)
def test_lost_and_moved_lines_are_named(path: Path, order: list[int], message: str) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[index] for index in order))
    with pytest.raises(IntegrityError, match=message):
        registry_at(path)


def test_what_a_kill_left_of_the_last_line_counts_for_nothing(path: Path) -> None:
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, 2, last // 2, last - 1):
        path.write_bytes(whole[:-cut])
        found = registry_at(path)
        # Without its line break alone it is whole.
        assert len(found.entries) == (4 if cut == 1 else 3)
        assert found.size == len(whole) - (1 if cut == 1 else last)


def test_the_registry_is_found_from_a_folder_below(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = path.parent / "photos"
    (below / "registry").mkdir(parents=True)  # which is another thing
    (path.parent / "registry").mkdir()
    path.rename(path.parent / "registry" / path.name)
    monkeypatch.chdir(below)
    assert read_registry("tiny").champion == 2
