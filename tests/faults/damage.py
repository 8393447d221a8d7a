"""Every file of a run, damaged in every way, met by every command: a matrix in which no cell may be silent, wrong or a traceback.

    python tests/faults/damage.py [RUN] [--all]

RUN is a run's folder, which is copied and left as it is; without one, a stopped and a completed run of recipe sft, one that was
cooked, and one of rl_math with its rollouts are made on the toy backend. One cell is one damage (a file and what was
done to it) and one command. What may happen:

- `named`      the command refuses, in kitchen's own words, which name the damaged file or what is wrong with the run
- `said`       it goes on from what can be proved, and says so: an event in the log, a line, or a word in the report
- `recovered`  `resume --recover` goes on, to the same end as the undisturbed run
- `unaffected` it does not need that file, and its result is that of the undisturbed run

and what may not: `SILENT` (a damage that verify does not name, or a wrong result without a word) and `TRACEBACK` (anything that is
not kitchen's own error). The exit code is the number of such cells, at most 100.
"""

import contextlib
import io
import itertools
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from click.testing import CliRunner

from kitchen.cli.main import main
from kitchen.engine.verification import verify_run
from kitchen.recipes.reproduce import manifest
from kitchen.reports.build import write_report
from kitchen.session.kitchen import Kitchen
from kitchen.store.run import Run
from kitchen.types import KitchenError

SMALL = {
    "backend": "toy", "dataset": "builtin:sort[:48]", "batch_size": 8, "epochs": 2, "held_out": 8, "graded": 4, "max_tokens": 8,
    "seed": 7, "snapshot_every": 4, "lora_rank": 2,
}  # fmt: skip


# -- damages ------------------------------------------------------------------------------------------


def truncate(path: Path, other: Path) -> None:
    """The second half is gone."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_line(path: Path, other: Path) -> None:
    """The last line is gone, and the rest is whole."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def empty(path: Path, other: Path) -> None:
    """Nothing is left."""
    path.write_bytes(b"")


def remove(path: Path, other: Path) -> None:
    """The file is gone."""
    path.unlink()


def flip(path: Path, other: Path, at: float = 0.5) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    if content:
        content[min(int(len(content) * at), len(content) - 1)] ^= 4
    path.write_bytes(content)


def flip_early(path: Path, other: Path) -> None:
    """One bit near the beginning is another."""
    flip(path, other, 0.1)


def flip_late(path: Path, other: Path) -> None:
    """One bit near the end is another."""
    flip(path, other, 0.9)


def swap(path: Path, other: Path) -> None:
    """Another run's file of that name, whole in itself; else other text."""
    shutil.copyfile(other, path) if other.is_file() else path.write_text('{"other": 1}')


def link(path: Path, other: Path) -> None:
    """A link to the same content elsewhere."""
    outside = Path(tempfile.mkdtemp()) / path.name
    shutil.copyfile(path, outside)
    path.unlink()
    path.symlink_to(outside)


def pipe(path: Path, other: Path) -> None:
    """A pipe that blocks whoever opens it."""
    path.unlink()
    os.mkfifo(path)


def deep(path: Path, other: Path) -> None:
    """Brackets, a hundred thousand deep."""
    path.write_text("[" * 100_000)


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    one.__name__: one
    for one in (truncate, cut_line, empty, remove, flip, flip_early, flip_late, swap, link, pipe, deep)
}


# -- commands -----------------------------------------------------------------------------------------


def state_of(folder: Path) -> tuple:
    """What a run came to: its final state and losses, or where it stands."""
    run = Run(folder)
    steps = {item.step: item["loss"] for item in run.log.active_events if item.name == "train.step"}
    return run.status, [item["digest"] for item in run.log.active_events if item.name == "run.digest"], steps


def listing(folder: Path) -> dict[str, object]:
    """Every entry of a folder, with content or target."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[place] = os.readlink(path)
        elif path.is_file() and place != "lock":
            found[place] = path.read_bytes()
    return found


def opened(folder: Path) -> tuple[object, bool]:
    """Look at the run as a notebook does: what it shows, and whether it spoke of damage."""
    run = Run(folder)
    return (run.status, manifest(run)), bool(run.artifact_problems())


def resumed(folder: Path, recover: bool = False) -> tuple[object, bool]:
    """Go on to the end: what it came to, and whether the log speaks of what was left out."""
    k = Kitchen.open(folder, recover=recover)
    try:
        k.run()
        said = any(item.name in ("snapshot.error", "log.repair", "artifact.aside") for item in k.run_record.log.events)
    finally:
        k.close()
    return state_of(folder), said


def reported(folder: Path) -> tuple[object, bool]:
    """Write the report: whether it speaks of damage."""
    text = write_report(Run(folder), Path(tempfile.mkdtemp()) / "report.html").read_text()
    return None, "DAMAGED" in text or "Damaged" in text


def digested(folder: Path) -> tuple[object, bool]:
    """The digest of the state, which must not change the folder."""
    before = listing(folder)
    k = Kitchen.open(folder)
    completed = k.status == "completed"
    try:
        found = k.digest()
        said = any(item.name in ("snapshot.error", "log.repair") for item in k.run_record.log.events)
    finally:
        k.close()
    if completed and listing(folder) != before:
        raise AssertionError("looking changed a completed run")
    return found if completed else None, said


def repeated(folder: Path) -> tuple[object, bool]:
    """What `reproduce` would start from."""
    found = manifest(Run(folder))
    return (found["spec"], found["digest"], found["losses"]), bool(Run(folder).artifact_problems())


def spoken(*words: str) -> Callable[[Path], tuple[object, bool]]:
    """A command of the command line: it ends well, or with kitchen's own words and an exit code that says so."""

    def command(folder: Path) -> tuple[object, bool]:
        done = CliRunner().invoke(main, [words[0], str(folder), *words[1:]])
        if done.exit_code == 0:
            text = done.output.casefold()
            return (state_of(folder) if words[0] == "resume" else None), "damaged" in text or "recovered" in text or "snapshot" in text
        if "unexpected" in done.output or "Traceback" in done.output or not isinstance(done.exception, SystemExit):
            raise AssertionError(f"kitchen {' '.join(words)}: {done.output} {done.exception!r}")
        raise KitchenError(done.output)

    return command


SPOKEN = {
    "cli report": spoken("report"), "cli verify": spoken("verify"), "cli reproduce": spoken("reproduce", "-q"),
    "cli resume": spoken("resume", "-q"),
}  # fmt: skip

COMMANDS: dict[str, Callable[[Path], tuple[object, bool]]] = {
    "open": opened, "resume": resumed, "report": reported, "digest": digested, "reproduce": repeated,
}  # fmt: skip


# -- the matrix ---------------------------------------------------------------------------------------


def attempt(command: Callable[[Path], tuple[object, bool]], folder: Path, expected: object) -> tuple[str, str]:
    """The cell of one command, and the message or reason."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            found, said = command(folder)
        except KitchenError as error:
            text = str(error)
            return ("named" if text and "unexpected" not in text else "TRACEBACK"), text
        except Exception:  # what this looks for
            return "TRACEBACK", traceback.format_exc()
    if said:
        return "said", ""
    return ("unaffected", "") if found == expected or expected is None else ("SILENT", f"{found!r:.300} is not {expected!r:.300}")


def files_of(folder: Path, every_object: bool) -> list[str]:
    """Files of a run by their places; of the objects one of each size class, unless all are asked for."""
    places = [place for place in listing(folder) if not place.endswith(".unfinished")]
    objects = [place for place in places if place.startswith("snapshots/objects/")]
    return [place for place in places if place not in objects] + (objects if every_object else objects[:: max(1, len(objects) // 4)])


def damaged_cells(
    whole: Path,
    other: Path,
    every_object: bool,
    commands: Mapping[str, Callable[[Path], tuple[object, bool]]] = COMMANDS,
    chosen: Callable[[str, str], bool] = lambda place, damage: True,  # damages that all commands meet; the rest meets verify alone
    part: tuple[int, int] = (0, 1),  # (1, 3): the second third of all damages
) -> Iterator[tuple[str, str, str, str, str]]:
    """Place, damage, command, what happened, and the words."""
    room = Path(tempfile.mkdtemp())

    def copy() -> Path:
        shutil.rmtree(room / whole.name, ignore_errors=True)
        shutil.copytree(whole, room / whole.name)
        return room / whole.name

    expected: dict[str, object] = {}
    for name, command in commands.items():
        with contextlib.suppress(KitchenError):  # what is refused of the whole run too, such as to compare with one that has no end
            expected[name] = command(copy())[0]
    completed = Run(whole).status == "completed"
    for number, (place, name) in enumerate(itertools.product(files_of(whole, every_object), DAMAGES)):
        if number % part[1] == part[0]:
            damage = DAMAGES[name]
            if name == "cut_line" and not place.endswith(".jsonl"):
                continue
            damaged = copy()
            before = (damaged / place).read_bytes()
            damage(damaged / place, other / place)
            path = damaged / place
            if path.is_file() and not path.is_symlink() and path.read_bytes() == before:
                continue  # an empty file cannot be cut
            yield place, name, "verify", *verified(damaged)
            if not chosen(place, name):
                continue
            for command_name, command in commands.items():
                folder = copy()
                damage(folder / place, other / place)
                found, words = attempt(command, folder, expected.get(command_name))
                yield place, name, command_name, found, words
            if not completed and "resume" in commands:
                folder = copy()
                damage(folder / place, other / place)
                found, words = attempt(lambda one: resumed(one, recover=True), folder, expected["resume"])
                if found in ("said", "unaffected"):
                    found = "recovered" if state_of(folder) == expected["resume"] else "SILENT"
                yield place, name, "recover", found, words


def verified(folder: Path) -> tuple[str, str]:
    """What verify says of a damaged run; it must name it, and leave it as it is."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    try:
        found = verify_run(folder)
    except KitchenError as error:
        return "named", str(error)
    except Exception:
        return "TRACEBACK", traceback.format_exc()
    if {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} != before:
        return "SILENT", "verify changed the folder"
    return ("named", "\n".join(found.problems)) if found.problems else ("SILENT", "verify found nothing")


PLAYED = {
    "backend": "toy", "env": "nim", "problems": 8, "batch_size": 2, "group_size": 2, "graded": 2, "max_tokens": 4, "seed": 7,
    "snapshot_every": 2, "lora_rank": 2,
}  # fmt: skip


def make_runs(root: Path, cooked: bool = True) -> list[tuple[Path, Path]]:
    """A stopped and a completed run, one with rollouts and one that was cooked, each with another of its shape whose files take its place."""
    kinds = {
        "stopped": ("sft", SMALL, 6), "completed": ("sft", SMALL, None), "played": ("rl_math", PLAYED, 2),
    }  # fmt: skip
    for name, (recipe, settings, until) in kinds.items():
        for prefix, seed in (("", 7), ("other-", 8)):
            k = Kitchen(recipe, run_dir=root / f"{prefix}{name}", **{**settings, "seed": seed})
            k.run(until=until)
            if until is None:
                k.report()
            k.close()
    pairs = [(root / name, root / f"other-{name}") for name in kinds]
    if cooked:
        for prefix, seed in (("", 7), ("other-", 8)):
            settings = [word for name, value in {**SMALL, "seed": seed}.items() for word in ("-p", name, str(value))]
            done = CliRunner().invoke(main, ["cook", "sft", "--out", str(root / f"{prefix}cooked"), "-q", *settings])
            assert done.exit_code == 0, done.output
        pairs.append((root / "cooked", root / "other-cooked"))
    return pairs


def matrix(pairs: list[tuple[Path, Path]], every_object: bool = False, show: Callable[[str], object] = print) -> list[tuple]:
    """All cells; the bad ones are shown at once, the table at the end."""
    cells = []
    for whole, other in pairs:
        commands = {**COMMANDS, **SPOKEN}
        if whole.name == "cooked":  # each resume of it starts a kernel, and does what `resume` of the completed one did
            commands.pop("cli resume")
        for place, damage, command, found, words in damaged_cells(whole, other, every_object, commands):
            cells.append((whole.name, place, damage, command, found, words))
            if found in ("SILENT", "TRACEBACK"):
                show(f"{found}: {whole.name} {place} {damage} {command}: {words}")
    columns = ["verify", *COMMANDS, *SPOKEN, "recover"]
    counts = Counter((damage, command, found) for _, _, damage, command, found, _ in cells)
    show(f"{'damage':<12}" + "".join(f"{name:>28}" for name in columns))
    for damage in DAMAGES:
        line = []
        for command in columns:
            there = {found: number for (one, at, found), number in counts.items() if (one, at) == (damage, command)}
            line.append(", ".join(f"{number} {found}" for found, number in sorted(there.items())))
        show(f"{damage:<12}" + "".join(f"{text:>28}" for text in line))
    damages = {(run, place, damage) for run, place, damage, *_ in cells}
    bad = sum(found in ("SILENT", "TRACEBACK") for *_, found, _ in cells)
    show(f"{len(damages)} damages, {len(cells)} cells, {bad} of them silent, wrong or a traceback")
    return cells


if __name__ == "__main__":
    root = Path(tempfile.mkdtemp())
    os.environ["KITCHEN_RUNS"], os.environ["XDG_STATE_HOME"] = str(root), str(root / "state")
    given = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    found = matrix([(given[0], root / "none")] if given else make_runs(root), "--all" in sys.argv)
    sys.exit(min(100, sum(cell[4] in ("SILENT", "TRACEBACK") for cell in found)))
