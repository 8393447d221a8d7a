"""What was trained is what is exported: plain transformers and peft answer as the sampler did, with the same ends."""

import json

import peft
import pytest
import torch
from small_models import SIZES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, Qwen3Config
from waiting import LONGEST

from kitchen.adapters.torch.client import TorchService, export_merged
from kitchen.adapters.torch.lora import lora_layers
from kitchen.adapters.torch.tokenizers import HuggingFaceTokenizer
from kitchen.rendering.exported_template import exported_chat_template
from kitchen.rendering.registry import get_renderer
from kitchen.types import AdamParams, Datum, InvalidValue, LoraParams, Message, SamplingParams

torch.set_num_threads(1)
MODEL = {
    **SIZES,
    "vocab_size": 320,  # 61 more than the tokenizer has
    "max_position_embeddings": 256,
    "eos_token_id": 256,
    "pad_token_id": None,
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTION = [Message("user", "say 3")]


def make_model(folder, config, template=CHATML, **settings):
    """A base model: its end is <|endoftext|>, while the template ends turns with <|im_end|>."""
    tokenizer = Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | ({"chat_template": template} if template else {})))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256, **settings}))
    return str(folder)


def teach(service, client, renderer, answer="3 <3", steps=40):
    """Training that makes the answer to the question certain."""
    prompt = renderer.generation_prompt(QUESTION)
    stop = renderer.stop_sequences()[0]
    end = [stop] if isinstance(stop, int) else renderer.tokenizer.encode(stop)
    said = [*renderer.tokenizer.encode(answer), *end]
    datum = Datum.from_tokens([*prompt, *said, *said], [0.0] * len(prompt) + [1.0] * len(said) + [0.0] * len(said))
    for _ in range(steps):
        client.forward_backward([datum], "cross_entropy")
        client.optim_step(AdamParams(learning_rate=2e-2, eps=1e-8)).result(LONGEST)
    return prompt, said


def generated(model, folder, prompt):
    """What transformers answers with the folder's own generation settings."""
    model.generation_config = GenerationConfig.from_pretrained(folder)
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 256}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), tokenizer=AutoTokenizer.from_pretrained(folder), **options)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("how", "dtype"),  # merging would round the adapters into bfloat16 weights: another model by definition
    [(how, dtype) for how in ("full", "lora", "lora+head", "merged") for dtype in ("float32", "bfloat16") if (how, dtype) != ("merged", "bfloat16")],
)
def test_an_export_answers_as_the_sampler_did(how, dtype, tied, tmp_path):
    config = Qwen3Config(**MODEL, tie_word_embeddings=tied)
    base = make_model(tmp_path / "base", config, repetition_penalty=1.0, temperature=0.7)  # a temperature without do_sample
    service = TorchService("cpu", dtype, tmp_path / "states")
    head = how in ("lora+head", "merged")
    client = service.create_training_client(base, None if how == "full" else LoraParams(8, 16.0, train_unembed=head), 0)
    renderer = get_renderer("auto", service.get_tokenizer(base))
    prompt, said = teach(service, client, renderer)
    stop, template = renderer.stop_sequences(), exported_chat_template(renderer)
    evaluated = client.create_sampling_client().sample(prompt, 1, SamplingParams(24, temperature=0.0, stop=stop))
    answer = list(evaluated.result(LONGEST).completions[0].tokens)
    assert answer == said, "the lesson was learned"
    folder = tmp_path / "export"
    client.save_weights(folder, stop=stop, chat_template=template).result(LONGEST)
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    if how == "full":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    elif how == "merged":
        adapter, folder = folder, export_merged(folder, tmp_path / "merged")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
        assert model.config.tie_word_embeddings is False, "the head was adapted, so it is a tensor of its own"
        whole = torch.tensor([[*prompt, *said]])
        with torch.no_grad():
            merged, apart = model(whole).logits, client.model.eval()(whole).logits
        assert torch.allclose(merged, apart, atol=1e-3)
        assert service.get_tokenizer(str(adapter)).encode("a") == service.get_tokenizer(str(folder)).encode("a")
        with pytest.raises(InvalidValue, match="is no LoRA export"):
            export_merged(folder, tmp_path / "again")
    else:
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=kind)
        model = peft.PeftModel.from_pretrained(plain, folder, autocast_adapter_dtype=False)
        assert len([*lora_layers(client.model)]) == 14 + head
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "say 3"}], add_generation_prompt=True, return_dict=True)
    assert list(asked["input_ids"]) == prompt, "asked as it was trained"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [258, 256]
    assert generated(model.eval(), folder, prompt) == answer
    again = TorchService("cpu", dtype)
    reopened = again.create_sampling_client(str(folder))
    assert reopened.sample(prompt, 1, SamplingParams(24, temperature=0.0)).result(LONGEST).completions[0].tokens == tuple(answer)
    opened = get_renderer("auto", again.get_tokenizer(str(folder)))
    assert opened.generation_prompt(QUESTION) == prompt and opened.stop_sequences() == stop


@pytest.mark.parametrize("name", ["role_colon", "chatml"])
@pytest.mark.parametrize("template", ["", "{% for message in messages %}{{ message['content'] }}{% endfor %}"], ids=["none", "other"])
def test_a_renderer_written_by_hand_is_exported_as_a_template(name, template, tmp_path):
    base = make_model(tmp_path / "base", LlamaConfig(**MODEL), template)
    service = TorchService("cpu", directory=tmp_path / "states")
    client = service.create_training_client(base, LoraParams(8, 16.0), 0)
    renderer = get_renderer(name, service.get_tokenizer(base))
    prompt, said = teach(service, client, renderer)
    stop, template = renderer.stop_sequences(), exported_chat_template(renderer)
    client.save_weights(tmp_path / "export", stop=stop, chat_template=template).result(LONGEST)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    messages = [Message(one["role"], one["content"]) for one in chat]
    assert text == renderer.tokenizer.decode(renderer.generation_prompt(messages), control=True)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "export").eval()
    told = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    ends = {"stop_strings": ["\n\nUser:"]} if name == "role_colon" else {"eos_token_id": 258}
    assert {key: told[key] for key in ("stop_strings", "eos_token_id") if key in told} == ends
    assert generated(model, tmp_path / "export", prompt) == said
    sampler = TorchService("cpu").create_sampling_client(str(tmp_path / "export"))
    reopened = sampler.sample(prompt, 1, SamplingParams(24, temperature=0.0)).result(LONGEST).completions[0]
    assert list(reopened.tokens) == said and reopened.stop_reason == "stop"


def test_an_export_told_nothing_keeps_the_makers_ends(tmp_path):
    base = make_model(tmp_path / "base", LlamaConfig(**MODEL), eos_token_id=[258, 0])
    service = TorchService("cpu", directory=tmp_path / "states")
    client = service.create_training_client(base, None, 0)
    client.save_weights(tmp_path / "export").result(LONGEST)
    assert json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"] == [258, 0]
    assert service.create_sampling_client(str(tmp_path / "export")).default_stops == {256, 258, 0}, "0 is an id like others"


def test_padding_of_the_embedding_is_never_drawn_nor_read(tmp_path):
    base = make_model(tmp_path / "base", LlamaConfig(**MODEL))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():  # a head to which the padding rows are by far the likeliest
        model.lm_head.weight[259:] = 20 * model.lm_head.weight[100]
    model.save_pretrained(base)
    service = TorchService("cpu", directory=tmp_path / "states")
    sampler, prompt = service.create_sampling_client(base), [1, 2, 3]
    for params in ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.5, "top_p": 0.5}, {"top_k": 3}):
        found = sampler.sample(prompt, 4, SamplingParams(max_tokens=16, stop=(), seed=1, **params)).result(LONGEST)
        for one in found.completions:
            assert max(one.tokens) < 259, params
            scored = sampler.compute_logprobs([*prompt, *one.tokens]).result(LONGEST)[3:]
            assert scored == pytest.approx(one.logprobs, abs=2e-4), "the whole softmax, as the trainer has it"
    with torch.no_grad():
        right = model(torch.tensor([prompt])).logits[0].log_softmax(-1)[:, :259].topk(5)
    likely = sampler.compute_topk(prompt, 5).result(LONGEST)
    assert likely.tokens.tolist() == right.indices.tolist() and likely.logprobs == pytest.approx(right.values.numpy(), abs=1e-4)
    with pytest.raises(InvalidValue, match="ask for 1 to 259, not 260"):
        sampler.compute_topk(prompt, 260)
    client = service.create_training_client(base, LoraParams(2), 0)
    with pytest.raises(InvalidValue, match=r"chats, row 7: targets\[2\] is 300, which only pads the embedding"):
        client.forward([Datum.from_tokens([1, 2, 3, 300], [1.0] * 4, origin="chats, row 7")], "cross_entropy")
    client.save_weights(tmp_path / "export").result(LONGEST)
    assert json.loads((tmp_path / "export" / "generation_config.json").read_text())["suppress_tokens"] == [*range(259, 320)]
    assert service.get_tokenizer(base).decode([65, 300, 66]).count("\ufffd") == 1


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path):
    base = make_model(tmp_path / "base", LlamaConfig(**MODEL))
    AutoModelForCausalLM.from_pretrained(base).model.save_pretrained(base)
    with pytest.raises(InvalidValue, match=r"its files hold no weights for lm_head\.weight"):
        TorchService("cpu").create_training_client(base, None, 0)


THINKING = (
    "  {%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}\n"
    "{%- endif %}{% if style is defined %}{{ style }}{% endif %}"
)


def test_template_variables_of_training_are_what_transformers_asks_with(tmp_path):
    make_model(tmp_path, LlamaConfig(**MODEL), THINKING)
    trained = get_renderer("auto", HuggingFaceTokenizer(tmp_path), {"enable_thinking": False, "style": 'odd "\\ %} ü'})
    trained.tokenizer.save(tmp_path, exported_chat_template(trained))
    exported = AutoTokenizer.from_pretrained(tmp_path)

    def asked(**variables):
        chat = [{"role": "user", "content": "say 3"}]
        return exported.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, **variables)["input_ids"]

    assert asked() == trained.generation_prompt(QUESTION) == get_renderer("auto", HuggingFaceTokenizer(tmp_path)).generation_prompt(QUESTION)
    explicit = {"enable_thinking": True, "style": ""}
    assert asked(**explicit) == trained.with_chat_template_kwargs(explicit).generation_prompt(QUESTION) != asked()
