"""`ferry data`: what it shows of a data set, and what it warns of."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from project import REPOSITORY

from pipeline.cli import ferry

RANDOM = np.random.default_rng(1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a data set of its own of each kind."""
    own = """datasets:
  flowers: {reader: image_folder, path: flowers, size: [6, 6], color: rgb}
  houses: {reader: table, path: houses.csv, target: [price]}
  reviews: {reader: text, path: reviews}
"""
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("datasets:\n", own, 1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(*arguments: str) -> str:
    done = CliRunner().invoke(ferry, ["data", *arguments], prog_name="ferry")
    assert done.exit_code == 0, done.stderr
    return done.stdout


def report(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data(name, "--json"))
    return found


def write_flowers(counts: dict[str, int]) -> None:
    for label, count in counts.items():
        Path("flowers", label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = RANDOM.integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(pixels).save(f"flowers/{label}/{index}.png")


def test_images_are_counted_and_shown() -> None:
    write_flowers({"rose": 30, "tulip": 30})
    text = data("flowers")
    assert "flowers: 60 images, uint8 [6, 6, 3] each, 2 classes" in text
    assert "rose      25           2     3" in text
    assert "Examples: reports/data/flowers.png" in text
    assert "Warning" not in text
    with Image.open("reports/data/flowers.png") as sheet:
        pixels = np.asarray(sheet)
    with Image.open("flowers/rose/0.png") as image:
        first = np.asarray(image)
    assert pixels.shape == (2 * 68, 160 + 8 * 68, 3)
    assert set(map(tuple, pixels[:64, 160:224].reshape(-1, 3))) == set(
        map(tuple, first.reshape(-1, 3))
    )


def test_what_may_be_wrong_with_images_is_told_by_their_names() -> None:
    write_flowers({"rose": 300, "fern": 6})
    for copy in range(40):
        shutil.copy("flowers/rose/0.png", f"flowers/rose/copy{copy}.png")
    shutil.copy("flowers/rose/0.png", "flowers/fern/9.png")
    Image.new("RGB", (6, 6), "grey").save("flowers/rose/grey.png")
    warnings = report("flowers")["warnings"]
    begins = [warning.partition(": ")[0] for warning in warnings]
    assert begins[:2] == [
        "classes of fewer than 20 training rows",
        "class rose has 55 times the training rows of fern; accuracy alone says little",
    ]
    told = dict(warning.split(": ", 1) for warning in warnings[2:])
    assert "rows of test that are in train as well" in told
    assert "rows of validation that are in train as well" in told
    assert "rose/copy" in told["rows of test that are in train as well"]
    assert told["images of nearly one colour"].startswith("1 (rose/grey.png of ")
    assert "fern/9.png is " in told["same rows with different answers"] or (
        " is fern/9.png" in told["same rows with different answers"]
    )


def test_columns_are_named_with_their_ranges() -> None:
    rows = [f"{index},{index % 7 / 2},3,{-index / 4}" for index in range(50)]
    Path("houses.csv").write_text("\n".join(["id,area,floors,price", *rows]))
    found = report("houses")
    assert [value["name"] for value in found["values"]] == ["id", "area", "floors", "price"]
    assert (found["values"][1]["lowest"], found["values"][1]["highest"]) == (0, 3)
    assert (found["classes"], found["contact_sheet"]) == ({}, None)
    assert found["warnings"] == [
        "id seems to count the rows; `features` can leave it out",
        "floors is 3 in every training row; nothing can be learned from it",
    ]
    assert "rows  train  validation  test\nall      41           4     5" in data("houses")


def test_what_has_changed_is_read_anew_and_what_has_not_is_not() -> None:
    Path("reviews").mkdir()
    for label in ("good", "bad"):
        lines = [f"{label}\tfilm {index}{' long' * 20 * (index > 20)}\n" for index in range(30)]
        Path(f"reviews/{label}.txt").write_text("".join(lines))
    text = data("reviews")
    assert "reviews: 60 texts, 2 classes" in text
    assert "good film 0" in text  # a tab would spoil the columns
    assert "good film 29 long long long long long long long long long l…    good" in text
    ready = Path("data/ready/reviews/train_inputs.npy")
    before = ready.stat().st_mtime_ns
    assert data("reviews") == text
    assert ready.stat().st_mtime_ns == before
    with Path("reviews/good.txt").open("a") as file:
        file.write("another\n" * 10)
    assert "reviews: 70 texts" in data("reviews")
    shutil.rmtree("reviews")
    assert "reviews: 70 texts" in data("reviews")


def test_data_sets_of_ferry_can_be_looked_at_too() -> None:
    assert "digits: 1,797 images, uint8 [8, 8, 1] each, 10 classes" in data("digits")
    done = CliRunner().invoke(ferry, ["data", "mnist"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "`ferry pull mnist` makes it" in done.stderr
