"""The tree shows the architecture: pages import only lower pages, spine modules stay light, nothing stale remains."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "pandas",
    "plotly",
    "IPython",
    "ipywidgets",
    "papermill",
    "nbconvert",
}
BY_HAND = {"__init__.py", "_modidx.py"}


def module_of(page: Path) -> str:
    """The module a page exports to, such as 'train.sft'; empty for pages that export nothing."""
    for cell in nbformat.read(page, 4).cells:
        for line in cell.source.splitlines():
            if cell.cell_type == "code" and line.startswith("#| default_exp"):
                return line.split()[-1]
    return ""


PAGES = {module_of(page): page for page in sorted((ROOT / "nbs").rglob("*.ipynb"))}
PAGES.pop("", None)
# a folder's two digits are its layer; inside a folder the digits are the reading order
NUMBERS = {module: (int(page.parent.name[:2]), int(page.name[0])) for module, page in PAGES.items()}


def imported(module: str) -> set[str]:
    """Modules of kitchen that a module's exported code imports, wherever in the code the import stands."""
    path = ROOT / "kitchen" / (module.replace(".", "/") + ".py")
    package = f"kitchen.{module}".rsplit(".", 1)[0].split(".")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {full, *(f"{full}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("kitchen.") for name in found if name.startswith("kitchen.")} & PAGES.keys()


@pytest.mark.parametrize("module", PAGES)
def test_exported_code_imports_only_lower_pages(module):
    higher = {name for name in imported(module) if NUMBERS[name] >= NUMBERS[module]}
    same_shelf = {name for name in higher if module.startswith("adapters.") and name.startswith("adapters.")}
    assert not higher - same_shelf, f"{PAGES[module].name} imports {higher}, which do not stand below it"


@pytest.mark.parametrize("module", [name for name in PAGES if not name.startswith("adapters.")])
def test_nobody_imports_an_adapter(module):
    assert not {name for name in imported(module) if name.startswith("adapters.")}


def test_no_stale_module_remains():
    made = {ROOT / "kitchen" / (module.replace(".", "/") + ".py") for module in PAGES}
    there = {path for path in (ROOT / "kitchen").rglob("*.py") if path.name not in BY_HAND}
    assert there == made


@pytest.mark.parametrize("module", [name for name, number in NUMBERS.items() if number < (90, 0)])
def test_spine_modules_are_light(module):
    code = f"import sys, kitchen.{module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [], f"importing kitchen.{module} loads {done.stdout}"


def test_importing_kitchen_loads_next_to_nothing():
    code = "import sys; before = set(sys.modules); import kitchen; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"numpy", "pydantic"})
