"""What `parse_response` gives back from a rendered answer is the message, whatever it says; and nothing but kitchen's own errors comes out."""

from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rendering import CHATML, STRIPS_THINKING, tokenizer

from kitchen.rendering.base import render_parts, to_datums
from kitchen.rendering.parsing import _CALL_FORMATS, read_tool_calls
from kitchen.rendering.registry import get_renderer
from kitchen.types import Message, RowError

NAMES = st.text("abcdefghij_", min_size=1, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
CALLS = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    NAMES,
    st.dictionaries(NAMES, VALUES, max_size=3),
)
made = lru_cache(lambda name, template: get_renderer(name, tokenizer(template)))
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30).map(str.strip)
PLAIN = WORDS.filter(lambda text: "<think>" not in text and "</think>" not in text and "tool_call" not in text)
THINKS_AND_CALLS = STRIPS_THINKING.replace(
    "{{- message.content + '<|im_end|>\n' }}",
    "{{- message.content }}{% for call in message.tool_calls or [] %}"
    "{{ '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}",
)


@settings(max_examples=25, deadline=None)
@given(PLAIN, PLAIN, st.lists(CALLS, max_size=2))
@pytest.mark.parametrize(("name", "template"), [("template", THINKS_AND_CALLS), ("qwen3", CHATML), ("chatml", CHATML)])
def test_an_answer_comes_back_as_it_was_written(name, template, content, thinking, calls):
    renderer = made(name, template)
    said = tuple(calls) if name != "chatml" else ()
    answer = Message("assistant", content, thinking.strip("\n") or None, said)
    chat = [Message("user", "?"), answer]
    (part,) = [one for one in render_parts(renderer, chat, {1}) if one.generated and one.message_index == 1]
    back, ended = renderer.parse_response(part.tokens)
    assert ended and part.tokens[-1] in renderer.stop_sequences()
    assert (back.content, (back.reasoning_content or "").strip()) == (content, thinking.strip())
    assert list(back.tool_calls) == [dict(call) for call in said]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=120), st.sampled_from(["", "<tool_call>", "[TOOL_CALLS]", "{", "<|channel|>analysis<|message|>"]))
@pytest.mark.parametrize("name", [*_CALL_FORMATS, "harmony"])
def test_reading_calls_never_loses_a_run(name, text, start):
    message = Message("assistant", start + text)
    found = read_tool_calls(message, name)
    assert found.content or found.tool_calls or found.reasoning_content or not message.content or name == "harmony"


MESSAGES = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), WORDS, st.none() | WORDS, st.lists(CALLS, max_size=1).map(tuple)
)


@settings(max_examples=25, deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=6))
@pytest.mark.parametrize("template", [THINKS_AND_CALLS, CHATML, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"])
def test_each_answer_is_trained_once_or_the_row_is_named(template, chat):
    renderer = made("template", template)
    try:
        data = to_datums(renderer, chat, "all_assistant_messages", "chats.jsonl, row 3")
    except RowError as error:
        assert error.row == 3
        return
    stops = set(renderer.stop_sequences())
    for datum in data:
        trained = [*(datum.weights > 0), False]
        ends = [int(datum.targets[place]) for place in range(len(datum)) if trained[place] and not trained[place + 1]]
        assert set(ends) <= stops
    assert sum(int(target) in stops for datum in data for target in datum.targets[datum.weights > 0]) == sum(
        message.role == "assistant" for message in chat
    )
