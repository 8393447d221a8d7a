"""Runs as a forger would leave them: other content, and every hash made to fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kitchen.config import canonical_json, json_digest


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the events of a log, with a chain, a seal and snapshots' heads that fit."""
    head, lines, heads = "0" * 64, list[bytes](), list[str]()
    for line in (folder / "events.jsonl").read_bytes().splitlines():
        body = json.loads(line)
        body.pop("hash")
        if isinstance(body["metadata"], dict):
            body["metadata"].pop("seal", None)
        change(body)
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        head = hashlib.sha256(head.encode() + text).hexdigest()
        lines.append(text[:-1] + f',"hash":"{head}"}}\n'.encode())
        heads.append(head)
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    for path in (folder / "snapshots").glob("*.json"):
        if path.stem.isdigit():
            plain = json.loads(path.read_text())
            resealed(path, {**plain, "head": heads[int(path.stem) - 1] if int(path.stem) else ""})
    seal = folder / "seal.json"
    if seal.is_file():
        content = {name: part for name, part in json.loads(seal.read_text()).items() if name != "digest"}
        content["head"] = heads[content["events"] - 1]
        content["files"] = {place: known for place, known in content["files"].items() if place.startswith("artifacts")}
        seal.write_text(canonical_json({**content, "digest": json_digest(content)}))
    told = [json.loads(line)["metadata"] for line in lines if b'"name":"run.spec"' in line]
    if told and isinstance(told[-1], dict) and "spec" in told[-1]:
        (folder / "spec.json").write_text(json.dumps(told[-1]["spec"]))


def resealed(path: Path, plain: dict[str, Any]) -> None:
    """Write a snapshot with its own hash."""
    content = {name: part for name, part in plain.items() if name not in ("seal", "format")}
    path.write_text(json.dumps({"format": 1, **content, "seal": json_digest(content)}))


def sealed_state(path: Path, plain: dict[str, Any]) -> None:
    """Write a client's state with its own digest, and name that in the snapshots beside it."""
    digest = json_digest({"settings": plain.get("settings"), "packs": plain.get("packs")})
    path.write_text(canonical_json({**plain, "digest": digest}))
    for snapshot in path.parent.glob("*.json"):
        if snapshot.stem.isdigit():
            found = json.loads(snapshot.read_text())
            for entry in found["values"].values():
                if isinstance(entry, dict) and entry.get("state") == path.name:
                    entry["digest"] = digest
            resealed(snapshot, found)


def nested(depth: int) -> Any:
    """Lists in lists, deeper than code that calls itself goes, and not too deep for JSON's own reader."""
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 10**40, 1.5, "", "NaN", "../../x", "/etc/passwd", "\u202ex\x1b[2J", [], ["x"], {}, {"~": "x", "of": 1}, nested(200),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every part of a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [one for key, part in value.items() for one in places(part, (*path, key))]
    elif isinstance(value, list):
        found += [one for number, part in enumerate(value[:2]) for one in places(part, (*path, number))]
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any, remove: bool = False) -> None:
    """Another value at a place, or none."""
    for key in path[:-1]:
        value = value[key]
    if remove:
        del value[path[-1]]
    else:
        value[path[-1]] = new
