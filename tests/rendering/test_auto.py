"""`auto`: the model's template first, its family's renderer where the template refuses; and what an export's template carries of training."""

import sys
from importlib.resources import files
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from family_cases import CASES, MODES, TOOLS
from test_families import FamilyTokenizer, read_messages

from kitchen.rendering.base import concatenate_tokens, to_datum, to_datums
from kitchen.rendering.explain import explain_row
from kitchen.rendering.exported_template import exported_chat_template, exported_template_reason
from kitchen.rendering.model_template import TemplateRenderer
from kitchen.rendering.registry import RENDERERS, AutoRenderer, get_renderer
from kitchen.types import InvalidValue, Message, RowError

TEMPLATED = [
    mode for mode, about in MODES.items() if "template" in about and about["template"][0] != "mistral_nemo"
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}

RESULT = Message("tool", "3", name="add")


def family_tokenizer(mode):
    "The tokenizer of a mode's family, with the model's own chat template."
    made = FamilyTokenizer(MODES[mode]["family"])
    made.chat_template = (files("trl") / "chat_templates" / f"{MODES[mode]['template'][0]}.jinja").read_text(
        encoding="utf-8"
    )
    return made


def made_by(renderer, messages, train_on, tools=()):
    "The datums' tokens and weights, or None where the renderer refuses."
    try:
        return [
            (one.tokens.tolist(), one.weights.tolist())
            for one in to_datums(renderer, messages, train_on, tools=tools)
        ]
    except RowError:
        return None


@pytest.mark.parametrize("mode", TEMPLATED)
def test_auto_is_the_template_where_it_suffices_and_else_the_family(mode):
    tokenizer, values = family_tokenizer(mode), MODES[mode]["template"][1]
    auto, template = get_renderer("auto", tokenizer, values), get_renderer("template", tokenizer, values)
    assert isinstance(auto, AutoRenderer) and auto.family is not None
    for name in ("turns", "system and tools", "thinking, turns"):
        messages, tools = read_messages(CASES[name]), TOOLS if CASES[name].get("tools") else ()
        for train_on in ("all_assistant_messages", "all_messages"):
            auto.refused.clear()
            ours, theirs = (
                made_by(auto, messages, train_on, tools),
                made_by(template, messages, train_on, tools),
            )
            family = made_by(auto.family, messages, train_on, tools)
            assert bool(auto.refused) <= (ours != theirs or ours is None), "told only where it was used"
            assert ours == (theirs if theirs is not None else ours) and (ours is None) <= (family is None)


TAUGHT_BY_THE_FAMILY = {
    "gpt-oss, medium": [Message("user", "?"), Message("assistant", "", tool_calls=(CALL, CALL)), *[RESULT] * 2, Message("assistant", "3")],
    "llama 3": [Message("user", "?"), Message("assistant", "5", reasoning_content="two and three")],
    "qwen3.5": [Message("system", "Be brief.", trainable=True), Message("user", "?"), Message("assistant", "5")],
    "qwen3.8": [Message("system", "Be brief.", trainable=True), Message("user", "?"), Message("assistant", "5")],
    "llama 3.1": [
        Message("user", "?"), Message("assistant", "", tool_calls=(CALL,)), Message("tool", '{"sum": 3}', trainable=True), Message("assistant", "3"),
    ],
    "gemma 3": [Message("system", "Be brief.", trainable=True), Message("user", "?"), Message("assistant", "5")],
}  # fmt: skip


@pytest.mark.parametrize("mode", TAUGHT_BY_THE_FAMILY)
def test_a_conversation_that_a_template_refuses_is_taught_by_the_family_and_the_reason_is_told(mode):
    tokenizer, messages = family_tokenizer(mode), TAUGHT_BY_THE_FAMILY[mode]
    auto = get_renderer("auto", tokenizer)
    with pytest.raises(RowError):
        to_datums(get_renderer("template", tokenizer), messages)
    told = explain_row(auto, messages)
    own = to_datums(RENDERERS[MODES[mode]["ours"][0]](tokenizer), messages)
    assert [one.tokens.tolist() for one in told.datums] == [one.tokens.tolist() for one in own]
    assert [one.weights.tolist() for one in told.datums] == [one.weights.tolist() for one in own]
    reason = f"{type(auto.family).__name__}, of the model's family, in place of the chat template: "
    assert any(one.startswith(reason) for one in told.reasons), told.reasons
    again = explain_row(auto, messages)
    assert any(one.startswith(reason) for one in again.reasons), "told of every row"
    plain = explain_row(auto, [Message("user", "?"), Message("assistant", "5")])
    assert not any("of the model's family" in one for one in plain.reasons)


def test_what_both_refuse_is_refused_in_the_templates_words():
    tokenizer = family_tokenizer("gemma 3")
    messages = [Message("user", "?"), Message("user", "?"), Message("assistant", "5")]
    with pytest.raises(RowError) as template:
        to_datums(get_renderer("template", tokenizer), messages)
    with pytest.raises(RowError) as auto:
        to_datums(get_renderer("auto", tokenizer), messages)
    assert str(auto.value) == str(template.value)


def test_an_unknown_template_has_no_family_to_turn_to():
    tokenizer = family_tokenizer("llama 3")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end_header_id|>", "<|end_header_id|>\n")
    assert get_renderer("auto", tokenizer).family is None, "what asks otherwise is another format"
    with pytest.raises(RowError, match="does not show the thinking"):
        to_datums(get_renderer("auto", tokenizer), TAUGHT_BY_THE_FAMILY["llama 3"])


def test_a_variable_that_the_family_does_not_know_leaves_the_template_alone():
    tokenizer = family_tokenizer("llama 3")
    tokenizer.chat_template += "{% if style is defined %}{{ style }}{% endif %}"
    assert get_renderer("auto", tokenizer).family is not None
    assert get_renderer("auto", tokenizer, {"style": ""}).family is None


# -- what an export carries ----------------------------------------------------------------------

OTHERS = {"enable_thinking": True, "reasoning_effort": "medium", "medium_effort": False, "date_string": "1 Jan 2020"}
VARIABLES = [
    ("qwen3", {"enable_thinking": False}),
    ("qwen3.5", {"enable_thinking": False}),
    ("qwen3.8", {"reasoning_effort": "low"}),
    ("nemotron 3", {"enable_thinking": False}),
    ("nemotron 3 ultra", {"medium_effort": True}),
    ("glm 4.5", {"enable_thinking": False}),
    ("gpt-oss, medium", {"reasoning_effort": "high"}),
    ("llama 3.1", {"date_string": "30 Jun 2025", "tools_in_user_message": False}),
]


@pytest.mark.parametrize("renderer", ["auto", "family"])
@pytest.mark.parametrize(("mode", "values"), VARIABLES, ids=[mode for mode, _ in VARIABLES])
def test_the_exported_template_asks_as_it_was_trained(mode, values, renderer):
    tokenizer = family_tokenizer(mode)
    name = MODES[mode]["ours"][0] if renderer == "family" else renderer
    trained = get_renderer(name, tokenizer, values)
    exported = family_tokenizer(mode)
    exported.chat_template = exported_chat_template(trained)
    assert exported.chat_template.endswith(tokenizer.chat_template)
    told = ", ".join(f"{key}={value!r}" for key, value in values.items())
    assert exported_template_reason(trained, exported.chat_template).endswith(told)
    wanted, original = TemplateRenderer(tokenizer, values), TemplateRenderer(tokenizer)
    plain = TemplateRenderer(exported)
    explicit = next({key: other} for key, other in OTHERS.items() if key in values)
    for case in (CASES["thinking, tools, turns"],):
        messages, tools = read_messages(case)[:-1], TOOLS if case.get("tools") else ()
        assert asked(plain, messages, tools) == asked(wanted, messages, tools)
        given = asked(plain.with_chat_template_kwargs(explicit), messages, tools)
        assert given == asked(original.with_chat_template_kwargs({**values, **explicit}), messages, tools), (
            "what is given still wins"
        )
    again = exported_chat_template(get_renderer("template", exported, explicit))
    exported.chat_template = again
    assert asked(TemplateRenderer(exported), read_messages(CASES["system"])[:-1]) == asked(
        TemplateRenderer(tokenizer, {**values, **explicit}), read_messages(CASES["system"])[:-1]
    )


def asked(renderer, messages, tools=()):
    try:
        return renderer.generation_prompt(messages, tools)
    except InvalidValue as error:
        return str(error)


def test_what_was_not_set_or_is_a_date_is_not_carried():
    tokenizer = family_tokenizer("gpt-oss, medium")
    for values in ({}, {"strftime_now": "2025-06-30"}):
        trained = get_renderer("auto", tokenizer, values)
        assert exported_chat_template(trained) == tokenizer.chat_template
        assert exported_template_reason(trained, tokenizer.chat_template) == ""


# -- the beginning of a text ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RENDERERS if name != "template"])
@pytest.mark.parametrize(
    "template",
    ["", "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"],
    ids=["none", "with"],
)
def test_the_beginning_stands_once_where_the_tokenizer_has_it(name, template):
    known = {mode["ours"][0]: mode["family"] for mode in MODES.values()}
    tokenizer = FamilyTokenizer(known.get(name, "qwen3"))
    tokenizer.chat_template = template
    if known.get(name, "qwen3") in (
        "qwen3",
        "kimi",
        "glm",
        "gpt_oss",
    ):  # whose tokenizers add none, and name none but as a start of other things
        tokenizer.template_variables = {"eos_token": tokenizer.template_variables["eos_token"]}
    bos = tokenizer.control_tokens.get(tokenizer.template_variables.get("bos_token", ""))
    messages = [Message("user", "<s> 2 + 3?"), Message("assistant", "5")]
    renderer = get_renderer(name, tokenizer)
    whole = to_datum(renderer, messages)
    for tokens in (
        whole.tokens.tolist(),
        renderer.generation_prompt(messages[:1]),
        concatenate_tokens(renderer.render(messages)),
    ):
        assert tokens.count(bos) == (bos is not None) and (bos is None or tokens[0] == bos)


def test_role_colon_begins_as_the_tokenizer_says():
    tokenizer = FamilyTokenizer("llama3")
    messages = [Message("user", "2 + 3?"), Message("assistant", "5")]
    begun = get_renderer("role_colon", tokenizer)
    tokenizer.template_variables = {}
    bare = get_renderer("role_colon", tokenizer)
    assert begun.generation_prompt(messages[:1]) == [
        tokenizer.control_tokens["<|begin_of_text|>"],
        *bare.generation_prompt(messages[:1]),
    ]
    datum = to_datum(begun, messages)
    assert datum.tokens[0] == tokenizer.control_tokens["<|begin_of_text|>"] and datum.weights[0] == 0
    tokenizer.template_variables = {"bos_token": "<typed>"}  # named, but no token
    assert get_renderer("role_colon", tokenizer).generation_prompt(messages[:1]) == bare.generation_prompt(
        messages[:1]
    )


@pytest.mark.parametrize("speaker", ["user", "assistant", "system"])
def test_a_name_that_a_format_does_not_write_is_refused(speaker):
    said = [Message("system", "Be kind."), Message("user", "2 + 3?"), Message("assistant", "5")]
    named = [Message(one.role, one.content, name="Ada" if one.role == speaker else "") for one in said]
    with pytest.raises(RowError, match=rf"does not show the name 'Ada' of message \d \({speaker}\)"):
        to_datums(get_renderer("chatml", FamilyTokenizer("qwen3")), named)
    kimi = FamilyTokenizer("kimi")
    (datum,) = to_datums(get_renderer("kimi_k2", kimi), named)
    assert "Ada" in kimi.decode(datum.tokens.tolist(), control=True)
