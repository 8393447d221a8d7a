"""What the engine, the session and the log cost for each step, and what snapshots cost: `python benchmarks/overhead.py`.

On the toy backend the same steps are done by the bare generator loop and by a session, in turns; on the torch backend one
LoRA training goes through blocks of ten steps with and without a snapshot, in turns. Medians are printed, and ratios.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["KITCHEN_RUNS"] = tempfile.mkdtemp(prefix="kitchen-benchmark-")

from kitchen.session.kitchen import Kitchen
from kitchen.train.sft import adam_schedule, train_sft
from kitchen.types import LoraParams
from kitchen.workflows.base import adam_params

TOY = {
    "backend": "toy", "dataset": "builtin:sort[:512]", "epochs": 8, "batch_size": 4, "held_out": 4, "graded": 1,
    "max_tokens": 4, "evaluate_every": 100_000,
}  # fmt: skip
TORCH = {
    "backend": "torch", "dataset": "builtin:sort[:2048]", "held_out": 8, "graded": 1, "max_tokens": 4,
    "evaluate_every": 100_000,
}  # fmt: skip


def bare(settings: dict) -> float:
    """Seconds for a step of the generator loop alone: the same model and data, no session, no log."""
    with Kitchen("sft", **settings, snapshot_every=-1) as k:
        k.run(until="baseline")
        values, service = k.state, k.state["service"].wrapped
        adapters = LoraParams(k.config.lora_rank, k.config.lora_alpha, k.config.lora_dropout)
        training = service.create_training_client(k.config.model, adapters, k.config.seed)
        batches, total = values["batches"], len(values["batches"])
        at = adam_schedule(adam_params(k.config), total, k.config.schedule, k.config.warmup_steps)
        began = time.perf_counter()
        steps = sum(item.name == "train.step" for item in train_sft(training, batches, at))
        return (time.perf_counter() - began) / steps


def session(settings: dict, **more) -> float:
    """Seconds for a step of a session's training."""
    with Kitchen("sft", **settings, **more) as k:
        k.run(until="baseline")
        began = time.perf_counter()
        k.run(until="train")
        seconds = time.perf_counter() - began
        return seconds / (k.driver.last_step.step or 1)


def interleaved(rounds: int, *ways: Callable[[], float]) -> list[float]:
    """The median of each way, measured in turns so that a busy machine disturbs all alike."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for place, way in enumerate(ways):
            found[place].append(way())
    return [statistics.median(times) for times in found]


def snapshots_in_turns(epochs: int) -> tuple[float, float]:
    """Seconds for a step without snapshots, and with one at every tenth: blocks of ten steps of one training, in turns."""
    blocks: dict[bool, list[float]] = {False: [], True: []}
    with Kitchen("sft", **TORCH, epochs=epochs, snapshot_every=10) as k:
        k.run(until=5)  # a block is ten steps with the one that is kept in its middle
        history, total = k.driver.connected_runner.history, len(k.state["batches"])
        keeping = history.snapshot_policy
        for block, first in enumerate(range(5, total - 10, 10)):
            taken = bool(block % 2)
            history.snapshot_policy = keeping if taken else replace(keeping, every=-1)
            began = time.perf_counter()
            k.run(until=first + 10)
            blocks[taken].append((time.perf_counter() - began) / 10)
    return statistics.median(blocks[False]), statistics.median(blocks[True])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12, help="of the torch training, 64 steps each")
    parser.add_argument("--skip-torch", action="store_true")
    options = parser.parse_args()
    alone, default, none = interleaved(
        options.rounds, lambda: bare(TOY), lambda: session(TOY), lambda: session(TOY, snapshot_every=-1)
    )
    print(f"toy, bare loop               {alone * 1e6:8.0f} µs a step")
    for name, seconds in (("toy, session, no snapshots", none), ("toy, session, as by default", default)):
        print(f"{name:<28} {seconds * 1e6:8.0f} µs a step: +{(seconds - alone) * 1e6:.0f} µs, × {seconds / alone:.3f}")
    if options.skip_torch:
        return
    without, tenth = snapshots_in_turns(options.epochs)
    print(f"torch LoRA, no snapshots     {without * 1e3:8.2f} ms a step")
    print(f"torch LoRA, every 10th step  {tenth * 1e3:8.2f} ms a step: {100 * (tenth / without - 1):+.2f} %")


if __name__ == "__main__":
    main()
