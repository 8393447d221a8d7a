"""Backends through the product: those that are right pass every check, and each check finds a backend that is wrong."""

import pytest

from kitchen.product_checks import PRODUCT_CHECKS, ProductBench, product_conformance
from kitchen.types import UnknownName

SMALL = "toy:hidden=12,context=4,question=6,embedding=6"
BACKENDS = {"toy": "toy", "a service": "broken_backends:OnDisk"}


@pytest.fixture(scope="module", params=BACKENDS)
def bench(request, tmp_path_factory):
    """One backend, whose undisturbed run is made once."""
    folder = tmp_path_factory.mktemp("product")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KITCHEN_RUNS", str(folder / "runs"))
        patch.setenv("REMOTE_FOLDER", str(folder / "service"))
        yield ProductBench(BACKENDS[request.param], SMALL, folder=folder)


@pytest.mark.parametrize("name", PRODUCT_CHECKS)
def test_a_backend_that_is_right(bench, name):
    assert str(PRODUCT_CHECKS[name].run(bench).raise_for_failure().status) == "passed"


BROKEN = {
    "digest_tells_states_apart": "ConstantDigest",
    "states_are_deleted": "KeepsEverything",
    "waits_end_and_are_awaited": "ForgetsToCallBack",
    "run_completes": "NeedsMore",
    "only_ports_are_asked": "RestlessDigest",
    "rewind_returns": "ForgetsTheOptimizer",
    "fork_goes_its_own_way": "SharesOneClient",
    "copies_aside_disturb_nothing": "SamplingDisturbs",
    "pause_cancels_nothing": "ForgetsTheOptimizer",
    "old_states_are_pruned": "NeverForgets",
    "another_process_resumes": "StatesInMemory",
    "killed_run_goes_on": "StatesInMemory",
}


@pytest.mark.parametrize("name", PRODUCT_CHECKS)
def test_each_check_finds_a_backend_that_is_wrong(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))
    report = product_conformance(f"broken_backends:{BROKEN[name]}", SMALL, only=[name])
    assert [one.check for one in report.failures] == [name], str(report)


def test_a_check_that_is_not_there():
    with pytest.raises(UnknownName, match="did you mean 'run_completes'"):
        product_conformance("toy", SMALL, only=["run_complete"])
