"""What every architecture of the registry promises, and what each refuses of its settings."""

from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import onnxruntime
import pytest
import torch
from model_cases import CASES, WHERE, case, refused, rows
from torch import nn

from pipeline import models
from pipeline.config import reading
from pipeline.config.params import load
from pipeline.exporting.onnxmodel import quiet
from pipeline.models import Gives, Shape
from pipeline.records.ready import Kind

ROOT = Path(__file__).parents[2]
EXPERIMENTS = load(ROOT / "params.yaml").experiments.values()


def module_of(name: str) -> ModuleType:
    return reading.load("model", "pipeline.models", models.FOLDER, name)


def onnx_bytes(network: nn.Module, shape: Shape) -> bytes:
    with quiet():
        program = torch.onnx.export(
            network,
            (rows(shape, 2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=20,
            input_names=["rows"],
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def test_every_architecture_has_its_case() -> None:
    assert set(CASES) == set(models.names())


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_is_used_by_an_experiment(name: str) -> None:
    used = {experiment.model.name for experiment in EXPERIMENTS}
    assert name in used


@pytest.mark.parametrize("name", models.names())
def test_what_every_architecture_tells_of_itself(name: str) -> None:
    module = module_of(name)
    assert {"GIVES", "TAKES", "build"} <= set(vars(module))
    record = get_type_hints(module.build)["settings"]
    assert set(CASES[name][0]) == {field.name for field in fields(record)}
    assert set(models.takes(name)) <= set(get_args(Kind))
    assert models.gives(name) in get_args(Gives)
    assert CASES[name][1].kind in models.takes(name)


@pytest.mark.parametrize("name", models.names())
def test_what_a_network_answers(name: str) -> None:
    shape = CASES[name][1]
    network = case(name).eval()
    answer = network(rows(shape, 3))
    assert answer.dtype == torch.float32
    if models.gives(name) == "reconstruction":
        assert answer.shape == (3, *shape.row)
        assert ((answer >= 0) & (answer <= 1)).all()
    else:
        assert answer.shape == (3, shape.outputs)
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("name", models.names())
def test_rows_do_not_depend_on_their_batch(name: str) -> None:
    network = case(name).eval()
    together = rows(CASES[name][1], 5)
    alone = torch.cat([network(together[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(network(together), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", models.names())
def test_the_seed_alone_decides_the_first_weights(name: str) -> None:
    first, again, other = (case(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_is_trained(name: str) -> None:
    network = case(name)
    network(rows(CASES[name][1], 16)).square().sum().backward()
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert key.endswith("norm.weight") or key == "whitening.conv.weight"
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models.names()) - {"lstm"}))  # text_lstm has its layers
def test_onnx_runtime_answers_the_same(name: str) -> None:
    shape = CASES[name][1]
    network = case(name).eval()
    session = onnxruntime.InferenceSession(
        onnx_bytes(network, shape), providers=["CPUExecutionProvider"]
    )
    assert session.get_outputs()[0].shape[0] == "batch"
    for count in (1, 2, 3, 8):
        given = rows(shape, count)
        (answer,) = session.run(None, {"rows": given.numpy()})
        expected = network(given).detach()
        torch.testing.assert_close(torch.from_numpy(answer), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", models.names())
def test_an_unknown_a_missing_and_a_mistyped_setting(name: str) -> None:
    settings, shape = CASES[name]
    key = next(iter(settings))
    without = {other: value for other, value in settings.items() if other != key}
    assert f"{WHERE}.{key}s is not a key; did you mean {key!r}?" in refused(
        name, {f"{key}s": settings[key], **without}, shape
    )
    assert refused(name, without, shape) == f"{WHERE}.{key} is missing"
    message = refused(name, settings | {key: "x"}, shape)
    assert message.startswith(f"{WHERE}.{key} must be ")
    assert message.endswith("got 'x'")


HAVE_DROPOUT = [name for name in CASES if "dropout" in CASES[name][0]]
HAVE_ACTIVATION = [name for name in CASES if "activation" in CASES[name][0]]


@pytest.mark.parametrize("name", HAVE_DROPOUT)
def test_dropout_is_for_training(name: str) -> None:
    settings, shape = CASES[name]
    message = refused(name, settings | {"dropout": 1}, shape)
    assert message == f"{WHERE}.dropout must be less than 1, got 1"
    network = case(name, dropout=0.5)
    given = rows(shape, 8)
    assert not torch.equal(network(given), network(given))
    network.eval()
    assert torch.equal(network(given), network(given))
    assert torch.equal(network(given), served(case(name), given, like=network))


def served(network: nn.Module, given: torch.Tensor, *, like: nn.Module) -> torch.Tensor:
    """The answer of `network` once it has the weights of `like`, in their order."""
    values = list(like.state_dict().values())
    state = dict(zip(network.state_dict(), values, strict=True))
    network.load_state_dict(state)
    answer: torch.Tensor = network.eval()(given)
    return answer


@pytest.mark.parametrize("name", HAVE_ACTIVATION)
def test_every_activation_makes_another_network(name: str) -> None:
    settings, shape = CASES[name]
    given = rows(shape, 4)
    answers = [
        case(name, activation=function).eval()(given)
        for function in ("sigmoid", "tanh", "relu", "gelu")
    ]
    for index, answer in enumerate(answers):
        assert not any(torch.equal(answer, other) for other in answers[:index])
    expected = f"{WHERE}.activation must be 'sigmoid', 'tanh', 'relu' or 'gelu', got 'swish'"
    assert refused(name, settings | {"activation": "swish"}, shape) == expected


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("mlp", {"hidden": [8, 0]}, ".hidden.1 must be greater than or equal to 1, got 0"),
    ("mlp", {"hidden": 8}, ".hidden must be a list, got 8"),
    ("cnn", {"pools": [1, 0]}, ".pools.0 must be a boolean, got 1"),
    ("cnn", {"pools": []}, ".pools must not be empty"),
    ("cnn", {"head": "mean"}, ".head must be 'flatten' or 'average', got 'mean'"),
    ("cnn", {"widths": [4]}, "widths, kernels and pools must be equally long, got 1, 2 and 2"),
    ("cnn", {"kernels": [3, 3, 3]}, "must be equally long, got 2, 3 and 2"),
    ("cnn", {"kernels": [3, 4]}, "kernels must be odd, got 4"),
    ("lenet", {"kernel": 0}, ".kernel must be greater than or equal to 1, got 0"),
    (
        "lenet",
        {"kernel": 6},
        ": 2 convolutions of side 6 with poolings between leave nothing of 12×12 pixels",
    ),
    ("resnet", {"widths": []}, ".widths must not be empty"),
    ("resnet", {"blocks": 0}, ".blocks must be greater than or equal to 1, got 0"),
    ("gru", {"hidden": []}, ".hidden must not be empty"),
    ("text_lstm", {"vocabulary": 2}, ".vocabulary must be greater than or equal to 3, got 2"),
    ("text_lstm", {"length": 0}, ".length must be greater than or equal to 1, got 0"),
    ("text_lstm", {"word_dropout": 1.0}, ".word_dropout must be less than 1, got 1.0"),
    (
        "autoencoder",
        {"widths": [4, 4, 4]},
        ": 3 widths halve the planes as often: both sides must be divisible by 8, got 8×12 pixels",
    ),
    ("autoencoder", {"code": -1}, ".code must be greater than or equal to 0, got -1"),
    ("fast", {"depth": 4}, ".depth must be 2 or 3, got 4"),
    ("fast", {"scale": 0}, ".scale must be greater than 0, got 0"),
    (
        "fast",
        {"widths": [4] * 4},
        ": patches of side 2 and 4 halvings leave nothing of 9×12 pixels",
    ),
]


@pytest.mark.parametrize(("name", "wrong", "expected"), WRONG, ids=lambda value: str(value)[-30:])
def test_wrong_settings_are_refused_by_path(
    name: str, wrong: dict[str, Any], expected: str
) -> None:
    settings, shape = CASES[name]
    assert expected in refused(name, settings | wrong, shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("name", models.names())
def test_every_weight_learns_on_cuda(name: str) -> None:
    network = case(name).to("cuda", memory_format=torch.channels_last).train()
    inputs = rows(CASES[name][1], 4).cuda()
    if inputs.ndim == 4:
        inputs = inputs.to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        network(inputs).float().square().sum().backward()
    trained = [one for one in network.parameters() if one.requires_grad]
    assert all(one.grad is not None and one.grad.shape == one.shape for one in trained)
