"""Bad input by the door at which it comes in: settings, arguments, rows, files, functions of users, commands.

`python tests/repository/bad_input.py` prints how many cases of each door are answered well: by an error of kitchen's
own, in words that a person can act on, with nothing left behind. `-v` names the others.
"""

# ruff: noqa: E501  (tables of cases read best one door a line)
import collections
import contextlib
import gzip
import io
import json
import math
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from click.testing import CliRunner

from kitchen.types import InvalidValue, KitchenError

LONE = "a\ud800b"  # half of a surrogate pair: no file and no terminal takes it
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = 10**5000  # more digits than Python turns into text


@dataclass(frozen=True)
class Case:
    """One wrong thing said at one door, and a word that the answer must contain."""

    door: str
    name: str
    act: Callable[[Path], Any]  # given a folder to write in
    says: str = ""

    @property
    def id(self) -> str:
        return f"{self.door}: {self.name}".encode("ascii", "backslashreplace").decode()


def answer_problem(case: Case, folder: Path) -> str:
    """What is wrong with the answer to a case; empty if it is answered well."""
    try:
        case.act(folder)
    except KitchenError as error:
        return words_problem(str(error), case.says)
    except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} from {Path(place.filename).name}:{place.lineno}: {str(error)[:80]!r}"
    return "accepted without a word"


def words_problem(text: str, says: str) -> str:
    """What is wrong with the words of an error."""
    if not text.strip():
        return "an empty message"
    if re.search("unexpected [A-Z]", text) or "Traceback" in text:
        return f"not our own words: {text[:100]!r}"
    if len(text) > 2500:
        return f"{len(text)} letters long"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "a lone surrogate in the message"
    if says.casefold() not in text.casefold():
        return f"does not name {says!r}: {text[:100]!r}"
    return ""


def shown(value: object) -> str:
    """A value as the name of a case."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**40:
        return f"an integer of {value.bit_length()} bits"
    text = re.sub(" at 0x[0-9a-f]+", "", ascii(value))
    return text if len(text) < 50 else f"{text[:40]}… ({len(text)})"


# -- settings ------------------------------------------------------------------------------------------------------

WRONG_NUMBERS: tuple[Any, ...] = (math.nan, math.inf, -math.inf, "x", "", LONE, True, None, [], {}, b"1", 1j, 10**30, HUGE, -(10**30), object())
WRONG_TEXTS: tuple[Any, ...] = (1, 0.5, None, True, [], {}, b"x", LONE, object())
WRONG_SETTINGS: dict[type, tuple[Any, ...]] = {
    int: (*WRONG_NUMBERS, 1.5),
    float: (*WRONG_NUMBERS, 1e308),
    str: WRONG_TEXTS,
    bool: (2, "perhaps", None, [], math.nan, 0.5),
    dict: (1, "x", [], [("a", "b")], None, {1: "x"}, {LONE: "x"}, {"": object()}),
}


def settings_cases() -> Iterator[Case]:
    """Every setting of every recipe with values of the wrong kind."""
    from typing import get_args, get_origin

    from kitchen.recipes.registry import RECIPES

    seen = set()
    for recipe in RECIPES.values():
        for name, field in recipe.config.model_fields.items():
            key = (name, str(field.annotation), str(field.metadata))
            if key in seen:
                continue
            seen.add(key)
            kinds = get_args(field.annotation) if get_origin(field.annotation) not in (dict, None) else (field.annotation,)
            plain = [get_origin(one) or one for one in kinds]
            kind = next((one for one in plain if one in WRONG_SETTINGS), str)  # a Literal is chosen by text
            optional = type(None) in plain
            for value in WRONG_SETTINGS[kind]:
                if (value is None and optional) or (value == 1e308 and name.endswith("learning_rate")):
                    continue  # none is right there; and how training diverges may be looked at
                if value == [] and get_origin(field.annotation) in (tuple, list):
                    continue

                def act(folder: Path, config: Any = recipe.config, name: str = name, value: Any = value) -> None:
                    config(**{"backend": "toy", name: value})

                yield Case("settings", f"{recipe.name} {name} = {shown(value)}", act, name)


# -- arguments -----------------------------------------------------------------------------------------------------

SMALL = {"backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 1, "batch_size": 16, "graded": 2, "held_out": 4, "max_tokens": 4}
SESSION: list[Any] = []  # one run, three steps old, that many cases ask


def session() -> Any:
    """A session that has trained three steps."""
    from kitchen.session.kitchen import Kitchen

    if not SESSION:
        root = tempfile.mkdtemp()
        SESSION.append(Kitchen("sft", run_dir=Path(root) / "runs" / "small", **SMALL))
        SESSION[0].run(until=2)
    return SESSION[0]


NOT_A_NAME: tuple[Any, ...] = (None, 1, [], {}, b"sft", LONE, "no such name", object(), math.nan)
NOT_A_COUNT: tuple[Any, ...] = (None, "x", 1.5, math.nan, math.inf, [], True, -1, object())
NOT_A_NUMBER: tuple[Any, ...] = (None, "x", math.nan, [], 1j, object())
NOT_A_PATH: tuple[Any, ...] = (1, [], b"x", object(), "a\0b", LONE)
NOT_A_LIST: tuple[Any, ...] = (None, 1, "x", object(), [None], [1])
NOT_A_DICT: tuple[Any, ...] = (None, 1, "x", [1], object())
NOT_A_FUNCTION: tuple[Any, ...] = (None, 1, "x", [], object())
NOT_A_FLAG: tuple[Any, ...] = ("x", 2, [], object())


def without(values: tuple[Any, ...], *fine: Any) -> tuple[Any, ...]:
    """The values but for those that are right here."""
    return tuple(one for one in values if not any(one is other for other in fine))


def method_arguments() -> dict[str, dict[str, tuple[Any, ...]]]:
    """Wrong values for every argument of every method of a session."""
    return {
        "__init__": {"recipe": NOT_A_NAME, "adapters": (1, "x", [1], {"service": 1}, {"service": "no such"}, {"no port": "toy"}, {1: "toy"}), "run_dir": NOT_A_PATH},
        "from_parameters": {"recipe": NOT_A_NAME, "namespace": NOT_A_DICT},
        "open": {"run": (*NOT_A_PATH, None, "no such run", ""), "recipe": without(NOT_A_NAME, None), "adapters": (1, "x", [1], {"service": 1})},
        "step": {"unit": NOT_A_NAME, "wait": NOT_A_FLAG},
        "run": {"until": (*without(NOT_A_NAME, None, 1), 1.5, -1, True, ""), "wait": NOT_A_FLAG},
        "wait": {"timeout": ("x", [], math.nan, -1, object())},
        "resume": {"wait": NOT_A_FLAG},
        "rewind": {"step": without((*NOT_A_COUNT, 10**30), None), "stage": without(NOT_A_NAME, None)},
        "fork": {"run_dir": NOT_A_PATH, "learning_rate": NOT_A_NUMBER, "no_such_setting": (1,)},
        "set": {"learning_rate": (*NOT_A_NUMBER, -1.0, math.inf), "weight_decay": NOT_A_NUMBER, "batch_size": NOT_A_COUNT, "no_such_setting": (1,)},
        "break_before": {"stage": NOT_A_NAME},
        "break_when": {"condition": (None, 1, [], {}, b"loss", LONE, object(), "no such measurement")},
        "peek": {"name": NOT_A_NAME},
        "show_batch": {"count": NOT_A_COUNT, "by": without(NOT_A_NAME)},
        "show_rollouts": {"count": NOT_A_COUNT, "full": NOT_A_COUNT, "no_such_filter": (1,), "min_reward": without(NOT_A_NUMBER, None)},
        "show_results": {"count": NOT_A_COUNT},
        "top_losses": {"count": NOT_A_COUNT, "split": NOT_A_NAME, "rows": NOT_A_COUNT},
        "timeline": {"verbs": NOT_A_COUNT},
        "dashboard": {"live": without(NOT_A_FLAG)},
        "report": {"path": NOT_A_PATH},
        "sample": {"count": NOT_A_COUNT},
        "chat": {"system": without(NOT_A_NAME, "no such name"), "max_tokens": (*NOT_A_COUNT, 0), "temperature": (*NOT_A_NUMBER, -1.0)},
        "play": {"what": (1, {}, b"x", object(), "no such world", LONE, [1], [], math.nan), "no_such_option": (1,)},
        "regrade": {"measure": (None, 1, [], {}, b"x", LONE, "no such measure", object(), {"exact_match": math.nan}, {"exact_match": "x"}, {1: 1.0}, [1])},
        "lr_find": {"lowest": (*NOT_A_NUMBER, -1.0, 0.0, math.inf), "highest": (*NOT_A_NUMBER, -1.0, 0.0, math.inf), "steps": (*NOT_A_COUNT, 0, 1)},
        "profile": {"count": NOT_A_COUNT},
        "plan": {"measure": NOT_A_FLAG},
    }


def session_cases() -> Iterator[Case]:
    """Every method of a session with wrong arguments, one at a time."""
    from kitchen.session.kitchen import Kitchen

    fixed: dict[str, dict[str, Any]] = {
        "from_parameters": {"recipe": "sft", "namespace": {}},
        "open": {"run": "."},
        "break_when": {"condition": "loss", "above": 1.0},
        "regrade": {},
        "rewind": {},
    }
    for method, wrong in method_arguments().items():
        for name, values in wrong.items():
            for value in values:

                def act(folder: Path, method: str = method, name: str = name, value: Any = value) -> None:
                    given = {**fixed.get(method, {}), name: value}
                    if method == "__init__":
                        Kitchen(**{"backend": "toy", **given})
                    elif method in ("from_parameters", "open"):
                        getattr(Kitchen, method)(**given)
                    else:
                        getattr(session(), method)(**given)

                yield Case("session", f"{method}({name}={shown(value)})", act)


def function_cases() -> Iterator[Case]:
    """Public functions and types with wrong arguments, one at a time."""
    import kitchen
    from kitchen.adapters.files.datasets import FileDatasets, builtin_rows
    from kitchen.config import config_fields, parse_settings
    from kitchen.data.batches import Batches, mix
    from kitchen.data.formats import parse_row, parse_rows
    from kitchen.data.references import Table, parse_reference, split_rows
    from kitchen.data.synthetic import generate_task_rows, mixture, preference_pairs
    from kitchen.drift import Window, get_triggers, parse_time, read_interactions, read_window
    from kitchen.envs.registry import get_problems
    from kitchen.envs.rewards import Reward, get_rewards, weighted_reward
    from kitchen.evaluation import ask, get_metric, summarize, wilson_interval
    from kitchen.inspection.regrade import regrade
    from kitchen.losses.distillation import get_distill_loss
    from kitchen.losses.policy import estimate_kl, get_objective, group_advantages
    from kitchen.losses.preference import get_pair_loss
    from kitchen.losses.token import get_loss, get_sft_loss, normalize_weights
    from kitchen.losses.value import gae
    from kitchen.ports.registry import adapter_address, adapter_class, adapter_names, create_adapter
    from kitchen.recipes.registry import get_recipe, notebook_path
    from kitchen.recipes.reproduce import manifest, reproduce
    from kitchen.rendering.base import to_datum
    from kitchen.rendering.registry import get_renderer
    from kitchen.reports.build import read_manifest, show_scores, write_report
    from kitchen.reports.export import read_notebook, read_recorded, to_html
    from kitchen.seeding import derive_seed, random_generator
    from kitchen.train.schedules import learning_rate
    from kitchen.types import AdamParams, Datum, LoraParams, Message, SamplingParams

    rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
    doors: list[tuple[Callable[..., Any], dict[str, Any], dict[str, tuple[Any, ...]]]] = [
        (get_recipe, {}, {"name": NOT_A_NAME}),
        (notebook_path, {}, {"name": NOT_A_NAME}),
        (get_metric, {}, {"name": NOT_A_NAME}),
        (get_loss, {}, {"name": NOT_A_NAME}),
        (get_sft_loss, {}, {"name": NOT_A_NAME}),
        (get_objective, {"name": "grpo"}, {"name": NOT_A_NAME, "no_such_part": (1,), "beta": ("x", math.nan, None), "low": (math.nan, "x")}),
        (get_pair_loss, {"name": "dpo"}, {"name": NOT_A_NAME, "beta": (math.nan, "x", None, math.inf, -1.0), "no_such_setting": (1,)}),
        (get_distill_loss, {"name": "jsd"}, {"name": NOT_A_NAME, "beta": (math.nan, "x", None), "no_such_setting": (1,)}),
        (learning_rate, {"schedule": "cosine", "step": 1, "total": 4, "peak": 1.0}, {"schedule": NOT_A_NAME, "step": NOT_A_COUNT, "total": NOT_A_COUNT, "peak": NOT_A_NUMBER}),
        (get_renderer, {"name": "chatml", "tokenizer": None}, {"name": NOT_A_NAME, "tokenizer": (None, 1, "x", object())}),
        (get_problems, {"name": "task:sort", "count": 1, "seed": 0, "split": "train", "rewards": get_rewards("exact_match")},
         {"name": NOT_A_NAME, "count": NOT_A_COUNT, "split": NOT_A_NAME, "seed": ("x", None, 1.5, math.nan), "rewards": NOT_A_LIST}),
        (get_rewards, {}, {"names": (None, 1, [], {}, "no such", ["no such"], {"exact_match": math.nan}, {"exact_match": "x"}, {"exact_match": math.inf}, [1], object(), LONE)}),
        (weighted_reward, {"rewards": get_rewards("exact_match"), "answer": "x", "row": rows[0]}, {"rewards": NOT_A_LIST, "answer": (None, 1, []), "row": NOT_A_DICT}),
        (Reward, {"name": "r", "score": lambda answer, row: 1.0}, {"name": (None, 1, []), "score": NOT_A_FUNCTION, "weight": (math.nan, math.inf, "x", None), "gold": (math.nan, "x")}),
        (wilson_interval, {"mean": 0.5, "count": 4}, {"mean": (*NOT_A_NUMBER, -1.0, 2.0), "count": (*NOT_A_COUNT, 0), "z": (*NOT_A_NUMBER, -1.0, math.inf)}),
        (summarize, {"answers": [], "label": "x", "metric": "exact_match"}, {"answers": (*NOT_A_LIST, [])}),
        (ask, {"sampler": None, "questions": [], "read": str}, {"sampler": (None, 1, "x"), "metric": NOT_A_NAME, "questions": NOT_A_LIST}),
        (regrade, {"answers": {}, "measure": "exact_match"}, {"answers": (*NOT_A_DICT, {}, {"before": []}, {"before": [1]})}),
        (builtin_rows, {"name": "sort", "split": "train"}, {"name": NOT_A_NAME, "split": NOT_A_NAME, "size": without(NOT_A_COUNT, None)}),
        (FileDatasets().load, {"reference": "builtin:sort[:4]"}, {"reference": (*NOT_A_NAME, "builtin:no such", "builtin:sort[5:2]", "builtin:sort[:0]", "builtin:sort[x:]", "hf:a/b", "file:", "builtin:sort?split=no"), "split": NOT_A_NAME}),
        (parse_reference, {}, {"text": (*NOT_A_NAME, "", "builtin:", "x:y", "builtin:sort[" + "9" * 5000 + ":]")}),
        (split_rows, {"rows": rows, "fraction": 0.5, "seed": 0}, {"rows": (None, 1, object(), []), "fraction": (*NOT_A_NUMBER, 0.0, 1.0, -1.0, math.inf), "seed": ("x", None, 1.5)}),
        (parse_rows, {"rows": Table(rows)}, {"rows": (None, 1, "x", object(), [1]), "on_bad_row": NOT_A_NAME, "kind": (1, "x", object()), "columns": (1, "x", [1], {"question": "no such"}, {"no such": "question"}, {"question": 1}, {1: "question"})}),
        (parse_row, {"row": rows[0]}, {"row": (*NOT_A_DICT, {}), "kind": (1, "x")}),
        (Table, {"rows": rows}, {"rows": (None, 1, "x", [1], [None], object()), "reference": (1, None), "row_numbers": (1, "x", [1])}),
        (generate_task_rows, {"task": "sort", "size": 2, "seed": 0}, {"task": NOT_A_NAME, "size": NOT_A_COUNT, "split": NOT_A_NAME, "seed": ("x", None, 1.5)}),
        (preference_pairs, {"task": "sort", "size": 2, "seed": 0}, {"task": NOT_A_NAME, "size": NOT_A_COUNT, "split": NOT_A_NAME}),
        (mixture, {"weights": {"sort": 1.0}, "size": 2, "seed": 0}, {"weights": (*NOT_A_DICT, {}, {"sort": math.nan}, {"sort": -1.0}, {"no such": 1.0}, {"sort": "x"}), "size": NOT_A_COUNT, "split": NOT_A_NAME}),
        (Batches, {"rows": rows, "batch_size": 1}, {"rows": (None, 1, object(), []), "batch_size": (*NOT_A_COUNT, 0), "epochs": (*NOT_A_COUNT, 0), "seed": ("x", None, 1.5)}),
        (mix, {"parts": {"a": rows}, "weights": {"a": 1.0}, "size": 2, "seed": 0}, {"parts": (None, 1, [], {}, {"a": None}), "size": NOT_A_COUNT, "weights": (None, 1, [], {}, {"a": math.nan}, {"a": -1.0}, {"a": "x"}, {"a": 0.0}, {"a": math.inf})}),
        (config_fields, {}, {"config": (None, 1, "sft", dict)}),
        (parse_settings, {"config": get_recipe("sft").config, "values": {}}, {"config": (None, 1, "sft"), "values": NOT_A_DICT}),
        (adapter_names, {}, {"port": NOT_A_NAME}),
        (adapter_address, {"port": "service", "name": "toy"}, {"port": NOT_A_NAME, "name": NOT_A_NAME}),
        (adapter_class, {"port": "service", "name": "toy"}, {"port": NOT_A_NAME, "name": NOT_A_NAME}),
        (create_adapter, {"port": "service", "name": "toy"}, {"port": NOT_A_NAME, "name": NOT_A_NAME, "no_such_option": (1,)}),
        (estimate_kl, {"name": "k1", "logprobs": np.zeros(2), "reference": np.zeros(2)}, {"name": NOT_A_NAME, "logprobs": (None, "x", np.zeros(3), ["a", "b"]), "reference": (None, "x", np.zeros(3), ["a", "b"])}),
        (group_advantages, {"name": "centre", "rewards": [np.ones(4)]}, {"name": NOT_A_NAME, "rewards": (None, "x", ["a"], [1.0], object(), [np.array([math.nan, 1.0])])}),
        (gae, {"rewards": np.zeros(2), "values": np.zeros(2)}, {"rewards": (None, "x", np.zeros(3), ["a", "b"]), "values": (None, "x", np.zeros(3)), "gamma": NOT_A_NUMBER, "lam": NOT_A_NUMBER}),
        (normalize_weights, {}, {"data": (*NOT_A_LIST, [])}),
        (Message, {"role": "user", "content": "x"}, {"role": NOT_A_NAME, "content": (None, 1, [], b"x"), "tool_calls": (1, "x", [1])}),
        (Datum, {"tokens": [1, 2]}, {"tokens": (None, "x", [], [[1]], ["a"], [1.5], [math.nan], [10**30], object()), "loss_fn_inputs": (*NOT_A_DICT, {"weights": [1.0]}, {"weights": ["a", "b"]})}),
        (Datum.from_tokens, {"tokens": [1, 2], "weights": [0.0, 1.0]}, {"tokens": (None, "x", [], [1], 1, ["a", "b"]), "weights": (None, "xy", [1.0], 1, ["a", "b"])}),
        (AdamParams, {}, dict.fromkeys(("learning_rate", "beta1", "beta2", "eps", "weight_decay", "grad_clip_norm"), (*NOT_A_NUMBER, -1.0, math.inf))),
        (LoraParams, {}, {"rank": (*NOT_A_COUNT, 0), "alpha": (*NOT_A_NUMBER, math.inf), "dropout": (*NOT_A_NUMBER, 1.0, -1.0), "train_attn": NOT_A_FLAG}),
        (SamplingParams, {}, {"max_tokens": (*NOT_A_COUNT, 0), "temperature": (*NOT_A_NUMBER, -1.0, math.inf), "top_k": (0, -2, "x", None, 1.5), "top_p": (*NOT_A_NUMBER, 0.0, 2.0), "seed": ("x", 1.5, math.nan, []), "stop": (1, "x", [1.5], [None])}),
        (to_datum, {"renderer": None, "messages": []}, {"renderer": (None, 1), "messages": (None, 1, "x")}),
        (derive_seed, {"seed": 0}, {"seed": ("x", None, 1.5, math.nan, [])}),
        (random_generator, {"seed": 0}, {"seed": ("x", None, 1.5, math.nan, [])}),
        (parse_time, {}, {"time": (None, 1, "", "x", "2020-13-45", [])}),
        (get_triggers, {}, {"chosen": (*NOT_A_DICT, {"no such": {}}, {"drift": 1}, {"drift": {"no such": 1.0}}, {"drift": {"threshold": math.nan}}, {1: {}})}),
        (read_window, {}, {"path": (None, 1, [], "no such file", "a\0b")}),
        (read_interactions, {}, {"path": (None, 1, [], "no such file", "a\0b")}),
        (Window.from_interactions, {}, {"interactions": (None, 1, "x", [1])}),
        (read_manifest, {}, {"notebook": (None, 1, [], {}, "no such.ipynb", "a\0b", object())}),
        (read_notebook, {}, {"notebook": (None, 1, [], {}, "no such.ipynb", "a\0b", object(), ".")}),
        (read_recorded, {}, {"notebook": (None, 1, [], {}, "no such.ipynb", object())}),
        (to_html, {"notebook": "no such.ipynb", "path": "x.html"}, {"notebook": (None, 1, [], object())}),
        (show_scores, {}, {"run": (None, 1, "x", object())}),
        (write_report, {}, {"run": (None, 1, "x", object())}),
        (manifest, {}, {"run": (None, 1, "x", object())}),
        (reproduce, {}, {"recorded": (*NOT_A_DICT, {}, {"status": "completed"}, {"status": "completed", "run_id": "x", "spec": {}}, {"status": "completed", "run_id": "x", "spec": 1}, {"status": "running", "run_id": "x"})}),
        (kitchen.runs, {}, {"recipe": (1, [], b"x"), "status": (1, [], "no such status"), "text": (1, None, []), "count": NOT_A_COUNT, "folder": (1, [], b"x", "a\0b")}),
    ]  # fmt: skip
    for function, fixed, wrong in doors:
        called = getattr(function, "__qualname__", repr(function))
        for name, values in wrong.items():
            for value in values:

                def act(folder: Path, function: Any = function, fixed: Any = fixed, name: str = name, value: Any = value) -> None:
                    function(**{**fixed, name: value})

                yield Case("functions", f"{called}({name}={shown(value)})", act)
    for value in (None, 1, "no such run", object(), [1], [], "a\0b", b"x"):
        yield Case("functions", f"compare({shown(value)})", lambda folder, value=value: kitchen.compare(value))
        yield Case("functions", f"dashboard({shown(value)})", lambda folder, value=value: kitchen.dashboard(value, live=False))


# -- rows and files of data ----------------------------------------------------------------------------------------

def deep(levels: int) -> Any:
    """A list in a list in a list …"""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def wrong_rows() -> dict[str, Any]:
    """Rows with something wrong in them, by what it is; written as JSON."""
    from kitchen.data.tools import carries_content

    turn, found = GOOD["messages"], {}
    for value in (None, 1, "x", [], {}, [1], [None], [[]], [{}], deep(50), True, 1.5):
        found[f"messages {shown(value)}"] = {"messages": value}
        found[f"role {shown(value)}"] = {"messages": [{"role": value, "content": "a"}, turn[1]]}
        if value not in ("x", []):
            found[f"content {shown(value)}"] = {"messages": [{"role": "user", "content": value}, turn[1]]}
            found[f"question {shown(value)}"] = {"question": value, "answer": "b"}
            found[f"answer {shown(value)}"] = {"question": "a", "answer": value}
            found[f"chosen {shown(value)}"] = {"prompt": "a", "chosen": value, "rejected": "b"}
        if not carries_content(value):  # Arrow gives every key to every row: an empty one says nothing
            continue
        found[f"tool_calls {shown(value)}"] = {"messages": [turn[0], {**turn[1], "tool_calls": value}]}
        if value != "x":
            found[f"name {shown(value)}"] = {"messages": [{**turn[0], "name": value}, turn[1]]}
        if value != "x" and value is not True:  # True is a mode of thinking, and counted
            found[f"reasoning {shown(value)}"] = {"messages": [turn[0], {**turn[1], "reasoning_content": value}]}
        if value is not True and value != 1:
            found[f"weight {shown(value)}"] = {"messages": [turn[0], {**turn[1], "weight": value}]}
    found["weight infinite"] = {"messages": [turn[0], {**turn[1], "weight": math.inf}]}
    found["system 1"] = {"system": 1, "question": "a", "answer": "b"}
    found["a surrogate in the question"] = {"question": LONE, "answer": "b"}
    found["a surrogate in the answer"] = {"question": "a", "answer": LONE}
    found["a surrogate in the content"] = {"messages": [{"role": "user", "content": LONE}, turn[1]]}
    found["a surrogate in a column's name"] = {LONE: "a"}
    found["a surrogate in the role"] = {"messages": [{"role": LONE, "content": "a"}, turn[1]]}
    found["empty"] = {}
    found["no known column"] = {"a": 1}
    found["both the same"] = {"prompt": "a", "chosen": "b", "rejected": "b"}
    found["a label NaN"] = {"prompt": "a", "completion": "b", "label": math.nan}
    found["a label of text"] = {"prompt": "a", "completion": "b", "label": "good"}
    return found


def row_cases() -> Iterator[Case]:
    """Rows that are wrong, read from a file of lines."""
    from kitchen.adapters.files.datasets import FileDatasets
    from kitchen.data.formats import parse_rows

    for name, row in wrong_rows().items():

        def act(folder: Path, row: Any = row) -> None:
            path = folder / "rows.jsonl"
            path.write_text(json.dumps(GOOD if "messages" in row else {"question": "q", "answer": "a"}) + "\n" + json.dumps(row) + "\n")
            read = FileDatasets().load(str(path))
            kind = None if "label" in row or "chosen" in row else ...
            from kitchen.data.formats import Conversation, Preference, Rating

            wanted = Conversation if kind is ... else Rating if "label" in row else Preference
            if kind is None:
                read = read.select([1])
            parse_rows(read, kind=wanted)

        yield Case("rows", name, act, "row 2")


def parquet_bytes() -> bytes:
    """A small Parquet file."""
    import pyarrow
    from pyarrow.parquet import write_table

    out = io.BytesIO()
    write_table(pyarrow.table({"question": ["a", "b"], "answer": ["c", "d"]}), out)
    return out.getvalue()


def wrong_files() -> Iterator[tuple[str, bytes]]:
    """Names and contents of data files that cannot be read."""
    line = b'{"question": "a", "answer": "b"}\n'
    for ending in ("jsonl", "json", "csv", "parquet", "jsonl.gz"):
        yield f"empty.{ending}", b""
        yield f"binary.{ending}", bytes(range(256)) * 4
        yield f"utf16.{ending}", line.decode().encode("utf-16")
        yield f"zeros.{ending}", b"\0" * 400
        yield f"latin.{ending}", '{"question": "é", "answer": "b"}'.encode("latin-1")
        yield f"deep.{ending}", DEEP.encode()
        yield f"deep-object.{ending}", b'{"question":' * 50_000 + b"1" + b"}" * 50_000
    yield "digits.jsonl", b'{"question": ' + b"9" * 5000 + b"}\n"
    yield "digits.json", b'[{"question": ' + b"9" * 5000 + b"}]"
    yield "half.jsonl", line + line[:10]
    yield "scalar.json", b"1"
    yield "object.json", b"{}"
    yield "rows.json", b"[1, 2]"
    yield "lines.json", line * 2
    yield "empty-list.json", b"[]"
    yield "nulls.jsonl", b"null\nnull\n"
    yield "blank.jsonl", b"\n \n\n"
    yield "head-only.csv", b"question,answer\n"
    yield "twice.csv", b"question,question\na,b\n"
    yield "ragged.csv", b"question,answer\na\n"
    yield "quote.csv", b'question,answer\n"a,b\n'
    yield "cut.jsonl.gz", gzip.compress(line * 100)[:-12]
    yield "flipped.jsonl.gz", bytes(value ^ (0x55 if 20 < place < 30 else 0) for place, value in enumerate(gzip.compress(line * 5, mtime=0)))
    yield "plain.jsonl.gz", line
    whole = parquet_bytes()
    for size in (3, 4, 8, len(whole) // 2, len(whole) - 1):
        yield f"cut-{size}.parquet", whole[:size]
    yield "no-foot.parquet", whole[:-8] + b"\0" * 8
    yield "wrong-foot.parquet", whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:]
    yield "page.parquet", whole[:4] + b"\xff" * 40 + whole[44:]
    yield "lines.parquet", line
    for name in ("a.txt", "a", "a.xlsx", "a.jsonl.zip", "a.py", "a.JSONL.bak"):
        yield name, line


def file_cases() -> Iterator[Case]:
    """Data files that are wrong as a whole."""
    from kitchen.adapters.files.datasets import FileDatasets
    from kitchen.data.formats import parse_rows

    for name, content in wrong_files():

        def act(folder: Path, name: str = name, content: bytes = content) -> None:
            (folder / name).write_bytes(content)
            parse_rows(FileDatasets().load(f"file:{folder / name}"))

        yield Case("data files", name, act, name)

    def folder_named_so(folder: Path) -> None:
        (folder / "a.jsonl").mkdir()
        FileDatasets().load(str(folder / "a.jsonl"))

    def locked(folder: Path) -> None:
        os.mkfifo(folder / "a.jsonl")
        FileDatasets().load(str(folder / "a.jsonl"))

    def loop(folder: Path) -> None:
        (folder / "a.jsonl").symlink_to("a.jsonl")
        FileDatasets().load(str(folder / "a.jsonl"))

    yield Case("data files", "a folder named so", folder_named_so)
    yield Case("data files", "a pipe", locked)
    yield Case("data files", "a link to itself", loop)


# -- other files ---------------------------------------------------------------------------------------------------

WRONG_JSON: dict[str, bytes] = {
    "nothing": b"",
    "binary": bytes(range(256)),
    "half": b'{"cells": [',
    "deep": DEEP.encode(),
    "digits": b"9" * 5000,
    "a number": b"1",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "a text": b'"x"',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "NaN": b"NaN",
    "a surrogate": b'{"\\ud800": "\\udfff"}',
    "nested": b'{"cells": 1, "metadata": 1, "spec": 1, "model": 1, "chat_template": 1}',
}


def json_cases() -> Iterator[Case]:
    """Files that should hold JSON of a kind and hold something else: traffic, windows, notebooks, settings, models."""
    from kitchen.adapters.files.registry import FileRegistry
    from kitchen.cli.lab import copy_recipes
    from kitchen.cli.parameters import make_request
    from kitchen.config import ExperimentSpec
    from kitchen.drift import read_interactions, read_window
    from kitchen.reports.build import read_manifest
    from kitchen.reports.export import read_notebook

    def tiny_chat(folder: Path, name: str, content: bytes) -> None:
        import shutil
        from importlib.resources import files

        from kitchen.adapters.torch.client import TorchService

        shutil.copytree(str(files("kitchen") / "assets" / "models" / "tiny-chat"), folder / "model")
        (folder / "model" / name).write_bytes(content)
        service = TorchService(device="cpu")
        service.get_tokenizer(str(folder / "model"))
        if name == "config.json":
            from kitchen.types import LoraParams

            service.create_training_client(str(folder / "model"), LoraParams(4), 0)

    def lab(path: Path) -> None:
        (path.parent / ".kitchen-lab.json").write_bytes(path.read_bytes())
        copy_recipes(path.parent, [])

    def versions(path: Path) -> None:
        store = FileRegistry(path.parent / "registry")
        (path.parent / "registry" / "x" / "1").mkdir(parents=True)
        (path.parent / "registry" / "x" / "1" / "entry.json").write_bytes(path.read_bytes())
        store.versions("x")

    doors: dict[str, Callable[[Path], Any]] = {
        "interactions": read_interactions,
        "window": read_window,
        "notebook": read_notebook,
        "manifest": read_manifest,
        "spec as JSON": lambda path: ExperimentSpec.from_json(path.read_text("utf-8", "replace")),
        "spec as YAML": lambda path: ExperimentSpec.from_yaml(path.read_text("utf-8", "replace")),
        "cook a notebook": lambda path: make_request(str(path.rename(path.with_suffix(".ipynb"))), {"x": "1"}),
        "receipt of the lab": lab,
        "a version in the registry": versions,
    }
    fine = {
        ("interactions", "nothing"), ("notebook", "-"), ("receipt of the lab", "an object"), ("receipt of the lab", "a surrogate"),
        ("receipt of the lab", "nested"), ("receipt of the lab", "utf-16"), ("a version in the registry", "utf-16"),
        ("a version in the registry", "an object"), ("a version in the registry", "a surrogate"), ("a version in the registry", "nested"),
    }  # fmt: skip
    for door, read in doors.items():
        for name, content in WRONG_JSON.items():
            if (door, name) in fine:
                continue

            def act(folder: Path, read: Any = read, content: bytes = content) -> None:
                (folder / "file.json").write_bytes(content)
                read(folder / "file.json")

            yield Case("files", f"{door}: {name}", act)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        for name, content in WRONG_JSON.items():
            if (file, name) in {("tokenizer_config.json", "an object"), ("tokenizer_config.json", "a surrogate"), ("config.json", "a surrogate")}:
                continue
            yield Case("files", f"{file}: {name}", lambda folder, file=file, content=content: tiny_chat(folder, file, content))


# -- templates -----------------------------------------------------------------------------------------------------

WRONG_TEMPLATES = {
    "syntax": "{% for",
    "unknown filter": "{{ messages | no_such_filter }}",
    "unknown tag": "{% no_such_tag %}",
    "undefined": "{{ no_such.name }}",
    "raises": "{{ raise_exception('no') }}",
    "divides by zero": "{{ 1 / 0 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in data": "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
    "attribute": "{{ ''.__class__.__mro__ }}",
    "call of None": "{{ none() }}",
    "a type": "{{ messages + 1 }}",
    "an index": "{{ messages[99].content.x }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as y %}",
    "extends": "{% extends 'x' %}",
    "huge range": "{% for i in range(10**9) %}{% endfor %}",
    "huge text": "{{ 'x' * 10**10 }}",
    "huge power": "{{ 9**9**9 }}",
    "nothing of the messages": "hello",
    "empty": " ",
}


def template_cases() -> Iterator[Case]:
    """Chat templates that are wrong."""
    from kitchen.rendering.jinja import CompiledTemplate
    from kitchen.types import Message

    def template(text: Any) -> CompiledTemplate:
        return CompiledTemplate(SimpleNamespace(name="mine", chat_template=text, template_variables={}), date(2020, 1, 1))

    for name, text in WRONG_TEMPLATES.items():
        if name in ("nothing of the messages", "empty", "huge power"):
            continue

        def act(folder: Path, text: str = text) -> None:
            template(text).render_text([Message("user", "a").as_dict()], True)

        yield Case("templates", name, act)
    for value in (None, 1, [], {}, b"x"):
        yield Case("templates", f"of type {shown(value)}", lambda folder, value=value: template(value).render_text([], True))


# -- functions of users --------------------------------------------------------------------------------------------

def leave() -> Any:
    raise SystemExit(3)


def interrupt() -> Any:
    raise GeneratorExit


async def coroutine(*values: Any) -> float:
    return 1.0


def generator(*values: Any) -> Iterator[float]:
    yield 1.0


WRONG_REWARDS: dict[str, Callable[..., Any]] = {
    "None": lambda answer, row: None,
    "a text": lambda answer, row: "1",
    "NaN": lambda answer, row: math.nan,
    "infinite": lambda answer, row: math.inf,
    "complex": lambda answer, row: 1j,
    "a list": lambda answer, row: [1.0],
    "an array": lambda answer, row: np.ones(2),
    "huge": lambda answer, row: HUGE,
    "1e400 as an integer": lambda answer, row: 10**400,
    "raises": lambda answer, row: 1 / 0,
    "raises with a surrogate": lambda answer, row: {}[LONE],
    "exits": lambda answer, row: leave(),
    "leaves as a generator does": lambda answer, row: interrupt(),
    "no parameters": lambda: 1.0,
    "one parameter": lambda answer: 1.0,
    "three parameters": lambda answer, row, more: 1.0,
    "keywords only": lambda *, answer, row: 1.0,
    "async": coroutine,
    "a generator": generator,
    "a class": type("Odd", (), {}),
}


class FakeEnv:
    """An environment with one thing wrong."""

    def __init__(self, start: Any, step: Any):
        self._start, self._step = start, step

    def start(self) -> Any:
        return self._start()

    def step(self, action: Any) -> Any:
        return self._step(action)


class ShortStep:
    def start(self) -> Any:
        from kitchen.types import Message

        return [Message("user", "a")]

    def step(self) -> Any:
        return None


class AsyncStep(ShortStep):
    async def step(self, action: Any) -> Any:  # type: ignore[override]
        return None


class NoStep:
    def start(self) -> Any:
        return []


def wrong_envs() -> dict[str, Callable[[], Any]]:
    from kitchen.envs.base import Step
    from kitchen.types import Message

    opening, done = (lambda: [Message("user", "a")]), (lambda action: Step())
    steps: dict[str, Callable[[Any], Any]] = {
        "None": lambda action: None,
        "a number": lambda action: 1.0,
        "a tuple": lambda action: ((), 1.0, True),
        "a reward NaN": lambda action: Step(reward=math.nan),
        "a reward of text": lambda action: Step(reward="1"),  # type: ignore[arg-type]
        "a reward of None": lambda action: Step(reward=None),  # type: ignore[arg-type]
        "a reward complex": lambda action: Step(reward=1j),  # type: ignore[arg-type]
        "a reward of 400 digits": lambda action: Step(reward=10**400),
        "messages of text": lambda action: Step(messages="a", done=False),  # type: ignore[arg-type]
        "messages of None": lambda action: Step(messages=None, done=False),  # type: ignore[arg-type]
        "messages of numbers": lambda action: Step(messages=(1,), done=False),  # type: ignore[arg-type]
        "endless messages": lambda action: Step(messages=iter(lambda: Message("user", "a"), None), done=False),  # type: ignore[arg-type]
        "done as text": lambda action: Step(messages=(Message("user", "a"),), done="no"),  # type: ignore[arg-type]
        "parts of a list": lambda action: Step(parts=[1]),  # type: ignore[arg-type]
        "parts NaN": lambda action: Step(parts={"a": math.nan}),
        "parts by number": lambda action: Step(parts={1: 1.0}),  # type: ignore[dict-item]
        "raises": lambda action: 1 / 0,
        "exits": lambda action: leave(),
        "leaves as a generator does": lambda action: interrupt(),
    }
    starts: dict[str, Callable[[], Any]] = {
        "None": lambda: None,
        "a text": lambda: "a",
        "a dict": lambda: {"role": "user"},
        "dicts": lambda: [{"role": "user", "content": "a"}],
        "numbers": lambda: [1],
        "raises": lambda: 1 / 0,
        "exits": leave,
        "endless": lambda: iter(lambda: Message("user", "a"), None),
    }
    found = {f"step gives {name}": (lambda step=step: FakeEnv(opening, step)) for name, step in steps.items()}
    found |= {f"start gives {name}": (lambda start=start: FakeEnv(start, done)) for name, start in starts.items()}
    found |= {"step takes nothing": ShortStep, "step is async": AsyncStep, "there is no step": NoStep, "None": lambda: None, "a number": lambda: 1, "exits": leave}
    return found


def play_env(make: Callable[[], Any], timeout: float = math.inf) -> None:
    """Play one group of episodes on the toy."""
    from dataclasses import replace
    from functools import partial

    from kitchen.adapters.toy.client import ToyService
    from kitchen.envs.base import Problem, independent_envs
    from kitchen.rendering.registry import get_renderer
    from kitchen.train.rollouts import Policy, play_groups
    from kitchen.train.trajectories import DEFAULT_LIMITS
    from kitchen.types import SamplingParams

    service = ToyService()
    sampler = service.create_sampling_client("toy")
    policy = Policy(sampler, get_renderer("chatml", service.get_tokenizer("toy")), SamplingParams(max_tokens=2))
    limits = replace(DEFAULT_LIMITS, on_failure="stop", env_timeout=timeout)
    play_groups(policy, [Problem("mine", "a", partial(independent_envs, make))], 2, 0, limits)


def user_cases() -> Iterator[Case]:
    """Rewards, environments, measures and worlds of users."""
    from kitchen.envs.base import QuestionEnv
    from kitchen.envs.registry import get_problems
    from kitchen.envs.rewards import Reward, get_rewards

    row = {"question": "a", "answer": "b"}
    for name, score in WRONG_REWARDS.items():
        yield Case("users", f"a reward: {name}", lambda folder, score=score: Reward("mine", score)("a", row), "mine")
        yield Case("users", f"a reward in play: {name}", lambda folder, score=score: play_env(lambda: QuestionEnv(row, [Reward("mine", score, gold=None)])), "mine")
        yield Case("users", f"a measure: {name}", lambda folder, score=score: session().regrade(score))
    for name, make in wrong_envs().items():
        yield Case("users", f"an environment: {name}", lambda folder, make=make: play_env(make), "mine")
        yield Case("users", f"an environment with a time limit: {name}", lambda folder, make=make: play_env(make, 5.0), "mine")
    worlds: dict[str, Any] = {
        "nothing": lambda *values: None, "a text": lambda *values: "x", "numbers": lambda *values: [1], "empty": lambda *values: [],
        "raises": lambda *values: 1 / 0, "exits": lambda *values: leave(), "no parameters": list, "no function": 1, "async": coroutine,
        "a generator": generator,
    }  # fmt: skip
    for name, world in worlds.items():

        def act(folder: Path, world: Any = world) -> None:
            import types

            module = types.ModuleType("bad_world")
            module.__dict__["make"] = world
            sys.modules["bad_world"] = module
            get_problems("module:bad_world:make", 2, 0, "train", get_rewards("exact_match"))

        yield Case("users", f"a world: {name}", act, "bad_world")
    for name in ("", "no_such_module", "json:no_such", "json", ":", "json:", "..x:y", "a b:c", "json:loads:x", "\0:x"):
        yield Case("users", f"a world named {name!r}", lambda folder, name=name: get_problems(f"module:{name}", 2, 0, "train", []), "module")
    for text in ("raise SystemExit(3)", "1 / 0", "def", "import no_such_module"):

        def act(folder: Path, text: str = text) -> None:
            (folder / "leaving_world.py").write_text(text)
            sys.path.insert(0, str(folder))
            try:
                get_problems("module:leaving_world:make", 2, 0, "train", [])
            finally:
                sys.path.remove(str(folder))
                sys.modules.pop("leaving_world", None)

        yield Case("users", f"a world whose module says {text}", act, "leaving_world")


# -- training ------------------------------------------------------------------------------------------------------

def training_cases() -> Iterator[Case]:
    """Data of wrong shapes, types and values, given to losses and to a backend."""
    from kitchen.adapters.toy.client import ToyService
    from kitchen.types import Datum, SamplingParams

    good = {"targets": [2, 3], "weights": [1.0, 1.0]}
    wrong: dict[str, Any] = {
        "no targets": lambda: [Datum([1, 2], {"weights": [1.0, 1.0]})],  # type: ignore[arg-type]
        "no weights": lambda: [Datum([1, 2], {"targets": [2, 3]})],  # type: ignore[arg-type]
        "a token too high": lambda: [Datum([1, 10**9], good)],  # type: ignore[arg-type]
        "a token below 0": lambda: [Datum([1, -1], good)],  # type: ignore[arg-type]
        "a target too high": lambda: [Datum([1, 2], {**good, "targets": [2, 10**9]})],  # type: ignore[arg-type]
        "a target below 0": lambda: [Datum([1, 2], {**good, "targets": [2, -5]})],  # type: ignore[arg-type]
        "a weight NaN": lambda: [Datum([1, 2], {**good, "weights": [1.0, math.nan]})],  # type: ignore[arg-type]
        "a weight infinite": lambda: [Datum([1, 2], {**good, "weights": [1.0, math.inf]})],  # type: ignore[arg-type]
        "no rows": list,
        "None": lambda: None,
        "a text": lambda: "x",
        "numbers": lambda: [1],
    }
    for name, data in wrong.items():
        for verb in ("forward", "forward_backward"):

            def act(folder: Path, verb: str = verb, data: Any = data) -> None:
                client = ToyService().create_training_client("toy", None, 0)
                getattr(client, verb)(data(), "cross_entropy").result()

            yield Case("training", f"{verb}: {name}", act)
    for loss in ("no such loss", None, 1, [], LONE):

        def act(folder: Path, loss: Any = loss) -> None:
            client = ToyService().create_training_client("toy", None, 0)
            client.forward_backward([Datum([1, 2], good)], loss).result()  # type: ignore[arg-type]

        yield Case("training", f"a loss {shown(loss)}", act)
    for policy in ("ppo", "importance_sampling", "cispo"):
        for name in ("advantages", "logprobs"):
            for value in (math.nan, math.inf):

                def act(folder: Path, policy: str = policy, name: str = name, value: float = value) -> None:
                    inputs = {**good, "advantages": [1.0, 1.0], "logprobs": [-1.0, -1.0], name: [value, 1.0]}
                    client = ToyService().create_training_client("toy", None, 0)
                    client.forward_backward([Datum([1, 2], inputs)], policy).result()  # type: ignore[arg-type]

                yield Case("training", f"{policy}: {name} {value}", act)
    for value in (None, 1, [], "no such model", LONE):
        yield Case("training", f"a model {shown(value)}", lambda folder, value=value: ToyService().create_training_client(value, None, 0))
    for value in (None, 1, "x", [], object()):

        def act(folder: Path, value: Any = value) -> None:
            ToyService().create_training_client("toy", None, 0).optim_step(value).result()

        yield Case("training", f"optim_step({shown(value)})", act)
    for prompt in ([], None, "x", [10**9], [-1], [1.5], ["a"]):

        def act(folder: Path, prompt: Any = prompt) -> None:
            ToyService().create_sampling_client("toy").sample(prompt, 1, SamplingParams(max_tokens=2)).result()

        yield Case("training", f"sample({shown(prompt)})", act)
    for count in (0, -1, None, "x", 1.5):

        def act(folder: Path, count: Any = count) -> None:
            ToyService().create_sampling_client("toy").sample([1], count, SamplingParams(max_tokens=2)).result()

        yield Case("training", f"sample {shown(count)} answers", act)


# -- commands ------------------------------------------------------------------------------------------------------

def wrong_commands() -> Iterator[tuple[list[str], str]]:
    """Words after `kitchen` that cannot be done, and a file to be written before: name or empty."""
    settings = ["nan", "inf", "x", "-1", "1e400", "[", "{", "", "true", "\x1b[31m", "9" * 5000]
    for command in ("validate", "plan", "cook"):
        for value in settings:
            yield [command, "sft", "--backend", "toy", "--learning-rate", value], "learning_rate"
            yield [command, "sft", "--backend", "toy", "-p", "batch_size", value], "batch_size"
        for value in ("[", "{", "{a: ", "- 1", "1", "{1: 2}", "!!python/object:os.system x", "&a [*a]", "{a: 2000-13-45}"):
            yield [command, "sft", "--backend", "toy", "--columns", value], "columns"
        yield [command], ""
        yield [command, ""], ""
        yield [command, "no-such-recipe"], "no-such-recipe"
        yield [command, "no-such.ipynb"], "no-such.ipynb"
        yield [command, "sft", "--no-such-flag", "1"], "no-such-flag"
        yield [command, "sft", "-p", "no_such", "1"], "no_such"
        yield [command, "sft", "-p", "seed"], ""
        yield [command, "sft", "-f", "no-such.yaml"], "no-such.yaml"
        yield [command, "sft", "-f", "."], "."
    for words in (
        ["no-such-command"], ["report", "no-such"], ["report", ""], ["verify", "no-such"], ["verify", "/dev/null"], ["resume", "no-such"],
        ["reproduce", "no-such"], ["reproduce", "no-such.ipynb"], ["reproduce", "/dev/null"], ["runs", "-n", "x"], ["runs", "-n", "nan"],
        ["runs", "-n", "-1"], ["runs", "--status", "no such status"], ["describe"], ["describe", "no-such"], ["describe", "no-such.ipynb"],
        ["report", "--html"], ["report", "a", "b"], ["report", "--no-such"], ["list", "more"], ["doctor", "more"],
        ["reproduce", "x", "--tolerance", "x"], ["cook", "sft", "--resume", "no-such"], ["cook", "sft", "--out", "/dev/null/x"], ["verify", "a\0b"], ["report", "\ud800"],
        ["describe", "\ud800"], ["cook", "\ud800.ipynb"], ["verify", "x" * 5000], ["cook", "x" * 5000 + ".ipynb"], ["plan", "sft", "-f", "x" * 5000],
    ):  # fmt: skip
        yield words, ""


def command_problem(words: list[str], says: str) -> str:
    """What is wrong with the answer to a command."""
    from kitchen.cli.main import main

    result = CliRunner().invoke(main, words)
    if result.exit_code not in (1, 2):
        return f"exit code {result.exit_code}: {result.output[:80]!r}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__} came out of it"
    problem = words_problem(result.output, says if says in result.output else says.replace("_", "-"))
    if problem:
        return problem
    left = list(Path(os.environ["KITCHEN_RUNS"]).rglob("*")) if Path(os.environ["KITCHEN_RUNS"]).exists() else []
    return f"it left {left[0]}" if left else ""


def command_cases() -> Iterator[Case]:
    """Commands with wrong arguments."""
    for words, says in wrong_commands():

        def act(folder: Path, words: list[str] = words, says: str = says) -> None:
            with contextlib.chdir(folder):
                problem = command_problem(words, says)
            if problem:
                raise AssertionError(problem)
            raise InvalidValue(f"answered as it should be: {says}")

        yield Case("commands", " ".join(shown(word)[1:-1] for word in words), act)
    notebooks = {
        "no parameters cell": {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
        "nbformat 3": {"worksheets": [{"cells": []}], "metadata": {}, "nbformat": 3, "nbformat_minor": 0},
        "nbformat 99": {"cells": [], "metadata": {}, "nbformat": 99, "nbformat_minor": 0},
        "nbformat as text": {"cells": [], "metadata": {}, "nbformat": "4", "nbformat_minor": 5},
        "no source": {"cells": [{"cell_type": "code"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
        "cells of numbers": {"cells": [1], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
        "parameters that are no Python": {"cells": [{"cell_type": "code", "id": "a", "source": "def (", "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
        "tags of a number": {"cells": [{"cell_type": "code", "id": "a", "source": "x = 1", "metadata": {"tags": 1}, "outputs": [], "execution_count": None}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5},
        "metadata of a list": {"cells": [], "metadata": [], "nbformat": 4, "nbformat_minor": 5},
    }  # fmt: skip
    for name, content in notebooks.items():
        for command in ("validate", "cook", "plan"):

            def act(folder: Path, content: Any = content, command: str = command) -> None:
                (folder / "mine.ipynb").write_text(json.dumps(content))
                with contextlib.chdir(folder):
                    problem = command_problem([command, "mine.ipynb", "-p", "no_such", "1"], "")
                if problem:
                    raise AssertionError(problem)
                raise InvalidValue("answered as it should be")

            yield Case("commands", f"{command} a notebook: {name}", act)
    for name, content in WRONG_JSON.items():
        if name in ("nothing", "null", "an object"):
            continue

        def act(folder: Path, content: bytes = content) -> None:
            (folder / "settings.yaml").write_bytes(content)
            with contextlib.chdir(folder):
                problem = command_problem(["validate", "sft", "-f", "settings.yaml"], "")
            if problem:
                raise AssertionError(problem)
            raise InvalidValue("answered as it should be")

        yield Case("commands", f"validate -f a file with {name}", act)


# -- damaged files -------------------------------------------------------------------------------------------------

def file_mutations(content: bytes, draws: random.Random, count: int) -> Iterator[bytes]:
    """A file with something changed at random: a byte, a cut, a piece doubled, a word exchanged for another kind."""
    pieces = (b"null", b"[]", b"{}", b"1e999", b"-1", b'"\\ud800"', b"NaN", b"\xff", b"\0", b"9" * 5000, b"[" * 3000, b"true", b"", b'"')
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(draws.randint(1, 3)):
            place = draws.randrange(len(changed) + 1)
            length = draws.choice((0, 1, 4, 16))
            changed[place : place + length] = draws.choice((draws.choice(pieces), bytes([draws.randrange(256)]), bytes(changed[place : place + 30])))
        yield bytes(changed[: draws.randrange(len(changed) + 1)] if draws.random() < 0.15 else changed)


def fuzz_doors() -> dict[str, tuple[bytes, str, Callable[[Path], Any]]]:
    """What is read from disk, outside of runs: a whole file of each kind, its name, and what reads it."""
    import shutil
    from importlib.resources import files

    from kitchen.adapters.files.datasets import FileDatasets
    from kitchen.adapters.files.registry import FileRegistry
    from kitchen.adapters.torch.tokenizers import HuggingFaceTokenizer
    from kitchen.cli.lab import copy_recipes
    from kitchen.cli.parameters import _file_values, recipe_settings
    from kitchen.config import ExperimentSpec
    from kitchen.data.formats import parse_rows
    from kitchen.drift import Interaction, Window, read_interactions, read_window
    from kitchen.recipes.registry import notebook_path
    from kitchen.recipes.reproduce import _check_manifest
    from kitchen.rendering.jinja import CompiledTemplate
    from kitchen.reports.build import read_manifest
    from kitchen.types import Message

    lines = "".join(json.dumps(GOOD) + "\n" for _ in range(3)).encode()
    model = Path(str(files("kitchen") / "assets" / "models" / "tiny-chat"))
    table = b"question,answer\na,b\nc,d\n"
    one = {"id": "1", "time": "2020-01-01T00:00:00", "model": "m", "tag": "t", "messages": GOOD["messages"], "grade": 1.0}

    def rows(path: Path) -> None:
        parse_rows(FileDatasets().load(str(path)))

    def tokenizer(path: Path) -> None:
        for other in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if other != path.name and (model / other).is_file():
                shutil.copy(model / other, path.parent / other)
        found = HuggingFaceTokenizer(path.parent)
        if found.chat_template:
            CompiledTemplate(found, date(2020, 1, 1)).render_text([Message("user", "a").as_dict()], True)

    def lab(path: Path) -> None:
        copy_recipes(path.parent, [])

    def entry(path: Path) -> None:
        folder = path.parent / "registry" / "x" / "1"
        folder.mkdir(parents=True)
        path.rename(folder / "entry.json")
        FileRegistry(path.parent / "registry").versions("x")

    def manifest(path: Path) -> None:
        from kitchen.input import parse_json

        _check_manifest(parse_json(path.read_bytes(), "the manifest"))

    window = {"model": "m", "until": "", "interactions": 1, "graded": 1, "accuracy": 1.0, "measures": {"a": [1.0]}, "categories": {"tag": {"t": 1}}}
    told = {"run_id": "x", "status": "completed", "spec": {"recipe": "sft"}, "curves": {"a": [1.0]}, "edits": [], "artifacts": [], "digest": None}
    spec = ExperimentSpec(recipe="sft", config={"a": 1})
    _ = Interaction, Window
    return {
        "JSON lines": (lines, "a.jsonl", rows),
        "JSON": (b"[" + lines.strip().replace(b"\n", b",") + b"]", "a.json", rows),
        "CSV": (table, "a.csv", rows),
        "gzip": (gzip.compress(lines, mtime=0), "a.jsonl.gz", rows),
        "Parquet": (parquet_bytes(), "a.parquet", rows),
        "interactions": ((json.dumps(one) + "\n").encode() * 2, "a.jsonl", read_interactions),
        "window": (json.dumps(window).encode(), "a.json", read_window),
        "notebook": (notebook_path("sft").read_bytes(), "a.ipynb", lambda path: recipe_settings(str(path))),
        "manifest in a notebook": (notebook_path("sft").read_bytes(), "a.ipynb", read_manifest),
        "manifest": (json.dumps(told).encode(), "a.json", manifest),
        "spec": (spec.to_json().encode(), "a.json", lambda path: ExperimentSpec.from_json(path.read_text("utf-8", "replace"))),
        "spec in YAML": (spec.to_yaml().encode(), "a.yaml", lambda path: ExperimentSpec.from_yaml(path.read_text("utf-8", "replace"))),
        "settings": (b"epochs: 2\ncolumns: {question: q}\n", "a.yaml", lambda path: _file_values(path)),
        "tokenizer_config.json": ((model / "tokenizer_config.json").read_bytes(), "tokenizer_config.json", tokenizer),
        "template": ((model / "chat_template.jinja").read_bytes(), "chat_template.jinja", tokenizer),
        "receipt of the lab": (b'{"sft.ipynb": "abc"}', ".kitchen-lab.json", lab),
        "version in the registry": (b'{"run_id": "x", "artifact": "a", "sha256": "s", "version": 1}', "entry.json", entry),
    }  # fmt: skip


def all_cases() -> list[Case]:
    """Every case."""
    makers = (
        settings_cases, session_cases, function_cases, row_cases, file_cases, json_cases, template_cases, user_cases, training_cases, command_cases,
    )  # fmt: skip
    return [case for make in makers for case in make()]


def main() -> None:
    """Print the tally, door by door."""
    tally, bad = collections.Counter[str](), collections.defaultdict[str, list[str]](list)
    warnings.simplefilter("ignore")
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    for case in all_cases():
        if os.environ.get("TRACE"):
            print(time.time(), case.id, file=sys.stderr, flush=True)
        if wanted and case.door not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.environ["KITCHEN_RUNS"] = str(Path(folder) / "runs")
            with contextlib.redirect_stdout(io.StringIO()):
                problem = answer_problem(case, Path(folder))
        tally[case.door] += 1
        if problem:
            bad[case.door].append(f"{case.name}: {problem}")
    for door, count in tally.items():
        print(f"{door:<12} {count - len(bad[door]):>5} of {count:>5} answered well")
        if "-v" in sys.argv:
            print("".join(f"    {one.encode('ascii', 'backslashreplace').decode()}\n" for one in bad[door]), end="")
    print(f"{'all':<12} {sum(tally.values()) - sum(map(len, bad.values())):>5} of {sum(tally.values()):>5}")


if __name__ == "__main__":
    main()
