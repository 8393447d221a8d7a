"""Losses that services have of their own, beside formulae written again and differentiated by torch; and on backends."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.losses.token import LOSSES, narrow_data
from kitchen.ports.registry import create_adapter
from kitchen.testing import CHECKS, Bench
from kitchen.types import Datum, InvalidValue, LoraParams


def dro(logprobs, inputs, beta):
    """arXiv 2405.19107, summed over tokens that have an advantage."""
    acted = inputs["advantages"] != 0
    part = logprobs * inputs["advantages"] - beta / 2 * (logprobs - inputs["logprobs"]) ** 2
    return -part[acted].sum()


def gspo(logprobs, inputs, low, high):
    """arXiv 2507.18071 with a sum over tokens; the ratio is the geometric mean of those of the tokens that count."""
    counted = inputs.get("sequence_ratio_mask", inputs["advantages"]) != 0
    ratio = torch.exp((logprobs - inputs["logprobs"])[counted].mean()) if counted.any() else torch.ones((), dtype=torch.float64)
    return -torch.minimum(ratio * inputs["advantages"], torch.clamp(ratio, low, high) * inputs["advantages"]).sum()


numbers = st.floats(-3, 3, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, st.sampled_from([0.0, 1.0, -0.5, 2.0]), st.booleans()), min_size=1, max_size=6), st.booleans())
def test_the_table_is_the_formula(rows, masked):
    now, then, advantages, counted = (np.array(one, np.float64) for one in zip(*rows, strict=True))
    inputs = {"logprobs": then, "advantages": advantages} | ({"sequence_ratio_mask": counted} if masked else {})
    plain = {name: torch.from_numpy(values) for name, values in inputs.items()}
    cases = {
        "dro": ({"beta": 0.3}, lambda leaf: dro(leaf, plain, 0.3)),
        "gspo": ({"clip_low_threshold": 0.8, "clip_high_threshold": 1.3}, lambda leaf: gspo(leaf, plain, 0.8, 1.3)),
    }
    for name, (given_settings, formula) in cases.items():
        leaf = torch.tensor(now, requires_grad=True)
        value = formula(leaf)
        slope = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
        term = LOSSES[name].evaluate(now, inputs, given_settings)
        assert np.isclose(term.value, value.item(), rtol=1e-9, atol=1e-12)
        wanted = np.zeros(len(now)) if slope is None else slope.numpy()
        read = inputs.get("sequence_ratio_mask", advantages) != 0
        ratio = np.exp((now - then)[read].mean()) if name == "gspo" and read.any() else 0.0
        if not np.isclose(ratio, [0.8, 1.3], atol=1e-6).any():  # at a bound there are two derivatives
            assert np.allclose(term.gradient, wanted, rtol=1e-9, atol=1e-12), name


def test_unread_positions_may_be_anything():
    inputs = {"logprobs": np.zeros(3), "advantages": np.array([0.0, 1.0, 0.0])}
    for name in ("dro", "gspo"):
        term = LOSSES[name].evaluate(np.array([np.nan, -0.1, np.nan]), inputs, LOSSES[name].settings)
        assert np.isfinite(term.value) and np.isfinite(term.gradient).all() and not term.gradient[[0, 2]].any()


@pytest.mark.parametrize("backend, model", [("toy", "toy"), ("torch", "builtin:tiny-chat")])
def test_backends_have_them(backend, model):
    more = {} if backend == "toy" else {"device": "cpu"}
    bench = Bench(create_adapter("service", backend, **more), model, LoraParams(4, 32.0))
    names = ["dro_matches_loss_table", "gspo_matches_loss_table", "clip_bounds_of_each_token", "several_targets_are_their_sum"]
    for name in [*names, "tokens_are_told_as_drawn"]:
        outcome = CHECKS[name].run(bench)
        assert outcome.status == "passed", outcome


def test_wide_data_is_checked():
    Datum(np.array([1, 2]), {"targets": np.ones((2, 3), int), "weights": np.ones((2, 3))})
    assert Datum(np.array([1, 2]), {"targets": np.ones((2, 1), int)}).targets.shape == (2,)
    for wrong in (
        {"targets": np.ones((2, 3), int), "weights": np.ones(2)},
        {"targets": np.ones((2, 3), int), "weights": np.ones((2, 2))},
        {"targets": np.ones((3, 3), int)},
        {"targets": np.ones((2, 0), int)},
        {"targets": np.ones((2, 2, 2), int)},
        {"logprobs": np.ones((2, 2))},
    ):
        with pytest.raises(InvalidValue):
            Datum(np.array([1, 2]), wrong)
    training = create_adapter("service", "toy").create_training_client("toy", LoraParams(4), 0)
    wide = Datum(np.array([1, 2]), {"targets": np.ones((2, 3), int), "weights": np.ones((2, 3)), "logprobs": [0, 0], "advantages": [1, 1]})
    with pytest.raises(InvalidValue, match="go with cross_entropy"):
        training.forward_backward([wide], "ppo").result()
    with pytest.raises(InvalidValue, match="go with cross_entropy"):
        training.forward_backward_custom([wide], lambda data, logprobs: (logprobs[0].sum(), {})).result()
    plain = [Datum.from_tokens([1, 2, 3], [0, 1, 1])]
    assert narrow_data(plain)[0] is plain and "Datum" in wide._repr_html_()
