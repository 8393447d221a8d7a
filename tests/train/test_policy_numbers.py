"""What is told about a policy means the same whichever way the loss was computed, and over the same tokens."""

import numpy as np
import pytest

from kitchen.adapters.toy.client import ToyService
from kitchen.losses.policy import OBJECTIVES, clip_fraction, estimate_kl, get_objective, kl_metrics
from kitchen.train.ppo import _EpisodeTokens, _subtract_kl
from kitchen.train.rl import PolicyUpdateSettings, _subtract_kl_from_advantages, charge_advantages, take_steps
from kitchen.types import AdamParams, Datum

torch = pytest.importorskip("torch")

from kitchen.adapters.torch.client import TorchService  # noqa: E402

torch.set_num_threads(1)
CHOICES = {  # what is computed by a backend's own loss, and what is not
    "importance_sampling": {}, "reinforce": {"advantage": "centre"}, "ppo": {}, "dapo": {}, "cispo": {"high": 1.3}, "dr_grpo": {},
    "gspo": {}, "dro": {}, "grpo": {}, "dual clip": {"cap": 1.5}, "rloo": {"kl": "none"},
}  # fmt: skip


@pytest.fixture(scope="module", params=["toy", "builtin:tiny-chat"])
def made(request):
    """A way to open a fresh client, and datums a little off its policy: some groups with advantage 0, prompts that are masked."""
    service = ToyService() if request.param == "toy" else TorchService(device="cpu")

    def fresh():
        return service.create_training_client(request.param, None, 0)

    rng, data, client = np.random.default_rng(0), [], fresh()
    for place, advantage in enumerate((1.0, 0.0, -0.5, 0.0, -1.0, 0.7)):
        length = int(rng.integers(8, 14))
        datum = Datum.from_tokens(rng.integers(10, 200, length).tolist(), [0.0] * 4 + [1.0] * (length - 4))
        everywhere = datum.replace(weights=np.ones(len(datum)))
        now = client.forward([everywhere], "cross_entropy").result(60).loss_fn_outputs[0]["logprobs"]
        before = now + np.where(rng.random(len(datum)) < 0.5, 0.6, -0.6 - 0.1 * place)
        reference = now + rng.normal(0, 0.3, len(datum))
        data.append(datum.replace(logprobs=before, advantages=advantage * datum.weights, reference_logprobs=reference))
    return service, fresh, data


def told(made, objective, losses):
    _, fresh, data = made
    return [
        item.measurements
        for item in take_steps(fresh(), data, PolicyUpdateSettings(objective, 12, num_substeps=2, kl_alarm=1e9), AdamParams(1e-3), losses, 0)
        if item.name in ("train.policy", "train.step")
    ]


@pytest.mark.parametrize("name", CHOICES)
def test_both_paths_tell_the_same(made, name):
    "clip_fraction, entropy, k1 and k2 to the sampler, the distance of the update and of the reference, and the loss."
    objective = get_objective("ppo" if name == "dual clip" else name, **CHOICES[name])
    native, custom = (told(made, objective, losses) for losses in (made[0].capabilities().losses, frozenset()))
    for one, two in zip(native, custom, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"seconds", "tokens_per_second", "memory"}:
            assert one[key] == pytest.approx(two[key], rel=2e-4, abs=2e-5), key


@pytest.mark.parametrize("name", ["ppo", "dapo", "cispo", "dual clip", "gspo", "importance_sampling", "dro"])
def test_what_is_counted(name):
    "Over every token that was acted, of advantage 0 or not; the bound on the side that holds it back."
    objective = get_objective("ppo" if name == "dual clip" else name, **CHOICES[name])
    rng, data, found = np.random.default_rng(1), [], []
    for advantage in (1.0, 0.0, -1.0, -2.0):
        weights, old = rng.integers(0, 2, 9), rng.normal(-1, 0.2, 9)
        weights[0] = 1
        inputs = {"targets": np.arange(9), "weights": weights, "logprobs": old, "advantages": advantage * weights}
        data.append(Datum(np.arange(9), inputs))
        found.append((old + rng.normal(0, 0.5, 9)).astype(np.float32))
    beyond = count = 0
    for datum, new in zip(data, found, strict=True):
        acted = datum.weights != 0
        apart = (new.astype(np.float64) - datum.loss_fn_inputs["logprobs"])[acted]
        ratio = np.exp(np.full_like(apart, apart.mean()) if name == "gspo" else apart)
        for one, gain in zip(ratio, datum.loss_fn_inputs["advantages"][acted], strict=True):
            count += 1
            if name not in ("importance_sampling", "dro"):
                beyond += (gain > 0 and one > objective.high) or (gain < 0 and (one < objective.low or one > objective.cap))
    assert clip_fraction(objective, data, found) == pytest.approx(beyond / count, abs=1e-6)
    assert name in ("importance_sampling", "dro") or beyond


def test_what_no_backend_told_is_left_out_of_both_sides():
    "A backend that reads fewer tokens gives NaN there; a mean is then over those it told."
    assert kl_metrics([np.array([-1.0, -2.0])], [np.array([-1.5, np.nan])], [np.array([1, 1])]) == pytest.approx(
        {"kl_sample_train_v1": 0.5, "kl_sample_train_v2": 0.125, "entropy": 1.0}
    )


# KL in the advantage


def one_token_actions(logits, reference):
    """All actions of one token, each once."""
    logprobs = torch.log_softmax(logits.detach(), 0).numpy()
    return [
        Datum([0], {"targets": [place], "weights": [1.0], "advantages": [0.0], "logprobs": [ours], "reference_logprobs": [theirs]})
        for place, (ours, theirs) in enumerate(zip(logprobs, reference, strict=True))
    ]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_in_the_advantage_is_the_estimator_that_is_named(estimator):
    """The expected gradient over all actions is that of −coef · E[estimate], the estimate held fixed; with k1 it is that of −coef · KL."""
    rng, coefficient = np.random.default_rng(4), 0.3
    logits = torch.tensor(rng.normal(size=9), requires_grad=True)
    reference = torch.log_softmax(torch.tensor(rng.normal(size=9)), 0).numpy()
    objective = get_objective("importance_sampling", kl="advantage", kl_coefficient=coefficient, kl_estimator=estimator)
    advantages = np.concatenate(
        [one.loss_fn_inputs["advantages"] for one in charge_advantages(one_token_actions(logits, reference), objective)]
    )
    policy = torch.log_softmax(logits, 0)
    chances = policy.detach().exp()

    def gradient(scores):
        return torch.autograd.grad((chances * torch.as_tensor(scores) * policy).sum(), logits, retain_graph=True)[0].numpy()

    apart = policy.detach().numpy() - reference
    wanted = {"k1": apart, "k2": apart**2 / 2, "k3": np.exp(-apart) - 1 + apart}[estimator]
    assert gradient(advantages) == pytest.approx(gradient(-coefficient * wanted), abs=1e-6)
    divergence = (policy.exp() * (policy - torch.tensor(reference))).sum()
    exact = -coefficient * torch.autograd.grad(divergence, logits, retain_graph=True)[0].numpy()
    off = np.linalg.norm(gradient(advantages) - exact) / np.linalg.norm(exact)
    assert off < 1e-5 if estimator == "k1" else off > 0.02


def test_k3_as_a_score_hardly_pulls_near_the_reference():
    "Why k1 is taken where another place than the loss is named without an estimator."
    rng = np.random.default_rng(5)
    reference = rng.normal(size=9)
    logits = torch.tensor(reference + 0.01 * rng.normal(size=9), requires_grad=True)
    reference = torch.log_softmax(torch.tensor(reference), 0).numpy()
    policy = torch.log_softmax(logits, 0)
    pulls = {
        name: np.linalg.norm(
            torch.autograd.grad(
                (policy.detach().exp() * torch.tensor(estimate_kl(name, policy.detach().numpy(), reference)[0]) * policy).sum(),
                logits,
                retain_graph=True,
            )[0]
        )
        for name in ("k1", "k3")
    }
    assert pulls["k3"] < 0.02 * pulls["k1"]
    assert get_objective("grpo", kl="advantage").kl_estimator == get_objective("grpo", kl="reward").kl_estimator == "k1"
    assert get_objective("grpo").kl_estimator == get_objective("ppo", kl="loss").kl_estimator == "k3"
    assert get_objective("grpo", kl="reward", kl_estimator="k3").kl_estimator == "k3", "what is named is taken"


def test_with_a_critic_too():
    "A distance in the reward of each token, and one in the advantage, are estimated as the objective says."
    inputs = {"targets": [1, 1, 1], "weights": [0, 1, 1], "logprobs": [0, -0.4, -0.7], "reference_logprobs": [0, -1.0, -0.6]}
    datum = Datum([1, 1, 1], {**inputs, "advantages": [0, 0, 0]})
    apart = np.array([0.6, -0.1])
    exact = {"k1": apart, "k2": apart**2 / 2, "k3": np.exp(-apart) - 1 + apart}
    for name, wanted in exact.items():
        paid = _subtract_kl(_EpisodeTokens([datum], np.zeros(2), False), 0.1, name)
        assert paid.rewards == pytest.approx(-0.1 * wanted, abs=1e-6)
        objective = get_objective("ppo", kl="advantage", kl_coefficient=0.1, kl_estimator=name)
        (found,) = _subtract_kl_from_advantages([datum], objective)
        assert found.loss_fn_inputs["advantages"] == pytest.approx([0, *(0.1 * (wanted.mean() - wanted))], abs=1e-6)
    assert charge_advantages([datum], OBJECTIVES["grpo"])[0] is datum
