"""Kills a run with SIGKILL again and again, resumes it each time, and compares it with one that nobody disturbed.

A program of its own, started by test_kills.py: it imports everything once and forks a child for each attempt, before any
thread exists. It prints a JSON summary of each variant, a line each.

    python tests/kill_runs.py FOLDER VARIANT[,VARIANT…] KILLS SEED
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

from small_settings import SMALL_SETTINGS

from kitchen.data.batches import StreamBatches, mix
from kitchen.data.references import Stream
from kitchen.engine.verification import verify_run
from kitchen.engine.workflow import chain, stage, stages
from kitchen.recipes.registry import get_recipe
from kitchen.recipes.reproduce import _RESULT_EVENTS
from kitchen.session.kitchen import Kitchen
from kitchen.store.log import EventLog
from kitchen.store.run import Run
from kitchen.telemetry import event_content
from kitchen.types import Datum
from kitchen.workflows.base import Splits

SMALL = {
    "dataset": "builtin:sort[:96]", "batch_size": 8, "held_out": 8, "graded": 4, "max_tokens": 8, "lora_dropout": 0.1,
    "gradient_accumulation_steps": 2, "snapshot_every": 3, "snapshots_kept": 2, "keep_best": "min train.evaluate.loss",
}  # fmt: skip
TORCH = {**SMALL, "backend": "torch", "device": "cpu", "lora_rank": 4}


@stage(gives="batches", remake=True)
def mixed(config, data: Splits) -> StreamBatches[Datum]:
    """A stream over a mixture of short and long rows, shuffled in a buffer."""
    middle = sorted(map(len, data.train))[len(data.train) // 2]
    parts = {
        "short": [one for one in data.train if len(one) < middle],
        "long": [one for one in data.train if len(one) >= middle],
    }
    rows = mix(parts, {"short": 1.0, "long": 3.0}, size=len(data.train), seed=config.seed)
    return StreamBatches(
        Stream(lambda: rows, size=len(rows)), config.batch_size, config.epochs, config.seed, buffer=16
    )


SFT = get_recipe("sft")
PARTS = [mixed if part.name == "batch" else part for part in SFT.workflow.parts]
STREAMING = replace(SFT, name="streaming", workflow=chain("streaming", *PARTS))
PAIRS = {**SMALL, "backend": "toy", "dataset": "builtin:parity-pairs[:48]", "epochs": 2}
GAMES = {
    "backend": "toy", "env": "module:song_env:songs", "problems": 16, "batch_size": 4, "group_size": 2, "graded": 2,
    "max_tokens": 3, "epochs": 2, "num_substeps": 2, "objective": "grpo", "lora_dropout": 0.1, "snapshot_every": 1,
    "snapshots_kept": 2,
}  # fmt: skip
TAUGHT = {name: value for name, value in GAMES.items() if name not in ("num_substeps", "objective")}
TAUGHT |= {"teacher_dataset": "builtin:sort[:64]", "env": "task:sort"}
VARIANTS = {
    "toy-lora": (SFT, {**SMALL, "backend": "toy", "epochs": 6}),
    "toy-full": (SFT, {**SMALL, "backend": "toy", "epochs": 6, "method": "full"}),
    "toy-streaming": (STREAMING, {**SMALL, "backend": "toy", "epochs": 6}),
    "torch-lora": (SFT, {**TORCH, "epochs": 2}),
    "torch-full": (SFT, {**TORCH, "epochs": 2, "method": "full"}),
    "torch-streaming": (STREAMING, {**TORCH, "epochs": 2}),
    "toy-dpo": (get_recipe("dpo"), {**PAIRS, "preference_loss": "kto"}),
    "toy-reward": (get_recipe("reward_model"), PAIRS),
    "toy-rl": (get_recipe("rl_math"), GAMES),
    "toy-rl-ahead": (get_recipe("rl_math"), {**GAMES, "max_steps_off_policy": 2, "env": "nim"}),
    "toy-rl-parts": (get_recipe("rl_math"), {**GAMES, "max_steps_off_policy": 1, "num_minibatches": 2, "objective": "dr_grpo"}),
    "toy-rl-critic": (get_recipe("rl_math"), {**GAMES, "baseline": "critic", "objective": "ppo"}),
    "toy-on-policy": (get_recipe("distill_on_policy"), TAUGHT),
    "toy-off-policy": (
        get_recipe("distill_off_policy"),
        {
            **SMALL,
            "dataset": "builtin:sort[:48]",
            "backend": "toy",
            "epochs": 2,
            "teacher_dataset": "builtin:sort[:64]",
        },
    ),
    "torch-rl": (
        get_recipe("rl_math"),
        {**GAMES, "backend": "torch", "device": "cpu", "lora_rank": 4, "problems": 12, "epochs": 1, "max_steps_off_policy": 1},
    ),
}


# the settings of the small runs of all recipes, on torch; `python tests/kill_runs.py FOLDER torch:sft,torch:rlhf 50 1`
VARIANTS |= {
    f"torch:{name}": (
        get_recipe(name), {**settings, "backend": "torch", "device": "cpu", "lora_rank": 4, "snapshot_every": 2, "snapshots_kept": 2},
    )
    for name, settings in SMALL_SETTINGS.items()
}  # fmt: skip


def die() -> None:
    """What the machine does to a process it has no memory for."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_log_write(number: int) -> None:
    """Die when a part of a line is on disk."""
    plain, calls = EventLog._write_line, Counter()

    def write(log, line, item):
        calls["n"] += 1
        if calls["n"] == number:
            os.write(log.file, line[: len(line) // 2])
            die()
        plain(log, line, item)

    EventLog._write_line = write


def at_a_rename(number: int, after: bool) -> None:
    """Die when a file is whole under its temporary name, or just after it has its own."""
    plain, calls = os.replace, Counter()

    def rename(source, target):
        calls["n"] += 1
        if calls["n"] == number and not after:
            die()
        plain(source, target)
        if calls["n"] == number:
            die()

    os.replace = rename


def in_a_stage(k: Kitchen, name: str, events: int) -> None:
    """Die so many events after the stage begins, or with its end."""
    inside = Counter()

    def look(item) -> None:
        if item.name in ("stage.start", "stage.stop") and item["stage"] == name:
            inside["left"] = events if item.name == "stage.start" else 0
            inside["armed"] = 1
        elif inside["armed"]:
            inside["left"] -= 1
        if inside["armed"] and inside["left"] <= 0:
            die()

    k.driver.listeners.append(look)


def attempt(folder: Path, variant: str, how: str, rng: random.Random) -> None:
    """In a child: make or resume the run, and go on to the end, or die on the way."""
    recipe, settings = VARIANTS[variant]
    os.environ["KITCHEN_RUNS"] = str(folder.parent / f"home-{folder.name}")  # a registry of its own counts its versions alike
    if how == "in a log write":
        in_a_log_write(rng.randrange(1, 120))
    elif how in ("before a rename", "after a rename"):
        at_a_rename(rng.randrange(1, 16), how == "after a rename")
    there = (folder / "spec.json").is_file()
    k = Kitchen.open(folder, recipe=recipe) if there else Kitchen(recipe, run_dir=folder, **settings)
    if how == "at a step":
        first = k.driver.last_step.step if k.driver.last_step else 0
        last = first + rng.randrange(1, 12)
        k.driver.listeners.append(lambda item: item.name == "train.step" and item.step == last and die())
    if how.startswith("in stage "):
        in_a_stage(k, how.removeprefix("in stage "), rng.randrange(6))
    k.run()
    k.close()


def child(folder: Path, variant: str, how: str, rng: random.Random, limit: float) -> int:
    """Fork an attempt; kill it from outside after `limit` seconds. Its wait status."""
    process = os.fork()
    if not process:
        try:
            attempt(folder, variant, how, rng)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def story(run: Run) -> list:
    """The metric stream, and what was made."""
    made = [(one.name, one.sha256) for one in run.artifacts()]
    return [event_content(item) for item in run.log.active_events if item.name in _RESULT_EVENTS] + made


def final(run: Run) -> list[str]:
    """The digest of the state the run ended with."""
    return [item["digest"] for item in run.log.active_events if item.name == "run.digest"]


def main(folder: Path, variant: str, kills: int, seed: int) -> dict:
    """The summary."""
    folder.mkdir()
    os.environ["KITCHEN_RUNS"] = str(folder)
    if variant not in (
        "toy-lora",
        "toy-full",
        "toy-streaming",
    ):  # losses of our own are differentiated by torch, on any backend
        import torch  # once, for all children

        torch.set_num_threads(1)
    if variant.startswith("torch"):
        import kitchen.adapters.torch.client  # noqa: F401
    hows = ("by the clock", "in a log write", "before a rename", "after a rename", "at a step", "in a stage")
    names = [part.name for part in stages(VARIANTS[variant][0].workflow)]
    rng, hits, began = random.Random(seed), Counter(), time.monotonic()
    assert child(folder / "whole", variant, "", rng, 300.0) == 0
    whole_seconds, place = time.monotonic() - began, 0
    while sum(hits.values()) < kills:
        how = hows[sum(hits.values()) % len(hows)]
        limit = rng.uniform(0.05, 0.6) * whole_seconds if how == "by the clock" else 300.0
        where = f"in stage {names[hits[how] % len(names)]}" if how == "in a stage" else how  # each in its turn
        status = child(folder / f"killed-{place}", variant, where, random.Random(rng.random()), limit)
        if os.WIFSIGNALED(status):
            hits[how] += 1
        else:
            assert status == 0, f"{how}: exit status {status}"
            place += 1  # it reached its end: the next kills hit another run
    assert child(folder / f"killed-{place}", variant, "", rng, 300.0) == 0
    whole = Run(folder / "whole")
    killed = [Run(folder / f"killed-{number}") for number in range(place + 1)]
    return {
        "variant": variant,
        "kills": hits,
        "stages hit": min(hits["in a stage"], len(names)),
        "stages": len(names),
        "runs": len(killed),
        "steps": sum(item.name == "train.step" for item in whole.log.active_events),
        "equal metrics": all(story(run) == story(whole) for run in killed),
        "equal digests": all(final(run) == final(whole) != [] for run in killed),
        "verified": all(verify_run(run.path).sound for run in killed),
        "problems": [words for run in killed for words in verify_run(run.path).problems][:3],
        "resumed": sum(item.name == "run.rewind" for run in killed for item in run.log.events),
        "mended": sum(item.name == "log.repair" for run in killed for item in run.log.events),
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    for name in sys.argv[2].split(","):
        print(json.dumps(main(Path(sys.argv[1]) / name, name, int(sys.argv[3]), int(sys.argv[4]))), flush=True)
