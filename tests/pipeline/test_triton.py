"""The repository is one that Triton's own schema takes, and whose requests the model answers."""

import importlib.util
import struct
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from small_onnx import FLOAT, model, node
from target_bundles import INT64, LABELS, ROWS, UINT8, bundled, images, sequences, texts

from pipeline.errors import TargetError
from pipeline.targets.triton import triton
from serving.bundles.bundle import Bundle
from serving.runtime.session import Session, open_session

NUMPY = {
    "TYPE_UINT8": np.uint8,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": np.object_,
}
MODELS = {"images": images, "texts": texts, "sequences": sequences, "fixed": lambda: images(4)}


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """The messages of Triton's configuration, as its client has them.

    The file alone: the client's package asks for an older protobuf than ONNX here.
    """
    try:
        path = metadata.distribution("tritonclient").locate_file(
            "tritonclient/grpc/model_config_pb2.py"
        )
    except metadata.PackageNotFoundError:
        pytest.skip("no tritonclient: `pip install --no-deps tritonclient` brings its schema")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle for Triton of every kind of model."""
    root = tmp_path_factory.mktemp("triton")
    return {
        kind: bundled(root / kind, made(), triton, target="triton")[0]
        for kind, made in MODELS.items()
    }


def parsed(schema: ModuleType, bundle: Bundle) -> Any:
    text = bundle.contents["tiny/config.pbtxt"].decode()
    return text_format.Parse(text, schema.ModelConfig())


def type_of(schema: ModuleType, number: int) -> str:
    return str(schema.DataType.Name(number))


def asked(schema: ModuleType, bundle: Bundle, config: Any, warmup: Any) -> dict[str, np.ndarray]:
    """What the server would feed the model of a warm-up: its file so many times, reshaped."""
    (info,) = config.input
    sample = warmup.inputs[info.name]
    assert type_of(schema, sample.data_type) == type_of(schema, info.data_type)
    raw = bundle.contents[f"tiny/warmup/{sample.input_data_file}"]
    dtype = NUMPY[type_of(schema, sample.data_type)]
    if dtype is np.object_:
        found, at = [], 0
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            assert at + 4 + size <= len(raw)
            found.append(raw[at + 4 : at + 4 + size].decode())
            at += 4 + size
        one = np.array(found, object)
    else:
        one = np.frombuffer(raw, dtype)
    one = one.reshape(tuple(sample.dims))
    if config.max_batch_size:
        if info.HasField("reshape"):
            one = one.reshape(tuple(info.reshape.shape))
        one = np.stack([one] * warmup.batch_size)
    else:
        assert warmup.batch_size == 1
    return {info.name: one}


def fits(dims: list[int], shape: tuple[int, ...]) -> bool:
    return len(dims) == len(shape) and all(a in (-1, b) for a, b in zip(dims, shape, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_the_server_answers_its_warm_up_as_it_is_configured(
    schema: ModuleType, repositories: dict[str, Bundle], kind: str
) -> None:
    bundle = repositories[kind]
    config = parsed(schema, bundle)
    assert (config.name, config.backend) == ("tiny", "onnxruntime")
    session: Session = open_session(bundle.contents["tiny/1/model.onnx"])
    assert [one.name for one in config.output] == [one.name for one in session.outputs]
    assert len(config.model_warmup) == (2 if config.max_batch_size else 1)
    for warmup in config.model_warmup:
        feeds = asked(schema, bundle, config, warmup)
        for name, answer in session.run(feeds).items():
            (output,) = [one for one in config.output if one.name == name]
            shape = answer.shape
            if config.max_batch_size:
                assert shape[0] == warmup.batch_size <= config.max_batch_size
                shape = shape[1:]
            wanted = output.reshape.shape if output.HasField("reshape") else output.dims
            assert fits(list(wanted), shape), name
            assert output.dims, "the server wants one axis"
            assert np.dtype(NUMPY[type_of(schema, output.data_type)]).kind == answer.dtype.kind


def test_it_warms_up_with_a_golden_row(schema: ModuleType, repositories: dict[str, Bundle]) -> None:
    for kind, name in (("images", "images"), ("texts", "text"), ("sequences", "steps")):
        config = parsed(schema, repositories[kind])
        feeds = asked(schema, repositories[kind], config, config.model_warmup[1])
        np.testing.assert_array_equal(feeds[name], np.stack([ROWS[name][0]] * 64))


def test_rows_of_several_callers_are_gathered(
    schema: ModuleType, repositories: dict[str, Bundle]
) -> None:
    config = parsed(schema, repositories["images"])
    assert config.max_batch_size == 64
    assert list(config.dynamic_batching.preferred_batch_size) == [16, 32, 64]
    assert config.version_policy.latest.num_versions == 1
    (group,) = config.instance_group
    assert schema.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_CPU"
    fixed = parsed(schema, repositories["fixed"])
    assert fixed.max_batch_size == 0
    assert not fixed.HasField("dynamic_batching")
    assert list(fixed.input[0].dims) == [4, 2, 2, 1]
    assert list(parsed(schema, repositories["sequences"]).input[0].dims) == [-1, 2]


def test_an_output_that_is_declared_for_one_row_is_not_gathered(
    schema: ModuleType, tmp_path: Path
) -> None:
    # Converters declare a label so; of a batch the server wants every first axis to be free.
    made = images()
    made.graph.node.append(node("ArgMax", "logits", "label", axis=1, keepdims=0))
    made.graph.output.append(onnx.helper.make_tensor_value_info("label", INT64, [1]))
    config = parsed(schema, bundled(tmp_path / "one", made, triton)[0])
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 2, 2, 1]
    assert list(config.output[2].dims) == [1]
    (warmup,) = config.model_warmup
    assert list(warmup.inputs["images"].dims) == [4, 2, 2, 1]


def test_the_server_names_classes_and_tells_which_model_it_has(
    schema: ModuleType, repositories: dict[str, Bundle]
) -> None:
    bundle = repositories["images"]
    config = parsed(schema, bundle)
    labelled = {one.name: one.label_filename for one in config.output}
    assert labelled == {"logits": "", "probabilities": "labels.txt"}
    assert bundle.contents["tiny/labels.txt"].decode().splitlines() == list(LABELS)
    told = {key: value.string_value for key, value in config.parameters.items()}
    assert told["model_sha256"] == bundle.manifest.files["model.onnx"].sha256
    assert bundle.contents["tiny/1/model.onnx"] == bundle.model
    assert "tiny/labels.txt" not in repositories["texts"].contents


def of_maps() -> onnx.ModelProto:
    classes = {"classlabels_int64s": [0, 1, 2]}
    nodes = [
        node("Cast", "images", "values", to=FLOAT),
        node("Flatten", "values", "row"),
        node("ReduceMax", "row axis", "largest"),
        node("Concat", "largest largest largest", "scores", axis=1),
        node("ZipMap", "scores", "maps", domain="ai.onnx.ml", **classes),
    ]
    made = model(
        nodes,
        {"images": (UINT8, ["batch", 2, 2, 1])},
        {"scores": (FLOAT, ["batch", 3])},
        {"axis": np.array([1])},
        domains={"ai.onnx.ml": 3},
    )
    key = onnx.TensorProto.INT64
    of_scores = onnx.helper.make_map_type_proto(key, onnx.helper.make_tensor_type_proto(FLOAT, ()))
    maps = onnx.helper.make_sequence_type_proto(of_scores)
    made.graph.output.append(onnx.helper.make_value_info("maps", maps))
    return made


def of_shared() -> onnx.ModelProto:
    inputs = {"steps": (onnx.TensorProto.FLOAT16, ["batch", 3, 2]), "rate": (FLOAT, [1])}
    nodes = [node("Cast", "steps", "wide", to=FLOAT), node("Mul", "wide rate", "y")]
    return model(nodes, inputs, {"y": (FLOAT, ["batch", 3, 2])})


@pytest.mark.parametrize(
    ("made", "changes", "words"),
    [
        (of_maps, {}, "maps of tiny is a list of maps"),
        (of_shared, {}, "the same for all rows (rate)"),
        (images, {"name": "my net"}, "'my net' becomes the name of a folder"),
    ],
)
def test_what_the_server_does_not_take_is_refused_by_name(
    tmp_path: Path, made: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(TargetError) as refused:
        bundled(tmp_path / "refused", made(), triton, **changes)
    assert words in str(refused.value)
    assert not list(tmp_path.iterdir()), "nothing is left of it"
