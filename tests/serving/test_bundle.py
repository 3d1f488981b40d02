import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_classifier import LABELS, classifier, contents, forge, images
from tiny_kinds import TEXTS, autoencoder_contents, table_contents, text_contents

from serving.bundles.bundle import (
    FILES,
    MANIFEST,
    BundleManifest,
    Gate,
    open_bundle,
    read_manifest,
)
from serving.bundles.verify import verify
from serving.bundles.writing import BundleContents, Part, copy_bundle, write_bundle
from serving.errors import FerryError, InputError, IntegrityError, MissingInputError, ModelError
from serving.files import sha256_of_file
from serving.model import open_model
from serving.runtime.session import open_session

ROOT = Path(__file__).parents[2]


def refused(folder: Path) -> str:
    with pytest.raises(FerryError) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundle_holds_what_a_device_needs(built_bundle: Path) -> None:
    assert sorted(path.name for path in built_bundle.iterdir()) == sorted([*FILES, MANIFEST])
    assert (built_bundle / "labels.txt").read_text(encoding="utf-8").splitlines() == list(LABELS)
    manifest = read_manifest(built_bundle)
    assert manifest.minimum_runtime == "1.14"
    assert (manifest.opset, manifest.ir_version) == (18, 8)
    assert manifest.files["model.onnx"].sha256 == sha256_of_file(built_bundle / "model.onnx")
    assert manifest.metrics == {"accuracy": 97.5, "rows": 100}
    assert manifest.parity["flips"] == Gate(measured=0, limit=0)


def test_the_golden_outputs_are_those_of_the_very_model(built_bundle: Path) -> None:
    golden = np.load(built_bundle / "golden.npz", allow_pickle=False)
    np.testing.assert_array_equal(golden["input"], images(6))
    outputs = open_session(built_bundle / "model.onnx").run({"images": images(6)})
    for name, values in outputs.items():
        np.testing.assert_allclose(golden[name], values, atol=1e-6)


def test_the_same_contents_give_the_same_bytes(built_bundle: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "again", contents())
    for path in built_bundle.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_one_changed_byte_anywhere_is_refused(bundle: Path, name: str) -> None:
    path = bundle / name
    whole = path.read_bytes()
    for position in {*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}:
        for flip in (0x01, 0x20):
            spoilt = bytearray(whole)
            spoilt[position] ^= flip
            path.write_bytes(spoilt)
            assert name in refused(bundle), f"byte {position} of {name}"
    path.write_bytes(whole)
    open_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_byte_more_or_less_is_refused(bundle: Path, name: str) -> None:
    path = bundle / name
    whole = path.read_bytes()
    for spoilt in (whole[:-1], whole + b"\n", b"\n" + whole, b""):
        path.write_bytes(spoilt)
        assert name in refused(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "labels.txt").unlink()
    assert "labels.txt is missing" in refused(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    assert "is not a bundle" in refused(bundle)
    with pytest.raises(MissingInputError, match="none is not there"):
        open_bundle(tmp_path / "none")


@pytest.mark.parametrize("name", [".hidden", "__pycache__"])
def test_what_is_not_listed_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).mkdir() if name == "__pycache__" else (bundle / name).write_bytes(b"")
    assert f"{name} is not listed in the manifest" in refused(bundle)


def with_folder(name: str, content: bytes) -> Part:
    """A part that adds one file."""
    return lambda manifest, files: {name: content}


def test_a_target_may_add_files_and_folders_of_its_own(tmp_path: Path) -> None:
    parts = (with_folder("more/1/file.txt", b"1"), with_folder("more/two.txt", b"2"))
    write_bundle(tmp_path / "made", contents(target="triton", parts=parts))
    made = open_bundle(tmp_path / "made")
    assert made.manifest.target == "triton"
    assert (made.contents["more/1/file.txt"], made.contents["more/two.txt"]) == (b"1", b"2")
    copy_bundle(made, tmp_path / "copy")
    assert open_bundle(tmp_path / "copy").contents == made.contents
    (tmp_path / "made/more/1/extra").write_bytes(b"")
    (tmp_path / "made/more/two.txt").write_bytes(b"3")
    message = refused(tmp_path / "made")
    assert "more/1/extra is not listed" in message
    assert "more/two.txt has sha256" in message


def test_a_part_sees_what_was_there_before_it(tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []

    def part(manifest: BundleManifest, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
        assert manifest.files.keys() == files.keys()
        seen.append(tuple(files))
        return {f"part{len(seen)}": b""}

    write_bundle(tmp_path / "made", contents(parts=(part, part)))
    assert "part1" in seen[1]
    assert "part1" not in seen[0]


def test_a_link_is_refused_even_to_the_right_bytes(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.onnx").rename(tmp_path / "model.onnx")
    (bundle / "model.onnx").symlink_to(tmp_path / "model.onnx")
    assert "model.onnx is a link or a folder" in refused(bundle)


def test_a_pipe_in_place_of_a_file_does_not_hang(bundle: Path) -> None:
    (bundle / "labels.txt").unlink()
    os.mkfifo(bundle / "labels.txt")
    assert "not a plain file" in refused(bundle)


def test_every_difference_is_told_with_expected_and_found(bundle: Path) -> None:
    (bundle / "labels.txt").write_text("x\n")
    (bundle / "golden.npz").unlink()
    (bundle / "new").write_text("")
    message = refused(bundle)
    size = read_manifest(bundle).files["labels.txt"].size
    assert f"labels.txt has 2 bytes, expected {size}" in message
    assert "golden.npz is missing" in message
    assert "new is not listed" in message


def test_a_forged_list_of_files_cannot_reach_outside(bundle: Path) -> None:
    files = dict(read_manifest(bundle).files)
    for name in ("../outside", "/etc/hostname", "sub/../../out", "sub/.hidden", "sub/", ""):
        forge(bundle, files=files | {name: files["labels.txt"]})
        assert "which is no file of a bundle" in refused(bundle)
    forge(bundle, files={})
    assert "does not list golden.npz" in refused(bundle)


def test_a_manifest_of_another_schema_is_refused(bundle: Path) -> None:
    forge(bundle, schema_version=5)
    assert "schema version 5, this ferry reads 4; make the bundle anew" in refused(bundle)


def test_a_manifest_of_the_schema_before_is_refused_for_that(bundle: Path) -> None:
    """Not for the keys that it lacks."""
    raw = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    del raw["profiles"]
    (bundle / MANIFEST).write_text(json.dumps(raw | {"schema_version": 1}), encoding="utf-8")
    message = f"{bundle / MANIFEST} has schema version 1, this ferry reads 4; make the bundle anew"
    assert refused(bundle) == f"{message} with `ferry bundle`"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("opset", "18", "manifest.json.opset must be int, got '18'"),
        ("opset", True, "opset must be int, got True"),
        ("labels", "cat", "labels must be a list"),
        ("metrics", [], "metrics must be a JSON object"),
        ("source", {}, "source lacks the key 'dataset'"),
        ("surprise", 1, "unknown key 'surprise'"),
    ],
)
def test_a_mistyped_manifest_is_refused_by_path(
    bundle: Path, key: str, value: object, message: str
) -> None:
    raw = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    (bundle / MANIFEST).write_text(json.dumps(raw | {key: value}), encoding="utf-8")
    assert message in refused(bundle)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"a": NaN}', "\xff"])
def test_a_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text, encoding="latin-1")
    assert MANIFEST in refused(bundle)


def test_the_same_manifest_in_other_words_is_refused(bundle: Path) -> None:
    raw = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    (bundle / MANIFEST).write_text(json.dumps(raw, indent=4), encoding="utf-8")
    assert "its text is not the one that ferry writes" in refused(bundle)


def test_a_new_bundle_takes_the_place_of_the_old_one(bundle: Path) -> None:
    write_bundle(bundle, contents(metrics={"accuracy": 98.5}))
    assert open_bundle(bundle).manifest.metrics == {"accuracy": 98.5}
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_the_folder_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny", contents())
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "tiny").stat().st_mode == (tmp_path / "plain").stat().st_mode


BAD_CONTENTS = {
    "gate not met": (
        {"parity": {"flips": Gate(measured=2, limit=1)}},
        IntegrityError,
        "flips is 2",
    ),
    "no gate": ({"parity": {}}, IntegrityError, "no parity"),
    "gate not a number": (
        {"parity": {"flips": Gate(measured=float("nan"), limit=1)}},
        InputError,
        "finite",
    ),
    "labels": ({"labels": ("a", "b", "c")}, IntegrityError, "ferry.labels"),
    "label of two lines": ({"labels": ("a", "b\nc", "d")}, InputError, "one line"),
    "variant": ({"variant": "int8"}, IntegrityError, "ferry.variant"),
    "name": ({"name": "other"}, IntegrityError, "ferry.experiment"),
    "model": ({"model": b"no model"}, ModelError, "cannot be loaded"),
    "dtype": ({"golden_input": images(2).astype(np.float32)}, InputError, "data type"),
    "no rows": ({"golden_input": images(0)}, InputError, "golden rows are needed"),
    "no metadata": ({"model": classifier(metadata={})}, IntegrityError, "ferry.dataset"),
    "an output named input": (
        {"model": classifier(outputs=("logits", "input"))},
        InputError,
        "no output named",
    ),
    "an output that no archive holds": (
        {"model": classifier(outputs=("logits", "file"))},
        InputError,
        "no output named 'file'",
    ),
}


@pytest.mark.parametrize("case", BAD_CONTENTS)
def test_contents_that_do_not_fit_leave_the_old_bundle(bundle: Path, case: str) -> None:
    changes, error, message = BAD_CONTENTS[case]
    before = read_manifest(bundle)
    with pytest.raises(error, match=message):
        write_bundle(bundle, contents(**changes))
    assert open_bundle(bundle).manifest == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_what_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a bundle, so it stays"):
        write_bundle(folder, contents())
    with pytest.raises(InputError, match="is a file"):
        write_bundle(folder / "chapter.txt", contents())
    assert (folder / "chapter.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    write_bundle(tmp_path / "tiny", contents())
    open_bundle(tmp_path / "tiny")


def test_an_interrupted_build_leaves_the_old_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = read_manifest(bundle)
    monkeypatch.setattr("serving.bundles.writing.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(bundle, contents())
    assert open_bundle(bundle).manifest == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("made", [text_contents, table_contents, autoencoder_contents])
def test_every_kind_of_model_goes_into_a_bundle(
    tmp_path: Path, made: Callable[[], BundleContents]
) -> None:
    given = made()
    write_bundle(tmp_path / "tiny", given)
    opened = open_bundle(tmp_path / "tiny")
    assert opened.manifest.labels == given.labels
    assert opened.contents["labels.txt"].decode().splitlines() == list(given.labels)
    with np.load(io.BytesIO(opened.contents["golden.npz"]), allow_pickle=False) as golden:
        assert set(golden.files) == {"input", *(one.name for one in opened.manifest.outputs)}
        np.testing.assert_array_equal(golden["input"], given.golden_input)
    assert verify(tmp_path / "tiny").passed
    assert (
        open_model(tmp_path / "tiny").session.sha256 == opened.manifest.files["model.onnx"].sha256
    )


def test_golden_texts_may_be_pythons_own_strings(tmp_path: Path) -> None:
    given = dataclasses.replace(text_contents(), golden_input=np.array(TEXTS, object))
    assert write_bundle(tmp_path / "a", given).digest
    assert (tmp_path / "a" / "golden.npz").read_bytes()


# Kills

KILLED = """
import os, signal, sys
from pathlib import Path
from serving.bundles import writing
from serving.bundles.bundle import open_bundle

def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

{moment}
writing.copy_bundle(open_bundle(Path(sys.argv[1])), Path(sys.argv[2]))
"""
WRITING = "writing.write_json = kill"
SWITCHING = """
writing._exchanged = lambda *_: False
rename = Path.rename
Path.rename = lambda path, to: kill() if path.suffix == ".tmp" else rename(path, to)
"""


def kill(moment: str, source: Path, folder: Path) -> None:
    code = KILLED.format(moment=moment)
    done = subprocess.run([sys.executable, "-c", code, str(source), str(folder)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def test_what_a_killed_writer_leaves_is_removed_by_the_next(
    built_bundle: Path, bundle: Path
) -> None:
    for _ in range(2):
        kill(WRITING, built_bundle, bundle)
        open_bundle(bundle)
        assert beside(bundle) == [".tiny.00000000.tmp"]
    copy_bundle(open_bundle(built_bundle), bundle)
    open_bundle(bundle)
    assert beside(bundle) == []


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_bundle_of_the_name_is_there_while_another_takes_its_place(
    built_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr("serving.bundles.writing._exchanged", lambda *_: False)
    source, missed, done = open_bundle(built_bundle), 0, threading.Event()

    def watch() -> None:
        nonlocal missed
        while not done.is_set():
            missed += not os.path.lexists(bundle)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        for _ in range(20):
            copy_bundle(source, bundle)
        done.set()
        watching.result()
    assert missed == 0 or not exchanges
    open_bundle(bundle)
    assert beside(bundle) == []


def test_a_bundle_that_a_kill_left_without_its_name_is_told_and_gets_it_back(
    built_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(SWITCHING, built_bundle, bundle)
    assert beside(bundle) == [".tiny.00000000.tmp", ".tiny.old"]
    monkeypatch.chdir(bundle.parents[1])
    for name in ("tiny", "bundles/tiny"):  # by its name alone, too
        with pytest.raises(
            MissingInputError, match=r"`mv bundles/\.tiny\.old bundles/tiny` brings"
        ):
            open_model(name)
    copy_bundle(open_bundle(built_bundle), bundle)
    assert beside(bundle) == []


def test_a_bundle_gets_its_name_back_even_where_the_next_one_fails(
    built_bundle: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(SWITCHING, built_bundle, bundle)
    monkeypatch.setattr("serving.bundles.writing.write_json", broken)
    with pytest.raises(RuntimeError, match="broken"):
        copy_bundle(open_bundle(built_bundle), bundle)
    open_bundle(bundle)
    assert beside(bundle) == []


def broken(*_: object) -> None:
    raise RuntimeError("broken")
