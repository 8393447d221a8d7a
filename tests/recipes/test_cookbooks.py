"""Cookbooks of services: thin, with settings that their recipes know. `.ci/services.py --cookbooks` cooks them against a server."""

import ast
from pathlib import Path

import nbformat
import pytest

from kitchen.config import config_fields
from kitchen.recipes.registry import get_recipe
from kitchen.session.kitchen import Kitchen

FOLDER = Path(__file__).resolve().parents[2] / "recipes_nb" / "cookbooks"
BOOKS = sorted(FOLDER.rglob("*.ipynb"))
RECIPE_OF = {"sft": "sft", "dpo": "dpo", "rl": "rl_math"}
OF_THE_SERVICE = {"base_url", "api_key_env", "tokenizer_backend", "service_models", "timeout", "gpu_price", "sampled"}


def cells_of(book):
    """Parameters by name, and the source of the other code cells."""
    code = [cell for cell in nbformat.read(book, 4).cells if cell.cell_type == "code"]
    (given,) = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    values = {line.target.id: ast.literal_eval(line.value) for line in ast.parse(given).body if isinstance(line, ast.AnnAssign)}
    return values, [cell.source for cell in code if cell.source != given]


def test_each_service_has_a_thin_front():
    folders = {book.parent.name for book in BOOKS}
    assert folders == {"tinker", "fireworks", "modal"}
    for name in folders:
        lines = [line for book in BOOKS if book.parent.name == name for cell in nbformat.read(book, 4).cells for line in cell.source.splitlines()]
        assert len(lines) + sum(len(path.read_text().splitlines()) for path in (FOLDER / name).glob("*.py")) < 600


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: f"{book.parent.name}-{book.stem}")
def test_its_settings_are_those_of_its_recipe_and_its_plan_asks_nobody(book, monkeypatch):
    values, code = cells_of(book)
    name = RECIPE_OF[book.stem]
    known = {field.name for field in config_fields(get_recipe(name).config)}
    assert values.keys() - known <= OF_THE_SERVICE
    assert {"base_url", "api_key_env", "tokenizer_backend"} <= values.keys() and values["api_key_env"].endswith("_KEY")
    for source in code:
        ast.parse(source)
    monkeypatch.delenv(values["api_key_env"], raising=False)
    backend = "fireworks" if book.parent.name == "fireworks" else "tinker"
    options = {key: values[key] for key in ("base_url", "api_key_env", "timeout")} | {"tokenizer_backend": "toy"}
    small = {key: value for key, value in values.items() if key in known} | {"model": "toy", "lora_alpha": 32.0}
    small |= {"problems": 16} if "problems" in small else {"dataset": small["dataset"].replace("2000", "64")}
    said = Kitchen(name, backend=backend, backend_options=options, **small).plan().facts
    assert said["usage"].startswith("about ") and said["money"].startswith("not known: prices of")
