"""Write the stub beside each package's `__init__.py`: one line for every public name, from its modules' `__all__`.

The stubs are what `lazy_loader` reads when a name is first used, and what type checkers and completers read.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "kitchen"
# siblings of one shape have names in common (`train`, `render`): of these packages one imports modules
MODULES_ONLY = ("adapters", "cli", "train", "workflows")
FRONT = {
    "Kitchen": "session.kitchen",
    "check": "inspection.dataset_check",
    "compare": "reports.compare",
    "dashboard": "widgets.dashboard",
    "runs": "reports.runs_table",
}
HEADER = "# made from the modules' __all__ by `make prepare`\n"


def public_names(module: Path) -> list[str]:
    """What a module exports."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets):
            return ast.literal_eval(node.value)
    return []


def submodules(package: Path) -> list[Path]:
    """Modules and packages inside a package."""
    inside = [item for item in package.iterdir() if (item / "__init__.py").is_file() or item.suffix == ".py"]
    return sorted(item for item in inside if not item.name.startswith("_"))


def stub(package: Path) -> str:
    """The text of a package's stub."""
    inside = submodules(package)
    lines = [f"from . import {item.stem} as {item.stem}" for item in inside]
    home: dict[str, str] = dict(FRONT) if package == ROOT else {}
    if package != ROOT and package.relative_to(ROOT).parts[0] not in MODULES_ONLY or package.parent.name == "adapters":
        taken = {item.stem for item in inside}  # a module's own name stays the module's
        for item in inside:
            for name in public_names(item) if item.suffix == ".py" else []:
                if home.setdefault(name, item.stem) != item.stem:
                    sys.exit(f"{name} is public in {package.name}.{home[name]} and in {package.name}.{item.stem}: rename one")
        home = {name: module for name, module in home.items() if name not in taken}
    lines += [f"from .{module} import {name} as {name}" for name, module in sorted(home.items(), key=lambda pair: pair[::-1])]
    version = "__version__: str\n" if package == ROOT else ""
    return HEADER + version + "\n".join(lines) + "\n"


def packages(root: Path) -> Iterator[Path]:
    """The package itself and every package in it."""
    yield from (path.parent for path in sorted(root.rglob("__init__.py")))


if __name__ == "__main__":
    ROOT = Path(sys.argv[1]) / "kitchen" if len(sys.argv) > 1 else ROOT
    for folder in packages(ROOT):
        (folder / "__init__.pyi").write_text(stub(folder), encoding="utf-8")
