"""A run that is killed with SIGKILL again and again, and resumed each time, ends as one that was never disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole_run

ROOT = Path(__file__).resolve().parents[2]
METHODS = "toy-dpo,toy-reward,toy-rl,toy-rl-ahead,toy-rl-parts,toy-rl-critic,toy-on-policy,toy-off-policy"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
@pytest.mark.parametrize(
    ("variant", "kills"),
    [
        ("toy-lora", 6),
        ("toy-full", 6),
        ("toy-streaming", 6),
        ("torch-lora", 6),
        ("torch-full", 6),
        ("torch-streaming", 6),
        (METHODS, 6),  # one after the other: what they import is imported once
        ("torch-rl", 6),
    ],
)
def test_killed_and_resumed_equals_undisturbed(tmp_path, variant, kills):
    words = [sys.executable, str(ROOT / "tests" / "kill_runs.py"), str(tmp_path), variant, str(kills), "7"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summaries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"variant"')]
    assert [found["variant"] for found in summaries] == variant.split(",")
    for found in summaries:
        print(found)
        assert sum(found["kills"].values()) == kills and len(found["kills"]) == 6, "every kind of moment was hit"
        assert found["resumed"] > 0 and found["mended"] > 0, "runs were resumed, and torn lines mended"
        assert found["equal metrics"] and found["equal digests"] and found["verified"], found
