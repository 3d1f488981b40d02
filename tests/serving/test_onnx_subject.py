"""A model in ONNX Runtime as something to measure: its sessions, inputs, calls and proof."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_onnx
from odd_models import of_two_inputs
from tiny_kinds import TEXTS, text_classifier

from serving.errors import InputError, IntegrityError, MissingInputError, ModelError
from serving.files import sha256_of_file
from serving.measuring.onnx_subject import MOST_ROWS, OnnxSubject
from serving.measuring.subject import child_environment
from serving.runtime.providers import PROVIDERS
from serving.runtime.settings import SessionSettings

ONE = SessionSettings(threads=1)
BOUND = SessionSettings(threads=1, binding=True)


@pytest.fixture
def model(tmp_path):
    return tiny_onnx.write(tmp_path / "m.onnx", tiny_onnx.linear(["batch", 6]))


def subject_of(model, rows=None, settings=ONE):
    subject = OnnxSubject(model, "cpu", rows)
    subject.start(settings)
    return subject


def test_what_is_started_is_told(model):
    started = OnnxSubject(model, "cpu", None).start(ONE)
    assert started.sha256 == sha256_of_file(model)
    assert started.file_bytes == model.stat().st_size
    assert set(started.proof.nodes) == {PROVIDERS["cpu"]}
    assert started.ready_ms > 0
    assert started.fixed_batch is None


def test_the_one_batch_size_of_a_model_is_told(tmp_path):
    path = tiny_onnx.write(tmp_path / "four.onnx", tiny_onnx.linear([4, 6]))
    assert OnnxSubject(path, "cpu", None).start(ONE).fixed_batch == 4


def test_nothing_runs_before_it_is_started(model):
    subject = OnnxSubject(model, "cpu", None)
    with pytest.raises(InputError, match="was not started"):
        subject.call(1)


@pytest.mark.parametrize("settings", [ONE, BOUND])
def test_a_call_runs_a_batch_of_that_size(model, settings):
    subject = subject_of(model, settings=settings)
    answers = subject.call(5)()
    assert answers["logits"].shape == (5, 3)
    expected = subject.session.run(subject.feeds(5))["logits"]
    np.testing.assert_array_equal(answers["logits"], expected)


def test_bound_calls_do_not_share_their_memory(model):
    subject = subject_of(model, settings=BOUND)
    first, second = subject.call(2)(), subject.call(2)()
    assert first["logits"] is not second["logits"]


def test_starting_anew_takes_the_new_settings(model):
    subject = subject_of(model)
    subject.start(SessionSettings(threads=2, spinning=False))
    assert subject.session.settings.threads == 2


def test_made_up_rows_are_the_same_each_time(model):
    np.testing.assert_array_equal(subject_of(model).rows(7), subject_of(model).rows(7))


def test_real_rows_are_those_of_the_file(model, tmp_path):
    table = np.arange(18, dtype=np.float32).reshape(3, 6)
    np.save(tmp_path / "rows.npy", table)
    subject = subject_of(model, tmp_path / "rows.npy")
    np.testing.assert_array_equal(subject.rows(5), table[[0, 1, 2, 0, 1]])


def test_no_more_rows_are_read_than_a_batch_may_need(model, tmp_path):
    np.save(tmp_path / "many.npy", np.zeros((MOST_ROWS + 50, 6), np.float32))
    subject = subject_of(model, tmp_path / "many.npy")
    assert len(subject.real_rows["inputs"]) == MOST_ROWS
    assert len(subject.rows(MOST_ROWS + 10)) == MOST_ROWS + 10


def test_rows_are_answered(model):
    subject = subject_of(model)
    rows = np.ones((4, 6), np.float32)
    np.testing.assert_array_equal(
        subject.answer(rows)["logits"], subject.session.run({"inputs": rows})["logits"]
    )


@pytest.mark.parametrize("dtype", [tiny_onnx.FLOAT, tiny_onnx.UINT8, tiny_onnx.INT64])
def test_inputs_of_each_dtype_are_made_up(tmp_path, dtype):
    path = tiny_onnx.write(tmp_path / "m.onnx", tiny_onnx.linear([None, 8], dtype))
    assert subject_of(path).call(2)()["logits"].shape == (2, 3)


def test_rows_that_the_model_does_not_take_are_refused(model, tmp_path):
    texts = tiny_onnx.write(tmp_path / "text.onnx", text_classifier())
    rows = tmp_path / "texts.txt"
    rows.write_text("\n".join(TEXTS), encoding="utf-8")
    with pytest.raises(InputError, match="which no line of text is"):
        subject_of(model, rows)
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"takes string \[rows\]"):
        subject_of(texts, tmp_path / "numbers.npy")
    with pytest.raises(InputError, match="rows for timing are"):
        subject_of(texts, texts)
    with pytest.raises(MissingInputError, match=r"none\.txt is not there"):
        subject_of(texts, tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match="line 1 is not UTF-8"):
        subject_of(texts, tmp_path / "latin.txt")


def test_each_of_several_inputs_has_its_rows_or_is_named(tmp_path):
    path = tiny_onnx.write(tmp_path / "m.onnx", of_two_inputs())
    with pytest.raises(InputError, match=r"axis 1 \(length\) of input 'words'"):
        subject_of(path)
    rows = tmp_path / "rows.npz"
    np.savez(rows, words=np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match="holds no array named 'other'; there are: words"):
        subject_of(path, rows)
    np.savez(rows, words=np.zeros((3, 5), np.float32), other=np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match=r"takes float32 \[rows, 1\]"):
        subject_of(path, rows)
    np.save(tmp_path / "rows.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match="has the inputs words, other; give its rows"):
        subject_of(path, tmp_path / "rows.npy")


def test_several_inputs_are_timed_but_not_asked_row_by_row(tmp_path):
    path = tiny_onnx.write(tmp_path / "two.onnx", of_two_inputs())
    rows = tmp_path / "rows.npz"
    np.savez(rows, words=np.zeros((3, 5), np.float32), other=np.zeros((3, 1), np.float32))
    subject = subject_of(path, rows)
    assert subject.call(2)()["sums"].shape == (2, 5)
    with pytest.raises(InputError, match="several inputs: scenarios feed one"):
        subject.answer(np.zeros((1, 5), np.float32))


def test_texts_are_called_unbound_only(tmp_path):
    path = tiny_onnx.write(tmp_path / "text.onnx", text_classifier())
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    np.save(tmp_path / "texts.npy", np.array(TEXTS))
    for rows in ("texts.txt", "texts.npy"):
        assert subject_of(path, tmp_path / rows).call(2)()
    with pytest.raises(InputError, match="texts, which cannot be bound: use binding=off"):
        subject_of(path, tmp_path / "texts.txt", BOUND).call(2)


def test_the_time_of_nodes_is_on_the_provider(model):
    share = subject_of(model).share(3)
    assert set(share.time_us) == {PROVIDERS["cpu"]}
    assert share.time_us[PROVIDERS["cpu"]] > 0
    assert share.share == 1


def test_the_cpu_has_no_memory_of_a_gpu(model):
    assert subject_of(model).gpu_bytes() is None


def test_a_bundle_is_checked_before_it_is_measured(bundle):
    assert subject_of(bundle).call(2)()["probabilities"].shape[0] == 2
    (bundle / "labels.txt").write_text("other\n")
    with pytest.raises(IntegrityError, match=r"labels\.txt"):
        OnnxSubject(bundle, "cpu", None)


def test_what_is_not_there_or_no_model_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.onnx is not there"):
        subject_of(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="cannot be loaded"):
        subject_of(tiny_onnx.write(tmp_path / "text.onnx", b"text"))


def test_the_first_answer_of_a_process_is_said(model, tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((2, 6), np.float32))
    for rows in ([], [str(tmp_path / "rows.npy")]):
        done = subprocess.run(
            [sys.executable, "-m", "serving.measuring.first_answer", str(model), "cpu", *rows],
            capture_output=True,
            text=True,
            env=child_environment(),
            check=True,
        )
        assert done.stdout == "answered\n"


def test_the_process_speaks_json_and_ends_with_its_input(model):
    setup = {"model": str(model), "provider": "cpu", "rows": None}
    requests = [setup, {"do": "memory"}, {"do": "timing"}]
    done = subprocess.run(
        [sys.executable, "-m", "serving.measuring.onnx_subject", "1"],
        input="".join(json.dumps(one) + "\n" for one in requests),
        capture_output=True,
        text=True,
        env=child_environment(),
        check=True,
    )
    opened, memory, timing = map(json.loads, done.stdout.splitlines())
    assert opened is None
    assert memory["peak_memory_bytes"] > 2**20
    assert timing == {"error": "InputError", "message": "nothing was measured yet"}
