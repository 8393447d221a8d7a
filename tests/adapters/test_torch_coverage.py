"""Which weights of a model get adapters, and what is told of those that do not; models that are refused before anything is loaded."""

import json

import pytest
import torch
from small_models import SIZES
from test_torch_exports import make_model
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from kitchen.adapters.torch.client import TorchService
from kitchen.adapters.torch.lora import adapted_layers, attach_lora, uncovered_weights
from kitchen.ports.protocols import TellsAdapters
from kitchen.types import InvalidValue, LoraParams
from kitchen.workflows.base import adapter_events

torch.set_num_threads(1)
MODEL = {**SIZES, "vocab_size": 320, "max_position_embeddings": 64, "eos_token_id": 256, "pad_token_id": None}
EXPERTS = {
    "qwen3 moe": (Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}),
    "gpt-oss": (GptOssConfig, {"num_local_experts": 4, "head_dim": 8}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERTS)
def test_fused_experts_are_told(name, tmp_path):
    kind, more = EXPERTS[name]
    base = make_model(tmp_path, kind(**{**MODEL, **more}))
    client = TorchService("cpu").create_training_client(base, LoraParams(4), 0)
    [told] = adapter_events(client)
    plain = AutoModelForCausalLM.from_pretrained(base)
    experts = {
        one: weight
        for one, weight in plain.named_parameters()
        if ".mlp." in one and weight.ndim > 1 and not one.endswith("bias")
    }
    assert set(told["left_out"].split(", ")) == {
        one.replace(".0.", ".*.").replace(".1.", ".*.") for one in experts
    }
    assert {"experts", "self_attn"} <= set(
        f"{told['left_out']}, {told['adapted']}".replace(",", ".").split(".")
    )
    assert told["frozen"] == sum(weight.numel() for weight in experts.values())
    trained = sum(weight.numel() for weight in client.model.parameters() if weight.requires_grad)
    assert (
        told["trained"] == trained
        and told["adapted"].count("self_attn") == 4
        and "mlp" not in told["adapted"]
    )


def test_a_part_that_no_adapter_fits_cannot_be_all_that_is_trained():
    kind, more = EXPERTS["mixtral"]
    model = AutoModelForCausalLM.from_config(kind(**{**MODEL, **more}))
    with pytest.raises(
        InvalidValue, match=r"what was asked for is .*mlp\.experts\.gate_up_proj.*which no adapter fits"
    ):
        attach_lora(model, LoraParams(train_attn=False), 0)
    attention = LoraParams(train_mlp=False)
    assert uncovered_weights(model, attention) == {}, "what was not asked for is not missed"
    attach_lora(model, attention, 0)
    names = ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    assert uncovered_weights(model, LoraParams()).keys() == {f"model.layers.*.mlp.{name}" for name in names}


def test_a_plain_model_has_nothing_to_tell(tmp_path):
    service = TorchService("cpu")
    base = make_model(tmp_path, LlamaConfig(**MODEL))
    client = service.create_training_client(base, LoraParams(4), 0)
    assert isinstance(client, TellsAdapters) and [*adapter_events(client)] == []
    assert (
        adapted_layers(client.model).keys() == client.adapter_coverage()[0].keys()
        and len(adapted_layers(client.model)) == 7
    )
    assert [*adapter_events(service.create_training_client(base, None, 0))] == []


def test_recurrent_gemma_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "recurrent_gemma"}))
    (tmp_path / "model.safetensors").write_bytes(b"nothing that could be read")
    with pytest.raises(
        InvalidValue,
        match="'recurrent_gemma', which keeps the state .* in the model itself.*choose another model",
    ):
        TorchService("cpu").create_training_client(str(tmp_path), LoraParams(4), 0)
    with pytest.raises(InvalidValue, match="keeps the state"):
        TorchService("cpu").create_sampling_client(f"init:{tmp_path}")
