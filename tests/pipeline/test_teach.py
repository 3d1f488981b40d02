"""A student follows its teacher: its logits for the same changed rows, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from click.testing import CliRunner
from project import REPOSITORY, Project
from torch import Tensor
from training import OFF, run, stop_after, with_train

from pipeline.cli import ferry
from pipeline.config import layout
from pipeline.config.experiment import Experiment, Params, TeacherConfig
from pipeline.errors import ConfigError
from pipeline.models.parts.graph import BinaryCrossEntropy, CrossEntropy, load_graph
from pipeline.quantization.qat import trained_again
from pipeline.quantization.recipes import parse
from pipeline.records import read, ready, record
from pipeline.records.train import Teaching, TrainReport
from pipeline.stages.teach import teach
from pipeline.training import taught
from pipeline.training.batches import augment, view_draws
from pipeline.training.tuning import search
from serving.errors import IntegrityError, MissingInputError
from serving.files import write_json, write_text

MOVED = replace(OFF, translate=1, flip=True)


@pytest.fixture
def student(params: Params) -> Experiment:
    """A small network that learns from digits-cnn alone, in two views of each row."""
    base = params.experiment("digits-mlp")
    model = replace(base.model, settings={**base.model.settings, "hidden": [32]})
    teacher = TeacherConfig(experiment="digits-cnn", temperature=2, weight=1, views=2)
    changed = with_train(base, teacher=teacher, augment=MOVED, epochs=4)
    return replace(changed, name="student", model=model)


def asked(trained: Project, student: Experiment, folder: Path) -> Path:
    """Ask the teacher; returns the file of its logits."""
    path = folder / layout.taught(student.name).relative_to(layout.weights(student.name).parent)
    teach(
        trained.data,
        trained.weights,
        trained.details("train"),
        path,
        experiment=student,
        by=trained.experiment,
    )
    return path


def report_of(trained: Project) -> TrainReport:
    return read(TrainReport, trained.details("train"), "ferry train digits-cnn")


def rolled(path: Path) -> None:
    """Let the teacher take each class for the next one."""
    logits, teaching = taught.load(path.read_bytes())
    record(path, taught.save(path, logits.roll(1, dims=2).contiguous(), teaching))


def test_the_teacher_answers_each_view_of_each_row(
    trained: Project, student: Experiment, tmp_path: Path
) -> None:
    logits, teaching = taught.load(asked(trained, student, tmp_path).read_bytes())
    graph = load_graph(trained.weights, trained.experiment, ready.open_manifest(trained.data))
    rows = ready.open_split(trained.data, "train").inputs
    assert logits.shape == (2, len(rows), 10)
    for view, answers in enumerate(logits):
        draws = view_draws(len(rows), MOVED, view)
        planes = augment(graph.values(graph.tensor(rows)), MOVED, draws)
        with torch.no_grad():
            expected = graph.network(graph.inputs(planes))
        torch.testing.assert_close(answers.float(), expected, rtol=2e-3, atol=2e-3)
    assert not torch.equal(logits[0], logits[1])
    assert (teaching.experiment, teaching.views) == ("digits-cnn", 2)
    assert teaching.weights_sha256 == report_of(trained).weights_sha256


def test_the_loss_is_the_divergence_of_softened_probabilities() -> None:
    output, its = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    student, teacher = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))  # of the first class, softened
    divergence = teacher * math.log(teacher / student)
    divergence += (1 - teacher) * math.log((1 - teacher) / (1 - student))
    found = CrossEntropy().distillation(output, its, 2.0)
    assert float(found) == pytest.approx(4 * divergence, rel=1e-5)
    assert float(CrossEntropy().distillation(its, its, 2.0)) == pytest.approx(0, abs=1e-6)
    one = BinaryCrossEntropy().distillation(torch.tensor([[-2.0]]), torch.tensor([[4.0]]), 2.0)
    assert float(one) == pytest.approx(float(found), rel=1e-5)


def test_a_student_follows_its_teacher_row_by_row(
    trained: Project, student: Experiment, tmp_path: Path
) -> None:
    path = asked(trained, student, tmp_path)
    learned = run(trained.root, with_train(student, epochs=12), tmp_path)
    assert learned.accuracy is not None
    assert learned.accuracy > 0.6
    assert learned.teacher == taught.load(path.read_bytes())[1]
    assert read(TrainReport, tmp_path / "train.json", "ferry train student") == learned
    rolled(path)
    misled = run(trained.root, with_train(student, epochs=12), tmp_path).history[-1]
    assert misled.validation_accuracy is not None
    assert misled.validation_accuracy < 0.2


def test_its_weight_is_the_teachers_part(
    trained: Project, student: Experiment, tmp_path: Path
) -> None:
    rolled(asked(trained, student, tmp_path))
    teacher = student.train.teacher
    assert teacher is not None
    little = with_train(student, teacher=replace(teacher, weight=0.01), epochs=12)
    report = run(trained.root, little, tmp_path)
    assert report.accuracy is not None
    assert report.accuracy > 0.6


def test_training_again_with_the_rounding_follows_the_teacher_too(
    trained: Project, student: Experiment, tmp_path: Path
) -> None:
    path = asked(trained, student, tmp_path)
    run(trained.root, student, tmp_path)
    again = replace(student, quantize=replace(student.quantize, qat_epochs=1))

    def weights_of(experiment: Experiment) -> bytes:
        made = trained_again(
            *(onnx.ModelProto(), tmp_path / "model.safetensors", trained.data),
            parse("static-u8s8"),
            experiment=experiment,
        )
        return b"".join(tensor.raw_data for tensor in made.graph.initializer)

    followed = weights_of(again)
    assert weights_of(again) == followed
    with pytest.raises(IntegrityError, match="are of other settings or data"):
        weights_of(with_train(again, augment=replace(MOVED, translate=2)))
    rolled(path)
    assert weights_of(again) != followed


def test_a_killed_training_goes_on_with_the_same_logits_alone(
    trained: Project, student: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = asked(trained, student, tmp_path)
    whole = run(trained.root, student, tmp_path)
    for change in (lambda _: None, rolled):
        with monkeypatch.context() as patch:
            stop_after(3, patch)
            with pytest.raises(KeyboardInterrupt):
                run(trained.root, student, tmp_path)
        change(path)
        again = run(trained.root, student, tmp_path)
        assert (again.weights_sha256 == whole.weights_sha256) == (change is not rolled)
    assert again.weights_sha256 == run(trained.root, student, tmp_path).weights_sha256


def test_a_killed_teacher_goes_on_after_its_last_whole_view(
    trained: Project, student: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asked(trained, student, tmp_path / "whole").read_bytes()
    original, asked_views = taught.save, []

    def killed(path: Path, logits: Tensor, teaching: Teaching) -> None:
        original(path, logits, teaching)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(taught, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            asked(trained, student, tmp_path)

    def noting(rows: int, config: object, view: int) -> Tensor:
        asked_views.append(view)
        return view_draws(rows, MOVED, view)

    monkeypatch.setattr("pipeline.stages.teach.view_draws", noting)
    assert asked(trained, student, tmp_path).read_bytes() == whole
    assert asked_views == [1]
    assert not list(tmp_path.glob("*.partial*"))


def test_what_a_training_needs_of_its_teacher_is_looked_at_before_it(
    trained: Project, student: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(MissingInputError, match="ferry teach student"):
        run(trained.root, student, tmp_path)
    path = asked(trained, student, tmp_path)
    other = with_train(student, augment=replace(MOVED, translate=2))
    with pytest.raises(
        IntegrityError, match="are of other settings or data; `ferry teach student`"
    ):
        run(trained.root, other, tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match="it has rotted or was altered"):
        run(trained.root, student, tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("key", ["train.augment.translate", "train.teacher.views"])
def test_a_search_is_refused_that_would_ask_the_teacher_anew(student: Experiment, key: str) -> None:
    searched = replace(student, search={key: (1, 2)})
    with pytest.raises(ConfigError, match=rf"search\.{key}: the teacher's logits"):
        search.check(searched)
    search.check(replace(student, search={"train.teacher.weight": (0.5, 1.0)}))


def test_a_teacher_is_refused_that_is_not_trained_on_these_rows_or_knows_less(
    trained: Project, student: Experiment, tmp_path: Path
) -> None:
    report, path = report_of(trained), tmp_path / "taught.safetensors"

    def ask(trained_report: Path, known: TrainReport | None = None) -> Teaching:
        return teach(
            *(trained.data, trained.weights, trained_report, path),
            experiment=student,
            by=trained.experiment,
            known=known,
        )

    with pytest.raises(MissingInputError, match="ferry train digits-cnn"):
        ask(tmp_path / "train.json")

    write_json(tmp_path / "train.json", replace(report, data_sha256="0" * 64))
    with pytest.raises(IntegrityError, match="was trained on other rows or classes of digits"):
        ask(tmp_path / "train.json")
    with pytest.raises(
        ConfigError, match=r"digits-cnn knows less than its student: .* student 100"
    ):
        ask(trained.details("train"), replace(report, validation_accuracy=1.0))
    alone = with_train(student, teacher=None)
    with pytest.raises(ConfigError, match="teacher is null: it learns from labels alone"):
        teach(
            *(trained.data, trained.weights, trained.details("train"), path),
            experiment=alone,
            by=trained.experiment,
        )
    assert not path.exists()


def test_the_commands_take_a_user_from_the_teacher_to_the_student(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = yaml.safe_load((REPOSITORY / layout.PARAMS).read_text())
    large, small = (text["experiments"][name] for name in ("digits-cnn", "digits-mlp"))
    large["epochs"], small["epochs"] = 2, 1
    teacher = {"experiment": "digits-cnn", "temperature": 1.0, "weight": 0.5, "views": 1}
    small["train"]["teacher"] = teacher
    (tmp_path / layout.PARAMS).write_text(
        yaml.safe_dump(text | {"students": {"digits-mlp": "digits-cnn"}})
    )
    (tmp_path / "data").symlink_to(ready / "data")
    monkeypatch.chdir(tmp_path)

    def ferry_says(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(ferry, [*arguments])
        return done.exit_code, done.stdout or done.stderr

    missing = "Error: models/digits-mlp/before/taught.safetensors is not there; "
    code, said = ferry_says("train", "digits-mlp", "--no-track")
    assert (code, said) == (1, f"{missing}`ferry teach digits-mlp` makes it\n")
    code, said = ferry_says("teach", "digits-mlp")
    assert (code, "`ferry train digits-cnn` makes it" in said) == (1, True)
    assert ferry_says("train", "digits-cnn", "--no-track")[0] == 0
    # What another version wrote of the student stands in nobody's way.
    write_text(layout.details("digits-mlp", "train"), "{}")
    code, said = ferry_says("teach", "digits-mlp", "--json")
    assert (code, json.loads(said)["experiment"]) == (0, "digits-cnn")
    assert ferry_says("train", "digits-mlp", "--no-track")[0] == 0
    trained = json.loads(layout.details("digits-mlp", "train").read_text())
    assert trained["teacher"]["experiment"] == "digits-cnn"
    assert trained["settings"]["train.teacher.weight"] == "0.5"
    again = ferry_says("train", "digits-mlp", "--no-track", "--set", "train.teacher=null")
    assert again[0] == 0
    assert json.loads(layout.details("digits-mlp", "train").read_text())["teacher"] is None
    code, said = ferry_says("teach", "xor-mlp")
    assert (code, "teacher is null: it learns from labels alone" in said) == (2, True)
