"""The recurrent networks: in which order they read, and what they leave unread."""

import pytest
import torch
from model_cases import CASES, LENGTH, TEXT, build, case, image, parameters, rows
from torch import nn

from pipeline.models.text_lstm import TextLstm
from pipeline.network.vocabulary import PADDING, UNKNOWN, Vocabulary

# gru and lstm


@pytest.mark.parametrize(("name", "gates"), [("gru", 3), ("lstm", 4)])
def test_the_size_of_a_recurrent_network(name: str, gates: int) -> None:
    network = build(name, {"hidden": [128], "dropout": 0}, image(28, 28))
    assert parameters(network) == gates * 128 * (28 + 128 + 2) + 1290


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_an_image_is_read_from_top_to_bottom(name: str) -> None:
    """Every row counts, colours belong to their row, and the order of rows does matter."""
    network = case(name).eval()
    planes = torch.randn(1, 3, 10, 6)
    answer = network(planes)
    for row in range(10):
        changed = planes.clone()
        changed[:, 2, row] += 1
        assert not torch.equal(network(changed), answer)
    assert not torch.allclose(network(planes.flip(2)), answer)
    steps = torch.cat([planes[:, channel] for channel in range(3)], dim=2)
    torch.testing.assert_close(network.linear(network.stack(steps)[:, -1]), answer)


def test_channels_last_planes_are_read_alike() -> None:
    network = case("gru").eval()
    planes = torch.randn(2, 3, 10, 6)
    assert torch.equal(network(planes), network(planes.to(memory_format=torch.channels_last)))


# text_lstm


def text(**changes: object) -> TextLstm:
    network = case("text_lstm", **changes)
    assert isinstance(network, TextLstm)
    return network


def test_the_size_of_the_textbook_network() -> None:
    settings = CASES["text_lstm"][0] | {
        "vocabulary": 10_000,
        "length": 100,
        "embedding": 64,
        "hidden": [64, 32],
    }
    network = build("text_lstm", settings, TEXT)
    recurrent = 4 * 64 * (64 + 64 + 2) + 4 * 32 * (64 + 32 + 2)
    assert parameters(network) == 640_000 + recurrent + 33
    assert (network.vocabulary, network.length) == (10_000, 100)


def test_the_padding_is_never_read() -> None:
    network = text().eval()
    short = torch.tensor([[5, 6, 7]])
    padded = nn.functional.pad(short, (0, LENGTH - 3), value=PADDING)
    torch.testing.assert_close(network(padded), network(short))
    states = network.stack(network.embedding(short))
    torch.testing.assert_close(network(padded), network.linear(states[:, -1]))


def test_every_word_counts_and_their_order_too() -> None:
    network = text().eval()
    sentence = torch.arange(2, 2 + LENGTH)[None]
    answer = network(sentence)
    for place in range(LENGTH):
        changed = sentence.clone()
        changed[0, place] = 30
        assert not torch.equal(network(changed), answer)
    assert not torch.allclose(network(sentence.flip(1)), answer)


def test_a_sentence_without_words_has_an_answer() -> None:
    network = text().eval()
    empty = torch.zeros(2, LENGTH, dtype=torch.int64)
    assert torch.isfinite(network(empty)).all()
    assert torch.isfinite(network.train()(empty)).all()


def test_training_skips_what_no_sentence_reaches() -> None:
    network = text()
    ids = rows(TEXT, 2)  # none and six words
    seen = []
    network.stack.register_forward_hook(lambda _s, steps, _o: seen.append(steps[0].shape[1]))
    trained = network.train()(ids)
    served = network.eval()(ids)
    assert seen == [LENGTH // 2, LENGTH]
    torch.testing.assert_close(trained, served)


def test_word_dropout_hides_words_and_leaves_the_padding() -> None:
    network = text(word_dropout=0.5)
    ids = rows(TEXT, 300)
    looked_up = []
    network.embedding.register_forward_hook(lambda _e, given, _o: looked_up.append(given[0]))
    network(ids)
    network.eval()(ids)
    trained, served = looked_up
    assert torch.equal(served, ids)
    real = ids != PADDING
    assert torch.equal(trained != PADDING, real)
    hidden = (trained == UNKNOWN) & (ids != UNKNOWN)
    assert 0.4 < hidden.sum() / (real & (ids != UNKNOWN)).sum() < 0.6
    assert torch.equal(trained[~hidden], ids[~hidden])


def test_the_padding_has_no_embedding_to_learn() -> None:
    network = text()
    network(rows(TEXT, 8)).sum().backward()
    gradient = network.embedding.weight.grad
    assert gradient is not None
    assert not network.embedding.weight[PADDING].any()
    assert not gradient[PADDING].any()


def test_a_vocabulary_fits_its_network() -> None:
    network = text().eval()
    many = tuple(f"word{index}" for index in range(500))
    vocabulary = Vocabulary.of(many, network)
    ids = torch.from_numpy(vocabulary.encode(["word0 word37 word38 other", " ".join(many)]))
    assert ids.shape == (2, LENGTH)
    assert int(ids.max()) < network.vocabulary
    assert torch.isfinite(network(ids)).all()


def test_the_first_weights_remember_and_say_little() -> None:
    network = text(vocabulary=2000, hidden=[50, 40])
    assert 0.09 < network.embedding.weight.std().item() < 0.11
    for layer in network.stack.layers:
        given, forgotten, cell, output = layer.bias_ih_l0.detach().view(4, -1).mean(dim=1)
        assert abs(forgotten - 1) < 0.2
        assert max(abs(given), abs(cell), abs(output)) < 0.2
