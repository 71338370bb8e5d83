"""One vLLM engine for all tests of a file: every stage swaps its own weights in before it samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.training import tiny_chat

if TYPE_CHECKING:
    from generators.backends.vllm.engine import VllmEngine


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dtype: auto` is float32 on every machine, so that results can be held to formulas."""
    monkeypatch.setattr("training.models.precision.has_bfloat16_units", lambda: False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """An engine for tiny_chat's tied policies, started when it is first asked for."""
    from generators.backends.vllm.engine import VllmEngine

    folder = tiny_chat.save(tmp_path_factory.mktemp("engine"))
    with VllmEngine(str(folder), dtype="float32", max_model_len=64, kv_cache_gib=1) as engine:
        yield engine


@pytest.fixture
def sampler(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO and GRPO sample from `engine` instead of one of their own."""

    class Lent:
        generate, load_weights = engine.generate, engine.load_weights

        def close(self) -> None:
            pass

    def lend(*_: Any) -> Any:
        return Lent()

    monkeypatch.setattr("training.rl.ppo.loop.start_engine", lend)
    monkeypatch.setattr("training.rl.grpo.start_engine", lend)
