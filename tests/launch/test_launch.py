"""Servers started by ssh and by Slurm: commands of theirs that stand in the path and do what the real ones do, on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from kitchen.cli.main import main
from kitchen.launch.plan import ServePlan, all_launches, find_launch
from kitchen.launch.slurm import SlurmJob, job_script

ROOT = Path(__file__).resolve().parents[2]
KITCHEN = f"{sys.executable} -c 'from kitchen.cli.main import main; main(prog_name=\"kitchen\")'"
SSH = """
import os, socket, subprocess, sys, threading
words = sys.argv[1:]
open(os.environ["SEEN"], "a").write(repr(words) + chr(10))
host = words[words.index("--") + 1]
if host == "nowhere":
    sys.exit("ssh: connect to host nowhere port 22: Connection refused")
if "-N" not in words:
    assert words[-1] == "sh -s"
    sys.exit(subprocess.run(["sh", "-s"], env={**os.environ, "HOME": os.environ["THERE"]}).returncode)
_, port, _, remote = words[words.index("-L") + 1].split(":")
listening = socket.create_server(("127.0.0.1", int(port)))
def pump(one, other):
    while data := one.recv(65536):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)
while True:
    here, _ = listening.accept()
    there = socket.create_connection(("127.0.0.1", int(remote)))
    for pair in ((here, there), (there, here)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
SBATCH = """
import os, subprocess, sys
script = sys.argv[-1]
log = next(line.split("=", 1)[1].strip() for line in open(script) if line.startswith("#SBATCH --output="))
job = subprocess.Popen(["sh", script], stdout=open(log, "a"), stderr=subprocess.STDOUT, start_new_session=True)
print(job.pid)
"""
SQUEUE = """
import os, sys
job = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--jobs="))
try:
    os.kill(job, 0)
    running = "Z" not in open(f"/proc/{job}/stat").read().split()[2]
except OSError:
    running = False
print("RUNNING" if running else "", end="")
"""
SCANCEL = """
import os, signal, sys
os.kill(int(sys.argv[1]), signal.SIGTERM)
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The commands, and the home that they have there."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("ssh", SSH), ("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (commands / name).write_text(f"#!{sys.executable}" + textwrap.dedent(text))
        (commands / name).chmod(0o755)
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("THERE", str(there))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    yield tmp_path
    for launch in all_launches():
        for process in (launch.about.get("process"), launch.about.get("tunnel"), launch.about.get("job")):
            if process:
                with contextlib.suppress(OSError):
                    os.kill(int(process), signal.SIGKILL)


def kitchen(*words):
    done = CliRunner().invoke(main, ["launch", *words])
    assert "Traceback" not in done.output, done.output
    return done


def ask(launch):
    """A client's first question."""
    key = launch.key_file.read_text().strip()
    return httpx.get(f"{launch.address}/api/v1/get_server_capabilities", headers={"X-API-Key": key}).json()["supported_models"][0]["model_name"]


def test_a_server_by_ssh(elsewhere):
    hostile = "a b'; touch oops; '$(touch oops)"
    words = ["ssh", "me@gpu1", "--name", "mine", "--backend", "toy", "--model", f"{hostile}=toy", "--command", KITCHEN, "--backend.latency", "0"]
    done = kitchen(*words)
    assert done.exit_code == 0, done.output
    launch = find_launch("mine")
    key = launch.key_file.read_text().strip()
    assert launch.address in done.output and str(launch.key_file) in done.output and key not in done.output
    assert ask(launch) == hostile and httpx.get(f"{launch.address}/api/v1/healthz").status_code == 401
    commands = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert "--folder=" in commands and key not in commands
    kept = [file for file in elsewhere.rglob("*") if file.is_file() and key in file.read_text("utf-8", "replace")]
    assert {file.name for file in kept} == {"key"} and all(file.stat().st_mode & 0o077 == 0 for file in kept)
    assert not list(ROOT.glob("oops")) and not list(elsewhere.rglob("oops"))
    again = kitchen(*words)
    assert again.exit_code == 2 and "already" in again.output
    os.kill(launch.about["tunnel"], signal.SIGKILL)
    look = ["ps", "-o", "stat=", "-p", str(launch.about["tunnel"])]
    while subprocess.run(look, capture_output=True, text=True).stdout.strip()[:1] not in ("", "Z"):
        time.sleep(0.01)
    assert "opened again" in kitchen("status").output and ask(find_launch("mine")) == hostile
    done = kitchen("stop", "mine")
    assert done.exit_code == 0 and not all_launches() and not launch.folder.exists(), done.output
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{launch.address}/api/v1/healthz")
    assert key not in (elsewhere / "seen").read_text()


def test_what_goes_wrong_is_said(elsewhere):
    refused = kitchen("ssh", "nowhere", "--name", "a", "--backend", "toy", "--model", "toy")
    assert refused.exit_code == 1 and "Connection refused" in refused.output
    wrong = kitchen("ssh", "gpu1", "--name", "b", "--backend", "tooy", "--model", "toy", "--command", KITCHEN)
    assert wrong.exit_code == 1 and "did you mean 'toy'" in wrong.output
    missing = kitchen("ssh", "gpu1", "--name", "c", "--backend", "toy", "--model", "toy", "--command", "no-kitchen-here")
    assert missing.exit_code == 1 and "no-kitchen-here" in missing.output
    assert not all_launches() and kitchen("ssh", "gpu1").exit_code == 2
    for words in (["--name", "../x"], ["--model", "a\nb"], ["--idle-minutes", "0"]):
        assert kitchen("ssh", "gpu1", "--backend", "toy", "--model", "toy", *words).exit_code == 2


def test_a_server_as_a_job(elsewhere):
    served = ["--backend", "toy", "--model", "toy", "--command", KITCHEN]
    done = kitchen("slurm", "--name", "job", *served, "--partition", "gpu", "--sbatch", "constraint=a100")
    assert done.exit_code == 0 and "not yet" in done.output, done.output
    script = (find_launch("job").folder / "job.sh").read_text()
    key = find_launch("job").key_file.read_text().strip()
    assert "#SBATCH --partition=gpu" in script and "#SBATCH --constraint=a100" in script and key not in script
    for _ in range(600):
        said = kitchen("status", "job").output
        if find_launch("job").address:
            break
        time.sleep(0.05)
    assert find_launch("job").address in said
    assert ask(find_launch("job")) == "toy" and key not in (find_launch("job").folder / "log").read_text()
    assert kitchen("stop", "job").exit_code == 0 and not all_launches()
    wrong = kitchen("slurm", "--name", "x", "--backend", "toy", "--model", "toy", "--partition", "gpu\n#SBATCH --exclusive")
    assert wrong.exit_code == 2 and "sbatch cannot be asked" in wrong.output


def test_a_job_ends_when_it_is_told_to(tmp_path):
    plan = ServePlan("mine", backend="toy", models=["toy"], max_hours=25.5)
    script = job_script(plan, SlurmJob(gpus=0), tmp_path)
    assert "#SBATCH --time=25:30:00" in script and "--gpus" not in script and "#SBATCH --signal=B:TERM@60" in script
    assert script.rstrip().splitlines()[-1].startswith("exec kitchen serve")  # Slurm tells the server itself
