"""A person in the policy's place, in every environment there is; what environments and people write is shown as text."""

import json

import pytest

from kitchen.envs.base import Problem, QuestionEnv, ToolEnv, add
from kitchen.envs.judge import add_tournament, judge_by_scores
from kitchen.envs.registry import get_problems
from kitchen.envs.rewards import get_rewards
from kitchen.envs.sandbox import containment_problem
from kitchen.inspection.play import _PlayWidget, play
from kitchen.session.kitchen import Kitchen
from kitchen.types import InvalidValue, Message
from kitchen.widgets.dashboard import has_frontend

ENVIRONMENTS = [
    "task:sort", "gym:chain_sum", "code", "code:brief", "tools", "tools:brief", "search", "search:brief", "guess", "nim",
    "task:sort+nim",
]  # fmt: skip
INJECTIONS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</div><b>", "$\\href{javascript:alert(1)}{x}$", "\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_world_can_be_played(name):
    if name.startswith("code") and containment_problem():
        pytest.skip(containment_problem())
    game = play(name, count=2, rewards="contains")
    for _ in range(70):
        if game.over:
            break
        game.say(game.problem.gold or "1")
    assert game.over and game._shown_episode.stop in ("done", "turns") and "reward" in repr(game)
    if game.problem.gold:
        assert game.reward == 1, "the right answer is worth everything"
    assert not game.restart().over and game.next_problem().problem_index == 1


def test_the_session_offers_its_own_problems(runs):
    k = Kitchen("rl_math", backend="toy", env="task:parity", problems=16, graded=4, max_tokens=4)
    with pytest.raises(InvalidValue, match="'problems' is given by stage 'make_problems', which has not run yet"):
        k.play()
    k.run(until="make_problems")
    game = k.play()
    assert [one.text for one in game.problems] == [one.text for one in k.state["problems"].test]
    assert game.say(game.problem.gold).reward == 1
    assert k.play("guess", count=3).problem.tag == "guess"
    assert k.play(ToolEnv(QuestionEnv({"question": "?"}, ()), [add])).say("x").over
    k.driver.runner.history.finish_pending(wait=True)
    events = len(k.log)
    game.restart().say("odd")
    assert len(k.log) == events, "playing leaves no trace in the run"


def test_a_judge_of_the_group_is_heard():
    referee = judge_by_scores(lambda messages, answers: [1.0] * len(answers))
    problem = add_tournament(get_problems("task:sort", 1, 0, "test", ())[0], referee)
    assert play(problem).say("1").parts == {"won": 0.5, "unreadable": 0.0}


@pytest.mark.parametrize("text", INJECTIONS)
def test_nothing_of_others_is_taken_for_markup(text):
    row = {"question": text, "answer": text}
    inner = QuestionEnv(row, get_rewards("exact_match"))
    problem = Problem(text, text, lambda count: [ToolEnv(inner, [add], system=text)], text)
    table = _PlayWidget(play(problem))
    table.field.value = f'{text}<tool_call>{{"name": {json.dumps(text)}, "arguments": {{"first": 1}}}}</tool_call>'
    table.buttons["say"].click()
    table.field.value = text
    table.buttons["say"].click()
    table._press("nonsense")
    for page in (table.game_view.value, table.error_box.value):
        assert "<script" not in page and "<img" not in page and "<b>" not in page and "\x1b" not in page
        assert 'class="kitchen-view tex2jax_ignore mathjax_ignore"' in page
    assert "\x1b" not in repr(table.game)


def test_without_anybody_looking_it_is_text_and_html():
    assert not has_frontend()
    shown = play("guess")._repr_mimebundle_()
    assert shown.keys() == {"text/html", "text/plain"} and "Guess my number" in shown["text/plain"]


def test_what_a_person_does_is_what_a_policy_would_have_to_do():
    """The path of a person through an environment with tools earns what the same messages earn."""
    problem = get_problems("search:brief", 1, 5, "test", get_rewards("exact_match"))[0]
    game, env = play(problem), problem.make(1)[0]
    env.start()
    call = {"function": {"name": "search", "arguments": {"query": problem.text}}}
    found = env.step(Message("assistant", tool_calls=(call,))).messages[0]
    assert game.call_tool("search", query=problem.text)._shown_episode.messages[-1] == found
    assert game.say(problem.gold).parts == dict(env.step(Message("assistant", problem.gold)).parts)
