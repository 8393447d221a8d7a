"""Few frames lie between the user's call and the adapter: a traceback, a debugger and a profile stay readable."""

import sys
from collections.abc import Callable

import pytest

from kitchen.adapters.toy.client import ToyService, ToyTrainingClient
from kitchen.data.batches import Batches
from kitchen.session.kitchen import Kitchen
from kitchen.train.sft import adam_schedule, train_sft
from kitchen.types import AdamParams, Datum

SMALL = {"backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 2, "batch_size": 16, "graded": 1}


@pytest.fixture
def frames(monkeypatch) -> Callable[[], list[str]]:
    """The functions between this file and the toy's forward_backward at its last call, outermost first."""
    stacks: list[list[str]] = []
    original = ToyTrainingClient.forward_backward

    def recorded(self, *values, **named):
        frame, names = sys._getframe(1), []
        while frame is not None and frame.f_code.co_filename != __file__:
            names.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        assert frame is not None, "called from this file"
        stacks.append(names[::-1])
        return original(self, *values, **named)

    monkeypatch.setattr(ToyTrainingClient, "forward_backward", recorded)
    return lambda: stacks[-1]


def test_a_session_reaches_its_adapter_in_nine_frames(frames, tmp_path):
    with Kitchen("sft", **SMALL, run_dir=tmp_path / "run") as k:
        k.step("batch")
        assert len(frames()) <= 9, frames()
        k.run(until=3)
        assert len(frames()) <= 9 and frames()[0].endswith("Kitchen.run"), frames()


def test_a_script_reaches_its_adapter_in_three_frames(frames):
    training = ToyService().create_training_client("toy", None, 0)
    data = [Datum.from_tokens([1, 5, 7, 9], [0, 1, 1, 1]) for _ in range(4)]
    batches = Batches(data, 2)
    list(train_sft(training, batches, adam_schedule(AdamParams(1e-3), len(batches)), accumulate=2))
    assert len(frames()) <= 3 and frames()[0].endswith("train_sft"), frames()
