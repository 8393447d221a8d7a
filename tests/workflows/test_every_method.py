"""Whatever is learnt and however: back, aside and again, a run comes to the same bits."""

import pytest
from kill_runs import VARIANTS, final, story

from kitchen.recipes.reproduce import manifest, reproduce
from kitchen.session.kitchen import Kitchen
from kitchen.workflows.rl import load_rollouts

pytestmark = pytest.mark.whole_run

METHODS = [name for name, (recipe, _) in VARIANTS.items() if recipe.name not in ("sft", "streaming") and "toy" in name]


def begun(name, **more):
    """A session of a variant, with snapshots only where they are asked for."""
    recipe, settings = VARIANTS[name]
    return Kitchen(recipe, **{**settings, **more})


def ended(k):
    """What must be equal at the end: metrics, state, artifacts."""
    return story(k.run_record), k.digest()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_back_aside_and_again(runs, name):
    whole = begun(name).run()
    straight, steps = ended(whole), whole.driver.last_step.step
    assert steps >= 6 and whole.status == "completed"
    middle = steps // 2
    assert ended(whole.rewind(step=middle).run()) == straight, "rewound to a step that may lie inside a batch"
    whole.rewind(step=0)
    assert ended(whole.run()) == straight, "rewound to the very beginning"
    whole.close()
    again = reproduce(manifest(whole.run_record))
    assert again.agrees and again.bitwise, [row for row in again.rows if row.agrees is False]

    parent = begun(name).run(until=middle)
    fork, other = parent.fork(), parent.fork(learning_rate=1e-5)
    assert ended(fork.run()) == straight
    edited = begun(name, snapshot_every=-1).run(until=middle).set(learning_rate=1e-5)
    assert ended(other.run()) == ended(edited.run()) != straight
    parent.run_record.log.close()  # nothing but log and snapshots is left, as if the process had been killed
    resumed = Kitchen.open(parent.run_dir)
    assert ended(resumed.run()) == straight and final(resumed.run_record) == final(whole.run_record)
    for k in (fork, other, edited, resumed):
        k.close()
    if "problems" in whole.state:
        kept = [load_rollouts(k.run_record) for k in (whole, fork, resumed)]
        assert kept[0] and kept[0] == kept[1] == kept[2], "every episode is played again, the same"
