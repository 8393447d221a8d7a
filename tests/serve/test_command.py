"""The command `kitchen serve`: keys, what is missing, and that nobody who does not serve pays for it."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from kitchen.cli.main import main
from kitchen.serve.keys import KeyRing
from kitchen.types import InvalidValue


def kitchen(*words):
    return CliRunner().invoke(main, ["serve", *words])


def test_keys_are_made_and_forgotten(tmp_path):
    made = kitchen("--folder", str(tmp_path), "--new-key", "ann").output.strip()
    ring = KeyRing(tmp_path / "keys.json")
    assert made.startswith("tml-") and ring.owner({b"x-api-key": made.encode()})
    assert made not in (tmp_path / "keys.json").read_text()
    assert kitchen("--folder", str(tmp_path), "--new-key", "ann").exit_code == 2
    assert kitchen("--folder", str(tmp_path), "--remove-key", "ann").exit_code == 0
    assert kitchen("--folder", str(tmp_path), "--remove-key", "ann").exit_code == 2
    assert not KeyRing(tmp_path / "keys.json").hashes


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--model", "toy"),
        ("--backend", "tooy", "--model", "toy"),
        ("no-such-run",),
        ("--backend", "toy", "--model", "toy", "--backend.speed", "9"),
        ("--backend", "toy", "--model", "toy", "--host", "256.1.1.1"),
    ],
)
def test_what_cannot_be_served_is_said(tmp_path, words):
    done = kitchen("--folder", str(tmp_path), "--port", "0", *words)
    assert done.exit_code == 2 and "Traceback" not in done.output, done.output


def test_a_short_key_of_ones_own_is_refused(tmp_path):
    with pytest.raises(InvalidValue, match="at least 20"):
        KeyRing(tmp_path / "keys.json", {"mine": "secret"})


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra_the_command_says_what_to_install(tmp_path, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from kitchen.cli.main import main; main(prog_name='kitchen')"
    words = ["serve", "--backend", "toy", "--model", "toy", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'crucible-kitchen[serve]'" in done.stderr


def test_whoever_does_not_serve_imports_no_server():
    code = "import sys, kitchen, kitchen.cli.main; print([one for one in ('fastapi', 'uvicorn', 'starlette') if one in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
