"""Servers for the tests of this folder."""

import pytest
from fastapi.testclient import TestClient
from served import KEY, OTHER_KEY, Wire, open_engine

from kitchen.serve.app import create_app
from kitchen.serve.engine import ServeLimits
from kitchen.serve.guard import GuardLimits
from kitchen.serve.keys import KeyRing


@pytest.fixture
def serve(tmp_path):
    """Open a server; several one after another have the same folder, and those before were killed."""
    opened, engines = [], []

    def start(
        limits: ServeLimits | None = None, guard: GuardLimits | None = None, poll: float = 5.0, **backend
    ) -> Wire:
        for killed in engines:
            killed.models.clear()  # it does nothing more
        engine = open_engine(tmp_path, limits, **backend)
        engines.append(engine)
        keys = KeyRing(tmp_path / "keys.json", {"ann": KEY, "bob": OTHER_KEY})
        client = TestClient(
            create_app(engine, keys, guard, poll_seconds=poll),
            raise_server_exceptions=False,
            follow_redirects=False,
        )
        client.__enter__()
        opened.append(client)
        return Wire(client)

    yield start
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def wire(serve) -> Wire:
    """One server."""
    return serve()
