"""Write README.md from nbs/index.ipynb: its markdown and code, without cells marked #| hide."""

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]


def readme(index: Path) -> str:
    """The README's text."""
    blocks = []
    for cell in nbformat.read(index, 4).cells:
        if "#| hide" in cell.source or "#|hide" in cell.source:
            continue
        blocks.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
    return "<!-- made from nbs/index.ipynb by `make prepare` -->\n\n" + "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "README.md"
    target.write_text(readme(ROOT / "nbs" / "index.ipynb"), encoding="utf-8")
