"""Fixtures for every room: a store of its own and a way to run one stage in this process."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.execution.worker import carry_out
from engine.stage.stage import Stage, load
from engine.store.artifact import Artifact
from engine.store.schema import Messages, ToolMessages, conform, wide
from engine.store.store import Store
from tests.chromium import chromium, missing

# Some fifty processes that these tests start import torch or vLLM. Compiled once, that takes half as long.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker has a core; threads of two would wait for each other


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: begun last, one of them would keep a worker busy while the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist's own order is by the number of tests in a file


def pytest_runtest_setup() -> None:
    """What has been imported is a million objects, and every vLLM engine looks for garbage among them seven times. An engine
    that is closed thaws them."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # extension modules look for leaks when the interpreter ends


class Given(Stage):
    """A stage that commits the table it was made with: the start of a test's little pipeline."""

    tag: str

    def run(self, job: Any) -> None:
        job.commit("00000-given", TABLES[self.tag])


TABLES: dict[str, pa.Table] = {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def given(store: Store) -> Callable[[str, list[dict[str, Any]]], Artifact]:
    """`given("Document", rows)`: an artifact of that kind with these rows."""

    def make(kind: str, rows: list[dict[str, Any]]) -> Artifact:
        from engine.store.digest import digest_json

        tag = digest_json([kind, rows])
        schema = __import__("engine.store.schema", fromlist=["DATASETS"]).DATASETS[kind]
        names = [name for name in schema.names if any(name in row for row in rows)]
        forms = {n: schema.field(n).type for n in names}
        forms |= {n: ToolMessages for n in names if forms[n] == Messages and any(wide(row.get(n)) for row in rows)}
        arrays = {n: pa.array([row.get(n) for row in rows], forms[n]) for n in names}
        extra = sorted({name for row in rows for name in row} - set(schema.names))
        arrays |= {n: pa.array([row.get(n) for row in rows]) for n in extra}
        TABLES[tag] = conform(pa.table(arrays), kind)
        stage = type("GivenKind", (Given,), {"gives": kind})(tag=tag)
        return carry_out(store, "given", stage, {})

    return make


@pytest.fixture
def build(store: Store) -> Callable[..., Artifact]:
    """`build("filter", {"documents": artifact}, min_words=3)`: run a stage of this kind (or class) in this process.

    An input may be one artifact, a list, or a mapping of label to artifact.
    """

    def make(kind: str | type[Stage], inputs: dict[str, Any] | None = None, /, **config: Any) -> Artifact:
        stage_class = load(kind) if isinstance(kind, str) else kind
        name = kind if isinstance(kind, str) else kind.__name__.lower()
        if stage_class.random:
            config.setdefault("seed", 0)
        labelled: dict[str, dict[str, Artifact]] = {}
        for port, value in (inputs or {}).items():
            if isinstance(value, Artifact):
                value = [value]
            labelled[port] = value if isinstance(value, dict) else {f"{port}{i}": a for i, a in enumerate(value)}
        base = str(config.pop("base", "."))
        return carry_out(store, name, stage_class(**config), labelled, base)

    return make


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real browser, where there is one."""
    if lacking := missing():
        pytest.skip(lacking)
    with chromium() as chrome:
        yield chrome
