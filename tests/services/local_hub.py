"""A folder that stands in for the hub: tiny models and data sets under the names that recipes ask for: `python local_hub.py FOLDER`.

`transformers` and `datasets` look for a local folder of a name first, so a program that is started in FOLDER finds these, unchanged.
"""

import json
import sys
from pathlib import Path

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
STUDENT, TEACHER = "Qwen/Qwen3-8B", "Qwen/Qwen3-32B"


def write_model(folder: Path, seed: int) -> None:
    """A Qwen 3 of 2 layers and 64 dimensions that reads bytes, with random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer.add_special_tokens(list(SPECIAL[:3]))
    tokenizer.add_tokens(list(SPECIAL[3:]))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=264, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=258, pad_token_id=256, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def write_rows(path: Path, rows: list[dict]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def chat(index: int) -> list[dict]:
    """A question, and an answer that can be learned."""
    word = "red green blue black white".split()[index % 5]
    return [
        {"role": "user", "content": f"Say {word}."},
        {"role": "assistant", "content": f"{word} {word} {word}!"},
    ]


def hh(index: int, good: bool) -> str:
    """A dialogue as the data of Anthropic's helpfulness set spells it."""
    word = "red green blue black white".split()[index % 5]
    return f"\n\nHuman: Say {word}.\n\nAssistant: {word + '!' if good else 'No, I will not.'}"


def write_hub(folder: Path) -> None:
    """Everything."""
    for name, seed in ((STUDENT, 1), (TEACHER, 2)):
        write_model(folder / name, seed)
    for split, count in (("train", 320), ("test", 16)):
        write_rows(
            folder / f"HuggingFaceH4/no_robots/{split}.jsonl",
            [{"messages": chat(index)} for index in range(count)],
        )
        sums = [
            {"question": f"What is {index % 7} plus 1?", "answer": f"#### {index % 7 + 1}"}
            for index in range(count)
        ]
        write_rows(folder / f"openai/gsm8k/main/{split}.jsonl", sums)
        write_rows(
            folder / f"allenai/tulu-3-sft-mixture/{split}.jsonl",
            [{"messages": chat(index)} for index in range(count)],
        )
        pairs = [{"chosen": hh(index, True), "rejected": hh(index, False)} for index in range(count)]
        write_rows(folder / f"Anthropic/hh-rlhf/{split}.jsonl", pairs)
        write_rows(
            folder / f"zwhe99/DeepMath-103K/{split}.jsonl",
            [{"question": f"What is {index % 7} plus 1?"} for index in range(count)],
        )
    write_rows(folder / "chats.jsonl", [{"messages": chat(index)} for index in range(320)])
    files = "".join(f"  - split: {split}\n    path: main/{split}.jsonl\n" for split in ("train", "test"))
    card = f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}---\n"
    (folder / "openai/gsm8k/README.md").write_text(card)


if __name__ == "__main__":
    write_hub(Path(sys.argv[1]))
