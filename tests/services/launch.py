"""`make services`: launchers against the real thing: OpenSSH's server on this machine, and the function of Modal's package run here.

    python tests/services/launch.py [--environment FOLDER]

A row is left out, and named, where sshd is not installed. Modal needs no account for this: `.local()` runs the function that a container runs.
"""

import argparse
import getpass
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KITCHEN = f"env PYTHONPATH={ROOT} {sys.executable} -c 'from kitchen.cli.main import main; main(prog_name=\"kitchen\")'"
MODAL = """
import sys, threading, json
from pathlib import Path
from kitchen.launch.modal import ModalMachine, launch_modal, modal_app
from kitchen.launch.plan import ServePlan, answers
from kitchen.types import BackendError
import os
folder, key = sys.argv[1], "tml-" + "m" * 40
plan = ServePlan("probe", backend="toy", models=["tiny=toy"], max_hours=0.002)
app, start = modal_app(plan, ModalMachine(local_source=True), key)
os.environ["KITCHEN_SERVE_KEY"] = key  # in a container it comes as the secret
told = []
ended = start.local(plan.words(), folder, 0, lambda address: told.append((address, answers(address, key), answers(address, key[:-1]))))
assert ended == 0 and told and told[0][1] and not told[0][2], (ended, told)
try:
    launch_modal(plan, ModalMachine())
    raise AssertionError("there is an account here")
except BackendError as error:
    words = str(error)
print("modal", __import__("modal").__version__, "served here until its hour was over; without an account:", words[:80])
"""


def kitchen(*words: str, **more: str) -> str:
    """What the command says."""
    code = "from kitchen.cli.main import main; main(prog_name='kitchen')"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **more})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def by_ssh(folder: Path) -> str:
    """A server through OpenSSH's own: start, ask, status, stop."""
    for name in ("host", "mine"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "keys").write_text((folder / "mine.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = [f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", f"AuthorizedKeysFile {folder / 'keys'}", "StrictModes no",
              "PasswordAuthentication no", f"PidFile {folder / 'sshd.pid'}", "PermitRootLogin prohibit-password", "UsePAM no"]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(config) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = subprocess.Popen([shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or "sshd", "-D", "-f", str(folder / "sshd_config")])
    runs = {"KITCHEN_RUNS": str(folder / "runs")}
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        name = f"probe-{os.getpid()}"
        words = ["launch", "ssh", f"{getpass.getuser()}@127.0.0.1", "--port", str(port), "--identity", str(folder / "mine"), "--name", name]
        words += [word for option in ("StrictHostKeyChecking=no", f"UserKnownHostsFile={folder / 'known'}") for word in ("--ssh-option", option)]
        began = time.monotonic()
        said = kitchen(*words, "--backend", "toy", "--model", "it's $HOME=toy", "--command", KITCHEN, **runs)
        seconds = time.monotonic() - began
        address = next(line.split()[1] for line in said.splitlines() if line.startswith("address"))
        key = (folder / "runs" / "launch" / name / "key").read_text().strip()
        commands = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert key not in commands and key not in said
        assert "running" in kitchen("launch", "status", name, **runs) and address
        kitchen("launch", "stop", name, **runs)
        assert not list((folder / "runs" / "launch").glob("*/launch.json"))
        shutil.rmtree(Path.home() / ".kitchen" / "launch" / name)
        return f"started in {seconds:.1f} s at {address}, asked, looked at and stopped; its key in no command"
    finally:
        sshd.terminate()
        sshd.wait()


def modal_python(folder: Path) -> Path:
    """Python with Modal's package, over the packages of this environment."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "modal>=1.0"], check=True)
        site = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True)
        Path(site.stdout.strip(), "zz_behind.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        (folder / "done").touch()
    return python


def on_modal(folder: Path, environment: Path) -> str:
    """The function that a container runs, here."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "KITCHEN_RUNS": str(folder / "runs"), "MODAL_CONFIG_PATH": str(folder / "none.toml")}
    done = subprocess.run([modal_python(environment), "-W", "ignore", "-c", MODAL, str(folder / "state")], capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Both, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=ROOT / ".services" / "env-modal")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        rows = {"modal": lambda: on_modal(Path(name), given.environment.absolute())}
        if shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"):
            rows["ssh"] = lambda: by_ssh(Path(name))
        else:
            print("left out  ssh     sshd is not installed (openssh-server)")
        for row, prove in rows.items():
            try:
                print(f"ok        {row:<7} {prove()}", flush=True)
            except Exception as error:
                failed = True
                print(f"FAILED    {row:<7} {str(error)[-2000:]}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
