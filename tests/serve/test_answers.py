"""Chats and completions over a run, an export and a base model, as clients of OpenAI's wire ask for them."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from served import KEY, open_engine
from small_settings import SMALL_SETTINGS

from kitchen import Kitchen
from kitchen.ports.registry import create_adapter
from kitchen.rendering.base import prompt_tokens
from kitchen.rendering.registry import RENDERERS, get_renderer
from kitchen.serve.answers import ChatBody, ToldText, _chat_choice, _chat_text, answer_routes, chat_choices
from kitchen.serve.keys import KeyRing
from kitchen.serve.server import KitchenServer, ServeSettings
from kitchen.serve.targets import find_target
from kitchen.types import BackendError, Completion, KitchenError, Message, SamplingParams

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of supervised training."""
    kitchen = Kitchen(
        "sft", run_dir=tmp_path_factory.mktemp("runs") / "mine", backend="toy", **SMALL_SETTINGS["sft"]
    )
    kitchen.run()
    return kitchen


@pytest.fixture(scope="module")
def models(run):
    """The run under its own name, its export, and a base model."""
    (artifact,) = [one for one in run.run_record.artifacts() if one.kind in ("adapter", "model")]
    targets = [
        find_target(f"run={run.run_record.path}"),
        find_target(f"export={artifact.path}"),
        find_target("toy", "toy"),
    ]
    return {one.name: one.open(64) for one in targets}


@pytest.fixture(scope="module")
def client(models):
    app = FastAPI()
    app.include_router(answer_routes(models))
    return TestClient(app)


def ask(client, **more):
    body = {
        "model": "run",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    return client.post("/v1/chat/completions", json=body | more)


def test_a_run_answers_as_its_session_does(run, client):
    said = ask(client).json()
    wanted = run.chat(max_tokens=8, temperature=0.0).talk("hello").exchanges[-1]
    assert said["choices"][0]["message"]["content"] == wanted.answer.content
    assert said["usage"] == {"prompt_tokens": len(wanted.prompt), "completion_tokens": len(wanted.completion.tokens),
                             "total_tokens": len(wanted.prompt) + len(wanted.completion.tokens)}  # fmt: skip
    assert ask(client, model="export").json()["choices"][0]["message"] == said["choices"][0]["message"]


def test_log_probabilities_are_those_of_the_model(client, models):
    said = ask(client, logprobs=True, top_logprobs=3, temperature=1, seed=5).json()["choices"][0]["logprobs"][
        "content"
    ]
    model = models["run"]
    prompt, choices = chat_choices(
        model,
        ChatBody.model_validate(
            {"model": "run", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 5}
        ),
    )
    scored = model.sampler.compute_logprobs([*prompt, *choices[0].completion.tokens]).result()[len(prompt) :]
    assert np.allclose([one["logprob"] for one in said], scored, atol=1e-6)
    for one in said:
        others = [other["logprob"] for other in one["top_logprobs"]]
        assert others == sorted(others, reverse=True) and len(others) == 3


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 2, "seed": 1, "temperature": 1},
        {"stop": ["e", "a"]},
        {"logprobs": True},
        {"max_completion_tokens": 3},
    ],
)
def test_streams_say_what_answers_say(client, more):
    whole = ask(client, **more).json()
    lines = ask(client, stream=True, stream_options={"include_usage": True}, **more).text.splitlines()
    assert lines[-2] == "data: [DONE]" and all(line.startswith("data: ") or not line for line in lines)
    parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert parts[-1]["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        mine = [
            part["choices"][0] for part in parts if part["choices"] and part["choices"][0]["index"] == index
        ]
        assert "".join(one["delta"].get("content") or "" for one in mine) == choice["message"]["content"]
        assert (
            mine[-1]["finish_reason"] == choice["finish_reason"]
            and mine[-1].get("logprobs") == choice["logprobs"]
        )


PARTS = ["<think>", "</think>", "\n", "ab", "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', "[TOOL_CALLS]", "é€", "END", " ", "<",
         "[THINK]", "[/THINK]", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|>", "<|im_end|>",
         "<thought>", "</thought>", "E"]  # fmt: skip


@pytest.mark.parametrize("name", sorted(RENDERERS))
@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=9))
def test_what_a_stream_has_said_is_the_beginning_of_the_answer(models, name, parts):
    """Whatever a model writes, in whatever format: nothing is taken back, and in the end nothing is missing."""
    tokenizer = models["toy"].tokenizer
    try:
        model = replace(models["toy"], renderer=get_renderer(name, tokenizer))
    except KitchenError:  # a format that this tokenizer cannot write
        return
    body = ChatBody.model_validate({"model": "toy", "messages": [{"role": "user", "content": "x"}], "stop": "END"})
    told, said = ToldText(_chat_text(model, body)), ""
    tokens = tokenizer.encode("".join(parts), control=True)
    for token in tokens:
        said += told.add(token)
    completion = Completion(tuple(tokens), (0.0,) * len(tokens), "length")
    whole = _chat_choice(model, body, [], completion).message.content
    assert said == told.said and whole.startswith(said) and said + told.rest(whole) == whole


def test_streams_begin_before_the_end(client, models):
    """The first piece is there when the last token is not drawn yet."""
    drawn = []

    class Watched:
        def sample_telling(self, prompt, count, params, tell):
            def watch(index, token):
                drawn.append(token)
                tell(index, token)

            return models["toy"].sampler.sample_telling(prompt, count, params, watch)

        def __getattr__(self, name):
            return getattr(models["toy"].sampler, name)

    model = replace(models["toy"], sampler=Watched())
    telling = model.draw_telling([5, 6, 7], 1, SamplingParams(max_tokens=20, stop=(), seed=1))
    first = next(telling)
    assert (first.index, first.token) == (0, drawn[0]) and [*telling][-1][0].tokens == tuple(drawn)
    assert ask(client, stream=True).headers["x-kitchen-stream"] == "tokens"
    plain = replace(models["toy"], streams=False)
    app = FastAPI()
    app.include_router(answer_routes({"toy": plain}))
    asked = {"model": "toy", "prompt": "hello", "max_tokens": 20, "temperature": 0, "stream": True}
    whole, told = (one.post("/v1/completions", json=asked) for one in (TestClient(app), client))
    assert whole.headers["x-kitchen-stream"] == "whole"

    def text(answer):
        parts = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return "".join(part["choices"][0]["text"] for part in parts)

    assert text(whole) == text(told) != ""


def test_an_error_in_a_stream_is_told(models):
    class Failing:
        def sample_telling(self, prompt, count, params, tell):
            tell(0, 5)
            raise BackendError("the weights are gone")

        def __getattr__(self, name):
            return getattr(models["toy"].sampler, name)

    app = FastAPI()
    app.include_router(answer_routes({"toy": replace(models["toy"], sampler=Failing())}))
    answer = ask(TestClient(app), model="toy", stream=True)
    assert answer.status_code == 200 and "the weights are gone" in answer.text and "[DONE]" not in answer.text


def test_stops_are_no_part_of_an_answer(client):
    text = client.post(
        "/v1/completions", json={"model": "toy", "prompt": "hello", "max_tokens": 20, "temperature": 0}
    ).json()["choices"][0]["text"]
    letter = next(one for one in text if one.isascii() and one.isprintable())
    cut = client.post(
        "/v1/completions",
        json={"model": "toy", "prompt": "hello", "max_tokens": 20, "temperature": 0, "stop": letter},
    ).json()["choices"][0]
    assert cut["text"] == text.split(letter)[0] and cut["finish_reason"] == "stop"


def test_prompts_are_texts_or_tokens(client, models):
    tokens = models["toy"].tokenizer.encode("hello")
    asked = {"model": "toy", "max_tokens": 4, "temperature": 0}
    texts = [
        client.post("/v1/completions", json={**asked, "prompt": prompt}).json()["choices"][0]["text"]
        for prompt in ("hello", ["hello"], tokens, [tokens])
    ]
    assert len(set(texts)) == 1
    for wrong in ("", [], [[]], [""], [tokens, []]):
        assert client.post("/v1/completions", json={**asked, "prompt": wrong}).status_code == 400


def test_tools_reach_the_prompt_of_the_renderer(client, models):
    assert ask(client, tools=[ADD]).status_code == 400  # the run's template shows no tools, and says so
    model = replace(models["run"], renderer=get_renderer("qwen3", models["run"].tokenizer))
    body = ChatBody.model_validate(
        {"model": "run", "messages": [{"role": "user", "content": "1+1"}], "tools": [ADD], "max_tokens": 2}
    )
    prompt, _ = chat_choices(model, body)
    assert (
        prompt
        == prompt_tokens(model.renderer, [Message("user", "1+1")], body.tool_schemas())
        != prompt_tokens(model.renderer, [Message("user", "1+1")])
    )
    turns = [
        {"role": "user", "content": "1+1"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    _, choices = chat_choices(
        model, ChatBody.model_validate({"model": "run", "messages": turns, "tools": [ADD], "max_tokens": 2})
    )
    assert len(choices) == 1


WRONG = [
    {"model": "nobody"},
    {"messages": []},
    {"messages": [{"role": "user"}, {"role": "pope", "content": ""}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
    {"max_tokens": 0},
    {"max_tokens": 65},
    {"temperature": -1},
    {"n": 0},
    {"n": 1000},
    {"top_p": 0},
    {"seed": -1},
    {"stop": [""]},
    {"logit_bias": {"5": 1}},
    {"response_format": {"type": "json_object"}},
    {"presence_penalty": 0.5},
    {"tool_choice": {"type": "function", "function": {"name": "add"}}},
    {"tools": [{"type": "function"}]},
    {"surprise": 1},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_in_their_form(client, wrong, stream):
    refused = ask(client, stream=stream, **wrong)
    assert refused.status_code == (404 if "model" in wrong else 400), refused.text
    assert (
        set(refused.json()["error"]) == {"message", "type", "param", "code"}
        and refused.json()["error"]["message"]
    )


def test_labels_are_let_pass(client):
    assert (
        ask(
            client,
            user="me",
            metadata={"a": "b"},
            store=False,
            presence_penalty=0,
            response_format={"type": "text"},
        ).status_code
        == 200
    )


def test_our_own_client_of_that_wire_is_answered(models, tmp_path, monkeypatch):
    keys = KeyRing(tmp_path / "keys.json", {"ann": KEY})
    server = KitchenServer(
        open_engine(tmp_path), keys, ServeSettings(port=0, stop_seconds=1), (answer_routes(models),)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.server.started:
            time.sleep(0.005)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        completer = create_adapter(
            "completer", "openai", judge="run", base_url=f"{server.address}/v1", tries=1
        )
        asked = [Message("user", "hello")]
        said = completer.complete(asked, SamplingParams(max_tokens=8, temperature=0.0)).result(30)
        body = {
            "model": "run",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 8,
            "temperature": 0,
        }
        _, choices = chat_choices(models["run"], ChatBody.model_validate(body))
        assert said.content == choices[0].message.content
        monkeypatch.setenv("OPENAI_API_KEY", "tml-" + "w" * 30)
        with pytest.raises(BackendError):
            completer.complete(asked, SamplingParams(max_tokens=8)).result(30)
    finally:
        server.stop()
        thread.join(20)
