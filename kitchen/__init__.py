"""Fine-tune language models in Jupyter, step by step: recipes, workflows, ports and adapters, with reproducible reports."""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kitchen.comparison import compare as compare
    from kitchen.comparison import runs as runs
    from kitchen.live import dashboard as dashboard
    from kitchen.session import Kitchen as Kitchen

# names people type, and where they live; loaded when first used, so that `import kitchen` stays light
PUBLIC = {
    "Kitchen": "kitchen.session",
    "compare": "kitchen.comparison",
    "dashboard": "kitchen.live",
    "runs": "kitchen.comparison",
}
__all__ = ["Kitchen", "compare", "dashboard", "runs"]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    raise AttributeError(f"module 'kitchen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
