"""The tree shows the architecture: pages import only lower pages, spine modules stay light, nothing stale remains."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "code" and line.startswith("#| default_exp"):
                return line.split()[-1]
    return ""


def place_of(page: Path) -> tuple[int, ...]:
    """Where a page stands: the digits of its folders and its own, so (30, 2) for nbs/30_losses/02_policy.ipynb."""
    digits = (re.match(r"\d+", part) for part in page.relative_to(ROOT / "nbs").parts)
    return tuple(int(found.group()) for found in digits if found)


def layer_of(module: str) -> int:
    """The first digits on the way to a module's page: of its folder, or its own."""
    return PLACES[module][0]


PAGES = {
    module_of(page): page
    for page in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in page.parts
}
PAGES.pop("", None)
PLACES = {module: place_of(page) for module, page in PAGES.items()}
SPINE = sorted((module for module in PAGES if layer_of(module) < 90), key=lambda module: PLACES[module])


def source_of(module: str) -> ast.Module:
    """A module's code, parsed."""
    return ast.parse((ROOT / "kitchen" / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


def exported_by(module: str) -> set[str]:
    """What a generated module lists in `__all__`."""
    lists = [node.value for node in source_of(module).body if isinstance(node, ast.Assign)
             if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"]  # fmt: skip
    return {name for found in lists for name in ast.literal_eval(found)}


# a name taken from a package comes from one of its modules: kitchen.losses.Objective from kitchen.losses.policy
THROUGH_PACKAGE = {
    f"{module.rpartition('.')[0]}.{name}": module for module in PAGES if "." in module for name in exported_by(module)
}


def imported(module: str) -> set[str]:
    """Modules of kitchen that a module's exported code imports, wherever in the code the import stands."""
    package = f"kitchen.{module}".rsplit(".", 1)[0].split(".")
    found = set()
    for node in ast.walk(source_of(module)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {full, *(f"{full}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {name.removeprefix("kitchen.") for name in found if name.startswith("kitchen.")}
    return {name if name in PAGES else THROUGH_PACKAGE.get(name, "") for name in names} & PAGES.keys()


@pytest.mark.parametrize("module", PAGES)
def test_exported_code_imports_only_lower_pages(module):
    """In a lower layer, or earlier on the same shelf; adapters may also name their neighbours."""
    higher = {name for name in imported(module) if PLACES[name] >= PLACES[module]}
    neighbours = {name for name in higher if module.startswith("adapters.") and name.startswith("adapters.")}
    assert not higher - neighbours, f"{PAGES[module].name} imports {higher}, which do not stand below it"


@pytest.mark.parametrize("module", [name for name in PAGES if not name.startswith("adapters.")])
def test_nobody_imports_an_adapter(module):
    assert not {name for name in imported(module) if name.startswith("adapters.")}


def test_no_stale_module_remains():
    made = {ROOT / "kitchen" / (module.replace(".", "/") + ".py") for module in PAGES}
    there = {path for path in (ROOT / "kitchen").rglob("*.py") if path.name not in BY_HAND}
    assert there == made


WATCH = """
import json, sys
from importlib import import_module

heavy, seen = set(sys.argv[1].split()), set()
for module in sys.argv[2:]:
    import_module("kitchen." + module)
    new, seen = (heavy & set(sys.modules)) - seen, heavy & set(sys.modules)
    if new:
        print(json.dumps([module, sorted(new)]))
"""


def brought(modules, names=HEAVY) -> dict[str, list[str]]:
    """Which of these names each module is the first to load, when all are imported in one fresh process in this order."""
    command = [sys.executable, "-c", WATCH, " ".join(names), *modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_spine_modules_are_light():
    assert brought(SPINE) == {}, "importing these loads a heavy library"


def test_what_is_loaded_is_noticed_once():
    assert brought(["types", "config", "types"], {"numpy", "pydantic"}) == {"types": ["numpy"], "config": ["pydantic"]}


def test_importing_kitchen_loads_next_to_nothing():
    code = "import sys; before = set(sys.modules); import kitchen; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"numpy", "pydantic"})
