"""What CONTRIBUTING.md sends a reader to is there: files, folders, tables, packages of the map."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_path_exists():
    named = set(re.findall(r"`((?:kitchen|nbs|tests|recipes_nb|\.ci)/[\w./-]*)`", TEXT))
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert len(named) > 25 and not missing, f"CONTRIBUTING.md names {missing}"


def test_every_table_stands_in_its_file():
    named = re.findall(r"`([A-Z][A-Z_]+)` in `([\w./]+\.py)`", TEXT)
    missing = [
        f"{name} in {path}"
        for name, path in named
        if not re.search(rf"^{name}\b.*=", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(named) > 8 and not missing, f"CONTRIBUTING.md names {missing}"


def test_the_map_shows_every_folder_of_pages():
    layers = {folder.name for folder in (ROOT / "nbs").iterdir() if folder.name[:2].isdigit() and folder.is_dir()}
    shown = set(re.findall(r"`(\d\d[a-z]?_[\w.]+)`", TEXT))
    missing = {name for name in layers - shown if not name.startswith("9")}  # adapters share a line
    assert not missing, f"the map of CONTRIBUTING.md lacks {missing}"
