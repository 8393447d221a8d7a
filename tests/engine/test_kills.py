"""A run that is killed with SIGKILL again and again, and resumed each time, ends as one that was never disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole_run

ROOT = Path(__file__).resolve().parents[2]
# variants of a row run one after the other in one process: what they import is imported once. `kill_runs.py FOLDER VARIANT N SEED` takes any
# other of its VARIANTS, and as many kills as one likes
ROWS = ("toy-lora,toy-full,toy-streaming", "toy-dpo,toy-rl-parts,toy-rl-critic,toy-off-policy", "torch-lora,torch-rl")
KILLS = 6  # one at each kind of moment


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
@pytest.mark.parametrize("variants", ROWS)
def test_killed_and_resumed_equals_undisturbed(tmp_path, variants):
    words = [sys.executable, str(ROOT / "tests" / "kill_runs.py"), str(tmp_path), variants, str(KILLS), "7"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=3600, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summaries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"variant"')]
    assert [found["variant"] for found in summaries] == variants.split(",")
    for found in summaries:
        print(found)
        assert sum(found["kills"].values()) == KILLS and len(found["kills"]) == 6, "every kind of moment was hit"
        assert found["resumed"] > 0 and found["mended"] > 0, "runs were resumed, and torn lines mended"
        assert found["equal metrics"] and found["equal digests"] and found["verified"], found
