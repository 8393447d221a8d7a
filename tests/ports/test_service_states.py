"""States that lie with their service: named as the service names them, through everything that a run does with them."""

import pytest
import remote_backend
from remote_backend import CALLS, RemoteService

from kitchen import Kitchen
from kitchen.adapters.toy.client import ToyService
from kitchen.engine.verification import verify_run
from kitchen.ports.registry import ADAPTERS
from kitchen.types import InvalidValue, MissingCapability

SMALL = {"model": "toy", "dataset": "builtin:sort[:120]", "epochs": 1, "graded": 2, "held_out": 8, "max_tokens": 4, "batch_size": 10}
REFERENCES = ("tinker://run-1/weights/", "step-", "s3://bucket//twice/", "C:\\states\\", "a name with spaces/../and dots/")


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins a run on a remote service; what is not said otherwise is small."""
    monkeypatch.setenv("KITCHEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("REMOTE_FOLDER", str(tmp_path / "service"))
    made = []

    def run(service=RemoteService, **settings):
        def connect():
            made.append(service(str(tmp_path / "service")))
            return made[-1]

        (tmp_path / "service").mkdir(exist_ok=True)
        monkeypatch.setitem(ADAPTERS["service"], "remote", "remote_backend:CONNECT")
        monkeypatch.setattr(remote_backend, "CONNECT", connect, raising=False)
        return Kitchen("sft", backend="remote", **{**SMALL, "snapshot_every": 1, **settings})

    CALLS.clear()
    yield run


@pytest.mark.parametrize("prefix", REFERENCES)
def test_a_reference_comes_back_as_it_was_given(begin, prefix, tmp_path):
    service = type("Named", (RemoteService,), {"prefix": prefix})
    k = begin(service)
    k.run(until=5)
    end = k.digest()
    k.rewind(step=4)
    k.run(until=5)
    assert k.digest() == end, "the same state, rewound and done again"
    other = k.fork()
    assert other.digest() == end
    other.close()
    k.lr_find(1e-5, 1e-2, 10)
    k.sample(1)
    folder = k.run_record.path
    k.close()
    again = Kitchen.open(folder)
    assert again.digest() == end
    again.run()
    again.report()
    again.close()
    asked = {one.partition(" ")[2] for one in CALLS if one.startswith("open ")}
    given = {one.partition(" ")[2] for one in CALLS if one.startswith("save ")}
    assert asked and asked <= given, "only what the service gave"
    found = verify_run(folder)
    assert found.sound and found.unproved and prefix in "".join(found.unproved) and "not checked" in repr(found)
    assert not [path for path in (folder / "snapshots").iterdir() if path.stem.startswith("training")], "nothing of them lies here"


def test_states_that_are_no_longer_kept_are_deleted(begin):
    k = begin(snapshots_kept=2)
    k.run()
    service = k.driver.runner.base["service"].wrapped
    named = {entry["state"] for _, one in k.driver.runner.history.snapshots.readable() for entry in one.client_entries().values()}
    assert set(service.kept()) == named and len(named) < sum(one.startswith("save") for one in CALLS)
    k.close()
    assert CALLS[-1] == "close"


def test_a_fork_has_states_of_its_own(begin):
    k = begin(snapshots_kept=1)
    k.run(until=2)
    other = k.fork()
    begun = other.digest()
    k.run()
    assert any(one.startswith("delete") for one in CALLS)
    k.close()
    folder = other.run_record.path
    other.close()
    again = Kitchen.open(folder)
    assert again.digest() == begun, "though its parent has deleted the state that it began with"
    again.close()


def test_a_service_that_cannot_delete_now_is_asked_again(begin, monkeypatch):
    k = begin(snapshots_kept=1)
    k.run(until=3)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteService, "down", True)
        k.run(until=6)
    there = len(k.driver.runner.base["service"].wrapped.kept())
    k.run(until=8)
    assert len(k.driver.runner.base["service"].wrapped.kept()) < there
    assert any(item["status"] == "ConnectionError" for item in k.log.named("port.call"))
    k.close()


def test_what_a_service_has_lost_is_passed_over(begin):
    k = begin(snapshots_kept=4)
    k.run(until=5)
    folder, service = k.run_record.path, k.driver.runner.base["service"].wrapped
    k.close()
    newest = [one.split(" ")[1] for one in CALLS if one.startswith("save")][-1]
    service.delete_state(newest)
    again = Kitchen.open(folder)
    assert again.driver.last_step.step == 4
    assert any("any more" in item["reason"] for item in again.run_record.log.events.named("snapshot.error"))
    again.run()
    again.close()


def test_a_time_to_live_is_asked_for_where_there_is_one(begin):
    mortal = type("Mortal", (RemoteService,), {"claims": {**RemoteService.claims, "state_ttl": True}})
    k = begin(mortal, snapshot_ttl=600)
    k.run(until=2)
    assert all(one.endswith("for 600 s") for one in CALLS if one.startswith("save"))
    k.close()
    with pytest.raises(MissingCapability, match="state_ttl"):
        begin(snapshot_ttl=600).run(until=1)
    with pytest.raises(MissingCapability, match="state_ttl"):
        Kitchen("sft", backend="toy", **SMALL, snapshot_ttl=600).run(until=1)


def test_steps_that_cannot_be_repeated_are_not_done_again(begin):
    drifting = type("Drifting", (RemoteService,), {"claims": {"full_finetuning": True}})
    k = begin(drifting, snapshot_every=2, snapshots_kept=9)
    k.run(until=5)
    with pytest.raises(InvalidValue, match="approximate.*kept of steps.*2, 4"):
        k.rewind(step=3)
    k.rewind(step=4)
    assert k.driver.last_step.step == 4
    k.run()
    assert k.status == "completed"
    near = type("Near", (RemoteService,), {"claims": {"full_finetuning": True, "tolerance": 1e-4}})
    k = begin(near, snapshot_every=2)
    k.run(until=3)
    k.rewind(step=1)
    k.close()


def test_weights_out_of_reach_have_no_digest(begin):
    class Distant(RemoteService):
        claims = {**RemoteService.claims, "digest": False}

        def create_training_client(self, model, lora, seed):
            client = super().create_training_client(model, lora, seed)

            def digest():
                raise MissingCapability("the weights are with the service")

            client.digest = digest
            return client

    k = begin(Distant)
    k.run()
    assert k.status == "completed" and not list(k.log.named("run.digest"))
    with pytest.raises(MissingCapability, match="with the service"):
        k.digest()
    k.close()


def test_a_reference_leads_no_local_backend_out_of_the_run(tmp_path):
    """A run from elsewhere may say that its service keeps a state under any name, such as a file of the user's own."""
    mine = ToyService(tmp_path / "mine" / "snapshots").create_training_client("toy", None, 0).save_state("private").result().path
    foreign = ToyService(tmp_path / "foreign" / "snapshots")
    for path in (mine, str(tmp_path / "foreign" / ".." / "mine" / "snapshots" / "private.json")):
        with pytest.raises(InvalidValue, match="does not lie in"):
            foreign.create_training_client_from_state(path)
    with pytest.raises(InvalidValue, match="no state in"):
        foreign.delete_state(mine)
    assert ToyService().create_training_client_from_state(mine).digest()
