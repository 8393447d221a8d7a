"Every task's answers, recomputed by other means from the prompt alone; splits; determinism."

import json
import re
import subprocess
import sys

import pytest

from kitchen.data.synthetic import (
    TASKS,
    generate_task_rows,
    mixture,
    multi_turn_rows,
    preference_pairs,
    split_of,
)

INTEGER = re.compile(r"\d+")


def prompt_of(row):
    return row["messages"][0]["content"]


def integers(text):
    return [int(found) for found in INTEGER.findall(text)]


def listed(text):
    return text.rstrip("?").split(": ")[-1].split()


def subject(text):
    "The word a question about letters is about: the only one that is not part of a wording."
    common = set(
        "Write in capital letters Uppercase Spell How do you spell backwards Reverse the of many "
        "are Count What is first last letter With which does begin end".split()
    )
    (word,) = set(re.findall(r"[A-Za-z]+", text)) - common
    return word


SOLVERS = {
    "add": lambda text: sum(integers(text)),
    "subtract": lambda text: abs(integers(text)[0] - integers(text)[1]),
    "multiply": lambda text: integers(text)[0] * integers(text)[1],
    "compare": lambda text: max(integers(text)),
    "successor": lambda text: integers(text)[0] + 1,
    "parity": lambda text: ["even", "odd"][integers(text)[0] % 2],
    "uppercase": lambda text: subject(text).upper(),
    "spell": lambda text: "-".join(subject(text)),
    "backwards": lambda text: "".join(reversed(subject(text))),
    "count_letters": lambda text: len(subject(text)),
    "first_letter": lambda text: subject(text)[0],
    "last_letter": lambda text: subject(text)[-1],
    "sort": lambda text: " ".join(map(str, sorted(integers(text)))),
    "largest": lambda text: max(integers(text)),
    "smallest": lambda text: min(integers(text)),
    "total": lambda text: sum(integers(text)),
    "count_items": lambda text: len(listed(text)),
    "last_item": lambda text: listed(text)[-1],
    "reorder": lambda text: " ".join(reversed(listed(text))),
    "unique": lambda text: " ".join(dict.fromkeys(listed(text))),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_answers_agree_with_an_independent_solution(name):
    for row in generate_task_rows(name, 200, seed=3):
        assert row["answer"] == str(SOLVERS[name](prompt_of(row))), prompt_of(row)


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_no_prompt_whatever_the_seed(name):
    train = {prompt_of(row) for seed in range(3) for row in generate_task_rows(name, 200, seed)}
    held_out = [prompt_of(row) for row in generate_task_rows(name, 8, seed=9, split="test")]
    assert len(set(held_out)) == len(held_out)
    assert not train & set(held_out)
    assert {split_of(prompt) for prompt in train} == {"train"}


@pytest.mark.parametrize("name", TASKS)
def test_one_prompt_has_one_answer(name):
    answers = {}
    for row in generate_task_rows(name, 500, seed=0) + generate_task_rows(name, 8, seed=0, split="test"):
        assert answers.setdefault(prompt_of(row), row["answer"]) == row["answer"]


def plain(row):
    "The answer without the manner in which the task `served` dresses those of `asked`."
    if row["task"] != "served":
        return row["answer"]
    (answer,) = re.fullmatch(r"Gladly: (.+)\.", row["answer"]).groups()
    return answer


def test_no_two_tasks_share_a_prompt_and_disagree():
    answers = {}
    for row in mixture(dict.fromkeys(TASKS, 1.0), 5000, seed=0):
        assert answers.setdefault(prompt_of(row), plain(row)) == plain(row)


def test_rows_do_not_depend_on_the_process():
    code = (
        "import json; from kitchen.data.synthetic import TASKS, mixture;"
        "print(json.dumps(mixture(dict.fromkeys(TASKS, 1.0), 50, seed=4)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == mixture(dict.fromkeys(TASKS, 1.0), 50, seed=4)


def test_an_order_of_weights_changes_nothing():
    assert mixture({"add": 1, "sort": 2}, 30, seed=0) == mixture({"sort": 2, "add": 1}, 30, seed=0)


def test_the_rejected_answer_of_a_number_differs_in_one_digit():
    for pair in preference_pairs("add", 50, seed=0):
        right, wrong = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        assert len(right) == len(wrong) and sum(map(str.__ne__, right, wrong)) == 1


def test_a_later_question_is_answered_as_the_first_one_was_meant():
    "The same facts, asked on their own in full words, give each answer; what the first question is about is read off its answer."
    alone = {}
    for name in ("colour", "capital", "opposite", "calendar", "young", "sound"):
        for row in generate_task_rows(name, 3000, seed=7):
            alone[name, row["answer"]] = prompt_of(row)
    for row in multi_turn_rows(300, seed=5):
        said = [message["content"] for message in row["messages"][1::2]]
        about = {name for name, answer in alone if answer == said[0]}
        assert about and len(set(said)) == len(said) and row["answer"] == said[-1]
        for question, answer in zip(row["messages"][2::2], said[1:], strict=True):
            subject = re.fullmatch("(?:And |What about |Now )(.+)[?.]", question["content"])[1]
            assert any(subject in alone.get((name, answer), "") for name in about), (question, answer)
