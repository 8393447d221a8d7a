"""What goes wrong in an environment or a reward is said of the rollout it went wrong in, whoever plays."""

import re
import threading

import faulty_envs
import pytest
from waiting import until

from kitchen.adapters.toy.client import ToyService
from kitchen.data.batches import Batches
from kitchen.envs.base import nim_problems
from kitchen.losses.policy import get_objective
from kitchen.rendering.registry import get_renderer
from kitchen.session.kitchen import Kitchen
from kitchen.train.rl import PolicyUpdateSettings, train_rl
from kitchen.train.rollouts import Policy, play_groups
from kitchen.train.trajectories import STOP_REASONS, EpisodeLimits, RolloutFailed
from kitchen.types import AdamParams, SamplingParams
from kitchen.workflows.rl import load_rollouts

SMALL = {
    "backend": "toy", "problems": 4, "batch_size": 2, "group_size": 4, "graded": 2, "max_tokens": 4, "env_timeout": 0.2, "turns": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy():
    service = ToyService()
    renderer = get_renderer("auto", service.get_tokenizer("toy"))
    return service, renderer, SamplingParams(max_tokens=4, stop=tuple(renderer.stop_sequences()))


def trained(toy, env, **limits):
    """Events of the plain loop in an environment."""
    service, renderer, params = toy
    problems = getattr(faulty_envs, env)(2, 0, "train", ())
    learning, losses = PolicyUpdateSettings(get_objective("dr_grpo"), max_answer_tokens=4), service.capabilities().losses
    training = service.create_training_client("toy", None, 0)
    batches = Batches(problems, batch_size=2, epochs=2, seed=0)
    limits = EpisodeLimits(turns=4, env_timeout=0.2, **limits)
    return list(
        train_rl(
            training, batches, renderer, params, learning, lambda step: AdamParams(0.01), losses, 4, limits=limits
        )
    )


@pytest.mark.parametrize("env", faulty_envs.SAYS)
def test_a_fault_is_reported_with_its_rollout(toy, env):
    with pytest.raises(RolloutFailed, match=f"^odd, 'letter [01]', rollout 2, {faulty_envs.SAYS[env]}"):
        trained(toy, env)


@pytest.mark.parametrize("env", faulty_envs.REWARDS)
def test_a_reward_is_reported_with_its_rollout(toy, env):
    with pytest.raises(RolloutFailed, match=f"^question, 'Letter\\?', rollout 1, {faulty_envs.REWARDS[env]}"):
        trained(toy, env)


@pytest.mark.parametrize("env", faulty_envs.GROUPS)
def test_a_group_is_reported_with_its_problem(toy, env):
    with pytest.raises(RolloutFailed, match=f"^{faulty_envs.GROUPS[env]}"):
        trained(toy, env)


@pytest.mark.parametrize("env", [name for name in faulty_envs.SAYS if "hangs" not in name])
def test_what_failed_is_left_out_and_told_of_if_one_says_so(toy, env):
    events = trained(toy, env, on_failure="drop")
    failed = [item for item in events if item.name == "rollout.failed"]
    assert len(failed) == 8 and all(re.search(faulty_envs.SAYS[env], item["error"]) for item in failed), (
        "two of each group of four"
    )
    assert {re.search("rollout [0-9]", item["error"])[0] for item in failed} == {"rollout 2", "rollout 4"}
    batches = [item for item in events if item.name == "rollout.batch"]
    assert [item["episodes"] for item in batches] == [4, 4] and [item["groups"] for item in batches] == [2, 2]
    assert [item.step for item in events if item.name == "train.step"] == [1, 2]


def test_too_small_a_group_teaches_nothing(toy):
    with pytest.raises(
        RolloutFailed, match="no rollouts are left: in every group too many failed. The first: odd, 'letter 0'"
    ):
        trained(toy, "raises", on_failure="drop", smallest_group=3)


def test_a_failed_rollout_is_played_again(toy):
    events = trained(toy, "raises", on_failure="retry", retries=5)
    episodes = [item["episodes"] for item in events if item.name == "rollout.batch"]
    assert episodes == [8, 8] and sum(item.name == "rollout.failed" for item in events) >= 4
    with pytest.raises(RolloutFailed, match="no rollouts are left"):
        trained(toy, "reward_raises", on_failure="retry", retries=1)


def test_a_side_of_a_game_cannot_be_played_again_alone(toy):
    service, renderer, params = toy

    class Forgetful:
        def __init__(self, side):
            self.side = side

        def start(self):
            return self.side.start()

        def step(self, action):
            raise OSError("the board is away")

        def poll(self):
            return self.side.poll()

    problem = nim_problems(1, 0)[0]
    broken = type(problem)("nim", "a heap", lambda count: [Forgetful(side) for side in problem.make(count)])
    policy = Policy(service.create_sampling_client("toy"), renderer, params)
    (group,) = play_groups(policy, [broken], 2, 0, EpisodeLimits(on_failure="retry"))
    assert [one.metadata["stop"] for one in group.discarded] == ["error", "left alone"]
    assert "it cannot be tried again" in group.discarded[0].metadata["error"]


def test_an_endless_episode_is_ended_by_each_limit(toy):
    service, renderer, params = toy
    policy, problems = (
        Policy(service.create_sampling_client("toy"), renderer, params),
        faulty_envs.endless(1, 0, "train", ()),
    )
    found = {}
    for name, limits in {
        "turns": EpisodeLimits(turns=3), "tokens": EpisodeLimits(tokens=60), "time": EpisodeLimits(turns=10**6, tokens=10**6, seconds=0.05),
    }.items():  # fmt: skip
        (group,) = play_groups(policy, problems, 2, 0, limits)
        found |= {one.metadata["stop"]: len(one.transitions) for one in group.trajectories}
        assert found.keys() <= STOP_REASONS.keys() and name in found
    assert found["turns"] == 3 and found["tokens"] < 10
    events = trained(toy, "endless")
    assert all(item["unfinished"] == 1 and item["turns"] == 4 for item in events if item.name == "rollout.batch")


def test_what_hangs_is_left_behind_and_others_go_on(toy):
    service, renderer, params = toy
    before = set(threading.enumerate())

    def left():
        return [one for one in threading.enumerate() if one.name == "kitchen-envs" and one not in before]

    policy = Policy(service.create_sampling_client("toy"), renderer, params)
    problems = faulty_envs.hangs(1, 0, "train", ())
    (group,) = play_groups(policy, problems, 4, 0, EpisodeLimits(env_timeout=0.1, on_failure="drop"))
    assert len(group.trajectories) == 2 and len(group.discarded) == 2
    until(lambda: len(left()) <= 2)
    assert len(left()) == 2, "each hangs in a thread of its own, and no other is left"


@pytest.mark.parametrize(
    "env", ["raises", "not_a_number", "wrong_type", "hangs", "reward_nan", "judge_raises", "make_raises"]
)
def test_in_a_workflow_too(runs, env):
    k = Kitchen("rl_math", env=f"module:faulty_envs:{env}", **SMALL)
    said = {**faulty_envs.SAYS, **faulty_envs.REWARDS, **faulty_envs.GROUPS}[env].replace("4 finite", "[14] finite")
    with pytest.raises(RolloutFailed, match=said):
        k.run()
    (failure,) = [item for item in k.log if item.name == "stage.error"]
    assert re.search(said, failure["error"]) and k.status == "failed"
    k.close()


def test_failed_rollouts_are_kept_in_the_run_and_it_goes_on(runs):
    k = Kitchen("rl_math", env="module:faulty_envs:raises_later", on_failure="drop", **SMALL).run()
    failed = [item for item in k.log if item.name == "rollout.failed"]
    kept = [one for _, group in load_rollouts(k.run_record) for one in group.discarded]
    assert k.status == "completed" and len(kept) == len(failed) == 8
    assert [one.metadata["error"] for one in kept] == [item["error"] for item in failed]
    assert all(len(one.transitions) == 1 and one.metadata["messages"][-1]["role"] == "assistant" for one in kept)
    endless = Kitchen("rl_math", env="module:faulty_envs:endless", remove_constant_reward_groups=True, **SMALL).run()
    assert {item["unfinished"] for item in endless.log if item.name == "rollout.batch"} == {1.0}
