"""A server that is killed again and again does for its clients what an undisturbed one does."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("kill_server.py")


def test_a_killed_server_loses_nothing(tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path / "kills"), "toy", "10", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert sum(told["kills"].values()) == 10 and len(told["kills"]) == 7
    assert told["equal metrics"] and told["equal digests"], told
