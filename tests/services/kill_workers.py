"""Kills what trains a run, at random moments, and compares metrics and digests with a run that nobody disturbed; prints a line of JSON.

    python tests/services/kill_workers.py BACKEND VICTIM KILLS [SEED]      procs or ray; worker, sampler or driver

A worker is killed by a thread of the run's own process, wherever training happens to be; a driver is a process of its own, and is begun again
by `kitchen resume`'s own means after each kill. Runs are of the recipe `sft`, of `rl_math` where samplers are killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

QUIET = {
    "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
for name, value in QUIET.items():
    os.environ.setdefault(name, value)
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

from kill_runs import final, story  # noqa: E402

from kitchen.engine.verification import verify_run  # noqa: E402
from kitchen.session.kitchen import Kitchen  # noqa: E402
from kitchen.store.run import Run  # noqa: E402

OPTIONS = {"procs": {"ranks": 2, "threads": 1}, "ray": {"workers": 2, "cpus": 0.25, "threads": 1, "timeout": 120.0}}
SFT = {
    "model": "builtin:tiny-chat", "dataset": "builtin:sort[:96]", "batch_size": 8, "held_out": 8, "graded": 2, "max_tokens": 4, "lora_dropout": 0.1,
    "gradient_accumulation_steps": 2, "snapshot_every": 3, "lora_rank": 4, "epochs": 3, "device": "cpu", "seed": 3,
}  # fmt: skip
GAMES = {
    "model": "builtin:tiny-chat", "env": "nim", "problems": 16, "batch_size": 4, "group_size": 2, "graded": 2, "max_tokens": 3, "epochs": 3,
    "device": "cpu", "lora_rank": 4, "max_steps_off_policy": 1, "snapshot_every": 2, "seed": 3,
}  # fmt: skip


def settings(backend: str, victim: str) -> tuple[str, dict]:
    """Recipe and settings of a run."""
    options = dict(OPTIONS[backend])
    if victim == "sampler":
        options |= {"workers": 1, "samplers": 2}
    return ("rl_math" if victim == "sampler" else "sft"), {**(GAMES if victim == "sampler" else SFT), "backend": backend, "backend_options": options}


def whole_run(backend: str, victim: str, folder: Path, disturb=None) -> tuple[Run, float]:
    """A run from its beginning to its end, and the seconds that it took."""
    recipe, given = settings(backend, victim)
    began = time.monotonic()
    with Kitchen(recipe, run_dir=folder, **given) as k:
        if disturb:
            disturb(k)
        k.run()
        return k.run_record, time.monotonic() - began


def kill_some(victim: str, kills: int, rng: random.Random, done: list[str]):
    """A disturber: a thread that kills a rank, waits until it was missed, and kills another one."""

    def disturb(k: Kitchen) -> None:
        steps = threading.Semaphore(0)

        def listen(item) -> None:
            if item.name == "train.step":
                steps.release()

        def work() -> None:
            while len(done) < kills:
                if not steps.acquire(timeout=300):
                    return
                time.sleep(rng.uniform(0, 0.15))
                runner = k.driver.connected_runner
                service = runner.base["service"]
                inner = getattr(service, "inner", service)
                group = inner.samplers if victim == "sampler" else inner.trainers
                pids = [pid for pid in group.ranks.pids if pid]
                if not pids:
                    continue
                place = rng.randrange(len(pids))
                missed = len(group.recoveries)
                os.kill(pids[place], signal.SIGKILL)
                done.append(f"rank {place}")
                until = time.monotonic() + 200
                while len(group.recoveries) == missed and time.monotonic() < until and k.status != "completed":
                    time.sleep(0.02)
                while steps.acquire(blocking=False):
                    pass

        k.driver.listeners.append(listen)
        threading.Thread(target=work, daemon=True).start()

    return disturb


_DRIVER = """
import json, sys
from pathlib import Path
from kitchen.session.kitchen import Kitchen
recipe, given, folder = json.loads(sys.argv[1])
k = Kitchen.open(folder) if (Path(folder) / "spec.json").is_file() else Kitchen(recipe, run_dir=folder, **given)
print("ready", flush=True)
k.run()
k.close()
"""


def killed_drivers(backend: str, folder: Path, kills: int, rng: random.Random, done: list[str]) -> list[Run]:
    """Runs whose process is killed again and again, by the clock from when it has been imported; each goes on where it was."""
    recipe, given = settings(backend, "driver")
    runs, number = [], 0
    while True:
        place = folder / f"killed-{number}"
        process = subprocess.Popen([sys.executable, "-c", _DRIVER, json.dumps([recipe, given, str(place)])], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        if len(done) >= kills:
            assert process.wait(600) == 0
            return [*runs, Run(place)]
        moment = rng.uniform(0.5, 25.0 if backend == "ray" else 8.0)
        try:
            assert process.wait(moment) == 0
            runs.append(Run(place))
            number += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done.append(f"{moment:.1f} s")


def main(backend: str, victim: str, kills: int, seed: int) -> dict:
    """The summary."""
    folder = Path(tempfile.mkdtemp(prefix="kitchen-kills-"))
    rng, done = random.Random(seed), list[str]()
    os.environ["KITCHEN_RUNS"] = str(folder / "home-whole")
    whole, seconds = whole_run(backend, victim, folder / "whole")
    began, runs, recoveries = time.monotonic(), [], 0
    os.environ["KITCHEN_RUNS"] = str(folder / "home-killed")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if victim == "driver":
            runs = killed_drivers(backend, folder, kills, rng, done)
        while victim != "driver" and len(done) < kills:
            os.environ["KITCHEN_RUNS"] = str(folder / f"home-{len(runs)}")
            runs.append(whole_run(backend, victim, folder / f"killed-{len(runs)}", kill_some(victim, kills, rng, done))[0])
        recoveries = sum("started again" in str(one.message) for one in heard)
    runs = [Run(run.path) for run in runs]
    whole = Run(whole.path)
    return {
        "backend": backend, "victim": victim, "kills": len(done), "runs": len(runs),
        "recoveries": recoveries if victim != "driver" else sum(item.name == "run.rewind" for run in runs for item in run.log.events),
        "steps": sum(item.name == "train.step" for item in whole.log.active_events),
        "equal metrics": all(story(run) == story(whole) for run in runs),
        "equal digests": all(final(run) == final(whole) != [] for run in runs),
        "verified": all(verify_run(run.path).sound for run in runs),
        "seconds": round(time.monotonic() - began, 1), "seconds undisturbed": round(seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "ray":  # one cluster, which outlives the drivers
        from ray_probe import start_cluster

        cluster = start_cluster()
    try:
        print(json.dumps(main(words[0], words[1], int(words[2]), int(words[3]) if len(words) > 3 else 1)), flush=True)
    finally:
        if words[0] == "ray":
            import ray

            ray.shutdown()
            cluster.shutdown()
