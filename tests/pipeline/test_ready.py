"""The words of Python are those of the exported graph."""

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import pipeline
from pipeline.records import record
from pipeline.records.ready import (
    ArrayInfo,
    DatasetManifest,
    digest,
    open_manifest,
    open_split,
    words,
    write_array,
    write_manifest,
)
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_file
from serving.runtime.session import Session, open_session

INPUTS = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 1), np.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a train split alone."""
    folder = tmp_path / "toy"
    arrays = {
        "train_inputs.npy": write_array(folder / "train_inputs.npy", INPUTS),
        "train_labels.npy": write_array(folder / "train_labels.npy", LABELS),
    }
    manifest = DatasetManifest(
        dataset="toy",
        kind="image",
        labels=("a", "b"),
        class_counts={"train": (3, 3)},
        mean=(1.5,),
        std=(0.5,),
        vocabulary=("the", "a"),
        seed=1,
        arrays=arrays,
    )
    write_manifest(folder, manifest)
    return folder


def test_a_split_comes_back_memory_mapped(folder: Path) -> None:
    split = open_split(folder, "train")
    assert isinstance(split.inputs, np.memmap)
    assert not split.inputs.flags.writeable
    np.testing.assert_array_equal(split.inputs, INPUTS)
    np.testing.assert_array_equal(split.labels, LABELS)
    assert (split.inputs.dtype, split.labels.dtype) == (np.uint8, np.int64)


def test_a_manifest_comes_back_as_the_record_that_was_written(folder: Path) -> None:
    manifest = open_manifest(folder)
    assert manifest.arrays["train_inputs.npy"] == ArrayInfo(
        shape=(6, 4, 4, 1), dtype="uint8", sha256=sha256_of_file(folder / "train_inputs.npy")
    )
    assert (manifest.labels, manifest.mean, manifest.seed) == (("a", "b"), (1.5,), 1)
    assert manifest.class_counts == {"train": (3, 3)}
    assert (manifest.kind, manifest.vocabulary) == ("image", ("the", "a"))


def test_an_array_in_another_order_of_memory_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write_array(tmp_path / "c.npy", INPUTS)
    two = write_array(tmp_path / "f.npy", np.asfortranarray(INPUTS))
    assert one == two
    assert np.load(tmp_path / "f.npy").flags.c_contiguous
    np.save(tmp_path / "numpy.npy", INPUTS)
    assert (tmp_path / "numpy.npy").read_bytes() == (tmp_path / "c.npy").read_bytes()


def test_texts_come_back_memory_mapped_and_are_no_objects(folder: Path) -> None:
    texts = np.array(["née – …", "", "a longer one "])
    info = write_array(folder / "train_inputs.npy", texts)
    manifest = replace(open_manifest(folder), kind="text")
    arrays = manifest.arrays | {"train_inputs.npy": info}
    write_manifest(folder, replace(manifest, arrays=arrays))
    inputs = open_split(folder, "train").inputs
    assert isinstance(inputs, np.memmap)
    assert (inputs.dtype, inputs.tolist()) == ("<U13", texts.tolist())


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"objects\.npy cannot hold object values"):
        write_array(tmp_path / "objects.npy", np.array([{}], dtype=object))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from pipeline.records.ready import write_array
try:
    write_array(Path(sys.argv[1]), np.zeros((100, 1000), np.uint8))
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""
    path = tmp_path / "rows.npy"
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        cwd=Path(pipeline.__file__).parents[1],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.stderr == f"{path}: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_one_changed_byte_is_noticed(folder: Path) -> None:
    path = folder / "train_inputs.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        IntegrityError, match=r"train_inputs\.npy has sha256 .* `ferry preprocess toy`"
    ):
        open_split(folder, "train")


def test_one_changed_digit_of_the_manifest_is_noticed(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("1.5", "3.5"))  # a mean
    with pytest.raises(IntegrityError, match=r"manifest\.json has sha256 .*, preprocess@toy rec"):
        open_manifest(folder)


def test_a_record_of_another_shape_is_noticed(folder: Path) -> None:
    manifest = open_manifest(folder)
    arrays = {name: replace(info, dtype="int16") for name, info in manifest.arrays.items()}
    write_manifest(folder, replace(manifest, arrays=arrays))
    with pytest.raises(IntegrityError, match=r"holds uint8 \(6, 4, 4, 1\), int16 .* was recorded"):
        open_split(folder, "train")


def test_a_split_that_the_manifest_does_not_list(folder: Path) -> None:
    write_array(folder / "test_inputs.npy", INPUTS)
    with pytest.raises(IntegrityError, match=r"manifest\.json does not list test_inputs\.npy"):
        open_split(folder, "test")


def test_what_is_missing_names_the_command_that_makes_it(folder: Path, tmp_path: Path) -> None:
    (folder / "train_labels.npy").unlink()
    with pytest.raises(MissingInputError, match=r"train_labels\.npy is not there; `ferry prep"):
        open_split(folder, "train")
    with pytest.raises(
        MissingInputError, match=r"manifest\.json is not there; `ferry preprocess d`"
    ):
        open_manifest(tmp_path / "d")


@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_what_is_no_manifest_is_refused(folder: Path, content: str) -> None:
    path = folder / "manifest.json"
    path.write_text(content)
    record(path, sha256_of_file(path))
    with pytest.raises(
        IntegrityError, match=r"manifest\.json (is not a|must be a|lacks the key)"
    ) as caught:
        open_manifest(folder)
    assert str(caught.value).endswith(f"; `ferry preprocess {folder.name}` makes it anew")


def test_the_digest_is_that_of_the_arrays(folder: Path) -> None:
    first = digest(open_manifest(folder))
    manifest = open_manifest(folder)
    arrays = dict(reversed(manifest.arrays.items()))
    assert digest(replace(manifest, arrays=arrays)) == first
    arrays["train_labels.npy"] = replace(arrays["train_labels.npy"], sha256="0" * 64)
    assert digest(replace(manifest, arrays=arrays)) != first


CHARACTERS = " \t\n\r\v\f\u0085\u00a0\u2003\u3000a.é\U0001f600"


@pytest.fixture(scope="module")
def split() -> Session:
    """StringSplit as the exported graph has it: no delimiter."""
    graph = helper.make_graph(
        [helper.make_node("StringSplit", ["text"], ["words", "counts"])],
        "split",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])],
        [
            helper.make_tensor_value_info("words", TensorProto.STRING, ["batch", "most"]),
            helper.make_tensor_value_info("counts", TensorProto.INT64, ["batch"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return open_session(model.SerializeToString())


def split_by_the_graph(session: Session, texts: list[str]) -> list[list[str]]:
    found = session.run({"text": np.array(texts, dtype=object)})
    rows = zip(found["words"], found["counts"], strict=True)
    return [row[:count].tolist() for row, count in rows]


def test_several_blanks_are_one_and_those_at_the_ends_none() -> None:
    assert words("  two   words ") == ["two", "words"]
    assert words("") == words("   ") == []


def test_a_blank_alone_splits_words() -> None:
    assert words("a\tb c\nd\u00a0e ") == ["a\tb", "c\nd\u00a0e"]


def test_texts_by_chance_are_split_as_the_graph_does(split: Session) -> None:
    random = np.random.default_rng(1)
    texts = ["".join(random.choice(list(CHARACTERS), size)) for size in np.arange(2000) % 12]
    assert split_by_the_graph(split, texts) == [words(text) for text in texts]
    assert len({len(words(text)) for text in texts}) > 4


def test_no_other_character_splits_in_the_graph(split: Session) -> None:
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    blanks = [one for one in every if one.isspace() or not one.isprintable()][:5000]
    texts = [f"a{one}b" for one in blanks]
    assert "a\tb" in texts
    assert split_by_the_graph(split, texts) == [words(text) for text in texts]
