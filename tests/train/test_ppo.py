"""A critic beside the policy: credit as the paper defines it, and learning without groups."""

import numpy as np
import pytest

from kitchen.adapters.toy.client import ToyService
from kitchen.envs.base import guess_problems, question_problems
from kitchen.envs.rewards import Reward
from kitchen.losses.policy import OBJECTIVES, get_objective
from kitchen.losses.value import ScalarHead
from kitchen.rendering.registry import get_renderer
from kitchen.session.kitchen import Kitchen
from kitchen.train.ppo import Critic, _policy_and_critic_data, learn_with_critic
from kitchen.train.rl import PolicyUpdateSettings
from kitchen.train.rollouts import Policy, RolloutRound, play_groups
from kitchen.train.trajectories import EpisodeLimits
from kitchen.types import AdamParams, SamplingParams


@pytest.fixture(scope="module")
def toy():
    service = ToyService()
    renderer = get_renderer("auto", service.get_tokenizer("toy"))
    return service, renderer, SamplingParams(max_tokens=3, stop=tuple(renderer.stop_sequences()))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.7, 0.0), (1.0, 1.0)])
def test_credit_over_turns_is_the_sum_it_is_defined_by(toy, gamma, lam):
    """Values are asked of a sampler, one prefix at a time; advantages are the double sum of the paper's equation 16."""
    service, renderer, params = toy
    policy = Policy(service.create_sampling_client("toy"), renderer, params)
    groups = play_groups(policy, guess_problems(4, seed=1, max_number=3, turns=3), 4, 3, EpisodeLimits(turns=2))
    critic = Critic(service.create_training_client("toy", None, 0), ScalarHead(66, -5.0), gamma=gamma, lam=lam, whiten=False)
    data, lessons, _ = _policy_and_critic_data(groups, critic, PolicyUpdateSettings(OBJECTIVES["ppo"], max_answer_tokens=3))
    episodes = [one for group in groups for one in group.trajectories]
    stops = {one.metadata["stop"] for one in episodes}
    assert stops == {"turns"} or stops == {"turns", "done"}
    advantages, returns = (
        np.concatenate([one.loss_fn_inputs[name][one.weights != 0] for one in rows])
        for name, rows in (("advantages", data), ("returns", lessons))
    )
    place = 0
    for one in episodes:
        values, rewards = [], []
        for turn in one.transitions:
            tokens = list(turn.prompt)
            for token in turn.completion.tokens:
                values.append(value(policy.sampler, tokens))
                rewards.append(0.0)
                tokens.append(token)
            rewards[-1] += turn.reward
        rewards[-1] += one.final_reward
        values.append(value(policy.sampler, tokens) if one.metadata["stop"] == "turns" else 0.0)
        delta = [reward + gamma * values[t + 1] - values[t] for t, reward in enumerate(rewards)]
        wanted = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]
        here = slice(place, place := place + len(rewards))
        assert advantages[here] == pytest.approx(wanted, abs=1e-4)
        assert returns[here] == pytest.approx(np.add(wanted, values[:-1]), abs=1e-4)
    assert place == len(advantages)


def value(sampler, tokens):
    p = np.exp(sampler.compute_logprobs([*tokens, 66]).result()[-1])
    return float(np.log(p / (1 - p)) + 5.0)


def test_a_policy_learns_from_single_rollouts(toy):
    service, renderer, params = toy
    vowels = Reward("vowels", lambda answer, row: sum(letter in "aeiou" for letter in answer) / 3, gold=None)
    problems = question_problems([{"question": text, "answer": ""} for text in ("Sing!", "Say more!")] * 8, [vowels])
    training = service.create_training_client("toy", None, 0)
    models = [service.create_training_client("toy", None, 1) for _ in range(2)]
    critic, losses, rewards = Critic(models[0], ScalarHead(66), models[1]), service.capabilities().losses, []
    learning = PolicyUpdateSettings(get_objective("ppo"), max_answer_tokens=3, num_substeps=2)
    for step in range(30):
        groups = play_groups(Policy(training.create_sampling_client(), renderer, params), problems, 1, step)
        rewards.append(np.mean([group.rewards for group in groups]))
        rollout_round = RolloutRound(step, tuple(groups), 0.0)
        list(learn_with_critic(training, rollout_round, learning, critic, AdamParams(0.01), AdamParams(0.003), losses))
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.3


def test_a_run_with_a_critic_goes_back_and_comes_to_the_same_end(runs):
    settings = {
        "backend": "toy", "env": "guess", "problems": 8, "batch_size": 4, "group_size": 2, "graded": 4, "max_tokens": 3,
        "turns": 3,
        "baseline": "critic", "objective": "ppo", "num_substeps": 2, "value_clip": 0.2, "snapshot_every": 1,
    }  # fmt: skip
    k = Kitchen("rl_math", **settings).run()
    straight = k.digest()
    assert sum(item.name == "train.critic" for item in k.log) == 4
    assert k.rewind(step=2).run().digest() == straight
    other = Kitchen("rl_math", **settings).run(until=2)
    other.close()
    again = Kitchen.open(other.run_dir).run()
    assert again.digest() == straight
    again.close()
    k.close()
