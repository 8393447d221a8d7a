"""Open a run's exported adapter in peft: log-probabilities of the same tokens, and the answer to the same question.

    python benchmarks/export.py RUN [TEXT]

RUN is a run directory whose artifact `adapter` was trained by the torch backend. Prints the largest difference, and whether transformers,
asked with the export's own chat template and generation settings, answers as kitchen's sampler does.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig

from kitchen.adapters.torch.client import TorchService
from kitchen.adapters.torch.loading import find_model, load_model
from kitchen.adapters.torch.tokenizers import HuggingFaceTokenizer
from kitchen.store.run import Run
from kitchen.types import SamplingParams


def difference(run: Run, text: str) -> tuple[float, int]:
    """Largest difference of log-probabilities, and how many tokens were compared."""
    adapter = run.path / "artifacts" / "adapter"
    service = TorchService(device="cpu")
    tokenizer = service.get_tokenizer(run.spec.config["model"])
    tokens = tokenizer.encode(text)
    ours = service.create_sampling_client(str(adapter)).compute_logprobs(tokens).result()[1:]
    source = find_model(run.spec.config["model"])
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    base = load_model(source, tokenizer, torch.float32, torch.device("cpu")).model
    with torch.no_grad():
        logits = PeftModel.from_pretrained(base, adapter).eval()(torch.tensor([tokens])).logits[0]
    theirs = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]
    return float((torch.tensor(ours) - theirs).abs().max()), len(tokens)


def answers(run: Run, question: str) -> tuple[str, str]:
    """Kitchen's answer and that of transformers, both greedy, from the exported folder alone."""
    adapter = run.path / "artifacts" / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    asked = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = ids["input_ids"][0].tolist()
    sampler = TorchService(device="cpu").create_sampling_client(str(adapter))
    ours = sampler.sample(prompt, 1, SamplingParams(max_tokens=64, temperature=0.0)).result().completions[0].tokens
    service, source = TorchService(device="cpu"), find_model(run.spec.config["model"])
    model = PeftModel.from_pretrained(service.open(source.name).copy_sharing_weights(), adapter).eval()
    model.generation_config = GenerationConfig.from_pretrained(adapter)
    theirs = model.generate(**ids, max_new_tokens=64, do_sample=False, tokenizer=tokenizer)[0, len(prompt) :]
    return tokenizer.decode(ours), tokenizer.decode(theirs)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    text = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France? The capital of France is Paris."
    largest, count = difference(Run(Path(sys.argv[1])), text)
    print(f"peft and kitchen agree on {count} tokens: largest difference {largest:.1e} nats")
    ours, theirs = answers(Run(Path(sys.argv[1])), text)
    print(f"transformers answers {'the same' if ours == theirs else f'{theirs!r} instead'}: {ours!r}")
