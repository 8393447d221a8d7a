"""Names of a session complete on Tab, in IPython's own completer as JupyterLab asks it, with jedi and without."""

import inspect
import json
import subprocess
import sys

import pytest

from kitchen.session.kitchen import Kitchen

CASES = {
    'Kitchen("sft", lear': "learning_rate=",
    'kitchen.Kitchen("dpo", be': "beta1=",
    'Kitchen("rl_': "rl_math",
    "Kitchen(recipe='dist": "distill_off_policy",
    'Kitchen("sft", method="lo': "lora",
    "k.set(lear": "learning_rate=",
    "k.fork(wei": "weight_decay=",
    'k.run(until="tr': "train",
    'k.run("eva': "evaluate",
    'k.step("ba': "batch",
    'k.break_before("tr': "train",
    'k.rewind(stage="tr': "train",
    'k.peek("': "conversations",
    'k.state["conv': "conversations",
    "k.config.le": "learning_rate",
    "x = [1]\nfor one in x:\n    k.set(lear": "learning_rate=",
    "k.show_": "show_batch",
}
SCRIPT = """
import json, sys, tempfile
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
done = shell.run_cell(f'''
import kitchen
from kitchen import Kitchen
k = Kitchen("sft", backend="toy", dataset="builtin:sort[:64]", run_dir={tempfile.mkdtemp() + "/run"!r})
k.step()
None''')
assert done.success
found = {}
with provisionalcompleter():
    for jedi in (False, True):
        shell.Completer.use_jedi = jedi
        for code in json.loads(sys.stdin.read()) if not found else list(first):
            told = [code[: one.start] + one.text for one in shell.Completer.completions(code, len(code))]
            found.setdefault(code, []).append(told)
        first = dict(found)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def completed() -> dict[str, list[list[str]]]:
    """For each piece of code, the code as completed: without jedi, and with it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=json.dumps(list(CASES)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("code", CASES)
@pytest.mark.parametrize("jedi", [False, True], ids=["plain", "jedi"])
def test_names_complete(completed, code, jedi):
    told = completed[code][jedi]
    assert any(one.endswith(CASES[code]) and one.startswith(code) for one in told), told


def test_a_run_under_way_offers_only_settings_that_can_be_changed(completed):
    assert not any("lora_rank" in one for one in completed["k.set(lear"][0])


def public_names() -> list[str]:
    return [name for name in dir(Kitchen("sft", backend="toy")) if not name.startswith("_")]


def test_a_session_has_some_forty_names():
    assert len(public_names()) <= 41


@pytest.mark.parametrize("name", [name for name in public_names() if name != "driver"])
def test_every_public_name_has_a_return_type_and_an_example(name):
    member = inspect.getattr_static(Kitchen, name)
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    assert "Example: `" in (function.__doc__ or "") and "return" in function.__annotations__


def test_the_class_and_the_package_explain_themselves():
    import kitchen

    assert all(f"`{verb}`" in (Kitchen.__doc__ or "") for verb in ("step", "run", "peek", "set", "rewind", "fork"))
    assert 'Kitchen("sft"' in (kitchen.__doc__ or "") and "kitchen.session" in (kitchen.__doc__ or "")
    with pytest.raises(ValueError, match=r"Kitchen\.open"):
        Kitchen.resume("latest")  # pyright: ignore[reportArgumentType]
