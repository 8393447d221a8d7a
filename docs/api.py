"""The API reference: a page for each module with everything its `__all__` names, and parameters' comments beside them."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from library import NAME, exported, home, modules

MARKUP = re.compile(r"(`[^`]+`|\$(?! )[^$\n]+(?<! )\$)")  # the only markup of docstrings: code and formulas
LONGEST_VALUE = 88  # characters of a constant's value that a line takes; a longer one is read in its page


def children(parent: str) -> list[str]:
    """Modules directly inside a package."""
    return sorted(name for name in modules() if name.rpartition(".")[0] == parent)


def underlined(title: str, sign: str = "=") -> str:
    """A heading of reStructuredText."""
    return f"{title}\n{sign * len(title)}\n"


def module_page(name: str, page: str = "") -> str:
    """The reference of one module, as reStructuredText; `page` is the address of the notebook that it is written in."""
    module = modules()[name]
    parts = [underlined(name), f".. automodule:: {name}\n"]
    parts += [f"Written and explained in :doc:`/{page}`.\n"] if page else []
    parts += [entry(module, item, value) for item, value in exported(module).items()]
    # what lies in the package itself stands in the table of the index already
    parts += [toctree(children(name))] if children(name) and name != NAME else []
    return "\n".join(parts)


def toctree(names: list[str]) -> str:
    """A table of contents of modules, each by the last part of its name."""
    lines = [f"   {name.rpartition('.')[2]} <{name}>" for name in names]
    return "\n".join([".. toctree::", "   :maxdepth: 1", "", *lines, ""])


def index_page() -> str:
    """All modules."""
    words = "Every public name of every module: what its ``__all__`` lists. Comments beside parameters stand below signatures.\n"
    return "\n".join([underlined("API"), words, toctree([NAME, *children(NAME)])])


def entry(module: ModuleType, name: str, value: Any) -> str:
    """What sphinx is told about one public name."""
    full, place = f"{module.__name__}.{name}", home(module, name, value)
    if place != module.__name__:
        return f"``{name}``: see :py:obj:`{place}.{name}`.\n"
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        hidden = (
            "\n   :exclude-members: model_config, model_post_init" if "model_fields" in dir(value) else ""
        )
        return f".. {kind}:: {full}\n   :members:{hidden}\n"
    if inspect.isroutine(value) or inspect.isfunction(inspect.unwrap(value)):
        return f".. autofunction:: {full}\n"
    return constant(module, name, value)


def constant(module: ModuleType, name: str, value: Any) -> str:
    """A constant as its source spells it: the value in memory would show addresses, and pages of numbers."""
    node = assignments(module).get(name)
    options = [f"   :type: {ast.unparse(node.annotation)}"] if isinstance(node, ast.AnnAssign) else []
    source = ast.unparse(node.value) if node is not None and node.value is not None else ""
    options += [f"   :value: {source}"] if source and len(source) <= LONGEST_VALUE else []
    about = [rst(words(module, node))] if node is not None and words(module, node) else []
    if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        about += ["Its names: " + ", ".join(f"``{key}``" for key in value if key.strip()) + "."]
    body = "".join(f"\n   {line}\n" for line in about)
    # what stands before it may have left another module in force
    return "\n".join([f".. py:currentmodule:: {module.__name__}\n", f".. py:data:: {name}", *options, body])


@cache
def tree(module: ModuleType) -> tuple[ast.Module, Mapping[int, str]]:
    """A module's syntax tree, and its comments by line."""
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT
    }
    return ast.parse(source), comments


@cache
def assignments(module: ModuleType) -> dict[str, ast.Assign | ast.AnnAssign]:
    """The assignments to single names at the top of a module."""
    found: dict[str, ast.Assign | ast.AnnAssign] = {}
    for node in tree(module)[0].body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign) and len(node.targets) == 1
            else getattr(node, "target", None)
        )
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name):
            found[target.id] = node
    return found


def words(module: ModuleType, node: ast.stmt) -> str:
    """The comment on the line on which a statement begins."""
    return tree(module)[1].get(node.lineno, "")


def docments(value: Any) -> dict[str, str]:
    """The comments beside a function's parameters or a class's fields ("docments"); "return" is the result."""
    module = modules().get(getattr(value, "__module__", ""))
    node = definition(module, getattr(value, "__qualname__", "")) if module else None
    if module is None or node is None:
        return {}
    comments = tree(module)[1]
    if isinstance(node, ast.ClassDef):
        fields = [
            part
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        ]
        noted = {ast.unparse(part.target): comments.get(part.end_lineno or 0, "") for part in fields}
        maker = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        return {name: text for name, text in noted.items() if text} | (
            beside(maker[0], comments) if maker else {}
        )
    return beside(node, comments)


def beside(node: ast.FunctionDef | ast.AsyncFunctionDef, comments: Mapping[int, str]) -> dict[str, str]:
    """The comments on lines that hold one parameter each, and on the line of the result."""
    arguments = node.args
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    found: dict[int, list[str]] = {}
    for one in filter(None, every):
        found.setdefault(one.end_lineno or 0, []).append(one.arg)
    told = {
        names[0]: comments[line]
        for line, names in found.items()
        if len(names) == 1 and line in comments and line > node.lineno
    }
    line = node.returns.end_lineno if node.returns is not None else None
    if line in comments and line not in found and line != node.lineno:
        told["return"] = comments[line]
    return told


@cache
def definition(module: ModuleType, name: str) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Where a class, a function or a method is defined."""
    inside: list[ast.stmt] = tree(module)[0].body
    node = None
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        node = next((one for one in inside if isinstance(one, kinds) and one.name == part), None)
        if node is None:
            return None
        inside = node.body
    return node


def rst(text: str) -> str:
    """Plain words with code in backticks and formulas between dollars, as reStructuredText; nothing else in them is markup."""
    return "".join(marked(part) if MARKUP.fullmatch(part) else escaped(part) for part in MARKUP.split(text))


def marked(text: str) -> str:
    """A formula, or a piece in backticks: a name leads to its place where there is one."""
    if text.startswith("$"):
        return f":math:`{text[1:-1]}`"
    return f":py:obj:{text}" if re.fullmatch(r"`[A-Za-z_][\w.]*`", text) else f"`{text}`"


def escaped(text: str) -> str:
    """Words in which no sign is taken for markup."""
    return re.sub(r"([\\*|`]|_(?!\w)|:(?=\w+:))", r"\\\1", text)


def documented(lines: list[str], value: Any, told: Mapping[str, str]) -> list[str]:
    """A docstring's lines as reStructuredText, followed by what the comments and pydantic's fields say."""
    described = {name: text for name, text in field_words(value).items() if name not in told}
    fields = [
        f":param {name}: {rst(text)}" for name, text in (described | dict(told)).items() if name != "return"
    ]
    result = [f":returns: {rst(told['return'])}"] if "return" in told else []
    return [*(rst(line) for line in lines), "", *fields, *result, ""]


def field_words(value: Any) -> dict[str, str]:
    """The descriptions of a class of settings."""
    fields = vars(value).get("__pydantic_fields__", {}) if inspect.isclass(value) else {}
    return {name: item.description for name, item in fields.items() if item.description}
