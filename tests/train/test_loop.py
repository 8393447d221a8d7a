"""The loop that the pages teach is the loop that the recipes run."""

import sys
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from kitchen.adapters.toy.client import ToyService
from kitchen.session.kitchen import Kitchen
from kitchen.telemetry import event_content
from kitchen.train.distillation import learn_from_teachers, on_policy_data
from kitchen.train.ppo import learn_with_critic
from kitchen.train.rl import learn_from_rollouts, take_steps, train_rl
from kitchen.train.rollouts import collect_rollouts, play_groups, rollout_events
from kitchen.workflows import rl
from kitchen.workflows.base import open_training_client

SONGS = {
    "backend": "toy", "env": "module:song_env:songs", "problems": 8, "batch_size": 4, "group_size": 2, "graded": 2, "max_tokens": 3,
    "epochs": 2, "lora_dropout": 0.1,
}  # fmt: skip
BOTH = (collect_rollouts, play_groups, rollout_events, take_steps)  # what each of these recipes goes through
TAUGHT = {"teacher_dataset": "builtin:sort[:64]", "env": "task:sort"}
LEARNING = {"objective": "dr_grpo", "num_substeps": 2}


def counted(work, functions):
    """How often each function was entered, in any thread; a generator is entered once, whatever it yields."""
    codes, entered = {(function.__code__.co_filename, function.__qualname__): function.__name__ for function in functions}, set()

    def key(frame):  # and not the code itself, which a measurement of coverage replaces
        return frame.f_code.co_filename, frame.f_code.co_qualname

    def look(frame, what, _):
        if what == "call" and key(frame) in codes:
            entered.add(frame)  # kept, so that no other frame can have its place in memory

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Counter(codes[key(frame)] for frame in entered)


@pytest.mark.parametrize(
    ("recipe", "settings", "learn"),
    [
        ("rl_math", LEARNING, (learn_from_rollouts,)),
        ("rl_math", {**LEARNING, "max_steps_off_policy": 2}, (learn_from_rollouts,)),
        ("rl_math", {**LEARNING, "num_minibatches": 2}, (learn_from_rollouts,)),
        ("rl_math", {**LEARNING, "baseline": "critic", "objective": "ppo"}, (learn_with_critic,)),
        ("distill_on_policy", TAUGHT, (learn_from_teachers, on_policy_data)),
    ],
)
def test_a_recipe_goes_through_the_functions_of_the_page(runs, recipe, settings, learn):
    k = Kitchen(recipe, **{**SONGS, **settings})
    every = (*BOTH, learn_from_rollouts, learn_with_critic, learn_from_teachers, on_policy_data)
    found = counted(k.run, every)
    rounds = sum(item.name == "rollout.batch" for item in k.log)
    k.close()
    assert rounds == 4 * settings.get("num_minibatches", 1)
    assert found.pop("play_groups") > rounds, "held-out problems are played as well"
    assert found == dict.fromkeys((one.__name__ for one in (*BOTH, *learn) if one is not play_groups), rounds)


@dataclass(frozen=True)
class Rounds:
    """The problems of a run's rounds, as batches for the loop."""

    rows: Any
    config: Any

    @property
    def epochs(self):
        return self.config.epochs

    def __len__(self):
        return rl._count_rounds(self.config, len(self.rows))

    def __iter__(self):
        return (rl._problems_of_round(self.rows, self.config, number) for number in range(len(self)))


def test_the_loop_of_the_page_does_what_the_recipe_does_to_the_bit(runs):
    k = Kitchen("rl_math", **SONGS, **LEARNING).run()
    config, renderer = k.config, k.state["renderer"]
    service = ToyService()
    training = open_training_client(config, service, config.model)
    problems: Any = Rounds(k.state["problems"].train, config)
    settings, total = rl._update_settings(config), len(problems) * config.num_substeps
    events = train_rl(
        training, problems, renderer, rl.rollout_sampling_params(config, renderer, config.temperature), settings,
        lambda step: rl.adam_at(config, step, total), service.capabilities().losses, config.group_size, config.seed,
        limits=rl.episode_limits(config),
    )  # fmt: skip
    names = ("rollout.batch", "rollout.reward", "train.policy", "train.step")
    by_page, by_recipe = (
        [event_content(item) for item in log if item.name in names] for log in (events, k.log)
    )
    assert by_page == by_recipe and sum(name == "train.step" for name, *_ in by_page) == 8
    prompt = renderer.tokenizer.encode("Sing!")
    both = [
        one.create_sampling_client().compute_logprobs(prompt).result()
        for one in (training, k.state["training"])
    ]
    assert both[0] == both[1]
    k.close()
