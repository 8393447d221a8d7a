"""What a comparison marks as best is better: a test over the items says so, and numbers without one have no mark."""

import numpy as np
import pytest

from kitchen.config import ExperimentSpec
from kitchen.intervals import values_to_text
from kitchen.reports.compare import compare
from kitchen.session.kitchen import Kitchen
from kitchen.store.run import Run
from kitchen.telemetry import event

SMALL = {"backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 1, "batch_size": 16, "graded": 1}


def a_run(path, grades, losses, items="q", told=True, **config):
    """A run that ended with these grades and held-out losses; whether its log tells those of each item."""
    run = Run.create(ExperimentSpec(recipe="sft", config=config), path)
    each = {"items": items, "grades": values_to_text(grades)} if told else {}
    rows = {"items": items, "row_losses": values_to_text(losses), "row_tokens": values_to_text([3.0] * len(losses))} if told else {}
    run.log.append(event("train.step", 1, loss=float(losses[0])))
    run.log.append(event("train.evaluate", 1, split="test", loss=float(np.mean(losses)), perplexity=1.0, **rows))
    run.log.append(event("evaluate.answers", label="after", split="test", metric="exact_match", accuracy=float(np.mean(grades)), **each))
    run.close()
    return run


def marked(both):
    """Names of the measurements that have a best, with the marks of the runs."""
    return {row[0][0]: [best for _, best in row[1:]] for row in both._number_rows() if any(best for _, best in row)}


ACCURACY, LOSS = "accuracy, after, test, exact match · evaluate.answers", "loss, test · train.evaluate (nats/token)"


def generated(seed, right, count=60, shift=0.0):
    """Grades of questions that are equally hard for every run, and losses of rows that are."""
    noise = np.random.default_rng(seed)
    grades = (np.linspace(0, 1, count) + 0.2 * noise.normal(size=count) < right).astype(float)
    return grades, np.linspace(1, 3, count) + shift + 0.05 * noise.normal(size=count)


def test_what_is_surely_better_is_marked(tmp_path):
    both = compare(a_run(tmp_path / "a", *generated(0, 0.9)), a_run(tmp_path / "b", *generated(1, 0.3, shift=0.4)))
    found = {name.replace("_", " "): marks for name, marks in marked(both).items()}
    assert found[ACCURACY] == [True, False] and found[LOSS] == [True, False]
    assert not any(name.startswith("loss · train.step") for name in found), "a training loss has no test behind it"
    assert "◂ better than every other run" in repr(both)


def test_what_may_be_luck_is_not(tmp_path):
    both = compare(a_run(tmp_path / "a", *generated(0, 0.52)), a_run(tmp_path / "b", *generated(1, 0.5, shift=0.002)))
    assert marked(both) == {} and repr(both).count(", not distinguishable") >= 2


def test_the_best_of_three_is_told_from_each(tmp_path):
    runs = [a_run(tmp_path / name, *generated(0, right, shift=shift)) for name, right, shift in (("a", 0.9, 0), ("b", 0.9, 0), ("c", 0.1, 1))]
    assert marked(compare(*runs)) == {}, "two of them are alike: neither is the best"


def test_other_questions_are_compared_as_two_samples(tmp_path):
    both = compare(a_run(tmp_path / "a", *generated(0, 0.95)), a_run(tmp_path / "b", *generated(1, 0.05), items="others"))
    found = {name.replace("_", " "): marks for name, marks in marked(both).items()}
    assert found == {ACCURACY: [True, False]}, "losses of other rows are not compared at all"


def test_a_log_that_tells_no_items_has_no_best(tmp_path):
    both = compare(*(a_run(tmp_path / name, *generated(0, right), told=False) for name, right in (("a", 0.9), ("b", 0.1))))
    assert marked(both) == {} and "not distinguishable" not in repr(both)


def test_sessions_are_compared_by_the_rows_that_both_held_out(tmp_path):
    sessions = [
        Kitchen("sft", **SMALL, learning_rate=rate, warmup_steps=0, run_dir=tmp_path / str(rate)).run() for rate in (1e-6, 3e-2)
    ]
    found = marked(compare(*sessions))
    assert found[LOSS] == [False, True] and not any(name.startswith("loss · train.step") for name in found)
    assert compare(*sessions).summaries[0].metric("evaluate.answers.accuracy[after,test,exact_match]") == pytest.approx(0.0)
    for session in sessions:
        session.close()
