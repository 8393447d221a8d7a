"""Learning at a temperature: the gradient is that of the policy that acts, softmax(logits / T), and all who speak of it agree."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitchen.adapters.toy.client import ToyService
from kitchen.data.batches import Batches
from kitchen.envs.base import question_problems
from kitchen.envs.rewards import Reward
from kitchen.losses.policy import OBJECTIVES, get_objective, submit_objective
from kitchen.rendering.registry import get_renderer
from kitchen.train.rl import PolicyUpdateSettings, _advantage_data, learn_from_rollouts, train_rl
from kitchen.train.rollouts import Policy, collect_rollouts, play_groups, trajectory_to_datums
from kitchen.types import (
    AdamParams,
    Completion,
    Datum,
    InvalidValue,
    MissingCapability,
    SamplingParams,
    Trajectory,
    Transition,
)

torch = pytest.importorskip("torch")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from kitchen.adapters.torch.client import TorchService  # noqa: E402

torch.set_num_threads(1)
TEMPERATURES = (0.5, 0.7, 1.0, 1.3)
WORDS, PROMPT = 7, (3, 5)
LETTERS = Reward("letters", lambda answer, row: sum(letter in "aeiou" for letter in answer) / 3, gold=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of seven words, all of whose answers of two words can be counted out."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("seven")
    words = Tokenizer(models.WordLevel({f"w{place}": place for place in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0").save_pretrained(root)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        initializer_range=0.6, bos_token_id=None, eos_token_id=1, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root)
    return root


def exact_gradient(folder, temperature, reward):
    """The gradient of the expected reward of softmax(logits / T) over all answers of two words, in float64 by autograd."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    answers = torch.tensor(list(product(range(WORDS), repeat=2)))
    ids = torch.cat([torch.tensor(PROMPT).expand(len(answers), -1), answers], 1)
    table = (model(ids).logits[:, 1:3] / temperature).log_softmax(-1)
    chosen = table.gather(2, answers[:, :, None])[:, :, 0]
    expected = (chosen.sum(1).exp() * torch.tensor(reward)).sum()
    expected.backward()
    return chosen.detach().numpy(), {name: weight.grad.numpy() for name, weight in model.named_parameters()}


def rewards_of_answers():
    return np.random.default_rng(2).normal(size=WORDS * WORDS)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["importance_sampling", "reinforce", "ppo", "dapo", "gspo"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_that_of_the_policy_that_acts(folder, temperature, name, native):
    "Every answer once, weighted with its probability: what Monte Carlo tends to."
    reward = rewards_of_answers()
    logprobs, wanted = exact_gradient(folder, temperature, reward)
    service = TorchService(device="cpu")
    client = service.create_training_client(str(folder), None, 0)
    objective, data = get_objective(name, advantage="given", aggregation="sum"), []
    for answer, drawn, value in zip(product(range(WORDS), repeat=2), logprobs, reward, strict=True):
        completion = Completion(answer, tuple(drawn.tolist()), "length", temperature)
        (datum,) = trajectory_to_datums(Trajectory((Transition(PROMPT, completion),)), 1.0)
        data.append(datum.replace(advantages=datum.weights * value * float(np.exp(drawn.sum()))))
    output = submit_objective(client, data, objective, service.capabilities().losses if native else frozenset()).result(60)
    acted = [one["logprobs"][datum.weights != 0] for one, datum in zip(output.loss_fn_outputs, data, strict=True)]
    assert np.abs(np.array(acted) - logprobs).max() < 1e-5
    found = {key: -value.double().numpy() for key, value in client.learner.accumulated_gradient().items()}
    size = np.sqrt(sum((one**2).sum() for one in wanted.values()))
    apart = np.sqrt(sum(((found[key] - wanted[key]) ** 2).sum() for key in wanted))
    assert apart <= 1e-4 * size, f"{apart / size:.2%} off at temperature {temperature}"


def test_what_went_wrong_without_it(folder):
    "Log-probabilities at temperature 1 of answers drawn at 0.5 give another direction: this is what the tests above would see."
    reward = rewards_of_answers()
    logprobs, wanted = exact_gradient(folder, 0.5, reward)
    plain, _ = exact_gradient(folder, 1.0, reward)
    client = TorchService(device="cpu").create_training_client(str(folder), None, 0)
    data = []
    for answer, raw, drawn, value in zip(product(range(WORDS), repeat=2), plain, logprobs, reward, strict=True):
        completion = Completion(answer, tuple(raw.tolist()), "length")
        (datum,) = trajectory_to_datums(Trajectory((Transition(PROMPT, completion),)), 1.0)
        data.append(datum.replace(advantages=datum.weights * value * float(np.exp(drawn.sum()))))
    objective = get_objective("importance_sampling", advantage="given")
    submit_objective(client, data, objective, frozenset({"importance_sampling"})).result(60)
    found = np.concatenate([-one.double().numpy().ravel() for one in client.learner.accumulated_gradient().values()])
    exact = np.concatenate([wanted[key].ravel() for key in client.learner.accumulated_gradient()])
    scale = found @ exact / (found @ found)  # even with the best step size
    assert np.linalg.norm(scale * found - exact) > 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("temperature", (0.5, 0.7, 1.3))
def test_the_toy_in_float64(temperature):
    "All answers of one token, against differences of the expected reward; nothing of the way is shared but the network."
    service, model = ToyService(), "toy:hidden=4,context=3,question=2,embedding=2"
    client = service.create_training_client(model, None, 0)
    size = len(service.get_tokenizer(model))
    reward = np.random.default_rng(0).normal(size=size)
    prompt = list(b"Hi")

    def chances():
        ids = client.create_sampling_client()
        found = np.array([ids.compute_logprobs([*prompt, token]).result()[-1] for token in range(size)]) / temperature
        return np.exp(found - found.max()) / np.exp(found - found.max()).sum()

    start = chances()
    data = []
    for token in range(size):
        completion = Completion((token,), (float(np.log(start[token])),), "length", temperature)
        (datum,) = trajectory_to_datums(Trajectory((Transition(tuple(prompt), completion),)), 1.0)
        data.append(datum.replace(advantages=datum.weights * reward[token] * start[token]))
    objective = get_objective("importance_sampling", advantage="given")
    submit_objective(client, data, objective, frozenset({"importance_sampling"})).result()
    found = -client.learner.pending_gradient().copy()
    values = client.learner.state.values
    for place in np.random.default_rng(1).choice(np.flatnonzero(np.abs(found) > 1e-3 * np.abs(found).max()), 6):
        kept, sides = values[place], []
        for step in (1e-4, -1e-4):
            values[place] = kept + step
            sides.append(float(chances() @ reward))
        values[place] = kept
        assert found[place] == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-4, abs=1e-7)


@pytest.fixture(scope="module", params=["toy", "builtin:tiny-chat"])
def place(request):
    """A service, a model, its renderer and problems."""
    service = ToyService() if request.param == "toy" else TorchService(device="cpu")
    renderer = get_renderer("auto", service.get_tokenizer(request.param))
    problems = question_problems([{"question": text, "answer": ""} for text in ("Hi", "Ho")], [LETTERS])
    return service, request.param, renderer, problems


def rounds(place, temperature, **params):
    service, model, renderer, problems = place
    client = service.create_training_client(model, None, 0)
    sampling = SamplingParams(6, temperature, stop=tuple(renderer.stop_sequences()), **params)
    return client, collect_rollouts(Policy(client.create_sampling_client(), renderer, sampling), problems, 0, 4, seed=3)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("objective", ["dapo", "grpo"])
def test_sampler_and_trainer_agree(place, temperature, objective):
    "k1 and k2 of sampler and trainer vanish on the policy that sampled, at every temperature and on both paths; so does the reference's distance."
    service, model, _, _ = place
    client, played = rounds(place, temperature)
    settings = PolicyUpdateSettings(get_objective(objective), 6)
    reference = service.create_sampling_client(model)
    events = list(learn_from_rollouts(client, played, settings, AdamParams(0.0), service.capabilities().losses, reference))
    (told,) = (item for item in events if item.name == "train.policy")
    assert abs(told["kl_sample_train_v1"]) < 1e-5 and told["kl_sample_train_v2"] < 1e-9 and told["clip_fraction"] == 0
    assert abs(told.measurements.get("kl_reference", 0.0)) < 1e-5 and abs(told["kl_update"]) < 1e-5


def test_rollouts_say_their_temperature(place):
    _, played = rounds(place, 0.5)
    completions = [turn.completion for group in played.groups for one in group.trajectories for turn in one.transitions]
    assert {one.temperature for one in completions} == {0.5}
    data = _advantage_data(played.groups, OBJECTIVES["dr_grpo"])
    assert all(set(datum.loss_fn_inputs["temperatures"][datum.weights != 0]) == {0.5} for datum in data)
    _, plain = rounds(place, 1.0)
    assert not any("temperatures" in datum.loss_fn_inputs for datum in _advantage_data(plain.groups, OBJECTIVES["dr_grpo"]))


@pytest.mark.parametrize(
    ("params", "said"), [({"top_p": 0.9}, "top_p 0.9"), ({"top_k": 5}, "top_k 5"), ({"temperature": 0.0}, "greedy")]
)
def test_draws_that_cannot_be_learnt_from_are_refused(place, params, said):
    service, model, renderer, problems = place
    sampling, client = SamplingParams(4, **params), service.create_training_client(model, None, 0)
    with pytest.raises(InvalidValue, match=said):
        collect_rollouts(Policy(client.create_sampling_client(), renderer, sampling), problems, 0, 2, seed=0)
    loop = train_rl(
        client, Batches(list(problems), 2, 1, 0), renderer, sampling, PolicyUpdateSettings(OBJECTIVES["dr_grpo"], 4),
        lambda step: AdamParams(), service.capabilities().losses,
    )  # fmt: skip
    with pytest.raises(InvalidValue, match=said):
        list(loop)
    assert play_groups(Policy(client.create_sampling_client(), renderer, sampling), problems, 2, seed=0), "one may still look"


class _PlainSampler:
    """A backend of before: it draws at a temperature, and speaks of the model at temperature 1."""

    def __init__(self, inner):
        self.inner = inner

    def sample(self, prompt, num_samples, params):
        return self.inner.sample(prompt, num_samples, replace(params, tempered_logprobs=False))


def test_a_backend_that_cannot_is_refused():
    service = ToyService()
    renderer = get_renderer("auto", service.get_tokenizer("toy"))
    problems = question_problems([{"question": "Hi", "answer": ""}], [LETTERS])
    policy = Policy(_PlainSampler(service.create_sampling_client("toy")), renderer, SamplingParams(4, 0.5))
    with pytest.raises(MissingCapability, match="tempered_logprobs"):
        collect_rollouts(policy, problems, 0, 2, seed=0)
    with pytest.raises(InvalidValue, match=r"temperatures\[1\] is 0.0"):
        datum = Datum.from_tokens([1, 2, 3], [0, 1, 1]).replace(temperatures=[1.0, 0.0])
        service.create_training_client("toy", None, 0).forward([datum], "cross_entropy")
    with pytest.raises(InvalidValue, match="above 0"):
        service.create_sampling_client("toy").compute_logprobs([1, 2], 0.0)


@given(st.floats(0.05, 8.0), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_log_probabilities_of_any_temperature(temperature, seed):
    "They sum to 1 over the vocabulary, and are the softmax of the divided log-probabilities."
    sampler = ToyService().create_sampling_client("toy:hidden=4,context=3,question=2,embedding=2")
    prompt = np.random.default_rng(seed).integers(0, 256, 3).tolist()
    plain, warm = (
        np.array([sampler.compute_logprobs([*prompt, token], *at).result()[-1] for token in range(259)])
        for at in ((), (temperature,))
    )
    scaled = plain / temperature
    assert warm == pytest.approx(scaled - np.logaddexp.reduce(scaled), abs=1e-9)
