"""One real Argilla server for all tests of this folder; a remote one instead when ARGILLA_API_URL is set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from labeling.argilla import server
from labeling.argilla.client import Argilla, connect
from labeling.tool.task import RankingTask


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running local server, stopped at the end."""
    folder = tmp_path_factory.mktemp("argilla")
    server.up(folder)
    yield folder
    server.down(folder)


@pytest.fixture(scope="session")
def client(request: pytest.FixtureRequest) -> Argilla:
    if os.environ.get("ARGILLA_API_URL"):
        return connect()
    return connect(home=request.getfixturevalue("home"))


@pytest.fixture
def task() -> RankingTask:
    """A task of its own for every test."""
    return RankingTask(
        f"test-{uuid4().hex[:12]}",
        answers=3,
        workspace="tests",
        correction=True,
        flags=("unsafe", "wrong", "can't judge"),
        min_submitted=2,
        metadata={"topic": "terms"},
    )
