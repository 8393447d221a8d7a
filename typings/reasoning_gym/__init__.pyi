"""What kitchen uses of reasoning-gym."""

from collections.abc import Iterator
from typing import Any

class ProceduralDataset:
    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float: ...

def create_dataset(name: str, *, size: int, seed: int) -> ProceduralDataset: ...
