"""Open a run's exported adapter in peft, and compare its logits with kitchen's log-probabilities on the same tokens.

    python benchmarks/export.py RUN [TEXT]

RUN is a run directory whose artifact `adapter` was trained by the torch backend. Prints the largest difference.
"""

import sys
from pathlib import Path

import torch
from peft import PeftModel

from kitchen.adapters.torch.client import TorchService
from kitchen.adapters.torch.loading import find_model, load_model
from kitchen.adapters.torch.tokenizers import HuggingFaceTokenizer
from kitchen.store.run import Run


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


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    text = sys.argv[2] if len(sys.argv) > 2 else "What is the capital of France? The capital of France is Paris."
    largest, count = difference(Run(Path(sys.argv[1])), text)
    print(f"peft and kitchen agree on {count} tokens: largest difference {largest:.1e} nats")
