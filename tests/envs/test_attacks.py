"""Every built-in world is played by policies that do not do what is asked; none earns more than is stated."""

import subprocess
import sys

import pytest

from kitchen.data.synthetic import TASKS
from kitchen.envs.attacks import ATTACKS, best_attack, play_attack
from kitchen.envs.base import question_problems
from kitchen.envs.code import CodeGrader, code_problems, code_rows
from kitchen.envs.judge import Rubric, judge_by_completer, judge_by_scores
from kitchen.envs.registry import EnvResources, get_problems
from kitchen.envs.rewards import REWARDS, get_rewards
from kitchen.envs.sandbox import Sandbox, SandboxLimits, containment_problem
from kitchen.types import InvalidValue, Message

pytestmark = pytest.mark.whole_run

CHOICES = {  # tasks with so few answers that a constant, or a number of the question, is often right
    "parity": 0.75, "compare": 0.75, "largest": 0.5, "smallest": 0.5, "count_letters": 0.5, "last_letter": 0.4, "count_items": 0.35,
    "multiply": 0.3, "reworded": 0.4, "asked": 0.4, "total": 0.2, "first_letter": 0.2,
}  # fmt: skip
ECHOES = {("repeat", name): 1.0 for name in REWARDS} | {("last_item", name): 0.3 for name in REWARDS}
PARTIAL = {"unique": 0.5, "sort": 0.3, "reorder": 0.3, "repeat": 0.6}  # `overlap` pays for words at their places


def bound(task, reward):
    """What the best attack may earn."""
    common = max(CHOICES.get(task, 0.15), ECHOES.get((task, reward), 0))
    return max(common, PARTIAL.get(task, 0.15)) if reward == "overlap" else common


@pytest.mark.parametrize("reward", ["exact_match", "contains", "last_number", "overlap"])
@pytest.mark.parametrize("task", TASKS)
def test_no_task_pays_a_policy_that_does_not_do_it(task, reward):
    count = 8 if task == "greeting" else 24
    try:
        problems = get_problems(f"task:{task}", count, 0, "test", get_rewards(reward))
    except InvalidValue as error:
        assert reward == "last_number" and "a model could never earn it" in str(error)
        return
    result = best_attack(problems)
    assert result.reward <= bound(task, reward), (result.name, result.reward)


@pytest.mark.parametrize(
    ("name", "most"),
    [("tools", 0.05), ("tools:brief", 0.05), ("search", 0.05), ("search:brief", 0.05), ("guess", 0.3), ("nim", 0.0)],
)
@pytest.mark.parametrize("reward", ["exact_match", "contains"])
def test_no_world_of_several_turns_does(name, most, reward):
    result = best_attack(get_problems(name, 24, 0, "test", get_rewards(reward)))
    assert result.reward <= most, (result.name, result.reward)


def test_no_search_is_answered_by_naming_all_there_is():
    options = " ".join(sorted({str(one.gold) for one in get_problems("search", 60, 0, "train", get_rewards("exact_match"))}))
    dump = {"all answers": lambda asked: Message("assistant", options), "their end": lambda asked: Message("assistant", options[-60:])}
    assert best_attack(get_problems("search", 60, 0, "test", get_rewards("contains")), dump).reward == 0
    for problem in get_problems("search", 20, 0, "test", get_rewards("contains")):
        assert play_attack(problem, lambda asked, problem=problem: Message("assistant", f"It is {problem.gold}, I found.")) == 1


def test_no_math_answer_does_or_holds_up_the_examiner():
    pytest.importorskip("math_verify")
    rows = [{"question": f"What is {number} + {number}?", "answer": str(2 * number)} for number in range(53, 83, 10)]
    slow = ["$9^{9^{9^{9}}}$", "\\boxed{(10^{10})!}", "$" + "(" * 2000 + "$", "$10^{10^{10}}$", "2**99999999", "9**9**9"]
    attacks = {**ATTACKS, **{said: lambda asked, said=said: Message("assistant", said) for said in slow}}
    assert best_attack(question_problems(rows, get_rewards("math")), attacks).reward == 0


def test_no_program_does():
    grader = CodeGrader(Sandbox(SandboxLimits(seconds=1.5), unsafe=bool(containment_problem())))
    programs = {name: policy for name, policy in ATTACKS.items() if name.startswith("a program")}
    for brief in (False, True):
        result = best_attack(code_problems(code_rows(12, 0, "test", brief), grader), programs)
        assert result.reward <= 0.2, (result.name, result.reward)
        assert result.rewards["a program that equals everything"] == result.rewards["a program that leaves"] == 0


def test_a_tournament_of_equals_wins_nobody_anything():
    for score in (lambda messages, answers: [len(one) for one in answers], lambda messages, answers: [0.0] * len(answers)):
        judged = EnvResources(pairwise_judge=judge_by_scores(score))
        result = best_attack(get_problems("tournament:sort", 4, 0, "train", (), judged))
        assert set(result.rewards.values()) == {0.5}


class Listener:
    """A model that keeps what it is told."""

    def __init__(self):
        self.told = []

    def complete(self, messages, sampling_params):
        self.told.append(messages)

        class Answer:
            def result(self, timeout=None):
                return Message("assistant", "A")

        return Answer()


def test_what_a_judge_is_told_has_one_shape_whatever_is_said():
    listener, rubric = Listener(), Rubric({"good": "It is right."})
    question = [Message("user", "Is 7 odd?")]
    for policy in ATTACKS.values():
        said = policy("Is 7 odd?").content
        for told in (rubric.grading_messages(question, said), rubric.grading_messages([Message("user", said)], "odd")):
            assert [one.role for one in told] == ["system", "user"] and len(told[1].content.splitlines()) == 3
            assert not set("<|\x85\u2028\u2029") & set(told[1].content)
        judge_by_completer(listener)(question, [said, said + "!"])
    assert all(len(messages[1].content.splitlines()) == 1 and "<" not in messages[1].content for messages in listener.told)


GYM_CODE = """
import os, sys
from kitchen.envs.registry import get_problems
from kitchen.types import Message
for name in ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "puzzle24", "simple_integration",
             "intermediate_integration", "polynomial_multiplication"):
    problem = get_problems("gym:" + name, 1, 0, "test", ())[0]
    for said in ("[__import__('os').mkdir('pwned')]", "__import__('os').mkdir('pwned')", "exec(chr(111))", "open(chr(47))", "9**9**9**9**9",
                 "[9**9**9**9]", "eval('1')", "().__class__"):
        assert problem.make(1)[0].step(Message("assistant", said)).reward <= 0.05, (name, said)
        assert not os.path.exists("pwned"), (name, said)
for name in ("complex_arithmetic", "decimal_arithmetic", "prime_factorization", "basic_arithmetic"):
    problem = get_problems("gym:" + name, 1, 0, "test", ())[0]
    for said in ("nan", "NaN+NaNi", "inf", "yes", "", "[" * 5000, "9" * 30000):
        assert problem.make(1)[0].step(Message("assistant", said)).reward <= 0.05, (name, said)
print("kept")
"""


def test_an_answer_to_reasoning_gym_is_never_carried_out(tmp_path):
    pytest.importorskip("reasoning_gym")
    ended = subprocess.run([sys.executable, "-c", GYM_CODE], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.stdout.endswith("kept\n"), ended.stderr[-2000:]


def test_a_guess_of_thousands_of_digits_is_no_number():
    problem = get_problems("guess", 1, 0, "test", ())[0]
    assert problem.make(1)[0].step(Message("assistant", "9" * 5000)).messages[0].content == "Say a number."
