"""The rows that are drawn: a line per epoch, and a line per row of the test set."""

import csv
from io import StringIO

import numpy as np
import torch

from pipeline.records.ready import Split
from pipeline.records.train import Epoch
from pipeline.stages.train import confusion, confusion_csv, history_csv

SPLIT = Split(np.zeros((4, 1)), np.array([0, 1, 1, 2]))


def epoch(accuracy: float | None, loss: float = 0.5) -> Epoch:
    return Epoch(
        epoch=1,
        lr=0.1,
        loss=0.7,
        accuracy=accuracy,
        validation_loss=loss,
        validation_accuracy=accuracy,
        seconds=1.0,
        rows_per_second=4.0,
    )


def test_a_row_is_counted_at_its_actual_and_its_predicted_class() -> None:
    predicted = torch.tensor([0, 2, 1, 2])
    assert confusion(SPLIT, predicted, 3) == ((1, 0, 0), (0, 1, 1), (0, 0, 1))
    lines = confusion_csv(SPLIT, predicted, ("a", "b", "c")).splitlines()
    assert lines == ["actual,predicted", "a,a", "b,c", "b,b", "c,c"]


def test_without_classes_there_is_nothing_but_the_header() -> None:
    assert confusion(SPLIT, None, 0) == ()
    assert confusion_csv(SPLIT, None, ()) == "actual,predicted\n"


def test_history_has_an_empty_cell_where_there_is_no_accuracy() -> None:
    rows = list(csv.DictReader(StringIO(history_csv([epoch(0.25), epoch(None)]))))
    assert [row["validation_accuracy"] for row in rows] == ["0.25", ""]
    assert [row["validation_loss"] for row in rows] == ["0.5", "0.5"]


def test_the_better_epoch_is_the_more_accurate_one_then_the_one_with_less_loss() -> None:
    assert epoch(0.9, 0.8).rank > epoch(0.8, 0.1).rank
    assert epoch(0.9, 0.1).rank > epoch(0.9, 0.8).rank
    assert epoch(None, 0.1).rank > epoch(None, 0.8).rank
