"""What a row carries is used, named as unused, or refused by name; nothing of it is dropped in silence, and nothing is invented."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.adapters.files.datasets import FileDatasets
from kitchen.data.columns import RowReading
from kitchen.data.formats import (
    FORMATS,
    Conversation,
    Preference,
    Rating,
    RowFormat,
    count_unused,
    parse_each,
    parse_row,
    parse_rows,
    question_answer_reader,
)
from kitchen.data.messages import THINKING_KEYS
from kitchen.data.references import Table
from kitchen.data.tools import RowNotes
from kitchen.types import InvalidValue, Message, RowError, UnknownName

USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "2 + 3?"), ("assistant", "5"), ("assistant", "6"))
)
SYSTEM = {"role": "system", "content": "Be kind."}
ASKED, RIGHT, WRONG = (Message("user", "2 + 3?"),), (Message("assistant", "5"),), (Message("assistant", "6"),)
SCHEMA = {"type": "object", "properties": {"first": {"type": "number"}}, "required": ["first"]}
BARE = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": BARE}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"first": 2}}}
ANSWERED = {"question": "2 + 3?", "answer": "5"}


def said(row, **options):
    """The messages of a row, in short."""
    read = parse_row(row, **options)
    return [
        f"{one.role}: {one.content}"
        for one in (read.messages if isinstance(read, Conversation) else read.prompt + read.chosen)
    ]


# tools


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize(
    "declared",
    [
        [TOOL],
        TOOL,
        [BARE],
        BARE,
        json.dumps([TOOL]),
        json.dumps([BARE]),
        [json.dumps(TOOL)],
        [{**TOOL, "function": {**BARE, "parameters": json.dumps(SCHEMA)}}],
        [{"name": "add", "description": "Adds.", "input_schema": SCHEMA}],
    ],
)
def test_tools_beside_messages_in_every_spelling(column, declared):
    assert parse_row({"messages": [USER, GOOD], column: declared}).tools == (TOOL,)
    inside = {"messages": [{**SYSTEM, column: declared}, USER, GOOD]}
    assert parse_row(inside).tools == (TOOL,) and len(parse_row(inside).messages) == 3
    pair = {"prompt": "2 + 3?", "chosen": "5", "rejected": "6", column: declared}
    assert parse_row(pair, kind=Preference).tools == (TOOL,)
    assert parse_row(
        {"prompt": "2 + 3?", "completion": "5", "label": True, column: declared}, kind=Rating
    ).tools == (TOOL,)
    assert parse_row(
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], column: declared}
    ).tools == (TOOL,)
    named = parse_row(
        {"messages": [USER, GOOD], "abilities": declared},
        columns={"messages": "messages", "tools": "abilities"},
    )
    assert named.tools == (TOOL,) and named.unused == ()


@pytest.mark.parametrize("nothing", [None, "", "[]", [], [None]])
def test_no_tools(nothing):
    read = parse_row({"messages": [USER, GOOD], "tools": nothing})
    assert read.tools == () and read.unused == ()


@pytest.mark.parametrize(
    ("declared", "field", "reason"),
    [
        ([{"type": "web_search"}], "tools[0].type", "only tools of type 'function'"),
        (
            [{"type": "function", "function": {"description": "?"}}],
            "tools[0].name",
            "a function needs a name",
        ),
        ("{", "tools", "is not JSON"),
        ([{**BARE, "parameters": [1]}], "tools[0].parameters", "must be an object, a JSON schema"),
        ([5], "tools[0]", "must be a list of"),
        ([BARE, {**BARE, "description": "Else."}], "tools[1]", "two functions are named 'add'"),
        ([{**TOOL, "mood": "merry"}], "tools[0].mood", "is a key that kitchen does not read"),
    ],
)
def test_tools_that_cannot_be_read_are_named(declared, field, reason):
    with pytest.raises(RowError, match=reason) as caught:
        parse_rows(Table([{"messages": [USER, GOOD], "tools": declared}], "t.jsonl"))
    assert (caught.value.row, caught.value.field) == (1, field)


def test_tools_declared_twice():
    assert parse_row({"messages": [USER, GOOD], "tools": [TOOL], "functions": [BARE]}).tools == (TOOL,)
    with pytest.raises(RowError, match="declare different functions"):
        parse_row({"messages": [USER, GOOD], "tools": [TOOL], "functions": [{**BARE, "name": "sub"}]})
    spelled = {"role": "system", "content": f"<tools>{json.dumps(BARE)}</tools>"}
    read = parse_row({"messages": [spelled, USER, GOOD], "tools": [TOOL]})
    assert read.tools == () and "tools: spelled in the system message" in read.unused


def test_template_variables_of_a_row():
    assert parse_row(
        {**ANSWERED, "chat_template_kwargs": {"enable_thinking": False, "date": None}}
    ).chat_template_kwargs == {"enable_thinking": False}
    assert parse_row(
        {**ANSWERED, "chat_template_kwargs": '{"reasoning_effort": "high"}'}
    ).chat_template_kwargs == {"reasoning_effort": "high"}
    with pytest.raises(RowError, match="must be an object of variables"):
        parse_row({**ANSWERED, "chat_template_kwargs": [1]})


# calls


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "tool_calls": [CALL["function"]]},
        {"role": "assistant", "content": None, "function_call": CALL["function"], "tool_calls": None},
        {"role": "assistant", "content": "", "function_call": CALL["function"], "tool_calls": [CALL]},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "function_call", "value": json.dumps([CALL["function"]])},
        {"role": "tool_call", "content": json.dumps(CALL["function"])},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "parameters": {"first": 2}}]},
    ],
)
@pytest.mark.parametrize(
    "result", ["tool", "function", "ipython", "observation", "tool_response", "tool-result"]
)
def test_calls_and_results_in_every_spelling(calling, result):
    _, call, answer, _ = parse_row(
        {"messages": [USER, calling, {"role": result, "content": "5", "name": "add"}, GOOD]}
    ).messages
    assert call == Message("assistant", "", tool_calls=(CALL,)) and (answer.role, answer.name) == (
        "tool",
        "add",
    )


def test_arguments_of_text_are_left_and_bad_ones_named():
    with_text = {"function": {"name": "add", "arguments": '{"first":  null}'}, "id": "c1"}
    found = (
        parse_row({"messages": [USER, {"role": "assistant", "tool_calls": [with_text]}]})
        .messages[1]
        .tool_calls[0]
    )
    assert found["function"]["arguments"] == '{"first":  null}' and found["id"] == "c1"
    for wrong in ("{first: 2}", "[2]", '"2"', [2], 5):
        broken = {"function": {"name": "add", "arguments": wrong}}
        with pytest.raises(RowError) as caught:
            parse_row({"messages": [USER, {"role": "assistant", "tool_calls": [broken]}]})
        assert caught.value.field == "messages[1].tool_calls[0].function.arguments"
    for message, field in (
        ({"from": "function_call", "value": "add(2)"}, "messages[1].value"),
        ({**USER, "tool_calls": [CALL]}, "messages[1].tool_calls"),
    ):
        with pytest.raises(RowError) as caught:
            parse_row({"messages": [USER, message]})
        assert caught.value.field == field
    with pytest.raises(RowError, match="tool_calls and function_call say different things"):
        parse_row(
            {
                "messages": [
                    USER,
                    {**GOOD, "tool_calls": [CALL], "function_call": {"name": "sub", "arguments": "{}"}},
                ]
            }
        )


def test_queries_answered_by_calls():
    row = {"query": "2 + 3?", "answers": json.dumps([CALL["function"]]), "tools": json.dumps([BARE])}
    assert parse_row(row).messages == (*ASKED, Message("assistant", tool_calls=(CALL,))) and parse_row(
        row
    ).tools == (TOOL,)


def test_nulls_of_merged_columns_are_no_data(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    calls = [
        {"name": "ferry", "arguments": {"pier": "P1", "deck": {"row": 1}}},
        {"name": "bus", "arguments": {"line": 2, "night": True}},
        {"name": "stop", "arguments": {"why": "rain"}},
    ]
    rows = [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": one}]},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": one["name"],
                        "parameters": {
                            "type": "object",
                            "properties": {key: {"type": "string"} for key in one["arguments"]},
                        },
                    },
                }
            ],
        }
        for one in calls
    ]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calls.parquet")
    lines, columns = (
        parse_rows(FileDatasets().load(str(tmp_path / f"calls.{ending}")))[0]
        for ending in ("jsonl", "parquet")
    )
    assert [(one.messages, one.tools) for one in lines] == [(one.messages, one.tools) for one in columns]
    assert count_unused(lines) == {} and count_unused(columns) == {"tool_calls.arguments: null": 3}


def test_a_null_for_a_required_argument_is_what_was_said():
    row = {
        "messages": [
            USER,
            {
                "role": "assistant",
                "tool_calls": [{"name": "add", "arguments": {"first": None, "other": None}}],
            },
        ],
        "tools": [BARE],
    }
    assert parse_row(row).messages[1].tool_calls[0]["function"]["arguments"] == {"first": None}


# thinking


@pytest.mark.parametrize(
    "answer",
    [
        *({"content": "5", key: "Add."} for key in THINKING_KEYS),
        {"content": "5", "reasoning_content": "Add.", "thinking": "Add.", "reasoning": None, "thought": ""},
        {"content": [{"type": "thinking", "thinking": "Add."}, {"type": "text", "text": "5"}]},
        {
            "content": [
                {"type": "reasoning", "text": "Add.", "thinking": None},
                {"type": "text", "text": "5", "signature": "x"},
            ]
        },
        {"content": "<think>\nAdd.\n</think>\n\n5"},
        {"content": "<think>Add.</think>5"},
        {"content": "\n<think>\nAdd.\n</think>\n\n5"},
        {"content": "Add.\n</think>\n\n5"},
        {"content": "Add.</think>\n5"},
        {"content": "<think>\nAdd.\n</think>\n\n5", "reasoning_content": "Add."},
    ],
)
def test_thinking_in_every_spelling(answer):
    wanted = (Message("assistant", "5", reasoning_content="Add."),)
    message = {"role": "assistant", **answer}
    assert parse_row({"messages": [USER, message]}).messages[1:] == wanted
    pair = {"prompt": "2 + 3?", "chosen": [message], "rejected": [BAD]}
    assert parse_row(pair, kind=Preference).chosen == wanted
    assert (
        parse_row(
            {**pair, "chosen": [GOOD], "rejected": [{**message, "content": message["content"]}]},
            kind=Preference,
        ).rejected
        == wanted
    )
    assert (
        parse_row({"prompt": "2 + 3?", "completion": [message], "label": 0}, kind=Rating).completion == wanted
    )


def test_thinking_within_texts_of_every_format():
    text = "<think>\nAdd.\n</think>\n\n5"
    wanted = Message("assistant", "5", reasoning_content="Add.")
    pair = parse_row({"prompt": "2 + 3?", "chosen": text, "rejected": "Guess.\n</think>\n6"}, kind=Preference)
    assert pair.chosen == (wanted,) and pair.rejected == (
        Message("assistant", "6", reasoning_content="Guess."),
    )
    assert parse_row({"prompt": "2 + 3?", "completion": text, "label": True}, kind=Rating).completion == (
        wanted,
    )
    for row in (
        {"question": "2 + 3?", "answer": text},
        {"instruction": "2 + 3?", "output": text},
        {**ANSWERED, "reasoning": "Add."},
        {**ANSWERED, "thinking": "Add."},
    ):
        assert parse_row(row).messages == (*ASKED, wanted)
    for plain in ("A tag: <think>x</think>", "It says </think> there.", "<think>never ends"):
        assert parse_row({**ANSWERED, "answer": plain}).messages[1] == Message("assistant", plain)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**GOOD, "reasoning": "Add.", "thinking": "Guess."}, "say different things"),
        (
            {"role": "assistant", "content": "<think>Add.</think>5", "reasoning": "Guess."},
            "two different texts of thinking",
        ),
        ({**USER, "thinking": "Hm."}, "only an assistant thinks"),
        ({"role": "assistant", "content": "", "reasoning": "Add."}, "is thinking, and says nothing"),
    ],
)
def test_thinking_that_cannot_be_meant(message, reason):
    with pytest.raises(RowError, match=reason):
        parse_row({"messages": [USER, message, GOOD]})


# contents


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image"},
        {"type": "input_audio", "input_audio": "x"},
        {"type": "video", "video": "a"},
        {"type": "file", "file": "f"},
        {"type": "tool_use", "name": "add"},
        {"type": "refusal", "refusal": "No."},
        {"type": "redacted_thinking", "data": "x"},
        {"image": {"format": "png"}},
    ],
)
def test_other_parts_are_refused(part):
    with pytest.raises(RowError, match="no backend takes images, audio, video or files yet") as caught:
        parse_row(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "See"}, part]}, GOOD]},
            on_unused="count",
        )
    assert caught.value.field == "messages[0].content[1]"


@pytest.mark.parametrize("column", ["image", "images", "audio", "audios", "video", "videos"])
def test_media_beside_messages_are_refused_or_counted(column):
    row = {"messages": [USER, GOOD], column: [{"path": "a.png", "bytes": None}]}
    with pytest.raises(RowError, match="no backend takes images, audio or video yet") as caught:
        parse_row(row)
    assert caught.value.field == column
    assert (
        parse_row(row, on_unused="count").unused == (column,) and parse_row({**row, column: []}).unused == ()
    )


@pytest.mark.parametrize("content", ["", " \n", []])
def test_an_empty_answer_is_never_trained(content):
    empty = {"role": "assistant", "content": content}
    rows = [
        ({"messages": [USER, empty]}, Conversation, "messages[1]"),
        ({"messages": [USER, empty, USER, GOOD]}, Conversation, "messages[1]"),
        ({"prompt": "a", "chosen": [GOOD], "rejected": [empty]}, Preference, "rejected"),
        ({"prompt": "a", "completion": [empty], "label": 0}, Rating, "completion"),
    ]
    if isinstance(content, str):
        rows += [
            ({"question": "a", "answer": content}, Conversation, "answer"),
            ({"prompt": "a", "completion": content}, Conversation, "completion"),
            ({"prompt": "a", "chosen": content, "rejected": "b"}, Preference, "chosen"),
            ({"text": content}, Conversation, "text"),
            ({**ANSWERED, "history": [["a", content]]}, Conversation, "history[1]"),
        ]
    for row, kind, field in rows:
        with pytest.raises(RowError, match="empty") as caught:
            parse_row(row, kind=kind)
        assert caught.value.field == field
    assert parse_row({"messages": [USER, {**empty, "weight": 0}, USER, GOOD]}).messages[1].trainable is False
    kept, problems = parse_rows(
        Table([{"messages": [USER, empty]}, {"messages": [USER, GOOD]}], "a.jsonl"), "set_aside"
    )
    assert len(kept) == len(problems) == 1 and problems[0].row == 1


@pytest.mark.parametrize(
    ("row", "kind", "field"),
    [
        ({"messages": [{"role": "user", "content": "a\ud83d"}, GOOD]}, Conversation, "messages[0].content"),
        ({"messages": [USER, {**GOOD, "reasoning": "\udc00"}]}, Conversation, "messages[1].reasoning"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {"x": "\ud83d"}}]},
                ]
            },
            Conversation,
            "messages[1].tool_calls[0].arguments",
        ),
        ({"question": "a", "answer": "\ud83d"}, Conversation, "answer"),
        ({**ANSWERED, "system": "\ud83d"}, Conversation, "system"),
        ({**ANSWERED, "tools": [{"name": "a", "description": "\ud83d"}]}, Conversation, "tools[0]"),
        ({"text": "\ud83d"}, Conversation, "text"),
        ({"prompt": "a", "chosen": "b", "rejected": "\ud83d"}, Preference, "rejected"),
        ({"instruction": "a", "input": "\ud83d", "output": "b"}, Conversation, "input"),
    ],
)
def test_half_a_surrogate_pair_is_named(row, kind, field):
    with pytest.raises(RowError, match="half of a surrogate pair") as caught:
        parse_rows(Table([row], "a.jsonl"), kind=kind)
    assert (caught.value.source, caught.value.row, caught.value.field) == ("a.jsonl", 1, field)


def test_keys_of_messages_that_nobody_reads():
    row = {
        "messages": [
            {**USER, "id": "x1", "timestamp": 5},
            {**GOOD, "channel": "final", "refusal": None, "audio": {"id": None}},
        ]
    }
    with pytest.raises(RowError, match="is a key that kitchen does not read, and holds 'final'") as caught:
        parse_row(row)
    assert caught.value.field == "messages[1].channel"
    assert parse_row(row, on_unused="count").unused == (
        "messages[].id",
        "messages[].timestamp",
        "messages[].channel",
    )


@pytest.mark.parametrize("key", ["trainable", "weight", "train", "loss"])
def test_messages_that_are_not_trained(key):
    assert [
        one.trainable
        for one in parse_row({"messages": [USER, {**GOOD, key: 0}, USER, {**GOOD, key: True}]}).messages
    ] == [None, False, None, True]
    with pytest.raises(RowError, match="must be true or false"):
        parse_row({"messages": [USER, {**GOOD, key: 0.5}]})


@pytest.mark.parametrize(
    ("role", "meant"),
    [
        ("human", "user"),
        ("prompter", "user"),
        ("User", "user"),
        ("gpt", "assistant"),
        ("bot", "assistant"),
        ("chatgpt", "assistant"),
        ("model", "assistant"),
    ],
)
def test_roles(role, meant):
    assert parse_row({"messages": [{"role": role, "content": "Hi"}, GOOD]}).messages[0].role == meant
    assert (
        parse_row({"conversations": [{"from": role, "value": "Hi"}, {"from": "gpt", "value": "Ho"}]})
        .messages[0]
        .role
        == meant
    )


# beside the messages


@pytest.mark.parametrize(
    "history",
    [
        [["where first?", "the mill"]],
        json.dumps([["where first?", "the mill"]]),
        [("where first?", "the mill")],
        [{"role": "user", "content": "where first?"}, {"role": "assistant", "content": "the mill"}],
        [{"question": "where first?", "answer": "the mill"}],
        [{"user": "where first?", "assistant": "the mill"}],
    ],
)
def test_history_in_every_spelling(history):
    earlier = ["user: where first?", "assistant: the mill"]
    assert said({"instruction": "and then?", "input": "", "output": "home", "history": history}) == [
        *earlier,
        "user: and then?",
        "assistant: home",
    ]
    assert said({"instruction": "and then?", "output": "home", "history": history, "system": "S"})[:2] == [
        "system: S",
        earlier[0],
    ]
    assert (
        said({"q": "and then?", "a": "home", "history": history}, columns={"question": "q", "answer": "a"})[
            :2
        ]
        == earlier
    )
    assert (
        said({"prompt": "and then?", "chosen": "home", "rejected": "x", "history": history}, kind=Preference)[
            :2
        ]
        == earlier
    )
    whole = [
        *(
            {"role": role, "content": text}
            for role, text in (("user", "where first?"), ("assistant", "the mill"))
        ),
        USER,
        GOOD,
    ]
    assert len(said({"messages": whole, "history": history})) == 4, "it stands once"


@pytest.mark.parametrize(
    "history", ["none", 5, [["a"]], [["a", "b", "c"]], [[1, "b"]], ["a", "b"], [["a", None]]]
)
def test_history_that_cannot_be_read(history):
    with pytest.raises(RowError) as caught:
        parse_row({**ANSWERED, "history": history})
    assert caught.value.field.startswith("history")


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
def test_a_system_prompt_beside(column):
    for row, options in (
        (ANSWERED, {}),
        ({"q": "2 + 3?", "a": "5"}, {"columns": {"question": "q", "answer": "a"}}),
        ({"messages": [USER, GOOD]}, {}),
        ({"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}, {"kind": Preference}),
        ({"question": "2 + 3?", "chosen": "5", "rejected": "6"}, {"kind": Preference}),
    ):
        assert said({**row, column: "Be kind."}, **options)[0] == "system: Be kind."
        assert said({**row, column: SYSTEM}, **options)[0] == "system: Be kind."
        assert said({**row, column: " "}, **options)[0] == "user: 2 + 3?"
    with pytest.raises(RowError, match="different system prompts"):
        parse_row({**ANSWERED, "system": "Be kind.", "system_prompt": "Be rude."})
    assert (
        said(
            {**ANSWERED, "persona": "Be kind."},
            columns={"question": "question", "answer": "answer", "system": "persona"},
        )[0]
        == "system: Be kind."
    )


@pytest.mark.parametrize("column", ["input", "context"])
def test_what_a_question_is_about(column):
    for row, options in (
        ({"question": "sum up", "answer": "short"}, {}),
        ({"prompt": "sum up", "completion": "short"}, {}),
        ({"prompt": "sum up", "chosen": "short", "rejected": "long"}, {"kind": Preference}),
        (
            {"instruction": "sum up", "chosen": "short", "rejected": "long"},
            {
                "kind": Preference,
                "columns": {
                    "prompt": "instruction",
                    column: column,
                    "chosen": "chosen",
                    "rejected": "rejected",
                },
            },
        ),
    ):
        assert said({**row, column: "the long tale"}, **options)[0] == "user: sum up\n\nthe long tale"
    held = {"question": "sum up: the long tale", "answer": "short", column: "the long tale"}
    assert said(held)[0] == "user: sum up: the long tale" and parse_row(held).unused == (column,)
    with pytest.raises(RowError) as caught:
        parse_row({"messages": [USER, GOOD], column: "the long tale"})
    assert caught.value.field == column


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": [USER, GOOD], "prompt": "Tell a tale."}, "prompt"),
        (
            {"messages": [USER, GOOD], "conversations": [{"from": "human", "value": "Hello you"}]},
            "conversations",
        ),
        ({**ANSWERED, "instruction": "Answer in Dutch."}, "instruction"),
        ({**ANSWERED, "documents": [{"text": "The mill burnt."}]}, "documents"),
        ({**ANSWERED, "rationale": "Two and three."}, "rationale"),
        ({"messages": [USER, GOOD, USER, GOOD], "thinking": "Add."}, "thinking"),
        ({"text": "Once.", "system": "Be kind."}, "system"),
        ({"text": "Once.", "tools": [TOOL]}, "tools"),
        ({"messages": [USER, GOOD], "Context": "The mill burnt."}, "Context"),
        ({"messages": [USER, GOOD], "tool_calls": [CALL]}, "tool_calls"),
    ],
)
def test_a_part_of_a_conversation_that_is_not_used_is_named(row, field):
    with pytest.raises(RowError, match="is part of what was said, it seems, and is not used") as caught:
        parse_rows(Table([row], "a.jsonl"))
    assert caught.value.field == field
    found, _ = parse_rows(Table([row], "a.jsonl"), on_unused="count")
    assert count_unused(found) == {field: 1}


def test_what_stands_twice_and_what_is_no_part_is_counted():
    alpaca = {
        "instruction": "Sort.",
        "input": "b a",
        "output": "a b",
        "text": "Below is an instruction.\n### Sort.\n\nb a\n### a b",
    }
    assert parse_row(alpaca).unused == ("text",)
    feedback = {
        "prompt": "2 + 3?",
        "prompt_id": "x",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
        "messages": [USER, GOOD],
        "score_chosen": 9.0,
        "score_rejected": 2.0,
    }
    assert (parse_row(feedback, kind=Preference).prompt, parse_row(feedback, kind=Preference).chosen) == (
        ASKED,
        RIGHT,
    )
    assert parse_row(feedback).messages == ASKED + RIGHT and "rejected" in parse_row(feedback).unused
    assert parse_row(
        {"messages": [USER, GOOD], "question": "2 + 3?", "answer": 5, "group": "sums"}
    ).unused == ("question", "answer", "group")
    with pytest.raises(UnknownName, match="did you mean 'count'"):
        parse_rows(Table([ANSWERED]), on_unused="cuont")


def test_columns_that_were_named_leave_other_turns_alone():
    row = {"ask": "2 + 3?", "reply": "5", "messages": "junk", "prompt": "other", "context": "The mill."}
    columns = {"prompt": "ask", "completion": "reply"}
    assert said(row, columns=columns) == ["user: 2 + 3?\n\nThe mill.", "assistant: 5"]
    assert set(parse_row(row, columns=columns).unused) == {"messages", "prompt"}
    with pytest.raises(RowError, match="no backend takes images"):
        parse_row({**row, "images": ["a.png"]}, columns=columns)


def test_a_format_of_ones_own_uses_what_it_reads(monkeypatch):
    def read(row):
        return (
            (Message("user", f"{row['context']}: {row['riddle']}"), Message("assistant", row["solution"])),
        )

    monkeypatch.setitem(FORMATS, "riddle", RowFormat("riddle", ("riddle", "solution"), read))
    read_row = parse_row(
        {"riddle": "who?", "solution": "I", "context": "A mill", "system": "S", "year": 1}, on_unused="stop"
    )
    assert [one.content for one in read_row.messages] == ["S", "A mill: who?", "I"] and read_row.unused == (
        "year",
    )
    reading = RowReading({"a": 1}, RowNotes())
    assert dict(reading) == {"a": 1} and reading.read == {"a"}


# comparisons and ratings

PAIRS = {
    "text, lists with a system message": {
        "prompt": "2 + 3?",
        "chosen": [SYSTEM, USER, GOOD],
        "rejected": [SYSTEM, USER, BAD],
    },
    "list with system, lists without": {
        "prompt": [SYSTEM, USER],
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
    "list with system, lists with it": {
        "prompt": [SYSTEM, USER],
        "chosen": [SYSTEM, USER, GOOD],
        "rejected": [SYSTEM, USER, BAD],
    },
    "a system column": {
        "system": "Be kind.",
        "prompt": "2 + 3?",
        "chosen": [SYSTEM, USER, GOOD],
        "rejected": [SYSTEM, USER, BAD],
    },
    "a column, lists without": {
        "system": "Be kind.",
        "prompt": "2 + 3?",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
    "white space": {
        "prompt": [SYSTEM, {"role": "user", "content": "2 + 3?"}],
        "chosen": [{"role": "user", "content": " 2 + 3?\n"}, GOOD],
        "rejected": [USER, BAD],
    },
    "one side repeats it": {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": "6"},
    "messages alone": {"prompt": [SYSTEM, USER], "chosen": GOOD, "rejected": BAD},
    "no prompt": {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
    "no prompt, a system column": {"system": "Be kind.", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "a prompt of nothing": {"prompt": [], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_the_prompt_of_a_pair_stands_once(row):
    read = parse_row(row, kind=Preference)
    assert (read.prompt, read.chosen, read.rejected) == (
        (Message("system", "Be kind."), *ASKED),
        RIGHT,
        WRONG,
    )


def test_a_prompt_that_ends_with_white_space():
    read = parse_row({"prompt": "2 + 3?\n", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, kind=Preference)
    assert (len(read.prompt), read.chosen, read.rejected) == (1, RIGHT, WRONG)


MORE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_the_prompt_of_a_longer_dialogue():
    whole = parse_row({"chosen": [*MORE, USER, GOOD], "rejected": [*MORE, USER, BAD]}, kind=Preference)
    last = parse_row(
        {"prompt": "2 + 3?", "chosen": [*MORE, USER, GOOD], "rejected": [*MORE, USER, BAD]}, kind=Preference
    )
    overlap = parse_row(
        {"prompt": [*MORE, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, kind=Preference
    )
    assert (whole.prompt, whole.chosen) == (last.prompt, last.chosen) == (
        overlap.prompt,
        overlap.chosen,
    ) and len(whole.prompt) == 3


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (
            {"prompt": "3 + 3?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "chosen",
            "does not begin with the prompt",
        ),
        (
            {"prompt": "2 + 3?", "chosen": "5", "rejected": [{"role": "user", "content": "no"}, BAD]},
            "rejected",
            "does not begin with the prompt",
        ),
        (
            {
                "prompt": [{"role": "system", "content": "Be rude."}, USER],
                "chosen": [SYSTEM, USER, GOOD],
                "rejected": [USER, BAD],
            },
            "chosen",
            "the same system message",
        ),
        (
            {"prompt": "2 + 3?", "chosen": [SYSTEM, USER, GOOD], "rejected": [USER, BAD]},
            "rejected",
            "begins without the system message",
        ),
        ({"prompt": "2 + 3?", "chosen": "5", "rejected": "5 \n"}, "rejected", "are the same"),
        (
            {"prompt": "2 + 3?", "chosen": "5", "rejected": ["6", "7"]},
            "rejected",
            "one answer on each side, not a list of 2",
        ),
        (
            {"prompt": "2 + 3?", "chosen": "5", "rejected": "6", "images": ["a.png"]},
            "images",
            "no backend takes images",
        ),
        ({"prompt": "2 + 3?", "chosen": "5", "rejected": "6", "thinking": "Add."}, "thinking", "is not used"),
    ],
)
def test_pairs_that_do_not_agree_are_named(row, field, reason):
    with pytest.raises(RowError, match=reason) as caught:
        parse_row(row, kind=Preference)
    assert caught.value.field == field


def test_a_question_of_a_pair_under_another_name():
    read = parse_row(
        {"system": "Be kind.", "question": "2 + 3?", "chosen": "5", "rejected": "6"}, kind=Preference
    )
    assert read.prompt == (Message("system", "Be kind."), *ASKED)


LABELS = [True, False, 0, 1, 0.0, 1.0, "true", "False", "0", "1.0"]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 3?", "completion": "5"},
        {"messages": [USER, GOOD]},
        ANSWERED,
        {"instruction": "2 + 3?", "output": "5"},
        {"prompt": "2 + 3?", "response": "5"},
    ],
)
def test_a_rated_answer_is_never_a_good_one_by_itself(row, label):
    with pytest.raises(RowError, match="are ratings, not conversations") as caught:
        parse_row({**row, "label": label}, on_unused="count")
    assert caught.value.field == "label"
    read = parse_row({**row, "label": label}, kind=Rating)
    assert (read.prompt, read.completion) == (ASKED, RIGHT) and read.label is (
        str(label).casefold() in ("true", "1", "1.0")
    )
    named = {column: column for column in row}
    assert parse_row({**row, "label": label}, columns=named).messages == ASKED + RIGHT


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("rating", 1),
        ("thumbs", "down"),
        ("thumbs_up", False),
        ("feedback", "bad"),
        ("kto_tag", False),
        ("label", "bad"),
        ("label", -1),
    ],
)
def test_other_names_of_a_rating(column, value):
    with pytest.raises(RowError, match="are ratings"):
        parse_row({**ANSWERED, column: value})
    if column in ("thumbs", "thumbs_up", "kto_tag"):
        assert parse_row({**ANSWERED, column: value}, kind=Rating).label is False


def test_a_label_that_rates_nothing_is_counted():
    assert parse_row({**ANSWERED, "label": "sports"}).unused == ("label",)
    assert parse_row({"text": "Once.", "label": 0}).unused == ("label",)


# texts


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Once upon a time.", "plain"),
        ("a <b>word</b> </s>", "plain"),
        ("### Human: Hi", "plain"),
        ("<|im_start|>user\nHi<|im_end|>", "rendered"),
        ("<｜User｜>Hi<｜Assistant｜>Ho", "rendered"),
        ("<start_of_turn>user\nHi", "rendered"),
        ("<s>[INST] Hi [/INST] Ho", "rendered"),
    ],
)
def test_texts_are_plain_or_rendered(text, kind):
    assert parse_row({"text": text}).text == kind and parse_row({"text": text}).messages[0].content == text


def test_texts_are_trained_as_they_stand(tmp_path):
    from kitchen import Kitchen

    rows = [
        {"text": f"<|im_start|>user\ngo {n}<|im_end|>\n<|im_start|>assistant\nhome<|im_end|>\n"}
        for n in range(12)
    ] + [{"text": f"The mill has {n} wings."} for n in range(12)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    k = Kitchen(
        "sft",
        dataset=str(path),
        batch_size=4,
        epochs=1,
        graded=2,
        held_out=4,
        max_tokens=4,
        run_dir=tmp_path / "run",
    )
    k.run(until="render")
    tokenizer, data = k.state["renderer"].tokenizer, k.state["data"].train
    texts = [tokenizer.decode([*one.tokens.tolist(), int(one.targets[-1])], control=True) for one in data]
    assert all((one.weights == 1).all() for one in data) and not any(
        "assistant\nThe mill" in text for text in texts
    )
    rendered = next(one for one, text in zip(data, texts, strict=True) if "go " in text)
    assert rendered.tokens[0] == tokenizer.control_tokens["<|im_start|>"] and sum(
        text.count("assistant") for text in texts
    ) == sum("go " in text for text in texts)
    told = list(k.log.named("data.text"))
    assert [(one["rows"], one["rendered"]) for one in told] == [(24, 12)]
    k.close()


def test_thinking_in_a_text_stays_where_the_template_has_no_place_for_it():
    from kitchen.adapters.toy.tokenizer import ToyTokenizer
    from kitchen.rendering.base import to_datum
    from kitchen.rendering.registry import get_renderer

    text = "<think>\nAdd.\n</think>\n\n5"
    messages = parse_row({"question": "2 + 3?", "answer": text}).messages
    tokenizer = ToyTokenizer()
    shown = {}
    for name, thinks in (("with", "{{ m.reasoning_content }}|"), ("without", "")):
        tokenizer.chat_template = (
            "{% for m in messages %}<|"
            + "{{ m.role }}|>"
            + thinks
            + "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
        )
        datum = to_datum(get_renderer("template", tokenizer), messages)
        shown[name] = tokenizer.decode([*datum.tokens.tolist(), int(datum.targets[-1])], control=True)
    assert text in shown["without"] and "Add.|5" in shown["with"]


# properties

WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = sorted(
    {column for one in FORMATS.values() for column in one.columns}
    | {
        "system",
        "history",
        "tools",
        "functions",
        "thinking",
        "images",
        "context",
        "chat_template_kwargs",
        "id",
        "source",
    }
)
KEYS = [
    "role",
    "from",
    "content",
    "value",
    "tool_calls",
    "function_call",
    "reasoning",
    "thinking",
    "weight",
    "name",
    "tool_call_id",
    "tools",
    "channel",
    "id",
]
ROLE = st.sampled_from(
    ["user", "assistant", "system", "tool", "human", "gpt", "function_call", "observation", "wizard"]
)
MESSAGE = (
    st.fixed_dictionaries({"role": ROLE, "content": WORDS | JSON}, optional=dict.fromkeys(KEYS[4:], JSON))
    | JSON
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), JSON | WORDS | st.lists(MESSAGE, max_size=4), max_size=5)
KIND = st.sampled_from([Conversation, Preference, Rating])


@given(ROW, KIND, st.sampled_from(["stop", "count"]))
@settings(max_examples=300, deadline=None)
def test_no_row_raises_anything_but_a_row_error(row, kind, on_unused):
    for one in parse_each([("rows.jsonl, row 3", row)], "set_aside", kind, None, on_unused):
        if isinstance(one, RowError):
            assert (one.source, one.row) == ("rows.jsonl", 3) and str(one)
        else:
            assert isinstance(one, kind)


@given(
    st.dictionaries(st.text(max_size=8) | st.sampled_from(COLUMNS), JSON, max_size=4),
    st.dictionaries(st.sampled_from(COLUMNS), st.text(max_size=8), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_nor_do_rows_whose_columns_are_named(row, columns):
    try:
        parse_rows(Table([row], "rows.jsonl"), "set_aside", columns=columns)
    except InvalidValue as error:
        assert str(error)


MARK = st.integers(10**9, 10**10).map(lambda number: f"mark{number}")
CALLING = st.builds(
    lambda name, key, value: {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": f"call-{name}", "function": {"name": name, "arguments": {key: value}}}],
    },
    MARK,
    MARK,
    MARK,
)
TURN = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]), "content": MARK},
        optional={"name": MARK, "id": MARK, "created_at": MARK},
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": MARK},
        optional=dict.fromkeys(("reasoning", "thinking", "mood", "channel"), MARK),
    ),
    st.builds(
        lambda thought, answer: {"role": "assistant", "content": f"<think>{thought}</think>{answer}"},
        MARK,
        MARK,
    ),
    st.builds(
        lambda thought, answer: {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": thought}, {"type": "text", "text": answer}],
        },
        MARK,
        MARK,
    ),
    CALLING,
)
FULL = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(TURN, min_size=1, max_size=4),
        "question": MARK,
        "answer": MARK,
        "prompt": MARK,
        "chosen": MARK | st.lists(TURN, min_size=1, max_size=3),
        "rejected": MARK | st.lists(TURN, min_size=1, max_size=3),
        "completion": MARK,
        "label": st.booleans(),
        "system": MARK,
        "history": st.lists(st.tuples(MARK, MARK), max_size=2),
        "tools": st.lists(st.fixed_dictionaries({"name": MARK}, optional={"description": MARK}), max_size=2),
        "context": MARK,
        "input": MARK,
        "thinking": MARK,
        "images": st.lists(MARK, max_size=2),
        "chat_template_kwargs": st.dictionaries(MARK, MARK, max_size=2),
        "id": MARK,
        "source": MARK,
        "instruction": MARK,
        "output": MARK,
        "text": MARK,
    },
)


def marks(value):
    """All marks in a value."""
    text = json.dumps(
        value, ensure_ascii=False, default=lambda one: {**vars(one)} if hasattr(one, "__dict__") else str(one)
    )
    return set(re.findall(r"mark\d+", text))


def message_marks(messages):
    """All marks that a model would see of messages."""
    return marks(
        [
            [
                one.content,
                one.reasoning_content,
                one.name,
                one.tool_call_id,
                [dict(call) for call in one.tool_calls],
            ]
            for one in messages
        ]
    )


@given(FULL, KIND, st.sampled_from(["stop", "count"]))
@settings(max_examples=400, deadline=None)
def test_whatever_a_row_says_is_in_the_noun_or_named_as_unused(row, kind, on_unused):
    try:
        read = parse_row(row, kind=kind, on_unused=on_unused)
    except RowError as error:
        assert error.reason
        return
    fields = (
        (read.messages,)
        if kind is Conversation
        else (read.prompt, read.chosen, read.rejected)
        if kind is Preference
        else (read.prompt, read.completion)
    )
    kept = (
        set().union(*map(message_marks, fields))
        | marks([dict(one) for one in read.tools])
        | marks(dict(read.chat_template_kwargs))
    )
    assert kept <= marks(row), "nothing is invented"
    unused_columns = {one for one in read.unused if "[" not in one and ":" not in one}
    unused_keys = {one.rpartition(".")[2] for one in read.unused if "[" in one}
    for column, value in row.items():
        if column in unused_columns:
            continue
        lost = marks(value) - kept
        items = value if isinstance(value, list) else []
        lost -= {
            mark
            for item in items
            if isinstance(item, dict)
            for key, held in item.items()
            if key in unused_keys
            for mark in marks(held)
        }
        assert not lost, (column, lost, read.unused)


# what others write


@pytest.mark.parametrize("kind", [Conversation, Preference, Rating])
@pytest.mark.parametrize("mode", ["on", "Off", "high", True, False])
@pytest.mark.parametrize("key", THINKING_KEYS)
def test_a_mode_of_thinking_is_no_thought(kind, mode, key):
    row = {
        Conversation: {"messages": [USER, GOOD]},
        Preference: {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"},
        Rating: {"prompt": "2 + 3?", "completion": "5", "label": True},
    }[kind]
    read = parse_row({**row, key: mode}, kind=kind)
    assert read.unused == (key,) and all(not one.reasoning_content for one in getattr(read, "messages", RIGHT))
    inside = parse_row({"messages": [USER, {**GOOD, key: mode}]})
    assert inside.messages == (*ASKED, *RIGHT) and inside.unused == (f"messages[].{key}",)


@pytest.mark.parametrize(
    "lost",
    [
        {"deepseek_reasoning": "Two and three."},
        {"chosen_reasoning": "Two and three."},
        {"thinkingTrajectory": ["Two and three."]},
        {"chain_of_thought_text": "Two and three."},
        {"systemInstruction": {"parts": [{"text": "Speak like a sailor."}]}},
        {"available_tools": [TOOL]},
        {"tools_json": json.dumps([BARE])},
        {"function_schemas": None, "functions_available": [BARE]},
    ],
)
def test_a_part_of_a_conversation_is_known_by_a_word_of_its_name(lost):
    name = [*lost][-1]
    with pytest.raises(RowError, match="is part of what was said") as caught:
        parse_row({**ANSWERED, **lost})
    assert caught.value.field == name
    assert name in parse_row({**ANSWERED, **lost}, on_unused="count").unused


@pytest.mark.parametrize(
    "beside",
    [{"reasoning_language": "French"}, {"num_tools": 3}, {"system_id": 7}, {"tools_used": ["add"]}, {"has_reasoning": True}],
)
def test_metadata_with_such_a_word_is_counted(beside):
    assert parse_row({**ANSWERED, **beside}).unused == (*beside,)


@pytest.mark.parametrize("form", [lambda chat: chat, json.dumps], ids=["list", "JSON"])
@pytest.mark.parametrize("spell", [lambda one: one, lambda one: {"from": one["role"], "value": one["content"]}], ids=["role", "from"])
def test_messages_in_a_text_are_messages(form, spell):
    asked, good, bad = ([spell(one)] for one in (USER, GOOD, BAD))
    pair = parse_row({"prompt": form(asked), "chosen": form(good), "rejected": form(bad)}, kind=Preference)
    assert (pair.prompt, pair.chosen, pair.rejected) == (ASKED, RIGHT, WRONG)
    whole = parse_row({"chosen": form(asked + good), "rejected": form(asked + bad)}, kind=Preference)
    assert (whole.prompt, whole.chosen, whole.rejected) == (ASKED, RIGHT, WRONG)
    assert parse_row({"prompt": form(asked), "completion": form(good)}).messages == (*ASKED, *RIGHT)


@pytest.mark.parametrize("column", ["prompt", "completion"])
@pytest.mark.parametrize("printed", [str([GOOD]), str([GOOD, GOOD]).replace(", {", "\n {")], ids=["list", "array"])
def test_messages_as_python_prints_them_are_refused(column, printed):
    with pytest.raises(RowError, match="as Python prints it, which is not JSON") as caught:
        parse_row({"prompt": "2 + 3?", "completion": "5", column: printed})
    assert caught.value.field == column


@pytest.mark.parametrize("text", ['[{"role": 1}]', "[1, 2]", '{"answer": 5}', '{"content": "5"}', "[{'a': 1}]", "{", '{"role": "admin"'])
def test_other_json_is_an_answer(text):
    assert parse_row({"prompt": "2 + 3?", "completion": text}).messages[1].content == text


def test_calls_and_results_in_parts_are_calls_and_results():
    thought = {"type": "thinking", "thinking": "A tool helps.", "signature": "x"}
    calls = [{"type": "tool_use", "id": f"t{number}", "name": "add", "input": {"first": number}} for number in (1, 2)]
    results = [{"type": "tool_result", "tool_use_id": f"t{number}", "content": [{"type": "text", "text": str(number)}]} for number in (1, 2)]
    chat = [
        USER,
        {"role": "assistant", "content": [thought, {"type": "text", "text": "I add."}, *calls]},
        {"role": "user", "content": [*results, {"type": "text", "text": "And now?"}]},
        GOOD,
    ]
    read = parse_row({"messages": chat, "system": [{"type": "text", "text": "Be kind."}], "tools": [{"name": "add", "input_schema": SCHEMA}]})
    asked = parse_row({"messages": [USER, {"role": "assistant", "content": "I add.", "reasoning_content": "A tool helps.", "tool_calls": [
        {"id": call["id"], "type": "function", "function": {"name": "add", "arguments": call["input"]}} for call in calls
    ]}, GOOD]})  # fmt: skip
    assert read.messages[0] == Message("system", "Be kind.") and read.messages[1:3] == asked.messages[:2]
    told = [Message("tool", str(number), tool_call_id=f"t{number}") for number in (1, 2)]
    assert read.messages[3:] == (*told, Message("user", "And now?"), *RIGHT)
    assert read.tools == ({"type": "function", "function": {"name": "add", "parameters": SCHEMA}},)


@pytest.mark.parametrize(
    ("role", "parts", "reason"),
    [
        ("assistant", [{"type": "tool_use", "name": "add", "input": {}}, {"type": "text", "text": "So."}], "calls after all text"),
        ("user", [{"type": "text", "text": "So."}, {"type": "tool_result", "tool_use_id": "t", "content": "5"}], "results before all text"),
        ("assistant", [{"type": "tool_use", "input": {}}], "name"),
        ("user", [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}], "no backend takes images"),
        ("user", [{"type": "tool_result", "content": "5"}], "must be text"),
        ("assistant", [{"type": "tool_use", "name": "add", "input": {}, "mood": "merry"}], "does not read"),
    ],
)
def test_parts_that_cannot_be_messages_are_refused(role, parts, reason):
    with pytest.raises(RowError, match=reason) as caught:
        parse_row({"messages": [USER, {"role": role, "content": parts}, GOOD]})
    assert caught.value.field.startswith("messages[1].content")


HH = "Human: 2 + 3?\n\nAssistant:"


@pytest.mark.parametrize("lines", ["\n", "\r\n"])
@pytest.mark.parametrize("space", ["", " "])
def test_dialogues_in_one_text_are_taken_apart(lines, space):
    start = ("\n\n" + HH).replace("\n", lines)
    inside = parse_row({"chosen": f"{start}{space}5", "rejected": f"{start}{space}6"}, kind=Preference)
    beside = parse_row({"prompt": start, "chosen": "5", "rejected": "6"}, kind=Preference)
    assert {(one.prompt, one.chosen, one.rejected) for one in (inside, beside)} == {(ASKED, RIGHT, WRONG)}
    assert parse_row({"prompt": start, "response": "5"}).messages == (*ASKED, *RIGHT)
    talk = f"Human: Hi{lines}{lines}Assistant: Ho{lines}{lines}{start.strip()}"
    assert said({"instruction": talk, "output": "5"}) == ["user: Hi", "assistant: Ho", "user: 2 + 3?", "assistant: 5"]
    assert said({"prompt": "Human: what is it?", "response": "5"})[0] == "user: Human: what is it?"


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [USER], "chosen": GOOD, "rejected": BAD},
        {"messages": [USER], "chosen": "5", "rejected": "6"},
        {"conversation": [{"from": "human", "value": "2 + 3?"}], "chosen": {"from": "gpt", "value": "5"}, "rejected": {"from": "gpt", "value": "6"}},
        {"input": "2 + 3?", "chosen": "5", "rejected": "6"},
        {"problem": "2 + 3?", "chosen": "5", "rejected": "6"},
        {"input": {"messages": [USER], "parallel_tool_calls": True}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_a_pair_finds_its_prompt(row):
    pair = parse_row(row, kind=Preference)
    assert (pair.prompt, pair.chosen, pair.rejected) == (ASKED, RIGHT, WRONG)


def test_a_dialogue_that_is_answered_is_no_prompt_of_a_pair():
    with pytest.raises(RowError, match="ends with an answer") as caught:
        parse_row({"messages": [USER, GOOD], "chosen": GOOD, "rejected": BAD}, kind=Preference)
    assert caught.value.field == "messages"


def test_tools_of_a_preferred_output_are_tools():
    row = {"input": {"messages": [USER], "tools": [TOOL]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
    assert parse_row(row, kind=Preference).tools == (TOOL,)
    with pytest.raises(RowError, match="does not read"):
        parse_row({**row, "input": {**row["input"], "mood": "merry"}}, kind=Preference)


@pytest.mark.parametrize("name", ["correct", "is_correct", "accepted", "upvoted", "is_good", "kto_label", "human_label", "answer_helpful"])
def test_an_answer_that_a_column_calls_bad_is_not_learnt(name):
    for bad in (False, "false", "False"):
        with pytest.raises(RowError, match="is not a good one") as caught:
            parse_row({**ANSWERED, name: bad})
        assert caught.value.field == name
    for other in (True, "true", None, 0.0, 3, "B"):  # no verdict, or a good one
        assert parse_row({**ANSWERED, name: other}).messages == (*ASKED, *RIGHT)
    assert parse_row({**ANSWERED, name: False}, kind=Rating, columns={"label": name}).label is False


def test_labels_of_numpy_are_labels():
    import numpy

    row = {"prompt": "2 + 3?", "completion": "6"}
    assert [parse_row({**row, "label": kind(0)}, kind=Rating).label for kind in (numpy.bool_, numpy.int64, numpy.float32)] == [False] * 3


def test_one_message_of_a_tree_is_no_text():
    with pytest.raises(RowError, match="one message of a conversation") as caught:
        parse_row({"message_id": "7", "parent_id": None, "text": "Hi", "role": "prompter"})
    assert caught.value.field == "role"


def test_problems_with_solutions_are_conversations():
    assert parse_row({"problem": "2 + 3?", "solution": "5", "source": "x"}).messages == (*ASKED, *RIGHT)
    with pytest.raises(RowError) as caught:
        parse_row({**ANSWERED, "solution": "Count on three from two."})
    assert caught.value.field == "solution"
    assert parse_row({"messages": [USER, GOOD], "problem": "2 + 3?", "solution": "Count on."}).unused == ("problem", "solution")


PLAIN = {
    "chat": {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]},
    "prompt and answer": {"prompt": "1 + 1?", "completion": "2"},
}


@pytest.mark.parametrize("form", PLAIN)
def test_reading_a_plain_row_costs_few_calls(form):
    """Counted, not timed: it were 470 calls a row when types were compared again for each, and formats looked up anew."""
    import cProfile
    import pstats

    rows = [(f"rows.jsonl, row {number}", PLAIN[form]) for number in range(1, 301)]
    list(parse_each(rows[:10]))
    profile = cProfile.Profile()
    assert len(profile.runcall(lambda: list(parse_each(rows)))) == 300
    assert pstats.Stats(profile).total_calls / 300 < 280


def test_formats_that_are_added_or_taken_away_are_seen_at_once():
    row = {"frage": "1 + 1?", "antwort": "2"}
    with pytest.raises(RowError, match="no known format"):
        parse_row(row)
    FORMATS["german"] = RowFormat("german", ("frage", "antwort"), question_answer_reader("frage", "antwort"))
    try:
        assert parse_row(row).messages[1].content == "2"
    finally:
        del FORMATS["german"]
    with pytest.raises(RowError, match="no known format"):
        parse_row(row)
    for wrong in ([1, 2], "text", None):
        (found,) = parse_each(iter([("rows.jsonl, row 1", wrong)]), "set_aside")
        assert isinstance(found, RowError) and "must be an object" in found.reason and found.row == 1


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_ratings_where_pairs_are_wanted_say_what_to_do(loss, tmp_path):
    from kitchen.session.kitchen import Kitchen

    path = tmp_path / "rated.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": "yes", "label": n % 2 == 0}) + "\n" for n in range(20)))
    k = Kitchen("dpo", backend="toy", dataset=f"file:{path}", preference_loss=loss, batch_size=4, run_dir=tmp_path / "run")
    with pytest.raises(RowError, match="row 1: .*are ratings.*chosen and rejected.*sft on the good answers") as error:
        k.run()
    assert error.value.row == 1
    k.close()
