"""Figures that are published: their files, the tables made of them, and what quotes them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import sample_metrics
import sample_places
from click.testing import CliRunner, Result

from pipeline.cli import ferry
from pipeline.config.experiment import Params
from pipeline.config.params import load
from pipeline.records.published import (
    MARKED,
    Published,
    PublishedResults,
    ScriptLine,
    as_table,
    fill,
    reached_here,
    read_all,
    read_published,
    read_scripts,
    write_published,
)
from pipeline.stages.page.results import publishable
from serving.errors import MissingInputError
from serving.files import write_json

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INT8 = "<!-- results: int8 mnist-cnn -->\n<!-- /results -->"


@pytest.fixture(scope="module")
def params() -> Params:
    return load(ROOT / "params.yaml")


@pytest.fixture
def published(params: Params, tmp_path: Path) -> PublishedResults:
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    search = sample_metrics.quantized("mnist-cnn")
    write_json(sample_metrics.details(tmp_path, "mnist-cnn", "quantize"), search)
    (one,) = publishable(params, root=tmp_path)
    return one


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_table_of_figures_is_that_of_the_published_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folder = ROOT / "docs/results"
    assert fill(text, read_all(folder)) == text, (
        f"{page.name} is not made of docs/results: `ferry results --publish docs/results` makes it"
    )


def test_published_files_are_small_and_say_where_they_were_measured(params: Params) -> None:
    found = read_published(ROOT / "docs/results")
    assert found
    assert {one.experiment for one in found} <= set(params.experiments)
    for one in found:
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", one.revision)
        assert "cores" in one.machine
    assert sum(path.stat().st_size for path in (ROOT / "docs/results").iterdir()) < 100_000


def test_what_is_published_is_what_was_measured(published: PublishedResults) -> None:
    assert published.machine == "AMD EPYC <Genoa>, 2 cores, avx2 avx512_vnni"
    assert (published.accuracy, published.revision) == (0.9953, "4f0c1d2e")
    int8 = published.variants["int8"]
    assert (int8.recipe, int8.flips, int8.size_ratio) == ("static-u8s8", 2, 0.3)
    assert int8.speedup["32"].median == 1.7
    assert published.variants["fp16"].passed is False
    assert published.speed is not None
    assert published.speed.over_eager["1"].median == pytest.approx(3, abs=1e-4)
    assert [one.threads for one in published.speed.latencies] == [1, 2]
    assert published.speed.cold_start_ms == 310
    assert published.shipped == "int8"


def test_files_come_back_and_the_tables_beside_them_are_made(
    published: PublishedResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("docs/results")
    write_published(folder, [replace(published, experiment="another")])
    Path("README.md").write_text(f"before\n{INT8}\nafter\n")
    written = write_published(folder, [published])
    assert written == (folder / "mnist-cnn.json", Path("docs/results.md"), Path("README.md"))
    assert [one.experiment for one in read_published(folder)] == ["another", "mnist-cnn"]
    assert read_published(folder)[1].variants["int8"] == published.variants["int8"]
    assert write_published(folder, [published]) == (folder / "mnist-cnn.json",)
    assert "| `mnist-cnn` | digits | 99.53 % |" in Path("docs/results.md").read_text()
    lines = Path("README.md").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    row = "| `mnist-cnn` | static-u8s8 | 1.70 | 1.70 | 0.03 points, 2 flips | 0.30 |"
    assert lines[-3] == row


def test_what_a_script_reached_is_shown_with_its_machine_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("docs/results")
    lines = [ScriptLine("rate", "0.60", "0.85", met=False), ScriptLine("gain", "-", "", met=None)]
    found = reached_here("predicting.py", lines)
    path, page = write_published(folder, scripts=[found])
    assert (path, page) == (folder / "benchmarks/predicting.json", Path("docs/results.md"))
    assert read_scripts(folder) == (found,)
    row = f"| `predicting.py` | rate | 0.60 | 0.85 | no | {found.machine} | unknown |"
    assert row in page.read_text().splitlines()
    assert "None yet." in page.read_text()  # of the experiments
    shown = CliRunner().invoke(ferry, ["results", "--published"], prog_name="ferry").stdout
    assert shown.splitlines()[1].split() == ["`predicting.py`", "rate", "0.60", "0.85", "no"]
    assert shown.splitlines()[-1] == f"{found.machine}: revision unknown"


def test_places_are_published_in_a_long_table_and_in_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = sample_places.everywhere("mnist-tiny")
    Path("README.md").write_text("<!-- results: edge -->\n<!-- /results -->\n")
    path, *_ = write_published(Path("docs/results"), places=[places])
    assert path == Path("docs/results/places/mnist-tiny.json")
    assert read_all(Path("docs/results")).places == (places,)
    assert "| `mnist-tiny` int8 | 0 | – | 1 | – | – |" in Path("README.md").read_text()
    page = Path("docs/results.md").read_text()
    assert "| `mnist-tiny` | int8 | arm64, emulated | 998 of 1,000: 1 flip, 1 near-tie |" in page


def test_a_figure_that_is_not_the_published_one_is_seen(published: PublishedResults) -> None:
    figures = Published(results=(published,))
    text = fill(INT8, figures)
    worse = replace(published, variants={"int8": replace(published.variants["int8"], flips=3)})
    assert fill(text, figures) == text
    assert fill(text, Published(results=(worse,))) != text
    assert MARKED.findall(text) == [("int8", " mnist-cnn")]
    with pytest.raises(MissingInputError, match="no-such"):
        fill("<!-- results: int8 no-such -->\n<!-- /results -->", figures)


def test_the_table_for_a_terminal_says_where_it_was_measured(published: PublishedResults) -> None:
    lines = as_table([published]).splitlines()
    assert lines[0].split()[:3] == ["experiment", "variant", "recipe"]
    assert "fp16, FAILED PARITY" in lines[2]
    assert lines[-1] == "AMD EPYC <Genoa>, 2 cores, avx2 avx512_vnni: revision 4f0c1d2e"


def test_nothing_that_was_not_proven_here_is_published(params: Params, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        publishable(params, root=tmp_path)
    with pytest.raises(MissingInputError, match="mnist-cnn has not run"):
        publishable(params, ("mnist-cnn",), root=tmp_path)


def test_the_files_hold_no_more_digits_than_count(
    published: PublishedResults, tmp_path: Path
) -> None:
    long = replace(published, loss=0.123456789)
    (path, *others) = write_published(tmp_path / "docs/results", [long])
    assert all(one.is_relative_to(tmp_path) for one in others), "README.md of the working directory"
    assert json.loads(path.read_text())["loss"] == 0.123457


def test_the_command_prints_publishes_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    broken = "\n  broken: {dataset: nowhere}\n"  # stops its own commands alone
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + broken)
    monkeypatch.chdir(tmp_path)

    def results(*arguments: str) -> Result:
        return CliRunner().invoke(ferry, ["results", *arguments], prog_name="ferry")

    assert "docs/results has no figures" in results("--published").stderr
    written = results("--publish", "docs/results")
    assert written.exit_code == 0, written.stderr
    assert "experiments.broken" in written.stderr
    assert "docs/results/mnist-cnn.json" in written.stdout.split()
    assert "mnist-cnn" in results("--published", "mnist-cnn").stdout
    assert (
        "docs/results has no figures of digits-mlp" in results("--published", "digits-mlp").stderr
    )
    assert results("--published", "--publish", "docs/results").exit_code == 2
