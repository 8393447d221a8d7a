"""The tutorial in JupyterLab, cell by cell, as a newcomer runs it."""

import nbformat

from kitchen.recipes.registry import notebook_path


def test_the_tutorial_runs_and_shows_something_at_each_step(lab, tab):
    book = nbformat.read(notebook_path("tutorial"), 4)
    for cell in book.cells:
        cell.source = cell.source.replace('backend: str = "torch"', 'backend: str = "toy"').replace("[:6400]", "[:3200]")
    nbformat.write(book, lab.work / "tutorial.ipynb")
    tab.open(lab.address("tutorial.ipynb"))
    codes = [cell.source for cell in book.cells if cell.cell_type == "code"]
    for number, source in enumerate(codes):
        cell = tab.run(number)
        output = cell.locator(".jp-OutputArea-output")
        quiet = number == 0 or ".close()" in source
        tab.until(lambda output=output, quiet=quiet: quiet or output.count())
        assert not cell.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count(), source
        assert not cell.locator('[data-mime-type="application/vnd.jupyter.error"]').count(), source
        if "dashboard" in source:
            cell.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=60_000)
            figure = cell.locator(".js-plotly-plot").first
            tab.until(lambda figure=figure: figure.evaluate("one => one.offsetWidth") > 700, 30)
        if not quiet:
            output.first.scroll_into_view_if_needed()
            tab.shot(f"tutorial-{number:02}")
    assert tab.errors == [] and tab.outside == []
