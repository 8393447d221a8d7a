"""Commands from many threads, listeners and handlers: each is answered, none is lost, none hangs, and the numbers stay the same."""

import signal
import threading

import pytest

from kitchen.session.kitchen import Kitchen
from kitchen.store.run import Run
from kitchen.types import InvalidValue
from kitchen.widgets.commands import CommandQueue

SMALL = {
    "backend": "toy", "dataset": "builtin:sort[:64]", "epochs": 2, "batch_size": 16, "held_out": 8, "graded": 2,
    "max_tokens": 4, "lora_rank": 2,
}  # fmt: skip
LONG = {**SMALL, "epochs": 1_000_000, "evaluate_every": 10**6, "snapshot_every": 20}
HANGS = 120  # seconds after which a thread counts as stuck; nothing waits for them where all is well


def losses(k):
    return [item["loss"] for item in k.log if item.name == "train.step"]


def at_step(number, function):
    """A listener that calls a function once, when a step ends."""
    called = []

    def listen(item):
        if item.name == "train.step" and item.step == number and not called:
            called.append(number)
            function()

    return listen


def together(*functions):
    """Call each in a thread of its own, all at once; what went wrong but for kitchen's own refusals."""
    wrong, ready = [], threading.Barrier(len(functions))

    def call(function):
        ready.wait()
        try:
            function()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(one,), daemon=True) for one in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert not any(thread.is_alive() for thread in threads), "a command hangs"
    if wrong:
        raise wrong[0]


def often(count, *commands, refused=None):
    """A function that gives commands by turns, so many times; refusals are answers, and are counted."""

    def give():
        for number in range(count):
            try:
                commands[number % len(commands)]()
            except InvalidValue as error:
                if refused is not None:
                    refused.append(str(error))

    return give


@pytest.fixture
def k(tmp_path):
    session = Kitchen("sft", run_dir=tmp_path / "run", **LONG)
    yield session
    session.close()


@pytest.fixture
def going(k):
    """A session whose run goes on in the background, in its third step or later."""
    there = threading.Event()
    k.driver.listeners.append(at_step(3, there.set))
    k.run(wait=False)
    assert there.wait(HANGS)
    return k


def test_five_hundred_pauses_from_four_threads(going):
    together(*[often(250, going.pause, lambda: going.resume(wait=False))] * 4)
    going.pause()
    assert not going.driver.busy and not going.driver.runner.pausing.is_set() and going.driver.runner.flow.at_boundary
    count = len(going.log)
    assert going.driver.runner.advance(lambda item: True) is not None and len(going.log) > count, "it can go on"


def test_every_command_from_many_threads_at_once(going):
    refused = []
    commands = (
        often(40, going.pause, lambda: going.resume(wait=False), refused=refused),
        often(40, lambda: going.resume(wait=False), going.pause, refused=refused),
        often(40, lambda: going.step("batch"), lambda: going.step("batch", wait=False), refused=refused),
        often(20, lambda: going.rewind(step=1), going.pause, refused=refused),
        often(40, lambda: going.set(learning_rate=1e-3), lambda: going.set(learning_rate=2e-3), refused=refused),
        often(40, lambda: going.wait(timeout=0), going.snapshot, going.digest, refused=refused),
    )
    together(*commands)
    going.pause()
    assert going.status == "running" and going.run_record.verify() == []
    assert all("goes on in the background" in said or "no step" in said for said in refused), set(refused)
    together(going.close, going.close, going.pause, going.close)
    assert going.status == "stopped" and [item.name for item in going.log].count("run.stop") == 1


def test_closing_in_the_middle_of_it_all_ends_it_all(going):
    stops = threading.Barrier(2)
    commands = [often(60, going.pause, lambda: going.resume(wait=False), lambda: going.set(learning_rate=1e-3))] * 3

    def close():
        stops.wait()
        going.close()

    def some():
        often(20, going.pause, lambda: going.resume(wait=False))()
        stops.wait()
        often(20, going.pause, lambda: going.resume(wait=False))()

    together(*commands, close, some)
    told = len(going.run_record.log.events)
    for command in (going.run, going.step, going.resume, lambda: going.rewind(step=1), lambda: going.set(learning_rate=1)):
        with pytest.raises(InvalidValue, match="was closed"):
            command()
    going.pause().wait()
    assert going.status == "stopped" and len(going.run_record.log.events) == told, "nothing runs afterwards"
    with Kitchen.open(going.run_dir) as again:
        assert again.step("batch") is not None


def test_the_numbers_are_those_of_a_run_that_nobody_touched(tmp_path):
    plain = Kitchen("sft", run_dir=tmp_path / "plain", **SMALL).run()
    with Kitchen("sft", run_dir=tmp_path / "poked", **SMALL) as poked:
        poked.run(wait=False)
        together(
            *[often(30, poked.pause, lambda: poked.resume(wait=False))] * 3,
            often(10, lambda: poked.rewind(step=1), poked.pause),
            often(20, poked.snapshot, poked.digest),
        )
        poked.pause()
        poked.run()
        assert poked.status == "completed" and losses(poked) == losses(plain) and poked.digest() == plain.digest()
    plain.close()


def test_every_edit_is_made_once_and_in_order(going):
    rates = [[round(1e-4 * (thread + 1) + 1e-7 * number, 9) for number in range(25)] for thread in range(4)]
    edits = [lambda mine=mine: [going.set(learning_rate=rate) for rate in mine] for mine in rates]
    together(*edits, often(20, going.pause, lambda: going.resume(wait=False)))
    going.pause()
    made = [item["after"] for item in going.log if item.name == "config.edit"]
    assert sorted(made) == sorted(rate for mine in rates for rate in mine), "none lost, none twice"
    assert all([rate for rate in made if rate in mine] == mine for mine in rates)
    assert going.config.learning_rate == made[-1]


def test_an_edit_that_was_asked_for_in_the_last_moment_is_made(k):
    k.driver.listeners.append(lambda item: item.name == "run.pause" and k.set(learning_rate=5e-4))
    k.driver.listeners.append(at_step(2, k.pause))
    k.run()
    assert k.config.learning_rate == 5e-4 and k.log[-1].name == "config.edit", "not one step too late"


# -- from inside -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
def test_a_listener_may_pause_and_close_but_not_drive(k, wait):
    refused = []

    def inside():
        for command in (k.run, k.step, k.resume, k.wait, lambda: k.rewind(step=1), lambda: k.run(wait=False)):
            with pytest.raises(InvalidValue, match="cannot|goes on in the background") as error:
                command()
            refused.append(str(error.value))
        k.set(learning_rate=3e-4)
        k.pause()

    k.driver.listeners.append(at_step(3, inside))
    k.run(wait=wait).wait()
    assert len(refused) == 6 and k.driver.last_step.step == 3 and k.config.learning_rate == 3e-4 and k.status == "running"
    k.driver.listeners.append(at_step(5, k.close))
    k.run(wait=wait).wait()
    assert k.status == "stopped" and Run(k.run_dir).verify() == []
    assert [item.step for item in k.log if item.name == "train.step"][-1] == 5


def test_the_first_pause_in_a_listener_of_every_event(k):
    k.driver.listeners.append(lambda item: k.pause())
    for _ in range(5):
        k.run(until=3)
    assert k.status == "running" and not k.driver.busy


def test_a_stage_condition_that_drives_is_refused(k):
    with pytest.raises(InvalidValue, match="cannot"):
        k.run(until=lambda item: item.name == "train.step" and k.step())
    assert not k.driver.busy


@pytest.mark.parametrize("wait", [True, False])
def test_an_error_in_a_listener_ends_the_run_and_hangs_nobody(k, wait):
    def fail():
        raise KeyError("spoon")

    k.driver.listeners.append(at_step(3, fail))
    there = threading.Event()
    k.driver.listeners.insert(0, at_step(3, there.set))  # earlier, and the run might pause before the error
    pausing = threading.Thread(target=lambda: (there.wait(), k.pause()), daemon=True)
    pausing.start()
    with pytest.raises(KeyError, match="spoon"):
        k.run(wait=wait).wait()
    pausing.join(HANGS)
    assert not pausing.is_alive() and k.status == "failed"
    k.pause()
    with pytest.raises(InvalidValue, match="this run failed"):
        k.step()
    assert k.resume(wait=False).pause().status == "running"


def test_an_error_in_a_listener_at_the_very_end_is_raised_by_wait(tmp_path):
    k = Kitchen("sft", run_dir=tmp_path / "run", **SMALL)
    k.driver.listeners.append(lambda item: item.name == "run.digest" and {}["spoon"])
    with pytest.raises(KeyError, match="spoon"):
        k.run(wait=False).wait()
    k.close()


def test_a_process_exit_inside_a_run_is_a_failure_of_the_run(k):
    def leave():
        raise SystemExit(3)

    k.driver.listeners.append(at_step(2, leave))
    with pytest.raises(SystemExit):
        k.run(wait=False).wait()
    assert k.status == "failed"


# -- the edges ---------------------------------------------------------------------------------------


def test_pausing_and_waiting_before_the_start_and_after_the_end(tmp_path):
    k = Kitchen("sft", run_dir=tmp_path / "run", **SMALL)
    together(*[k.pause] * 4, k.wait)
    assert k.status == "new"
    k.run()
    together(*[k.pause] * 4, k.wait)
    assert k.status == "completed"
    digest = k.digest()
    together(*[k.close] * 4)
    k.close()
    with Kitchen.open(k.run_dir) as again:
        assert again.status == "completed" and [item["digest"] for item in again.log if item.name == "run.digest"] == [digest]


def test_closing_before_the_start(tmp_path):
    k = Kitchen("sft", run_dir=tmp_path / "run", **SMALL)
    together(*[k.close] * 3)
    with pytest.raises(InvalidValue, match="was closed"):
        k.run()
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_two_that_run_at_once_one_is_refused(k):
    started, refused = [], []

    def run():
        try:
            k.run(wait=False)
            started.append(1)
        except InvalidValue as error:
            refused.append(str(error))

    together(*[run] * 6)
    assert len(started) == 1 and len(refused) == 5 and all("goes on in the background" in said for said in refused)
    assert [item.name for item in k.log].count("run.start") == 1
    k.pause()


def test_a_run_in_the_foreground_is_paused_and_closed_from_another_thread(k):
    there = threading.Event()
    k.driver.listeners.append(at_step(3, there.set))
    other = threading.Thread(target=lambda: (there.wait(), k.pause()), daemon=True)
    other.start()
    k.run()
    other.join(HANGS)
    assert not other.is_alive() and k.status == "running" and k.driver.runner.flow.at_boundary
    again = threading.Event()
    k.driver.listeners.append(at_step(k.driver.last_step.step + 2, again.set))
    other = threading.Thread(target=lambda: (again.wait(), k.close()), daemon=True)
    other.start()
    k.run()
    other.join(HANGS)
    assert k.status == "stopped"


def test_a_pause_waits_for_a_rewind_that_is_under_way(k):
    k.run(until=12)
    pausing, replayed = [], threading.Event()
    other = threading.Thread(target=lambda: (replayed.wait(), k.pause()), daemon=True)
    k.driver.listeners.append(at_step(5, lambda: (pausing.append(other.start()), replayed.set())))
    k.rewind(step=9)
    other.join(HANGS)
    assert k.driver.last_step.step == 9, "it has come to where it was sent"


def test_ctrl_c_while_waiting_pauses_on_a_boundary(going):
    main = threading.main_thread().ident
    going.driver.listeners.append(at_step(going.driver.last_step.step + 50, lambda: signal.pthread_kill(main, signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt, match="step boundary"):
        going.wait()
    assert not going.driver.busy and going.driver.runner.flow.at_boundary and going.status == "running"
    going.step("batch")


def test_what_must_see_a_whole_state_is_done_at_a_boundary(going):
    found = []
    together(*[lambda: found.append((going.snapshot(), going.digest()))] * 4)
    going.pause()
    assert len(found) == 4
    for name, _ in found:
        assert (going.run_dir / "snapshots" / f"{name}.json").is_file()


def test_buttons_and_cells_at_once(going):
    queue = CommandQueue(going)

    def press():
        for name in ("pause", "play", "step", "checkpoint", "pause", "play"):
            queue.submit_command(name)
        queue.submit_command("edit", learning_rate=4e-4)

    together(press, press, often(30, going.pause, lambda: going.resume(wait=False)))
    queue.wait_until_idle(HANGS)
    going.pause()
    assert queue.done_count >= 14 and going.config.learning_rate == 4e-4
    queue.submit_command("stop")
    queue.wait_until_idle(HANGS)
    assert going.status == "stopped"


def test_many_sessions_that_pause_each_other(tmp_path):
    one, two = (Kitchen("sft", run_dir=tmp_path / name, **LONG) for name in ("one", "two"))
    one.driver.listeners.append(lambda item: item.name == "train.step" and two.pause())
    two.driver.listeners.append(lambda item: item.name == "train.step" and one.pause())
    together(*[often(20, lambda k=k: k.resume(wait=False), k.pause) for k in (one, two)])
    together(one.close, two.close)
    assert one.status == two.status == "stopped"
