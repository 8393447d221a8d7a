"""What a comparison marks as best is better: numbers of different loss functions are not held against each other."""

from itertools import pairwise

import pytest

from kitchen.config import ExperimentSpec
from kitchen.reports.compare import compare
from kitchen.session.kitchen import Kitchen
from kitchen.store.run import Run
from kitchen.telemetry import event

SMALL = {"backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 1, "batch_size": 16, "graded": 1}


def a_run(path, value, **config):
    """A run of one step that ended at this loss."""
    run = Run.create(ExperimentSpec(recipe="preference", config=config), path)
    run.log.append(event("train.step", 1, loss=value))
    run.log.append(event("train.pairs", 1, split="test", loss=value, margin=10 * value, accuracy=1 - value / 2))
    run.log.append(event("train.evaluate", 1, split="test", loss=value))
    run.close()
    return run


def marked(both):
    """Names of the measurements that have a best, with the marks of the runs."""
    return {row[0][0]: [best for _, best in row[1:]] for row in both._number_rows() if any(best for _, best in row)}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"preference_loss": "dpo"}, {"preference_loss": "ipo_mean"}),
        ({"preference_loss": "dpo", "beta": 0.1}, {"preference_loss": "dpo", "beta": 0.3}),
        ({"loss": "cross_entropy"}, {"loss": "dft"}),
        ({"objective": "grpo"}, {"loss": "cross_entropy"}),
    ],
)
def test_losses_of_different_functions_have_no_best(tmp_path, first, second):
    both = compare(a_run(tmp_path / "a", 0.4, **first), a_run(tmp_path / "b", 0.7, **second))
    assert set(marked(both)) == {"accuracy, test · train.pairs", "loss, test · train.evaluate (nats/token)"}
    assert not any("◂ 0.4" in line for line in repr(both).splitlines() if "train.step" in line)


def test_losses_of_one_function_have_a_best(tmp_path):
    settings = {"preference_loss": "dpo", "beta": 0.1}
    both = compare(a_run(tmp_path / "a", 0.4, **settings), a_run(tmp_path / "b", 0.7, **settings, learning_rate=1e-3))
    found = marked(both)
    assert found["loss · train.step (nats/token)"] == [True, False] and "margin, test · train.pairs (nats)" in found


def test_an_edit_of_the_loss_makes_another_loss(tmp_path):
    runs = [a_run(tmp_path / name, loss, beta=0.1) for name, loss in (("a", 0.4), ("b", 0.7))]
    edited = Run(tmp_path / "b")
    edited.log.append(event("config.edit", 1, setting="beta", before=0.1, after=0.3, position=[]))
    edited.close()
    assert "loss · train.step (nats/token)" not in marked(compare(runs[0], edited))


def test_sessions_that_minimise_cross_entropy_and_dft(tmp_path):
    losses = ("cross_entropy", "dft", "cross_entropy")
    sessions = [
        Kitchen("sft", **SMALL, loss=loss, learning_rate=rate, run_dir=tmp_path / str(rate)).run()
        for loss, rate in zip(losses, (1e-3, 2e-3, 3e-3), strict=True)
    ]
    found = [any(name.startswith("loss · train.step") for name in marked(compare(*two))) for two in pairwise(sessions)]
    assert found == [False, False]
    assert any(name.startswith("loss · train.step") for name in marked(compare(sessions[0], sessions[2])))
    for session in sessions:
        session.close()
