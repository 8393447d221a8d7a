"""Pairs that one sequence cannot hold, and pairs of which one side thinks: trained as their model would say them."""

import math
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rendering"))
from family_cases import MODES
from test_families import FamilyTokenizer

from kitchen.data.formats import Preference
from kitchen.losses.preference import PAIR_LOSSES, answer_ends, pair_logprobs
from kitchen.rendering.base import to_datums
from kitchen.rendering.registry import get_renderer
from kitchen.train.preference import (
    Pair,
    add_pair_reference_logprobs,
    interleave_pairs,
    preference_evaluator,
    preference_to_pair,
    with_one_prompt,
)
from kitchen.types import InvalidValue, Message, RowError


def renderer_of(mode, name="auto", values=None):
    tokenizer = FamilyTokenizer(MODES[mode]["family"])
    tokenizer.chat_template = (
        files("trl") / "chat_templates" / f"{MODES[mode]['template'][0]}.jinja"
    ).read_text(encoding="utf-8")
    return get_renderer(name, tokenizer, values)


def said(renderer, datum):
    return renderer.tokenizer.decode(datum.targets[datum.weights != 0])


ASKED = (Message("user", "2 + 3?"),)
LONG = (
    Message("assistant", "5", reasoning_content="two and three"),
    Message("user", "Sure?"),
    Message("assistant", "Yes", reasoning_content="so it is"),
)
OTHER = (
    Message("assistant", "6", reasoning_content="a guess"),
    Message("user", "Sure?"),
    Message("assistant", "No", reasoning_content="hm"),
)


@pytest.mark.parametrize("mode", ["qwen3", "qwen3.5", "gpt-oss, medium", "glm 4.5"])
def test_every_answer_of_a_continuation_that_a_template_rewrites_is_preferred_once(mode):
    renderer = renderer_of(mode)
    pair = preference_to_pair(renderer, Preference(ASKED, LONG, OTHER), 4096)
    assert len(pair.chosen_earlier) == len(pair.rejected_earlier) == 1
    for earlier, whole, side in (
        (pair.chosen_earlier, pair.chosen, LONG),
        (pair.rejected_earlier, pair.rejected, OTHER),
    ):
        apart = to_datums(renderer, [*ASKED, *side])
        assert [said(renderer, one) for one in (*earlier, whole)] == [said(renderer, one) for one in apart]
        assert [one.tokens.tolist() for one in (*earlier, whole)] == [one.tokens.tolist() for one in apart]
        for answer in (side[0], side[2]):
            assert sum(answer.reasoning_content in said(renderer, one) for one in (*earlier, whole)) == 1
    assert answer_ends(pair.datums) == [1, 3]


def test_sides_of_several_datums_count_as_the_sum_of_their_log_probabilities():
    renderer = renderer_of("qwen3")
    short = Preference(ASKED, LONG[:1], (Message("assistant", "6"),))
    pairs = [
        preference_to_pair(renderer, row, 4096)
        for row in (
            Preference(ASKED, LONG, (Message("assistant", "6"),)),
            short,
            Preference(ASKED, LONG, OTHER),
        )
    ]
    generator = np.random.default_rng(0)
    references = {}

    class Reference:
        def compute_logprobs(self, tokens):
            class Found:
                def result(self):
                    return [
                        None,
                        *references.setdefault(tuple(tokens), generator.normal(size=len(tokens) - 1)).astype(
                            np.float32
                        ),
                    ]

            return Found()

    made = add_pair_reference_logprobs(pairs, Reference())
    data = interleave_pairs(made)
    logprobs = [torch.tensor(generator.normal(size=len(one))) for one in data]
    wanted, place = [], 0
    for pair in pairs:
        for count in (1 + len(pair.chosen_earlier), 1 + len(pair.rejected_earlier)):
            sums = [0.0, 0.0, 0]
            for datum, found in zip(
                data[place : place + count], logprobs[place : place + count], strict=True
            ):
                kept = datum.weights != 0
                sums[0] += math.fsum(found.numpy()[kept])
                sums[1] += math.fsum(
                    references[(*datum.tokens.tolist(), int(datum.targets[-1]))].astype(np.float32)[
                        kept
                    ]
                )
                sums[2] += int(kept.sum())
            wanted.append(sums)
            place += count
    found = pair_logprobs(data, logprobs)
    columns = [np.array(column) for column in zip(*wanted, strict=True)]
    fields = ("chosen", "rejected", "chosen_reference", "rejected_reference", "chosen_length", "rejected_length")
    for number, name in enumerate(fields):
        assert getattr(found, name).numpy() == pytest.approx(columns[number // 2][number % 2 :: 2], abs=1e-4)
    loss, metrics = preference_evaluator(PAIR_LOSSES["dpo"])(data, logprobs)
    steep = 0.1 * ((columns[0] - columns[1])[::2] - (columns[0] - columns[1])[1::2])
    assert loss == pytest.approx(np.log1p(np.exp(-steep)).sum(), abs=1e-4) and metrics["pairs:sum"] == 3
    for count in (1, 2):
        with pytest.raises(InvalidValue, match="are no pairs"):
            pair_logprobs(data[:count], logprobs[:count])


def test_gradients_reach_every_part_of_a_side():
    renderer = renderer_of("qwen3")
    pair = preference_to_pair(renderer, Preference(ASKED, LONG, OTHER), 4096)
    logprobs = [torch.zeros(len(one), requires_grad=True) for one in pair.datums]
    PAIR_LOSSES["simpo"](pair_logprobs(pair.datums, logprobs)).sum().backward()
    for datum, found in zip(pair.datums, logprobs, strict=True):
        assert ((found.grad.numpy() != 0) == (datum.weights != 0)).all()


THINKS, ANSWERS = (
    (Message("assistant", "5", reasoning_content="two and three"),),
    (Message("assistant", "6"),),
)


@pytest.mark.parametrize("mode", ["qwen3.5", "qwen3.8", "nemotron 3", "nemotron 3 ultra"])
@pytest.mark.parametrize("turned", [False, True], ids=["chosen thinks", "rejected thinks"])
def test_a_pair_of_which_one_side_thinks_follows_the_prompt_that_opens_thinking(mode, turned):
    renderer = renderer_of(mode)
    row = Preference(ASKED, *((ANSWERS, THINKS) if turned else (THINKS, ANSWERS)))
    pair = preference_to_pair(renderer, row, 4096)
    start = [int(np.flatnonzero(one.weights)[0]) + 1 for one in (pair.chosen, pair.rejected)]
    prompts = [
        one.tokens[:place].tolist() for one, place in zip((pair.chosen, pair.rejected), start, strict=True)
    ]
    assert (
        prompts[0]
        == prompts[1]
        == renderer.with_chat_template_kwargs({"enable_thinking": True}).generation_prompt(ASKED)
    )
    thinks, answers = (pair.rejected, pair.chosen) if turned else (pair.chosen, pair.rejected)
    assert (
        said(renderer, thinks).lstrip().startswith("two and three")
        and "</think>" in said(renderer, answers).lstrip()[:9]
    )
    assert said(renderer, answers).endswith("6<|im_end|>")


def test_a_mode_that_was_set_is_not_changed():
    row = Preference(ASKED, THINKS, ANSWERS)
    with pytest.raises(RowError):
        preference_to_pair(renderer_of("qwen3.5", values={"enable_thinking": False}), row, 4096)
    plain = Preference(ASKED, ANSWERS, (Message("assistant", "7"),))
    assert with_one_prompt(renderer_of("qwen3.5"), plain) is plain


def test_a_plain_pair_is_two_datums():
    pair = preference_to_pair(
        renderer_of("qwen3"), Preference(ASKED, ANSWERS, (Message("assistant", "7"),)), 4096
    )
    assert pair.datums == [pair.chosen, pair.rejected] and Pair(pair.chosen, pair.rejected) == pair
    assert "continues" not in pair.chosen.loss_fn_inputs
