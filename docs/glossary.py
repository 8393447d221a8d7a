"""The glossary: words of the field, and every event, setting and name that can be given, read from the code's own tables."""

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from api import MARKUP
from library import NAME, exported, home, modules, public

TERMS = Path(__file__).with_name("terms.md")
TOLD = ("says", "description", "formula", "differs", "source")  # what entries of our tables say of themselves
SAMPLES = {  # event -> what its measurements are taken of, where they are more than counts, times and sizes
    "train.step": "trained tokens of the step's batch; grad_norm before clipping",
    "train.evaluate": "all trained tokens of the split's rows, none of which is trained on if it is `test`",
    "train.pairs": "pairs of the step's batch (`train`), or all held-out pairs (`test`); rewards against the reference",
    "train.policy": "sampled tokens of the step's batch; kl_update: of some of its answers",
    "train.critic": "answer tokens of the step's batch; explained: the share of the returns' variance",
    "train.alarm": "the measurement that the reason names, and the bound that it crossed",
    "rollout.batch": "episodes of one batch; zero_spread: its groups; cut: its answers",
    "rollout.reward": "episodes of one batch that have this component",
    "run.scope": "nothing: settings of the training that begins",
    "teacher.train": "trained tokens of the teacher's last step",
    "train.teacher": "trained tokens of held-out rows, or of training rows where `split` says so",
    "evaluate.answers": "answers to graded held-out questions; low and high: 95 % interval, Wilson's for right and wrong, else a bootstrap's",
    "evaluate.distance": "answers that the policy samples to held-out questions; low and high: 95 % interval",
    "evaluate.wins": "pairs of answers to the same held-out questions; low and high: 95 % interval",
    "sample.answer": "one answer, by the run's metric",
    "feedback.serve": "logged interactions that were graded",
    "feedback.trigger": "reference traffic against recent traffic",
    "feedback.baseline": "graded interactions; low and high: Wilson's 95 % interval",
}
NOTES = {  # a table of names -> unit and sample of what its entries measure
    "METRICS": "Each grades one answer, from 0 to 1; a run tells the mean over its `graded` held-out answers.",
    "REWARDS": "Each judges one answer, from 0 to 1; `rollout.batch` tells the mean over a batch's episodes, weighted as `rewards` says.",
    "LOSSES": "In nats, summed over the tokens of all datums that are weighted.",
    "SFT_LOSSES": "In nats, summed over trained tokens; `train.step` tells it per token.",
    "PAIR_LOSSES": "In nats for each pair; `train.pairs` tells the mean over the pairs of a step.",
    "DISTILL_LOSSES": "In nats for each token that the student is judged on.",
    "KL_ESTIMATORS": "In nats for each sampled token; $r$ is the reference's probability over the policy's.",
}
ADDRESS = re.compile(rf"{NAME}[\w.]*:\w+")


def glossary() -> str:
    """The whole page, as MyST markdown."""
    parts = [TERMS.read_text(encoding="utf-8").strip(), events(), settings(), names()]
    return "\n\n".join(parts) + "\n"


def cell(text: Any) -> str:
    """Words in a cell of a table: code in backticks and formulas stay, nothing else is markup."""
    parts = MARKUP.split(" ".join(str(text).split()))
    escaped = [
        part if MARKUP.fullmatch(part) else re.sub(r"([\\*_<>$#~^\[\]{}`])", r"\\\1", part) for part in parts
    ]
    return "".join(escaped).replace("|", "\\|")


def code(text: Any) -> str:
    """A name or value in a cell of a table."""
    return f"`{text}`" if str(text) else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def events() -> str:
    """Every event by the first part of its name, with measurements, their units, and what identifies it."""
    kinds = public("EVENTS")
    parts = [
        "## Events",
        "Everything that happens is an event of one of these kinds; a measurement's unit stands in brackets, 1 is none.",
    ]
    for family in dict.fromkeys(name.partition(".")[0] for name in kinds):
        rows = [event_row(kind) for name, kind in kinds.items() if name.partition(".")[0] == family]
        parts += [
            f"### Events: {family}",
            table(("event", "says", "measurements", "measured on", "identified by"), rows),
        ]
    return "\n\n".join(parts)


def event_row(kind: Any) -> list[str]:
    """One kind of event: what it says, measurements with units and what they are taken of, and what identifies it."""
    measured = ", ".join(f"{code(name)} [{cell(unit)}]" for name, unit in kind.measurements.items())
    sample = cell(SAMPLES.get(kind.name, ""))
    return [code(kind.name), cell(kind.description), measured, sample, ", ".join(map(code, kind.metadata))]


def settings() -> str:
    """Every setting of every recipe: one row for what is the same, another where a recipe differs."""
    recipes, config_fields = public("RECIPES"), public("config_fields")
    users: dict[tuple[str, ...], list[str]] = {}
    for recipe in recipes.values():
        for item in config_fields(recipe.config):
            allowed = [
                item.kind,
                ", ".join(map(code, item.choices)) or cell(item.bounds),
                "live" if item.live else "",
            ]
            row = (
                code(item.name),
                code(repr(item.default)),
                cell(item.description),
                "; ".join(filter(None, allowed)),
            )
            users.setdefault(row, []).append(recipe.name)
    order = list(dict.fromkeys(row[0] for row in users))
    together = sorted(users.items(), key=lambda pair: order.index(pair[0][0]))
    rows = [[*row, takers(names, recipes)] for row, names in together]
    words = (
        "Settings of the recipes: `kitchen cook NAME --setting value`. Where recipes take different defaults, each has a row; "
        "a live one can be changed while the run stands at a boundary: `k.set(…)`."
    )
    head = ("setting", "default", "what it is", "what it takes", "recipes")
    return "\n\n".join(["## Settings", words, table(head, rows)])


def takers(names: Sequence[str], every: Mapping[str, Any]) -> str:
    """Which recipes have a setting, in the shortest way."""
    missing = [name for name in every if name not in names]
    if not missing:
        return "all"
    return (
        f"all but {', '.join(map(code, missing))}"
        if len(missing) < len(names)
        else ", ".join(map(code, names))
    )


def registries() -> dict[str, Mapping[str, Any]]:
    """Every public table from names to something that can be chosen: functions, classes or records, by module and name."""
    found = {}
    for module in modules().values():
        for name, value in exported(module).items():
            if (
                name.isupper()
                and name != "EVENTS"
                and home(module, name, value) == module.__name__
                and is_choice(value)
            ):
                found[f"{module.__name__}.{name}"] = value
    return found


def is_choice(value: Any) -> bool:
    """Whether something is a table of choices that say what they are; tables about events speak of the program's inside."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        return False
    leaves = [leaf for _, leaf in entries(value)]
    of_events = value.keys() <= public("EVENTS").keys()
    return not of_events and all(map(is_chosen, leaves)) and any(map(says, leaves))


def is_chosen(value: Any) -> bool:
    """Whether something is what a name stands for."""
    first = value[0] if isinstance(value, tuple) and value else value
    return (
        callable(first)
        or dataclasses.is_dataclass(first)
        or (isinstance(first, str) and bool(ADDRESS.fullmatch(first)))
    )


def entries(registry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names with what they stand for; of a table of tables, names with a colon: such as adapters, by their port."""
    found = []
    for name, value in registry.items():
        found += (
            [(f"{name}: {inner}", one) for inner, one in value.items()]
            if isinstance(value, Mapping)
            else [(name, value)]
        )
    return found


def says(value: Any) -> str:
    """What something says of itself: an entry's own words, else the first line of its docstring or of its function's."""
    if isinstance(value, str):
        module, _, attribute = value.partition(":")
        return says(getattr(import_module(module), attribute)) if ADDRESS.fullmatch(value) else value
    if isinstance(value, tuple):
        return "; ".join(filter(None, map(says, value)))
    if dataclasses.is_dataclass(value) and not inspect.isclass(value):
        told = [getattr(value, name, None) for name in TOLD]
        written = [text for text in told if isinstance(text, str) and text]
        return "; ".join(written) if written else function_says(value)
    if isinstance(value, partial):
        return says(value.func)
    own = (inspect.isroutine(value) or inspect.isclass(value)) and str(value.__module__).startswith(NAME)
    return (inspect.getdoc(value) or "").partition("\n")[0] if own else ""


def function_says(record: Any) -> str:
    """What the function in a record says."""
    values = [getattr(record, item.name) for item in dataclasses.fields(record)]
    return next(filter(None, (says(value) for value in values if inspect.isfunction(value))), "")


def environments() -> list[str]:
    """Names of environments: the error about a wrong one lists them."""
    try:
        public("get_problems")("?", 0, 0, "train", ())
    except public("UnknownName") as error:
        return error.choices
    raise LookupError("get_problems took '?' for an environment")


def names() -> str:
    """Every table of names, those of environments too."""
    parts = ["## Names", "What stands behind the names that settings and functions take."]
    parts += [
        "### Environments",
        "Kinds of environments, as `env` names them (`kind` or `kind:name`): "
        + ", ".join(map(code, environments()))
        + ".",
    ]
    for address, registry in registries().items():
        module, _, constant = address.rpartition(".")
        rows = [[code(name), cell(says(value))] for name, value in entries(registry)]
        title = constant.replace("_", " ").capitalize()
        parts += [
            f"### {title}",
            f"{{py:obj}}`{constant} <{address}>` of [`{module}`](/api/{module}). {NOTES.get(constant, '')}".strip(),
            table(("name", "what it is"), rows),
        ]
    return "\n\n".join(parts)
