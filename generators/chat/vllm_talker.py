"""A model behind a `vllm serve` of Flywheel's own, as one side of a conversation."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.store.store import Store
from engine.view.output import put
from generators.backends.vllm.server_process import ServedEngine
from generators.chat.conversation import located
from generators.chat.served_talker import ServedTalker


@contextmanager
def vllm_talker(name: str, store: Store) -> Generator[ServedTalker]:
    """Start the server, and end it.

    Raises:
        FlywheelError: there is no such model, or the server does not start.
    """
    base, adapter = located(name, store)
    with (
        TemporaryDirectory() as scratch,
        ServedEngine(base, Path(scratch), lambda text: put(text, error=True), dtype="auto", adapter=adapter) as engine,
    ):
        url, key = engine.address
        yield ServedTalker(name, url, adapter or base, key, engine.max_model_len)
