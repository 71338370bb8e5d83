"""Curves of a training stage, as its artifact keeps them."""

from __future__ import annotations

from engine.store.artifact import Artifact


def curve(made: Artifact, name: str) -> list[float]:
    metrics = made.metrics()
    assert metrics is not None
    return metrics[name].drop_nulls().to_list()


def losses(made: Artifact) -> list[float]:
    return curve(made, "loss")
