"""Figures of the tree: rooms, names, types, cells. `python benchmarks/house.py [FOLDER]` prints one table for a checkout.

Everything is read from the sources with `ast`, so that an older checkout can be measured beside this one; only the number of
names under `dir(k)` imports the package, in a process of its own.
"""

import argparse
import ast
import collections
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PARTICIPLE = re.compile(r"^_?[a-z]+(ed|own|ould|old|ound|aid|iven|one|ept|ent|unk|ought|een)$")
FIELD_WORDS = {"sorted", "done", "seed", "embed", "need", "speed", "feed", "one", "token", "clone", "own", "down", "shown", "hold", "event", "parent"}


def modules(root: Path) -> dict[str, ast.Module]:
    """Every generated module of the package, parsed; packages' `__init__` and nbdev's index left out."""
    paths = [path for path in sorted((root / "kitchen").rglob("*.py")) if path.name not in ("__init__.py", "_modidx.py")]
    return {path.relative_to(root / "kitchen").with_suffix("").as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods."""
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def exported(tree: ast.Module) -> list[str]:
    """A module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets):
            return ast.literal_eval(node.value)
    return []


def any_parameters(tree: ast.Module) -> tuple[int, int, int]:
    """Parameters annotated `Any`, those of them called `config`, and all annotated ones."""
    found = [arg for function in functions(tree) for arg in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    typed = [arg for arg in found if arg.annotation is not None]
    loose = [arg for arg in typed if isinstance(arg.annotation, ast.Name) and arg.annotation.id == "Any"]
    return len(loose), sum(arg.arg == "config" for arg in loose), len(typed)


def export_cells(root: Path) -> list[int]:
    """Lines of each export cell."""
    sizes = []
    for page in sorted((root / "nbs").rglob("*.ipynb")):
        for cell in json.loads(page.read_text("utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and re.search(r"^#\|\s*export", source, re.MULTILINE):
                sizes.append(source.count("\n"))
    return sizes


def session_names(root: Path) -> str:
    """How many public names `dir(Kitchen(...))` lists."""
    code = "from kitchen import Kitchen; k = Kitchen('sft', backend='toy'); print(sum(not n.startswith('_') for n in dir(k)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, text=True)
    return done.stdout.strip() or "?"


def figures(root: Path) -> dict[str, str]:
    """The table."""
    trees = modules(root)
    folders = collections.Counter(name.rpartition("/")[0] or "kitchen" for name in trees)
    public = [(module, name) for module, tree in trees.items() for name in exported(tree)]
    defined: dict[str, set[str]] = collections.defaultdict(set)
    for module, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                defined[node.name].add(module)
    every = [function.name for tree in trees.values() for function in functions(tree)]
    loose, configs, typed = (sum(values) for values in zip(*map(any_parameters, trees.values()), strict=True))
    cells = export_cells(root)
    ignores = sum(path.read_text("utf-8").count("pyright: ignore") for path in (root / "kitchen").rglob("*.py"))
    shared = sorted(name for name, where in defined.items() if len(where) > 1)
    largest = folders.most_common(1)[0]
    return {
        "modules": str(len(trees)),
        "folders; most modules in one": f"{len(folders)}; {largest[1]} in {largest[0]}",
        "exported names": str(len(public)),
        "exported names in more than one module": str(sum(n > 1 for n in collections.Counter(name for _, name in public).values())),
        "classes defined in more than one module": f"{len(shared)} {' '.join(shared)}".strip(),
        "functions named by a participle": str(sum(bool(PARTICIPLE.match(name)) and name.strip("_") not in FIELD_WORDS for name in every)),
        "names under dir(k)": session_names(root),
        "parameters annotated Any": f"{loose} of {typed}, {configs} of them `config`",
        "pyright: ignore": str(ignores),
        "export cells: median, over 80 lines, longest": f"{statistics.median(cells):g}, {sum(size > 80 for size in cells)}, {max(cells)}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1], help="a checkout; default: this one")
    for what, figure in figures(parser.parse_args().folder.resolve()).items():
        print(f"{what:<46} {figure}")
