"""Counts of a dataset against counts made otherwise, and splits on whose two sides nothing stands twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.data.formats import Conversation, Preference, Rating, parse_row
from kitchen.data.references import split_rows
from kitchen.data.statistics import LengthCounts, RowKeys, count_overlap, count_rows, row_keys, split_by_keys
from kitchen.types import InvalidValue, Message, UnknownName


def said(*texts):
    roles = ("user", "assistant") * len(texts)
    return tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))


def keys(*texts, group=None):
    return row_keys(Conversation(said(*texts), "a.jsonl, row 1", {} if group is None else {"book": group}), "" if group is None else "book")


@given(st.lists(st.integers(1, 400), min_size=1, max_size=200))
def test_lengths_are_those_of_numpy(lengths):
    counts = LengthCounts()
    for length in lengths:
        counts.add(length, length // 2)
    found = counts.summary()
    for name, share in (("median", 0.5), ("p95", 0.95)):
        assert getattr(found, name) == np.quantile(lengths, share, method="inverted_cdf")
    assert found.mean == pytest.approx(np.mean(lengths)) and found.longest == max(lengths) and found.rows == len(lengths)
    assert found.trained == pytest.approx(sum(length // 2 for length in lengths) / sum(lengths))


def test_what_makes_rows_equal():
    assert keys("a", "b") == keys("a ", "\nb") != keys("a", "c") and keys("a", "b").prompt == keys("a", "c").prompt
    assert keys("a", "b", "c", "d").prompt == keys("a", "b", "c", "e").prompt != keys("a", "b").prompt
    called = Message("assistant", "", tool_calls=({"function": {"name": "add", "arguments": "{}"}},))
    first, second = (row_keys(Conversation((*said("a"), one))) for one in (called, Message("assistant", "")))
    assert first.whole != second.whole and first.prompt == second.prompt
    text, other = (row_keys(Conversation((Message("assistant", one),))) for one in "xy")
    assert text.prompt != other.prompt, "rows that ask nothing do not all ask the same"
    better, worse = (Preference(said("a"), (Message("assistant", one),), (Message("assistant", two),)) for one, two in ("bc", "cb"))
    assert row_keys(better).whole != row_keys(worse).whole and row_keys(better).prompt == keys("a", "z").prompt
    liked, not_liked = (Rating(said("a"), (Message("assistant", "b"),), label) for label in (True, False))
    assert row_keys(liked).whole != row_keys(not_liked).whole
    with pytest.raises(UnknownName, match="did you mean 'book'"):
        row_keys(Conversation(said("a", "b"), "", {"book": 1}), "boook")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=2, max_size=120), st.floats(0.02, 0.9), st.integers(0, 50))
@settings(max_examples=200)
def test_nothing_that_was_kept_together_stands_on_both_sides(rows, fraction, seed):
    known = [RowKeys(bytes([prompt, answer]), bytes([prompt])) for prompt, answer in rows]
    train, held, by = split_by_keys(known, fraction, seed)
    assert sorted([*train, *held]) == list(range(len(rows))) and train and held
    both = count_overlap([known[index] for index in train], [known[index] for index in held])
    assert (by == "row" or both.conversations == 0) and (by != "prompt" or both.prompts == 0)
    wholes, prompts = ({getattr(known[index], name) for index in train} for name in ("whole", "prompt"))
    assert both.conversations == sum(known[index].whole in wholes for index in held)
    assert both.prompts == sum(known[index].prompt in prompts for index in held)
    if len({one.prompt for one in known}) == len(known):
        assert (train, held) == split_rows(range(len(rows)), fraction, seed), "without likes it is the split of before"


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(0, 20))
def test_a_group_is_never_divided(groups, seed):
    known = [RowKeys(bytes([index]), b"one prompt", bytes([group])) for index, group in enumerate(groups)]
    if len(set(groups)) < 2:
        with pytest.raises(InvalidValue, match="are of one group"):
            split_by_keys(known, 0.2, seed)
        return
    train, held, by = split_by_keys(known, 0.2, seed)
    assert by == "group" and train and held and not {groups[index] for index in train} & {groups[index] for index in held}


def test_rows_are_counted_as_they_come():
    rows = [
        Conversation(said("a", "b"), "one.jsonl, row 1"),
        Conversation(said("a", "c"), "one.jsonl, row 2"),
        Conversation(said("a", "b"), "two.jsonl, row 1"),
        Conversation(said("a", "b", "c", "d"), "two.jsonl, row 2"),
    ]
    found = count_rows(rows, map(row_keys, rows))
    assert (found.rows, found.messages, found.answers, found.several_turns) == (4, 10, 5, 1)
    assert (found.duplicates, found.repeated_prompts) == (1, 2) and found.sources == {"one.jsonl": 2, "two.jsonl": 2}


def test_rows_of_no_group_are_kept_together_by_what_they_ask():
    sessions = (None, None, None, "", 7, 7)
    rows = [{"question": f"{number // 2}?", "answer": "5", "session": session} for number, session in enumerate(sessions)]
    groups = [row_keys(parse_row(row), "session").group for row in rows]
    assert len(set(groups)) == 3 and groups[0] == groups[1] and groups[2] == groups[3] and groups[4] == groups[5]
