"""The engines by name, and how one is loaded into this process."""

from __future__ import annotations

import importlib
from typing import Any

ENGINES = {
    "vllm": "generators.backends.vllm.engine:VllmEngine",
    "transformers": "generators.backends.transformers_engine:TransformersEngine",
}


def load_engine(engine: str, model: str, **options: Any) -> Any:
    """A token engine in this process, at once.

    Args:
        engine: a name of `ENGINES`, or the `module:Class` of another.
        model: a folder or a hub name.
        options: of the engine.
    """
    module, _, name = ENGINES.get(engine, engine).partition(":")
    return getattr(importlib.import_module(module), name)(model, **options)
