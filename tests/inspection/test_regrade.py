"""An evaluation is graded by another measure without a sampler, from a session, a closed run, and rollouts."""

import pytest
from small_settings import SMALL_SETTINGS

from kitchen.evaluation import token_f1
from kitchen.inspection.regrade import read_answers, regrade, regrade_rollouts
from kitchen.session.kitchen import Kitchen
from kitchen.types import InvalidValue, UnknownName
from kitchen.workflows.rl import load_rollouts


def calls(k):
    return [item for item in k.log if item.name == "port.call" and item["verb"] in ("sample", "forward")]


@pytest.mark.parametrize("name", ["sft", "dpo", "rl_math", "distill_on_policy"])
def test_every_evaluation_can_be_graded_anew(runs, name):
    k = Kitchen(name, backend="toy", **SMALL_SETTINGS[name]).run()
    count = len(k.log)
    found = k.regrade("token_f1")
    second = "teacher" if name == "distill_on_policy" else "after"
    assert [one.label for one in found.rows][:2] == ["before", second]
    for one in found.rows:
        wanted = [token_f1(answer.text, answer.question.reference) for answer in one.answers]
        assert list(one.grades) == wanted and one.new_mean[0] == pytest.approx(sum(wanted) / len(wanted))
    assert len(k.log) == count and "graded anew by token_f1" in repr(found)
    same = k.regrade(lambda answer, row: 1.0)
    assert all(one.new_mean[0] == 1 for one in same.rows)
    with pytest.raises(UnknownName, match="did you mean 'token_f1'"):
        k.regrade("token_f2")
    k.close()
    kept = regrade(read_answers(k.run_record), "token_f1")
    mine = {one.label: one.grades for one in found.rows}
    assert {one.label: one.grades for one in kept.rows} == {label: mine[label] for label in ("before", "after")}
    closed = Kitchen.open(k.run_dir)
    assert closed.regrade("token_f1").rows[0].grades == found.rows[0].grades
    closed.close()


def test_rollouts_by_the_reward_they_had_are_as_they_were(runs):
    settings = {**SMALL_SETTINGS["rl_math"], "env": "task:parity", "rewards": {"contains": 1.0, "overlap": 0.5}}
    k = Kitchen("rl_math", backend="toy", **settings).run()
    same = regrade_rollouts(k.run_record, {"contains": 1.0, "overlap": 0.5})
    assert len(same) == 2 and all(old == pytest.approx(new) for _, old, new in same)
    other = regrade_rollouts(k.run_record, lambda answer, row: float(row["answer"] in ("odd", "even")))
    assert [new for *_, new in other] == [1.0, 1.0]
    assert sum(len(group.trajectories) for _, group in load_rollouts(k.run_record)) == 32
    k.close()


def test_what_has_not_been_evaluated_cannot_be_graded(runs):
    k = Kitchen("sft", backend="toy", **SMALL_SETTINGS["sft"]).run(until="render")
    with pytest.raises(InvalidValue, match="has not evaluated anything yet"):
        k.regrade("contains")
    k.close()
