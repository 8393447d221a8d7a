"""Every kind of causal language model, alone and in company: lengths, windows, recurrences, experts; and what is refused unopened."""

import copy
import json

import numpy as np
import pytest
import torch
from small_models import SIZES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, Trainer
from waiting import LONGEST

from kitchen.adapters.torch.backward import is_decayed
from kitchen.adapters.torch.client import TorchService
from kitchen.types import AdamParams, Datum, InvalidValue, LoraParams, SamplingParams

torch.set_num_threads(1)
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOWS = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
RECURRENT = ["linear_attention", "full_attention"]
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
ROPES = {
    "phi3-longrope": ("phi3", {"original_max_position_embeddings": 32, "rope_scaling": LONGROPE}),
    "llama-dynamic": ("llama", {"max_position_embeddings": 32, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama-yarn": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
}
MODELS = {
    "gemma3": ("gemma3_text", WINDOWS),
    "olmo3": ("olmo3", WINDOWS),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, **WINDOWS}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "llama4": (
        "llama4_text",
        {"num_local_experts": 2, "num_experts_per_tok": 1, "attention_chunk_size": 16, "intermediate_size_mlp": 48, "floor_scale": 8},
    ),
    "mamba": ("mamba", {"state_size": 4}),
    "mamba2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "bamba": ("bamba", {**SSM, "attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", {**SSM, "mamba_d_ssm": 64}),
    "qwen3_next": ("qwen3_next", {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16, "layer_types": RECURRENT}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "block_auto_adjust_ff_dim": False}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 128}),
    "minimax": (
        "minimax",
        {"layer_types": RECURRENT, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8},
    ),
    "jamba": (
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2,
         "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
}  # fmt: skip
LENGTHS = (12, 5, 33, 34, 45, 70, 12)


@pytest.fixture(scope="module")
def tokenizer():
    found = Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(["<|pad|>", "<|im_end|>"])
    return found


def make_model(folder, tokenizer, kind, settings):
    """A small random model of a kind, with a tokenizer of bytes."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings}))
    made.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}')
    return str(folder)


def plain_model(folder):
    """The model as transformers opens it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def alone(model, row):
    """Log-probabilities of a row by transformers, in modules that have seen nothing else."""
    with torch.no_grad():
        table = copy.deepcopy(model)(input_ids=torch.tensor([row[:-1]]), use_cache=False).logits[0].log_softmax(-1)
    return table.gather(1, torch.tensor(row[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize("name", [*ROPES, *MODELS])
def test_company_changes_nothing(name, tokenizer, tmp_path):
    folder = make_model(tmp_path / "model", tokenizer, *(ROPES | MODELS)[name])
    service = TorchService("cpu", directory=tmp_path / "states")
    client, model = service.create_training_client(folder, LoraParams(rank=2), 0), plain_model(folder)
    draws = np.random.default_rng(0)
    rows = [draws.integers(1, 255, length + 1).tolist() for length in LENGTHS]
    data = [Datum.from_tokens(row, [1.0] * len(row)) for row in rows]

    def read(batch):
        return [part["logprobs"] for part in client.forward(batch, "cross_entropy").result(LONGEST).loss_fn_outputs]

    for places in ([*range(len(rows))], [5, 0, 3]):
        for place, found in zip(places, read([data[place] for place in places]), strict=True):
            assert np.abs(found - alone(model, rows[place])).max() < 1e-4, (name, len(rows[place]))
    assert np.abs(read(data[:1])[0] - alone(model, rows[0])).max() < 1e-4, "after longer rows"
    output = client.forward_backward(data, "cross_entropy").result(LONGEST)
    assert client.optim_step(AdamParams(1e-3)).result(LONGEST).metrics["grad_norm"] > 0
    assert client.forward(data, "cross_entropy").result(LONGEST).loss_sum != output.loss_sum, "what is trained reaches the loss"


@pytest.mark.parametrize("name", [*ROPES, "mamba", "mamba2", "bamba", "qwen3_next", "lfm2", "rwkv", "minimax", "gpt_oss"])
def test_answers_are_the_same_alone_and_among_others(name, tokenizer, tmp_path):
    folder = make_model(tmp_path / "model", tokenizer, *(ROPES | MODELS)[name])
    service = TorchService("cpu", directory=tmp_path / "states")
    client, model = service.create_training_client(folder, LoraParams(rank=2), 0), plain_model(folder)
    draws = np.random.default_rng(1)
    prompts = [draws.integers(1, 255, length).tolist() for length in (12, 5, 28, 28, 40)]
    greedy = SamplingParams(max_tokens=12, temperature=0.0, stop=(), seed=1)
    sampler = client.create_sampling_client()
    asked = [sampler.sample(prompt, 2, greedy) for prompt in prompts]
    together = [future.result(LONGEST).completions[0] for future in asked]
    for prompt, found in zip(prompts, together, strict=True):
        one = sampler.sample(prompt, 1, greedy).result(LONGEST).completions[0]
        assert one.tokens == found.tokens and one.logprobs == pytest.approx(found.logprobs, abs=1e-4)
        whole = [*prompt, *found.tokens]
        assert np.abs(alone(model, whole)[len(prompt) - 1 :] - found.logprobs).max() < 1e-4, "sampler and trainer agree"
        if name not in ("mamba", "minimax"):  # whose own generate differs from their forward pass, or fails
            plain = copy.deepcopy(model)
            ids, told = torch.tensor([prompt]), {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 256}
            theirs = plain.generate(ids, attention_mask=torch.ones_like(ids), **told)[0, len(prompt) :].tolist()
            assert theirs == list(found.tokens), (name, len(prompt))
    ragged = [sampler.sample(prompt, 2, SamplingParams(8, seed=3, stop=(together[0].tokens[2],))) for prompt in prompts[:3]]
    assert all(len(future.result(LONGEST).completions) == 2 for future in ragged), "rows leave the batch one by one"


def test_a_stretched_context_is_as_long_as_its_factor_says(tokenizer, tmp_path):
    folder = make_model(tmp_path / "model", tokenizer, *ROPES["llama-dynamic"])
    service = TorchService("cpu")
    assert service.open(folder).max_length == 128
    with pytest.raises(InvalidValue, match="129 tokens, but .* takes at most 128"):
        service.create_sampling_client(folder).compute_logprobs([1] * 129)


@pytest.mark.parametrize("window", [64, 4096])
def test_packing_is_proved_with_windows_longer_than_the_trial(window, tokenizer, tmp_path):
    settings = {"sliding_window": window, "max_position_embeddings": 256, "layer_types": ["sliding_attention", "full_attention"]}
    folder = make_model(tmp_path / "model", tokenizer, "gemma3_text", settings)
    client = TorchService("cpu").create_training_client(folder, LoraParams(rank=2), 0)
    model = client.model
    assert client.network.traits.packed and model.config.sliding_window == window, "as it was before the trial"
    assert {layer.self_attn.sliding_window for layer in model.model.layers} == {window, None}
    rows = [np.random.default_rng(seed).integers(1, 255, 150).tolist() for seed in range(2)]
    data = [Datum.from_tokens(row, [1.0] * len(row)) for row in rows]
    found = client.forward(data, "cross_entropy").result(LONGEST).loss_fn_outputs
    for row, part in zip(rows, found, strict=True):
        assert np.abs(part["logprobs"] - alone(plain_model(folder), row)).max() < 1e-4


REFUSED = {
    "t5": ({}, r"is an encoder-decoder \(t5\): choose a causal language model"),
    "bart": ({}, r"is an encoder-decoder \(bart\)"),
    "bert": ({}, r"is an encoder \(bert\), whose tokens see those after them"),
    "xlnet": ({}, r"is an encoder \(xlnet\)"),
    "vit": ({}, "is of type 'vit', of which transformers has no causal language model"),
    "qwen2_5_vl": ({}, r"is a vision-language model \(qwen2_5_vl\): choose the text model"),
    "brand_new": ({}, r"is of type 'brand_new', which transformers \d.* does not have"),
    "chatty": ({"auto_map": {"AutoModelForCausalLM": "modeling.Chatty"}}, "kitchen runs no code of a model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_is_refused_from_its_config(kind, tokenizer, tmp_path):
    settings, message = REFUSED[kind]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **settings}))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    (tmp_path / "modeling.py").write_text("raise SystemExit('never run')")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    with pytest.raises(InvalidValue, match=message):
        TorchService("cpu").create_training_client(str(tmp_path), LoraParams(rank=2), 0)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_next", "mamba2", "gpt_oss", "rwkv", "gpt2", "opt"])
def test_weight_decay_is_meant_for_what_trainer_decays(name):
    kind, settings = MODELS.get(name, (name, {"n_embd": 32, "n_head": 4, "n_layer": 2, "ffn_dim": 48, "word_embed_proj_dim": 32}))
    config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    mine = {name for name, _ in model.named_parameters() if is_decayed(model, name)}
    assert mine == theirs & {name for name, _ in model.named_parameters()} and mine


@pytest.mark.parametrize("which", ["matrices", "all"])
def test_weight_decay_shrinks_what_it_is_meant_for(which, tokenizer, tmp_path):
    folder = make_model(tmp_path / "model", tokenizer, "qwen2", {})
    client = TorchService("cpu").create_training_client(folder, None, 0)
    with torch.no_grad():
        for weight in client.learner.masters.values():
            weight.fill_(1.0)
    nothing = Datum.from_tokens([1, 2, 3], [0.0, 0.0, 0.0])
    client.forward_backward([nothing], "cross_entropy")
    client.optim_step(AdamParams(0.1, weight_decay=0.5, weight_decay_on=which)).result(LONGEST)
    for name, weight in client.learner.masters.items():
        left_alone = which == "matrices" and ("norm" in name or "bias" in name)
        assert torch.allclose(weight, torch.full_like(weight, 1.0 if left_alone else 0.95)), name
