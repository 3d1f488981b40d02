"""A file is judged by its weights, and by the places it is to go to; losses are computed."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from small_models import image_net, rows_for
from small_onnx import FLOAT, model, node
from target_bundles import bundled, images

from pipeline.cli import ferry
from pipeline.quantization.apply import Quantizer
from pipeline.quantization.half import to_fp16
from pipeline.quantization.recipes import parse
from pipeline.targets.lint.findings import UPSTREAM, LintFinding, LintModel
from pipeline.targets.lint.providers import FIX, fixing, of_provider
from pipeline.targets.lint.runtimes import of_runtime, of_runtimes
from serving.runtime.session import open_session


def linted(recipe: str, folder: Path, *words: str) -> Result:
    original = image_net()
    made = Quantizer(original, rows_for(original, 16)).apply(parse(recipe))
    onnx.save(made, folder / "net.onnx")
    np.savez(folder / "rows.npz", images=np.full((8, 8, 8, 3), 255, np.uint8))
    rows = ["--data", str(folder / "rows.npz")]
    return CliRunner().invoke(ferry, ["lint", str(folder / "net.onnx"), *rows, *words])


def test_what_may_overflow_is_named_with_its_loss_and_its_cure(tmp_path: Path) -> None:
    found = linted("static-u8s8", tmp_path)
    assert found.exit_code == 1
    first, *nodes, lost, here, cure = found.stdout.splitlines()
    assert first.startswith("needs VNNI: weights of 3 of 3 integer products go beyond ±64")
    assert nodes[0] == "  Conv first: up to 127"
    assert lost.startswith("on 8 rows, needs VNNI: without it ")
    assert "points of agreement" in lost
    assert "on this processor such sums" in here
    assert "reduce_range=True" in cure


def test_what_answers_alike_everywhere(tmp_path: Path) -> None:
    found = linted("static-u8s8-reduced", tmp_path)
    assert found.exit_code == 0
    assert found.stdout == "alike everywhere: no sum of 3 integer products can overflow\n"
    assert json.loads(linted("half", tmp_path, "--json").stdout)["products"] == 0


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "odd.onnx").write_bytes(b"no model")
    for name in ("odd.onnx", "none.onnx"):
        refused = CliRunner().invoke(ferry, ["lint", str(tmp_path / name)])
        assert refused.exit_code == 1
        assert refused.stderr.count("\n") == 1
        assert name in refused.stderr


# Where it is to go

STRINGS = onnx.TensorProto.STRING


def judged(path: Path, *words: str) -> Result:
    return CliRunner().invoke(ferry, ["lint", str(path), *words])


def candidate(made: onnx.ModelProto, target: str = "") -> LintModel:
    content = made.SerializeToString()
    inputs = open_session(content).inputs
    return LintModel(
        name="net", path="net.onnx", content=content, model=made, inputs=inputs, target=target
    )


def about(found: list[LintFinding], words: str) -> LintFinding:
    (one,) = [finding for finding in found if words in finding.what]
    return one


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """An fp32 model at opset 20 and IR 10."""
    onnx.save(image_net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_a_runtime_that_is_too_old_is_an_error_that_says_what_is_too_new(net: Path) -> None:
    refused = judged(net, "--ort", "1.17")
    assert refused.exit_code == 1
    assert "error    onnxruntime 1.17: is too old for IR 10: it needs 1.18\n" in refused.stdout
    assert "or save the model with ir_version 9 and prove that file" in refused.stdout
    older = onnx.load(net)
    older.ir_version = 9
    assert "takes it: it needs 1.17" in next(of_runtime(candidate(older), (1, 17))).what
    assert "opset 20 and IR 10" in judged(net, "--ort", "1.16.3").stdout
    assert judged(net, "--ort", "1.20").exit_code == 0


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ((1, 21, 0), "illegal instruction"),
        ((1, 21), "1.21.0 ends with an illegal instruction"),
        ((1, 22, 0), "is aborted"),
        ((1, 18, 1), "does not start beside numpy 2"),
    ],
)
def test_a_bad_runtime_is_named_with_what_tells_of_it(version: tuple[int, ...], words: str) -> None:
    found = about(list(of_runtime(candidate(image_net()), version)), words)
    assert found.severity == "warning"
    assert found.cure
    assert all(address.startswith(UPSTREAM) for address in found.see)


@pytest.mark.parametrize("version", [(1, 20, 1), (1, 21, 1), (1, 22, 1), (1, 30, 0)])
def test_a_good_runtime_has_nothing_against_it(version: tuple[int, ...]) -> None:
    (only,) = of_runtime(candidate(image_net()), version)
    assert only.severity == "note"


def test_a_bundle_for_arm_is_not_for_a_runtime_that_crashes_there() -> None:
    found = list(of_runtime(candidate(image_net(), "arm64"), (1, 21, 0)))
    assert about(found, "illegal instruction").severity == "error"
    told = list(of_runtimes(candidate(image_net(), "arm64")))
    assert about(told, "illegal instruction").severity == "warning"
    assert about(told, "or later takes it").what.startswith("1.18 or later")


def test_operators_that_no_table_knows_are_named() -> None:
    there = {"y": (FLOAT, ["n", 3])}
    gelu = node("Gelu", "x", "y", domain="com.microsoft")
    made = model([gelu], {"x": (FLOAT, ["n", 3])}, there, domains={"com.microsoft": 1})
    found = about(list(of_runtime(candidate(made), (1, 20))), "com.microsoft.Gelu")
    assert found.severity == "warning"
    assert about(list(of_runtimes(candidate(made))), "com.microsoft.Gelu") is not found


def test_a_bundle_is_asked_for_what_its_target_needs(tmp_path: Path) -> None:
    folder = tmp_path / "net.arm64"
    bundled(folder, images(), target="arm64")
    told = judged(folder)
    assert told.exit_code == 0
    assert "note     onnxruntime: 1.14 or later takes it: opset 18, IR 8" in told.stdout
    assert "1.21.0 ends with an illegal instruction" in told.stdout
    assert "error    onnxruntime 1.21.0" in judged(folder, "--ort", "1.21.0").stdout
    assert judged(folder, "--ort", "1.21.0").exit_code == 1
    free = judged(folder, "--provider", "coreml").stdout
    assert f"{folder / 'model.onnx'} net.arm64.fixed.onnx" in free, "nothing is added to a bundle"
    (folder / "labels.txt").write_text("cats\n", encoding="utf-8")
    refused = judged(folder)
    assert refused.exit_code == 1
    assert "labels.txt has 5 bytes" in refused.stderr


def test_a_bundle_for_the_web_is_asked_for_the_web(tmp_path: Path) -> None:
    bundled(tmp_path / "web", images(), target="web")
    assert "note     web: wasm runs what the CPU runs" in judged(tmp_path / "web").stdout
    assert "onnxruntime:" not in judged(tmp_path / "web").stdout


def test_half_precision_has_bad_runtimes_of_its_own() -> None:
    half, whole = candidate(to_fp16(image_net())), candidate(image_net())
    assert about(list(of_runtime(half, (1, 30, 0))), "NaN").severity == "warning"
    assert "32600" in about(list(of_runtime(half, (1, 24, 1))), "NaN").see[0]
    assert len(list(of_runtime(half, (1, 23, 2)))) == 1
    assert about(list(of_runtime(half, (1, 18))), "convolution").see[0].endswith("18992")
    assert not [one for one in of_runtime(whole, (1, 18)) if "convolution" in one.what]


def test_the_cure_of_a_free_axis_is_a_command_that_mends_it(net: Path, tmp_path: Path) -> None:
    found = judged(net, "--provider", "nnapi,coreml", "--json")
    assert found.exit_code == 1
    findings = json.loads(found.stdout)["findings"]
    free = [one for one in findings if "images [batch, 8, 8, 3] has an axis" in one["what"]]
    assert [(one["place"], one["severity"]) for one in free] == [
        ("nnapi", "error"),
        ("coreml", "warning"),
    ]
    command = [sys.executable, *shlex.split(free[0]["cure"])[1:]]
    subprocess.run(command, cwd=tmp_path, check=True)
    mended = judged(tmp_path / "net.fixed.onnx", "--provider", "nnapi,coreml")
    assert mended.exit_code == 0
    assert "wants fixed shapes" not in mended.stdout


def test_every_free_axis_has_its_command() -> None:
    shapes = {"a": (FLOAT, ["batch", "steps"]), "b c": (FLOAT, [None, 4, None])}
    two = model([node("Identity", "a", "y")], shapes, {"y": (FLOAT, ["batch", "steps"])})
    told = dataclasses.replace(candidate(two), path="my nets/two.onnx", name="two")
    assert fixing(told) == [
        f"{FIX} --dim_param batch --dim_value 1 'my nets/two.onnx' two.fixed.onnx",
        f"{FIX} --dim_param steps --dim_value LENGTH two.fixed.onnx two.fixed.onnx",
        f"{FIX} --input_name 'b c' --input_shape 1,4,LENGTH two.fixed.onnx two.fixed.onnx",
    ]


def test_the_runtimes_own_checker_counts_what_runs_on_a_telephone() -> None:
    found = list(of_provider(candidate(image_net()), "coreml"))
    said = about(found, "nodes run there")
    assert said.severity == "note"
    assert "as MLProgram 11 of 12 nodes run there, in 2 parts (not Flatten)" in said.what
    assert "as NeuralNetwork 12 of 12 nodes run there, in 1 part" in said.what
    pieces = model(
        [node("Relu", "x", "a"), node("Erf", "a", "b"), node("Erf", "b", "y")],
        {"x": (FLOAT, [1, 4])},
        {"y": (FLOAT, [1, 4])},
    )
    said = about(list(of_provider(candidate(pieces), "nnapi")), "nodes run there")
    assert (said.severity, said.what) == ("warning", "1 of 3 nodes run there, in 1 part (not Erf)")
    nothing = model([node("Erf", "x", "y")], {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])})
    assert next(of_provider(candidate(nothing), "nnapi")).severity == "error"


def test_the_checker_is_asked_of_graphs_that_it_stumbles_over() -> None:
    x, y = {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [2, 3])}
    contrib = {"domain": "com.microsoft"}
    unknown = model(
        [node("FastGelu", "x", "a", **contrib), node("FastGelu", "a", "y", **contrib)],
        x,
        {"y": (FLOAT, None)},
        domains={"com.microsoft": 1},
    )
    none = next(of_provider(candidate(unknown), "nnapi"))
    assert (none.severity, none.what[:29]) == ("error", "0 of 2 nodes run there, in 0 ")
    inside = model(
        [
            node("Relu", "x", "r"),
            node("NonZero", "r", "at"),
            node("Cast", "at", "f", to=FLOAT),
            node("ReduceSum", "f", "y", keepdims=0),
        ],
        x,
        {"y": (FLOAT, [])},
    )
    half = next(of_provider(candidate(inside), "nnapi"))
    assert half.what.startswith("1 of 4 nodes run there, in 1 part"), "the others have no shapes"
    same = model([node("Identity", "x", "y")], x, y)
    assert next(of_provider(candidate(same), "coreml")).severity == "note"


def test_strings_go_to_no_telephone_and_to_wasm_alone() -> None:
    made = {"y": (STRINGS, ["n"])}
    text = candidate(model([node("Identity", "text", "y")], {"text": (STRINGS, ["n"])}, made))
    for provider in ("coreml", "nnapi"):
        first = next(of_provider(text, provider))
        assert (first.severity, "text holds strings" in first.what) == ("error", True)
    assert about(list(of_provider(text, "web")), "wasm alone").severity == "warning"


def test_cuda_lacks_the_biases_of_int8(tmp_path: Path) -> None:
    linted("static-u8s8-reduced", tmp_path)
    refused = judged(tmp_path / "net.onnx", "--provider", "cuda")
    assert refused.exit_code == 1
    assert "error    cuda: has no DequantizeLinear of int32, which 3 biases" in refused.stdout
    assert judged(tmp_path / "net.onnx", "--provider", "cpu").exit_code == 0
    bytes_alone = model(
        [node("DequantizeLinear", "weight scale", "w"), node("Add", "x w", "y")],
        {"x": (FLOAT, [1, 2])},
        {"y": (FLOAT, [1, 2])},
        {"weight": np.array([1, 2], np.int8), "scale": np.float32(0.5)},
    )
    (only,) = of_provider(candidate(bytes_alone), "cuda")
    assert only.severity == "note"


@pytest.mark.parametrize("version", ["2.0", "1.9", "1.999", "1.2x", "latest", "1.21.0.1", ""])
def test_an_unknown_runtime_is_one_line_with_those_that_are_known(net: Path, version: str) -> None:
    refused = judged(net, f"--ort={version}")
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert f"--ort {version}" in refused.stderr
    assert "known are 1.10 to 1." in refused.stderr


@pytest.mark.parametrize("names", ["cormel", "coreml,", "nnapi,qnn", ""])
def test_an_unknown_provider_is_one_line_with_those_that_are_known(net: Path, names: str) -> None:
    refused = judged(net, "--provider", names)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "known are cpu, cuda, coreml, nnapi, web" in refused.stderr
