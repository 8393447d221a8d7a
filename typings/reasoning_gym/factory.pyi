"""The names of reasoning-gym's tasks."""

from . import ProceduralDataset

DATASETS: dict[str, tuple[type[ProceduralDataset], type]]
