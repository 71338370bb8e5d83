"""Tests on a Ray cluster, each file in a process of its own: Ray ends the process of a driver whose cluster is gone, a minute later."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.engine.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("file", ["tests/engine/on_ray.py", "tests/generators/backends/on_ray.py"])
def test_on_a_cluster(file: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", file],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
