from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.plan.inputs import PlainInput, resolve
from engine.store.artifact import Artifact
from engine.store.store import Store

Bring = Callable[..., Artifact]


@pytest.fixture
def bring(store: Store, tmp_path: Path) -> Bring:
    """What a file, folder or glob below the test's folder becomes as a kind."""

    def make(path: str, kind: str, said: list[str] | None = None, **options: Any) -> Artifact:
        say = said.append if said is not None else lambda text: None
        return resolve(PlainInput(f"./{path}", **options), tmp_path, (kind,), store, say).adopt(store, say)

    return make
