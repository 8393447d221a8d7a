"""JupyterLab and a headless Chromium, as people use kitchen: real clicks, real pictures. Skipped where one of them is missing,
unless KITCHEN_BROWSER_TESTS=1 says that they must be there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import nbformat
import psutil
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}


def missing():
    """What browser tests need and is not here; empty if all is."""
    found = [] if CHROMIUM else ["Chromium"]
    for name in ("jupyterlab", "playwright"):
        try:
            __import__(name)
        except ImportError:
            found.append(name)
    return ", ".join(found)


def pytest_collection_modifyitems(items):
    """Skip, or fail if they were demanded."""
    reason = missing()
    here = [item for item in items if Path(__file__).parent in Path(item.fspath).parents]
    if reason and here and os.environ.get("KITCHEN_BROWSER_TESTS"):
        raise pytest.UsageError(f"browser tests are demanded, but {reason} is missing")
    for item in here if reason else []:
        item.add_marker(pytest.mark.skip(reason=f"{reason} is missing"))


def free_port():
    """A port that nobody listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Lab:
    """A JupyterLab over a folder of its own."""

    token = "kitchen"

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
        self.work = folder / "work"
        self.work.mkdir()
        places = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "KITCHEN_RUNS")}
        environment = {**os.environ, **places, "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "HF_HUB_OFFLINE": "1"}
        environment.pop("KITCHEN_HEADLESS", None)
        environment.pop("KITCHEN_RUN_DIR", None)
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}", "--allow-root",
            f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.work}", "--ServerApp.port_retries=0",
        ]  # fmt: skip
        self.log = (folder / "lab.log").open("w")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT, cwd=self.work)
        self.wait()

    def wait(self, seconds=90):
        """Until the server answers."""
        for _ in range(seconds * 5):
            try:
                self.ask("api/status")
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{(self.folder / 'lab.log').read_text()[-3000:]}")

    def ask(self, path, method="GET"):
        """The server's answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}?token={self.token}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def notebook(self, name, *cells):
        """A notebook of code cells; its address."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.work / name)
        return self.address(name)

    def address(self, name):
        """Where a notebook opens, alone in its page."""
        return f"http://127.0.0.1:{self.port}/doc/tree/{name}?token={self.token}&reset"

    def end_kernels(self):
        """No kernel of an earlier test runs on."""
        for kernel in self.ask("api/kernels"):
            self.ask(f"api/kernels/{kernel['id']}", "DELETE")

    def kill_kernels(self):
        """Kernels die, as where memory runs out."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if "ipykernel_launcher" in " ".join(process.cmdline()):
                process.kill()

    def close(self):
        """Stop the server and its kernels."""
        self.end_kernels()
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


class Tab:
    """A page of the browser, with what went wrong in it."""

    def __init__(self, page):
        self.page, self.errors, self.outside = page, [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)[:400]))
        page.on("console", lambda said: self.errors.append(said.text[:400]) if said.type == "error" else None)
        page.on("request", lambda request: self.outside.append(request.url) if is_outside(request.url) else None)

    def open(self, address):
        """Open a notebook and wait for its kernel."""
        self.page.goto(address, wait_until="domcontentloaded")
        self.settle()

    def settle(self, cells=".jp-Notebook .jp-CodeCell"):
        """Wait until the notebook is there and its kernel idle."""
        self.page.wait_for_selector(cells, timeout=60_000)
        self.page.get_by_text("| Idle").wait_for(timeout=60_000)
        self.page.wait_for_selector(".jp-Spinner", state="detached", timeout=60_000)

    def cell(self, number):
        """A code cell."""
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def run(self, number, wait=True):
        """Run a cell; wait until it is done."""
        cell = self.cell(number)
        cell.scroll_into_view_if_needed()
        cell.locator(".jp-InputArea-editor").click()
        self.page.keyboard.press("Control+Enter")
        if wait:
            self.until(lambda: cell.locator(".jp-InputPrompt").inner_text().strip("[]: ").isdecimal(), 90)
        return cell

    def until(self, condition, seconds=15):
        """Wait for a condition."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s in vain; errors in the page: {self.errors[:3]}")
            self.page.wait_for_timeout(40)

    def shot(self, name):
        """Keep a picture, outside the repository."""
        folder = Path(os.environ.get("KITCHEN_SCREENSHOTS") or Path(os.environ.get("TMPDIR", "/tmp")) / "kitchen-screenshots")
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png")
        return folder / f"{name}.png"


def is_outside(address):
    """Whether a request leaves this machine."""
    return not address.startswith(("data:", "blob:", "about:", "file:")) and "//127.0.0.1" not in address


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """One JupyterLab for all tests."""
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, request):
    """A fresh page at 1280 pixels; no kernel is left behind."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    yield Tab(page)
    page.close()
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").end_kernels()
