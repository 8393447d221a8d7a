"""What several test modules use."""

import json
import os
import signal

import pytest

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before NumPy: more threads only wait for each other on tiny products
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to Ctrl-C


def pytest_collection_modifyitems(items):
    """Tests in a browser come last: while one is open, Playwright keeps an event loop in this thread."""
    items.sort(key=lambda item: "browser" in item.path.parts)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Every test keeps its runs in a folder of its own."""
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("KITCHEN_RUN_DIR", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def chats(tmp_path):
    """A small JSON-lines file of conversations."""

    def write(rows, name="chats.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write
