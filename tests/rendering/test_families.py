"""Renderers of model families against what independent ones wrote for the same conversations (`families.json`, made by `oracles.py`)."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from family_cases import CASES, CONTROL_TOKENS, MODES, TOOLS

from kitchen.adapters.toy.tokenizer import ToyTokenizer
from kitchen.rendering.base import concatenate_tokens, to_datums
from kitchen.rendering.registry import get_renderer
from kitchen.types import InvalidValue, Message, RowError

GOLDEN = Path(__file__).with_name("families.json")


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


def marked(datum, decode):
    "The text of a datum with marks around what it trains."
    tokens, weights = [*datum.tokens, datum.targets[-1]], [0, *(datum.weights > 0)]
    text, start = "", 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and bool(weights[end]) == bool(weights[start]):
            end += 1
        piece = decode(tokens[start:end])
        text += f"⟦{piece}⟧" if weights[start] else piece
        start = end
    return text


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
        made = [marked(one, decode) for one in to_datums(renderer, messages, train_on, tools=tools)]
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



_OPENINGS = (r"<\|start\|>assistant", "<｜Assistant｜>", "<think>\n\n</think>\n\n", "<think></think>", "<think>\n", "<think>", "</think>", "\n")


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
    return ENDING if re.sub(r"<[^<>]+>⟧?$", "", plain(mine[-1])) == re.sub(r"<[^<>]+>⟧?$", "", plain(theirs[-1])) else OTHER


def best_verdict(mode, case, oracle, answer):
    "The best verdict among the ways an oracle knows, and whether its prompt is kitchen's."
    made, prompt = ours(mode, case)
    if "refused" in answer or prompt is None:
        return REFUSES, True
    order = list(MEANING)
    found = [verdict(made, way, mask=oracle != "template") for way in answer["ways"]]
    return min(found, key=order.index), answer["prompt"] == prompt
