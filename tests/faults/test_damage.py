"""Damage never passes silently and never ends in a traceback: a reduced matrix of damage.py, and forgeries whose hashes all fit."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import COMMANDS, DAMAGES, SPOKEN, attempt, damaged_cells, make_runs, resumed, verified
from forgery import HOSTILE, places, replaced, resealed, rewritten, sealed_state

pytestmark = pytest.mark.whole_run

# one place of each kind; the newest snapshot, its state and an object are found by their names
KINDS = ("spec.json", "events.jsonl", "seal.json", "artifacts/results.json", "rollouts/", "snapshots/objects/", "snapshots/")
FORGERIES = 10  # of each run and kind, drawn with a fixed seed; some seconds


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """A stopped and a completed run, and one with rollouts, each with another of its shape."""
    return make_runs(tmp_path_factory.mktemp("made"), cooked=False)


@pytest.mark.parametrize("which", [0, 1])
def test_verify_names_every_damage_and_no_command_is_wrong(which: int, pairs: list[tuple[Path, Path]]):
    whole, other = pairs[which]
    drawn = random.Random(which)
    met = {kind: drawn.sample(sorted(DAMAGES), 4) for kind in KINDS}
    seen = set[str]()

    def chosen(place: str, damage: str) -> bool:
        kind = next((one for one in KINDS if place.startswith(one)), "")
        if damage not in met.get(kind, ()) or kind in seen:
            return False
        seen.add(kind)
        return True

    commands = {**COMMANDS, **{name: command for name, command in SPOKEN.items() if name != "cli reproduce"}}
    cells = list(damaged_cells(whole, other, False, commands, chosen, (which, 3)))  # together they hold every damage
    bad = [cell for cell in cells if cell[3] in ("SILENT", "TRACEBACK")]
    assert not bad, "\n".join(f"{place} {damage} {command}: {found}: {words}" for place, damage, command, found, words in bad)
    assert len({cell[:2] for cell in cells}) >= 50 and {cell[2] for cell in cells} >= {"verify", *commands}


def forged(folder: Path, kind: str, drawn: random.Random) -> str:
    """Put a hostile value somewhere, with hashes that fit; where, and what."""
    new, remove = drawn.choice(HOSTILE), drawn.random() < 0.2
    if kind == "event":
        bodies = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        name = drawn.choice(sorted({body["name"] for body in bodies}))
        body = [one for one in bodies if one["name"] == name][-1]
        path = drawn.choice([one for one in places(body) if one != ("hash",)])

        def change(one: dict[str, Any]) -> None:
            if one.get("sequence") == body["sequence"]:
                replaced(one, path, new, remove)

        rewritten(folder, change)
        return f"{name} {path}: {new!r:.60} {remove}"
    rewritten(folder, lambda body: None)
    numbered = [path for path in (folder / "snapshots").glob("*.json") if path.stem.isdigit()]
    file = {
        "snapshot": max(numbered, key=lambda path: int(path.stem)), "state": max((folder / "snapshots").glob("*-*.json")),
        "seal": folder / "seal.json",
    }[kind]  # fmt: skip
    plain = json.loads(file.read_text())
    path = drawn.choice(places(plain))
    replaced(plain, path, new, remove)
    if kind == "seal":
        file.write_text(json.dumps(plain))
    else:
        {"snapshot": resealed, "state": sealed_state}[kind](file, plain)
    return f"{file.name} {path}: {new!r:.60} {remove}"


@pytest.mark.parametrize("kind", ["event", "snapshot", "state", "seal"])
@pytest.mark.parametrize("which", [0, 1])
def test_hostile_values_under_hashes_that_fit_are_answered_in_kitchens_words(which: int, kind: str, pairs: list[tuple[Path, Path]], tmp_path: Path):
    drawn, bad = random.Random(f"{which} {kind}"), list[str]()
    commands = {**COMMANDS, "recover": lambda one: resumed(one, recover=True)}
    for number in range(FORGERIES):
        folder = tmp_path / str(number) / pairs[which][0].name
        shutil.copytree(pairs[which][0], folder)
        said = forged(folder, kind, drawn)
        name = drawn.choice(sorted(commands))
        cells = {"verify": verified(folder), name: attempt(commands[name], folder, None)}
        bad += [f"{said}: {one}: {words}" for one, (found, words) in cells.items() if found == "TRACEBACK"]
        shutil.rmtree(folder)
    assert not bad, "\n\n".join(bad)
