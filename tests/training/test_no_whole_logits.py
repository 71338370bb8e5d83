"""No trainer makes a tensor of tokens x ids: every tensor that torch makes on the way is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.store.store import Store
from tests.training import tiny_chat
from tests.training.parrot import Parrot
from tests.training.preference_rows import preferences
from tests.training.tiny_chat import PROMPTS, assistant, one_thread, user
from training.models import output_head

__all__ = ["one_thread"]  # applies to every test here

VOCABULARY = 4_999  # a prime that is no other size here
AT_ONCE = 6  # tokens of a slice


class Watch(TorchDispatchMode):
    """Notes the tokens of the largest table of tokens x ids."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and VOCABULARY in tensor.shape:
                rows = tensor.numel() // VOCABULARY
                if rows != tiny_chat.HIDDEN:  # the table of weights, its gradient
                    self.most = max(self.most, rows)
        return made


def test_a_table_of_tokens_and_ids_is_seen() -> None:
    watch = Watch()
    with watch:
        model = tiny_chat.policy(vocabulary=VOCABULARY)
        model(input_ids=torch.ones(3, 7, dtype=torch.long)).logits.sum().backward()
    assert watch.most == 21


def test_nor_does_a_stock_model_that_goes_on_to_be_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.pretrain.continued import Stock

    monkeypatch.setattr(output_head, "LOGITS_AT_ONCE", AT_ONCE * VOCABULARY)
    model = tiny_chat.policy(vocabulary=VOCABULARY)
    tokens, targets = torch.randint(5, 28, (3, 7)), torch.randint(5, 28, (3, 7))
    targets[:, -1] = output_head.IGNORE
    logits = model(input_ids=tokens).logits.flatten(0, 1)
    plain = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    with Watch() as watch:
        loss = Stock(model, torch.float32)(tokens, targets)
        loss.backward()
    assert watch.most <= AT_ONCE
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)


ROWS: dict[str, tuple[str, str, list[dict[str, Any]], dict[str, Any]]] = {
    "sft": ("conversations", "Conversation", [{"id": str(i), "messages": [*user("what ?"), *assistant("blue " * (i + 1))]} for i in range(8)], {"batch": 4}),
    "dpo": ("preferences", "Preference", preferences(12), {"batch": 4}),
    "kto": ("preferences", "Preference", preferences(12), {"batch": 4}),
    "reward": ("preferences", "Preference", preferences(12), {"batch": 4}),
    "grpo": ("prompts", "Prompt", PROMPTS, {"rollouts": 16, "samples": 4, "iterations": 2, "max_tokens": 8, "rules": {"length": "length"}}),
    "ppo": ("prompts", "Prompt", PROMPTS, {"rollouts": 16, "iterations": 2, "max_tokens": 8, "rules": {"length": "length"}, "entropy_weight": 0.1}),
}  # fmt: skip
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"packing": True}], "dpo": [{"loss": "orpo"}, {"loss": "simpo"}, {"loss": "cpo", "sft_weight": 0.5}, {"sft_weight": 0.5}],
    "ppo": [{"critic": "separate"}],
}  # fmt: skip
CASES = [
    (kind, more) for kind in ROWS for more in ({}, {"lora": {"r": 4}}, {"recompute": True}, *OPTIONS.get(kind, []))
]


@pytest.mark.parametrize(("kind", "more"), CASES, ids=str)
def test_no_trainer_makes_one(
    store: Store, tmp_path: Path, given: Any, build: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    kind: str, more: dict[str, Any],
) -> None:  # fmt: skip
    if kind in ("grpo", "ppo"):
        monkeypatch.setattr(f"training.rl.{'ppo.loop' if kind == 'ppo' else kind}.start_engine", Parrot)
    monkeypatch.setattr(output_head, "LOGITS_AT_ONCE", AT_ONCE * VOCABULARY)
    policy = tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy", vocabulary=VOCABULARY))
    port, made_of, rows, config = ROWS[kind]
    model = "model" if kind in ("sft", "reward") else "policy"
    watch = Watch()
    with watch:
        build(kind, {model: policy, port: given(made_of, rows)}, **{**config, **more})
    assert watch.most <= AT_ONCE
