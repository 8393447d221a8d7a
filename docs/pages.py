"""Notebooks as pages of the site: which there are and in what order, and what of a notebook is shown."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import nbformat
from execute import ROOT, directives
from library import NAME, homes, modules
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from kitchen.reports.export import _offline_copy

DROPPED = {"hide", "include: false"}  # directives of cells that the site leaves out
TAGS = {  # directive -> the tag by which myst-nb knows the same
    "echo: false": "remove-input",
    "hide_input": "remove-input",
    "output: false": "remove-output",
    "hide_output": "remove-output",
    "export": "export",
    "exporti": "export",
    "exports": "export",
}
OURS = "application/vnd.kitchen."  # values inside a report, for programs
LANGUAGE = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
CODE = re.compile(r"```.*?```|(?<![`\w\[])`(?P<name>[A-Za-z_]\w*)(?:\(\))?`(?![`\]])", re.DOTALL)
TEXTS = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}  # of the repository, and their pages
NOTEBOOK_LINK = re.compile(r"\]\((?!\w+:)(?:[^()#]*/)?(?P<stem>[\w.-]+)\.(?:ipynb|html)(?P<rest>#[^)]*)?\)")


@dataclass(frozen=True)
class Page:
    """A notebook, and where it stands in the site."""

    notebook: Path
    address: str  # in the site, without ending
    title: str
    summary: str = ""
    module: str = ""  # the module it is exported to, such as "kitchen.train.sft"


@dataclass(frozen=True)
class Section:
    """Pages that stand together: a folder of notebooks."""

    title: str
    address: str
    pages: list[Page] = field(default_factory=list)


def numbers_first(path: Path) -> list[tuple[int, str]]:
    """A sort key by which 2_b comes before 10_a, in folders and files."""
    parts = [re.match(r"(\d*)[_-]?(.*)", part) for part in path.with_suffix("").parts]
    return [(int(part[1] or 10**6), part[2]) for part in parts if part]


def notebooks(folder: Path) -> list[Path]:
    """Every notebook of a folder and its folders, in reading order; what begins with a dot or underscore is nobody's."""
    found = [path.relative_to(folder) for path in folder.rglob("*.ipynb")]
    seen = [path for path in found if not any(part.startswith((".", "_")) for part in path.parts)]
    return [folder / path for path in sorted(seen, key=numbers_first)]


def plain(name: str) -> str:
    """A file's or folder's name without the number that orders it."""
    return re.sub(r"^\d+[_-]?", "", name) or name


def module_of(notebook: NotebookNode) -> str:
    """What `#| default_exp` says; empty for a page that exports nothing."""
    lines = [line for cell in notebook.cells if cell.cell_type == "code" for line in directives(cell.source)]
    names = [line.split()[1] for line in lines if line.startswith("default_exp ")]
    return f"{NAME}.{names[0]}" if names else ""


def heading(notebook: NotebookNode) -> tuple[str, str]:
    """The first heading, and the quotation below it or else the first sentence; each may be empty."""
    words = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = re.search(r"^#\s+(.+)$", words, re.MULTILINE)
    rest = words[title.end() :] if title else words
    quoted = re.match(r"\s*((?:>.*\n?)+)", rest)
    if quoted:
        return (title[1] if title else ""), " ".join(line.lstrip("> ") for line in quoted[1].splitlines())
    sentence = re.match(r"\s*([^#`\n>|-].*?[.:!?])(?:\s|$)", rest, re.DOTALL)
    return (title[1] if title else ""), " ".join(sentence[1].rstrip(":").split()) if sentence else ""


def page(path: Path, folder: str) -> Page:
    """The page of a notebook, in a folder of the site."""
    notebook = nbformat.read(path, 4)
    title, summary = heading(notebook)
    module = module_of(notebook)
    name = module.removeprefix(f"{NAME}.").replace(".", "/") if module else plain(path.stem)
    return Page(path, f"{folder}/{name}", title or plain(path.stem), summary, module)


def sections(nbs: Path) -> list[Section]:
    """The literate pages by folder, in reading order; of a flat folder, by the tens of their numbers."""
    inner = [path for path in notebooks(nbs) if path.parent != nbs / "guides" and path != nbs / "index.ipynb"]

    def shelf(path: Path) -> tuple[str, str]:
        within = path.parent.relative_to(nbs).parts
        if within:
            return " / ".join(map(plain, within)), "-".join(map(plain, within))
        tens = re.match(r"\d", path.name)
        return (f"Pages {tens[0]}0 to {tens[0]}9", f"{tens[0]}0") if tens else ("Other pages", "other")

    return [
        Section(title, f"sections/{name}", [page(path, "pages") for path in paths])
        for (title, name), paths in groupby(inner, shelf)
    ]


def without_directives(source: str) -> str:
    """A cell's code without the lines `#| …`, which speak to nbdev."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("#|")).strip("\n")


def linked_names(words: str, module: str) -> str:
    """Markdown in which a public name in backticks leads to the API, where it can only mean that one."""

    def link(found: re.Match[str]) -> str:
        name = found["name"]
        places = homes().get(name, ()) if name else ()
        own = module if module in places else ""
        telling = len(places) == 1 and re.search(
            r"[a-z][A-Z]|\w_\w", name
        )  # `sample` may be any word, `SftConfig` is a class
        place = own or (places[0] if telling else "")
        return f"{{py:obj}}`{found[0].strip('`')} <{place}.{name}>`" if place else found[0]

    lines = re.split(
        r"(^#.*$)", words, flags=re.MULTILINE
    )  # a link in a heading would stand in every table of contents
    return "".join(line if line.startswith("#") else CODE.sub(link, line) for line in lines)


def linked_pages(words: str, addresses: Mapping[str, str]) -> str:
    """Markdown whose links to notebooks, and to texts of the repository that the site holds, lead to their pages."""

    def link(found: re.Match[str]) -> str:
        address = addresses.get(plain(found["stem"]).rpartition(".")[2])
        return f"](/{address}.ipynb{found['rest'] or ''})" if address else found[0]

    linked = NOTEBOOK_LINK.sub(link, words)
    for name, address in TEXTS.items():
        linked = linked.replace(f"]({name})", f"](/{address}.md)")
    return linked


def by_stem(pages: Iterable[Page]) -> dict[str, str]:
    """Pages by the last part of their names, as links call them; of two that are called the same, the first."""
    found: dict[str, str] = {}
    for one in pages:
        found.setdefault(one.address.rpartition("/")[2].rpartition(".")[2], one.address)
    return found


def origin(one: Page) -> str:
    """A line that says where a page comes from, and where its API is."""
    path = one.notebook.relative_to(ROOT) if one.notebook.is_relative_to(ROOT) else Path(one.notebook.name)
    reference = f" · API: [`{one.module}`](/api/{one.module})" if one.module in modules() else ""
    return f"{{.origin}}\nNotebook: `{path}`{reference}"


def shown_output(output: NotebookNode) -> NotebookNode:
    """The output without what only our own programs read."""
    if "data" in output:
        output.data = nbformat.from_dict(
            {mime: value for mime, value in output.data.items() if not mime.startswith(OURS)}
        )
    return output


def shown_cell(cell: NotebookNode) -> NotebookNode | None:
    """The cell as the site shows it; None for what is hidden, or only speaks to nbdev."""
    said = set(directives(cell.source)) if cell.cell_type == "code" else set()
    said |= {word for line in said for word in line.split()[:1]}
    if said & DROPPED:
        return None
    if cell.cell_type == "code":
        cell.source = without_directives(cell.source)
        # standard error holds warnings and progress bars, which name folders of the machine that built the site
        tags = {TAGS[word] for word in said & TAGS.keys()} | set(cell.metadata.get("tags", []))
        cell.metadata["tags"] = sorted(tags)
        cell.outputs = [shown_output(output) for output in cell.outputs if output.get("name") != "stderr"]
    return cell if cell.source.strip() or cell.get("outputs") else None


def shown(notebook: NotebookNode, one: Page, addresses: Mapping[str, str]) -> NotebookNode:
    """The notebook as the site shows it: figures drawn by its own scripts, names and pages linked, nothing hidden in it."""
    copy = _offline_copy(notebook)
    copy.metadata = nbformat.from_dict(LANGUAGE)
    copy.cells = [cell for cell in map(shown_cell, copy.cells) if cell is not None]
    words = [cell for cell in copy.cells if cell.cell_type == "markdown"]
    for cell in words:
        cell.source = linked_pages(linked_names(cell.source, one.module), addresses)
    if words:
        words[0].source = re.sub(r"^# .*", f"# {one.title}", words[0].source)
    first = copy.cells.index(words[0]) + 1 if words else 0
    copy.cells.insert(first, new_markdown_cell(origin(one)))
    return copy
