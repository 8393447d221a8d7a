"""Renderers of model families against what independent ones wrote for the same conversations (`families.json`, made by `oracles.py`)."""

import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from family_cases import CASES, CONTROL_TOKENS, MODES, TOOLS, marked

from kitchen.adapters.toy.tokenizer import ToyTokenizer
from kitchen.rendering.base import concatenate_tokens, read_response, to_datums
from kitchen.rendering.registry import get_renderer
from kitchen.types import InvalidValue, Message, RowError

GOLDEN = Path(__file__).with_name("families.json")
PAGE = Path(__file__).resolve().parents[2] / "nbs" / "guides" / "16_model_families.ipynb"


@cache
def golden():
    "What the oracles wrote: mode -> case -> oracle -> its ways to train, each some sequences, and its prompt; or its refusal."
    stored = json.loads(GOLDEN.read_text(encoding="utf-8"))

    def whole(text):
        return re.sub("⟪([0-9]+)⟫", lambda found: stored["lines"][int(found.group(1))], text)

    def read(case):
        texts = [whole(text) for text in case["texts"]]
        for answer in case["oracles"].values():
            if "ways" in answer:
                answer["ways"] = [[texts[number] for number in way] for way in answer["ways"]]
                cut = re.sub("[⟦⟧]", "", answer["ways"][0][-1])
                prompt = answer["prompt"]
                answer["prompt"] = cut[:prompt] if isinstance(prompt, int) else whole(prompt)
        return case["oracles"]

    return {
        mode: {name: read(case) for name, case in cases.items()} for mode, cases in stored["modes"].items()
    }


class FamilyTokenizer(ToyTokenizer):
    "Bytes, and the control tokens of a family."

    def __init__(self, family):
        names = CONTROL_TOKENS[family]
        self.name, self.control_tokens = family, {name: 256 + place for place, name in enumerate(names)}
        self.eos_token_id = 257
        self.template_variables = {"bos_token": names[0], "eos_token": names[1]}
        self.pattern = re.compile("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")")
        self.spelled = {number: name.encode() for name, number in self.control_tokens.items()}

    def decode(self, tokens, control=False):
        pieces = [self.spelled[token] if token > 255 else bytes([token]) for token in map(int, tokens)]
        return b"".join(pieces).decode(errors="replace")


def read_messages(case):
    return [Message(**{**one, "tool_calls": tuple(one.get("tool_calls", ()))}) for one in case["messages"]]


def marked_datum(datum, decode):
    "The text of a datum with marks around what it trains."
    return marked(decode, [*datum.tokens, datum.targets[-1]], [0, *(datum.weights > 0)])


@cache
def ours(mode, case):
    "The sequences that kitchen trains, and its prompt; or why it refuses."
    name, values = MODES[mode]["ours"]
    renderer = get_renderer(name, FamilyTokenizer(MODES[mode]["family"]), values)
    messages, tools = read_messages(CASES[case]), TOOLS if CASES[case].get("tools") else ()
    train_on = "last_assistant_turn" if CASES[case].get("last_turn") else "all_assistant_messages"
    decode = renderer.tokenizer.decode
    try:
        prompt = decode(renderer.generation_prompt(messages[:-1], tools))
        made = [marked_datum(one, decode) for one in to_datums(renderer, messages, train_on, tools=tools)]
    except (InvalidValue, RowError) as error:
        return str(error), None
    return made, prompt


# -- comparison ----------------------------------------------------------------------------------

EQUAL, PROMPT_TOO, ENDING, TEXT, LAST, OTHER, REFUSES = "=", "+", "e", "t", "s", "≠", "R"
MEANING = {
    EQUAL: "the same sequences, trained in the same places",
    PROMPT_TOO: "the same text; also trains what the prompt already says of an answer",
    ENDING: "the same but for the token that ends the last answer",
    TEXT: "the same text; says nothing of what is trained",
    LAST: "the same text of the whole conversation; other sequences or places trained",
    OTHER: "another text",
    REFUSES: "refused by it",
}


def normal(text):
    "Without the line break after the last turn, which some train; kitchen neither writes nor trains it."
    return text.replace("\n⟧", "⟧\n").rstrip("\n")


def plain(text):
    return normal(text).replace("⟦", "").replace("⟧", "")


_OPENINGS = (
    r"<\|start\|>assistant",
    "<｜Assistant｜>",
    "<think>\n\n</think>\n\n",
    "<think></think>",
    "<think>\n",
    "<think>",
    "</think>",
    "\n",
)


def _without_openings(text):
    "The text with each trained span begun as late as any prompt could have it."
    before = None
    while before != text:
        before = text
        text = re.sub("⟦(" + "|".join(_OPENINGS) + ")", r"\1⟦", text)
    return text


def verdict(ours_made, way, mask=True):
    "How a way of an oracle to train a conversation stands to kitchen's."
    mine, theirs = [normal(one) for one in ours_made], [normal(one) for one in way]
    if mask and mine == theirs:
        return EQUAL
    if [plain(one) for one in mine] == [plain(one) for one in theirs]:
        if not mask:
            return TEXT
        if [_without_openings(one) for one in mine] == [_without_openings(one) for one in theirs]:
            return PROMPT_TOO
    if plain(mine[-1]) == plain(theirs[-1]):
        return LAST
    return (
        ENDING
        if re.sub(r"<[^<>]+>⟧?$", "", plain(mine[-1])) == re.sub(r"<[^<>]+>⟧?$", "", plain(theirs[-1]))
        else OTHER
    )


def best_verdict(mode, case, oracle, answer):
    "The best verdict among the ways an oracle knows, and whether its prompt is kitchen's."
    made, prompt = ours(mode, case)
    if "refused" in answer or prompt is None:
        return REFUSES, True
    order = list(MEANING)
    found = [verdict(made, way, mask=oracle != "template") for way in answer["ways"]]
    return min(found, key=order.index), answer["prompt"] == prompt


# -- the proof -----------------------------------------------------------------------------------

SAME_AUTHORS = {
    "template": "transformers",
    "trl": "transformers",
}  # TRL's training templates are edits of the models' own
OFF = "thinking is turned off"
NO_PLACE = "has no place for the thinking"
# where two independent renderers agree and kitchen does not, or none agrees with kitchen: why
DIFFERENCES = {
    (
        "deepseek v3.1*",
        "*tools*",
    ): "tools are declared as the model's own template does; the cookbook leaves out an empty line and a sentence",
    (
        "deepseek v3.1*",
        "calls, undeclared",
    ): "an answer that only calls tools ends with its end token, as in the model's own template",
    (
        "deepseek v3.1, thinking",
        "*",
    ): "a thought that is empty is closed, as in V4; tml-renderers leaves it open",
    (
        "deepseek r1",
        "*",
    ): "R1's template drops all thinking, so that what it writes can never follow its own prompt; kitchen trains the thought",
    (
        "qwen3.5*",
        "calls, undeclared",
    ): "the calls and the answer of a turn, where one continues the other, are one sequence",
    (
        "qwen3.6*",
        "calls, undeclared",
    ): "the calls and the answer of a turn, where one continues the other, are one sequence",
    (
        "deepseek v4*",
        "calls, undeclared",
    ): "the calls and the answer of a turn, where one continues the other, are one sequence",
    (
        "qwen3.5, thinking off",
        "turns",
    ): "earlier answers stand in the context without the empty block; each is trained after its prompt",
    (
        "qwen3.6",
        "turns",
    ): "an earlier answer stands in the context without a block; it is trained after the prompt that it follows",
    (
        "nemotron 3",
        "thinking, tools, turns",
    ): "two and two disagree about white space in an earlier call; kitchen follows the model's own template",
    (
        "kimi k2.5*",
        "*",
    ): "no system message is made up (the cookbook makes one up), and thinking is shown (renderers shows none)",
    ("kimi k2.6*", "*"): "no system message is made up, as tml-renderers and renderers have it for K2.5",
    (
        "gpt-oss*",
        "system and tools",
    ): "the transformers template writes one call of several; kitchen writes all, as tml-renderers does",
    (
        "gpt-oss*",
        "*thinking*",
    ): "the thought before a call stays until the next question, as in tml-renderers and the cookbook",
    (
        "qwen3, thinking off",
        "*tools",
    ): "the prompt holds the empty block, so it is not trained; renderers writes it into earlier answers too",
    (
        "role and colon",
        "*",
    ): "where an answer ends, the next question's header is trained too, for it is the stop; thinking is written between marks",
}
REFUSALS = {  # what kitchen refuses although others write something: they leave out what the row says
    OFF: "thinking in an answer whose prompt has closed it",
    NO_PLACE: "thinking where the format has none: others drop it",
    "cannot show": "tools where the format cannot declare them: others drop them",
    "has no tools": "calls where the format has none",
    "which this renderer cannot write": "calls where the format has none",
    "text beside its calls": "text beside a call where the format has one or the other",
    "several calls": "several calls where the format has one",
}


def difference(mode, case):
    "The stated reason why a mode differs in a case."
    from fnmatch import fnmatchcase

    return next(
        (
            why
            for (modes, cases), why in DIFFERENCES.items()
            if fnmatchcase(mode, modes) and fnmatchcase(case, cases)
        ),
        None,
    )


def agreements(answers):
    "What at least two independent renderers agree on: whole sequences, openings of answers aside; last texts; prompts."
    found = {"sequences": {}, "text": {}, "prompt": {}}
    for oracle, answer in answers.items():
        author = SAME_AUTHORS.get(oracle, oracle)
        for way in answer.get("ways", ()):
            found["text"].setdefault(plain(way[-1]), set()).add(author)
            if oracle != "template":
                found["sequences"].setdefault(
                    tuple(_without_openings(normal(one)) for one in way), set()
                ).add(author)
        if "prompt" in answer:
            found["prompt"].setdefault(answer["prompt"], set()).add(author)
    return {
        what: [one for one, authors in texts.items() if len(authors) > 1] for what, texts in found.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_family_is_written_as_independent_renderers_write_it(mode):
    for case, answers in golden()[mode].items():
        made, prompt = ours(mode, case)
        if prompt is None:
            assert any(word in made for word in REFUSALS), f"{case}: {made}"
            continue
        verdicts = {oracle: best_verdict(mode, case, oracle, answer) for oracle, answer in answers.items()}
        if difference(mode, case):
            continue
        agreed = agreements(answers)
        mine = tuple(_without_openings(normal(one)) for one in made)
        assert not agreed["sequences"] or mine in agreed["sequences"], f"{case}: {verdicts}"
        assert (
            not agreed["text"]
            or plain(made[-1]) in agreed["text"]
            or ENDING in [one for one, _ in verdicts.values()]
        ), f"{case}: {verdicts}"
        assert not agreed["prompt"] or prompt in agreed["prompt"], f"{case}: {verdicts}"
        refused = all("refused" in answer for answer in answers.values())
        assert refused or any(one != OTHER and same for one, same in verdicts.values()), f"{case}: {verdicts}"


@pytest.mark.parametrize("mode", [mode for mode in MODES if "common" in MODES[mode]])
def test_mistrals_formats_are_those_of_mistral_common(mode):
    compared = 0
    for case, answers in golden()[mode].items():
        answer, (made, prompt) = answers["common"], ours(mode, case)
        if "refused" in answer:
            assert prompt is None, f"{case}: mistral-common refuses it"
        else:
            assert made in answer["ways"] and prompt == answer["prompt"], case
            compared += 1
    assert compared >= 5


def test_no_difference_is_stated_that_is_not_there():
    for modes, cases in DIFFERENCES:
        assert any(difference(mode, case) == DIFFERENCES[modes, cases] for mode in MODES for case in CASES), (
            modes,
            cases,
        )


@pytest.mark.parametrize("mode", MODES)
def test_what_is_trained_follows_the_prompt_and_ends_with_a_stop(mode):
    name, values = MODES[mode]["ours"]
    renderer = get_renderer(name, FamilyTokenizer(MODES[mode]["family"]), values)
    for case in CASES.values():
        messages, tools = read_messages(case), TOOLS if case.get("tools") else ()
        try:
            datum = to_datums(renderer, messages, "last_assistant_message", tools=tools)[0]
        except (InvalidValue, RowError):
            continue
        whole = [*datum.tokens, datum.targets[-1]]
        start = int((datum.weights > 0).argmax()) + 1
        prompt = renderer.generation_prompt(messages[:-1], tools)
        answers_plainly = not messages[-1].reasoning_content and name in (
            "nemotron3",
            "nemotron3_ultra",
            "glm5",
        )
        assert whole[:start] == prompt or answers_plainly, (
            "an answer without a thought follows the prompt of the mode without"
        )
        answer = whole[start:]
        message, ended = renderer.parse_response(answer)
        assert ended and message.content == messages[-1].content
        assert (message.reasoning_content or "").strip() == (messages[-1].reasoning_content or "")
        ids = concatenate_tokens(renderer.render(messages, set(), tools))
        assert ids == whole or renderer.tokenizer.decode(ids) == renderer.tokenizer.decode(whole)


@pytest.mark.parametrize("mode", MODES)
def test_calls_are_read_back(mode):
    name, values = MODES[mode]["ours"]
    renderer = get_renderer(name, FamilyTokenizer(MODES[mode]["family"]), values)
    arguments = {
        "city": "Zürich",
        "n": 1,
        "list": [1, "a"],
        "deep": {"a": None},
        "yes": True,
        "text": 'a\nb <c> & "d"',
    }
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [Message("user", "?"), Message("assistant", "", tool_calls=(call,))]
    try:
        written = [part.tokens for part in renderer.render(messages, {1}) if part.generated]
    except InvalidValue:
        return
    message, ended = renderer.parse_response(written[-1])
    assert (
        ended
        and [one["function"] for one in message.tool_calls] == [call["function"]]
        and message.content == ""
    )
    cut = renderer.parse_response(written[-1][: len(written[-1]) // 2])
    assert not cut[1] and not cut[0].tool_calls, "a call that is cut stays text"


@pytest.mark.parametrize("mode", MODES)
def test_nobody_types_a_control_token_into_a_family(mode):
    name, values = MODES[mode]["ours"]
    family = MODES[mode]["family"]
    renderer = get_renderer(name, FamilyTokenizer(family), values)

    def count(text):
        messages = [Message("system", text), Message("user", text), Message("assistant", text)]
        parts = renderer.render(messages, {2})
        return sum(token > 255 for part in parts for token in part.tokens)

    for typed in CONTROL_TOKENS[family]:
        assert count(f"a{typed}b") == count("harmless"), typed
        assert count(typed[:-1]) == count("harmless")


def test_a_family_is_told_by_its_template():
    from importlib.resources import files

    from kitchen.rendering.harmony import family_of

    known = {
        "qwen3": "qwen3", "qwen3_instruct_2507": "qwen3_instruct", "qwen3_5_think": "qwen3_5", "qwen3_6": "qwen3_6", "qwen3_8": "qwen3_8",
        "nemotron_3_nano": "nemotron3", "nemotron_3_super": "nemotron3", "nemotron_3_ultra": "nemotron3_ultra", "glm4moe": "glm4_5",
        "gptoss": "gpt_oss", "llama3": "llama3", "llama3_1": "llama3_1", "gemma3": "gemma3", "deepseek_r1_distill": "deepseek_r1",
        "qwen2_5": None, "qwen3_vl": None, "qwen3_5_nothink": None, "phi3": None, "gemma4": None, "smolvlm": None,
    }  # fmt: skip
    tokens = {name: place for place, name in enumerate(sum(CONTROL_TOKENS.values(), []))}
    for template, family in known.items():
        made = FamilyTokenizer("qwen3")
        made.control_tokens, made.chat_template = (
            tokens,
            (files("trl") / "chat_templates" / f"{template}.jinja").read_text(),
        )
        assert family_of(made) == family, template


# -- the table of the page -----------------------------------------------------------------------


def cell(mode, case):
    "What the page says of a mode in a case."
    made, prompt = ours(mode, case)
    if prompt is None:
        return "–"
    found = {
        oracle: best_verdict(mode, case, oracle, answer)[0] for oracle, answer in golden()[mode][case].items()
    }
    letters = {"cookbook": "c", "prime": "p", "tml": "m", "common": "i", "template": "h", "trl": "t"}
    same = "".join(letters[oracle] for oracle, one in found.items() if one in (EQUAL, TEXT, PROMPT_TOO))
    return same or "other"


def table():
    "The table of the page in Markdown."
    head = ["format", "renderer", *CASES]
    rows = [[mode, f"`{MODES[mode]['ours'][0]}`", *(cell(mode, case) for case in CASES)] for mode in MODES]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def reasons():
    "The stated differences and refusals in Markdown."
    differ = [
        f"- {modes.replace('*', '')}{', ' + cases.replace('*', '') if cases.strip('*') else ''}: {why}"
        for (modes, cases), why in DIFFERENCES.items()
    ]
    refused = [f"- {why}" for why in dict.fromkeys(REFUSALS.values())]
    return "\n".join([*differ, "", "Refused, where others leave something out without a word:", "", *refused])


def page_cells():
    "The two cells of the page that the tests make."
    return {"<!-- table -->": table(), "<!-- differences -->": reasons()}


def write_page():
    "Write the table and the differences into the page: `python tests/rendering/test_families.py`."
    page = json.loads(PAGE.read_text(encoding="utf-8"))
    for one in page["cells"]:
        text = "".join(one["source"])
        for mark, made in page_cells().items():
            if mark in text:
                one["source"] = (text.split(mark)[0] + f"{mark}\n\n{made}").splitlines(keepends=True)
    PAGE.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def test_the_page_shows_what_is_proven():
    page = "\n".join("".join(one["source"]) for one in json.loads(PAGE.read_text(encoding="utf-8"))["cells"])
    for made in page_cells().values():
        assert made in page, "run `python tests/rendering/test_families.py`, which writes the page's table"


if __name__ == "__main__":
    write_page()


@pytest.mark.parametrize("mode", [name for name in MODES if name.startswith("glm")])
@pytest.mark.parametrize("between", [[], [Message("system", "Be brief.")]], ids=["assistant", "system"])
def test_an_answer_that_nobody_answers_ends_as_the_last_one_does(mode, between):
    "Before a message of the assistant, or of the system, GLM writes no end: the answer is trained in a sequence that ends with it."
    name, values = MODES[mode]["ours"]
    renderer = get_renderer(name, FamilyTokenizer(MODES[mode]["family"]), values)
    chat = [Message("user", "2 + 3?"), Message("assistant", "5"), *between, Message("assistant", "Done.")]
    data = to_datums(renderer, chat)
    assert len(data) == 2
    for datum in data:
        trained = [int(target) for target, weight in zip(datum.targets, datum.weights, strict=True) if weight]
        assert trained[-1] in renderer.stop_sequences()
        assert sum(token in renderer.stop_sequences() for token in trained) == 1


@pytest.mark.parametrize("mode", MODES)
def test_nesting_that_no_parser_follows_stays_text(mode):
    name, values = MODES[mode]["ours"]
    renderer = get_renderer(name, FamilyTokenizer(MODES[mode]["family"]), values)
    deep = "[" * 3_000 + "]" * 3_000
    chat = [Message("user", "?"), Message("assistant", "PLACE")]
    if name not in ("gemma3", "llama3", "role_colon", "deepseekv3_0324"):
        call = {"type": "function", "id": "functions.add:0", "function": {"name": "add", "arguments": {"a": "PLACE"}}}
        chat[1] = Message("assistant", "", tool_calls=(call,))
    (part,) = [one for one in renderer.render(chat, {1}) if one.generated and one.message_index == 1]
    text = renderer.tokenizer.decode(part.tokens, control=True).replace('"PLACE"', deep).replace("PLACE", deep)
    said, _ = read_response(renderer, renderer.tokenizer.encode(text, True))
    assert deep in said.content + str(said.tool_calls)
