"""A study in a file: what it draws, what it remembers, and what a kill leaves of it."""

from pathlib import Path

import pytest
from training import searching

from pipeline.config.experiment import Experiment, Interval, Params
from pipeline.records.train import Epoch
from pipeline.records.tune import Setting, Trial
from pipeline.training.tuning.study import SearchPlan, Study
from serving.errors import IntegrityError, UsageError

NAME = "digits-mlp-abc"
JOURNAL = "study.journal"


@pytest.fixture
def listed(params: Params) -> Experiment:
    return searching(params, {"model.hidden": ((4,), (8,)), "train.batch_size": (16, 32, 64)})


@pytest.fixture
def endless(params: Params) -> Experiment:
    spaces = {
        "train.lr": Interval(low=1e-4, high=1e-1, log=True),
        "train.batch_size": Interval(low=16, high=64, log=False),
    }
    return searching(params, spaces, epochs=4)


def epoch(number: int, accuracy: float) -> Epoch:
    return Epoch(
        epoch=number,
        lr=0.1,
        loss=1.0,
        accuracy=accuracy,
        validation_loss=1.0,
        validation_accuracy=accuracy,
        seconds=1.0,
        rows_per_second=1.0,
    )


def end(
    study: Study,
    number: int,
    settings: dict[str, Setting],
    accuracy: float,
    state: str = "complete",
) -> None:
    study.tell(
        Trial(
            number=number,
            state=state,
            settings=settings,
            validation_accuracy=accuracy,
            validation_loss=1.0,
            epochs=1,
            seconds=0.5,
            reason=None,
        )
    )


def draw(study: Study, count: int) -> list[dict[str, Setting]]:
    """Ask for trials and end each, the later the better."""
    drawn = []
    for _ in range(count):
        asked = study.ask()
        if asked is None:
            break
        end(study, *asked, accuracy=0.1 + asked[0] / 100)
        drawn.append(asked[1])
    return drawn


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_a_finite_space_is_tried_once_and_then_exhausted(
    tmp_path: Path, listed: Experiment, sampler: str
) -> None:
    study = Study(tmp_path, NAME, listed, SearchPlan(trials=99, sampler=sampler))  # type: ignore[arg-type]
    drawn = draw(study, 20)
    assert len(drawn) == len({str(one) for one in drawn}) == 6
    assert study.exhausted
    assert study.ask() is None
    assert len(study.trials()) == 6
    study.close()


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_an_interrupted_search_draws_what_it_would_have_drawn(
    tmp_path: Path, endless: Experiment, sampler: str
) -> None:
    plan = SearchPlan(trials=99, sampler=sampler)  # type: ignore[arg-type]
    whole = Study(tmp_path / "whole", NAME, endless, plan)
    wanted = draw(whole, 14)
    whole.close()
    drawn = []
    for count in (3, 11):
        part = Study(tmp_path / "parts", NAME, endless, plan)
        drawn += draw(part, count)
        part.close()
    assert drawn == wanted
    assert len({str(one) for one in drawn}) == 14


def test_what_is_drawn_lies_in_its_interval_and_is_written_shortly(
    tmp_path: Path, endless: Experiment
) -> None:
    study = Study(tmp_path, NAME, endless, SearchPlan(trials=99, sampler="random", seed=3))
    for settings in draw(study, 30):
        lr, size = settings["train.lr"], settings["train.batch_size"]
        assert isinstance(lr, float)
        assert 1e-4 <= lr <= 1e-1
        assert lr == float(f"{lr:.4g}")
        assert isinstance(size, int)
        assert 16 <= size <= 64
    study.close()


def test_a_trial_that_was_running_is_marked_and_tried_again(
    tmp_path: Path, endless: Experiment
) -> None:
    plan = SearchPlan(trials=9, sampler="random")
    killed = Study(tmp_path, NAME, endless, plan)
    draw(killed, 1)
    asked = killed.ask()
    assert asked
    killed.report(asked[0], epoch(1, 0.5))
    killed._lock.release()  # as the system does when a process ends
    resumed = Study(tmp_path, NAME, endless, plan)
    assert resumed.interrupted() == 1
    assert [trial.number for trial in resumed.trials()] == [0]
    again = resumed.ask()
    assert again
    assert again[0] > asked[0]
    assert again[1] == asked[1]
    resumed.close()
    assert resumed.interrupted() == 2


@pytest.mark.timeout(20)  # Optuna would wait for 30 seconds
def test_an_interrupt_that_leaves_optunas_lock_behind_costs_no_wait(
    tmp_path: Path, listed: Experiment
) -> None:
    study = Study(tmp_path, NAME, listed, SearchPlan(trials=9))
    study.ask()
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)
    study.close()
    assert study.interrupted() == 1


@pytest.mark.timeout(25)
def test_what_a_kill_in_the_middle_of_a_write_left_is_cleared(
    tmp_path: Path, listed: Experiment
) -> None:
    plan = SearchPlan(trials=9, sampler="grid")
    study = Study(tmp_path, NAME, listed, plan)
    draw(study, 2)
    study.close()
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"wor')
    (tmp_path / f"{JOURNAL}.lock").symlink_to(journal)  # Optuna would wait for it
    again = Study(tmp_path, NAME, listed, plan)
    assert len(again.trials()) == 2
    assert len(draw(again, 9)) == 4
    again.close()
    once_more = Study(tmp_path, NAME, listed, plan)
    assert len(once_more.trials()) == 6
    once_more.close()


def test_a_file_that_is_no_journal_is_named(tmp_path: Path, listed: Experiment) -> None:
    (tmp_path / JOURNAL).write_text("nonsense\nand more\n")
    for _ in range(2):  # the lock is free again
        with pytest.raises(IntegrityError, match=r"study\.journal is no journal of a study"):
            Study(tmp_path, NAME, listed, SearchPlan(trials=1))


def test_two_at_a_time_are_refused(tmp_path: Path, listed: Experiment) -> None:
    study = Study(tmp_path, NAME, listed, SearchPlan(trials=1))
    with pytest.raises(UsageError, match="another `ferry tune` has"):
        Study(tmp_path, NAME, listed, SearchPlan(trials=1))
    study.close()
    Study(tmp_path, NAME, listed, SearchPlan(trials=1)).close()


def test_studies_of_two_names_share_a_file_and_nothing_else(
    tmp_path: Path, listed: Experiment, endless: Experiment
) -> None:
    for name, experiment, count in (("one", listed, 2), ("two", endless, 3)):
        study = Study(tmp_path, name, experiment, SearchPlan(trials=9))
        draw(study, count)
        study.run_id = name
        study.close()
    fresh = Study(tmp_path, "two", endless, SearchPlan(trials=9, fresh=True))
    assert (fresh.trials(), fresh.run_id) == ((), None)
    fresh.close()
    kept = Study(tmp_path, "one", listed, SearchPlan(trials=9))
    assert (len(kept.trials()), kept.run_id) == (2, "one")
    kept.close()


@pytest.mark.parametrize(("pruner", "goes_on"), [("median", False), ("none", True)])
def test_what_is_behind_the_median_is_not_gone_on_with(
    tmp_path: Path, endless: Experiment, pruner: str, goes_on: bool
) -> None:
    study = Study(tmp_path, NAME, endless, SearchPlan(trials=9, pruner=pruner))  # type: ignore[arg-type]
    for _ in range(5):
        asked = study.ask()
        assert asked
        assert study.report(asked[0], epoch(1, 0.9))
        assert study.report(asked[0], epoch(2, 0.95))
        end(study, *asked, accuracy=0.95)
    number, settings = study.ask() or (0, {})
    assert study.report(number, epoch(1, 0.1)) is goes_on
    end(study, number, settings, 0.1, "pruned")
    assert study.trials()[-1].state == "pruned"
    assert study.trials()[-1].settings == settings
    study.close()
