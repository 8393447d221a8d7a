"""What a grade means: an empty reference is no success, calls are compared as calls, both sides are read alike."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitchen.adapters.torch.client import TorchService
from kitchen.evaluation import (
    METRICS,
    Question,
    call_text,
    contains,
    exact_match,
    grade_answer,
    same_calls,
    token_f1,
)
from kitchen.rendering.registry import get_renderer
from kitchen.session.kitchen import Kitchen
from kitchen.types import Message
from kitchen.workflows.base import make_question

SMALL = {"batch_size": 4, "epochs": 1, "graded": 4, "held_out": 4, "max_tokens": 8, "warmup_steps": 0}


def jsonl(path, rows):
    """A file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def call(number):
    return [{"type": "function", "function": {"name": "lookup", "arguments": {"q": str(number)}}}]


def accuracies(path, **more):
    """What an untrained model is said to reach, and how many answers had nothing to compare with."""
    with Kitchen("sft", dataset=path, **more, **SMALL) as k:
        k.run(until="baseline")
        found = k.run_record.log.active_events
        return [one["accuracy"] for one in found.named("evaluate.answers")], [one["count"] for one in found.named("evaluate.ungraded")]


@pytest.mark.parametrize("metric", ["contains", "exact_match", "token_f1"])
def test_an_untrained_model_never_gets_everything_right(tmp_path, monkeypatch, metric):
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))
    nothing = {"role": "assistant", "content": " "}
    empty = jsonl(tmp_path / "e.jsonl", [{"messages": [{"role": "user", "content": f"q {i}"}, nothing]} for i in range(20)])
    asks = [{"role": "assistant", "content": "", "tool_calls": call(i)} for i in range(20)]
    calls = jsonl(tmp_path / "t.jsonl", [{"messages": [{"role": "user", "content": f"q {i}"}, one]} for i, one in enumerate(asks)])
    try:
        assert accuracies(empty, metric=metric) == ([], [2])
    except ValueError as error:  # where readers refuse such rows there is no score either
        assert "empty" in str(error) or "trained" in str(error)
    assert accuracies(calls, metric=metric, renderer="qwen3") == ([0.0], [])


@pytest.fixture(scope="module")
def tokenizer():
    return TorchService().get_tokenizer("builtin:tiny-chat")


GOLDS = [
    Message("assistant", "<think>\nthree and one\n</think>\n\n4"),
    Message("assistant", "4", reasoning_content="three and one"),
    Message("assistant", "  4 \n"),
    Message("assistant", "café"),
    Message("assistant", "", tool_calls=tuple(call(1))),
    Message("assistant", "Let me look.", tool_calls=(*call(1), *call(2))),
    Message("assistant", "x", reasoning_content="so", tool_calls=tuple(call(3))),
]


@pytest.mark.parametrize(
    ("renderer", "gold"),  # chatml has no way to write calls
    [(name, gold) for name in ("qwen3", "chatml") for gold in GOLDS if name == "qwen3" or not gold.tool_calls],
)
@pytest.mark.parametrize("metric", METRICS)
def test_the_very_text_that_was_trained_has_the_full_grade(tokenizer, renderer, gold, metric):
    chosen, asked = get_renderer(renderer, tokenizer), [Message("user", "how many?")]
    parts = chosen.render([*asked, gold], {1})
    said = [token for part in parts if part.generated and part.message_index == 1 for token in part.tokens]
    question = make_question(chosen, asked, gold)
    assert grade_answer(metric, chosen.parse_response(said)[0], question) == 1
    assert grade_answer(metric, "something else entirely", question) == 0


def test_auto_reads_thinking_in_the_content(tokenizer):
    chosen, gold = get_renderer("auto", tokenizer), "<think>\nthree and one\n</think>\n\n4"
    question = make_question(chosen, [Message("user", "how many?")], Message("assistant", gold))
    answer = chosen.parse_response([*tokenizer.encode(gold), tokenizer.eos_token_id])[0]
    assert {name: grade_answer(name, answer, question) for name in METRICS} == dict.fromkeys(METRICS, 1.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_calls_are_equal_however_they_are_written(arguments):
    turned = dict(reversed(arguments.items()))
    spelled = {"type": "function", "id": "1", "function": {"name": "f", "arguments": json.dumps(turned)}}
    assert same_calls([spelled], [{"function": {"name": "f", "arguments": arguments}}])
    assert not same_calls([spelled], [{"function": {"name": "g", "arguments": arguments}}])


def test_calls_are_a_multiset():
    one, two = ({"function": {"name": "f", "arguments": {"a": value}}} for value in (1, 2))
    assert same_calls([one, two, one], [two, one, one]) and not same_calls([one, two], [one, two, one])
    assert call_text({"function": {"name": "f", "arguments": "not json"}}) == 'f("not json")'
    question = Question("q", (), "", (one,))
    assert grade_answer("exact_match", Message("assistant", "4"), question) == 0
    assert grade_answer("exact_match", Message("assistant", "4", tool_calls=(one,)), Question("q", (), "4")) == 0, "nobody asked for a call"


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [  # as SQuAD's own evaluation script grades them
        ("The Eiffel Tower", "Eiffel Tower.", 1.0),
        ("an apple a day", "Apple, day", 1.0),
        ("in Paris, France", "Paris", 0.5),
        ("don't", "dont", 1.0),
        ("Lyon", "Paris", 0.0),
        ("then", "the n", 0.0),
    ],
)
def test_token_f1_is_squads(answer, gold, expected):
    assert token_f1(answer, gold) == pytest.approx(expected)


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_a_reference_earns_its_own_grade(text):
    assert all(metric(text, text) == 1 for metric in METRICS.values())


@given(st.text())
def test_an_empty_reference_is_no_success(text):
    assert contains(text, "") == token_f1(text, " ") == 0 and grade_answer("contains", text, Question("q", (), " \n")) is None
    assert exact_match("e\u0301", "é") == 1


DEEP = "[" * 200_000 + "]" * 200_000


def test_nesting_that_no_parser_follows_is_a_wrong_answer():
    said = f'<tool_call>{{"name": "add", "arguments": {DEEP}}}</tool_call>'
    call = {"function": {"name": "add", "arguments": DEEP}}
    wanted = Question("?", (1,), "", ({"function": {"name": "add", "arguments": {}}},))
    assert grade_answer("exact_match", said, wanted) == 0
    assert grade_answer("exact_match", Message("assistant", "", None, (call,)), wanted) == 0
    assert call_text(call).startswith("add(")
