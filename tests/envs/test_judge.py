"""Environments that others judge, in whole runs: a reward model compares, a model of one's own grades in words."""

import numpy as np
import pytest
from small_settings import SMALL_SETTINGS

from kitchen.adapters.toy.client import ToyService
from kitchen.data.batches import Batches
from kitchen.data.synthetic import generate_task_rows
from kitchen.envs.judge import _win_rates, judge_by_scores
from kitchen.losses.value import ScalarHead
from kitchen.rendering.base import to_datum
from kitchen.rendering.registry import get_renderer
from kitchen.session.kitchen import Kitchen
from kitchen.train.preference import RewardModel
from kitchen.train.sft import adam_schedule, train_sft
from kitchen.types import AdamParams, InvalidValue, Message
from kitchen.workflows.rl import load_reward_model, load_rollouts

SMALL = {"backend": "toy", "problems": 8, "batch_size": 4, "group_size": 4, "graded": 4, "max_tokens": 6}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The folder of a run that made a reward model."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    Kitchen("reward_model", backend="toy", run_dir=folder, **SMALL_SETTINGS["reward_model"]).run().close()
    return folder


def judge_saying(text, folder):
    """A toy that has learnt to say one thing, exported."""
    service = ToyService()
    renderer = get_renderer("auto", service.get_tokenizer("toy"))
    training = service.create_training_client("toy", None, 0)
    lesson = [to_datum(renderer, [Message("user", asked), Message("assistant", text)]) for asked in ("Grade!", '"}', "x")]
    batches = Batches(lesson, batch_size=3, epochs=200, seed=0)
    list(train_sft(training, batches, adam_schedule(AdamParams(0.02), len(batches))))
    return str(training.save_weights(folder).result(60).path)


def test_a_tournament_by_a_reward_model_shares_out_the_wins(runs, scored):
    k = Kitchen("rl_math", env="tournament:sort", judge=str(scored), **SMALL).run()
    assert k.status == "completed"
    groups = [group for _, group in load_rollouts(k.run_record)]
    judge = load_reward_model(scored, ToyService())
    assert isinstance(judge, RewardModel) and isinstance(judge.head, ScalarHead) and len(groups) == 8
    for group in groups:
        answers = [one.metadata["messages"][-1].get("content", "") for one in group.trajectories]
        question = [Message("user", group.text)]
        scores = np.array(judge(question, answers))
        beaten = [((one > scores).sum() + 0.5 * ((one == scores).sum() - 1)) / 3 for one in scores]
        assert group.rewards == pytest.approx(beaten) and group.rewards.mean() == pytest.approx(0.5)
        assert [reward for reward, _ in _win_rates(judge_by_scores(judge)(question, answers))] == pytest.approx(beaten)
    components = {item["component"] for item in k.log if item.name == "rollout.reward"}
    assert components == {"total", "won", "unreadable"}


def test_a_rubric_is_graded_by_a_model_of_the_backend(runs, tmp_path):
    asked = {"rubric": {"good": "The answer is right."}, "env": "rubric:parity", **SMALL}
    k = Kitchen("rl_math", judge=judge_saying("good: 7", tmp_path / "judge"), **asked).run()
    rewards = {item["component"]: item["value"] for item in k.log if item.name == "rollout.reward"}
    assert rewards == {"total": pytest.approx(0.7), "good": pytest.approx(0.7), "unreadable": 0.0}
    assert [item["accuracy"] for item in k.log if item.name == "evaluate.answers"] == pytest.approx([0.7, 0.7])
    with pytest.raises(InvalidValue, match="the judge grades the row's own answer '(odd|even)' in a way that cannot be read"):
        Kitchen("rl_math", judge=judge_saying("well", tmp_path / "mumbler"), **asked).run()


def test_whoever_is_missing_is_said_before_anything_is_opened(runs):
    for settings, message in [
        ({"env": "tournament:sort"}, "'tournament:sort' needs a judge"),
        ({"env": "rubric:sort", "rubric": {"good": "?"}}, "'rubric:sort' needs a judge"),
        ({"env": "rubric:sort", "judge": "toy"}, "at least one criterion"),
        ({"env": "tournament:srot", "judge": "toy"}, "did you mean 'sort'"),
    ]:
        k = Kitchen("rl_math", **settings, **SMALL)
        with pytest.raises(InvalidValue, match=message):
            k.run()
        assert not [item for item in k.log if item.name == "port.call" and item["verb"] == "create_training_client"]
        k.close()


def test_a_run_judged_by_others_is_rewound_and_comes_to_the_same_end(runs, scored):
    settings = {"env": "tournament:sort", "judge": str(scored), **SMALL}
    straight = Kitchen("rl_math", **settings).run().digest()
    assert Kitchen("rl_math", **settings).run().rewind(step=1).run().digest() == straight


def test_tasks_that_are_judged_are_the_tasks(runs):
    rows = {row["messages"][0]["content"] for row in generate_task_rows("sort", 8, 0)}
    k = Kitchen("rl_math", env="tournament:sort", judge="toy", **SMALL).run(until="make_problems")
    assert {problem.text for problem in k.state["problems"].train} == rows
