import html.parser
import json
import re
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import sample_benches
import sample_metrics
import sample_places
from sample_metrics import details

from pipeline.config import layout
from pipeline.config.params import load
from pipeline.records.places import Places
from pipeline.stages.report import report
from serving.errors import IntegrityError, MissingInputError
from serving.files import sha256_of_bytes, write_bytes, write_json
from serving.measuring.pairing import PairedRatio
from serving.measuring.report import SkippedBatch, SkippedSubject
from serving.runtime.session import ProviderProof

ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "img", "link", "hr", "input"}


@pytest.fixture(scope="module")
def params():
    return load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    for name in ("mnist-cnn", "digits-mlp"):
        sample_metrics.write_all(folder, name)
    return folder


@pytest.fixture(scope="module")
def page(params, root, tmp_path_factory):
    path = tmp_path_factory.mktemp("reports") / "deep" / "index.html"
    report(root, path, params=params)
    return path.read_text()


@contextmanager
def edited(folder, name, stage):
    """What a stage wrote, as plain values that may be changed."""
    path = details(folder, name, stage)
    raw = json.loads(path.read_text())
    yield raw
    write_json(path, raw)


def page_of(params, folder):
    path = folder / "index.html"
    report(folder, path, params=params)
    return path.read_text()


class Reader(html.parser.HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.text = [], [], [], [], []
        self.places = {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.places[dict(attrs).get("id")] = tuple(self.open)
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
    return page.split(f' id="{name}">')[1].split("</section>")[0]


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
        assert part.count("<svg ") == 7
        assert "confusion matrix of the test set" in part


def test_results_open_the_page(page):
    part = section(page, "results")
    assert page.index(' id="results"') < page.index("<details>")
    assert part.count("<tr") == 3
    assert part.count('ship">int8</span>') == 2
    assert part.count(">fp16 failed</span>") == 2
    assert "0.037 ms" in part
    assert "60 KiB" in part


def test_each_variant_is_a_line_of_its_experiment(page):
    part = section(page, "mnist-cnn")
    table = part[part.index("<h3>Variants</h3>") :].split("</table>")[0]
    assert table.count("<tr") == 4
    assert table.count(">ships</span>") == 1
    assert table.count(">failed</span>") == 1
    assert table.count("99.50 %") == 3


def test_a_link_of_the_first_screen_opens_its_fold(read):
    # A browser opens the details around what an address names, and not the details it names.
    shut = {name for name, tags in read.places.items() if "details" in tags}
    assert {address[1:] for address in read.addresses} <= shut


def test_gates_are_shown_with_their_limits_and_what_failed(page):
    part = section(page, "mnist-cnn")
    assert '3.1e-06</td><td class="n soft">of 1.0e-04' in part
    assert '2</td><td class="n soft">of 2' in part
    assert 'class="bar over"><i style="width: 100%"' in part
    assert 'class="bar"><i style="width: 90%"' in part
    assert "4.0e-03 at logits[812, 7], limit 1.0e-04" in part
    assert "/conv2/Conv (Conv): x is off by 1.0e-01 beside PyTorch, its inputs by 0.0e+00" in part


def with_bench(folder, change, name="mnist-cnn"):
    """Metrics whose benchmark is a crowded one, changed."""
    report = sample_benches.crowded()
    sample_metrics.write_files(folder, name)
    write_json(details(folder, name, "train"), sample_metrics.training(name))
    write_json(details(folder, name, "parity"), sample_metrics.parity(name))
    write_json(details(folder, name, "benchmark"), replace(report, bench=change(report.bench)))


def speed(params, folder, name="mnist-cnn"):
    """The section of the page, from where the speed begins."""
    part = section(page_of(params, folder), name)
    return part[part.index("<h3>Speed</h3>") :]


def faster_at(bench, batch_size, low, high):
    """A bench in which fp32 with one thread has this interval at a batch size."""

    def changed(one):
        if (one.subject, one.settings.threads) != ("fp32", 1):
            return one
        ratio = PairedRatio(median=(low + high) / 2, low=low, high=high, num_pairs=12)
        rows = [
            replace(row, speedup=ratio) if row.timing.batch_size == batch_size else row
            for row in one.rows
        ]
        return replace(one, rows=tuple(rows))

    return replace(bench, measured=tuple(changed(one) for one in bench.measured))


def test_speed_opens_with_what_is_claimed(params, tmp_path):
    with_bench(tmp_path, lambda bench: faster_at(faster_at(bench, 1, 4.1, 4.5), 64, 0.97, 1.03))
    claim = re.search(r"<p>With one thread each.*?</p>", speed(params, tmp_path))[0]
    assert "at batch 1 is <strong>4.30 times</strong> as fast as PyTorch eager" in claim
    assert "95&nbsp;% interval 4.10 to 4.50, 12 turns each" in claim
    assert ", and at batch 64 is <strong>no faster and no slower</strong>" in claim
    assert "(1.00 times as fast, 95&nbsp;% interval 0.97 to 1.03" in claim


def test_without_eager_nothing_is_claimed(params, tmp_path):
    def alone(bench):
        return sample_benches.single().bench

    with_bench(tmp_path, alone)
    part = speed(params, tmp_path)
    assert "times</strong>" not in part
    assert "were not measured beside each other with one thread" in part
    assert part.count("<svg ") == 3


def test_every_row_of_speed_is_a_line_with_its_interval_and_verdict(params, tmp_path):
    with_bench(tmp_path, lambda bench: faster_at(bench, 8, 0.99, 1.05))
    part = speed(params, tmp_path)
    rows = part[part.index("Every row") :].split("</details>")[0]
    assert rows.count("<tr") == 1 + 14 * 4
    assert rows.count(">baseline</td>") == 8
    assert '1.02 <span class="soft">(0.99–1.05)</span></td><td class="soft">no difference' in rows
    assert '<th class="n">p99.9 ms</th>' in rows
    assert "× PyTorch eager" in rows
    assert "no counter of energy (RAPL) is there" in rows
    assert "mJ a row" not in rows
    assert "not steady" not in rows


def test_processes_are_shown_with_their_proof(page):
    part = section(page, "mnist-cnn")
    processes = part[part.index("What each process") :].split("</details>")[0]
    assert processes.count("12 on CPUExecutionProvider") == 6
    assert processes.count("not in ONNX Runtime") == 4
    assert "<td>CPU</td>" in processes
    assert '3.0 MiB</td><td class="n">4 KiB</td><td class="n">1,000</td>' in processes
    assert "GPU memory" not in processes
    assert "<dt>nodes where asked</dt><dd>100 %</dd>" in part


def test_a_share_that_is_not_whole_never_reads_as_100(params, tmp_path):
    def shared(bench):
        *others, last = bench.measured
        nodes = {"CUDAExecutionProvider": 9999, "CPUExecutionProvider": 1}
        proof = ProviderProof(asked="CUDAExecutionProvider", nodes=nodes)
        last = replace(last, proof=proof, gpu_memory_bytes=2**30)
        return replace(bench, measured=(*others, last))

    with_bench(tmp_path, shared)
    part = speed(params, tmp_path)
    assert "<dt>nodes where asked</dt><dd>99.9 %</dd>" in part
    assert "9999 on CUDAExecutionProvider, 1 on CPUExecutionProvider" in part
    assert "1,024.0 MiB" in part[part.index("GPU memory") :]


def test_skipped_threads_and_batches_are_told(params, tmp_path):
    def skipping(bench):
        first, *others = bench.measured
        batch = SkippedBatch(batch_size=512, skipped="too <large>")
        skipped = SkippedSubject(subject="int8", provider="cpu", threads=2, skipped="it stopped")
        first = replace(first, skipped=(batch,))
        return replace(bench, measured=(first, *others), skipped=(skipped,))

    with_bench(tmp_path, skipping)
    part = speed(params, tmp_path)
    assert "PyTorch eager with threads 1, batch 512: skipped: too &lt;large&gt;" in part
    assert "int8 on cpu with threads 2: skipped: it stopped" in part


def test_doubts_stand_in_a_box_before_the_figures(params, tmp_path):
    busy = "other programs kept 0.9 of 2 cores busy: distrust the figures"

    def doubtful(bench):
        first, *others = bench.measured
        shaky = replace(first.rows[0], timing=replace(first.rows[0].timing, steady=False))
        first = replace(first, rows=(shaky, *first.rows[1:]))
        load = replace(bench.load, warning=busy)
        return replace(bench, measured=(first, *others), partial=True, load=load)

    with_bench(tmp_path, doubtful)
    part = speed(params, tmp_path)
    box = re.search(r'<div class="warning".*?</div>', part, re.DOTALL)
    assert "The benchmark was interrupted" in box[0]
    assert busy in box[0]
    assert box.start() < part.index("<svg ")
    assert part.count(">not steady</span>") == 1
    assert "1 of 56 rows were still changing" in part


def test_without_doubts_there_is_no_box(page):
    assert '<div class="warning"' not in page


def test_a_benchmark_that_measured_nothing_has_its_section(params, tmp_path):
    with_bench(tmp_path, lambda _: sample_benches.empty().bench)
    part = speed(params, tmp_path)
    assert "The benchmark was interrupted" in part
    assert "<svg " not in part
    assert "<dt>nodes where asked</dt><dd>–</dd>" in part


def test_scenarios_and_energy_are_shown_where_they_were_measured(params, tmp_path):
    def counted(bench):
        first, *others = bench.measured
        row = replace(first.rows[0], millijoules_per_row=0.1234)
        first = replace(first, rows=(row, *first.rows[1:]))
        return replace(bench, measured=(first, *others), energy="intel-rapl:0")

    with_bench(tmp_path, counted)
    part = speed(params, tmp_path)
    assert "Energy: intel-rapl:0" in part
    assert "mJ a row" in part
    assert '<td class="n">0.123</td>' in part
    server = part[part.index("<h4>Scenarios</h4>") :].split("</table>")[0]
    assert "<td>server</td><td>fp32 · cpu</td>" in server
    assert '<td class="n">3,000</td><td class="n">2 ms</td>' in server


def test_without_scenarios_there_is_no_table_of_them(page):
    assert "Scenarios" not in page


def test_ratios_keep_three_digits(params, tmp_path):
    ratios = {
        1: (0.01234, "0.0123"),
        8: (9.876, "9.88"),
        64: (26.02, "26.0"),
        256: (1234.6, "1,235"),
    }

    def changed(bench):
        for size, (ratio, _) in ratios.items():
            bench = faster_at(bench, size, ratio, ratio)
        return bench

    with_bench(tmp_path, changed)
    part = speed(params, tmp_path)
    for _, shown in ratios.values():
        assert f'{shown} <span class="soft">({shown}–{shown})' in part


def test_what_the_files_say_is_text_and_never_markup(page):
    assert "no &lt;card&gt; here" in page
    assert "Linux-6.1 &lt;Genoa&gt;" in page
    assert "within its gate" in page
    assert "<card>" not in page


def test_the_environment_is_told_once_for_the_same_machine(page):
    part = section(page, "environment")
    assert part.count("processor") == 1
    assert "digits-mlp, mnist-cnn" in part
    assert "1.31.1 (onnxruntime-gpu)" in part


def test_the_same_machine_measured_at_two_revisions_is_one(params, tmp_path):
    for name, revision in (("mnist-cnn", "a" * 40), ("digits-mlp", "b" * 40 + "-dirty")):
        sample_metrics.write_all(tmp_path, name)
        change_machine(tmp_path, name, git_revision=revision, governor="performance")
    text = page_of(params, tmp_path)
    part = section(text, "environment")
    assert part.count("processor") == 1
    assert f"<dd>{'a' * 12}, {'b' * 12}-dirty</dd>" in part
    assert "<dt>frequency governor</dt><dd>performance</dd>" in part
    assert "<dt>clock</dt><dd>steps of 30 ns</dd>" in part
    assert "<dt>torch</dt><dd>2.13.0</dd>" in part


def change_machine(root, name, **changes):
    with edited(root, name, "benchmark") as raw:
        raw["bench"]["environment"] |= changes


def test_it_says_how_to_reproduce(page):
    part = section(page, "reproduce")
    assert "git checkout 4f0c1d2e" in part
    assert "dvc repro bundle@mnist-cnn" in part


@pytest.mark.parametrize(
    ("revision", "shown", "message"),
    [
        ("f" * 40, f"revision {'f' * 12}<", f"git checkout {'f' * 40}\npip"),
        ("f" * 40 + "-dirty", f"revision {'f' * 12}-dirty<", "not committed\npip"),
        ("unknown", "revision unknown<", "<pre>pip"),
    ],
)
def test_the_revision_is_told_as_it_was(params, tmp_path, revision, shown, message):
    sample_metrics.write_files(tmp_path, "digits-mlp")
    training = sample_metrics.training("digits-mlp") | {"git_revision": revision}
    write_json(details(tmp_path, "digits-mlp", "train"), training)
    text = page_of(params, tmp_path)
    assert shown in text
    assert message in section(text, "reproduce")
    assert "dirty\n" not in section(text, "reproduce")


def test_the_same_metrics_give_the_same_bytes(params, root, tmp_path):
    paths = [tmp_path / "a.html", tmp_path / "elsewhere" / "b.html"]
    for path in paths:
        report(root, path, params=params)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_summary_says_what_is_on_the_page(params, root, tmp_path):
    path = tmp_path / "index.html"
    summary = report(root, path, params=params)
    assert summary.page == path
    assert summary.bytes == path.stat().st_size
    assert summary.experiments == ("digits-mlp", "mnist-cnn")
    others = [name for name in params.experiments if name not in ("digits-mlp", "mnist-cnn")]
    assert list(summary.not_run) == others


def test_an_experiment_that_is_only_trained_is_shown_without_the_rest(params, tmp_path):
    sample_metrics.write_files(tmp_path, "digits-mlp")
    write_json(details(tmp_path, "digits-mlp", "train"), sample_metrics.training("digits-mlp"))
    text = page_of(params, tmp_path)
    part = section(text, "digits-mlp")
    assert part.count("<svg ") == 2
    assert "Parity with PyTorch" not in part
    assert "No benchmark has run yet" in text


def test_nothing_trained_is_one_clear_error_and_no_page(params, tmp_path):
    path = tmp_path / "index.html"
    with pytest.raises(MissingInputError, match="`dvc repro` runs them all"):
        report(tmp_path, path, params=params)
    assert not path.exists()


def test_metrics_that_cannot_be_read_leave_the_old_page(params, tmp_path):
    path = tmp_path / "index.html"
    path.write_text("old")
    sample_metrics.write_all(tmp_path, "digits-mlp")
    (details(tmp_path, "digits-mlp", "train")).write_text("[]")
    with pytest.raises(IntegrityError, match=r"train\.json must be a JSON object"):
        report(tmp_path, path, params=params)
    assert path.read_text() == "old"


def test_what_was_trained_elsewhere_is_not_on_the_page(params, tmp_path):
    for name in ("digits-mlp", "mnist-cnn"):
        sample_metrics.write_all(tmp_path, name)
    (tmp_path / layout.weights("mnist-cnn")).write_bytes(b"others")
    page = tmp_path / "index.html"
    summary = report(tmp_path, page, params=params)
    assert summary.experiments == ("digits-mlp",)
    assert summary.left_out[0].startswith("mnist-cnn: models/mnist-cnn/model.safetensors is not ")
    assert 'id="mnist-cnn"' not in page.read_text()


def test_limits_of_zero_are_met_only_by_zero(params, tmp_path):
    sample_metrics.write_all(tmp_path, "digits-mlp")
    with edited(tmp_path, "digits-mlp", "parity") as raw:
        for variant in raw["variants"].values():
            variant["limits"]["flips"] = 0
        raw["variants"]["fp32"]["accuracy_loss"] = -0.2
    text = page_of(params, tmp_path)
    part = section(text, "digits-mlp")
    fp32, fp16, int8 = part.split('<div class="gate"')[1:]
    assert "bar over" not in fp32
    assert "width: 0%" in fp32
    assert fp16.count("bar over") == 2
    assert int8.count("bar over") == 1


def test_pictures_and_what_was_not_drawn_are_on_the_page(params, tmp_path):
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    write_json(details(tmp_path, "mnist-cnn", "evaluate"), sample_metrics.inside("mnist-cnn"))
    folder = tmp_path / layout.PICTURES / "mnist-cnn"
    folder.mkdir(parents=True)
    (folder / "saliency.svg").write_text('<svg role="img"><title>look here</title></svg>')
    (folder / "stray.svg").write_text("<svg><title>of an earlier run</title></svg>")
    text = page_of(params, tmp_path)
    assert "<title>look here</title>" in text
    assert "where it looks" in text
    assert "of an earlier run" not in text
    assert "attacks: a word cannot change a little" in text
    assert "<dt>expected calibration error</dt><dd>0.012</dd>" in text
    assert "<dt>hardest class</dt><dd>nine, 96.0%</dd>" in text
    assert "<dt>PGD, 0.1 of a pixel</dt><dd>40.0%</dd>" in text


def test_a_look_inside_of_other_weights_is_not_shown(params, tmp_path):
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    stale = sample_metrics.inside("mnist-cnn") | {"weights_sha256": "00" * 32}
    write_json(details(tmp_path, "mnist-cnn", "evaluate"), stale)
    text = page_of(params, tmp_path)
    assert "expected calibration error" not in text


def test_a_reconstruction_has_no_accuracy_and_no_confusion(params, tmp_path):
    name = "mnist-autoencoder"
    sample_metrics.write_all(tmp_path, name)
    history = [asdict(epoch) for epoch in sample_metrics.epochs()]
    none = {"accuracy": None, "validation_accuracy": None}
    training = sample_metrics.training(name) | none
    training |= {"loss_name": "mean_squared_error", "loss": 0.00321, "labels": [], "confusion": []}
    training["history"] = [epoch | none for epoch in history]
    write_json(details(tmp_path, name, "train"), training)
    parity = sample_metrics.parity(name) | {"torch_accuracy": None, "output": "reconstruction"}
    nothing = {"accuracy": None, "flips": None, "accuracy_loss": None}
    nothing |= {"near_ties": None, "flip_rate": None, "mcnemar_p": None}
    fp32 = asdict(sample_metrics.variant()) | nothing | {"max_abs_at": [3, 0, 1, 2]}
    fp32["limits"] |= {"flips": None, "accuracy_loss": None, "max_probability_diff": None}
    parity |= {"variants": {"fp32": fp32}}
    write_json(details(tmp_path, name, "parity"), parity)
    unmade = {"int8": "there is nothing to gain"}
    quantized = replace(sample_metrics.quantized(name), skipped=unmade)
    write_json(details(tmp_path, name, "quantize"), quantized)
    text = page_of(params, tmp_path)
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
    with edited(tmp_path, "digits-mlp", "parity") as raw:
        broken = {"node": "main/Log", "operator": "Log", "tensor": "log", "kind": "NaN"}
        raw["variants"]["fp16"]["first_nonfinite"] = broken
    text = page_of(params, tmp_path)
    assert "main/Log (Log) is the first to make NaN, in log" in text


def test_a_signal_that_drowns_fails_its_bar(params, tmp_path):
    sample_metrics.write_all(tmp_path, "digits-mlp")
    with edited(tmp_path, "digits-mlp", "parity") as raw:
        raw["variants"]["int8"]["snr_db"] = 12.0
    text = page_of(params, tmp_path)
    int8 = section(text, "digits-mlp").split('<div class="gate"')[3]
    assert '12 dB</td><td class="n soft">at least 50 dB' in int8
    assert int8.count("bar over") == 1


def test_every_recipe_that_was_tried_is_on_the_page_with_its_verdict(params, tmp_path):
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    write_json(details(tmp_path, "mnist-cnn", "quantize"), sample_metrics.quantized("mnist-cnn"))
    text = page_of(params, tmp_path)
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
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    stale = sample_metrics.quantized("mnist-cnn", model_sha256="00" * 32)
    write_json(details(tmp_path, "mnist-cnn", "quantize"), stale)
    text = page_of(params, tmp_path)
    assert "<h3>Quantization</h3>" not in text


def test_the_places_of_the_files_that_lie_here_are_on_the_page(params, tmp_path):
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    assert 'id="places"' not in page_of(params, tmp_path)
    known = sample_places.everywhere("mnist-cnn")
    other = sample_places.report("a device", variant="fp16", sha256="ab" * 32)
    write_json(
        tmp_path / layout.places("mnist-cnn"), replace(known, reports=(*known.reports, other))
    )
    found = section(page_of(params, tmp_path), "places")
    assert found.count('<td class="name">') == len(known.reports)
    assert re.findall("<strong>mnist-cnn</strong> (....)</td>", found) == ["fp32", "int8"]
    assert "a device" not in found
    assert '<td class="bad">998 of 1,000: 1 flip, 1 near-tie</td>' in found
    assert found.count("places.py mnist-cnn --only arm64") == 1


def test_a_bundle_for_another_target_is_a_file_that_lies_here(params, tmp_path):
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    content = b"int8 for C"
    sha256 = sha256_of_bytes(content)
    measured = sample_places.report("C", variant="int8", sha256=sha256)
    write_json(
        tmp_path / layout.places("mnist-cnn"), Places(experiment="mnist-cnn", reports=(measured,))
    )
    assert 'id="places"' not in page_of(params, tmp_path)
    write_bytes(tmp_path / "bundles/mnist-cnn.c/model.onnx", content)
    assert '<td class="name">C</td>' in section(page_of(params, tmp_path), "places")


def test_what_devices_measured_is_beside_the_places(params, tmp_path):
    sample_metrics.write_all(tmp_path, "mnist-cnn")
    device = sample_places.report("pi@sensor", rows=64, equal=64, p50_ms=0.4)
    for name, experiment in (("sensor", "mnist-cnn"), ("other", "digits-mlp")):
        path = tmp_path / layout.DEVICES / f"{name}.json"
        write_json(path, Places(experiment=experiment, reports=(device,)))
    found = section(page_of(params, tmp_path), "places")
    assert found.count("64 of 64") == 1
