"""Intervals and tests of differences agree with SciPy, with enumeration, and hold what they promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.intervals import (
    _fisher_p,
    _paired_shares,
    _sign_flip_p,
    change_between,
    holm,
    mcnemar_p,
    mean_interval,
    paired_change,
    unpaired_change,
    values_from_text,
    values_to_text,
    wilson_interval,
)
from kitchen.types import InvalidValue

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 5), (50, 120), (120, 120)])
def test_wilson_is_scipys(right, count):
    found = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((found.low, found.high))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected)


@given(st.integers(0, 12), st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_fisher_is_scipys(right, count, other, others):
    right, other = min(right, count), min(other, others)
    expected = stats.fisher_exact([[right, count - right], [other, others - other]]).pvalue
    assert _fisher_p(right, count, other, others) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_is_scipys(seed):
    rng = np.random.default_rng(seed)
    grades, more = rng.beta(0.4, 1.2, 60), np.clip(rng.beta(0.5, 1.0, 60), 0, 1)
    expected = stats.bootstrap((grades,), np.mean, method="BCa", n_resamples=20_000, rng=seed).confidence_interval
    assert mean_interval(grades) == pytest.approx((expected.low, expected.high), abs=0.006)
    difference = stats.bootstrap((more - grades,), np.mean, method="BCa", n_resamples=20_000, rng=seed).confidence_interval
    found = paired_change(grades, more)
    assert (found.low, found.high) == pytest.approx((difference.low, difference.high), abs=0.008)
    both = stats.bootstrap(
        (grades, more[:40]), lambda old, new, axis=-1: new.mean(axis) - old.mean(axis), method="BCa", n_resamples=20_000, rng=seed
    ).confidence_interval
    apart = unpaired_change(grades, more[:40])
    assert (apart.low, apart.high) == pytest.approx((both.low, both.high), abs=0.012)
    assert mean_interval(grades) == mean_interval(list(grades)), "the same numbers, the same interval"


def test_sign_flips_are_enumerated_where_there_are_few():
    differences = np.array([0.3, -0.1, 0.5, 0.2, 0.2, -0.05])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=6)]
    expected = np.mean([one >= abs(differences.sum()) - 1e-12 for one in sums])
    assert _sign_flip_p(differences) == pytest.approx(expected)
    many = np.random.default_rng(0).normal(0.2, 1, 80)
    found = stats.permutation_test((many,), np.sum, permutation_type="samples", n_resamples=20_000, rng=0).pvalue
    assert _sign_flip_p(many) == pytest.approx(found, abs=0.02)


def test_a_long_row_counts_for_more():
    before, after, tokens = np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.5, 1.0]), np.array([1.0, 8.0, 2.0])
    assert paired_change(before, after, tokens).value == pytest.approx(((after - before) * tokens).sum() / tokens.sum())


def coverage(count, shares):
    """How often the interval of a paired difference holds the truth: exact, over every table of counts."""
    both, gained, lost, neither = shares
    truth, held = gained - lost, 0.0
    for one in range(count + 1):
        for two in range(count + 1 - one):
            for three in range(count + 1 - one - two):
                table = (one, two, three, count - one - two - three)
                ways = math.factorial(count) / math.prod(map(math.factorial, table))
                low, high = _paired_shares(*table)
                held += ways * math.prod(share**times for share, times in zip(shares, table, strict=True)) * (low <= truth <= high)
    return held


@pytest.mark.parametrize("shares", [(0.4, 0.2, 0.05, 0.35), (0.1, 0.5, 0.1, 0.3), (0.05, 0.05, 0.05, 0.85), (0.25, 0.25, 0.25, 0.25)])
def test_intervals_of_paired_shares_hold_what_they_promise(shares):
    assert 0.93 < coverage(16, shares) < 0.999


def test_intervals_of_graded_differences_hold_what_they_promise():
    rng, held = np.random.default_rng(2), []
    for _ in range(120):
        hard = rng.beta(1, 1, 50)
        found = paired_change(np.clip(hard * 0.5, 0, 1), hard * 0.5 + 0.2 * rng.beta(0.7, 0.7, 50))
        held.append(found.low <= 0.1 <= found.high)
    assert 0.88 < np.mean(held) <= 1.0


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40), st.data())
@settings(max_examples=60)
def test_a_change_lies_in_its_interval(before, data):
    after = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(before), max_size=len(before)))
    for found in (paired_change(before, after), unpaired_change(before, after)):
        assert -1 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1 and 0 < found.p <= 1
        assert found.value == pytest.approx(np.mean(after) - np.mean(before))


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=20))
def test_values_are_read_back(values):
    found = values_from_text(values_to_text(values))
    assert [value is None for value in found] == [value is None for value in values]
    assert [one for one in found if one is not None] == pytest.approx([one for one in values if one is not None], rel=1e-5)


def test_holm_and_nothing_known():
    assert holm([0.02, 0.03]) == pytest.approx([0.04, 0.04]) and change_between(None, None) is None
    assert paired_change([2.0], [3.0]) is None and unpaired_change([0.5], [0.2, 0.3]) is None
    with pytest.raises(ValueError, match="numbers only"):
        mean_interval([math.nan])


def test_numbers_that_differ_by_rounding_alone_do_not_vary():
    "0.2 - 0.1 is not quite 0.3 - 0.2: the interval is that of a constant, not one as narrow as the rounding."
    change = paired_change([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    assert change.method == "Wilson, sign flips" and change.value == pytest.approx(0.1)
    assert change.low < -0.3 and change.high > 0.5
    low, high = mean_interval([0.3, 0.1 + 0.2, 0.3])
    assert (low, high) == pytest.approx(wilson_interval(0.3, 3))


def test_two_constant_samples_have_an_interval_of_some_width():
    change = unpaired_change([0.5] * 4, [0.7] * 4)
    rest = wilson_interval(0.0, 4)[1] * math.sqrt(2)
    assert (change.low, change.high) == pytest.approx((0.2 - rest, 0.2 + rest)) and change.includes_none


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [0.2, 0.9, 0.4]])
def test_what_weighs_nothing_does_not_count(values):
    heavy = [2.0, 1.0, 3.0]
    assert mean_interval([*values, 9.0], [*heavy, 0]) == mean_interval(values, heavy)
    after = [one + 0.1 * place for place, one in enumerate(values)]
    assert paired_change([*values, 9.0], [*after, 1.0], [*heavy, 0]) == paired_change(values, after, heavy)
    assert paired_change(values, after, [0, 0, 0]) is None and mean_interval(values, [0, 5, 0]) is None
    with pytest.raises(InvalidValue, match="a weight is 0 or more"):
        mean_interval(values, [-1.0, 1.0, 1.0])


def test_few_items_prove_nothing_though_their_interval_is_narrow():
    assert not paired_change([0.1, 0.2], [0.4, 0.3]).told_from_none  # p 1/2
    assert not paired_change([0] * 5, [1] * 5).told_from_none  # p 1/16
    assert paired_change([0] * 6, [1] * 6).told_from_none  # p 1/32
    assert holm([float("nan"), 0.01]) == [1.0, 0.02]
