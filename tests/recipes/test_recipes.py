"""Every recipe notebook, through papermill with small parameters: what it records, and that it matches its settings."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from small_settings import SMALL_SETTINGS

from kitchen.adapters.toy.sampler import ToySamplingClient
from kitchen.cli.main import main
from kitchen.config import config_fields
from kitchen.recipes.registry import RECIPES, get_recipe, notebook_path
from kitchen.reports.build import read_manifest
from kitchen.reports.export import read_recorded
from kitchen.store.run import Run

pytestmark = pytest.mark.whole_run


def cooked(name, out, **settings):
    """Cook a recipe as the command line does; the run directory."""
    words = [word for key, value in settings.items() for word in ("-p", key, str(value))]
    done = CliRunner().invoke(main, ["cook", name, "--out", str(out), "--quiet", *words])
    assert done.exit_code == 0, done.output
    return out


ON_TORCH = {"sft", "pretrain"}  # the others cook on the toy, whose kernel starts in a second; .ci/cook.py cooks one of each family on torch


def backend_of(name):
    """The backend on which tests cook a recipe."""
    return {} if name in ON_TORCH else {"backend": "toy"}


def code_of(name):
    """Source of a recipe's code cells; the parameters cell first."""
    cells = nbformat.read(get_recipe(name).notebook, 4).cells
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return tagged, [cell.source for cell in cells if cell.cell_type == "code" and cell.source not in tagged]


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory):
    """The first recipe, cooked once for the tests that look at it."""
    return cooked("sft", tmp_path_factory.mktemp("sft") / "run", **SMALL_SETTINGS["sft"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_cooks_into_a_report(name, tmp_path, request):
    settings = {**SMALL_SETTINGS[name], **backend_of(name)}
    run_dir = request.getfixturevalue("sft_run") if name == "sft" else cooked(name, tmp_path / "run", **settings)
    run = Run(run_dir)
    assert run.status == "completed" and run.verify() == []
    page = (run_dir / "report.html").read_text()
    markup = re.sub("<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<script" in page and not re.search("(src|href)=[\"']?http", markup)
    manifest = read_manifest(run_dir / "report.ipynb")
    assert manifest["spec"]["recipe"] == name
    assert "results.json" in {made["name"] for made in manifest["artifacts"]}
    assert (run_dir / "report.ipynb").stat().st_size < 300_000
    if name == "pretrain":
        assert set(read_recorded(run_dir / "report.ipynb")["tasks"]) and (run_dir / "artifacts" / "shipped").is_dir()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_described_and_planned_without_training(name, monkeypatch):
    def refuse(*values, **named):
        raise AssertionError("a plan lets no model answer questions")

    monkeypatch.setattr(ToySamplingClient, "sample", refuse)
    described = CliRunner().invoke(main, ["describe", name])
    assert described.exit_code == 0 and "learning_rate" in described.output, described.output
    words = [word for key, value in SMALL_SETTINGS[name].items() for word in ("-p", key, str(value))]
    planned = CliRunner().invoke(main, ["plan", name, "--backend", "toy", *words])
    assert planned.exit_code == 0, planned.output
    assert re.search(r"^steps +(\d|not known before the run)", planned.output, re.MULTILINE), planned.output
    if name in ("sft", "chat_sft", "pretrain", "dpo", "reward_model"):
        assert re.search(r"^steps +\d", planned.output, re.MULTILINE), "these read their data: it is counted"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_notebook_matches_its_settings(name):
    (cell,), code = code_of(name)
    defaults = {item.name: item.default for item in config_fields(get_recipe(name).config)}
    found = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell).body}
    assert all(value is None or defaults.get(key, value) == value for key, value in found.items())
    if name == "sft":
        assert found.keys() == defaults.keys(), found.keys() ^ defaults.keys()
    assert sum(len(source.splitlines()) for source in code) <= 60


def test_cooking_twice_gives_the_same_numbers(sft_run, tmp_path):
    again = cooked("sft", tmp_path / "again", **SMALL_SETTINGS["sft"])
    first, second = (json.loads((run / "artifacts" / "results.json").read_text()) for run in (sft_run, again))
    assert first == second


def test_the_embedded_model_is_small_and_safe():
    folder = Path(get_recipe("sft").notebook).parents[1] / "kitchen" / "assets" / "models" / "tiny-chat"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}


def test_the_tutorial_is_a_report_too(tmp_path, monkeypatch):
    import papermill

    for name, value in {"KITCHEN_HEADLESS": "1", "KITCHEN_RUNS": str(tmp_path / "runs")}.items():
        monkeypatch.setenv(name, value)
    small = {"backend": "toy", "dataset": "builtin:sort[:3200]"}
    done = tmp_path / "done.ipynb"
    papermill.execute_notebook(notebook_path("tutorial"), done, small, kernel_name="python3", progress_bar=False)
    shown = [(cell.source, output) for cell in nbformat.read(done, 4).cells for output in cell.get("outputs", [])]
    assert done.stat().st_size < 500_000
    assert not [source for source, output in shown if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert not [source for source, output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    drawn = {source.splitlines()[-1] for source, output in shown if "image/svg+xml" in output.get("data", {})}
    assert {"k.lr_find(steps=60)", "k.dashboard()", "kitchen.compare([k, bold])", "k.timeline()"} <= drawn
