"""The spine is tested with toy stage kinds that cost nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel
from engine.store.store import Store

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"

RECIPE = """\
name: toy
seed: 3
stages:
  lines:
    kind: toy_read
    path: lines.txt
  loud:
    kind: toy_shout
    from: lines
  louder:
    kind: toy_shout
    from: loud
    times: 2
  model:
    kind: toy_train
    from: louder
  other:
    kind: toy_train
    from: lines
    steps: 3
"""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), str(ROOT)]))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i}" for i in range(23)))
    file = tmp_path / "toy.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy recipe, run to its end in `store`. Tests only plan against it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "lines.txt").write_text("\n".join(f"line {i}" for i in range(23)))
    (folder / "toy.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOY))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TOY), str(ROOT)]))
        flywheel.run(folder / "toy.yaml", store=str(folder / "store"))
    return folder


@pytest.fixture
def run_store(finished: Path, tmp_path: Path) -> Store:
    """A store of its own that holds the finished toy run."""
    shutil.copytree(finished / "store", tmp_path / "store")
    return Store(str(tmp_path / "store"))


@pytest.fixture(name="flywheel")
def run_flywheel(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command in a folder of its own, with a store there."""

    def command(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "FLYWHEEL_STORE": str(tmp_path / "store")}
        return subprocess.run(
            [sys.executable, "-c", "from engine.cli import main; main()", *map(str, args)],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, **kwargs,
        )  # fmt: skip

    return command


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A store in the bucket of a server that speaks S3, and nothing of it on this machine yet."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "FLYWHEEL_SCRATCH": str(tmp_path / "scratch"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="flywheel")
    yield f"s3://flywheel/{uuid.uuid4().hex}"  # all servers of a process have the same buckets
    server.stop()
