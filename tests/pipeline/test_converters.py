"""Files of the usual converters: `ferry predict` says what scikit-learn and LightGBM say."""

import csv
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import LinearSVC

from pipeline.config.experiment import GateConfig
from pipeline.proof.pair import compare
from pipeline.proof.rows import open_rows
from pipeline.proof.sides import model_side
from pipeline.records.parity import PairReport
from pipeline.stages.bundle import bundle_file
from serving import open_model
from serving.batch.predict import predict
from serving.batch.run import PredictOptions
from serving.bundles.bundle import read_manifest
from serving.bundles.verify import verify
from serving.errors import InputError, UsageError
from serving.files import write_json

skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed: no files of it")

ROWS, IRIS = load_iris(return_X_y=True)
ROWS = ROWS.astype(np.float32)
NUMBERS, NAMES = np.array([10, 20, 30])[IRIS], np.array(["cat", "dog", "eel"])[IRIS]
LIMITS = GateConfig.only(max_abs_diff=1e-4, max_probability_diff=1e-4, batch_diff=1e-4, flips=0)
OPSETS = {"": 18, "ai.onnx.ml": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A file, and what its maker says of the rows."""

    path: Path
    label: list[str] | None
    table: np.ndarray
    """Probabilities, distances or values."""


def logistic(classes: np.ndarray) -> Any:
    return LogisticRegression(max_iter=300).fit(ROWS, classes)


def lightgbm(zipmap: bool) -> Any:
    package = pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    tools = pytest.importorskip("onnxmltools", reason="onnxmltools is not installed")
    made = package.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(ROWS, NUMBERS)
    types = [("rows", tools.convert.common.data_types.FloatTensorType([None, 4]))]
    content = tools.convert_lightgbm(made, initial_types=types, zipmap=zipmap, target_opset=15)
    return made, content


def of_sklearn(made: Any, **options: Any) -> Any:
    given = {"options": options} if options else {}
    return made, skl2onnx.to_onnx(made, ROWS[:1], target_opset=OPSETS, **given)


def bare(made: Any) -> Any:
    return of_sklearn(made, zipmap=False)


MAKERS: Mapping[str, Callable[[], Any]] = {
    "numbers, mapped": lambda: of_sklearn(logistic(NUMBERS)),
    "names, mapped": lambda: of_sklearn(logistic(NAMES)),
    "numbers": lambda: bare(logistic(NUMBERS)),
    "names": lambda: bare(logistic(NAMES)),
    "columns": lambda: of_sklearn(logistic(NAMES), zipmap="columns"),
    "forest": lambda: bare(RandomForestClassifier(5, random_state=0).fit(ROWS, NAMES)),
    "margins": lambda: of_sklearn(LinearSVC(random_state=0).fit(ROWS, NUMBERS)),
    "lightgbm, mapped": lambda: lightgbm(zipmap=True),
    "lightgbm": lambda: lightgbm(zipmap=False),
    "bayes": lambda: bare(GaussianNB().fit(ROWS, NUMBERS)),
    "clusters": lambda: of_sklearn(KMeans(3, random_state=0, n_init=1).fit(ROWS)),
    "mixture": lambda: of_sklearn(GaussianMixture(3, random_state=0).fit(ROWS)),
    "embedding": lambda: of_sklearn(PCA(3).fit(ROWS)),
    "regression": lambda: of_sklearn(LinearRegression().fit(ROWS, ROWS[:, :3])),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Converted]:
    folder = tmp_path_factory.mktemp("converted")
    np.save(folder / "rows.npy", ROWS)
    known: dict[str, Converted] = {}

    def one(name: str) -> Converted:
        if name not in known:
            made, content = MAKERS[name]()
            path = folder / f"{name.replace(', ', '_')}.onnx"
            path.write_bytes(content.SerializeToString())
            asked = ("predict_proba", "decision_function", "transform", "predict")
            table = next(getattr(made, method) for method in asked if hasattr(made, method))
            told = name not in ("embedding", "regression")
            label = [str(one) for one in made.predict(ROWS)] if told else None
            known[name] = Converted(path=path, label=label, table=table(ROWS))
        return known[name]

    return one


def written(model: Path, output: Path, **options: Any) -> list[dict[str, str]]:
    """The lines that `ferry predict` writes of all rows."""
    rows = model.parent / "rows.npy"
    given = PredictOptions(threads=1, workers=1, **options)
    predict(
        model,
        [rows if rows.exists() else model.parents[1] / "rows.npy"],
        output=output,
        options=given,
    )
    return list(csv.DictReader(output.open(encoding="utf-8")))


@pytest.mark.parametrize(
    "name",
    [
        "numbers, mapped",
        "names, mapped",
        "numbers",
        "names",
        "forest",
        "lightgbm, mapped",
        "lightgbm",
    ],
)
def test_a_classifier_says_its_own_label(
    converted: Callable[[str], Converted], tmp_path: Path, name: str
) -> None:
    one = converted(name)
    lines = written(one.path, tmp_path / "out.csv", probabilities=True)
    labels = sorted(set(one.label or ()))
    classes = [f"probability_{label}" for label in labels]
    assert list(lines[0]) == ["id", "label", "label_index", "probability", *classes]
    assert [line["label"] for line in lines] == one.label
    assert [labels[int(line["label_index"])] for line in lines] == one.label
    found = np.array([[float(line[name]) for name in classes] for line in lines])
    np.testing.assert_allclose(found, one.table, atol=1e-5)
    chosen = [float(line["probability"]) for line in lines]
    np.testing.assert_allclose(chosen, one.table.max(axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["columns", "bayes", "clusters", "mixture"])
def test_a_label_whose_scores_nobody_knows_stands_beside_the_other_outputs(
    converted: Callable[[str], Converted], tmp_path: Path, name: str
) -> None:
    """Of k-means the scores are distances, so the largest is the farthest cluster's."""
    one = converted(name)
    lines = written(one.path, tmp_path / "out.csv")
    assert [line["label"] for line in lines] == one.label
    others = list(lines[0])[2:]
    columns = {"columns": ["scat", "sdog", "seel"], "clusters": ["scores"]}
    assert others == columns.get(name, ["probabilities"])
    found = [
        np.hstack([np.fromstring(line[o].strip("[]"), sep=",") for o in others]) for line in lines
    ]
    np.testing.assert_allclose(np.array(found), one.table, rtol=1e-3, atol=1e-5)
    with pytest.raises(UsageError, match="it gives the label itself"):
        written(one.path, tmp_path / "best.csv", top_k=1)


@pytest.mark.parametrize("name", ["embedding", "regression"])
def test_what_tells_no_class_is_written_as_it_is(
    converted: Callable[[str], Converted], tmp_path: Path, name: str
) -> None:
    one = converted(name)
    lines = written(one.path, tmp_path / "out.csv")
    assert list(lines[0]) == ["id", "variable"]
    found = [np.fromstring(line["variable"].strip("[]"), sep=",") for line in lines]
    np.testing.assert_allclose(np.array(found), one.table, atol=1e-4)
    lines = written(one.path, tmp_path / "classes.csv", task="classification")
    assert [int(line["label"]) for line in lines] == one.table.argmax(axis=1).tolist()


def compared(path: Path) -> PairReport:
    side = model_side(path.name, path.read_bytes())
    rows = open_rows(str(path.parent / "rows.npy"), side.inputs)
    report = compare(side, side.at("none"), rows, limits=LIMITS, batch_sizes=(7,), hostile=False)
    assert report.passed, report.result.failures
    return report


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "lightgbm"])
def test_parity_takes_them(converted: Callable[[str], Converted], name: str) -> None:
    one = converted(name)
    result = compared(one.path).result
    assert result.flips == (0 if one.label else None)
    measured = [output.output for output in result.run[0].outputs]
    assert not [name for name in measured if "label" in name], "a label is no quantity"


@pytest.mark.parametrize("name", ["names, mapped", "numbers", "clusters", "embedding"])
def test_a_bundle_answers_as_the_file_and_so_does_its_runner(
    converted: Callable[[str], Converted], tmp_path: Path, name: str
) -> None:
    one = converted(name)
    report = write_proof(one.path)
    rows = str(one.path.parent / "rows.npy")
    bundle_file(one.path, tmp_path / "made", rows=rows, parity=report, golden_rows=4)
    assert verify(tmp_path / "made").passed
    assert open_model(tmp_path / "made").kind == open_model(one.path).kind
    np.save(tmp_path / "rows.npy", ROWS)
    lines = written(tmp_path / "made", tmp_path / "out.csv")
    command = [sys.executable, "-I", "-B", "made/runner.py", "predict", "rows.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    ran = list(csv.DictReader(done.stdout.splitlines()))
    assert list(ran[0])[1:] == list(lines[0])[1:]
    if one.label:
        assert [line["label"] for line in ran] == [line["label"] for line in lines] == one.label


def write_proof(path: Path) -> Path:
    side = model_side(path.name, path.read_bytes())
    rows = open_rows(str(path.parent / "rows.npy"), side.inputs)
    report = compare(side, side, rows, limits=LIMITS, batch_sizes=(7,), hostile=False)
    write_json(path.with_suffix(".json"), report)
    return path.with_suffix(".json")


def test_labels_of_the_user_take_the_place_of_those_in_the_graph(
    converted: Callable[[str], Converted], tmp_path: Path
) -> None:
    one, labels = converted("numbers"), tmp_path / "labels.txt"
    given = {"rows": str(one.path.parent / "rows.npy"), "golden_rows": 4, "labels": labels}
    labels.write_text("ten\ntwenty\nthirty\n", encoding="utf-8")
    bundle_file(one.path, tmp_path / "made", parity=write_proof(one.path), **given)
    assert read_manifest(tmp_path / "made").classes.values == ("10", "20", "30")
    words = dict(zip(("10", "20", "30"), ("ten", "twenty", "thirty"), strict=True))
    found = open_model(tmp_path / "made").predict(ROWS).label
    assert found == [words[label] for label in one.label or ()]


def test_labels_that_do_not_say_whose_they_are(
    converted: Callable[[str], Converted], tmp_path: Path
) -> None:
    """The label is 10, 20 or 30, and the graph has no list of them that ferry finds."""
    one, labels = converted("bayes"), tmp_path / "labels.txt"
    labels.write_text("ten\ntwenty\nthirty\n", encoding="utf-8")
    given = {"rows": str(one.path.parent / "rows.npy"), "golden_rows": 4, "labels": labels}
    with pytest.raises(InputError, match="does not say which of its labels is '10'"):
        bundle_file(one.path, tmp_path / "made", parity=write_proof(one.path), **given)


def test_outputs_that_are_no_arrays_are_left_out_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two labels a row, and a list of tables."""
    made = MultiOutputClassifier(logistic(NUMBERS)).fit(ROWS, np.c_[IRIS, IRIS == 1])
    _, content = bare(made)
    path = tmp_path / "several.onnx"
    path.write_bytes(content.SerializeToString())
    np.save(tmp_path / "rows.npy", ROWS)
    lines = written(path, tmp_path / "out.csv")
    assert list(lines[0]) == ["id", "label"]
    assert "Warning: output probabilities is seq(tensor(float))" in capsys.readouterr().err
    assert "output probabilities is seq(tensor(float))" in compared(path).result.notes[0]
