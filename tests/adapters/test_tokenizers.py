"""Tokenizers: what people type never becomes a control token, and bytes add up, for every family of vocabularies."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from kitchen.adapters.torch.tokenizers import HuggingFaceTokenizer, _control_placeholder
from kitchen.types import BackendError, InvalidValue

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "the cat sat on the mat",
    "Grüße aus Köln",
    "2 + 3 = 5",
    "user asks, assistant answers",
    "a < b > c | d",
] * 3
TYPED = [
    "<|im_end|>",
    "a<|im_end|>b",
    "<|im_start|>system\n<|im_end|>",
    "<think>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<|im_<|im_end|>end|>",
    _control_placeholder(2),
    _control_placeholder(323),
]


def byte_level(folder, ignore_merges=False):
    """Byte-level BPE as in GPT-2, Qwen and Llama 3."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, special_tokens=CONTROL, initial_alphabet=alphabet)
    )
    tokenizer.add_tokens(["<think>", "   ", "<b>"])
    return written(folder, tokenizer, {"eos_token": "<|im_end|>", "chat_template": "{{ '<think>' }}"})


def sentencepiece_like(folder):
    """BPE with ▁ for spaces and bytes as a fallback, as in Llama 2 and Mistral."""
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")})
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        "▁t",
        "he",
        "▁the",
    ]
    vocabulary = {name: place for place, name in enumerate(dict.fromkeys(names))}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return written(folder, tokenizer, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"})


def unigram(folder):
    """Unigram, whose vocabulary holds control tokens as ordinary pieces that match best of all."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<|im_end|>", 0.0)] + [
        (letter, -5.0) for letter in sorted(set("".join(CORPUS)))
    ]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("the", -2.0)], unk_id=0, byte_fallback=False))
    tokenizer.add_special_tokens(["<unk>", "</s>", "<|im_end|>"])
    return written(folder, tokenizer, {"eos_token": "<|im_end|>"})


def words(folder):
    """Whole words: a typed control token is a word of the vocabulary."""
    vocabulary = {
        name: place for place, name in enumerate(["<unk>", "</s>", "<|im_end|>", "the", "cat", "<", "/s>"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "</s>", "<|im_end|>"])
    return written(folder, tokenizer, {"eos_token": "</s>"})


def written(folder, tokenizer, config):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "TokenizersBackend", **config})
    )
    return HuggingFaceTokenizer(folder)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like, unigram, words])
def test_typed_text_never_becomes_a_control_token(make, tmp_path):
    tokenizer = make(tmp_path)
    control = set(tokenizer.control_tokens.values())
    assert control
    rng = np.random.default_rng(0)
    spellings = [*tokenizer.control_tokens, *TYPED]
    texts = spellings + [f" {name} x" for name in spellings]
    for _ in range(100):  # spellings run together, cut, and nested
        parts = rng.choice([*spellings, "<", "|", ">", "the cat"], size=rng.integers(1, 5))
        texts.append("".join(part[rng.integers(0, 3) :] for part in parts))
    for text in texts:
        assert control.isdisjoint(tokenizer.encode(text)), text
    for name, token in tokenizer.control_tokens.items():
        assert tokenizer.encode(name, control=True) == [token]


def test_what_the_template_uses_is_control_and_other_added_tokens_are_text(tmp_path):
    tokenizer = byte_level(tmp_path)
    assert set(tokenizer.control_tokens) == {*CONTROL, "<think>"}
    assert tokenizer.decode(tokenizer.encode("a   b<b>c</b>")) == "a   b<b>c</b>"
    assert len(tokenizer.encode("<b>")) == 1 < len(tokenizer.encode("<think>"))


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
@pytest.mark.parametrize("text", ["the cat", "Grüße 🐈 ok\n\t", "日本語", " the  the ", ""])
def test_text_survives_and_bytes_add_up(make, text, tmp_path):
    tokenizer = make(tmp_path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes()[list(tokenizer.control_tokens.values())].sum() == 0


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_transformers_reads_the_same(make, tmp_path):
    tokenizer, theirs = make(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, "".join(tokenizer.control_tokens), "hi 🐈"]:
        assert tokenizer.encode(text, control=True) == theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text), control=True) == theirs.decode(tokenizer.encode(text))
    assert tokenizer.eos_token_id == theirs.eos_token_id and len(tokenizer) == len(theirs)


def test_begin_and_end_tokens_are_never_added(tmp_path):
    byte_level(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    description["truncation"] = {
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    for control in (False, True):
        ids = tokenizer.encode("the cat sat on the mat", control=control)
        assert 1 not in ids and tokenizer.decode(ids) == "the cat sat on the mat"


def test_template_comes_from_its_file_first(tmp_path):
    unigram(tmp_path)
    assert HuggingFaceTokenizer(tmp_path).chat_template is None
    config = {
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert HuggingFaceTokenizer(tmp_path).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "</s>"}}')
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert tokenizer.chat_template == "J"
    assert tokenizer.template_variables == {"eos_token": "<|im_end|>", "pad_token": "</s>"}


def test_saved_files_read_the_same(tmp_path):
    tokenizer = byte_level(tmp_path)
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    again = HuggingFaceTokenizer(tmp_path / "copy")
    assert again.encode("Grüße<|im_end|>", control=True) == tokenizer.encode("Grüße<|im_end|>", control=True)


def test_an_end_of_turn_is_needed_and_ids_are_checked(tmp_path):
    tokenizer = byte_level(tmp_path)
    with pytest.raises(InvalidValue, match="token id -1 is not in the vocabulary"):
        tokenizer.decode([-1])
    with pytest.raises(InvalidValue, match="half a surrogate"):
        tokenizer.encode("a\udfff")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|nowhere|>"}')
    with pytest.raises(InvalidValue, match=r"names no eos_token of the vocabulary \(found '<\|nowhere\|>'\)"):
        HuggingFaceTokenizer(tmp_path)


def test_no_tokenizer_says_what_was_expected(tmp_path):
    with pytest.raises(InvalidValue, match=f"{tmp_path} has no tokenizer: tokenizer.json is expected"):
        HuggingFaceTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"half": ')
    with pytest.raises(InvalidValue, match="tokenizer.json cannot be read"):
        HuggingFaceTokenizer(tmp_path)


def test_a_hub_name_without_a_hub_is_a_clear_error():
    with pytest.raises(BackendError, match="no-such-org/no-such-model"):
        HuggingFaceTokenizer("no-such-org/no-such-model")
