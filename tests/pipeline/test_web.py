"""The target `web`: the page of a trained model decides every row in a browser as it does here."""

from collections.abc import Iterator

import numpy as np
import pytest
from chromium import Browser
from model_pages import ModelPage, answers_here, served, write_web_bundle
from project import Project
from strokes import DIGITS, photographed

from pipeline.proof.sameness import compare_answers
from pipeline.records.ready import open_split
from pipeline.targets import web
from serving.bundles.bundle import Bundle
from serving.errors import IntegrityError


def rows_of(project: Project) -> np.ndarray:
    """1,000 rows of all splits."""
    splits = ("test", "validation", "train")
    rows = [np.array(open_split(project.data, split).inputs) for split in splits]
    return np.concatenate(rows)[:1000]


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def bundle(
    exported: Project, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "tiny.web"
    model = exported.models[request.param]
    return write_web_bundle(folder, model, request.param, rows_of(exported))


@pytest.fixture
def page(browser: Browser, bundle: Bundle) -> Iterator[ModelPage]:
    with served(bundle.folder) as address, browser.open(address) as tab:
        yield ModelPage(tab)
        assert tab.errors() == []


@pytest.mark.slow
def test_no_row_is_decided_otherwise_in_a_browser(
    exported: Project, bundle: Bundle, page: ModelPage
) -> None:
    assert page.text("verdict") == "Selftest passed"
    assert bundle.manifest.variant in page.text("digest")
    rows = rows_of(exported)
    expected, golden = answers_here(bundle, rows), bundle.manifest.golden
    same = compare_answers(expected, page.answers(rows), scores="probabilities", tie=golden.tie)
    assert same.largest_diff <= golden.max_abs_diff
    assert same.flips == 0
    for digit in "17":
        label, probability, _ = page.draw(DIGITS[digit]).split()
        assert label in bundle.manifest.labels
        assert 10 <= float(probability) <= 100
    looks_like_the_data_set(page)
    page.drop(photographed(DIGITS["3"], shadow=40, seed=1), "photo.jpg")
    assert page.tab.run("document.getElementById('adapt').checked")
    looks_like_the_data_set(page)


def looks_like_the_data_set(page: ModelPage) -> None:
    """As high as its digits are, as bright, and the paper black."""
    seen = np.array(page.tab.run(PIXELS)).reshape(8, 8, 4)[..., 0]
    assert (seen.max(axis=1) > 50).all()
    assert seen.max() > 200
    assert np.median(seen) < 50


PIXELS = (
    "Array.from(document.getElementById('pixels').getContext('2d').getImageData(0, 0, 8, 8).data)"
)


def test_a_runtime_that_is_not_the_published_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(web.RUNTIME, web.WASM, "0" * 64)
    with pytest.raises(IntegrityError, match=f"{web.WASM} of the page has sha256 3398c10d07d2"):
        web.web_page(None, {})


def test_the_files_come_in_one_order_everywhere() -> None:
    # It becomes the order in the manifest, and so a part of its digest.
    names = list(web.web_page(None, {}))
    assert names == sorted(names)
