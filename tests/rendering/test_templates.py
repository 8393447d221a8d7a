"""Chat templates of today's models, those that TRL ships: tokens as transformers', masks as TRL's, ends trained, answers read back.

Where ours differ from TRL's masks it is on purpose, and listed here: the line break after the end of a turn is nobody's; what the generation
prompt holds already is not trained; thinking that a row has is trained where TRL's template drops it.
"""

import datetime
import re
from dataclasses import replace
from functools import lru_cache

import pytest

trl = pytest.importorskip("trl")

from importlib.resources import files  # noqa: E402

from kitchen.adapters.torch.tokenizers import HuggingFaceTokenizer  # noqa: E402
from kitchen.rendering.base import concatenate_tokens, prompt_tokens, to_datums  # noqa: E402
from kitchen.rendering.model_template import TemplateRenderer  # noqa: E402
from kitchen.types import InvalidValue, Message, RowError  # noqa: E402
from kitchen.workflows.base import make_question  # noqa: E402

FOLDER = files("trl") / "chat_templates"
NAMES = sorted(one.name.removesuffix(".jinja") for one in FOLDER.iterdir() if one.name.endswith(".jinja"))
TEMPLATES = [name for name in NAMES if not name.endswith("_training")]
CONTROL = re.compile(
    r"<\|[^|<>{}' ]+\|>|<｜[^｜<>{}' ]+｜>|</?think>|</?tool_call>|</?tool_response>|<start_of_turn>|<end_of_turn>|"
    r"\[gMASK\]|<sop>|</s>|\[/?INST\]|<end_of_utterance>|<turn\|>|<\|turn>|<\|[a-z_]+>|<[a-z_]+\|>"
)
CALL = {"type": "function", "id": "call00001", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}}
PROPERTIES = {"city": {"type": "string", "description": "Which"}, "days": {"type": "integer"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
SCHEMA = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city <now>.", "parameters": PARAMETERS},
}
ASKS, ANSWERS = Message("user", "2 + 3?"), Message("assistant", "5")
LOOP = [
    Message("user", "Weather?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "sunny", name="get_weather", tool_call_id="call00001"),
    Message("assistant", "Sunny."),
]
CASES = {
    "one turn": ([ASKS, ANSWERS], []),
    "system": ([Message("system", "Be brief."), ASKS, ANSWERS], []),
    "turns": ([ASKS, ANSWERS, Message("user", "And?"), Message("assistant", "No.")], []),
    "tools": (LOOP, [SCHEMA]),
    "thinking": (
        [
            ASKS,
            replace(ANSWERS, reasoning_content="two and three"),
            Message("user", "1 + 1?"),
            Message("assistant", "2", reasoning_content="one and one"),
        ],
        [],
    ),
    "mixed thinking": (
        [ASKS, replace(ANSWERS, reasoning_content="two and three"), Message("user", "And?"), Message("assistant", "No.")],
        [],
    ),
    "thinking and tools": (
        [LOOP[0], replace(LOOP[1], reasoning_content="a tool"), LOOP[2], replace(LOOP[3], reasoning_content="so")],
        [SCHEMA],
    ),
}


@lru_cache(maxsize=128)
def made(name):
    "A tokenizer of transformers and ours: bytes, and the control tokens of a template."
    import tempfile

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    eos = "<｜end▁of▁sentence｜>" if name.startswith("deepseek") else "</s>" if name == "llava_next" else "<|endoftext|>"
    names = list(dict.fromkeys(["<s>", eos, *sorted(set(CONTROL.findall(source)))]))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in names])
    theirs = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos)
    theirs.chat_template = source
    folder = tempfile.mkdtemp()
    theirs.save_pretrained(folder)
    ours = HuggingFaceTokenizer(folder)
    renderer = TemplateRenderer(ours)
    if "strftime_now" in renderer.template.settable:  # transformers tells today
        renderer = renderer.with_chat_template_kwargs({"strftime_now": datetime.date.today().isoformat()})
    return theirs, ours, renderer


def dicts(chat, parts=False):
    shown = [message.as_dict() for message in chat]
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in shown] if parts else shown


def their_ids(name, chat, tools, **more):
    "What transformers gives; None where the template refuses."
    theirs, _, renderer = made(name)
    told = dicts(chat, renderer.template._wants_parts)
    try:
        return theirs.apply_chat_template(told, tools=tools or None, return_dict=True, **more)
    except Exception:
        return None


def answer_runs(weights, targets, decode):
    "Texts of what is trained, one for each stretch."
    found, kept = [], []
    for weight, token in zip([*weights, 0], [*targets, -1], strict=True):
        if weight:
            kept.append(int(token))
        elif kept:
            found.append(kept)
            kept = []
    return [(decode(run, control=True), run) for run in found]


def our_answers(name, case):
    "Texts and tokens of all trained answers; the error where the conversation is refused."
    chat, tools = CASES[case]
    _, ours, renderer = made(name)
    try:
        data = to_datums(renderer, chat, "all_assistant_messages", "rows, row 1", tools)
    except RowError as error:
        return error
    return [run for datum in data for run in answer_runs(datum.weights, datum.targets, ours.decode)]


# -- tokens --------------------------------------------------------------------------------------

# templates that show no call whose content is the empty text transformers is given; ours give them none
CALLS_WANT_NO_CONTENT = {"deepseek_r1_distill"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers(name, case):
    chat, tools = CASES[case]
    _, _, renderer = made(name)
    expected = their_ids(name, chat, tools)
    try:
        whole = concatenate_tokens(renderer.render(chat, set(), tools))
    except InvalidValue as error:
        assert expected is None or "does not show the tools get_weather" in str(error), "only what would be lost is refused"
        return
    if tools and name in CALLS_WANT_NO_CONTENT or expected is None:
        return
    assert whole == expected["input_ids"]
    prompt = their_ids(name, chat[:-1], tools, add_generation_prompt=True)
    assert renderer.generation_prompt(chat[:-1], tools) == prompt["input_ids"]


# -- masks ---------------------------------------------------------------------------------------

# what stands in TRL's masks before an answer, and in the generation prompt of the same template
IN_THE_PROMPT = (
    "", "\n", "<think>\n", "<think></think>", "<think>", "<think>\n\n</think>\n\n", "<|start|>assistant", "<｜Assistant｜>", "<｜tool▁outputs▁end｜>",
)  # fmt: skip
# what is appended where a template opens thinking in its prompt, and does not close it
EMPTY_BLOCK = "\n</think>\n\n"
DIFFERENT = {
    "gptoss": "an earlier answer ends with <|return|>, as it is generated; TRL trains the <|end|> of history",
    "diffusion_gemma": "a call ends with <|tool_response>, where sampling stops; TRL trains no end",
    "deepseek_r1_distill": "TRL trains an empty answer in the place of a call whose content is empty",
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [name for name in TEMPLATES if f"{name}_training" in NAMES])
def test_masks_are_those_of_trl(name, case):
    chat, tools = CASES[case]
    _, ours, _ = made(name)
    training = (FOLDER / f"{name}_training.jinja").read_text(encoding="utf-8")
    told = their_ids(name, chat, tools, chat_template=training, return_assistant_tokens_mask=True)
    found = our_answers(name, case)
    if told is None:
        return
    if isinstance(found, RowError):
        assert re.search("does not show the (thinking|tool call|tools)", str(found)), found
        return
    expected = answer_runs(told["assistant_masks"], told["input_ids"], ours.decode)
    assert len(found) == len(expected)
    for message, (mine, _), (trained, _) in zip([one for one in chat if one.role == "assistant"], found, expected, strict=True):
        wanted = trained.removesuffix("\n<|endoftext|>").rstrip("\n")
        if (message.reasoning_content or "") not in trained:
            assert message.reasoning_content in mine, "thinking that TRL drops is trained here"
        elif not any(wanted == lead + mine or wanted == lead + mine.removeprefix(EMPTY_BLOCK) for lead in IN_THE_PROMPT):
            assert name in DIFFERENT, (mine, wanted)


# -- ends, prompts, and back ---------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_is_trained_once_ends_with_a_stop_and_is_read_back(name, case):
    chat, tools = CASES[case]
    _, ours, renderer = made(name)
    found = our_answers(name, case)
    if isinstance(found, RowError):
        assert re.search("does not show|refuses this conversation|no way to thinking", str(found)), found
        assert found.row == 1
        return
    answers = [message for message in chat if message.role == "assistant"]
    assert len(found) == len(answers)
    for message, (text, tokens) in zip(answers, found, strict=True):
        assert tokens[-1] in renderer.stop_sequences(), text
        assert not set(tokens[:-1]) & set(renderer.stop_sequences()), "it would stop earlier"
        back, ended = renderer.parse_response(tokens)
        assert ended
        if name == "diffusion_gemma" and tools:
            continue  # its prompt after a result has no header of a turn, and its history has one
        if renderer._call_format in (None, "llama") and (message.tool_calls or message.reasoning_content):
            continue  # formats that nobody reads back: the text stays
        assert (back.content, back.reasoning_content) == (message.content, message.reasoning_content), text
        assert [one["function"] for one in back.tool_calls] == [one["function"] for one in message.tool_calls], text


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_is_asked_after_the_prompt_that_its_answer_is_trained_after(name, case):
    chat, tools = CASES[case]
    renderer = made(name)[2]
    try:
        data = to_datums(renderer, chat, "last_assistant_message", "", tools)
    except RowError:
        return
    (datum,) = data
    start = int((datum.weights > 0).argmax())
    asked = list(make_question(renderer, chat[:-1], chat[-1], tools).prompt)
    assert datum.tokens[: start + 1].tolist() == asked
    switches = {"enable_thinking", "thinking"} & renderer.template.settable
    ways = [renderer, *(renderer.with_chat_template_kwargs({one: value}) for one in switches for value in (True, False))]
    assert asked in [prompt_tokens(one, chat[:-1], tools) for one in ways]


# -- variables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variables", "sees"),
    [
        ("qwen3", {"enable_thinking": False}, "<think>\n\n</think>"),
        ("qwen3_8", {"reasoning_effort": "low"}, None),
        ("gptoss", {"reasoning_effort": "high"}, "Reasoning: high"),
        ("gptoss", {"strftime_now": "2031-02-03"}, "Current date: 2031-02-03"),
        ("llama3_2", {"date_string": "3 Feb 2031"}, "Today Date: 3 Feb 2031"),
        ("glm4moe", {"enable_thinking": False}, "/nothink"),
        ("nemotron_3_nano", {"enable_thinking": False}, "<think></think>"),
    ],
)
def test_variables_reach_the_template_as_with_transformers(name, variables, sees):
    theirs, ours, renderer = made(name)
    told = renderer.with_chat_template_kwargs(variables)
    prompt = told.generation_prompt([ASKS])
    assert sees is None or sees in ours.decode(prompt, control=True)
    assert prompt != renderer.generation_prompt([ASKS])
    if "strftime_now" not in variables:
        expected = theirs.apply_chat_template(dicts([ASKS]), add_generation_prompt=True, return_dict=True, **variables)
        assert prompt == expected["input_ids"]
    datum = to_datums(renderer, [ASKS, ANSWERS], chat_template_kwargs=variables)[0]
    assert datum.tokens.tolist()[: len(prompt)] == prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_variable_that_no_template_reads_is_refused(name):
    renderer = made(name)[2]
    for wrong in ("enable_thinkng", "messages", "content", "tools"):
        with pytest.raises(InvalidValue, match=wrong):
            renderer.with_chat_template_kwargs({wrong: False})
    with pytest.raises(RowError, match="rows, row 3.*enable_thinkng"):
        to_datums(renderer, [ASKS, ANSWERS], "all_assistant_messages", "rows, row 3", (), {"enable_thinkng": False})
