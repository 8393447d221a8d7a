"""Build the documentation site: `make docs`, or `python docs/build.py --help`.

Notebooks are executed (execute.py), made into pages (pages.py), joined by the API (api.py) and the glossary (glossary.py), and
written as HTML by sphinx (conf.py). What is built lies in docs/_build/html; nothing is fetched, then or when it is read.
"""

import argparse
import hashlib
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nbformat
from api import index_page, module_page
from execute import ENVIRONMENT, ROOT, Job, PageError, code_digest, run_all
from glossary import glossary
from library import modules, public
from pages import TEXTS, Page, Section, by_stem, linked_pages, notebooks, page, sections, shown

DOCS = Path(__file__).resolve().parent
TUTORIAL = {"backend": "toy", "dataset": "builtin:sort[:3200]"}
SMALL_NOTE = """:::{note}
Executed with small settings, which stand in the second cell, so that the site is built within minutes: this is what the report
looks like, not what the recipe reaches. `kitchen cook NAME` runs it with its own.
:::"""
UNRUN_NOTE = """:::{note}
Not executed here: `kitchen cook NAME` runs it and leaves its report.
:::"""
OUTWARD = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object|use)\b[^>]*?\s(?:src|srcset|data|href)\s*=\s*["']?\s*(?:https?:)?//[^"'>\s]*"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|license))[^>]*?href\s*=\s*["']?\s*(?:https?:)?//[^"'>\s]*"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]*|url\(\s*["']?(?:https?:)?//[^"')\s]*""",
    re.IGNORECASE,
)


def small_settings() -> dict[str, dict[str, object]]:
    """Settings with which a recipe ends within seconds: those of the tests."""
    table = ROOT / "tests" / "small_settings.py"
    return {**runpy.run_path(str(table))["SMALL_SETTINGS"], "tutorial": TUTORIAL} if table.exists() else {}


def report_of(name: str, reports: Path | None) -> Path | None:
    """A recipe's cooked report among those that were given: NAME.ipynb, or NAME/report.ipynb as a run directory has it."""
    found = [reports / f"{name}.ipynb", reports / name / "report.ipynb"] if reports else []
    return next((path for path in found if path.exists()), None)


def jobs(
    literate: Iterable[Page],
    recipes: Iterable[Page],
    small: bool,
    reports: Path | None,
) -> dict[str, Job]:
    """What has to be run, by address; recipes only where no report is given, and only if they shall be small."""
    found = {one.address: Job(one.notebook) for one in literate}
    settings = small_settings() if small else {}
    for one in recipes:
        name = one.notebook.stem
        if name in settings and report_of(name, reports) is None:
            found[one.address] = Job(one.notebook, settings[name], {"KITCHEN_HEADLESS": "1"})
    return found


def write(source: Path, address: str, text: str) -> None:
    """Put a text file among sphinx's sources; one that is the same already keeps its age, so that sphinx passes it over."""
    path = source / address
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_page(source: Path, one: Page, executed: Path, addresses: Mapping[str, str], note: str = "") -> str:
    """Put a notebook among sphinx's sources; its file's name there."""
    notebook = shown(nbformat.read(executed, 4), one, addresses)
    if note:
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note.replace("NAME", one.notebook.stem)))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same in every build
    write(source, f"{one.address}.ipynb", nbformat.writes(notebook))
    return f"{one.address}.ipynb"


def contents(pages: Iterable[Page | Section]) -> str:
    """A table of contents for sphinx, which the sidebar shows."""
    entries = [f"{one.title.replace('<', '')} </{one.address}>" for one in pages]
    return "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *entries, "```"])


def listing(title: str, words: str, pages: Sequence[Page]) -> str:
    """A page that lists others, each with what it says of itself."""
    rows = [f"[{one.title}](/{one.address}.ipynb)\n: {one.summary or '…'}" for one in pages]
    return "\n\n".join([f"# {title}", words, *rows, contents(pages)]) + "\n"


def section_index(found: Sequence[Section]) -> str:
    """All literate pages on one."""
    words = "The notebooks of `nbs/` are the source of the library, and stand in the order in which they build on each other."
    parts = ["# The library, page by page", words]
    for section in found:
        parts += [f"## [{section.title}](/{section.address})"]
        parts += ["\n".join(f"- [{one.title}](/{one.address}.ipynb): {one.summary}" for one in section.pages)]
    return "\n\n".join([*parts, contents(found)]) + "\n"


def landing(overview: Sequence[Page]) -> str:
    """The front page, with what the sidebar holds."""
    titles = {
        "guides/index": "How-to",
        "recipes/index": "Recipes",
        "sections/index": "Page by page",
        "api/index": "API",
        "glossary": "Glossary",
        "contributing": "Contributing",
        "changelog": "What changed",
    }
    fixed = [Section(title, address) for address, title in titles.items()]
    return f"{(DOCS / 'index.md').read_text(encoding='utf-8').strip()}\n\n{contents([*overview, *fixed])}\n"


def recipe_pages(folder: Path) -> list[Page]:
    """The notebooks of the recipes in the order of their table; what is no recipe, such as the tutorial, first. Cookbooks need a service."""
    order = list(public("RECIPES"))
    found = [page(path, "recipes") for path in notebooks(folder) if "cookbooks" not in path.relative_to(folder).parts]
    return sorted(found, key=lambda one: order.index(one.notebook.stem) if one.notebook.stem in order else -1)


def write_sources(source: Path, root: Path, small: bool, reports: Path | None, processes: int) -> None:
    """Everything that sphinx reads, written anew."""
    shelves = sections(root / "nbs")
    guides = [page(path, "guides") for path in notebooks(root / "nbs" / "guides")]
    recipes = recipe_pages(root / "recipes_nb")
    index = root / "nbs" / "index.ipynb"
    literate = [one for section in shelves for one in section.pages]
    overview = [Page(index, "overview", "Overview")] if index.exists() else []
    every = [*literate, *guides, *overview]
    done = run_all(jobs(every, recipes, small, reports), source.parent / "cache", processes)

    addresses = by_stem([*literate, *guides, *recipes])
    kept = {write_page(source, one, done[one.address], addresses) for one in every}
    for one in recipes:
        given = report_of(one.notebook.stem, reports)
        note = "" if given else SMALL_NOTE if one.address in done else UNRUN_NOTE
        kept.add(write_page(source, one, given or done.get(one.address, one.notebook), addresses, note))
    texts = {
        f"api/{name}.rst": module_page(
            name, next((one.address for one in literate if one.module == name), "")
        )
        for name in modules()
    }
    texts |= {
        f"{section.address}.md": listing(section.title.capitalize(), "", section.pages) for section in shelves
    }
    texts |= {
        f"{address}.md": linked_pages((root / name).read_text(encoding="utf-8"), addresses)
        for name, address in TEXTS.items()
    }
    texts |= {
        "index.md": landing(overview),
        "api/index.rst": index_page(),
        "glossary.md": glossary(),
        "guides/index.md": listing("How-to", "One task a page, executed when the site was built.", guides),
        "recipes/index.md": listing(
            "Recipes", "Each is a notebook, and its report when it has run: `kitchen cook NAME`.", recipes
        ),
        "sections/index.md": section_index(shelves),
    }
    for address, text in texts.items():
        write(source, address, text)
    forget(source, kept | texts.keys())


def forget(source: Path, kept: Iterable[str]) -> None:
    """Take away sources of an earlier build that have no page any more."""
    for path in source.rglob("*"):
        if path.is_file() and path.relative_to(source).as_posix() not in set(kept):
            path.unlink()


def start_anew(out: Path) -> None:
    """Take away what sphinx kept, unless this build has the same pages and the same code: it rewrites only pages that changed,
    and others would go on with an old sidebar, or an old signature."""
    names = sorted(path.relative_to(out).as_posix() for path in (out / "source").rglob("*") if path.is_file())
    ours = [path.read_bytes() for path in sorted(DOCS.glob("*.*")) + sorted((DOCS / "static").glob("*"))]
    fronts = [path.read_bytes() for path in sorted((out / "source").rglob("index.*"))]
    stamp = hashlib.sha256(
        b"\0".join([code_digest().encode(), "\n".join(names).encode(), *ours, *fronts])
    ).hexdigest()
    kept = out / "stamp"
    if not kept.exists() or kept.read_text() != stamp:
        for folder in ("doctrees", "html", "jupyter_execute"):
            shutil.rmtree(out / folder, ignore_errors=True)
    kept.write_text(stamp)


def outward(site: Path) -> list[str]:
    """Everything in the site's pages and styles that a browser would fetch from another machine."""
    files = [path for path in sorted(site.rglob("*")) if path.suffix in (".html", ".css")]
    return [
        f"{path.relative_to(site)}: {found[0]}"
        for path in files
        for found in OUTWARD.finditer(path.read_text(encoding="utf-8"))
    ]


def html(source: Path, site: Path, processes: int) -> int:
    """Let sphinx write the site; its exit code."""
    from sphinx.cmd.build import build_main

    return build_main(
        [
            "-q",
            "-b",
            "html",
            "-c",
            str(DOCS),
            "-d",
            str(site.parent / "doctrees"),
            "-j",
            str(processes),
            str(source),
            str(site),
        ]
    )


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description="Build the documentation site.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DOCS / "_build",
        help="folder for the site (html/), the cache and what lies between",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="pages that run at the same time"
    )
    parser.add_argument(
        "--recipes",
        choices=("small", "none"),
        default="small",
        help="run recipes with small settings, or show them unexecuted",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        help="folder of cooked reports to show instead: NAME.ipynb or NAME/report.ipynb",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the cache, and run everything again")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> str:
    """Build; what went wrong, or nothing."""
    chosen = options(words)
    os.environ.update(ENVIRONMENT)  # before anything heavy is imported: libraries read it only then
    out = chosen.out.resolve()
    if chosen.fresh:
        shutil.rmtree(out, ignore_errors=True)
    try:
        write_sources(out / "source", ROOT, chosen.recipes == "small", chosen.reports, chosen.jobs)
    except PageError as error:
        return str(error)
    start_anew(out)
    if html(out / "source", out / "html", chosen.jobs):
        return "sphinx did not build the site"
    found = outward(out / "html")
    if found:
        return "the site would ask other machines for these:\n  " + "\n  ".join(found)
    print(f"the site is {out / 'html' / 'index.html'}")
    return ""


if __name__ == "__main__":
    sys.exit(main() or None)  # an empty string would end with exit code 1
