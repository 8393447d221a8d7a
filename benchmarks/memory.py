"""How much memory a long session takes: `python benchmarks/memory.py`.

Steps as a session logs them, two port calls and an optimizer step each, go through a log to a dashboard that is painted on
the way; then a training on the toy backend does the same for real. What the process holds more at the end than after the
warm-up is printed, and what the log's own index holds of it; also what an event costs in time.
"""

import argparse
import gc
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["KITCHEN_RUNS"] = tempfile.mkdtemp(prefix="kitchen-benchmark-")

from kitchen.session.kitchen import Kitchen
from kitchen.store.log import EventLog
from kitchen.telemetry import event, resident_memory
from kitchen.widgets.dashboard import Dashboard

SETTINGS = {
    "backend": "toy", "dataset": "builtin:sort[:512]", "batch_size": 4, "held_out": 4, "graded": 1, "max_tokens": 4,
    "evaluate_every": 1000,
}  # fmt: skip
PAINT_EVERY = 50  # steps; a session of 400 steps a second paints eight times in each


def log_step(log: EventLog, step: int) -> None:
    """Log what one step of a session logs."""
    for verb in ("forward_backward", "optim_step"):
        log.append(event("port.call", port="training", adapter="toy", verb=verb, status="ok", seconds=1e-3 / step))
    numbers = {"loss": 1 / step, "learning_rate": 1e-3 / step, "grad_norm": 3 / step, "epoch": step / 128, "seconds": 2e-3 / step}
    sizes = {"examples": 4, "tokens": 100 + step % 7, "trained_tokens": 50 + step % 7, "memory": 10**8 + step}
    log.append(event("train.step", step=step, **numbers, **sizes, tokens_per_second=5e4 + 1 / step))


def growth(steps: int, warm_up: int) -> tuple[float, float]:
    """Megabytes that `steps` logged steps with a dashboard add after the warm-up, and microseconds of CPU time for an event."""
    with Kitchen("sft", **SETTINGS) as k:
        k.run(until="baseline")
        view, log, spent = Dashboard(k), k.run_record.log, 0.0
        log.append(event("train.start", loss="cross_entropy", steps=steps, epochs=1, datums=512))
        before = 0
        for step in range(1, warm_up + steps + 1):
            began = time.thread_time()
            log_step(log, step)
            spent += time.thread_time() - began
            if step % PAINT_EVERY == 0:
                view.paint()
            if step == warm_up:
                gc.collect()
                before, spent = resident_memory(), 0.0
        gc.collect()
        added = (resident_memory() - before) / 1e6
        view.close()
    return added, spent / steps / 3 * 1e6


def real_growth(steps: int, warm_up: int) -> float:
    """Megabytes that a real training with a dashboard adds after the warm-up."""
    with Kitchen("sft", **SETTINGS, epochs=(steps + warm_up) // 126 + 1, snapshot_every=1000) as k:
        view = Dashboard(k)
        k.run(until=warm_up)
        gc.collect()
        before = resident_memory()
        k.run(until=warm_up + steps)
        gc.collect()
        added = (resident_memory() - before) / 1e6
        view.close()
    return added


def in_new_process(measure, *values):
    """What a measurement finds in a process of its own, which has no memory left over from another."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *values).result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--real-steps", type=int, default=4_000)
    parser.add_argument("--warm-up", type=int, default=2_000)
    options = parser.parse_args()
    added, each = in_new_process(growth, options.steps, options.warm_up)
    index = 3 * options.steps * (32 + 12) + options.steps * 8 * (12 + 2 * 2)  # hashes, places and shapes; numbers of a step and two calls
    print(f"logged, with a dashboard   {added:6.1f} MB for {options.steps:,} steps, of which the log's index {index / 1e6:.1f} MB")
    print(f"                           {each:6.1f} µs an event")
    added = in_new_process(real_growth, options.real_steps, options.warm_up)
    print(f"trained, with a dashboard  {added:6.1f} MB for {options.real_steps:,} steps: {20_000 / options.real_steps * added:.1f} MB for 20,000")


if __name__ == "__main__":
    main()
