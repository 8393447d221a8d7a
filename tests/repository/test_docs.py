"""The documentation site: every page, name, event and setting is in it, and nothing in it comes from another machine."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import api  # noqa: E402
import build  # noqa: E402
import execute  # noqa: E402
import glossary  # noqa: E402
import library  # noqa: E402
import pages  # noqa: E402


@pytest.fixture(scope="module")
def words():
    """The glossary as the site has it."""
    return glossary.glossary()


def notebook(path, *sources):
    """Write a notebook: markdown where a source begins with a heading or a quotation mark, else code."""
    cells = [
        (new_markdown_cell if source.startswith(("# ", "> ", "## ")) else new_code_cell)(source)
        for source in sources
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_the_glossary_holds_every_event_with_measurements_and_units(words):
    events = library.public("EVENTS")
    assert len(events) > 30
    for kind in events.values():
        (row,) = [line for line in words.splitlines() if line.startswith(f"| `{kind.name}` |")]
        assert kind.description.split("`")[0] in row
        assert all(f"`{name}` [{glossary.cell(unit)}]" in row for name, unit in kind.measurements.items())
        assert all(f"`{name}`" in row for name in kind.metadata)


def test_the_glossary_says_what_every_measured_event_is_measured_on(words):
    counted = re.compile(r"(?!nats)[a-z]*s|bytes")  # units of counts, times and sizes
    counting = {"stage.retry", "stage.rollback", "stream.item"}  # numbers without a unit that count
    for kind in library.public("EVENTS").values():
        judged = [name for name, unit in kind.measurements.items() if not counted.fullmatch(unit)]
        if judged and kind.name not in counting:
            assert kind.name in glossary.SAMPLES, f"{kind.name}: of what are {', '.join(judged)} taken?"
    assert glossary.SAMPLES.keys() <= library.public("EVENTS").keys()
    assert all(
        glossary.cell(sample) in words for sample in [*glossary.SAMPLES.values(), *glossary.NOTES.values()]
    )
    assert all(
        any(address.endswith(f".{table}") for address in glossary.registries()) for table in glossary.NOTES
    )


def test_the_glossary_holds_every_setting_with_its_default(words):
    settings = words.partition("## Settings")[2].partition("## Names")[0].splitlines()
    for recipe in library.public("RECIPES").values():
        for item in library.public("config_fields")(recipe.config):
            rows = [line for line in settings if line.startswith(f"| `{item.name}` |")]
            told = [
                row
                for row in rows
                if f"| {glossary.code(repr(item.default))} |" in row
                and glossary.cell(item.description) in row
            ]
            assert len(told) >= 1, f"{recipe.name}: {item.name}"


@pytest.mark.parametrize(
    "table",
    [
        "METRICS",
        "REWARDS",
        "LOSSES",
        "SFT_LOSSES",
        "PAIR_LOSSES",
        "DISTILL_LOSSES",
        "OBJECTIVES",
        "RENDERERS",
        "SCHEDULES",
    ]
    + [
        "TASKS",
        "PORTS",
        "RECIPES",
        "FORMATS",
        "TRAIN_ON",
        "ADVANTAGES",
        "AGGREGATIONS",
        "TRIGGERS",
        "CHECKS",
    ],
)
def test_the_glossary_holds_every_table_of_names(words, table):
    (address,) = [address for address in glossary.registries() if address.endswith(f".{table}")]
    part = words.partition(f"{{py:obj}}`{table} <{address}>`")[2].partition("\n### ")[0]
    assert part and all(f"| `{name}` |" in part for name in library.public(table))


def test_the_glossary_holds_every_adapter_and_environment(words):
    tables = [table for address, table in glossary.registries().items() if address.endswith(".ADAPTERS")]
    assert any("torch" in table.get("service", {}) for table in tables)
    for table in tables:
        assert all(f"`{port}: {name}`" in words for port, adapters in table.items() for name in adapters)
    assert {"task", "tools", "nim"} <= set(glossary.environments())
    assert all(f"`{name}`" in words.partition("### Environments")[2] for name in glossary.environments())


def test_every_term_is_explained_once_and_every_reference_has_its_term():
    lines = glossary.TERMS.read_text(encoding="utf-8").partition("```{glossary}\n")[2].splitlines()
    terms = [line for line in lines if line and not line.startswith((" ", "`"))]
    assert len(terms) == len(set(terms)) > 30 and terms == sorted(terms, key=str.casefold)
    referred = {
        found[1] or found[2]
        for found in re.finditer(r"\{term\}`(?:[^`<]*<([^>]+)>|([^`]+))`", "\n".join(lines))
    }
    assert referred <= set(terms)


def test_the_api_holds_every_public_name():
    assert len(library.modules()) > 80
    for name, module in library.modules().items():
        text = api.module_page(name)
        for item, value in library.exported(module).items():
            place = library.home(module, item, value)
            directives = (f":: {name}.{item}\n", f".. py:data:: {item}\n", f":py:obj:`{place}.{item}`")
            assert any(words in text for words in directives), f"{name}.{item}"
        parent = name.rpartition(".")[0]
        assert f"<{name}>" in (
            api.module_page(parent) if parent and parent != library.NAME else api.index_page()
        )


def test_comments_beside_parameters_are_told():
    told = api.docments(library.public("declare_event"))
    assert told == {"metadata": "names, separated by spaces", "measurements": "name=unit"}
    assert "-1 until it is there" in api.docments(library.public("Event"))["sequence"]
    lines = api.documented(
        ["One `name` and a `b c`, $x_1$ and 2*3*4."], library.public("declare_event"), {"metadata": "names"}
    )
    assert (
        lines[0] == r"One :py:obj:`name` and a ``b c``, :math:`x_1` and 2\*3\*4."
        and ":param metadata: names" in lines
    )


def test_every_notebook_has_a_page():
    shelves = pages.sections(ROOT / "nbs")
    found = [one.notebook for shelf in shelves for one in shelf.pages]
    guides = pages.notebooks(ROOT / "nbs" / "guides")
    assert {*found, *guides, ROOT / "nbs" / "index.ipynb"} == {
        path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
    }
    addresses = [one.address for shelf in shelves for one in shelf.pages]
    assert len(addresses) == len(set(addresses)) == len(found)
    recipes = [one.notebook.stem for one in build.recipe_pages(ROOT / "recipes_nb")]
    assert set(library.public("RECIPES")) <= set(recipes) and len(recipes) == len(
        list((ROOT / "recipes_nb").glob("*.ipynb"))
    )


def test_pages_are_found_in_folders_too(tmp_path):
    for name in (
        "20_data/10_last",
        "20_data/2_mix",
        "10_core/0_types",
        "90_adapters/torch/0_client",
        "index",
        "guides/0_start",
        "_proc/0_copy",
    ):
        notebook(
            tmp_path / f"{name}.ipynb", f"#| default_exp {name.split('_')[-1]}", "# a title\n> What it\n> is"
        )
    shelves = pages.sections(tmp_path)
    assert [(shelf.title, shelf.address) for shelf in shelves] == [
        ("core", "sections/core"), ("data", "sections/data"), ("adapters / torch", "sections/adapters-torch"),
    ]  # fmt: skip
    assert [one.address for one in shelves[1].pages] == ["pages/mix", "pages/last"]
    assert shelves[0].pages[0].title == "a title" and shelves[0].pages[0].summary == "What it is"


def test_a_page_shows_its_code_without_directives_and_without_what_is_hidden(tmp_path):
    path = notebook(
        tmp_path / "page.ipynb",
        "#| default_exp lesson",
        "# lesson\n> Short",
        "#| hide\nsecret",
        "#| export\nx = 1",
        "#| echo: false\nx",
    )
    one = pages.page(path, "pages")
    cells = pages.shown(nbformat.read(path, 4), one, {}).cells
    code = [(cell.source, cell.metadata.tags) for cell in cells if cell.cell_type == "code"]
    assert code == [("x = 1", ["export"]), ("x", ["remove-input"])]
    assert (one.title, one.summary, one.module) == ("lesson", "Short", "kitchen.lesson")


def test_names_and_pages_in_the_text_become_links():
    assert pages.linked_names("`EventKind`, `sample`\n# `EventKind`", "") == (
        f"{{py:obj}}`EventKind <{library.homes()['EventKind'][0]}.EventKind>`, `sample`\n# `EventKind`"
    )
    assert pages.linked_names("```\n`EventKind`\n```", "") == "```\n`EventKind`\n```"
    assert pages.linked_pages(
        "[a](../10_store.ipynb#run) [b](https://x.y/store.html)", {"store": "pages/store"}
    ) == ("[a](/pages/store.ipynb#run) [b](https://x.y/store.html)")


def test_notebooks_are_run_once_and_cells_that_are_not_meant_to_run_are_left(tmp_path):
    path = notebook(
        tmp_path / "page.ipynb", "# page", "#| eval: false\n1 / 0", "a: int = 1", "print(a)\na + 1"
    )
    cells = nbformat.read(path, 4)
    cells.cells[2].metadata["tags"] = ["parameters"]
    nbformat.write(cells, path)
    jobs = {"page": execute.Job(path, {"a": 20})}
    kept = execute.run_all(jobs, tmp_path / "cache", 1)["page"]
    outputs = [output for cell in nbformat.read(kept, 4).cells for output in cell.get("outputs", [])]
    assert outputs[0].text == "20\n" and outputs[1].data["text/plain"] == "21"
    written = kept.stat().st_mtime_ns
    assert execute.run_all(jobs, tmp_path / "cache", 1)["page"].stat().st_mtime_ns == written


def test_a_page_that_fails_stops_the_build_and_is_named(tmp_path):
    jobs = {
        name: execute.Job(notebook(tmp_path / f"{name}.ipynb", source))
        for name, source in {"good": "1", "bad": "1 / 0"}.items()
    }
    with pytest.raises(execute.PageError, match=r"(?s)^bad failed in this cell:\n1 / 0.*ZeroDivisionError"):
        execute.run_all(jobs, tmp_path / "cache", 2)
    assert len(list((tmp_path / "cache").glob("*.ipynb"))) == 1


def test_whatever_a_page_would_fetch_is_found(tmp_path):
    wanted = [
        '<script src="https://a.b/c.js"></script>', "<img alt='' src='//a.b/c.png'>", '<link rel="stylesheet" href="http://a.b/c.css">',
        "<style>@import url(https://a.b/c.css)</style>", "<p style='background: url(\"https://a.b/c.png\")'>",
    ]  # fmt: skip
    innocent = '<a href="https://a.b"> <img src="data:image/png;base64,//8A"> <script src="_static/plotly.js"></script>'
    (tmp_path / "page.html").write_text("\n".join([*wanted, innocent]), encoding="utf-8")
    assert len(build.outward(tmp_path)) == len(wanted)


def test_a_figure_is_drawn_by_the_sites_own_script(tmp_path):
    pytest.importorskip("furo")
    pytest.importorskip("myst_nb")
    source, one = tmp_path / "source", pages.Page(tmp_path / "page.ipynb", "index", "A page")
    notebook(
        one.notebook,
        "# A page\n\n$\\frac12$",
        "from plotly.graph_objects import Figure\nFigure().add_scatter(y=[1, 2])",
    )
    executed = execute.run_all({"index": execute.Job(one.notebook)}, tmp_path / "cache", 1)["index"]
    build.write_page(source, one, executed, {})
    assert build.html(source, tmp_path / "html", 1) == 0 and build.outward(tmp_path / "html") == []
    text = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert (
        text.count('class="figure"') == 1
        and "_static/plotly.js" in text
        and "<math" in text
        and "connect-src" in text
    )
    assert (tmp_path / "html" / "_static" / "plotly.js").stat().st_size > 1e6
