"""The card and the bill of materials say what the manifest says, in forms that others read."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from closure import ROOT
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from target_bundles import bundled, images, sequences, texts

from pipeline import datasets
from pipeline.records.ready import ArrayInfo, DatasetManifest
from pipeline.targets import bom
from pipeline.targets.card import BOM, CARD, RUNS, card_part
from serving.bundles.bundle import Bundle
from serving.files import sha256_of_bytes


def data(**changes: Any) -> DatasetManifest:
    """What is known of a preprocessed MNIST."""
    official = datasets.get("mnist")
    rows = {"train": 55_000, "validation": 5_000, "test": 10_000}
    given = {
        "dataset": "mnist",
        "kind": "image",
        "labels": official.labels,
        "class_counts": {},
        "mean": (),
        "std": (),
        "vocabulary": (),
        "seed": 1,
        "arrays": {
            f"{split}_inputs.npy": ArrayInfo(shape=(count, 28, 28, 1), dtype="uint8", sha256="")
            for split, count in rows.items()
        },
        "homepage": official.homepage,
        "citation": official.citation,
        "licence": official.licence,
    }
    return DatasetManifest(**(given | changes))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    part = card_part(data(), architecture="cnn", parameters=1234)
    return bundled(tmp_path_factory.mktemp("card") / "tiny", images(), part)[0]


def remade(
    bundle: Bundle, known: DatasetManifest | None, **changes: Any
) -> tuple[str, dict[str, Any]]:
    """Card and bill of a bundle whose manifest says something else."""
    manifest = dataclasses.replace(bundle.manifest, **changes)
    files = {name: text for name, text in bundle.contents.items() if name not in (CARD, BOM)}
    made = card_part(known, architecture="cnn", parameters=1234)(manifest, files)
    assert validated(made[BOM]) is None
    return made[CARD].decode(), json.loads(made[BOM])


def validated(content: bytes) -> object:
    """What is wrong with a bill by the strict schema, or None."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode())


def values(properties: list[dict[str, str]]) -> dict[str, str]:
    return {one["name"].removeprefix("ferry:"): one["value"] for one in properties}


def component(bill: dict[str, Any], ref: str) -> dict[str, Any]:
    (found,) = [one for one in bill["components"] if one.get("bom-ref") == ref]
    return dict(found)


def test_the_bill_is_one_of_cyclonedx_and_lists_every_file(built: Bundle) -> None:
    assert validated(built.contents[BOM]) is None
    assert validated(built.contents[BOM].replace(b"learning-model", b"model")) is not None
    bill = json.loads(built.contents[BOM])
    sums = {
        one["name"]: one["hashes"][0]["content"]
        for one in bill["components"]
        if one["type"] == "file"
    }
    assert sums == {
        name: sha256_of_bytes(text) for name, text in built.contents.items() if name != BOM
    }
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == sums["model.onnx"]
    (dependency,) = bill["dependencies"]
    refs = {one["bom-ref"] for one in bill["components"] if "bom-ref" in one}
    assert set(dependency["dependsOn"]) == {"data", "onnxruntime", "numpy"} == refs


def test_the_bill_has_a_model_card_of_what_the_manifest_says(built: Bundle) -> None:
    card = json.loads(built.contents[BOM])["metadata"]["component"]["modelCard"]
    assert card["modelParameters"] == {
        "task": "image-classification",
        "architectureFamily": "cnn",
        "datasets": [{"ref": "data"}],
        "inputs": [{"format": "images: uint8 [batch, 2, 2, 1]"}],
        "outputs": [
            {"format": "logits: float32 [batch, 3]"},
            {"format": "probabilities: float32 [batch, 3]"},
        ],
    }
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    assert [(one["type"], one["value"]) for one in metrics] == [
        ("accuracy", "0.9753"),
        ("max_abs_diff", "1.25e-06"),
        ("flips", "0"),
    ]
    assert values(card["properties"]) == {"limit:max_abs_diff": "0.0001", "limit:flips": "3"}


def test_a_metric_that_changes_changes_both(built: Bundle) -> None:
    text, bill = remade(built, data(), metrics={"accuracy": 0.9754})
    before = json.loads(built.contents[BOM])
    told = bill["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    assert told["performanceMetrics"][0]["value"] == "0.9754"
    assert "| accuracy | 0.9754 | – |" in text
    assert "0.9753" not in text + json.dumps(bill)
    parity = dict(built.manifest.parity)
    parity["flips"] = dataclasses.replace(parity["flips"], measured=2)
    text, bill = remade(built, data(), parity=parity)
    assert "| real flips | 2 | 3 |" in text
    assert before["components"][0] == bill["components"][0]


def test_the_hub_reads_the_front_matter(built: Bundle) -> None:
    card = ModelCard(built.contents[CARD].decode())
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "onnx"
    assert card.data.datasets == ["mnist"]
    assert card.data.license is None, "nobody told the licence of the model"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9753)
    assert (result.dataset_name, result.dataset_split) == ("mnist", "test")
    odd = 'a: "b" \x85\u2028 # ü'
    text, _ = remade(built, data(dataset=odd), name=odd)
    assert ModelCard(text).data.eval_results[0].dataset_name == odd
    assert ModelCard(text).data.model_name == odd


def test_the_data_are_told_with_licence_and_citation(built: Bundle) -> None:
    text, bill = remade(built, data())
    found = component(bill, "data")
    assert found["licenses"] == [{"license": {"id": "CC-BY-SA-3.0"}}]
    assert "Gradient-based learning" in values(found["properties"])["citation"]
    assert "- licence: CC BY-SA 3.0\n- citation: Y. LeCun" in text
    assert "- rows: 55,000 train, 5,000 validation, 10,000 test" in text


@pytest.mark.parametrize(
    ("known", "words", "licenses"),
    [
        ({"licence": "none stated"}, "none is stated by its authors", None),
        ({"licence": ""}, "none is stated in the project", None),
        ({"licence": "our own, 2026"}, "our own, 2026", [{"license": {"name": "our own, 2026"}}]),
        (None, "unknown: the model is a file that was trained elsewhere", None),
    ],
)
def test_a_licence_that_nobody_stated_is_not_invented(
    built: Bundle, known: dict[str, str] | None, words: str, licenses: object
) -> None:
    text, bill = remade(built, None if known is None else data(**known))
    found = component(bill, "data")
    assert found.get("licenses") == licenses
    assert values(found["properties"])["licence"] == words
    assert f"- licence: {words}\n" in text


def test_an_own_data_set_has_no_citation_nor_homepage_of_another(built: Bundle) -> None:
    own = data(dataset="leaves", licence="", citation="", homepage="")
    text, bill = remade(built, own)
    assert "- citation: none is stated in the project" in text
    assert "Where its training data come from is not recorded." in text
    assert "homepage" not in text
    assert component(bill, "data").keys().isdisjoint({"licenses", "externalReferences"})
    assert "LeCun" not in text + json.dumps(bill)


def test_every_licence_of_a_data_set_of_ferry_is_known() -> None:
    for name in datasets.names():
        licence = datasets.get(name).licence
        assert licence in (*bom.SPDX, *bom.UNSTATED, "public domain"), name


def test_the_same_bundle_has_the_same_bill(built: Bundle, tmp_path: Path) -> None:
    part = card_part(data(), architecture="cnn", parameters=1234)
    again, _ = bundled(tmp_path / "again", images(), part)
    assert again.contents[CARD] == built.contents[CARD]
    assert again.contents[BOM] == built.contents[BOM]
    bill = json.loads(built.contents[BOM])
    other = remade(built, data(), digest="0" * 64)[1]
    assert bill["serialNumber"] != other["serialNumber"]
    assert not re.search(r"timestamp|20\d\d-\d\d-\d\dT", built.contents[BOM].decode())


def test_what_others_are_called(tmp_path: Path) -> None:
    tasks = {}
    for made in (texts, sequences):
        bundle, _ = bundled(tmp_path / made.__name__, made(), card_part(None))
        bill = json.loads(bundle.contents[BOM])
        assert validated(bundle.contents[BOM]) is None
        parameters = bill["metadata"]["component"]["modelCard"]["modelParameters"]
        tasks[made.__name__] = parameters.get("task")
        text = bundle.contents[CARD].decode()
        assert "To answer" in text
        assert "such as those it was proven on, `mnist`" in text
        assert ModelCard(text).data.datasets is None
    assert tasks == {"texts": "text-classification", "sequences": None}


def test_the_card_says_what_a_processor_and_a_device_need(built: Bundle) -> None:
    golden = dataclasses.replace(built.manifest.golden, rows=64, tie=2.5e-6)
    text, bill = remade(built, data(), needs=("vnni",), minimum_runtime="1.19", golden=golden)
    assert "It needs a processor with vnni" in text
    assert "numpy and onnxruntime 1.19 or later" in text
    assert "`golden.npz` holds 64 rows" in text
    assert "by more than 2.5e-06" in text
    assert values(component(bill, "onnxruntime")["properties"]) == {"minimum_version": "1.19"}
    told = values(bill["metadata"]["component"]["properties"])
    assert (told["needs"], told["golden_tie"]) == ("vnni", "2.5e-06")
    assert '"numpy>=' + bom.NUMPY + '"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["triton", "web", "c"])
def test_the_card_says_how_a_target_runs_it(built: Bundle, target: str) -> None:
    text, bill = remade(built, data(), target=target)
    assert f"\n{RUNS[target]}\n" in text
    assert values(bill["metadata"]["component"]["properties"])["target"] == target
    assert RUNS[target] not in remade(built, data())[0]


def test_the_bill_of_a_page_has_its_runtime(built: Bundle) -> None:
    _, bill = remade(built, data(), target="web")
    found = component(bill, "onnxruntime-web")
    assert found["purl"] == f"pkg:npm/onnxruntime-web@{found['version']}"
    assert "onnxruntime-web" in bill["dependencies"][0]["dependsOn"]


def test_names_that_markdown_would_take_for_its_own(built: Bundle) -> None:
    (info,) = built.manifest.inputs
    odd = dataclasses.replace(info, name="a|b")
    text, bill = remade(built, data(), labels=("a`b", "c"), inputs=(odd,))
    assert ": `` a`b ``, `c`." in text
    assert "| in | `a\\|b` | uint8 | [batch, 2, 2, 1] |" in text
    assert "a|b: uint8 [batch, 2, 2, 1]" in json.dumps(bill)


def test_a_card_with_many_classes_stays_short(built: Bundle) -> None:
    labels = tuple(f"class {at}" for at in range(1000))
    text, _ = remade(built, data(), labels=labels)
    assert "`class 39` and 960 more." in text
    assert len(text) < 6000
