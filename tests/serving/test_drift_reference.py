"""`reference.json`: it comes back as it was, travels in the bundle, and is read strictly."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drift_samples import classified, reference
from tiny_classifier import contents, forge, images
from tiny_kinds import SENTIMENTS, TEXTS, text_contents

from serving.bundles.bundle import FILES, FileInfo, open_bundle, read_manifest
from serving.bundles.reference import REFERENCE, Reference, read_reference
from serving.bundles.verify import verify
from serving.bundles.writing import write_bundle
from serving.drift.check import open_check
from serving.errors import IntegrityError, UsageError
from serving.files import sha256_of_bytes


def some() -> Reference:
    labels = np.random.default_rng(3).integers(0, 3, 60)
    return reference(images(60), classified(labels), classes=3)


@pytest.fixture
def with_reference(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    write_bundle(folder, contents(reference=some()))
    return folder


def test_it_comes_back_as_it_was_written() -> None:
    for one in (some(), reference(np.array(TEXTS), classified(np.arange(5)), known="a good")):
        assert read_reference(one.content(), "here") == one


def test_it_is_a_file_of_the_bundle(with_reference: Path) -> None:
    names = sorted(path.name for path in with_reference.iterdir())
    assert names == sorted([*FILES, REFERENCE, "manifest.json"])
    info = read_manifest(with_reference).files[REFERENCE]
    assert info.sha256 == sha256_of_bytes(some().content())
    assert open_bundle(with_reference).reference() == some()
    checks = {check.name: check for check in verify(with_reference).checks}
    assert checks["reference"].status == "passed"
    assert checks["reference"].detail == "3 quantities of 60 rows of toy"
    assert checks["runner"].status == "passed"


def test_a_bundle_without_one_opens(bundle: Path) -> None:
    assert open_bundle(bundle).reference() is None
    assert "reference" not in [check.name for check in verify(bundle).checks]
    with pytest.raises(UsageError, match=r"has no reference\.json to hold its rows against"):
        open_check(bundle)


def test_a_file_has_none(model_file: Path) -> None:
    with pytest.raises(UsageError, match=r"tiny\.onnx has no reference\.json"):
        open_check(model_file)


def replaced(bundle: Path, content: bytes) -> None:
    """Put another reference into a bundle, sealed as if it were the right one."""
    (bundle / REFERENCE).write_bytes(content)
    info = FileInfo(size=len(content), sha256=sha256_of_bytes(content))
    forge(bundle, files={**read_manifest(bundle).files, REFERENCE: info})


def test_a_sealed_one_that_cannot_be_read_fails_verification(with_reference: Path) -> None:
    replaced(with_reference, b"{}")
    failed = {check.name for check in verify(with_reference).checks if check.status == "failed"}
    assert failed == {"reference"}
    with pytest.raises(IntegrityError, match=r"reference\.json lacks the key"):
        open_check(with_reference)


def test_one_of_other_classes_fails_verification(with_reference: Path) -> None:
    replaced(with_reference, reference(images(9), classified(np.zeros(9, int))).content())
    failed = {check.name: check.detail for check in verify(with_reference).checks}["reference"]
    assert "found 10, expected 3" in failed


SPOILT: dict[str, tuple[Any, str]] = {
    "schema_version": (1, "schema version 1, this ferry reads 2; make the bundle anew"),
    "data": (None, "data must be str, got None"),
    "kind": ("cat", "kind must be"),
    "classes": ([3, -1], "classes are no counts of rows"),
    "surprise": (1, "unknown key 'surprise'"),
    "known_words": ([], "known_words must be str"),
}


@pytest.mark.parametrize("key", SPOILT)
def test_a_spoilt_one_is_refused_by_path(key: str) -> None:
    value, message = SPOILT[key]
    raw = json.loads(some().content()) | {key: value}
    with pytest.raises(IntegrityError, match=message):
        read_reference(json.dumps(raw).encode(), "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [1, 2]}, "has 2 counts for"),
        ({"edges": [2.0, 1.0], "counts": [1, 1, 1, 0]}, "not finite numbers in ascending order"),
        ({"edges": [1.0, 1.0], "counts": [1, 1, 1, 0]}, "not finite numbers in ascending order"),
        ({"edges": [float("nan")], "counts": [1, 1, 0]}, "NaN is no number of JSON"),
        ({"edges": [float("inf")], "counts": [1, 1, 0]}, "Infinity is no number of JSON"),
        ({"edges": [1.0], "counts": [-1, 2, 0]}, "are no counts of rows"),
        ({"edges": [1.0], "counts": [0, 0, 0]}, "are no counts of rows"),
        ({"edges": [1.0], "counts": [1, 2.5, 0]}, r"counts\[1\] must be int"),
        ({"of": "weather"}, "of must be"),
        ({"low": None}, "is of numbers from None to"),
        ({"low": 9.0, "high": 1.0}, r"is of numbers from 9\.0 to 1\.0"),
    ],
)
def test_a_spoilt_quantity_is_refused(changes: dict[str, Any], message: str) -> None:
    raw = json.loads(some().content())
    raw["quantities"]["contrast"] |= changes
    with pytest.raises(IntegrityError, match=message):
        read_reference(json.dumps(raw).encode(), "here")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_reference(content: bytes) -> None:
    with pytest.raises(IntegrityError, match="here"):
        read_reference(content, "here")


def test_a_vocabulary_travels_too(tmp_path: Path) -> None:
    answers = classified(np.array([0, 1, 0, 1, 1]))
    known = reference(np.array(TEXTS), answers, known="good fine bad", classes=len(SENTIMENTS))
    bundle = tmp_path / "texts"
    write_bundle(bundle, replace(text_contents(), reference=known))
    check = open_check(bundle)
    check.add(np.array(TEXTS, object), answers)
    assert check.report().rows == len(TEXTS)
    assert check.report().moved == ()
