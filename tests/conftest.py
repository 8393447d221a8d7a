"""What several test modules use."""

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).resolve().parent

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before NumPy: more threads only wait for each other on tiny products
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("any machine", settings(), deadline=None)  # a busy machine is slow, and nothing may depend on the clock
settings.load_profile("any machine")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C


def pytest_make_parametrize_id(val, argname):
    """Bytes name no test: compressed ones hold the clock, and workers that collect different names cannot share the work."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Whole runs come first, so that no worker is left alone with them; tests in a browser last: Playwright keeps an event loop open."""
    items.sort(key=lambda item: ("browser" in item.path.parts, item.get_closest_marker("whole_run") is None))


def skipped(session):
    """Places and reasons of skipped tests, but for those of kitchen.testing, which skips what a backend does not claim to do."""
    reports = session.config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    found = {(Path(report.longrepr[0]).resolve(), report.longrepr[2]) for report in reports}
    return sorted(f"{path}: {reason}" for path, reason in found if path.is_relative_to(TESTS))


def pytest_sessionfinish(session):
    """Where everything is installed that tests need, as in CI, a skipped test is a failure."""
    if os.environ.get("KITCHEN_NO_SKIPS") and not hasattr(session.config, "workerinput") and skipped(session):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    """Name the tests for which that is so."""
    if os.environ.get("KITCHEN_NO_SKIPS") and (found := skipped(terminalreporter._session)):
        terminalreporter.write_line("skipped, which KITCHEN_NO_SKIPS forbids:\n  " + "\n  ".join(found), red=True)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Every test keeps its runs in a folder of its own."""
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("KITCHEN_RUN_DIR", raising=False)
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def trust(tmp_path, monkeypatch):
    """What tests trust is forgotten after them, and is none of the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("KITCHEN_TRUSTED", raising=False)


@pytest.fixture
def chats(tmp_path):
    """A small JSON-lines file of conversations."""

    def write(rows, name="chats.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write
