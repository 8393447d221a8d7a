"""An answer that a format cannot read is a wrong answer: no run ends with it."""

import pytest
from small_settings import SMALL_SETTINGS

from kitchen.rendering.chat_formats import RoleColonRenderer
from kitchen.session.kitchen import Kitchen


@pytest.mark.parametrize("recipe", ["sft", "dpo", "rl_math", "rlhf", "distill_on_policy", "feedback_loop"])
def test_a_format_that_cannot_read_loses_no_run(recipe, monkeypatch):
    """Every answer fails to be read, in questions, rollouts, traffic and teachers' answers; the run ends as any other."""

    def fail(self, tokens):
        raise ValueError(f"no idea what {tokens[0]} is")

    monkeypatch.setattr(RoleColonRenderer, "parse_response", fail)
    with Kitchen(recipe, **{**SMALL_SETTINGS[recipe], "backend": "toy", "renderer": "role_colon"}) as k:
        k.run()
        assert k.status == "completed"
