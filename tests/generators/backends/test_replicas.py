"""Batches are shared out whole, and results stay in order."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine.errors import UserError
from generators.backends.in_flight import in_flight
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Sampling
from generators.backends.replicas import Replicas, devices_of
from tests.generators.backends.frail import FRAIL, expected


def test_replicas_answer_as_one_engine_would(tmp_path: Path) -> None:
    batches = [[[10 + i, 50 + b] for i in range(9)] for b in range(12)]
    engines = [WatchedEngine(FRAIL, str(tmp_path), slow=0.02) for _ in range(2)]
    replicas = Replicas(engines)
    made = [result for _, result in in_flight(batches, 3, lambda b: replicas.generate(b, Sampling(), list(range(9))))]
    assert all(engine.pid for engine in engines)
    replicas.close()
    assert made == [expected(batch) for batch in batches]


def test_results_come_in_order_and_no_more_is_read_than_needed() -> None:
    read, running, most = list[int](), 0, 0
    lock = threading.Lock()

    def pieces() -> object:
        for i in range(20):
            read.append(i)
            yield i

    def work(piece: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01 if piece % 3 else 0.03)
        with lock:
            running -= 1
        return piece * piece

    for done, (piece, result) in enumerate(in_flight(pieces(), 4, work)):  # pyright: ignore
        assert (piece, result) == (done, done * done)
        assert len(read) <= done + 5
    assert most == 4


def test_a_failure_is_raised_where_its_result_was_due() -> None:
    def work(piece: int) -> int:
        if piece == 3:
            raise ValueError("three")
        return piece

    got = list[int]()
    with pytest.raises(ValueError, match="three"):
        for _, result in in_flight(range(100), 2, work):
            got.append(result)
    assert got == [0, 1, 2]


def test_gpus_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert devices_of(1) == [None]
    assert devices_of(2) == ["4,5", "6,7"]
    with pytest.raises(UserError, match="can't share 4 GPUs evenly"):
        devices_of(3)
