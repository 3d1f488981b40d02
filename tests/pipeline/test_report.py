import html.parser
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import sample_metrics

from pipeline.errors import IntegrityError, MissingInputError
from pipeline.params import load
from pipeline.report import report
from serving.files import write_json

ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "img", "link", "hr", "input"}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    for name in ("mnist-cnn", "digits-mlp"):
        sample_metrics.write_all(folder, name)
    return folder


@pytest.fixture(scope="module")
def page(params, metrics, tmp_path_factory):
    path = tmp_path_factory.mktemp("reports") / "deep" / "index.html"
    report(metrics, metrics.parent / "pictures", path, params=params)
    return path.read_text()


class Reader(html.parser.HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    return reader


def section(page, name):
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_the_page_is_well_formed_and_its_ids_are_unique(read):
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))


def test_the_page_loads_nothing(page, read):
    assert all(address.startswith("#") for address in read.addresses)
    assert {"script", "link", "iframe", "img", "object"}.isdisjoint(read.tags)
    assert "@import" not in page
    assert "@font-face" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page


def test_links_within_the_page_lead_somewhere(read):
    assert {address[1:] for address in read.addresses} <= set(read.ids)


def test_every_experiment_that_ran_has_its_section_and_figures(page, read):
    assert {"results", "mnist-cnn", "digits-mlp", "environment", "reproduce"} <= set(read.ids)
    assert "digits-cnn" not in read.ids
    for name in ("mnist-cnn", "digits-mlp"):
        part = section(page, name)
        assert part.count("<svg ") == 4
        assert "confusion matrix of the test set" in part


def test_results_open_the_page(page):
    part = section(page, "results")
    assert part.count("<tr") == 7
    assert part.count(">shipped</span>") == 2
    assert part.count(">failed</span>") == 2
    assert "99.50 %" in part
    assert "0.037 ms" in part
    assert "60 KiB" in part


def test_gates_are_shown_with_their_limits_and_what_failed(page):
    part = section(page, "mnist-cnn")
    assert '3.1e-06</td><td class="n soft">of 1.0e-04' in part
    assert '2</td><td class="n soft">of 2' in part
    assert 'class="bar over"><i style="width: 100%"' in part
    assert 'class="bar"><i style="width: 90%"' in part
    assert "4.0e-03 at logits[812, 7], limit 1.0e-04" in part
    assert "/conv2/Conv (Conv): x is off by 1.0e-01 beside PyTorch, its inputs by 0.0e+00" in part


def test_speed_is_shown_with_its_proof_and_what_was_skipped(page):
    part = section(page, "mnist-cnn")
    assert "4.2 times" in part
    assert "4.1 to 4.4" in part
    assert "12 on CPUExecutionProvider" in part
    assert part.count("cuda: skipped: ") == 1


def test_what_the_files_say_is_text_and_never_markup(page):
    assert "no &lt;card&gt; here" in page
    assert "AMD EPYC &lt;Genoa&gt;" in page
    assert "within its gate" in page
    assert "<card>" not in page


def test_the_environment_is_told_once_for_the_same_machine(page):
    part = section(page, "environment")
    assert part.count("processor") == 1
    assert "digits-mlp, mnist-cnn" in part
    assert "1.31.1 (onnxruntime-gpu)" in part


def test_another_machine_is_told_apart_and_another_load_is_not(params, metrics, tmp_path):
    for name, cores in (("mnist-cnn", 2), ("digits-mlp", 64)):
        sample_metrics.write_all(tmp_path, name)
        path = tmp_path / name / "benchmark.json"
        raw = json.loads(path.read_text())
        raw["environment"] |= {"cores": cores, "load_average": [cores / 7, 0.0, 0.0]}
        write_json(path, raw)
    page = tmp_path / "page.html"
    report(tmp_path, tmp_path / "pictures", page, params=params)
    assert section(page.read_text(), "environment").count("processor") == 2


def test_it_says_how_to_reproduce(page):
    part = section(page, "reproduce")
    assert "git checkout 4f0c1d2e" in part
    assert "dvc repro bundle@mnist-cnn" in part


@pytest.mark.parametrize(
    ("revision", "shown", "told"),
    [
        ("f" * 40, f"revision {'f' * 12}<", f"git checkout {'f' * 40}\npip"),
        ("f" * 40 + "-dirty", f"revision {'f' * 12}-dirty<", "not committed\npip"),
        ("unknown", "revision unknown<", "<pre>pip"),
    ],
)
def test_the_revision_is_told_as_it_was(params, tmp_path, revision, shown, told):
    training = sample_metrics.training("digits-mlp") | {"git_revision": revision}
    write_json(tmp_path / "digits-mlp" / "train.json", training)
    page = tmp_path / "index.html"
    report(tmp_path, tmp_path / "pictures", page, params=params)
    assert shown in page.read_text()
    assert told in section(page.read_text(), "reproduce")
    assert "dirty\n" not in section(page.read_text(), "reproduce")


def test_the_same_metrics_give_the_same_bytes(params, metrics, tmp_path):
    paths = [tmp_path / "a.html", tmp_path / "elsewhere" / "b.html"]
    for path in paths:
        report(metrics, metrics.parent / "pictures", path, params=params)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_summary_says_what_is_on_the_page(params, metrics, tmp_path):
    path = tmp_path / "index.html"
    summary = report(metrics, metrics.parent / "pictures", path, params=params)
    assert summary.page == path
    assert summary.bytes == path.stat().st_size
    assert summary.experiments == ("digits-mlp", "mnist-cnn")
    others = [name for name in params.experiments if name not in ("digits-mlp", "mnist-cnn")]
    assert list(summary.not_run) == others


def test_an_experiment_that_is_only_trained_is_shown_without_the_rest(params, tmp_path):
    write_json(tmp_path / "digits-mlp" / "train.json", sample_metrics.training("digits-mlp"))
    path = tmp_path / "index.html"
    report(tmp_path, tmp_path / "pictures", path, params=params)
    part = section(path.read_text(), "digits-mlp")
    assert part.count("<svg ") == 2
    assert "Parity with PyTorch" not in part
    assert "No benchmark has run yet" in path.read_text()


def test_nothing_trained_is_one_clear_error_and_no_page(params, tmp_path):
    path = tmp_path / "index.html"
    with pytest.raises(MissingInputError, match="`dvc repro` runs them"):
        report(tmp_path, tmp_path / "pictures", path, params=params)
    assert not path.exists()


def test_metrics_that_cannot_be_read_leave_the_old_page(params, tmp_path):
    path = tmp_path / "index.html"
    path.write_text("old")
    sample_metrics.write_all(tmp_path, "digits-mlp")
    (tmp_path / "digits-mlp" / "train.json").write_text("[]")
    with pytest.raises(IntegrityError, match=r"train\.json must be a JSON object"):
        report(tmp_path, tmp_path / "pictures", path, params=params)
    assert path.read_text() == "old"


def test_limits_of_zero_are_met_only_by_zero(params, tmp_path):
    sample_metrics.write_all(tmp_path, "digits-mlp")
    path = tmp_path / "digits-mlp" / "parity.json"
    raw = json.loads(path.read_text())
    for variant in raw["variants"].values():
        variant["limits"]["flips"] = 0
    raw["variants"]["fp32"]["accuracy_loss"] = -0.2
    write_json(path, raw)
    page = tmp_path / "index.html"
    report(tmp_path, tmp_path / "pictures", page, params=params)
    part = section(page.read_text(), "digits-mlp")
    fp32, fp16, int8 = part.split('<div class="gate"')[1:]
    assert "bar over" not in fp32
    assert "width: 0%" in fp32
    assert fp16.count("bar over") == 2
    assert int8.count("bar over") == 1


def test_pictures_and_what_was_not_drawn_are_on_the_page(params, tmp_path):
    metrics = tmp_path / "metrics"
    sample_metrics.write_all(metrics, "mnist-cnn")
    write_json(metrics / "mnist-cnn" / "evaluate.json", sample_metrics.inside("mnist-cnn"))
    folder = tmp_path / "pictures" / "mnist-cnn"
    folder.mkdir(parents=True)
    (folder / "saliency.svg").write_text('<svg role="img"><title>look here</title></svg>')
    (folder / "stray.svg").write_text("<svg><title>of an earlier run</title></svg>")
    path = tmp_path / "index.html"
    report(metrics, tmp_path / "pictures", path, params=params)
    text = path.read_text()
    assert "<title>look here</title>" in text
    assert "where it looks" in text
    assert "of an earlier run" not in text
    assert "attacks: a word cannot change a little" in text
    assert "<dt>expected calibration error</dt><dd>0.012</dd>" in text
    assert "<dt>hardest class</dt><dd>nine, 96.0%</dd>" in text
    assert "<dt>PGD, 0.1 of a pixel</dt><dd>40.0%</dd>" in text


def test_a_look_inside_of_other_weights_is_not_shown(params, tmp_path):
    metrics = tmp_path / "metrics"
    sample_metrics.write_all(metrics, "mnist-cnn")
    stale = sample_metrics.inside("mnist-cnn") | {"weights_sha256": "00" * 32}
    write_json(metrics / "mnist-cnn" / "evaluate.json", stale)
    path = tmp_path / "index.html"
    report(metrics, tmp_path / "pictures", path, params=params)
    assert "expected calibration error" not in path.read_text()


def test_a_reconstruction_has_no_accuracy_and_no_confusion(params, tmp_path):
    name = "mnist-autoencoder"
    sample_metrics.write_all(tmp_path, name)
    history = [asdict(epoch) for epoch in sample_metrics.epochs()]
    none = {"accuracy": None, "validation_accuracy": None}
    training = sample_metrics.training(name) | none
    training |= {"loss_name": "mean_squared_error", "loss": 0.00321, "labels": [], "confusion": []}
    training["history"] = [epoch | none for epoch in history]
    write_json(tmp_path / name / "train.json", training)
    parity = sample_metrics.parity(name) | {"torch_accuracy": None, "output": "reconstruction"}
    nothing = {"accuracy": None, "flips": None, "accuracy_loss": None}
    nothing |= {"near_ties": None, "flip_rate": None, "mcnemar_p": None}
    fp32 = asdict(sample_metrics.variant()) | nothing | {"max_abs_at": [3, 0, 1, 2]}
    fp32["limits"] |= {"flips": None, "accuracy_loss": None, "max_probability_diff": None}
    parity |= {"variants": {"fp32": fp32}, "skipped": {"int8": "there is nothing to gain"}}
    write_json(tmp_path / name / "parity.json", parity)
    path = tmp_path / "index.html"
    report(tmp_path, tmp_path / "pictures", path, params=params)
    text = path.read_text()
    assert "<dt>test mean squared error</dt><dd>0.00321</dd>" in text
    assert "Confusion matrix" not in text
    assert "real flips" not in text
    assert "MSE 0.0032" in text
    assert "int8: there is nothing to gain" in text


def test_the_proof_of_each_variant_is_on_the_page(page):
    part = section(page, "mnist-cnn")
    proof = part[part.index("<h3>Proof</h3>") :]
    assert "differences in units in the last place" in proof
    assert "<dt>real flips (95 %)</dt><dd>2 (0.00% to 1.50%)</dd>" in proof
    assert "<dt>McNemar p</dt><dd>1</dd>" in proof
    assert "<dt>hostile rows</dt><dd>1, up to 2.0e-06</dd>" in proof
    assert "<dt>batch without rows</dt><dd>answered 0 rows</dd>" in proof
    assert (
        "<dt>onnx.reference, 4 rows</dt><dd>2.0e-06 from this, 1.0e-06 from PyTorch</dd>" in proof
    )
    assert "60 dB" in part
    assert "at least 50 dB" in part


def test_every_way_it_was_run_is_a_line_and_so_is_one_that_could_not_be(page):
    part = section(page, "mnist-cnn")
    assert part.count("Every way it was run") == 3
    assert part.count('<td>all</td><td class="n">256</td>') == 3
    assert part.count('<td>skipped</td><td class="n">no &lt;card&gt; here</td>') == 3


def test_a_node_that_makes_no_number_is_named(params, tmp_path):
    sample_metrics.write_all(tmp_path, "digits-mlp")
    path = tmp_path / "digits-mlp" / "parity.json"
    raw = json.loads(path.read_text())
    broken = {"node": "main/Log", "operator": "Log", "tensor": "log", "kind": "NaN"}
    raw["variants"]["fp16"]["first_nonfinite"] = broken
    write_json(path, raw)
    page = tmp_path / "index.html"
    report(tmp_path, tmp_path / "pictures", page, params=params)
    assert "main/Log (Log) is the first to make NaN, in log" in page.read_text()


def test_a_signal_that_drowns_fails_its_bar(params, tmp_path):
    sample_metrics.write_all(tmp_path, "digits-mlp")
    path = tmp_path / "digits-mlp" / "parity.json"
    raw = json.loads(path.read_text())
    raw["variants"]["int8"]["snr_db"] = 12.0
    write_json(path, raw)
    page = tmp_path / "index.html"
    report(tmp_path, tmp_path / "pictures", page, params=params)
    int8 = section(page.read_text(), "digits-mlp").split('<div class="gate"')[3]
    assert '12 dB</td><td class="n soft">at least 50 dB' in int8
    assert int8.count("bar over") == 1


def test_every_recipe_that_was_tried_is_on_the_page_with_its_verdict(params, tmp_path):
    metrics = tmp_path / "metrics"
    sample_metrics.write_all(metrics, "mnist-cnn")
    write_json(metrics / "mnist-cnn" / "quantize.json", sample_metrics.quantized("mnist-cnn"))
    path = tmp_path / "index.html"
    report(metrics, tmp_path / "pictures", path, params=params)
    text = path.read_text()
    part = text[text.index("<h3>Quantization</h3>") :]
    part = part[: part.index("</details>")]
    assert 'aria-label="mnist-cnn: recipes of quantization"' in part
    assert "lost on digits:validation" in part
    kept, other = re.findall(r"<tr[^>]*><td>int8</td>.*?</tr>", part)
    assert kept.startswith('<tr class="shipped">')
    assert "static-u8s8</td>" in kept
    assert "0.60 times as fast" in other
    assert "shipped" not in other


def test_recipes_that_were_tried_on_another_file_are_not_shown(params, tmp_path):
    metrics = tmp_path / "metrics"
    sample_metrics.write_all(metrics, "mnist-cnn")
    stale = sample_metrics.quantized("mnist-cnn", model_sha256="00" * 32)
    write_json(metrics / "mnist-cnn" / "quantize.json", stale)
    path = tmp_path / "index.html"
    report(metrics, tmp_path / "pictures", path, params=params)
    assert "<h3>Quantization</h3>" not in path.read_text()
