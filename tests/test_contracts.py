"""Each kind of mistake in a workflow is refused before anything runs, with stage, name and the nearest alternative."""

from dataclasses import replace

import pytest

from kitchen.engine.validation import check_workflow
from kitchen.engine.workflow import Chain, Stage, WorkflowError, chain, scope, stage
from kitchen.recipes.registry import _ADAPTERS, RECIPES, get_recipe
from kitchen.session.kitchen import Kitchen
from kitchen.types import Capabilities, MissingCapability
from kitchen.workflows.sft import supervised

START = {"config", "run", *_ADAPTERS}
LOAD, RENDER, BATCH, OPEN, BASELINE, TRAIN, *REST = supervised.parts


def supervised_with(*parts) -> Chain:
    return chain("supervised", *parts)


@stage(gives="steps")
def misspelt(config, trainig, batches, data, renderer):
    """Wants what nobody gives."""


@stage(gives="curve")
def unused(steps: int):
    """Gives what nobody takes."""


@stage(gives="batches")
def wrong_type(data) -> int:
    """Gives a number where batches are wanted."""
    return 3


MISTAKES = {
    "misspelt name": (
        [LOAD, RENDER, BATCH, OPEN, BASELINE, misspelt, *REST],
        ["stage 'misspelt' needs 'trainig', which nothing gives; did you mean 'training'?"],
    ),
    "wrong order": (
        [LOAD, RENDER, OPEN, BASELINE, TRAIN, BATCH, *REST],
        ["stage 'train' needs 'batches', which stage 'batch' gives only later"],
    ),
    "unused output": (
        [LOAD, RENDER, BATCH, OPEN, BASELINE, TRAIN, unused, *REST],
        ["stage 'unused' gives 'curve', which no stage takes"],
    ),
    "type mismatch": (
        [LOAD, RENDER, wrong_type, OPEN, BASELINE, TRAIN, *REST],
        ["stage 'train' needs 'batches' as Batches[Datum] or StreamBatches[Datum], but stage 'wrong_type' gives int"],
    ),
    "two at once": (
        [LOAD, RENDER, BATCH, BASELINE, TRAIN, *REST],
        ["stage 'baseline' needs 'training', which nothing gives", "stage 'train' needs 'training', which nothing gives"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_stage(mistake):
    parts, messages = MISTAKES[mistake]
    with pytest.raises(WorkflowError) as caught:
        check_workflow(supervised_with(*parts), START, {"version"})
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_its_contracts(name):
    get_recipe(name).check(_ADAPTERS, Capabilities(losses=frozenset({"cross_entropy"}), topk=True))


def test_a_missing_adapter_is_named_with_those_that_exist():
    message = "stage 'register' needs the port 'registry', for which no adapter is named .known: files"
    with pytest.raises(WorkflowError, match=message):
        check_workflow(supervised, START - {"registry"}, {"version"})


def test_a_missing_capability_is_named_before_anything_runs():
    with pytest.raises(MissingCapability, match="stage 'open': this backend has no 'cross_entropy'"):
        get_recipe("sft").check(_ADAPTERS, Capabilities(losses=frozenset({"ppo"})))


def test_a_port_of_another_kind_is_refused():
    def read_from(service: dict) -> None: ...

    with pytest.raises(WorkflowError, match="needs 'service' as dict, but the run has ServiceClient"):
        check_workflow(Stage("read_from", read_from), START)


def test_mistakes_inside_a_scope_carry_its_name():
    inner = scope("reward", supervised_with(LOAD, RENDER, BATCH, OPEN, misspelt))
    with pytest.raises(WorkflowError, match="stage 'reward/misspelt' needs 'trainig'.*did you mean 'training'"):
        check_workflow(inner, START, {"reward/steps"})


def test_a_session_refuses_a_broken_recipe_at_once(runs):
    broken = replace(get_recipe("sft"), workflow=supervised_with(*MISTAKES["wrong order"][0]))
    with pytest.raises(WorkflowError, match="gives only later"):
        Kitchen(broken, backend="toy")
    assert not runs.exists(), "nothing was started"
