"""Every loss and objective against formulas written anew from the papers, differentiated by torch's autograd."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kitchen
from kitchen.adapters.toy.client import ToyService
from kitchen.adapters.toy.loading import open_toy_model
from kitchen.adapters.toy.windows import context_windows
from kitchen.losses.distillation import (
    DISTILL_LOSSES,
    DistillLoss,
    distillation_loss,
    get_distill_loss,
    ranked_datums,
    renormalize_ranks,
)
from kitchen.losses.policy import (
    ADVANTAGES,
    AGGREGATIONS,
    KL_ESTIMATORS,
    OBJECTIVES,
    SHAPES,
    _native_loss,
    clip_fraction,
    get_objective,
    group_advantages,
    kl_metrics,
    submit_objective,
    token_weights,
)
from kitchen.losses.preference import PAIR_LOSSES, PairLogprobs, PairLoss, get_pair_loss, pairwise_loss
from kitchen.losses.token import (
    LOSSES,
    Loss,
    LossTerm,
    SftLoss,
    as_custom_loss,
    bits_per_byte,
    dft,
    mean_nll,
    normalize_weights,
)
from kitchen.losses.value import (
    ScalarHead,
    _discounted_sums,
    bradley_terry,
    gae,
    reward_model_loss,
    value_loss,
)
from kitchen.train.rl import _subtract_kl_from_advantages
from kitchen.types import AdamParams, Datum, InvalidValue

torch = pytest.importorskip("torch")
from torch.nn.functional import logsigmoid  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

torch.set_num_threads(1)
LONGEST = 9
seeds = st.integers(0, 2**32 - 1)
often = settings(max_examples=30, deadline=None)


def leaf(values):
    """A float64 tensor that collects a gradient."""
    return torch.tensor(np.asarray(values, dtype=np.float64), requires_grad=True)


def same(mine, theirs, share=1e-9):
    """Assert equality, relative to the largest entry."""
    mine, theirs = (
        np.asarray(getattr(one, "detach", lambda one=one: one)(), dtype=np.float64) for one in (mine, theirs)
    )
    assert mine.shape == theirs.shape
    far = np.abs(mine - theirs).max(initial=0.0)
    assert far <= share * max(1.0, np.abs(theirs).max(initial=0.0)), f"{far:.3g} apart"


# One datum's native losses


def native_formulas(name, logprobs, inputs, bounds):
    """A scalar of the log-probabilities of one datum, as in Tinker's documentation and the papers named there."""
    if name == "cross_entropy":
        return -(torch.tensor(inputs["weights"]) * logprobs).sum()
    advantages = torch.tensor(inputs["advantages"])
    ratio = (logprobs - torch.tensor(inputs["logprobs"])).exp()
    if name == "importance_sampling":
        return -(ratio * advantages).sum()
    low, high = (torch.as_tensor(bounds[f"clip_{end}_threshold"], dtype=torch.float64) for end in ("low", "high"))
    limited = ratio.clamp(low, high)
    if name == "ppo":
        return -torch.minimum(ratio * advantages, limited * advantages).sum()
    assert name == "cispo"
    return -(limited.detach() * logprobs * advantages).sum()


def sampled(seed, spread=0.4):
    """Random log-probabilities and inputs; some weights and advantages are 0."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    logprobs = -rng.exponential(2.0, count)
    seen = rng.choice([0.0, 1.0], count)
    inputs = {
        "weights": seen * rng.normal(size=count),
        "advantages": seen * rng.normal(size=count),
        "logprobs": logprobs + rng.normal(0, spread, count),
        "reference_logprobs": logprobs + rng.normal(0, spread, count),
    }
    return logprobs, inputs


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"dro", "gspo"}))  # those: test_native_policy_losses
@often
@given(seed=seeds)
def test_native_losses_equal_autograd(name, seed):
    (logprobs, inputs), loss = sampled(seed), LOSSES[name]
    mine, tensor = loss.term(logprobs, inputs, loss.settings), leaf(logprobs)
    theirs = native_formulas(name, tensor, inputs, loss.settings)
    theirs.backward()
    same(mine.value, theirs)
    same(mine.gradient, tensor.grad)


@pytest.mark.parametrize("name", ["ppo", "cispo"])
@often
@given(seed=seeds)
def test_bounds_of_each_token_equal_autograd(name, seed):
    (logprobs, inputs), rng = sampled(seed), np.random.default_rng(seed + 1)
    bounds = {"clip_low_threshold": rng.uniform(0.2, 1, len(logprobs)), "clip_high_threshold": rng.uniform(1, 2, len(logprobs))}
    mine, tensor = LOSSES[name].term(logprobs, {**inputs, **bounds}, LOSSES[name].settings), leaf(logprobs)
    theirs = native_formulas(name, tensor, inputs, bounds)
    theirs.backward()
    same(mine.value, theirs)
    same(mine.gradient, tensor.grad)


def test_the_settings_that_tinker_documents():
    assert LOSSES.keys() == {"cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo"}
    assert dict(LOSSES["ppo"].settings) == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert dict(LOSSES["cispo"].settings) == {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}


@often
@given(seed=seeds)
def test_on_the_policy_all_ratio_losses_have_the_gradient_of_cross_entropy(seed):
    logprobs, inputs = sampled(seed)
    inputs["logprobs"] = logprobs
    plain = LOSSES["cross_entropy"].term(logprobs, {"weights": inputs["advantages"]}, {}).gradient
    for name in ("importance_sampling", "ppo", "cispo"):
        same(LOSSES[name].term(logprobs, inputs, LOSSES[name].settings).gradient, plain)


@often
@given(seed=seeds)
def test_off_the_policy_unbounded_cispo_and_ppo_have_the_gradient_of_importance_sampling(seed):
    logprobs, inputs = sampled(seed)
    free = {"clip_low_threshold": 0.0, "clip_high_threshold": math.inf}
    wanted = LOSSES["importance_sampling"].term(logprobs, inputs, {}).gradient
    same(LOSSES["cispo"].term(logprobs, inputs, free).gradient, wanted)
    same(LOSSES["ppo"].term(logprobs, inputs, free).gradient, wanted)


@often
@given(seed=seeds)
def test_dft_equals_autograd(seed):
    logprobs, inputs = sampled(seed)
    tensor = leaf(logprobs)
    theirs = -(torch.tensor(inputs["weights"]) * tensor.exp().detach() * tensor).sum()
    theirs.backward()
    mine = dft(logprobs, inputs)
    same(mine.value, theirs)
    same(mine.gradient, tensor.grad)


wrong_terms = {
    "value": (LossTerm(np.zeros(3), np.zeros(3)), "value of shape (3,), wanted ()"),  # type: ignore[arg-type]
    "short": (LossTerm(0.0, np.zeros(2)), "gradient of shape (2,), wanted (3,)"),
    "number": (LossTerm(0.0, np.float64(0.5)), "gradient of shape (), wanted (3,)"),  # type: ignore[arg-type]
    "column": (LossTerm(0.0, np.zeros((3, 1))), "gradient of shape (3, 1), wanted (3,)"),
}


@pytest.mark.parametrize("kind", wrong_terms)
@pytest.mark.parametrize("backend", ["toy", "torch"])
def test_a_token_loss_of_the_wrong_shape_is_named_and_teaches_nothing(backend, kind, monkeypatch):
    term, message = wrong_terms[kind]
    client = (Toy() if backend == "toy" else Torch()).client
    datum = Datum.from_tokens([1, 2, 3, 4], weights=[0, 1, 1, 1], origin="rows, row 7")
    mine = SftLoss("mine", "", "", "", lambda logprobs, inputs: term)
    with pytest.raises(InvalidValue, match=re.escape(f"loss 'mine', rows, row 7: {message}")):
        mine.submit(client, [datum]).result()
    native = Loss("cross_entropy", lambda logprobs, inputs, settings: term, ("weights",), "weights")
    monkeypatch.setitem(LOSSES, "cross_entropy", native)
    with pytest.raises(InvalidValue, match=re.escape(f"loss 'cross_entropy': {message}")):
        client.forward_backward([datum], "cross_entropy").result()
    with pytest.raises(InvalidValue, match="call forward_backward first"):
        client.optim_step(AdamParams()).result()


def test_means_over_tokens_and_bytes():
    rng = np.random.default_rng(0)
    data = [
        Datum(
            rng.integers(0, 5, count),
            {"targets": rng.integers(0, 5, count), "weights": rng.choice([0.0, 0.5, 2.0], count)},
        )
        for count in (4, 7)
    ]
    outputs = [{"logprobs": -rng.exponential(1.0, len(datum)).astype(np.float32)} for datum in data]
    table, lengths = np.concatenate([one["logprobs"] for one in outputs]), np.array([0, 1, 2, 3, 4])
    weights, targets = (np.concatenate([getattr(datum, what) for datum in data]) for what in ("weights", "targets"))
    same(mean_nll(outputs, data), -(weights * table).sum() / weights.sum(), 1e-6)
    scaled = np.concatenate([datum.weights for datum in normalize_weights(data)])
    same(scaled, weights / weights.sum(), 1e-6)
    counted = (weights > 0) & (targets > 0)
    bits = -table[counted].sum() / np.log(2) / lengths[targets[counted]].sum()
    same(bits_per_byte(outputs, data, lengths), bits, 1e-6)


# Objectives of reinforcement learning, on padded batches as the papers and TRL write them


def policy_formulas(name, logp, old, reference, advantages, mask):
    """A scalar of log-probabilities [B, T] and advantages [B, 1]."""
    ratio, tokens_of = (logp - old).exp(), mask.sum(1)

    def clip(low, high, ratio=ratio):
        return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)

    def over_tokens(values):
        return (values * mask).sum() / mask.sum()

    def over_sequences(values):
        return ((values * mask).sum(1) / tokens_of).mean()

    if name == "importance_sampling":
        return -(ratio * advantages * mask).sum()
    if name in ("reinforce", "rloo"):
        return -((logp * mask).sum(1) * advantages[:, 0]).mean()
    if name in ("ppo", "bnpo"):
        return over_tokens(clip(0.8, 1.2))
    if name == "grpo":
        return over_sequences(clip(0.8, 1.2) + 0.04 * ((reference - logp).exp() - (reference - logp) - 1))
    if name == "dr_grpo":
        return (clip(0.8, 1.2) * mask).sum() / (len(logp) * LONGEST)
    if name == "dapo":
        return over_tokens(clip(0.8, 1.28))
    if name == "gspo":
        whole = (((logp - old) * mask).sum(1) / tokens_of).exp()[:, None]
        return clip(1 - 3e-4, 1 + 4e-4, whole).mean()
    if name == "cispo":
        return over_tokens(-ratio.detach().clamp(max=5.0) * advantages * logp)
    assert name == "dro", f"write the formula of {name} here"
    return over_tokens(-(logp * advantages - 0.5 * 0.05 * (logp - old) ** 2))


def episodes(seed, spread=0.3, count=4):
    """Log-probabilities [T] and inputs of several answers; the policy acted in part of each."""
    rng, made = np.random.default_rng(seed), []
    for place in range(count):
        length = int(rng.integers(2, LONGEST + 1))
        mask = rng.choice([0.0, 1.0], length)
        mask[-1] = 1.0
        logprobs = -rng.exponential(2.0, length)
        apart = spread * (1e-3 if place % 2 else 1.0)  # some within even the tightest bounds
        inputs = {
            "weights": mask,
            "advantages": np.full(length, rng.normal()),
            "logprobs": logprobs + rng.normal(0, apart, length),
            "reference_logprobs": logprobs + rng.normal(0, spread, length),
        }
        made.append((logprobs, inputs))
    return made


def padded(made):
    """Leaves, and log-probabilities, old, reference, advantages and mask, [B, T]."""
    leaves = [leaf(logprobs) for logprobs, _ in made]
    rows = [pad_sequence(leaves, batch_first=True)]
    for what in ("logprobs", "reference_logprobs", "advantages", "weights"):
        rows.append(pad_sequence([torch.tensor(inputs[what]) for _, inputs in made], batch_first=True))
    rows[3] = rows[3][:, :1]
    return leaves, rows


def in_kitchen(objective, made):
    """The loss of the batch and its slopes, as the training loop puts them together."""
    shares = AGGREGATIONS[objective.aggregation]([inputs["weights"] for _, inputs in made], LONGEST)
    return [
        objective.term(logprobs, {**inputs, "weights": share})
        for (logprobs, inputs), share in zip(made, shares, strict=True)
    ]


def compared(objective, made, theirs, leaves):
    """Assert that loss and slopes agree."""
    theirs.backward()
    terms = in_kitchen(objective, made)
    same(sum(term.value for term in terms), theirs)
    for term, tensor in zip(terms, leaves, strict=True):
        same(term.gradient, tensor.grad)


@pytest.mark.parametrize("name", OBJECTIVES)
@often
@given(seed=seeds, spread=st.sampled_from([1e-4, 0.3, 2.0]))
def test_objectives_equal_autograd(name, seed, spread):
    made = episodes(seed, spread)
    leaves, rows = padded(made)
    compared(OBJECTIVES[name], made, policy_formulas(name, *rows), leaves)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("seed", range(3))
def test_the_distance_in_the_loss_equals_autograd(estimator, corrected, ratio, seed):
    choices = {
        "kl": "loss",
        "kl_estimator": estimator,
        "kl_coefficient": 0.3,
        "kl_corrected": corrected,
        "ratio": ratio,
    }
    objective, made = get_objective("bnpo", **choices), episodes(seed)
    leaves, (logp, old, reference, advantages, mask) = padded(made)
    tokenwise = (logp - old).exp()
    ratios = tokenwise if ratio == "token" else (((logp - old) * mask).sum(1) / mask.sum(1)).exp()[:, None]
    gain = torch.minimum(ratios * advantages, ratios.clamp(0.8, 1.2) * advantages)
    apart = reference - logp
    distance = {"k1": -apart, "k2": apart**2 / 2, "k3": apart.exp() - apart - 1}[estimator]
    distance = distance * tokenwise if corrected else distance
    compared(objective, made, ((0.3 * distance - gain) * mask).sum() / mask.sum(), leaves)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("seed", range(5))
def test_the_dual_clip_equals_autograd(ratio, seed):
    "TRL's `delta`; arXiv 1912.09729."
    objective, made = get_objective("ppo", cap=1.5, ratio=ratio), episodes(seed, spread=1.5)
    leaves, (logp, old, _, advantages, mask) = padded(made)
    tokenwise = (logp - old).exp()
    ratios = tokenwise if ratio == "token" else (((logp - old) * mask).sum(1) / mask.sum(1)).exp()[:, None]
    gain = torch.minimum(ratios.clamp(max=1.5) * advantages, ratios.clamp(0.8, 1.2) * advantages)
    compared(objective, made, -(gain * mask).sum() / mask.sum(), leaves)


@pytest.mark.parametrize("seed", range(5))
def test_one_ratio_for_advantages_token_by_token_equals_autograd(seed):
    "As they are where a distance from the reference was taken off each token's advantage (GSPO-token, arXiv 2507.18071)."
    rng, made = np.random.default_rng(seed), episodes(seed)
    made = [(one, {**inputs, "advantages": rng.normal(size=len(one))}) for one, inputs in made]
    leaves, (logp, old, _, _, mask) = padded(made)
    advantages = pad_sequence([torch.tensor(inputs["advantages"]) for _, inputs in made], batch_first=True)
    ratio = (((logp - old) * mask).sum(1) / mask.sum(1)).exp()[:, None]
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    objective = get_objective("gspo", low=0.8, high=1.2)
    compared(objective, made, -((gain * mask).sum(1) / mask.sum(1)).mean(), leaves)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations_equal_padded_means(aggregation):
    masks = [inputs["weights"] for _, inputs in episodes(1)]
    mask = pad_sequence([torch.tensor(one) for one in masks], batch_first=True)
    values = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = {
        "sum": (values * mask).sum(),
        "tokens": values[mask.bool()].mean(),
        "sequences": torch.stack([row[seen.bool()].mean() for row, seen in zip(values, mask, strict=True)]).mean(),
        "sequence_sums": (values * mask).sum(1).mean(),
        "fixed_length": (values * mask).sum() / (len(masks) * LONGEST),
    }
    shares = AGGREGATIONS[aggregation](masks, LONGEST)
    mine = sum((share * row[: len(share)].numpy()).sum() for share, row in zip(shares, values, strict=True))
    same(mine, wanted[aggregation])


def test_group_advantages_equal_numpy():
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=4), rng.normal(5, 3, size=6), np.full(3, 0.7), np.array([2.0])]
    everything = np.concatenate(groups)
    batch = np.sqrt(((everything - everything.mean()) ** 2).sum() / (len(everything) - 1))
    for place, group in enumerate(groups):
        mean, count = sum(group) / len(group), len(group)
        population = math.sqrt(sum((one - mean) ** 2 for one in group) / count)
        sample = math.sqrt(sum((one - mean) ** 2 for one in group) / max(count - 1, 1))
        others = [(sum(group) - one) / (count - 1) for one in group] if count > 1 else group
        wanted = {
            "given": group,
            "centre": group - mean,
            "leave_one_out": group - others,
            "group_std": (group - mean) / population if population > 1e-9 else 0 * group,
            "sample_std": (group - mean) / (sample + 1e-4),
            "batch_std": (group - mean) / (batch + 1e-4),
        }
        assert wanted.keys() == ADVANTAGES.keys()
        for name, values in wanted.items():
            same(ADVANTAGES[name](groups)[place], values)
    centred, alone = ADVANTAGES["centre"](groups)[0], ADVANTAGES["leave_one_out"](groups)[0]
    same(alone, centred * 4 / 3)


def test_choices_of_an_objective_of_the_wrong_shape_are_named(monkeypatch):
    rewards, masks = [np.array([1.0, 0.0]), np.array([0.0, 1.0, 0.5])], [np.ones(3), np.ones(2)]
    monkeypatch.setitem(ADVANTAGES, "mine", lambda rewards: [group[:2] for group in rewards])
    with pytest.raises(InvalidValue, match=re.escape("advantage 'mine': values of shape (2,), wanted (3,)")):
        group_advantages("mine", rewards)
    monkeypatch.setitem(AGGREGATIONS, "mine", lambda masks, longest: [1 / len(mask) for mask in masks])
    with pytest.raises(InvalidValue, match=re.escape("aggregation 'mine': weights of shape (), wanted (3,)")):
        token_weights("mine", masks, LONGEST)
    inputs = {"weights": np.ones(3), "logprobs": -np.ones(3), "reference_logprobs": -np.ones(3), "advantages": np.ones(3)}
    monkeypatch.setitem(KL_ESTIMATORS, "mine", lambda logprobs, reference: (logprobs - reference, np.float64(1.0)))
    with pytest.raises(InvalidValue, match=re.escape("KL estimator 'mine': slope of shape (), wanted (3,)")):
        get_objective("grpo", kl_estimator="mine").term(-np.ones(3), inputs)
    monkeypatch.setitem(SHAPES, "mine", (lambda objective, here, ratio, better: (-(here * better).mean(), better, better), "ℓ·A"))
    with pytest.raises(InvalidValue, match=re.escape("shape 'mine': value of shape (), wanted (3,), one number a token")):
        get_objective("reinforce", shape="mine").term(-np.ones(3), inputs)


def test_estimators_of_the_divergence_against_all_tokens():
    "k1 and k3 are unbiased, k2 is not; the gradient of k2 is, that of k1 vanishes, and k3's is right when multiplied by ρ."
    draws = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(6, dtype=torch.float64, generator=draws) for _ in range(2))
    logits.requires_grad_()
    policy, reference = logits.log_softmax(0), other.log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    chances, found = policy.exp().detach().numpy(), {}
    for name, estimate in KL_ESTIMATORS.items():
        value, slope = estimate(policy.detach().numpy(), reference.numpy())
        pushed = (torch.tensor(chances * slope) * policy).sum()
        found[name] = (
            (chances * value).sum(),
            torch.autograd.grad(pushed, logits, retain_graph=True)[0].numpy(),
        )
    same(found["k1"][0], exact)
    same(found["k3"][0], exact)
    assert abs(found["k2"][0] - exact.item()) > 1e-2
    same(found["k2"][1], wanted)
    same(found["k1"][1], np.zeros(6))
    assert np.abs(found["k3"][1] - wanted.numpy()).max() > 1e-2
    for name in ("k1", "k3"):  # on the policy ρ = 1, and its derivative is what was missing
        objective = get_objective("bnpo", kl="loss", kl_estimator=name, kl_coefficient=1.0, kl_corrected=True)
        here = policy.detach().numpy()
        _, slope = objective._kl_terms(here, np.zeros(6), reference.numpy())
        pushed = (torch.tensor(chances * slope) * policy).sum()
        same(torch.autograd.grad(pushed, logits, retain_graph=True)[0], wanted)


def test_the_pull_towards_the_reference_in_the_advantage():
    "A_t + coef · m_t · (mean(diff) − diff_t), the mean over all tokens that were acted on."
    rng = np.random.default_rng(3)
    data = []
    for count in (3, 6):
        rows = {name: rng.normal(size=count) for name in ("logprobs", "reference_logprobs", "advantages")}
        data.append(
            Datum(np.arange(count), {"targets": np.arange(count), "weights": rng.integers(0, 2, count), **rows})
        )
    inputs = [{name: row.astype(np.float64) for name, row in datum.loss_fn_inputs.items()} for datum in data]
    masks = np.concatenate([one["weights"] for one in inputs])
    apart = np.concatenate([one["logprobs"] - one["reference_logprobs"] for one in inputs])
    start = np.concatenate([one["advantages"] for one in inputs])
    wanted = start + 0.1 * masks * ((apart * masks).sum() / masks.sum() - apart)
    found = _subtract_kl_from_advantages(data, get_objective("ppo", kl="advantage", kl_estimator="k1", kl_coefficient=0.1))
    same(np.concatenate([datum.loss_fn_inputs["advantages"] for datum in found]), wanted, 1e-6)


def test_how_far_the_sampler_is_from_the_trainer():
    made = episodes(2)
    masks = [inputs["weights"] for _, inputs in made]
    old, new = (np.concatenate([one[mask > 0] for one, mask in zip(many, masks, strict=True)]) for many in (
        [inputs["logprobs"] for _, inputs in made], [logprobs for logprobs, _ in made],
    ))  # fmt: skip
    found = kl_metrics([inputs["logprobs"] for _, inputs in made], [logprobs for logprobs, _ in made], masks)
    same(found["kl_sample_train_v1"], (old - new).mean())
    same(found["kl_sample_train_v2"], ((old - new) ** 2).mean() / 2)
    same(found["entropy"], -old.mean())
    data = [Datum(np.arange(len(one)), {"targets": np.arange(len(one)), **inputs}) for one, inputs in made]
    advantages = np.concatenate([inputs["advantages"][inputs["weights"] > 0] for _, inputs in made])
    ratio = np.exp(new - old)
    outside = np.where(advantages > 0, ratio > 1.2, ratio < 0.8)
    same(clip_fraction(OBJECTIVES["ppo"], data, [logprobs for logprobs, _ in made]), outside.mean())


# Preferences


def pair_formulas(name, chosen, rejected, chosen_reference, rejected_reference, chosen_length, rejected_length):
    """The loss of one pair, with the settings of the table."""
    up, down = chosen - chosen_reference, rejected - rejected_reference
    beta, apart = 0.1, up - down
    each, other = chosen / chosen_length, rejected / rejected_length
    by_token = up / chosen_length - down / rejected_length
    p = torch.sigmoid(beta * apart)
    return {
        "dpo": lambda: -p.log(),
        "cdpo": lambda: -0.9 * p.log() - 0.1 * (1 - p).log(),
        "robust": lambda: (-0.9 * p.log() + 0.1 * (1 - p).log()) / 0.8,
        "hinge": lambda: torch.clamp(1 - beta * apart, min=0),
        "ipo_sum": lambda: (apart - 5.0) ** 2,
        "ipo_mean": lambda: (by_token - 5.0) ** 2,
        "sigmoid_norm": lambda: -logsigmoid(beta * by_token),
        "exo_pair": lambda: p * (p / 0.999).log() + (1 - p) * ((1 - p) / 0.001).log(),
        "nca_pair": lambda: -logsigmoid(beta * up) - (logsigmoid(-beta * up) + logsigmoid(-beta * down)) / 2,
        "bco_pair": lambda: -logsigmoid(beta * up) - logsigmoid(-beta * down),
        "sppo_hard": lambda: (up - 5.0) ** 2 + (down + 5.0) ** 2,
        "apo_zero": lambda: 1 - torch.sigmoid(beta * up) + torch.sigmoid(beta * down),
        "apo_down": lambda: torch.sigmoid(beta * up) + 1 - p,
        "discopop": lambda: (
            -p.log() * (1 - torch.sigmoid(beta * apart / 0.05)) + (-beta * apart).exp() * torch.sigmoid(beta * apart / 0.05)
        ),
        "simpo": lambda: -logsigmoid(2.0 * (each - other) - 1.0),
        "orpo": lambda: -each - 0.1 * logsigmoid((each.exp() / (1 - each.exp())).log() - (other.exp() / (1 - other.exp())).log()),
        "kto": lambda: 2 - torch.sigmoid(beta * up) - torch.sigmoid(-beta * down),
    }[name]()  # fmt: skip


def some_pairs(seed, count=3):
    """Leaves of chosen and rejected sums, and the constants beside them."""
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(1, 9, count) for _ in range(2)]
    sums = [leaf(-rng.uniform(0.3, 3.0, count) * length) for length in lengths]
    references = [torch.tensor(one.detach().numpy() + rng.normal(0, 4, count)) for one in sums]
    return [*sums, *references, *map(torch.tensor, lengths)]


@pytest.mark.parametrize("name", PAIR_LOSSES)
@often
@given(seed=seeds)
def test_preference_losses_equal_autograd(name, seed):
    values = some_pairs(seed)
    mine = PAIR_LOSSES[name](PairLogprobs(*values))
    slopes = torch.autograd.grad(mine.sum(), values[:2])
    theirs = pair_formulas(name, *values)
    same(mine, theirs)
    for one, two in zip(slopes, torch.autograd.grad(theirs.sum(), values[:2]), strict=True):
        same(one, two)


@pytest.mark.parametrize(
    "give, got", [(lambda d: d.mean(), "()"), (lambda d: d[:2], "(2,)"), (lambda d: d[:, None], "(3, 1)"), (lambda d: 0.5, "()")]
)
def test_a_preference_loss_of_the_wrong_shape_is_named(give, got):
    loss = PairLoss("mine", lambda pairs, loss: give(pairs.logratio_difference))
    with pytest.raises(InvalidValue, match=re.escape(f"preference loss 'mine': values of shape {got}, wanted (3,), one value a pair")):
        loss(PairLogprobs(*some_pairs(0)))
    data = [Datum.from_tokens(range(4), [0, 1, 1, 1]) for _ in range(6)]
    with pytest.raises(InvalidValue, match="preference loss 'mine'"):
        pairwise_loss(loss, 3)(data, [leaf(np.arange(-4.0, -1.0)) for _ in data])
    with pytest.raises(InvalidValue, match="5 datums are no pairs"):
        pairwise_loss(PAIR_LOSSES["dpo"], 3)(data[:5], [leaf(np.arange(-4.0, -1.0)) for _ in data[:5]])


def test_settings_of_preference_losses():
    values = some_pairs(0)
    chosen, rejected, chosen_reference, rejected_reference, chosen_length, rejected_length = values
    up, down = chosen - chosen_reference, rejected - rejected_reference
    pairs = PairLogprobs(*values)
    drifting = get_pair_loss("kto", beta=0.3, desirable=1.3, undesirable=0.7, drift=0.6)
    wanted = 1.3 * (1 - torch.sigmoid(0.3 * (up - 0.6))) + 0.7 * (1 - torch.sigmoid(0.3 * (0.6 - down)))
    same(drifting(pairs), wanted)
    steep = 0.25 * (up - down)
    same(get_pair_loss("cdpo", beta=0.25, label_smoothing=0.0)(pairs), get_pair_loss("dpo", beta=0.25)(pairs))
    same(
        get_pair_loss("robust", beta=0.25, label_smoothing=0.2)(pairs),
        (-0.8 * logsigmoid(steep) + 0.2 * logsigmoid(-steep)) / 0.6,
    )
    wanted = -logsigmoid(3 * (chosen / chosen_length - rejected / rejected_length) - 0.5)
    same(get_pair_loss("simpo", beta=3.0, gamma=0.5)(pairs), wanted)


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - {"sppo_hard", "ipo_sum", "ipo_mean", "hinge", "discopop"}))
def test_far_apart_pairs_stay_finite(name):
    far = torch.tensor([-400.0, -400.0, -2.0, -2.0], dtype=torch.float64)
    chosen, rejected = leaf(far), leaf(far.flip(0))
    length, reference = torch.full((4,), 7), torch.full((4,), -200.0, dtype=torch.float64)
    loss = PAIR_LOSSES[name](PairLogprobs(chosen, rejected, reference, reference, length, length))
    loss.sum().backward()
    assert all(torch.isfinite(one).all() for one in (loss, chosen.grad, rejected.grad))


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("certain", [(0.0, -3.0), (-3.0, 0.0), (0.0, 0.0)])
def test_answers_of_probability_one_stay_finite(name, certain):
    "In float32 a log-probability above about -6e-8 is 0: odds are infinite there, gradients must not be."
    chosen, rejected = (leaf([one]) for one in certain)
    length, reference = torch.tensor([1]), torch.tensor([-2.0], dtype=torch.float64)
    loss = PAIR_LOSSES[name](PairLogprobs(chosen, rejected, reference, reference, length, length))
    loss.sum().backward()
    assert all(torch.isfinite(one).all() for one in (loss, chosen.grad, rejected.grad))


def test_scores_and_values_that_do_not_belong_together_are_named():
    with pytest.raises(InvalidValue, match=re.escape("bradley_terry: rejected of shape (1,), wanted (2,)")):
        bradley_terry(leaf([1.0, 2.0]), leaf([0.5]))
    with pytest.raises(InvalidValue, match=re.escape("gae: values of shape (3,), wanted (1,)")):
        gae(np.ones(1), np.ones(3))


def test_bradley_terry_equals_autograd():
    rng = np.random.default_rng(0)
    scores = [leaf(rng.normal(0, 2, 5)) for _ in range(2)]
    theirs = -torch.sigmoid(scores[0] - scores[1] - 0.3).log() + 0.01 * (scores[0] + scores[1]) ** 2
    mine = bradley_terry(*scores, margin=0.3, centre=0.01)
    same(mine, theirs)
    for one, two in zip(
        torch.autograd.grad(mine.sum(), scores), torch.autograd.grad(theirs.sum(), scores), strict=True
    ):
        same(one, two)


# Values


@often
@given(seed=seeds, over=st.booleans())
def test_gae_equals_the_sum_it_is_defined_by(seed, over):
    rng = np.random.default_rng(seed)
    count, gamma, lam = int(rng.integers(1, 10)), *rng.uniform(0.5, 1.0, 2)
    rewards, values, after = (
        rng.normal(size=count),
        rng.normal(size=count),
        0.0 if over else float(rng.normal()),
    )
    following = [*values[1:], after]
    delta = [rewards[t] + gamma * following[t] - values[t] for t in range(count)]
    wanted = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, count)) for t in range(count)]
    advantages, returns = gae(rewards, values, gamma, lam, after)
    same(advantages, wanted)
    same(returns, wanted + values)
    same(
        _discounted_sums(rewards, gamma),
        [sum(gamma ** (k - t) * rewards[k] for k in range(t, count)) for t in range(count)],
    )
    paid = np.append(rewards[:-1], rewards[-1] + gamma * after)
    same(gae(rewards, values, gamma, 1.0, after)[1], _discounted_sums(paid, gamma))  # λ = 1: Monte Carlo
    same(gae(rewards, values, gamma, 0.0, after)[0], delta)  # λ = 0: temporal difference


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_scalar_heads_and_value_losses_equal_autograd(clip):
    rng, head = np.random.default_rng(0), ScalarHead(3, offset=-1.5)
    chances = rng.uniform(0.02, 0.98, 8)
    tensor = leaf(np.log(chances))
    values = torch.logit(tensor.exp()) + 1.5
    same(head.read_scalars(tensor.detach()), values)
    same(head.read_scalars_torch(tensor), values)
    (slope,) = torch.autograd.grad(values.sum(), tensor, retain_graph=True)
    same(head.scalar_grads(tensor.detach()), slope)
    old, returns, weights = (
        values.detach() + torch.tensor(rng.normal(0, 1, 8)),
        torch.tensor(rng.normal(size=8)),
        rng.uniform(size=8),
    )
    weights[2] = 0.0
    limited = torch.minimum(torch.maximum(values, old - clip), old + clip)
    theirs = (torch.tensor(weights) * torch.maximum((values - returns) ** 2, (limited - returns) ** 2)).sum() / 2
    inputs = {"weights": weights, "returns": returns.numpy(), "values": old.numpy()}
    mine = value_loss(head, clip)(tensor.detach().numpy(), inputs)
    same(mine.value, theirs)
    same(mine.gradient, torch.autograd.grad(theirs, tensor)[0])


# Distillation


def whole(logits, kept):
    """Probabilities of the kept tokens, and of all others together, [T, K+1]."""
    chances = logits.softmax(-1)
    return torch.cat([chances[:, :kept], chances[:, kept:].sum(-1, keepdim=True)], -1)


def distill_formulas(name, teacher, student, kept):
    """The loss of each position, from logits [T, V] whose first `kept` tokens were kept."""
    t, s = whole(teacher, kept), whole(student, kept)
    middle = (t + s) / 2
    t_soft, s_soft = (one.sqrt() / one.sqrt().sum(-1, keepdim=True) for one in (t, s))  # temperature 2
    return {
        "forward_kl": lambda: (t * (t / s).log()).sum(-1),
        "reverse_kl": lambda: (s * (s / t).log()).sum(-1),
        "jsd": lambda: ((t * (t / middle).log()).sum(-1) + (s * (s / middle).log()).sum(-1)) / 2,
        "hinton": lambda: 4 * (t_soft * (t_soft / s_soft).log()).sum(-1),
        "top_k": lambda: -(t[:, :kept] / t[:, :kept].sum(-1, keepdim=True) * s[:, :kept].log()).sum(-1),
    }[name]()


@pytest.mark.parametrize("name", DISTILL_LOSSES)
@often
@given(seed=seeds, kept=st.integers(1, 6))
def test_distillation_losses_equal_autograd(name, seed, kept):
    rng = np.random.default_rng(seed)
    teacher, student = torch.tensor(rng.normal(0, 2, (5, 7))), leaf(rng.normal(0, 2, (5, 7)))
    mine = DISTILL_LOSSES[name](teacher.log_softmax(-1)[:, :kept], student.log_softmax(-1)[:, :kept])
    theirs = distill_formulas(name, teacher, student, kept)
    same(mine, theirs, 1e-8)
    mine, theirs = (torch.autograd.grad(one.sum(), student, retain_graph=True)[0] for one in (mine, theirs))
    same(mine, theirs, 1e-8)


@pytest.mark.parametrize("give, got", [(lambda d: d.sum(), "()"), (lambda d: d.sum(0), "(4,)"), (lambda d: d, "(5, 4)")])
def test_a_distillation_loss_of_the_wrong_shape_is_named(give, got):
    teacher, student = (leaf(np.random.default_rng(seed).normal(-2, 0.1, (5, 4))) for seed in (0, 1))
    loss = DistillLoss("mine", lambda teacher, student, loss: give(teacher - student))
    wanted = f"distillation loss 'mine': values of shape {got}, wanted (5,), one value a position"
    with pytest.raises(InvalidValue, match=re.escape(wanted)):
        loss(teacher, student)
    with pytest.raises(InvalidValue, match=re.escape("teacher of shape (5, 4), wanted (5, 3)")):
        DISTILL_LOSSES["jsd"](teacher, student[:, :3])


def test_with_all_but_one_token_the_divergences_are_exact():
    rng = np.random.default_rng(0)
    teacher, student = (torch.tensor(rng.normal(0, 2, (4, 6))).log_softmax(-1) for _ in range(2))
    exact = {
        "forward_kl": torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1),
        "reverse_kl": torch.nn.functional.kl_div(teacher, student, reduction="none", log_target=True).sum(-1),
    }
    for name, wanted in exact.items():
        same(DISTILL_LOSSES[name](teacher[:, :5], student[:, :5]), wanted)
    same(get_distill_loss("jsd", beta=0.0)(teacher[:, :5], student[:, :5]), exact["forward_kl"])
    same(get_distill_loss("jsd", beta=1.0)(teacher[:, :5], student[:, :5]), exact["reverse_kl"])
    soft = [(one / 3).log_softmax(-1) for one in (teacher, student)]
    wanted = 9 * (soft[0].exp() * (soft[0] - soft[1])).sum(-1)
    same(get_distill_loss("hinton", temperature=3.0)(teacher[:, :5], student[:, :5]), wanted)


@pytest.mark.parametrize("name", DISTILL_LOSSES)
@pytest.mark.parametrize("kept", [5, 8])
@pytest.mark.parametrize("sure", [1.0, 8.0])
def test_what_rounding_leaves_for_the_other_tokens_teaches_nothing(name, kept, sure):
    "Backends give float32: what is missing from 1 may be noise, and must stay so in the gradient of the logits."
    draws, found = torch.Generator().manual_seed(0), []
    teacher = sure * torch.randn(500, 8, generator=draws)
    start = teacher + 0.3 * torch.randn(500, 8, generator=draws)
    places = teacher.topk(kept).indices
    for kind in (torch.float32, torch.float64):
        student = start.to(kind).requires_grad_() if kind == torch.float64 else start.clone().requires_grad_()
        logprobs = student.log_softmax(-1).gather(1, places)
        given = logprobs.detach().double().requires_grad_()
        DISTILL_LOSSES[name](teacher.to(kind).log_softmax(-1).gather(1, places).double(), given).sum().backward()
        logprobs.backward(given.grad.to(kind))
        found.append(student.grad.double())
    apart = (found[0] - found[1]).norm(dim=1).max() / found[1].norm(dim=1).max()
    assert apart <= 3e-3, f"{float(apart):.3g}"


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_jsd_leans_to_either_side(beta):
    rng = np.random.default_rng(0)
    teacher, student = (torch.tensor(rng.normal(0, 2, (4, 6))).log_softmax(-1) for _ in range(2))
    t, s = teacher.exp(), student.exp()
    middle = beta * t + (1 - beta) * s
    wanted = beta * (t * (t / middle).log()).sum(-1) + (1 - beta) * (s * (s / middle).log()).sum(-1)
    same(get_distill_loss("jsd", beta=beta)(teacher[:, :5], student[:, :5]), wanted)


# On the backends: the same models once more, in plain torch


class Toy:
    """The toy backend and its network in torch."""

    tolerance = 1e-6
    losses = frozenset(LOSSES)

    def __init__(self):
        self.model = "toy:hidden=6,context=4,question=3,embedding=3"
        self.client = ToyService().create_training_client(self.model, None, 0)
        opened = open_toy_model(self.model)
        self.shape = opened.shape
        self.leaves = {name: torch.tensor(opened.weights[name], requires_grad=True) for name in self.client.learner.sizes}

    def logprobs(self, data):
        weights, counts = self.leaves, [len(datum) for datum in data]
        seen = torch.tensor(context_windows([datum.tokens for datum in data], self.shape))
        hidden = torch.tanh(weights["embedding"][seen].flatten(1) @ weights["hidden"].T + weights["hidden_bias"])
        table = (hidden @ weights["output"].T + weights["output_bias"]).log_softmax(-1)
        targets = torch.tensor(np.concatenate([datum.targets for datum in data]))
        return table.gather(1, targets[:, None])[:, 0].split(counts)

    def accumulated_gradient(self):
        return self.client.learner.pending_gradient().copy()


class Torch:
    """The torch backend, and transformers alone."""

    tolerance = 1e-4

    def __init__(self):
        from transformers import AutoModelForCausalLM

        from kitchen.adapters.torch.client import TorchService

        service = TorchService(device="cpu")
        self.losses = service.capabilities().losses
        self.client = service.create_training_client("builtin:tiny-chat", None, 0)
        folder = Path(kitchen.__file__).parent / "assets" / "models" / "tiny-chat"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        known = dict(self.model.named_parameters())
        self.leaves = {name: known[name] for name in self.client.learner.accumulated_gradient()}

    def logprobs(self, data):
        return [
            self.model(input_ids=torch.tensor(datum.tokens)[None]).logits[0].log_softmax(-1)
            .gather(1, torch.tensor(datum.targets)[:, None])[:, 0].double()
            for datum in data
        ]  # fmt: skip

    def accumulated_gradient(self):
        return (
            torch.cat([one.flatten() for one in self.client.learner.accumulated_gradient().values()]).double().numpy()
        )


@pytest.fixture(scope="module", params=[Toy, Torch], ids=["toy", "torch"])
def backend(request):
    return request.param()


def gradient_of(backend, requests):
    """Loss and gradient that these requests add up to; the weights stay as they are."""
    loss = sum(request(backend.client).result(60).loss_sum for request in requests)
    gradient = backend.accumulated_gradient()
    norm = backend.client.optim_step(AdamParams(learning_rate=0.0)).result(60).metrics["grad_norm"]
    assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    return loss, gradient


def gradient_by_autograd(backend, loss):
    """The loss's gradient by each weight, in the order of the backend."""
    found = torch.autograd.grad(loss, list(backend.leaves.values()))
    return torch.cat([one.flatten() for one in found]).double().numpy()


def near(mine, theirs, bound):
    """Assert that two gradients differ by less than a share of their norm."""
    apart = np.linalg.norm(mine - theirs) / max(np.linalg.norm(theirs), 1e-12)
    assert apart <= bound, f"{apart:.3g}"


def conversations(count=6, seed=0):
    """Datums with different lengths and with weights of 0 and 1."""
    rng, data = np.random.default_rng(seed), []
    for place in range(count):
        length = int(rng.integers(3, LONGEST + 1))
        weights = rng.choice([0.0, 1.0], length)
        weights[-1] = 1.0
        data.append(Datum.from_tokens(rng.integers(5, 250, length + 1), [0.0, *weights], f"datum {place}"))
    return data


@pytest.fixture(scope="module")
def rollouts(backend):
    """Datums with everything that objectives ask for, a little off the policy."""
    rng, data = np.random.default_rng(1), conversations()
    with torch.no_grad():
        found = [one.double().numpy() for one in backend.logprobs(data)]
    apart = [0.3 if place % 2 else 1e-3 for place in range(len(data))]
    return [
        datum.replace(
            logprobs=logprobs + rng.normal(0, spread, len(datum)),
            reference_logprobs=logprobs + rng.normal(0, 0.3, len(datum)),
            advantages=np.full(len(datum), rng.normal()) * datum.weights,
        )
        for datum, logprobs, spread in zip(data, found, apart, strict=True)
    ]


def shared_out(data, objective):
    """The weights of the aggregation over the whole optimizer step."""
    shares = AGGREGATIONS[objective.aggregation]([datum.weights for datum in data], LONGEST)
    return [datum.replace(weights=share) for datum, share in zip(data, shares, strict=True)]


def parts(data, count, together=1):
    """Micro-batches of unequal sizes; never cuts what belongs together."""
    inner = {1: (), 2: (1,), 3: (1, len(data) // together - 1)}[count]
    cuts = [0, *(together * place for place in inner), len(data)]
    return [data[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_on_backends(backend, rollouts, name):
    "Native or custom, whole or in micro-batches: the gradient of autograd through the same model."
    objective = OBJECTIVES[name]
    rows = [pad_sequence(list(backend.logprobs(rollouts)), batch_first=True).double()]
    for what in ("logprobs", "reference_logprobs", "advantages", "weights"):
        values = [torch.tensor(datum.loss_fn_inputs[what]).double() for datum in rollouts]
        rows.append(pad_sequence(values, batch_first=True))
    theirs = policy_formulas(name, *rows[:3], rows[3].sum(1, keepdim=True) / rows[4].sum(1, keepdim=True), rows[4])
    wanted, data = gradient_by_autograd(backend, theirs), shared_out(rollouts, objective)
    for losses in (frozenset(), backend.losses) if _native_loss(objective) else (frozenset(),):
        for count in (1, 2, 3):
            requests = [
                lambda client, part=part, losses=losses: submit_objective(client, part, objective, losses)
                for part in parts(data, count)
            ]
            loss, gradient = gradient_of(backend, requests)
            near(gradient, wanted, backend.tolerance)
            if not losses or _native_loss(objective)[0] not in ("cross_entropy",):
                assert loss == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)


def test_every_shape_without_a_loss_of_its_own_is_known():
    without = {name for name, objective in OBJECTIVES.items() if _native_loss(objective) is None}
    assert without == {"grpo", "gspo", "dro"}
    assert {_native_loss(one)[0] for name, one in OBJECTIVES.items() if name not in without} == LOSSES.keys() - {"dro", "gspo"}


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo"])
def test_on_the_policy_backends_give_the_gradient_of_cross_entropy(backend, name):
    "Formulae D.9: identities 1 to 3."
    rng, data = np.random.default_rng(2), conversations(3, seed=4)
    everywhere = [datum.replace(weights=np.ones(len(datum))) for datum in data]
    found = backend.client.forward(everywhere, "cross_entropy").result(60).loss_fn_outputs
    advantages = [datum.weights * rng.normal(size=len(datum)) for datum in data]
    plain = [datum.replace(weights=one) for datum, one in zip(data, advantages, strict=True)]
    ratios = [
        datum.replace(advantages=one, logprobs=there["logprobs"])
        for datum, one, there in zip(data, advantages, found, strict=True)
    ]
    _, wanted = gradient_of(backend, [lambda client: client.forward_backward(plain, "cross_entropy")])
    _, gradient = gradient_of(backend, [lambda client: client.forward_backward(ratios, name)])
    near(gradient, wanted, 1e-5)
    if name == "cispo":
        away = [datum.replace(logprobs=datum.loss_fn_inputs["logprobs"] - 0.5) for datum in ratios]
        free = {"clip_low_threshold": 0.0, "clip_high_threshold": math.inf}
        _, wanted = gradient_of(backend, [lambda client: client.forward_backward(away, "importance_sampling")])
        _, gradient = gradient_of(backend, [lambda client: client.forward_backward(away, "cispo", free)])
        near(gradient, wanted, 1e-5)


@pytest.mark.parametrize("limit", [0, 20])
def test_a_custom_loss_sees_datums_in_their_order(limit):
    "Chosen and rejected answers are told apart by their place: no backend may sort them, in one pass or in several."
    from kitchen.adapters.torch.client import TorchService

    data, seen = conversations(), []

    def loss(given, logprobs):
        seen.append(([datum.origin for datum in given], [len(one) for one in logprobs]))
        return sum(one.sum() for one in logprobs), {}

    for service, model in (
        (ToyService(), "toy:hidden=6,context=4,question=3,embedding=3"),
        (TorchService(device="cpu", tokens_at_once=limit), "builtin:tiny-chat"),
    ):
        service.create_training_client(model, None, 0).forward_backward_custom(data, loss).result(60)
    assert seen == [([datum.origin for datum in data], [len(datum) for datum in data])] * 2


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_preferences_on_backends(backend, rollouts, name):
    sums = [
        (one.double() * torch.tensor(datum.weights)).sum()
        for one, datum in zip(backend.logprobs(rollouts), rollouts, strict=True)
    ]
    references = [
        torch.tensor((datum.loss_fn_inputs["reference_logprobs"].astype(np.float64) * datum.weights).sum())
        for datum in rollouts
    ]
    lengths = [torch.tensor(int(datum.weights.sum())) for datum in rollouts]
    rows = [torch.stack(many[start::2]) for many in (sums, references, lengths) for start in (0, 1)]
    theirs = pair_formulas(name, *rows).mean()
    wanted = gradient_by_autograd(backend, theirs)
    for count in (1, 2, 3):
        requests = [
            lambda client, part=part: client.forward_backward_custom(part, pairwise_loss(PAIR_LOSSES[name], 3))
            for part in parts(rollouts, count, together=2)
        ]
        loss, gradient = gradient_of(backend, requests)
        assert loss == pytest.approx(theirs.item(), rel=1e-5)
        near(gradient, wanted, backend.tolerance)


def test_what_is_told_about_preferences(backend, rollouts):
    loss = get_pair_loss("dpo", beta=0.2)
    found = backend.client.forward_backward_custom(rollouts, pairwise_loss(loss, 3)).result(60).metrics
    backend.client.optim_step(AdamParams(learning_rate=0.0)).result(60)
    with torch.no_grad():
        sums = np.array(
            [
                (one.double() * torch.tensor(datum.weights)).sum()
                for one, datum in zip(backend.logprobs(rollouts), rollouts, strict=True)
            ]
        )
    references = np.array(
        [(datum.loss_fn_inputs["reference_logprobs"].astype(np.float64) * datum.weights).sum() for datum in rollouts]
    )
    means = sums / np.array([(datum.weights != 0).sum() for datum in rollouts])
    up, down = (0.2 * (sums - references)[start::2] for start in (0, 1))
    wanted = {
        "pairs": 3, "accuracy": (up > down).sum(), "chosen_reward": up.sum(), "rejected_reward": down.sum(),
        "margin": (up - down).sum(), "chosen_logprob": sums[::2].sum(), "rejected_logprob": sums[1::2].sum(), "ties": 0,
        "ranking_accuracy": (sums[::2] > sums[1::2]).sum(), "ranking_accuracy_per_token": (means[::2] > means[1::2]).sum(),
    }  # fmt: skip
    assert {name.removesuffix(":sum"): value for name, value in found.items() if name != "loss:sum"} == pytest.approx(
        wanted, rel=1e-4, abs=1e-4
    )


def test_supervised_losses_on_backends(backend):
    data = normalize_weights(conversations())
    tables = [one.double() for one in backend.logprobs(data)]
    weights = [torch.tensor(datum.weights).double() for datum in data]
    wanted = {
        "cross_entropy": -sum((one * weight).sum() for one, weight in zip(tables, weights, strict=True)),
        "dft": -sum((one * one.detach().exp() * weight).sum() for one, weight in zip(tables, weights, strict=True)),
    }
    for name, theirs in wanted.items():
        gradient_wanted = torch.autograd.grad(theirs, list(backend.leaves.values()), retain_graph=True)
        gradient_wanted = torch.cat([one.flatten() for one in gradient_wanted]).double().numpy()
        for count in (1, 2, 3):
            requests = [
                (lambda client, part=part: client.forward_backward(part, "cross_entropy"))
                if name == "cross_entropy"
                else (lambda client, part=part: client.forward_backward_custom(part, as_custom_loss(dft)))
                for part in parts(data, count)
            ]
            loss, gradient = gradient_of(backend, requests)
            assert loss == pytest.approx(theirs.item(), rel=1e-5)
            near(gradient, gradient_wanted, backend.tolerance)


def test_cross_entropy_is_the_custom_loss_with_its_weights(backend, rollouts):
    "Formulae D.9, identity 4: any loss has the gradient of cross-entropy with w = −∂L/∂ℓ."
    objective = OBJECTIVES["grpo"]
    data = shared_out(rollouts, objective)
    with torch.no_grad():
        found = [one.double().numpy() for one in backend.logprobs(data)]
    slopes = [objective.term(one, datum.loss_fn_inputs).gradient for one, datum in zip(found, data, strict=True)]
    plain = [
        Datum(datum.tokens, {"targets": datum.targets, "weights": -slope})
        for datum, slope in zip(data, slopes, strict=True)
    ]
    _, wanted = gradient_of(backend, [lambda client: client.forward_backward(plain, "cross_entropy")])
    _, gradient = gradient_of(
        backend, [lambda client: client.forward_backward_custom(data, as_custom_loss(objective.term))]
    )
    near(gradient, wanted, 1e-5)


def test_scores_of_a_reward_model_on_backends(backend):
    head, rng = ScalarHead(7, offset=-5.0), np.random.default_rng(5)
    texts = [rng.integers(5, 250, int(rng.integers(3, 9))) for _ in range(6)]
    data = [head.query_datum(text, [len(text) - 1]) for text in texts]
    scores = torch.stack([torch.logit(one.double().exp()[-1]) + 5.0 for one in backend.logprobs(data)])
    theirs = (-logsigmoid(scores[::2] - scores[1::2] - 0.1) + 0.01 * (scores[::2] + scores[1::2]) ** 2).mean()
    wanted = gradient_by_autograd(backend, theirs)
    for count in (1, 2, 3):
        requests = [
            lambda client, part=part: client.forward_backward_custom(part, reward_model_loss(head, 3, 0.1, 0.01))
            for part in parts(data, count, together=2)
        ]
        loss, gradient = gradient_of(backend, requests)
        assert loss == pytest.approx(theirs.item(), rel=1e-5)
        near(gradient, wanted, backend.tolerance)


@pytest.mark.parametrize("clip", [math.inf, 0.3])
def test_values_of_a_critic_on_backends(backend, clip):
    "PPO's pessimistic value loss, on log-odds less an offset: the gradient of autograd through the same model."
    head, rng, data, theirs = ScalarHead(7), np.random.default_rng(8), [], torch.zeros((), dtype=torch.float64)
    plain = [head.query_datum(rng.integers(5, 250, size), range(1, size - 1)) for size in (6, 4, 9)]
    for datum, logprobs in zip(plain, backend.logprobs(plain), strict=True):
        shape, acted = len(datum), torch.tensor(datum.weights) != 0
        rows = {name: rng.normal(0, 0.5, shape) for name in ("returns", "values")}
        rows["offsets"] = head.read_scalars(logprobs.detach().numpy()) + rng.normal(0, 0.5, shape)
        data.append(datum.replace(weights=datum.weights / 9.0, **rows))
        returns, before, offsets = (torch.tensor(data[-1].loss_fn_inputs[name]).double() for name in rows)
        value = torch.logit(logprobs.double().exp()) - offsets
        kept = torch.clamp(value, before - clip, before + clip) if math.isfinite(clip) else value
        theirs = theirs + (0.5 * torch.maximum((value - returns) ** 2, (kept - returns) ** 2))[acted].sum() / 9.0
    wanted, loss = gradient_by_autograd(backend, theirs), as_custom_loss(value_loss(head, clip))
    for count in (1, 2, 3):
        requests = [
            lambda client, part=part: client.forward_backward_custom(part, loss) for part in parts(data, count)
        ]
        value, gradient = gradient_of(backend, requests)
        assert value == pytest.approx(theirs.item(), rel=1e-4)
        near(gradient, wanted, 2 * backend.tolerance)


@pytest.mark.parametrize("name", DISTILL_LOSSES)
def test_distillation_on_backends(backend, name):
    rng, data, kept = np.random.default_rng(6), [], 4
    for length in (5, 8):
        tokens, weights = rng.integers(5, 250, length), rng.choice([0.0, 1.0, 2.0], length)
        targets = np.stack([rng.choice(250, kept, replace=False) for _ in range(length)])
        teacher = np.log(rng.dirichlet(np.ones(kept + 1), length)[:, :kept])
        data += ranked_datums(tokens, targets, teacher, weights)
    found, theirs = list(backend.logprobs(data)), torch.zeros((), dtype=torch.float64)
    for start in range(0, len(data), kept):
        s = torch.stack([one.double() for one in found[start : start + kept]], -1).exp()
        t = (
            torch.tensor(np.stack([one.loss_fn_inputs["teacher_logprobs"] for one in data[start : start + kept]], -1))
            .double()
            .exp()
        )
        learnt = torch.tensor(data[start].weights) != 0
        rows = [torch.cat([one, 1 - one.sum(-1, keepdim=True)], -1)[learnt].log() for one in (t, s)]
        theirs = theirs + (torch.tensor(data[start].weights)[learnt] * distill_formulas(name, *rows, kept)).sum()
    theirs = theirs / 11.0
    wanted = gradient_by_autograd(backend, theirs)
    for count in (1, 2):
        requests = [
            lambda client, part=part: client.forward_backward_custom(
                part, distillation_loss(DISTILL_LOSSES[name], kept, 11.0)
            )
            for part in parts(data, count, together=kept)
        ]
        loss, gradient = gradient_of(backend, requests)
        assert loss == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
        near(gradient, wanted, backend.tolerance)
    if name == "top_k":
        plain = [one for start in (0, kept) for one in renormalize_ranks(data[start : start + kept])]
        _, gradient = gradient_of(backend, [lambda client: client.forward_backward(plain, "cross_entropy")])
        near(gradient / 11.0, wanted, backend.tolerance)


@pytest.mark.parametrize("make", [Toy, Torch], ids=["toy", "torch"])
def test_a_whole_step_does_not_depend_on_micro_batches(make):
    "Weights after an optimizer step, seen through their log-probabilities."
    objective, seen = get_objective("dapo"), []
    for count in (1, 2, 3):
        backend, data = make(), conversations(seed=7)
        start = [one.detach().double().numpy() for one in backend.logprobs(data)]
        made = [
            datum.replace(logprobs=logprobs, advantages=datum.weights * (place - 2.2))
            for place, (datum, logprobs) in enumerate(zip(data, start, strict=True))
        ]
        for part in parts(shared_out(made, objective), count):
            submit_objective(backend.client, part, objective, frozenset()).result(60)
        backend.client.optim_step(AdamParams(learning_rate=1e-3, eps=1e-3)).result(60)
        everywhere = [datum.replace(weights=np.ones(len(datum))) for datum in data]
        after = backend.client.forward(everywhere, "cross_entropy").result(60).loss_fn_outputs
        seen.append(np.concatenate([one["logprobs"] for one in after]))
    assert np.abs(seen[0] - np.concatenate(start)).max() > 1e-3, "the step did something"
    same(seen[1], seen[0], 1e-4)
    same(seen[2], seen[0], 1e-4)
