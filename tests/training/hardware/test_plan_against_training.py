"""The plan of each stage that learns against what its training held: every storage that torch makes is counted while it lives.

Libraries and samplers have no part in it here; `benchmarks.training` holds whole processes to the plan.
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.stage.stage import Device, load
from engine.store.store import Store
from tests.training import tiny_chat
from tests.training.parrot import Parrot
from tests.training.tiny_chat import assistant, one_thread, user
from training.hardware import memory
from training.models import output_head

__all__ = ["one_thread"]  # applies to every test here

VOCABULARY, LENGTH = 6_007, 96
SLICE = 16 * VOCABULARY  # small beside what is kept


class Held(TorchDispatchMode):
    """Bytes of all storages that live, and the most that did."""

    now = most = 0

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known.add(key)
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, key, size)
        return made

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def words(count: int) -> str:
    return " ".join(["blue", "red", "green", "good"][i % 4] for i in range(count))


PAIRS = [
    {"id": str(i), "prompt_id": str(i), "prompt": user("what ?"), "chosen": assistant(words(LENGTH - 6)),
     "rejected": assistant(words(LENGTH - 7)), "split": "train"}
    for i in range(8)
]  # fmt: skip
CHATS = [{"id": str(i), "messages": [*user("what ?"), *assistant(words(LENGTH - 6))]} for i in range(16)]
ASKED = [{"id": str(i), "prompt": user(words(LENGTH // 2 - 4)), "reference": "blue"} for i in range(16)]
LEARNT = {"max_length": LENGTH, "batch": 8, "epochs": 2, "dtype": "float32"}
SAMPLED = {
    "rollouts": 16,
    "iterations": 1,
    "max_tokens": LENGTH // 2,
    "rules": {"length": "length"},
    "dtype": "float32",
}
STAGES: dict[str, tuple[str, str, list[dict[str, Any]], dict[str, Any]]] = {
    "sft": ("conversations", "Conversation", CHATS, {**LEARNT, "batch": 16}),
    "dpo": ("preferences", "Preference", PAIRS, LEARNT),
    "kto": ("preferences", "Preference", PAIRS, {**LEARNT, "batch": 16}),
    "reward": ("preferences", "Preference", PAIRS, LEARNT),
    "grpo": ("prompts", "Prompt", ASKED, {**SAMPLED, "samples": 8, "epochs": 2}),
    "ppo": ("prompts", "Prompt", ASKED, {**SAMPLED, "minibatches": 1, "epochs": 2, "stop_kl": None}),
}
LORA: dict[str, Any] = {"lora": {"r": 8}}
WAYS: dict[str, list[dict[str, Any]]] = {
    "sft": [{}, LORA, {"recompute": True}],
    "dpo": [{}, {**LORA, "dtype": "bfloat16"}, {"recompute": True}],
    "kto": [LORA, {**LORA, "micro_batch": 4}],
    "reward": [{}, LORA, {**LORA, "dtype": "bfloat16"}],
    "grpo": [{}, {**LORA, "micro_batch": 4}],
    "ppo": [{}, LORA, {"recompute": True}],
}


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, ways in WAYS.items() for way in ways], ids=str)
def test_what_is_planned_is_what_is_held(
    store: Store,
    tmp_path: Path,
    given: Any,
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    way: dict[str, Any],
) -> None:
    if kind in ("grpo", "ppo"):
        monkeypatch.setattr(f"training.rl.{'ppo.loop' if kind == 'ppo' else kind}.start_engine", Parrot.of(LENGTH // 2))
    for place in (output_head, memory):
        monkeypatch.setattr(place, "LOGITS_AT_ONCE", SLICE)
    folder = tiny_chat.save(
        tmp_path / "policy", vocabulary=VOCABULARY, hidden=96, layers=6, dtype=str(way.get("dtype", "float32"))
    )
    policy = tiny_chat.artifact(store, folder)
    port, made_of, rows, settings = STAGES[kind]
    settings = {**settings, **way}
    model = "model" if kind in ("sft", "reward") else "policy"
    known = {"config": json.loads((folder / "config.json").read_text())}
    facts = {"rows": len(rows), "longest": 3 * (LENGTH // 2 - 16)}
    stage = load(kind).model_validate(settings)
    asked = stage.forecast({model: [known], port: [facts]}, Device("this machine", 2**50, False))
    need = asked["parts"]
    inputs = {model: policy, port: given(made_of, rows)}
    held = Held()
    with held:
        build(kind, inputs, **settings)
    planned = need.total - need.libraries - need.beside
    print(
        f"{kind:8}{way!s:50} planned {planned / 2**20:7.1f} held {held.most / 2**20:7.1f} {planned / held.most:.3f}",
        {k: round(v / 2**20, 1) for k, v in vars(need).items()},
    )
    assert planned == pytest.approx(held.most, rel=0.15)
