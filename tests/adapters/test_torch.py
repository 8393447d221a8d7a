"""The torch adapter against plain transformers and peft on the same weights, for several architectures."""

import copy
import json
import os
import subprocess
import sys
import time

import numpy as np
import peft
import pytest
import torch
from small_models import SIZES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Trainer,
)
from waiting import LONGEST

from kitchen.adapters.torch.client import TorchService
from kitchen.adapters.torch.logprobs import Traits
from kitchen.adapters.torch.lora import lora_layers
from kitchen.store.objects import ObjectStore, StateStore
from kitchen.types import (
    AdamParams,
    BackendError,
    DamagedData,
    Datum,
    FutureTimeout,
    InvalidValue,
    LoraParams,
    SamplingParams,
    UnknownName,
)

torch.set_num_threads(1)
ADAM = AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip_norm=1.0)
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=9),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=9),
    "gemma2": Gemma2Config(**SIZES, query_pre_attn_scalar=8, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
    "gpt2": GPT2Config(
        vocab_size=258,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.2,
        eos_token_id=257,
    ),
}
PLAIN = Traits(packed=True, plain_head=True)
TRAITS = dict.fromkeys(CONFIGS, PLAIN) | {"gemma2": Traits(False, False), "cohere": Traits(True, False)}
LORA = LoraParams(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory for each architecture: random weights and a tokenizer of bytes."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|im_end|>"])
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
        tokenizer.save(str(root / name / "tokenizer.json"))
        (root / name / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}')
    return root


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return TorchService(device="cpu", directory=tmp_path_factory.mktemp("states"))


@pytest.fixture
def llama(folders):
    return str(folders / "llama")


def batch(count=4, seed=0, longest=40):
    """Datums of different lengths, about half of their weights 0."""
    rng = np.random.default_rng(seed)
    data = []
    for place in range(count):
        length = int(rng.integers(5, longest))
        weights = rng.choice([0.0, 0.5, 1.0], length)
        weights[-1] = 1.0
        data.append(Datum.from_tokens(rng.integers(0, 256, length + 1), [0.0, *weights], origin=f"datum {place}"))
    return data


def plain_loss(model, data):
    """Weighted cross-entropy with transformers alone: one datum at a time, no padding, no short cuts."""
    total = torch.zeros((), dtype=torch.float64)
    for datum in data:
        logits = model(input_ids=torch.tensor(datum.tokens)[None], use_cache=False).logits[0]
        nll = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(datum.targets), reduction="none")
        total = total + (nll * torch.tensor(datum.weights)).sum()
    return total


def close(mine, theirs, share=1e-4):
    """Whether tensors agree relative to the largest entry."""
    return float((mine - theirs).abs().max()) <= share * max(float(theirs.abs().max()), 1e-6)


def plain_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def step(client, data, adam=ADAM):
    forward, update = client.forward_backward(data, "cross_entropy"), client.optim_step(adam)
    return forward.result(LONGEST).loss_sum, update.result(LONGEST).metrics["grad_norm"]


@pytest.mark.parametrize("name", CONFIGS)
def test_full_loss_gradient_and_step_equal_transformers(name, folders, service):
    client, reference, data = (
        service.create_training_client(str(folders / name), None, 0),
        plain_model(folders / name),
        batch(),
    )
    assert client.network.traits == TRAITS[name]
    loss = plain_loss(reference, data)
    loss.backward()
    output = client.forward_backward(data, "cross_entropy").result(LONGEST)
    assert output.loss_sum == pytest.approx(loss.item(), rel=1e-5)
    theirs = dict(reference.named_parameters())
    gradients = client.learner.accumulated_gradient()
    assert gradients.keys() == theirs.keys()
    for key, gradient in gradients.items():
        assert close(gradient, theirs[key].grad), key
    names = set(Trainer.get_decay_parameter_names(None, reference))
    groups = [
        {"params": [weight for key, weight in theirs.items() if (key in names) == decayed], "weight_decay": 0.1 * decayed}
        for decayed in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    optimizer.step()
    assert client.optim_step(ADAM).result(LONGEST).metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    with torch.no_grad():
        assert client.forward(data, "cross_entropy").result(LONGEST).loss_sum == pytest.approx(
            plain_loss(reference, data).item(), rel=1e-4
        )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "lora", [LORA, LoraParams(rank=2, train_mlp=False, train_unembed=True)], ids=["linear", "attention+head"]
)
def test_lora_loss_and_gradient_equal_peft(name, lora, folders, service, tmp_path):
    client, data = service.create_training_client(str(folders / name), lora, 0), batch(seed=1)
    start = client.forward(data, "cross_entropy").result(LONGEST).loss_sum
    base = plain_model(folders / name)
    assert start == pytest.approx(plain_loss(base, data).item(), rel=1e-5), "B = 0: the base"
    for place, (_, layer) in enumerate(lora_layers(client.model)):
        draws = torch.Generator().manual_seed(place)
        layer.lora_B.data.normal_(0, 0.1, generator=draws)
    client.save_weights(tmp_path / "adapter").result(LONGEST)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter", is_trainable=True).eval()
    loss = plain_loss(adapted, data)
    loss.backward()
    assert client.forward_backward(data, "cross_entropy").result(LONGEST).loss_sum == pytest.approx(loss.item(), rel=1e-5)
    theirs = {key: value.grad for key, value in adapted.named_parameters() if value.requires_grad}
    mine = {
        f"base_model.model.{key.rpartition('.')[0]}.{key.rpartition('.')[2]}.default.weight": gradient
        for key, gradient in client.learner.accumulated_gradient().items()
    }
    assert mine.keys() == theirs.keys(), "the same layers are adapted"
    for key, gradient in mine.items():
        assert close(gradient, theirs[key], 2e-4), key
    sampler = service.create_sampling_client(str(tmp_path / "adapter"))
    tokens = data[0].tokens.tolist()
    with torch.no_grad():
        logits = adapted(input_ids=torch.tensor([tokens])).logits[0]
        assert close(sampler.weights.network.model(input_ids=torch.tensor([tokens])).logits[0], logits, 1e-5)
    table = logits.double().log_softmax(1)
    assert sampler.compute_logprobs(tokens).result(LONGEST)[1:] == pytest.approx(
        [table[place, token].item() for place, token in enumerate(tokens[1:])], abs=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_peft_all_linear_adapts_the_same_layers(name, folders, service):
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(plain_model(folders / name), config)
    wanted = {
        key.removeprefix("base_model.model.").partition(".lora_A")[0]
        for key, _ in theirs.named_parameters()
        if "lora_A" in key
    }
    client = service.create_training_client(str(folders / name), LORA, 0)
    assert {name for name, _ in lora_layers(client.model)} == wanted
    a = next(layer.lora_A for _, layer in lora_layers(client.model))
    assert 0.9 / a.shape[1] ** 0.5 < a.abs().max() <= 1 / a.shape[1] ** 0.5, "uniform in ±1/√in"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_passes_and_order_change_nothing(name, folders, service):
    data = batch(6, seed=2)
    narrow = TorchService(device="cpu", tokens_at_once=30)
    results, gradients = [], []
    for each, order in ((service, range(6)), (narrow, range(6)), (service, [3, 0, 5, 1, 4, 2])):
        client = each.create_training_client(str(folders / name), None, 0)
        output = client.forward_backward([data[place] for place in order], "cross_entropy").result(LONGEST)
        back = np.argsort(list(order))
        results.append([output.loss_fn_outputs[place]["logprobs"] for place in back])
        gradients.append(client.learner.accumulated_gradient())
    for other, gradient in zip(results[1:], gradients[1:], strict=True):
        for first, second, datum in zip(results[0], other, data, strict=True):
            assert (np.isnan(first) == (datum.weights == 0)).all() and np.allclose(
                first, second, atol=1e-5, equal_nan=True
            )
        assert all(close(gradient[key], value) for key, value in gradients[0].items())


def test_accumulation_is_concatenation_and_a_failure_leaves_no_trace(llama, service):
    data = batch(5, seed=3)
    apart, together = (service.create_training_client(llama, None, 0) for _ in range(2))
    apart.forward_backward(data[:2], "cross_entropy")

    def fails(data, logprobs):
        raise ZeroDivisionError("not today")

    failed = apart.forward_backward_custom(data, fails)
    refused = apart.optim_step(ADAM)
    with pytest.raises(
        BackendError, match=r"optim_step was not carried out, because forward_backward_custom, .* not today"
    ):
        refused.result(LONGEST)
    with pytest.raises(ZeroDivisionError):
        failed.result(LONGEST)
    apart.forward_backward(data[2:], "cross_entropy").result(LONGEST)
    together.forward_backward(data, "cross_entropy").result(LONGEST)
    for mine, theirs in zip(
        apart.learner.accumulated_gradient().values(), together.learner.accumulated_gradient().values(), strict=True
    ):
        assert close(mine, theirs)
    assert apart.optim_step(ADAM).result(LONGEST).metrics["grad_norm"] > 0
    with pytest.raises(InvalidValue, match="call forward_backward first"):
        apart.optim_step(ADAM).result(LONGEST)


@pytest.mark.parametrize("limit", [10_000, 30])
def test_a_custom_loss_is_differentiated_and_sees_everything(limit, llama):
    client, data = (
        TorchService(device="cpu", tokens_at_once=limit).create_training_client(llama, None, 0),
        batch(4, seed=4),
    )
    reference = plain_model(llama)
    for dropped in data:
        assert len(dropped) >= 5

    def preference(data, logprobs):
        sums = torch.stack(
            [(each * torch.tensor(datum.weights)).sum() for each, datum in zip(logprobs, data, strict=True)]
        )
        return -torch.nn.functional.logsigmoid(0.1 * (sums[0] - sums[1])) + (sums[2:] ** 2).mean(), {"margin": 2.0}

    output = client.forward_backward_custom(data, preference).result(LONGEST)
    tables = [reference(input_ids=torch.tensor(datum.tokens)[None]).logits[0].log_softmax(1) for datum in data]
    logprobs = [
        table.gather(1, torch.tensor(datum.targets)[:, None])[:, 0] for table, datum in zip(tables, data, strict=True)
    ]
    loss, _ = preference(data, logprobs)
    loss.backward()
    assert output.loss_sum == pytest.approx(loss.item(), rel=1e-4) and output.metrics["margin"] == 2.0
    assert not any(np.isnan(each["logprobs"]).any() for each in output.loss_fn_outputs)
    theirs = dict(reference.named_parameters())
    assert all(close(gradient, theirs[key].grad) for key, gradient in client.learner.accumulated_gradient().items())


def test_importance_sampling_off_policy_equals_autograd(llama, service):
    rng = np.random.default_rng(5)
    data = [
        datum.replace(
            advantages=rng.normal(size=len(datum)) * (datum.weights > 0),
            logprobs=rng.uniform(-7, -4, len(datum)),
        )
        for datum in batch(3, seed=5)
    ]
    client, reference = service.create_training_client(llama, None, 0), plain_model(llama)
    loss = torch.zeros(())
    for datum in data:
        table = reference(input_ids=torch.tensor(datum.tokens)[None]).logits[0].log_softmax(1)
        found = table.gather(1, torch.tensor(datum.targets)[:, None])[:, 0]
        ratio = torch.exp(found - torch.tensor(datum.loss_fn_inputs["logprobs"]))
        loss = loss - (ratio * torch.tensor(datum.loss_fn_inputs["advantages"])).sum()
    loss.backward()
    output = client.forward_backward(data, "importance_sampling").result(LONGEST)
    assert output.loss_sum == pytest.approx(loss.item(), rel=1e-4)
    theirs = dict(reference.named_parameters())
    assert all(close(gradient, theirs[key].grad) for key, gradient in client.learner.accumulated_gradient().items())


@pytest.mark.parametrize("lora", [LoraParams(rank=4, dropout=0.2), None], ids=["lora", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_state_goes_on_bit_for_bit(lora, dtype, folders, tmp_path):
    service = TorchService(device="cpu", dtype=dtype, directory=tmp_path, tokens_at_once=60)
    client = service.create_training_client(str(folders / "qwen3"), lora, 3)
    for seed in range(3):
        step(client, batch(seed=seed))
    client.forward_backward(batch(seed=9), "cross_entropy").result(LONGEST)  # pending gradients belong to the state
    saved = client.save_state("middle").result(LONGEST)
    assert saved.path == str(tmp_path / "middle.json") and len(ObjectStore(tmp_path / "objects").names()) == 3
    again = TorchService(device="cpu", dtype=dtype, tokens_at_once=60).create_training_client_from_state(saved.path)
    assert again.digest() == client.digest()
    for each in (client, again):
        each.optim_step(ADAM).result(LONGEST)
    for seed in range(3, 6):
        assert step(client, batch(seed=seed)) == step(again, batch(seed=seed))
    assert again.digest() == client.digest()
    prompt = [5, 6, 7]
    drawn = [
        each.create_sampling_client().sample(prompt, 2, SamplingParams(max_tokens=8)).result(LONGEST)
        for each in (client, again)
    ]
    assert drawn[0] == drawn[1]
    forgetful = service.create_training_client_from_state(saved.path, with_optimizer=False)
    assert forgetful.learner.steps == 0 and forgetful.learner.moments() == {}


def test_a_damaged_state_is_noticed(llama, tmp_path):
    service = TorchService(device="cpu", directory=tmp_path)
    client = service.create_training_client(llama, LORA, 0)
    step(client, batch())
    path = client.save_state("state").result(LONGEST).path
    objects = ObjectStore(tmp_path / "objects")
    weights = objects.path(StateStore.read_listing(path)["packs"]["weights"])
    content = bytearray(weights.read_bytes())
    content[-3] ^= 16
    weights.write_bytes(content)
    with pytest.raises(DamagedData, match=r"is not what was stored: its hash differs"):
        service.create_training_client_from_state(path)
    weights.unlink()
    with pytest.raises(DamagedData, match="is missing"):
        service.create_training_client_from_state(path)
    with pytest.raises(InvalidValue, match="no saved state at"):
        service.create_training_client_from_state(str(tmp_path / "nothing"))
    with pytest.raises(InvalidValue, match="plain name"):
        client.save_state("../elsewhere")
    step(client, batch(seed=1))
    again = client.save_state("half").result(LONGEST).path
    with pytest.raises(InvalidValue, match="saved with dtype float32; this service has bfloat16"):
        TorchService(device="cpu", dtype="bfloat16").create_training_client_from_state(again)


def test_a_state_of_another_base_is_refused(folders, tmp_path):
    service = TorchService(device="cpu", directory=tmp_path / "states")
    model = AutoModelForCausalLM.from_pretrained(folders / "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders / "llama" / name).read_bytes())
    model.save_pretrained(tmp_path)
    client = service.create_training_client(str(tmp_path), LORA, 0)
    path = client.save_state("state").result(LONGEST).path
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    time.sleep(0.01)
    model.save_pretrained(tmp_path)
    with pytest.raises(DamagedData, match="trained on other weights than"):
        service.create_training_client_from_state(path)


def test_full_weights_export_as_transformers_reads_them(folders, service, tmp_path):
    for name in ("llama", "gpt2"):
        client = service.create_training_client(str(folders / name), None, 0)
        step(client, batch())
        client.save_weights(tmp_path / name).result(LONGEST)
        theirs = plain_model(tmp_path / name)
        ids = torch.arange(9)[None]
        with torch.no_grad():
            assert torch.equal(theirs(ids).logits, client.model.eval()(ids).logits)
        assert service.get_tokenizer(str(tmp_path / name)).encode("hi") == service.get_tokenizer(
            str(folders / name)
        ).encode("hi")
        assert step(service.create_training_client(str(tmp_path / name), LORA, 0), batch())[0] > 0
        with pytest.raises(InvalidValue, match="exists already"):
            client.save_weights(tmp_path / name)


def test_training_goes_on_from_an_exported_adapter(llama, service, tmp_path):
    client = service.create_training_client(llama, LORA, 0)
    step(client, batch())
    client.save_weights(tmp_path / "first").result(LONGEST)
    again = service.create_training_client(str(tmp_path / "first"), LORA, 1)
    before = service.create_sampling_client(str(tmp_path / "first")).compute_logprobs([1, 2, 3]).result(LONGEST)
    assert (
        client.forward(batch(), "cross_entropy").result(LONGEST).loss_sum
        == again.forward(batch(), "cross_entropy").result(LONGEST).loss_sum
    )
    step(again, batch())
    again.save_weights(tmp_path / "second").result(LONGEST)
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["base_model_name_or_path"] == llama
    assert service.create_sampling_client(str(tmp_path / "first")).compute_logprobs([1, 2, 3]).result(LONGEST) == before
    assert service.create_sampling_client(str(tmp_path / "second")).compute_logprobs([1, 2, 3]).result(LONGEST) != before
    with pytest.raises(InvalidValue, match="has LoRA rank 4 and alpha 8"):
        service.create_training_client(str(tmp_path / "first"), LoraParams(rank=2), 0)
    with pytest.raises(InvalidValue, match="is a LoRA export"):
        service.create_training_client(str(tmp_path / "first"), None, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_sampling_equals_generate_and_logprobs_the_trainer(name, folders, service):
    client = service.create_training_client(str(folders / name), LORA, 0)
    step(client, batch())
    sampler, prompts = client.create_sampling_client(), [list(range(3, 3 + length)) for length in (12, 3, 7)]
    greedy = SamplingParams(max_tokens=12, temperature=0, stop=())
    futures = [sampler.sample(prompt, 1, greedy) for prompt in prompts]
    drawn = sampler.sample(
        prompts[0], 3, SamplingParams(max_tokens=12, temperature=0.7, top_k=40, top_p=0.9, stop=())
    )
    for prompt, future in zip(prompts, futures, strict=True):
        told = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 256}
        theirs = client.model.generate(torch.tensor([prompt]), **told)[0, len(prompt) :].tolist()
        assert future.result(LONGEST).completions[0].tokens == tuple(theirs)
    assert len({one.tokens for one in drawn.result(LONGEST).completions}) > 1
    for prompt, output in [
        (prompts[0], drawn.result(LONGEST)),
        *zip(prompts, [future.result(LONGEST) for future in futures], strict=True),
    ]:
        for one in output.completions:
            whole = [*prompt, *one.tokens]
            datum = Datum.from_tokens(whole, [0.0] * len(prompt) + [1.0] * len(one.tokens))
            scored = (
                client.forward([datum], "cross_entropy").result(LONGEST).loss_fn_outputs[0]["logprobs"][len(prompt) - 1 :]
            )
            assert scored == pytest.approx(np.array(one.logprobs), abs=2e-4)


def test_samplers_keep_the_weights_of_their_moment(llama, service):
    for lora in (LORA, None):
        client = service.create_training_client(llama, lora, 0)
        update = client.forward_backward(batch(), "cross_entropy"), client.optim_step(ADAM)
        sampler = client.create_sampling_client()  # sees the step that was submitted before it
        before = sampler.compute_logprobs([1, 2, 3, 4])
        step(client, batch())
        after = client.create_sampling_client().compute_logprobs([1, 2, 3, 4]).result(LONGEST)
        assert before.result(LONGEST) != after and update[0].done()
        data = [Datum.from_tokens([1, 2, 3, 4], [0, 1, 1, 1])]
        trained = client.forward(data, "cross_entropy").result(LONGEST).loss_fn_outputs[0]["logprobs"]
        assert after[1:] == pytest.approx(trained.tolist(), abs=1e-5)


def said(future):
    """The tokens of all completions."""
    return [one.tokens for one in future.result(LONGEST).completions]


def test_sampling_is_a_function_of_seeds(llama, service):
    sampler, other = service.create_sampling_client(llama), service.create_sampling_client(llama)
    params, seeded = SamplingParams(max_tokens=6, stop=()), SamplingParams(max_tokens=6, seed=5, stop=())
    first, second = sampler.sample([1, 2], 2, params), sampler.sample([1, 2], 2, params)
    fixed = said(sampler.sample([1, 2], 3, seeded))
    assert said(first) != said(second)
    assert said(other.sample([1, 2], 2, params)) == said(first), "alone or in company: the same tokens"
    assert said(other.sample([1, 2], 2, params)) == said(second)
    assert said(other.sample([1, 2], 2, seeded)) == fixed[:2]
    state = torch.get_rng_state()
    sampler.sample([1, 2], 2, params).result(LONGEST)
    assert torch.equal(torch.get_rng_state(), state)


def test_stops_are_ids_and_text(llama, service):
    sampler, tokenizer = service.create_sampling_client(llama), service.get_tokenizer(llama)
    free = sampler.sample([1, 2, 3], 1, SamplingParams(max_tokens=20, seed=1, stop=())).result(LONGEST).completions[0]
    assert free.stop_reason == "length" and len(free.tokens) == 20
    cut = (
        sampler.sample([1, 2, 3], 1, SamplingParams(max_tokens=20, seed=1, stop=(free.tokens[4],)))
        .result(LONGEST)
        .completions[0]
    )
    assert cut.stop_reason == "stop" and cut.tokens == free.tokens[: free.tokens.index(free.tokens[4]) + 1]
    text = next(
        (start, tokenizer.decode(free.tokens[start : start + 2]))
        for start in range(19)
        if tokenizer.decode(free.tokens[start : start + 2]).isascii()
    )
    cut = (
        sampler.sample([1, 2, 3], 1, SamplingParams(max_tokens=20, seed=1, stop=(text[1],))).result(LONGEST).completions[0]
    )
    assert cut.stop_reason == "stop" and tokenizer.decode(cut.tokens).endswith(text[1])
    room = sampler.sample(list(range(120)), 1, SamplingParams(max_tokens=50, stop=())).result(LONGEST).completions[0]
    assert len(room.tokens) == 8 and room.stop_reason == "length", "the model takes 128 tokens"


def test_dropout_follows_the_seed_and_leaves_torch_alone(llama, service):
    lora, data = LoraParams(rank=4, dropout=0.5), batch(seed=6)
    clients = [service.create_training_client(llama, lora, seed) for seed in (1, 1, 2)]
    for client in clients:
        for _, layer in lora_layers(client.model):
            layer.lora_B.data.fill_(0.05)
    state = torch.get_rng_state()
    first = [client.forward_backward(data, "cross_entropy").result(LONGEST).loss_sum for client in clients]
    second = [client.forward_backward(data, "cross_entropy").result(LONGEST).loss_sum for client in clients]
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0] == first[1] != first[2] and first[0] != second[0] == second[1]
    plain = [client.forward(data, "cross_entropy").result(LONGEST).loss_sum for client in clients[:2]]
    assert plain[0] == plain[1] != first[0]


def test_a_models_own_dropout_is_asked_for(folders):
    losses = {}
    for wanted in (False, True):
        service = TorchService(device="cpu", model_dropout=wanted)
        client = service.create_training_client(str(folders / "gpt2"), None, 0)
        losses[wanted] = [client.forward_backward(batch(), "cross_entropy").result(LONGEST).loss_sum for _ in range(2)]
        losses[wanted].append(client.forward(batch(), "cross_entropy").result(LONGEST).loss_sum)
    assert len(set(losses[False])) == 1 and len(set(losses[True])) == 3 and losses[True][2] == losses[False][2]


def test_bfloat16_learns_in_float32_masters(folders):
    service = TorchService(device="cpu", dtype="bfloat16")
    for lora in (None, LORA):
        client = service.create_training_client(str(folders / "llama"), lora, 0)
        losses = [step(client, batch(seed=7))[0] for _ in range(8)]
        assert losses[-1] < 0.8 * losses[0]
        assert {master.dtype for master in client.learner.masters.values()} == {torch.float32}
        base = {name: weight for name, weight in client.model.named_parameters() if "lora_" not in name}
        assert {weight.dtype for weight in base.values()} == {torch.bfloat16}
    tiny = AdamParams(learning_rate=1e-6)
    client = service.create_training_client(str(folders / "llama"), None, 0)
    before = client.learner.masters["lm_head.weight"].clone()
    step(client, batch(), tiny)
    moved = (client.learner.masters["lm_head.weight"] - before).abs()
    assert 0 < moved.max() <= 1.1e-6, "an update below bfloat16's resolution is kept"


def test_random_models_are_decided_by_the_seed(folders, service, tmp_path):
    name = f"init:{folders / 'qwen3'}"
    losses = [
        service.create_training_client(name, None, seed).forward(batch(), "cross_entropy").result(LONGEST).loss_sum
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    client = service.create_training_client(name, LORA, 1)
    step(client, batch())
    state, export = (
        client.save_state("random").result(LONGEST),
        client.save_weights(tmp_path / "adapter").result(LONGEST),
    )
    for each in (
        service.create_training_client_from_state(state.path).create_sampling_client(),
        service.create_sampling_client(export.path),
    ):
        assert each.compute_logprobs([3, 4, 5]).result(LONGEST)[1:] == pytest.approx(
            client.create_sampling_client().compute_logprobs([3, 4, 5]).result(LONGEST)[1:], abs=1e-6
        )


def test_waiting_ends_and_requests_go_on(llama, service):
    client = service.create_training_client(llama, None, 0)
    slow = [client.forward_backward(batch(40, longest=100), "cross_entropy") for _ in range(3)]
    with pytest.raises(FutureTimeout, match="forward_backward: no result after 0.0001 s"):
        slow[-1].result(timeout=0.0001)
    assert slow[-1].result(timeout=LONGEST).loss_sum > 0 and slow[0].done()
    sampler = client.create_sampling_client()
    late = sampler.sample([1, 2], 8, SamplingParams(max_tokens=100, stop=()))
    with pytest.raises(FutureTimeout, match="sample: no result"):
        late.result(timeout=0.0001)
    assert len(late.result(LONGEST).completions) == 8 and late.done()
    arrived = []
    another = sampler.compute_logprobs([1, 2])
    another.add_done_callback(arrived.append)
    another.result(LONGEST)
    assert arrived
    for each in (client, sampler):
        each.close()


def test_mistakes_are_refused_before_anything_is_queued(llama, service):
    client, good = service.create_training_client(llama, LORA, 0), batch(1)[0]
    mistakes = [
        (lambda: client.forward_backward([good], "cross_entropi"), UnknownName, "did you mean 'cross_entropy'"),
        (lambda: client.forward_backward([], "cross_entropy"), InvalidValue, "batch is empty"),
        (lambda: client.forward_backward([Datum([5, 300], good.replace().loss_fn_inputs and {"targets": [1, 2], "weights": [1, 1]})], "cross_entropy"), InvalidValue, r"tokens\[1\] is 300; ids go from 0 to 257"),  # noqa: E501
        (lambda: client.forward_backward([Datum([5, 6], {"targets": [1, -2], "weights": [1, 1]})], "cross_entropy"), InvalidValue, r"targets\[1\] is -2"),  # noqa: E501
        (lambda: client.forward([Datum.from_tokens([1] * 200, [1] * 200, origin="row 7")], "cross_entropy"), InvalidValue, "row 7: tokens: 199 tokens, but .* takes at most 128"),  # noqa: E501
        (lambda: service.create_sampling_client(llama).sample([1], 0, SamplingParams()), InvalidValue, "num_samples"),
        (lambda: service.create_sampling_client(llama).sample([1] * 128, 1, SamplingParams()), InvalidValue, "leaves no room"),
        (lambda: service.create_sampling_client(llama).sample([], 1, SamplingParams()), InvalidValue, "at least one token"),
        (lambda: TorchService(device="gpu"), UnknownName, "unknown device 'gpu'"),
        (lambda: TorchService(dtype="float16"), UnknownName, "unknown dtype 'float16'; did you mean 'bfloat16'"),
        (lambda: TorchService(tokens_at_once=-1), InvalidValue, "tokens_at_once"),
        (lambda: service.create_training_client("builtin:nothing-like-it", LORA, 0), UnknownName, "unknown builtin model"),
        (lambda: service.create_training_client("./no/such/folder", LORA, 0), InvalidValue, "no model directory"),
        (lambda: service.create_training_client("no/such.gguf", LORA, 0), InvalidValue, "there is no file"),
    ]  # fmt: skip
    for action, kind, message in mistakes:
        with pytest.raises(kind, match=message):
            action()
    if not torch.cuda.is_available():
        with pytest.raises(InvalidValue, match="device 'cuda' is not here; this machine has"):
            TorchService(device="cuda")
    assert client.queue.submitted == 0


def test_model_directories_that_lack_something_say_what(folders, service, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidValue, match="it has no config.json"):
        service.create_training_client(str(tmp_path / "empty"), LORA, 0)
    CONFIGS["llama"].save_pretrained(tmp_path / "bare")
    with pytest.raises(InvalidValue, match=r"it has no weights \(\*.safetensors\)"):
        service.create_training_client(str(tmp_path / "bare"), LORA, 0)
    with pytest.raises(InvalidValue, match="has no tokenizer: tokenizer.json is expected"):
        service.create_training_client(f"init:{tmp_path / 'bare'}", LORA, 0)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / file).write_bytes((folders / "llama" / file).read_bytes())
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"half of a mod")
    with pytest.raises(InvalidValue, match="transformers cannot open this model"):
        service.create_training_client(str(tmp_path / "bare"), LORA, 0)
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps({**config, "vocab_size": 100, "pad_token_id": None}))
    with pytest.raises(InvalidValue, match="the tokenizer has 258 ids but the model only 100"):
        service.create_training_client(f"init:{tmp_path / 'bare'}", LORA, 0)
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(InvalidValue):
        service.create_training_client(f"init:{tmp_path / 'bare'}", LORA, 0)


def write_gguf(path):
    """A llama of two layers in a GGUF file, its tokenizer included."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    writer, draws = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(258)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*letters, letters[70] + letters[71], "<|im_end|>"])
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges([f"{letters[70]} {letters[71]}"])
    writer.add_eos_token_id(257)
    layer = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    layer |= {
        "ffn_gate": (48, 32),
        "ffn_up": (48, 32),
        "ffn_down": (32, 48),
        "attn_norm": (32,),
        "ffn_norm": (32,),
    }
    sizes = {"token_embd": (258, 32), "output_norm": (32,), "output": (258, 32)}
    sizes |= {f"blk.{place}.{name}": size for place in range(2) for name, size in layer.items()}
    for name, size in sizes.items():
        writer.add_tensor(f"{name}.weight", draws.normal(0, 0.2, size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_opens_trains_and_is_exported(service, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    for name in (str(tmp_path), str(tmp_path / "tiny.gguf")):
        client = service.create_training_client(name, None, 0)
        with torch.no_grad():
            expected = plain_loss(theirs, batch()).item()
        assert client.forward(batch(), "cross_entropy").result(LONGEST).loss_sum == pytest.approx(expected, rel=1e-5)
    tokenizer = service.get_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode("Grüße")) == "Grüße" and tokenizer.eos_token_id == 257
    client.save_weights(tmp_path / "export").result(LONGEST)
    again = service.create_training_client(str(tmp_path / "export"), LORA, 0)
    assert step(again, batch())[0] == pytest.approx(expected, rel=1e-5)
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(InvalidValue, match="holds several models; name one: other.gguf, tiny.gguf"):
        service.create_training_client(str(tmp_path), LORA, 0)


def test_a_hub_out_of_reach_says_what_to_do(service, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for open_it in (service.get_tokenizer, service.create_sampling_client):
        with pytest.raises(BackendError, match=r"no-such-org/no-such-model.*[\s\S]*network"):
            open_it("no-such-org/no-such-model")


def test_disk_full_leaves_nothing_half_written(llama, tmp_path, monkeypatch):
    service = TorchService(device="cpu", directory=tmp_path / "states")
    client = service.create_training_client(llama, LORA, 0)
    step(client, batch())

    def full(*values, **named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("kitchen.store.objects.write_atomically", full)
        patched.setattr("kitchen.adapters.torch.lora.save_file", full)
        for failing in (client.save_state("state"), client.save_weights(tmp_path / "export")):
            with pytest.raises(OSError, match="No space left"):
                failing.result(LONGEST)
    assert not (tmp_path / "states").exists() and not (tmp_path / "export").exists()
    step(client, batch())
    assert client.save_state("state").result(LONGEST).path == str(tmp_path / "states" / "state.json")


TEMPORARY_STATES = """
import multiprocessing
import sys
import tempfile
from pathlib import Path
from kitchen.adapters.torch.client import TorchService

def folders():
    return list(Path(tempfile.gettempdir()).glob("kitchen-torch-*"))

def save(model):
    service = TorchService(device="cpu")
    assert not folders(), "the folder is made with the first state, not with the service"
    path = service.create_training_client(model, None, 0).save_state("step").result(timeout=600).path
    assert [Path(path).parent] == folders()

if __name__ == "__main__" and sys.argv[2] == "worker":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(save, (sys.argv[1],))
        pool.close()
        pool.join()
elif __name__ == "__main__":
    save(sys.argv[1])
"""


@pytest.mark.parametrize("kind", ["process", "worker"])
def test_temporary_states_go_when_the_process_ends(kind, llama, tmp_path):
    "States that were given no folder are gone with the process that saved them, a worker of multiprocessing included."
    script = tmp_path / "script.py"
    script.write_text(TEMPORARY_STATES)
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run([sys.executable, script, llama, kind], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "temporary").glob("kitchen-torch-*"))
