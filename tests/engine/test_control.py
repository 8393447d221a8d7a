"""The control of a run: every interleaving of several threads is walked through the table, and real threads try the same."""

import threading
from collections.abc import Iterator
from itertools import combinations_with_replacement, permutations
from typing import NamedTuple

import pytest

from kitchen.engine.control import DRIVEN_MODES, TRANSITIONS, RunControl
from kitchen.types import InvalidValue

# -- a model: threads as small programs over the table ---------------------------------------------


class Thread(NamedTuple):
    """One thread of the model: what it has still to say, and where it stands in the command under way."""

    script: tuple[str, ...]
    place: str = "next"  # next, driving, held, leaving, writing, or what it waits for: "again", "over", "closed"
    drive: int = 0  # the stretch that a pause waits for
    looks: int = 0  # boundaries at which it has looked since it was asked to pause


class World(NamedTuple):
    """All that the threads share, and the threads."""

    mode: str
    drive: int
    waiting: int  # requests in the queue
    made: int  # requests that have been made
    dropped: int  # those that stood when the session closed
    ended: int  # how often the end was written
    broken: bool  # whether a step has failed
    threads: tuple[Thread, ...]


def told(world: World, command: str) -> tuple[World, str]:
    """The world after one command, and its answer."""
    mode, answer = TRANSITIONS[world.mode][command]  # pyright: ignore[reportArgumentType]
    return world._replace(mode=mode, drive=world.drive + (command == "drive" and answer == "go")), answer


def put(world: World, number: int, thread: Thread) -> World:
    """The world with one thread replaced."""
    return world._replace(threads=(*world.threads[:number], thread, *world.threads[number + 1 :]))


def is_over(world: World, drive: int) -> bool:
    """Whether the stretch that somebody waits for has ended."""
    return world.drive != drive or world.mode not in DRIVEN_MODES


def said(world: World, number: int) -> World:
    """The next word of a thread's script, as `RunControl` carries it out: one step under the lock."""
    thread = world.threads[number]
    word, rest = thread.script[0], thread._replace(script=thread.script[1:])
    after, answer = told(world, word)
    if answer == "again":
        return put(after, number, thread._replace(place="again"))
    if answer == "go":
        return put(after, number, rest._replace(place="driving" if word == "drive" else "held", looks=0))
    if answer == "apply":
        return put(after._replace(waiting=after.waiting + 1), number, rest._replace(place="leaving"))
    if answer == "end":
        return put(after, number, rest._replace(place="writing"))
    if answer == "wait":
        return put(after, number, rest._replace(place="over" if word == "pause" else "closed", drive=after.drive))
    if word == "ask" and answer == "done":
        after = after._replace(waiting=after.waiting + 1)
    return put(after, number, rest)  # done, or refused with an error: answered


def moves(world: World, number: int) -> Iterator[World]:
    """Every step that a thread can take now; none if it waits."""
    thread = world.threads[number]
    match thread.place:
        case "next" if thread.script:
            yield said(world, number)
        case "again" if world.mode != "held":
            yield put(world, number, thread._replace(place="next"))
        case "over" if is_over(world, thread.drive):
            yield put(world, number, thread._replace(place="next"))
        case "closed" if world.mode == "closed":
            yield put(world, number, thread._replace(place="next"))
        case "driving":
            if world.mode in ("pausing", "stopping"):
                assert thread.looks == 0, "it had looked, and went on"
                yield put(world, number, thread._replace(place="leaving", looks=1))
            else:  # the end of the run, a boundary at which requests are made, or one more step
                yield put(world, number, thread._replace(place="leaving"))
                if world.waiting:
                    made = world._replace(waiting=0, made=world.made + world.waiting)
                    yield put(made, number, thread)
            yield from broken(world, number)
        case "held":
            yield put(world, number, thread._replace(place="leaving"))
        case "leaving" if world.waiting:
            after, answer = told(world, "leave_asked")
            assert answer == "apply"
            yield put(after._replace(waiting=0, made=after.made + after.waiting), number, thread)
        case "leaving":
            yield left(world, number)
        case "writing":
            after, _ = told(world, "ended")
            closed = after._replace(waiting=0, dropped=after.dropped + after.waiting, ended=after.ended + 1)
            yield put(closed, number, thread._replace(place="next"))


def left(world: World, number: int) -> World:
    """The world after a thread let go of the run."""
    after, answer = told(world, "leave")
    place = "writing" if answer == "end" else "next"
    return put(after, number, world.threads[number]._replace(place=place))


def broken(world: World, number: int) -> Iterator[World]:
    """An error inside a step: the thread leaves without making what was asked for."""
    yield left(world._replace(broken=True), number)


def owners(world: World) -> int:
    """How many threads believe that the run is theirs."""
    return sum(thread.place in ("driving", "held", "leaving", "writing") for thread in world.threads)


def explore(*scripts: tuple[str, ...]) -> int:
    """Walk through all that can happen; the number of worlds. AssertionError where an invariant is broken."""
    first = World("idle", 0, 0, 0, 0, 0, False, tuple(Thread(script) for script in scripts))
    seen, todo = {first}, [first]
    asked = sum(script.count("ask") for script in scripts)
    while todo:
        world = todo.pop()
        assert owners(world) == (world.mode not in ("idle", "closed")), f"one owner where there is one: {world}"
        assert world.ended == (world.mode == "closed"), f"the end is written once: {world}"
        assert world.waiting + world.made + world.dropped <= asked
        assert not world.dropped or world.broken, f"where no step failed, no edit is lost: {world}"
        for thread in world.threads:  # who waits has been noted: the owner leaves at the next boundary, and wakes it
            if thread.place == "over" and not is_over(world, thread.drive):
                assert world.mode in ("pausing", "stopping"), f"a pause that nobody knows of: {world}"
            if thread.place == "closed":
                assert world.mode in ("stopping", "closing", "closed"), f"a close that nobody knows of: {world}"
        after = [one for number in range(len(scripts)) for one in moves(world, number)]
        if not after:  # nobody can move: then everybody is done
            assert all(not thread.script and thread.place == "next" for thread in world.threads), f"waits for nobody: {world}"
            assert world.mode in ("idle", "closed"), world
            if any("close" in script for script in scripts):
                assert world.mode == "closed", f"a close is never lost: {world}"
        for one in after:
            if world.mode == "closed":
                assert one.mode == "closed" and one.drive == world.drive, "nothing runs after the end"
            if one not in seen:
                seen.add(one)
                todo.append(one)
    return len(seen)


WORDS = ("drive", "hold", "ask", "pause", "close")


def test_three_threads_with_five_commands_in_every_order():
    pairs = combinations_with_replacement([(first, second) for first in WORDS for second in WORDS], 2)
    worlds = sum(explore(*scripts, (word,)) for scripts in pairs for word in WORDS)
    assert worlds > 100_000


def test_five_threads_with_every_command_at_once():
    assert explore(*((word,) for word in WORDS)) > 100
    for order in permutations(WORDS, 2):
        explore(("drive", "drive"), order, order, ("pause", "pause"))


@pytest.mark.parametrize(
    ("mode", "command", "instead"),
    [
        ("running", "pause", ("running", "wait")),  # a pause that is not noted
        ("pausing", "close", ("pausing", "wait")),  # a close that is not noted
        ("stopping", "leave", ("idle", "done")),  # the end is forgotten
        ("running", "drive", ("running", "go")),  # two drive
        ("closed", "drive", ("running", "go")),  # something runs after the end
        ("closing", "close", ("closing", "end")),  # the end is written twice
    ],
)
def test_the_walk_finds_a_table_that_is_wrong(monkeypatch, mode, command, instead):
    monkeypatch.setitem(TRANSITIONS[mode], command, instead)
    with pytest.raises((AssertionError, KeyError)):
        for other in permutations(WORDS, 2):
            explore(("drive", "drive"), ("pause", "close"), other)


# -- real threads ------------------------------------------------------------------------------------


def in_threads(*functions):
    """Call each in a thread of its own, at once; the errors they raised."""
    errors, ready = [], threading.Barrier(len(functions))

    def call(function):
        ready.wait()
        try:
            function()
        except InvalidValue as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(one,), daemon=True) for one in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a command hangs"
    return errors


def test_many_commands_on_one_control():
    made, control = [], RunControl(lambda: made.append("end"))

    def apply():
        while control.requests:
            made.append(control.requests.popleft())
        return True

    def drive():
        for _ in range(200):
            try:
                control.enter()
            except InvalidValue:
                continue
            while not control.pause_wanted and control.requests:
                apply()
            control.leave(apply)

    def ask(name):
        for number in range(200):
            if control.ask((name, number)):
                control.leave(apply)

    def pause():
        for _ in range(200):
            control.pause()

    assert not in_threads(drive, drive, pause, pause, lambda: ask("a"), lambda: ask("b"))
    assert [item for item in made if item[0] == "a"] == [("a", number) for number in range(200)], "none lost, in order"
    assert len(made) == 400 and control.state.mode == "idle"
    in_threads(*[control.close] * 4)
    assert made.count("end") == 1 and control.state.mode == "closed"


def test_an_end_that_fails_is_raised_and_the_session_is_closed():
    def end():
        raise OSError("no disk")

    control = RunControl(end)
    with pytest.raises(OSError, match="no disk"):
        control.close()
    control.close()
    assert control.state.mode == "closed" and control.state.owner is None


def test_requests_that_fail_leave_nobody_in_the_run():
    control = RunControl()

    def apply():
        control.requests.clear()
        raise ValueError("no such edit")

    assert control.ask("edit")
    with pytest.raises(ValueError, match="no such edit"):
        control.leave(apply)
    control.enter()
    control.leave()
    assert control.state.mode == "idle"
