"""Environments with something wrong in them, by name: `module:faulty_envs:raises` and its like."""

import itertools
import math
import threading
from dataclasses import dataclass, field
from functools import partial

from kitchen.envs.base import Problem, QuestionEnv, Step, independent_envs
from kitchen.envs.rewards import Reward
from kitchen.types import Message

NEVER = threading.Event()  # nobody sets it


@dataclass
class Odd:
    """An environment whose every other episode does something else than it should."""

    wrong: object
    when: int = 0  # at the start, or at the n-th action
    number: int = field(default_factory=itertools.count().__next__)
    acted: int = 0

    def start(self):
        return self.wrong() if self.when == 0 and self.number % 2 else [Message("user", "Say a letter.")]

    def step(self, action):
        self.acted += 1
        if self.acted == self.when and self.number % 2:
            return self.wrong()
        if self.acted < 2:
            return Step((Message("user", "Another."),), done=False)
        return Step(reward=len(set(action.content)) / 4)


def raised():
    raise OSError("the game is away")


def faulty_env(wrong, when=1):
    """An environment of such episodes; of each group every other one is whole."""

    def problems(count, seed, split, rewards):
        made = [itertools.count() for _ in range(count)]
        return [
            Problem("odd", f"letter {place}", partial(make, numbers))
            for place, numbers in enumerate(made)
        ]

    def make(numbers, count):
        return [Odd(wrong, when, next(numbers)) for _ in range(count)]

    return problems


WRONGS = {
    "raises": (raised, 1),
    "raises_at_start": (raised, 0),
    "raises_later": (raised, 2),
    "not_a_number": (lambda: Step(reward=math.nan), 1),
    "infinite": (lambda: Step(reward=math.inf), 2),
    "part_not_a_number": (lambda: Step(reward=1.0, parts={"style": math.nan}), 1),
    "wrong_type": (lambda: 1.0, 1),
    "wrong_reward": (lambda: Step(reward="1"), 1),  # type: ignore[arg-type]
    "wrong_messages": (lambda: Step(("Another.",), done=False), 1),  # type: ignore[arg-type]
    "wrong_opening": (lambda: "Say a letter.", 0),
    "nothing_to_answer": (lambda: Step(done=False), 1),
    "hangs": (NEVER.wait, 1),
    "hangs_at_start": (NEVER.wait, 0),
}
for _name, (_wrong, _when) in WRONGS.items():
    globals()[_name] = faulty_env(_wrong, _when)

SAYS = {  # what the report says of each
    "raises": "turn 1: OSError: the game is away",
    "raises_at_start": "turn 1: OSError: the game is away",
    "raises_later": "turn 2: OSError: the game is away",
    "not_a_number": "turn 1: InvalidValue: reward must be a finite number, not nan",
    "infinite": "turn 2: InvalidValue: reward must be a finite number, not inf",
    "part_not_a_number": "turn 1: InvalidValue: style must be a finite number, not nan",
    "wrong_type": "turn 1: InvalidValue: step must give a Step, not float",
    "wrong_reward": "turn 1: InvalidValue: reward must be a finite number, not '1'",
    "wrong_messages": "turn 1: InvalidValue: a step's messages must give a list of messages",
    "wrong_opening": "turn 1: InvalidValue: start must give a list of messages, not 'Say a letter.'",
    "nothing_to_answer": "turn 1: InvalidValue: a step that is neither done nor waiting must give",
    "hangs": "turn 1: TimeoutError: it has not returned after 0.2 s",
    "hangs_at_start": "turn 1: TimeoutError: it has not returned after 0.2 s",
}


class Endless:
    """An environment that is never done."""

    def start(self):
        return [Message("user", "On?")]

    def step(self, action):
        return Step((Message("user", "On?"),), done=False)


def endless(count, seed, split, rewards):
    return [Problem("endless", "on and on", partial(independent_envs, Endless)) for _ in range(count)]


def bad_reward(score):
    """Questions whose reward is a function of ours."""

    def problems(count, seed, split, rewards):
        row, reward = {"question": "Letter?", "answer": "a"}, Reward("mine", score, gold=None)
        return [Problem("question", "Letter?", partial(independent_envs, partial(QuestionEnv, row, [reward]))) for _ in range(count)]

    return problems


reward_raises = bad_reward(lambda answer, row: 1 / 0)
reward_nan = bad_reward(lambda answer, row: math.nan)
reward_text = bad_reward(lambda answer, row: "good")
reward_hangs = bad_reward(lambda answer, row: NEVER.wait() or 0.0)
REWARDS = {
    "reward_raises": "turn 1: RewardFailed: reward 'mine' failed on .*: ZeroDivisionError",
    "reward_nan": "turn 1: RewardFailed: reward 'mine' gave nan for",
    "reward_text": "turn 1: RewardFailed: reward 'mine' gave 'good' for",
    "reward_hangs": "turn 1: TimeoutError: it has not returned after 0.2 s",
}


def make_raises(count, seed, split, rewards):
    return [Problem("odd", "none", lambda count: raised()) for _ in range(count)]


def make_too_few(count, seed, split, rewards):
    return [Problem("odd", "one", lambda count: [Endless()]) for _ in range(count)]


def judged_env(judge):
    def problems(count, seed, split, rewards):
        return [Problem("judged", "letters", partial(independent_envs, partial(Odd, raised, 9, 0)), judge=judge) for _ in range(count)]

    return problems


judge_raises = judged_env(lambda answers: raised())
judge_nan = judged_env(lambda answers: [math.nan] * len(answers))
judge_short = judged_env(lambda answers: [1.0])
judge_hangs = judged_env(lambda answers: NEVER.wait())
GROUPS = {
    "make_raises": "odd, 'none', at the start: OSError: the game is away",
    "make_too_few": "odd, 'one': asked for 4 episodes, it made 1",
    "judge_raises": "judged, 'letters', the judge: OSError: the game is away",
    "judge_nan": r"judged, 'letters': the judge must give 4 finite numbers, not \[nan, nan, nan, nan\]",
    "judge_short": r"judged, 'letters': the judge must give 4 finite numbers, not \[1.0\]",
    "judge_hangs": "judged, 'letters', the judge: TimeoutError: it has not returned after 0.2 s",
}
