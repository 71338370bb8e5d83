"""Stages run in a store of their own, and tiny policies for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import artifact
from engine.execution.worker import carry_out
from engine.stage.stage import load
from engine.store.artifact import Artifact
from engine.store.store import Store


class Bench:
    """A store of its own, and the stages run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(str(folder / "store"))

    def table(self, kind: str, rows: list[dict[str, Any]]) -> Artifact:
        return artifact(self.store, kind, rows)

    def model(self, folder: Path, kind: str = "Model") -> Artifact:
        from tests.training import tiny_chat

        return tiny_chat.artifact(self.store, folder, kind)

    def run(
        self,
        kind: str,
        config: dict[str, Any],
        emit: Callable[[dict[str, Any]], None] = lambda event: None,
        **inputs: Artifact,
    ) -> Artifact:
        given = {port: {port: artifact} for port, artifact in inputs.items()}
        return carry_out(self.store, kind, load(kind).model_validate({"seed": 0, **config}), given, emit=emit)


def steered(bench: Bench, name: str, bias: dict[int, float], **shape: int) -> Artifact:
    """A tiny policy with a bias on some tokens: a channel that is always on is read by their rows of the head alone."""
    import torch

    from tests.training import tiny_chat

    model = tiny_chat.policy(tied=False, **shape)
    with torch.no_grad():
        channel = model.config.hidden_size - 1
        model.model.embed_tokens.weight[:, channel] = 6.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[channel] = 0.0
            layer.mlp.down_proj.weight[channel] = 0.0
        model.lm_head.weight[:, channel] = 0.0
        for token, weight in bias.items():
            model.lm_head.weight[token, channel] = weight
    model.save_pretrained(bench.folder / name)
    tiny_chat.tokenizer().save_pretrained(bench.folder / name)
    return bench.model(bench.folder / name)


def curve(made: Artifact, name: str) -> list[float]:
    metrics = made.metrics()
    assert metrics is not None
    return metrics[name].drop_nulls().to_list()
