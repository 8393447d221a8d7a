"""What looks wrong is said: in the plan, in the log, in the report; and once the run goes well, nothing is."""

import json

import pytest

from kitchen.diagnostics import Diagnostics
from kitchen.reports.build import show_scores, show_symptoms
from kitchen.session.kitchen import Kitchen

SMALL = {"backend": "toy", "dataset": "builtin:sort[:640]", "epochs": 1, "batch_size": 16, "graded": 30, "max_tokens": 8}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))


def names(session):
    """The symptoms that stand in the log of a session."""
    return [item["symptom"] for item in session.log.named("run.symptom")]


def test_a_warm_up_beyond_the_run_is_said_before_and_in_it():
    with Kitchen("sft", **SMALL, warmup_steps=60) as k:
        assert "warm-up of 60 steps is longer than the run of 40" in repr(k.plan())
        k.run()
        assert names(k)[0] == "peak_not_reached" and max(item["learning_rate"] for item in k.log.named("train.step")) < k.config.learning_rate
        assert "warm-up" in repr(show_symptoms(k.run_record))


def test_a_warm_up_within_the_run_is_not():
    with Kitchen("sft", **SMALL, warmup_steps=4) as k:
        assert "warm-up" not in repr(k.plan())
        k.run()
        assert "peak_not_reached" not in names(k)


def test_what_was_said_before_the_run_was_left_is_not_said_again():
    with Kitchen("sft", **SMALL, warmup_steps=60) as k:
        k.run(until=20)
        k.rewind(step=12)
        k.run()
        assert names(k).count("peak_not_reached") == 1
        assert "peak_not_reached" in Diagnostics(k.log).symptoms()


def test_a_held_out_loss_that_rises_after_an_edit_is_said():
    with Kitchen("sft", **SMALL, warmup_steps=0, evaluate_every=5) as k:
        k.run(until=22)
        k.set(learning_rate=50.0)
        k.run()
        said = " ".join(item["sentence"] for item in k.log.named("run.symptom"))
        assert "held_out_rises" in names(k) and "after learning_rate = 50" in said


def test_results_tell_the_change_with_its_interval():
    with Kitchen("sft", **SMALL) as k:
        k.run()
        results = json.loads((k.run_dir / "artifacts" / "results.json").read_text("utf-8"))
        change = results["change"]
        assert change["low"] <= change["value"] <= change["high"] and change["count"] == 30
        assert "points (" in repr(show_scores(k.run_record)) and "nats/token (" in repr(show_scores(k.run_record))


RLHF = {
    "backend": "toy", "env": "task:parity", "problems": 16, "batch_size": 4, "group_size": 4, "graded": 4, "max_tokens": 3,
    "sft_dataset": "builtin:reworded[:64]", "pair_dataset": "builtin:reworded-pairs[:64]",
}  # fmt: skip


def test_each_phase_of_a_nested_workflow_is_judged_by_its_own_settings():
    with Kitchen("rlhf", **RLHF, warmup_steps=1, learning_rate=3e-3, sft_learning_rate=2e-3, schedule="constant") as k:
        k.run()
        phases, phase, found = iter(("sft", "reward", "rl")), "", {}
        for item in k.log.named("train.start", "run.symptom", "train.step"):
            phase = next(phases) if item.name == "train.start" else phase
            found.setdefault(phase, {"rates": [], "said": []})
            if item.name == "train.step":
                found[phase]["rates"].append(item["learning_rate"])
            elif item.name == "run.symptom" and item["symptom"] == "peak_not_reached":
                found[phase]["said"].append(item["sentence"])
        own = {item["scope"]: item for item in k.log.named("run.scope")}
        for phase, told in own.items():  # what is said agrees with the rates that were taken, in this very phase
            steps, peak, warmup = len(found[phase]["rates"]), told["learning_rate"], told["warmup_steps"]
            assert bool(found[phase]["said"]) == (warmup > steps / 2), phase
            assert max(found[phase]["rates"]) == pytest.approx(peak * min(1, steps / warmup))
        assert set(own) == {"sft", "reward", "rl"}
        assert [told["warmup_steps"] for told in own.values()] == [10, 20, 1] and own["sft"]["learning_rate"] == 2e-3
        assert "of 10 steps is longer than the run of 2" in found["sft"]["said"][0] and not found["rl"]["said"]
        watched = Diagnostics(k.log)
        assert watched.settings_in_force["config.warmup_steps"] == 1 and "model" not in repr(watched.symptoms())


def test_a_nested_run_is_taken_up_after_an_edit(tmp_path):
    with Kitchen("rlhf", **RLHF, schedule="constant", warmup_steps=1, run_dir=tmp_path / "run") as k:
        k.run(until=lambda item: item.name == "train.step" and k.stage_status["rl/start_rl"] == "done")
        k.set(learning_rate=0.04)
        k.run(until=2)  # it holds from the next round on
        assert Diagnostics(k.log).settings_in_force["config.learning_rate"] == 0.04
    with Kitchen.open(tmp_path / "run") as k:
        k.run()
        assert list(k.log.named("train.step"))[-1]["learning_rate"] == 0.04 and k.status == "completed"
