"""Curves of a training stage, as its artifact keeps them."""

from __future__ import annotations

import io

import pyarrow.parquet as pq

from engine.store.artifact import Artifact


def curve(made: Artifact, name: str) -> list[float]:
    log = made.log("metrics.parquet")
    assert log is not None
    values = pq.read_table(io.BytesIO(log)).column(name).to_pylist()
    return [value for value in values if value is not None]


def losses(made: Artifact) -> list[float]:
    return curve(made, "loss")
