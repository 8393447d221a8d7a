"""Sphinx configuration: furo, notebooks that are executed already, figures and formulae without a network."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from api import docments, documented  # noqa: E402

import kitchen  # noqa: E402
from kitchen.reports.export import _asset_text, _plotly_script  # noqa: E402

project = "kitchen"
author = "the kitchen authors"
version = release = kitchen.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # it would be read from each page again, which a browser refuses for files
pygments_style = "default"
pygments_dark_style = "github-dark"

nb_execution_mode = "off"  # execute.py has run them
nb_ipywidgets_js: dict[str, Any] = {}  # these would come from elsewhere
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_block", "attrs_inline"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # as the source spells them: a value in memory may show an address
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# nothing is asked of anywhere else, whatever a page says (W3C CSP 3); from a folder, the site's own files are "file:"
POLICY = (
    "default-src 'self' file: data: blob: 'unsafe-inline'; connect-src 'self' file: data: blob:; "
    "base-uri 'none'; form-action 'self' file:"
)


def add_comments(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings as they stand, and below them what comments say of parameters."""
    lines[:] = documented(
        lines, value, docments(value) if what in ("class", "exception", "function", "method") else {}
    )


def readable(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, result: str | None
) -> Any:
    """A signature that sphinx can read as Python: of a field that is made anew each time it would show `<factory>`."""
    if signature is None:  # of a module or an attribute
        return None
    return re.sub(r"=( ?)<factory>", r"=\1...", signature), result


def add_scripts(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """The policy on every page; plotly.js, one file for all, on those that show a figure."""
    context["metatags"] = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">' + context.get(
        "metatags", ""
    )
    if 'class="figure"' in (context.get("body") or ""):
        app.add_js_file("plotly.js", loading_method="defer")
        app.add_js_file("report.js", loading_method="defer")


def write_scripts(app: Any) -> None:
    """Put the scripts that draw figures, which reports carry too, among the site's files."""
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plotly.js").write_text(_plotly_script(), encoding="utf-8")
    (folder / "report.js").write_text(_asset_text("report.js"), encoding="utf-8")


def visit_formula(translator: Any, node: Any) -> None:
    """A formula inside a line, as MathML, which browsers draw by themselves."""
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert

    block = node.tagname == "math_block"
    markup = convert(node.astext(), display="block" if block else "inline")
    translator.body.append(f'<div class="formula">{markup}</div>' if block else markup)
    raise SkipNode


def setup(app: Any) -> None:
    """Join the above to sphinx."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_formula, None), block_renderers=(visit_formula, None)
    )
    app.connect("autodoc-process-docstring", add_comments)
    app.connect("autodoc-process-signature", readable)
    app.connect("html-page-context", add_scripts)
    app.connect("builder-inited", write_scripts)
