import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_onnx
from tiny_classifier import LABELS, classifier, expected_scores, images
from tiny_kinds import text_classifier

from serving.errors import InputError, MissingInputError, ModelError, ProviderError, UsageError
from serving.files import sha256_of_file
from serving.runtime.cores import allowed_cores
from serving.runtime.providers import PROVIDERS, built_in_providers
from serving.runtime.session import ProviderProof, open_session, usable_providers
from serving.runtime.settings import SessionSettings
from serving.runtime.tensors import TensorInfo


def test_a_session_tells_what_the_model_takes_and_gives(model_file: Path) -> None:
    session = open_session(model_file)
    assert session.inputs == (TensorInfo(name="images", dtype="uint8", shape=("batch", 4, 5, 1)),)
    assert [output.name for output in session.outputs] == ["logits", "probabilities"]
    assert session.outputs[1].shape == ("batch", len(LABELS))
    assert session.metadata["ferry.experiment"] == "tiny"
    assert session.sha256 == sha256_of_file(model_file)


def test_it_computes_what_numpy_computes() -> None:
    rows = images(9)
    outputs = open_session(classifier()).run({"images": rows})
    np.testing.assert_allclose(outputs["probabilities"], expected_scores(rows), atol=1e-6)
    assert outputs["logits"].dtype == np.float32


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_layer_is_never_run_on_no_rows(operator: str) -> None:
    """Its kernel would end the process, and all that it had not written yet with it."""
    session = open_session(tiny_onnx.recurrent(operator))
    assert session.recurrent
    with pytest.raises(InputError, match="needs at least one row"):
        session.run({"inputs": np.zeros((0, 3, 2), np.float32)})
    with pytest.raises(InputError, match="needs at least one row"):
        session.run({"inputs": np.zeros((2, 0, 2), np.float32)})
    assert session.run({"inputs": np.ones((2, 3, 2), np.float32)})["values"].shape == (2, 4)


def test_other_models_answer_no_rows_with_none() -> None:
    session = open_session(classifier())
    assert not session.recurrent
    assert session.run({"images": images(3)[:0]})["logits"].shape == (0, len(LABELS))


def test_every_session_carries_the_proof_of_its_provider(model_file: Path) -> None:
    proof = open_session(model_file).proof
    assert proof.asked == "CPUExecutionProvider"
    assert set(proof.nodes) == {"CPUExecutionProvider"}
    assert proof.share == 1


def test_the_share_of_a_proof_is_the_part_of_the_nodes_on_the_provider_asked_for() -> None:
    assert ProviderProof(asked="A", nodes={"A": 1, "B": 3}).share == 0.25
    assert ProviderProof(asked="A", nodes={"B": 3}).share == 0
    assert ProviderProof(asked="A", nodes={}).share == 1


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"images": np.zeros((2, 4, 5, 1), np.float32)}, "data type"),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8)}, "Got: 4 Expected: 5"),
        ({"pictures": np.zeros((2, 4, 5, 1), np.uint8)}, "images"),
    ],
)
def test_wrong_feeds_are_refused_in_one_line(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_session(classifier()).run(feeds)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"gone\.onnx is not there"):
        open_session(tmp_path / "gone.onnx")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        open_session(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_corrupt_file_is_one_line(model_file: Path, damage: str) -> None:
    whole = model_file.read_bytes()
    model_file.write_bytes(
        {"empty": b"", "text": b"this is not a model", "half": whole[: len(whole) // 2]}[damage]
    )
    with pytest.raises(ModelError, match=r"tiny\.onnx cannot be loaded") as caught:
        open_session(model_file)
    assert "\n" not in str(caught.value)


def test_a_provider_never_falls_back_to_the_cpu(
    model_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where there is a CUDA wheel and no card, ONNX Runtime alone would run on the CPU."""
    reason = usable_providers().get("cuda")
    if reason is None:
        pytest.skip("cuda runs here, or the installed wheel does not have it")
    with pytest.raises(ProviderError, match="CUDAExecutionProvider does not run"):
        open_session(model_file, provider="cuda")
    assert capfd.readouterr().out == ""


def test_the_cpu_is_always_usable(model_file: Path) -> None:
    usable = usable_providers()
    assert usable["cpu"] is None
    assert set(usable) <= set(PROVIDERS)


def test_weights_in_another_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would run without being part of the sha256, and from whatever folder we are in."""
    path = tmp_path / "split.onnx"
    onnx.save(
        onnx.load_from_string(classifier()),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="xternal data"):
        open_session(path)


def test_threads_are_the_cores_we_may_use(model_file: Path) -> None:
    assert open_session(model_file).settings.threads == allowed_cores()
    assert open_session(model_file, threads=1).settings.threads == 1
    assert 1 <= allowed_cores() <= (os.cpu_count() or 1)


def test_a_call_is_no_slower_than_onnxruntimes_own_and_answers_alike(model_file: Path) -> None:
    session = open_session(model_file, threads=1)
    feeds = {"images": images(3)}
    assert session.call is not session.raw.run
    plain = session.raw.run(session.output_names, feeds)
    for name, expected in zip(session.output_names, plain, strict=True):
        np.testing.assert_array_equal(session.run(feeds)[name], expected)


def test_settings_reach_the_session(model_file: Path) -> None:
    settings = SessionSettings(threads=1, spinning=False, optimize="none")
    session = open_session(model_file, settings=settings)
    assert session.settings == settings
    assert session.raw.get_session_options().intra_op_num_threads == 1
    level = session.raw.get_session_options().graph_optimization_level
    assert level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with pytest.raises(UsageError, match="nhwc=on is for cuda, not for cpu"):
        open_session(model_file, settings=SessionSettings(threads=1, nhwc=True))


def test_a_profile_names_the_provider_of_every_node(model_file: Path, tmp_path: Path) -> None:
    session = open_session(model_file, threads=1, profile=tmp_path / "times")
    session.run({"images": images(2)})
    written = Path(session.raw.end_profiling())
    assert written.parent == tmp_path
    events = json.loads(written.read_text())
    nodes = [event for event in events if event.get("cat") == "Node"]
    assert {event["args"]["provider"] for event in nodes} == {PROVIDERS["cpu"]}


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_runs_every_node_and_answers_as_numpy_does(provider: str) -> None:
    reason = usable_providers().get(provider, "not part of this onnxruntime")
    if reason:
        pytest.skip(f"{provider}: {reason}")
    session = open_session(classifier(), provider=provider)
    assert set(session.proof.nodes) == {PROVIDERS[provider]}
    rows = images(9)
    outputs = session.run({"images": rows})
    np.testing.assert_allclose(outputs["probabilities"], expected_scores(rows), atol=1e-5)


def test_a_broken_model_is_not_the_providers_fault() -> None:
    if "cuda" not in built_in_providers():
        pytest.skip("CUDA is not part of this onnxruntime")
    with pytest.raises(ModelError, match="cannot be loaded: 7 : INVALID_PROTOBUF"):
        open_session(b"no model", provider="cuda")


@pytest.mark.gpu
def test_what_a_gpu_cannot_run_is_named() -> None:
    if reason := usable_providers().get("cuda", "not part of this onnxruntime"):
        pytest.skip(f"cuda: {reason}")
    with pytest.raises(ProviderError, match=r"it leaves .*StringSplit.* to the CPU"):
        open_session(text_classifier(), provider="cuda")


@pytest.mark.parametrize("text", [b"inputs", b"logits", b"someone"])
def test_text_that_is_not_utf8_is_one_line(text: bytes) -> None:
    made = onnx.load_from_string(tiny_onnx.linear(["batch", 2]))
    made.metadata_props.add(key="author", value="someone")
    with pytest.raises(ModelError, match=r"holds text that is not UTF-8: b'\\xff"):
        open_session(made.SerializeToString().replace(text, b"\xff" + text[1:]))


@pytest.mark.parametrize("name", [b"inputs", b"logits"])
def test_a_name_that_cannot_be_printed_is_refused(name: bytes) -> None:
    content = tiny_onnx.linear(["batch", 2]).replace(name, b"\n" + name[1:])
    with pytest.raises(ModelError, match=r"the name '\\n.* holds what cannot be printed"):
        open_session(content)


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="is a pipe or a device"):
        open_session(tmp_path / "m.onnx")


def test_an_answer_that_is_no_text_is_one_line() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["words"], ["answer"])],
        "tiny",
        [],
        [onnx.helper.make_tensor_value_info("answer", onnx.TensorProto.STRING, [1])],
        [onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [1], [b"na\xefve"])],
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    made = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    with pytest.raises(ModelError, match="the model's answer holds text that is not UTF-8"):
        open_session(made.SerializeToString()).run({})
