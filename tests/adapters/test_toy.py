"The toy backend against torch autograd, torch.optim and counting."

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from waiting import LONGEST

from kitchen.adapters.toy.backward import position_blocks
from kitchen.adapters.toy.client import ToyService
from kitchen.adapters.toy.loading import open_toy_model
from kitchen.adapters.toy.model import (
    DropoutMasks,
    ToyNetwork,
    backward_pass,
    forward_pass,
    initial_adapters,
    initial_weights,
)
from kitchen.adapters.toy.optimizer import AdamState, adam_step, clip_gradient
from kitchen.adapters.toy.sampler import ToySamplingClient, _sample_tokens
from kitchen.adapters.toy.tokenizer import ToyTokenizer
from kitchen.adapters.toy.windows import ToyShape, context_windows
from kitchen.ports.registry import create_adapter
from kitchen.ports.spans import observe
from kitchen.telemetry import MemoryLog
from kitchen.types import (
    AdamParams,
    DamagedData,
    Datum,
    FutureTimeout,
    InvalidValue,
    KitchenError,
    LoraParams,
    MissingCapability,
    SamplingParams,
    UnknownName,
)

torch = pytest.importorskip("torch")
SHAPE = ToyShape(hidden=6, context=4, question=3, embedding=3)
SMALL = "toy:hidden=6,context=4,question=3,embedding=3"
ADAM = AdamParams(learning_rate=1e-2)


def some_datum(name=0, length=12):
    rng = np.random.default_rng(name)
    return Datum.from_tokens(rng.integers(0, 256, length), rng.choice([0.0, 0.5, 1.0], length))


def torch_logprobs(weights, adapters, scale, seen, masks):
    "The network once more, in torch."

    def product(name, inputs):
        given = inputs @ weights[name].T + weights[name + "_bias"]
        if name + ".A" in adapters:
            dropped = inputs * torch.tensor(masks.adapters[name]) if masks.adapters else inputs
            given = given + scale * dropped @ adapters[name + ".A"].T @ adapters[name + ".B"].T
        return given

    embedded = weights["embedding"][torch.tensor(seen)].flatten(1)
    hidden = torch.tanh(product("hidden", embedded))
    if masks.hidden is not None:
        hidden = hidden * torch.tensor(masks.hidden)
    return torch.log_softmax(product("output", hidden), dim=1)


SWITCHES = {
    "both": {},
    "output": {"train_attn": False, "train_mlp": False, "train_unembed": True},
    "hidden": {"train_mlp": False},
}
ADAPTED = {"both": ("hidden", "output"), "output": ("output",), "hidden": ("hidden",)}


@pytest.mark.parametrize("kind", ["full", *SWITCHES])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_equal_torch_autograd(kind, dropout):
    rng = np.random.default_rng(1)
    seen = context_windows([rng.integers(0, 256, 9), rng.integers(0, 256, 5)], SHAPE)
    targets, slopes = rng.integers(0, 256, 14), rng.normal(size=14)
    base, adapters, scale = initial_weights(SHAPE), {}, 0.0
    if kind != "full":
        scale, lora = 3.0, LoraParams(rank=2, alpha=6.0, **SWITCHES[kind])
        started = initial_adapters(SHAPE, lora, 0)
        assert set(started) == {f"{name}.{part}" for name in ADAPTED[kind] for part in "AB"}
        adapters = {name: rng.normal(0, 0.3, values.shape) for name, values in started.items()}

    def mask(width):
        return (rng.random((14, width)) >= dropout) / (1 - dropout)

    masks = DropoutMasks(mask(6), {"hidden": mask(21), "output": mask(6)}) if dropout else DropoutMasks()
    network = ToyNetwork(SHAPE, base, adapters, scale)
    found = forward_pass(network, seen, masks)
    gradients = backward_pass(network, found, targets, slopes)

    leaves = {name: torch.tensor(values, requires_grad=True) for name, values in (adapters or base).items()}
    frozen = {name: torch.tensor(values) for name, values in base.items()}
    weights, low = (frozen, leaves) if adapters else (leaves, {})
    expected = torch_logprobs(weights, low, scale, seen, masks)
    np.testing.assert_allclose(found.logprobs, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    (torch.tensor(slopes) * expected[torch.arange(14), torch.tensor(targets)]).sum().backward()
    assert gradients.keys() == leaves.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, leaves[name].grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


def test_lora_gradients_at_the_start():
    "With B = 0: no gradient for A, and scale · (gradient of the whole matrix) · Aᵀ for B (formulae D.2)."
    rng = np.random.default_rng(2)
    seen, targets, slopes = context_windows([rng.integers(0, 256, 20)], SHAPE), rng.integers(0, 256, 20), rng.normal(size=20)
    base, adapters = initial_weights(SHAPE), initial_adapters(SHAPE, LoraParams(rank=2), 3)
    with_adapters, without = ToyNetwork(SHAPE, base, adapters, 16.0), ToyNetwork(SHAPE, base, {})
    gradients = backward_pass(with_adapters, forward_pass(with_adapters, seen), targets, slopes)
    whole = backward_pass(without, forward_pass(without, seen), targets, slopes)
    for name in ("hidden", "output"):
        assert (gradients[name + ".A"] == 0).all()
        np.testing.assert_allclose(gradients[name + ".B"], 16.0 * whole[name] @ adapters[name + ".A"].T, rtol=1e-9)


@pytest.mark.parametrize(
    "adam",
    [
        AdamParams(learning_rate=1e-2),
        AdamParams(learning_rate=3e-3, beta1=0.8, beta2=0.999, eps=1e-8, weight_decay=0.1, grad_clip_norm=1.0),
        AdamParams(learning_rate=1e-2, grad_clip_norm=100.0),
    ],
)
def test_adam_equals_torch(adam):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=50), rng.normal(size=(20, 50)) * rng.uniform(0.01, 2, (20, 1))
    learned = AdamState.initial({"weights": start})
    leaf = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW(
        [leaf], lr=adam.learning_rate, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=adam.weight_decay
    )
    for gradient in gradients:
        norm = float(np.linalg.norm(gradient))
        learned = adam_step(learned, clip_gradient(gradient, norm, adam.grad_clip_norm), adam)
        leaf.grad = torch.tensor(gradient)
        if adam.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_([leaf], adam.grad_clip_norm)
        optimizer.step()
        np.testing.assert_allclose(learned.values, leaf.detach().numpy(), rtol=1e-11, atol=1e-13)
    assert learned.steps == 20


@pytest.mark.parametrize("lora", [None, LoraParams(rank=2)])
def test_a_whole_step_equals_torch(lora):
    "forward_backward and optim_step of the client, from datums to weights."
    service, data = ToyService(), [some_datum(0, 9), some_datum(1, 14)]
    client = service.create_training_client(SMALL, lora, seed=5)
    adam = AdamParams(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=0.5)
    base = {name: torch.tensor(values) for name, values in open_toy_model(SMALL).weights.items()}
    trained = {name: torch.tensor(values, requires_grad=True) for name, values in client._network().adapters.items()}
    if lora is None:
        base = trained = {name: values.requires_grad_() for name, values in base.items()}
    decays = {True: 0.01, False: 0.0}  # biases are left alone
    groups = [
        {"params": [values for values in trained.values() if (values.ndim > 1) == matrices], "weight_decay": decay}
        for matrices, decay in decays.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-12)
    seen = context_windows([datum.tokens for datum in data], SHAPE)
    targets = torch.tensor(np.concatenate([datum.targets for datum in data]))
    weights = torch.tensor(np.concatenate([datum.weights for datum in data]), dtype=torch.float64)
    for _ in range(5):
        output = client.forward_backward(data, "cross_entropy").result()
        norm = client.optim_step(adam).result().metrics["grad_norm"]
        found = torch_logprobs(base, trained if lora else {}, 16.0, seen, DropoutMasks())
        loss = -(weights * found[torch.arange(len(targets)), targets]).sum()
        optimizer.zero_grad()
        loss.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), 0.5)
        optimizer.step()
        assert output.loss_sum == pytest.approx(loss.item(), rel=1e-9)
        assert norm == pytest.approx(float(expected_norm), rel=1e-9)
    network = client._network()
    for name, values in (network.adapters if lora else network.base).items():
        np.testing.assert_allclose(values, trained[name].detach().numpy(), rtol=1e-6, atol=1e-9, err_msg=name)


def test_blocks_do_not_change_results(monkeypatch):
    data = [some_datum(index, 5 + index) for index in range(9)]
    assert [len(group) for group in position_blocks(data, 20)] == [3, 2, 2, 1, 1]
    whole, parted = (ToyService().create_training_client(SMALL, None, 0) for _ in range(2))
    first = whole.forward_backward(data, "cross_entropy").result()
    monkeypatch.setattr("kitchen.adapters.toy.backward.POSITIONS_PER_BLOCK", 20)
    second = parted.forward_backward(data, "cross_entropy").result()
    assert first.loss_sum == pytest.approx(second.loss_sum, rel=1e-12)
    np.testing.assert_allclose(whole.learner.gradient, parted.learner.gradient, rtol=1e-9, atol=1e-12)
    for one, other in zip(first.loss_fn_outputs, second.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(one["logprobs"], other["logprobs"], rtol=1e-6)


def test_windows_show_the_question_until_the_next_turn_ends():
    shape = ToyShape(context=2, question=3)
    end = 258
    tokens = np.array([*b"abc", end, *b"de\n\nf", end, *b"g"])
    seen = context_windows([tokens], shape)
    pad = 256
    assert seen[0].tolist() == [pad, 97, pad, pad, pad]
    assert seen[3].tolist() == [99, end, *b"abc"], "the turn that has just ended"
    assert seen[5].tolist() == [*b"de", *b"abc"]
    assert seen[7].tolist() == [*b"\n\n", *b"de\n"], "an empty line ends a turn"
    assert seen[10].tolist() == [end, 103, *b"\n\nf"]
    kept = np.zeros(11, dtype=bool)
    kept[[3, 10]] = True
    assert (context_windows([tokens], shape, kept) == seen[[3, 10]]).all()
    assert context_windows([tokens], ToyShape(context=2, question=0)).shape == (11, 2)


def test_sampler_sees_what_the_trainer_sees():
    "Completions that end turns on the way: the sampler's incremental windows equal those of the whole text."
    service = ToyService()
    client = service.create_training_client("toy:hidden=16,seed=4", None, 0)
    babble = Datum.from_tokens(np.random.default_rng(0).choice([10, 97, 258], 200), np.ones(200))
    for _ in range(30):
        client.forward_backward([babble], "cross_entropy")
        client.optim_step(ADAM)
    sampler = client.create_sampling_client()
    prompt = [*b"hello", 258, 10]
    drawn = sampler.sample(prompt, 6, SamplingParams(max_tokens=60, stop=(), seed=0)).result().completions
    assert any(258 in each.tokens for each in drawn)
    assert any((10, 10) in zip(each.tokens, each.tokens[1:], strict=False) for each in drawn)
    for each in drawn:
        whole = sampler.compute_logprobs([*prompt, *each.tokens]).result()
        assert whole[len(prompt) :] == pytest.approx(each.logprobs, abs=1e-12)


def test_draws_follow_the_distribution():
    logprobs = np.log(np.array([0.4, 0.3, 0.2, 0.07, 0.03]))
    uniforms = (np.arange(10_000) + 0.5) / 10_000
    rows = np.tile(logprobs, (len(uniforms), 1))

    def shares(**params):
        return np.bincount(_sample_tokens(rows, uniforms, SamplingParams(**params)), minlength=5) / len(uniforms)

    np.testing.assert_allclose(shares(), [0.4, 0.3, 0.2, 0.07, 0.03], atol=2e-4)
    np.testing.assert_allclose(shares(top_k=2), [4 / 7, 3 / 7, 0, 0, 0], atol=2e-4)
    np.testing.assert_allclose(shares(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0, 0], atol=2e-4)
    squared = np.array([0.4, 0.3, 0.2, 0.07, 0.03]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squared / squared.sum(), atol=2e-4)
    assert shares(temperature=1e-9)[0] == shares(temperature=0)[0] == shares(top_p=1e-9)[0] == shares(top_k=1)[0] == 1


def test_streams_of_a_sampler():
    model = open_toy_model(SMALL)
    first, second = (ToySamplingClient(ToyNetwork(model.shape, model.weights, {}), seed=3) for _ in range(2))
    params = SamplingParams(max_tokens=10, stop=())
    answers = [first.sample([1, 2], 2, params).result() for _ in range(2)]
    assert answers[0] != answers[1], "unseeded requests go on in the client's stream"
    assert answers == [second.sample([1, 2], 2, params).result() for _ in range(2)], "which the seed decides"


def test_stop_strings():
    client = ToyService().create_training_client("toy", None, 0)
    tokenizer = ToyTokenizer()
    datum = Datum.from_tokens([*b"?", *b"abcab, then END", 258], [0] + [1] * 16)
    for _ in range(100):
        client.forward_backward([datum], "cross_entropy")
        client.optim_step(ADAM)
    sampler = client.create_sampling_client()

    def said(**params):
        given = SamplingParams(temperature=0, max_tokens=20, **params)
        drawn = sampler.sample([*b"?"], 1, given).result().completions[0]
        return tokenizer.decode(drawn.tokens, control=True), drawn.stop_reason

    assert said() == ("abcab, then END<|im_end|>", "stop")
    assert said(stop=("b,",)) == ("abcab,", "stop") and said(stop=("zz", "ca")) == ("abca", "stop")
    assert said(stop=("<|im_end|>",)) == said() and said(stop=(ord("c"),)) == ("abc", "stop")
    text, reason = said(stop=())
    assert reason == "length" and len(tokenizer.encode(text, control=True)) == 20
    with pytest.raises(InvalidValue, match="must not be empty"):
        said(stop=("",))
    with pytest.raises(InvalidValue, match=r"stop\[0\] is 999"):
        said(stop=(999,))


def test_latency_pipelines_and_times_out():
    service, data = ToyService(latency=0.02), [some_datum()]
    client = service.create_training_client(SMALL, LoraParams(rank=2), 0)
    first, step = client.forward_backward(data, "cross_entropy"), client.optim_step(ADAM)
    last = client.forward(data, "cross_entropy")
    assert not last.done()
    with pytest.raises(FutureTimeout):
        last.result(timeout=0.001)
    assert last.result(timeout=LONGEST).loss_sum < first.result(timeout=0).loss_sum
    assert step.done() and client.create_sampling_client().compute_logprobs([1, 2]).result(timeout=LONGEST)[0] is None
    assert threading.active_count() > 1


def test_a_time_out_of_the_request_itself_is_no_future_timeout():
    client = ToyService(latency=0.001).create_training_client(SMALL, None, 0)

    def slow_loss(data, logprobs):
        raise TimeoutError("the reward service did not answer")

    with pytest.raises(TimeoutError, match="reward service") as caught:
        client.forward_backward_custom([some_datum()], slow_loss).result(timeout=LONGEST)
    assert not isinstance(caught.value, FutureTimeout)


def test_observed_calls_are_spans():
    log = MemoryLog()
    client = observe(ToyService(), "service", "toy", log).create_training_client(SMALL, None, 0)
    client.forward_backward([some_datum()], "cross_entropy").result()
    client.optim_step(ADAM).result()
    verbs = [item["verb"] for item in log.events if item.name == "port.call"]
    assert verbs == ["create_training_client", "forward_backward", "optim_step"]


@pytest.mark.parametrize("lora", [None, LoraParams(rank=3, dropout=0.2)])
def test_state_is_complete_and_bitwise(tmp_path, lora):
    service, data = ToyService(tmp_path), [some_datum(index) for index in range(3)]
    client = service.create_training_client(SMALL + ",dropout=0.1", lora, 7)
    client.forward_backward(data, "cross_entropy")
    client.optim_step(ADAM)
    client.forward_backward(data[:1], "cross_entropy")  # not yet stepped: part of the state
    saved = client.save_state("step-1").result()
    content = Path(saved.path).read_bytes()
    again = client.save_state("again").result().path
    assert again != saved.path and Path(again).read_bytes() == content, "equal states, equal bytes"
    loaded = ToyService(tmp_path / "elsewhere").create_training_client_from_state(saved.path)
    assert loaded.digest() == client.digest()
    for each in (client, loaded):
        for _ in range(3):
            each.forward_backward(data, "cross_entropy")
            each.optim_step(ADAM)
    assert loaded.digest() == client.digest()
    forgetful = service.create_training_client_from_state(saved.path, with_optimizer=False)
    assert forgetful.learner.state.steps == 0 and forgetful.learner.gradient is None
    assert not forgetful.learner.state.moment1.any()


def test_states_that_cannot_be_used(tmp_path):
    service = ToyService(tmp_path)
    client = service.create_training_client(SMALL, None, 0)
    export = client.save_weights(tmp_path / "base").result()
    adapted = service.create_training_client(export.path, LoraParams(rank=2), 0)
    state = adapted.save_state("on-export").result()
    assert service.create_training_client_from_state(state.path).digest() == adapted.digest()
    client.forward_backward([some_datum()], "cross_entropy")
    client.optim_step(ADAM)
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "config.json").unlink()
    (tmp_path / "base").rmdir()
    client.save_weights(tmp_path / "base").result()
    with pytest.raises(DamagedData, match="other weights"):
        service.create_training_client_from_state(state.path)
    content = Path(state.path).read_bytes()
    (tmp_path / "torn.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedData, match="torn.json"):
        service.create_training_client_from_state(str(tmp_path / "torn.json"))
    with pytest.raises(InvalidValue, match="no saved state at .*nowhere"):
        service.create_training_client_from_state(str(tmp_path / "nowhere"))
    with pytest.raises(InvalidValue, match="elsewhere does not lie in"):
        service.create_training_client_from_state("elsewhere")
    with pytest.raises(InvalidValue, match="plain name"):
        client.save_state("")


def test_exports(tmp_path):
    service, prompt = ToyService(), [*b"hello"]
    client = service.create_training_client(SMALL, LoraParams(rank=2), 0)
    for _ in range(3):
        client.forward_backward([some_datum()], "cross_entropy")
        client.optim_step(ADAM)
    path = client.save_weights(tmp_path / "adapter").result().path
    expected = client.create_sampling_client().compute_logprobs(prompt).result()[1:]
    assert service.create_sampling_client(path).compute_logprobs(prompt).result()[1:] == pytest.approx(expected)
    again = service.create_training_client(path, LoraParams(rank=2), 0)
    assert again.create_sampling_client().compute_logprobs(prompt).result()[1:] == pytest.approx(expected)
    with pytest.raises(InvalidValue, match="exists already"):
        client.save_weights(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(InvalidValue, match="does not hold a toy model"):
        service.create_sampling_client(path)


def test_names_of_models():
    service = ToyService()
    assert service.get_tokenizer("toy:hidden=4").eos_token_id == 258
    mistakes = {"tony": "did you mean 'toy'", "toy:hiden=3": "did you mean 'hidden'", "toy:hidden=0": "at least 1"}
    for name, says in mistakes.items():
        with pytest.raises(KitchenError, match=says):
            service.create_training_client(name, None, 0)
    with pytest.raises(UnknownName):
        service.get_tokenizer("gpt")


def test_custom_losses_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    service = ToyService()
    assert not service.capabilities().custom_loss
    client = service.create_training_client(SMALL, None, 0)
    with pytest.raises(MissingCapability, match="torch"):
        client.forward_backward_custom([some_datum()], lambda data, logprobs: (logprobs[0].sum(), {}))


@pytest.mark.parametrize("value", [3.0, torch.zeros(2, requires_grad=True), torch.zeros(())])
def test_custom_losses_that_are_no_losses(value):
    client = ToyService().create_training_client(SMALL, None, 0)
    with pytest.raises(InvalidValue, match="must return a scalar"):
        client.forward_backward_custom([some_datum()], lambda data, logprobs: (value, {})).result()
    assert client.learner.gradient is None


def test_a_step_needs_a_gradient():
    client = ToyService().create_training_client(SMALL, None, 0)
    before = client.digest()
    with pytest.raises(InvalidValue, match="forward_backward first"):
        client.optim_step(ADAM).result()
    assert client.digest() == before


def test_torch_is_not_imported():
    code = "import sys, kitchen.adapters.toy.client as toy; toy.ToyService().capabilities(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_tokenizer_texts():
    tokenizer = create_adapter("service", "toy").get_tokenizer("toy")
    for text in ("", "a\x00b", "Grüße 你好 🙂", "<|im_start|>", "<|im_end|><|pad|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert max(tokenizer.encode(text), default=0) < 256
        spelled = tokenizer.encode(text, control=True)
        assert tokenizer.decode(spelled, control=True) == text
    assert tokenizer.decode([0xC3]) == "\ufffd"
    with pytest.raises(InvalidValue, match="surrogate"):
        tokenizer.encode("half \ud800")


def test_chat_template_renders_chatml():
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Environment().from_string(ToyTokenizer.chat_template)
    messages = [{"role": "user", "content": "Hi"}]
    assert template.render(messages=messages) == "<|im_start|>user\nHi<|im_end|>\n"
    assert template.render(messages=messages, add_generation_prompt=True).endswith("<|im_start|>assistant\n")
