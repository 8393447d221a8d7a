"""Each kind of mistake in a workflow is refused before anything runs, with stage, name and the nearest alternative."""

from dataclasses import replace
from typing import get_args

import pytest

from kitchen.config import ConfigError
from kitchen.engine.validation import check_workflow
from kitchen.engine.workflow import Chain, Stage, WorkflowError, chain, scope, stage
from kitchen.evaluation import METRICS, MetricName
from kitchen.losses.distillation import DISTILL_LOSSES, DistillLossName
from kitchen.losses.policy import OBJECTIVES, ObjectiveName
from kitchen.losses.preference import PAIR_LOSSES, PairLossName
from kitchen.losses.token import SFT_LOSSES, SftLossName
from kitchen.recipes.registry import _ADAPTERS, RECIPES, get_recipe
from kitchen.rendering.base import TRAIN_ON, TrainOn
from kitchen.rendering.registry import RENDERERS, RendererName
from kitchen.session.kitchen import Kitchen
from kitchen.train.schedules import SCHEDULES, ScheduleName
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


@stage(after="evaluate")
def too_early(run):
    """Waits for a stage that comes later."""


@stage(after="trian")
def waits_for_nobody(run):
    """Waits for a stage that does not exist."""


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
    "order, of a stage": (
        [LOAD, RENDER, BATCH, OPEN, BASELINE, too_early, TRAIN, *REST],
        ["stage 'too_early' is to come after 'evaluate', which comes only later or not always"],
    ),
    "order, of a value": (
        [LOAD, RENDER, BATCH, OPEN, BASELINE, *REST, TRAIN],
        ["stage 'evaluate' is to come after 'steps', which stage 'train' gives only later or not always"],
    ),
    "order, misspelt": (
        [LOAD, RENDER, BATCH, OPEN, BASELINE, TRAIN, waits_for_nobody, *REST],
        ["stage 'waits_for_nobody' is to come after 'trian', which is neither a stage nor a value; did you mean 'train'?"],
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


def report_every(config, step: int) -> bool:
    return step % (config.evalute_evry or 10) == 0


@stage()
def own_report(config, run):
    """Reads one setting that exists, one that does not, and hands the config to a function that misspells another."""
    print(config.metric, getattr(config, "colour", "blue"), config.grade, report_every(config, 1))


def test_a_misspelt_setting_in_a_stage_of_ones_own_is_found_before_anything_runs(runs):
    recipe = replace(get_recipe("sft"), workflow=supervised_with(*supervised.parts, own_report))
    with pytest.raises(WorkflowError) as caught:
        Kitchen(recipe, backend="toy")
    assert str(caught.value).splitlines() == [
        "stage 'own_report' reads config.grade, which SftConfig does not have; did you mean 'graded'?",
        "stage 'own_report' reads config.evalute_evry in report_every(), which SftConfig does not have; "
        "did you mean 'evaluate_every'?",
    ]
    assert not runs.exists(), "nothing was started"


def test_a_setting_is_looked_for_in_the_class_that_a_scope_is_given():
    inner = scope("sft", supervised_with(LOAD, RENDER, BATCH, OPEN, BASELINE, TRAIN, own_report), takes={"config": "sft_config"})
    broken = chain("rlhf", get_recipe("rlhf").workflow.parts[0], inner)
    with pytest.raises(WorkflowError, match="stage 'sft/own_report' reads config.grade, which SftConfig does not have"):
        check_workflow(broken, START, {"sft/steps"}, config=get_recipe("rlhf").config)


def test_a_stage_without_source_is_passed_over():
    space: dict = {}
    exec("def hidden(config): return config.evalute_evry", space)
    check_workflow(Stage("hidden", space["hidden"]), START, config=get_recipe("sft").config)
    check_workflow(Stage("asked", lambda config: None), START, config=get_recipe("sft").config)


TABLES = {
    MetricName: METRICS,
    ScheduleName: SCHEDULES,
    RendererName: {"auto", *RENDERERS},
    TrainOn: TRAIN_ON,
    SftLossName: SFT_LOSSES,
    PairLossName: PAIR_LOSSES,
    DistillLossName: DISTILL_LOSSES,
    ObjectiveName: OBJECTIVES,
}


@pytest.mark.parametrize("names", TABLES, ids=lambda names: get_args(names)[0])
def test_names_that_type_checkers_know_are_those_of_the_table(names):
    assert sorted(get_args(names)) == sorted(TABLES[names])


def test_a_table_may_grow_and_what_is_no_name_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="unknown metric 'first_word'"):
        Kitchen("sft", metric="first_word")
    monkeypatch.setitem(METRICS, "first_word", lambda answer, reference: float(answer.split()[:1] == reference.split()[:1]))
    assert Kitchen("sft", metric="first_word").config.metric == "first_word"
    for wrong in (5, None, ["exact_match"]):
        with pytest.raises(ConfigError, match="metric = "):
            Kitchen("sft", metric=wrong)
