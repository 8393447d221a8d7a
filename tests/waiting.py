"""Waiting for what is to happen, however busy the machine is."""

import time
from collections.abc import Callable
from typing import Any

LONGEST = 600  # seconds: only what never comes takes so long


def until(condition: Callable[[], Any], process: Any = None) -> Any:
    """What the condition answers once that is true; an error if the process that should bring it about has ended, or it never comes."""
    end = time.monotonic() + LONGEST
    while not (found := condition()):
        if process is not None and getattr(process, "poll", lambda: process.exitcode)() is not None:
            raise AssertionError(f"{process} has ended, and what was waited for has not come")
        if time.monotonic() > end:
            raise AssertionError(f"what was waited for did not come in {LONGEST} s")
        time.sleep(0.01)
    return found
