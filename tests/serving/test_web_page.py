"""The page of a web bundle in a browser: it answers for every kind of model, or it refuses."""

import base64
import contextlib
import functools
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from chromium import ELSEWHERE, Browser, Page
from model_pages import ModelPage, served
from PIL import Image
from tiny_classifier import METADATA, classifier, contents, expected_scores, forge, images
from tiny_kinds import (
    WORDS,
    Copies,
    autoencoder_contents,
    errors,
    features,
    halved,
    positive,
    table_contents,
    text_contents,
)

from pipeline.targets.web import web_page
from serving.bundles.bundle import GOLDEN, FileInfo, read_manifest
from serving.bundles.writing import BundleContents, write_bundle
from serving.edge.demo import POLICY, WEB
from serving.files import sha256_of_bytes
from serving.inputs.decoding import ImageDecoder

Opened = Callable[[Callable[[], BundleContents]], ModelPage]


@functools.cache
def on_the_web(made: Callable[[], BundleContents]) -> Callable[[], BundleContents]:
    return lambda: replace(made(), target=WEB, parts=(web_page,))


@pytest.fixture
def page_of(browser: Browser, bundle_of: Copies) -> Iterator[Opened]:
    """Opens the page of some contents; nothing in it may break a policy or fail."""
    with contextlib.ExitStack() as stack:
        opened: list[Page] = []

        def open_page(made: Callable[[], BundleContents]) -> ModelPage:
            address = stack.enter_context(served(bundle_of(on_the_web(made))))
            opened.append(stack.enter_context(browser.open(address)))
            return ModelPage(opened[-1])

        yield open_page
        assert [tab.errors() for tab in opened] == [[]] * len(opened)


def of_fixed_batches() -> BundleContents:
    return contents(model=classifier(batch=4), golden_input=images(4))


def of_many_bytes() -> BundleContents:
    return contents(model=classifier(metadata=METADATA | {"padding": "-" * 100_000}))


def of_colours() -> BundleContents:
    return contents(model=classifier(channels=3), golden_input=images(6, channels=3))


# Every kind of model


@pytest.mark.parametrize("made", [contents, of_fixed_batches, of_colours])
def test_images_are_answered_as_elsewhere(
    page_of: Opened, made: Callable[[], BundleContents]
) -> None:
    page = page_of(made)
    assert page.text("verdict") == "Selftest passed"
    rows = images(50, channels=3 if made is of_colours else 1)
    found = page.answers(rows)["probabilities"]
    np.testing.assert_allclose(found, expected_scores(rows), atol=1e-6)


def test_a_model_of_some_size_has_threads(page_of: Opened) -> None:
    page = page_of(of_many_bytes)
    cores = page.tab.run("navigator.hardwareConcurrency")
    assert page.tab.run("crossOriginIsolated")
    assert page.text("threads") == str(min(cores, 4))
    assert page.text("verdict") == "Selftest passed"


def test_sentences_are_answered_as_elsewhere(page_of: Opened) -> None:
    page = page_of(text_contents)
    assert page.text("verdict") == "Selftest passed"
    words = np.random.default_rng(0).choice([*WORDS, "and", "ß", "🚢"], (1000, 7))
    rows = [" ".join(row) for row in words]
    found = page.answers(np.array(rows))["probabilities"]
    np.testing.assert_allclose(found[:, 1], positive(rows), atol=1e-6)
    typed(page, "sentence", "naïve but good")
    assert page.text("said").split() == ["positive", "81.8", "%"]
    typed(page, "sentence", "")
    assert page.text("said") == "Write a sentence."


def typed(page: ModelPage, name: str, text: str) -> None:
    page.tab.run(f"document.getElementById('{name}').select()")
    if text:
        page.tab.send("Input.insertText", text=text)
    else:
        press(page, "Backspace", 8)
    page.tab.run("page.answered.then(() => null)")


def test_numbers_are_answered_as_elsewhere(page_of: Opened) -> None:
    page = page_of(table_contents)
    rows = features(2)
    fields = "document.querySelectorAll('#numbers input')"
    for at, value in enumerate([0.5, -1, 2]):
        page.tab.run(f"{fields}[{at}].id = 'field{at}', {fields}[{at}].focus()")
        typed(page, f"field{at}", str(value))
    # 0.5 + 2 + 1: by the weights of the table's classifier
    assert page.text("said").split() == ["yes", f"{100 / (1 + np.exp(-3.5)):.1f}", "%"]
    assert page.answers(rows)["logits"].shape == (2, 1)
    typed(page, "field1", "")
    assert page.text("note") == "The model takes 3 numbers."


def test_a_reconstruction_is_shown_as_a_picture(page_of: Opened) -> None:
    page = page_of(autoencoder_contents)
    assert page.text("verdict") == "Selftest passed"
    rows = images(6)
    found = page.answers(rows)
    np.testing.assert_allclose(found["reconstruction"], halved(rows), atol=1e-6)
    np.testing.assert_allclose(found["error"], errors(rows), atol=1e-6)
    canvas = "document.querySelector('#outputs canvas').getContext('2d')"
    script = f"Array.from({canvas}.getImageData(0, 0, 5, 4).data)"
    shown = np.array(page.tab.run(script)).reshape(4, 5, 4)[..., 0]
    np.testing.assert_allclose(shown, rows[0, ..., 0] / 2, atol=1)


# Pictures are read as everywhere else


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
@pytest.mark.parametrize("size", [(5, 4), (3, 9), (64, 48), (301, 77)])
def test_a_picture_becomes_the_pixels_that_ferry_reads(
    image_page: ModelPage, mode: str, size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    for channels in (1, 3):
        expected = ImageDecoder(shape=(28, 32, channels), resize=True).decode(file.getvalue())
        found = read_in(image_page, file.getvalue(), channels)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.fixture(scope="module")
def image_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelPage]:
    folder = tmp_path_factory.mktemp("bundles") / "tiny.web"
    write_bundle(folder, on_the_web(contents)())
    with served(folder) as address, browser.open(address) as tab:
        yield ModelPage(tab)


def read_in(page: ModelPage, content: bytes, channels: int) -> np.ndarray:
    script = """(async (text, channels) => {
      const { readPicture, resized } = await import("/pixels.js");
      const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
      return Array.from(resized(await readPicture(new Blob([bytes]), channels), 32, 28).data);
    })"""
    text = base64.b64encode(content).decode()
    return np.array(page.tab.run(f"{script}('{text}', {channels})"), np.uint8)


def test_a_photograph_is_turned_as_the_camera_was_held(image_page: ModelPage) -> None:
    image = Image.fromarray(np.repeat(np.arange(0, 250, 5, np.uint8)[None], 40, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100, exif=exif)
    expected = ImageDecoder(shape=(28, 32, 1), resize=True).decode(file.getvalue())
    found = read_in(image_page, file.getvalue(), 1).reshape(expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert found[-1].mean() - found[0].mean() > 200


def test_a_file_that_is_no_picture_is_refused(image_page: ModelPage) -> None:
    image_page.drop(b"x", "x.txt")
    said = "x.txt is not a picture that this browser can read."
    assert image_page.text("note") == said


# With the keyboard alone


def press(page: ModelPage, key: str, code: int) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        page.tab.send(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
        )


def test_everything_is_reached_by_the_keyboard(page_of: Opened) -> None:
    page = page_of(contents)
    assert page.text("said").split()[-1] == "%"
    reached = []
    for _ in range(4):
        press(page, "Tab", 9)
        reached.append(page.tab.run("document.activeElement.id"))
    assert reached == ["example", "clear", "file", "verdict"]
    press(page, "Escape", 27)
    page.tab.run("page.answered.then(() => null)")
    assert page.text("said") == "Draw, or choose a picture."


# What must not run


@contextlib.contextmanager
def served_plainly(folder: Path) -> Iterator[str]:
    """Serve a folder as any server of static files does, with no header of ours."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{one.server_port}/"
        one.shutdown()
        thread.join()


def test_any_server_of_files_will_do(browser: Browser, bundle_of: Copies) -> None:
    with (
        served_plainly(bundle_of(on_the_web(contents))) as address,
        browser.open(address) as tab,
    ):
        page = ModelPage(tab)
        assert (page.text("verdict"), page.text("threads")) == ("Selftest passed", "1")
        assert "(checked)" in page.text("digest")
        assert tab.errors() == []


def test_a_page_that_cannot_check_says_so(browser: Browser, bundle_of: Copies) -> None:
    with (
        served_plainly(bundle_of(on_the_web(contents))) as address,
        browser.open(address.replace("127.0.0.1", ELSEWHERE)) as tab,
    ):
        page = ModelPage(tab)
        assert page.text("verdict") == "Selftest passed"
        assert "(not checked: browsers do so over https" in page.text("digest")


def test_the_page_and_the_server_have_one_policy() -> None:
    page = web_page(None, {})["index.html"].decode()
    policy, _, _ = POLICY.partition("; frame-ancestors")  # which a page cannot say
    assert f'content="{policy}"' in page


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "labels.txt", "manifest.json"])
def test_an_altered_file_is_refused(browser: Browser, bundle_of: Copies, name: str) -> None:
    folder = bundle_of(on_the_web(contents))
    content = bytearray((folder / name).read_bytes())
    at = content.index(b"97.5") if name == "manifest.json" else len(content) // 2
    content[at] ^= 1
    (folder / name).write_bytes(content)
    with served_plainly(folder) as address, browser.open(address) as tab:
        tab.wait("document.getElementById('problem')?.textContent.includes('was altered')")
        assert tab.run("document.getElementById('problem').textContent").startswith(
            f"Nothing runs here: {name} was altered"
        )
        assert tab.run("document.getElementById('main').hidden")


def test_a_golden_row_that_flips_fails_the_selftest(browser: Browser, bundle_of: Copies) -> None:
    folder = bundle_of(on_the_web(contents))
    with np.load(folder / GOLDEN, allow_pickle=False) as archive:
        golden = {name: archive[name] for name in archive.files}
    golden["probabilities"][2] = np.roll(golden["probabilities"][2], 1)
    np.savez(folder / GOLDEN, **golden)
    content, manifest = (folder / GOLDEN).read_bytes(), read_manifest(folder)
    info = FileInfo(size=len(content), sha256=sha256_of_bytes(content))
    generous = replace(manifest.golden, max_abs_diff=2.0)
    forge(folder, files={**manifest.files, GOLDEN: info}, golden=generous)
    with served(folder) as address, browser.open(address) as tab:
        page = ModelPage(tab)
        assert page.text("verdict") == "Selftest FAILED"
        page.tab.run("document.getElementById('selftest').open = true")
        assert page.text("found").endswith("Labels that differ: 1.")
