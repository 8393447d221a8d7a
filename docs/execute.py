"""Run notebooks cell by cell, several at once, and keep what they showed until they or the library change.

A page runs in a forked process that has imported the heavy libraries already: a kernel for each of a hundred pages would spend
most of its time on starting. An error in a cell ends its page, and the build.
"""

import hashlib
import json
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from contextlib import chdir
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = ("eval: false", "slow", "notest")  # directives of cells that `nbdev_test` does not run either
HEAVY = ("numpy", "pandas", "plotly.graph_objects", "torch", "transformers", "execnb.shell", "pytest")
PATIENCE = 900  # seconds for one page
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "PLOTLY_RENDERER": "plotly_mimetype",  # a figure as data; outside a kernel plotly would add its 5 MB script to each
    "IN_TEST": "1",
}


class PageError(Exception):
    """Pages that did not run to their end; the message names each, with the cell and its error."""


@dataclass(frozen=True)
class Job:
    """A notebook to run."""

    notebook: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)  # put behind the cell tagged "parameters"
    environment: Mapping[str, str] = field(default_factory=dict)


def directives(source: str) -> list[str]:
    """What the lines `#| …` of a cell say, such as "export" or "eval: false"."""
    lines = [line.strip() for line in source.splitlines()]
    return [" ".join(line[2:].split()) for line in lines if line.startswith("#|")]


def runs(cell: NotebookNode) -> bool:
    """Whether the cell is code that is meant to run."""
    return cell.cell_type == "code" and not set(directives(cell.source)) & set(SKIPPED)


def with_parameters(notebook: NotebookNode, parameters: Mapping[str, Any]) -> NotebookNode:
    """The notebook with a cell of assignments behind its parameters, as papermill would put it."""
    if not parameters:
        return notebook
    lines = [
        "# small, so that the page is built quickly",
        *(f"{name} = {value!r}" for name, value in parameters.items()),
    ]
    tagged = [
        number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    ]
    if not tagged:
        raise PageError(f"there is no cell tagged 'parameters' to set {', '.join(parameters)}")
    notebook.cells.insert(
        tagged[0] + 1, new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
    )
    return notebook


def code_digest() -> str:
    """One hash of everything that decides what a page shows, beside the page itself."""
    files = [
        path
        for path in sorted((ROOT / "kitchen").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    whole = hashlib.sha256()
    for path in [*files, Path(__file__)]:
        whole.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def key(job: Job, code: str) -> str:
    """The name under which the executed notebook is kept: equal for equal cells, parameters and code."""
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(job.notebook, 4).cells]
    said = json.dumps([cells, dict(job.parameters), dict(job.environment), code], default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def outputs(shown: Iterable[Mapping[str, Any]]) -> list[NotebookNode]:
    """What a cell showed, as a notebook stores it; a display that shows itself leaves an empty one behind."""
    whole = [dict(item) for item in shown if item["output_type"] == "stream" or item.get("data")]
    return nbformat.reads(json.dumps(sheet(whole)), 4).cells[0].outputs


def sheet(found: list[dict[str, Any]]) -> dict[str, Any]:
    """A notebook of one cell with these outputs: reading it joins the lines of texts that come in lists."""
    cell = {
        "cell_type": "code",
        "id": "0",
        "source": "",
        "metadata": {},
        "execution_count": None,
        "outputs": found,
    }
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}


def run_cell(shell: Any, source: str) -> list[Mapping[str, Any]]:
    """What a cell shows; raises PageError if it fails."""
    from IPython.utils.capture import capture_output

    # execnb asks a result for its looks once more when it has stopped listening: one that shows itself would do so twice
    with capture_output():
        shown = shell.run(source)
    if shell.exc:
        raise PageError(f"{source}\n\n{''.join(traceback.format_exception(shell.exc))}")
    return list(shown)


def executed(job: Job) -> NotebookNode:
    """The notebook with the outputs of this moment; raises PageError at the first cell that fails."""
    from execnb.shell import CaptureShell

    notebook = with_parameters(nbformat.read(job.notebook, 4), job.parameters)
    shell = CaptureShell(job.notebook)
    for cell in filter(runs, notebook.cells):
        cell.outputs = outputs(run_cell(shell, cell.source))
    return notebook


def work(job: Job, target: Path) -> str:
    """Run a notebook where it lies, and keep it; why it failed, or nothing."""
    os.environ.update(job.environment)
    with tempfile.TemporaryDirectory(prefix="kitchen-docs-") as runs_folder, chdir(job.notebook.parent):
        os.environ["KITCHEN_RUNS"] = runs_folder
        try:
            notebook = executed(job)
        except PageError as error:
            return str(error)
    unfinished = target.with_suffix(f".{os.getpid()}")
    nbformat.write(notebook, unfinished)
    unfinished.replace(target)  # whole or not at all: the build may be stopped at any moment
    return ""


def preload() -> None:
    """Import what most pages need, once, for every process that is forked from this one; nothing is computed before the fork."""
    for name in HEAVY:
        if find_spec(name.partition(".")[0]):
            import_module(name)
    # plotly reads its variable when it is imported, which the caller may have done before us
    import_module("plotly.io").renderers.default = ENVIRONMENT["PLOTLY_RENDERER"]


def run_all(jobs: Mapping[str, Job], cache: Path, processes: int) -> dict[str, Path]:
    """Every job's executed notebook, by name; only those that are not in the cache are run."""
    cache.mkdir(parents=True, exist_ok=True)
    code = code_digest()
    kept = {name: cache / f"{key(job, code)}.ipynb" for name, job in jobs.items()}
    missing = [name for name in jobs if not kept[name].exists()]
    print(f"{len(jobs) - len(missing)} notebooks are in the cache, {len(missing)} are run", flush=True)
    if missing:
        run_missing({name: jobs[name] for name in missing}, kept, processes)
    for path in set(cache.glob("*.ipynb")) - set(kept.values()):
        path.unlink()
    return kept


def run_missing(jobs: Mapping[str, Job], kept: Mapping[str, Path], processes: int) -> None:
    """Run jobs side by side; raises PageError with all that failed."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    preload()
    failed = {}
    # a process serves one page: what a page changes in it, no other page sees
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        waiting = {name: pool.apply_async(work, (job, kept[name])) for name, job in jobs.items()}
        for name, result in waiting.items():
            try:
                reason = result.get(PATIENCE)
            except multiprocessing.TimeoutError:
                reason = f"no end after {PATIENCE} s, or its process died"
            print(f"  {'FAILED' if reason else 'ran'} {name}", flush=True)
            failed |= {name: reason} if reason else {}
    if failed:
        raise PageError(
            "\n\n".join(f"{name} failed in this cell:\n{reason}" for name, reason in failed.items())
        )
