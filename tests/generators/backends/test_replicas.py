"""Batches are shared out whole, and results stay in order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import UserError
from engine.store.digest import digest_json
from generators.backends.in_flight import in_flight
from generators.backends.process.engine_process import NoRoom
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Sampling
from generators.backends.replica_bounds import bounds
from generators.backends.replicas import Replicas, devices_of
from generators.candidates.stage import Candidates
from tests.generators.backends.frail import FRAIL, expected


def test_replicas_answer_as_one_engine_would(tmp_path: Path) -> None:
    batches = [[[10 + i, 50 + b] for i in range(9)] for b in range(12)]
    engines = [WatchedEngine(FRAIL, str(tmp_path), slow=0.02) for _ in range(2)]
    replicas = Replicas(lambda number: engines[number], 2, 2)
    made = dict(
        (batch[0][1], result)
        for batch, result in in_flight(batches, 3, lambda b: replicas.generate(b, Sampling(), list(range(9))))
    )
    assert any(engine.pid for engine in engines)
    replicas.close()
    assert made == {batch[0][1]: expected(batch) for batch in batches}


class Numbered:
    """An engine that says which it is, and answers when it is let."""

    max_model_len = 100

    def __init__(self, number: int) -> None:
        self.number, self.asked, self.go, self.closed = number, 0, threading.Event(), False

    def generate(self, prompts: Any, sampling: Any, seeds: Any) -> Any:
        self.asked += 1
        if prompts == LONG:
            assert self.go.wait(60)
        return [self.number]

    def close(self) -> None:
        self.closed = True


LONG = [[1]]


def test_a_long_answer_holds_up_no_other() -> None:
    engines = [Numbered(number) for number in range(2)]
    replicas = Replicas(lambda number: engines[number], 2, 2)
    batches: list[list[list[int]]] = [LONG, *([[2]] for _ in range(40))]
    come = list[bool]()
    for batch, _ in in_flight(batches, 4, lambda b: replicas.generate(b, Sampling(), [0])):
        come.append(batch is LONG)
        if len(come) == 40:  # all the others are there
            for engine in engines:
                engine.go.set()
    assert come == [False] * 40 + [True]
    assert sum(engine.asked for engine in engines) == 41


def test_engines_are_loaded_for_batches_that_wait_and_go_when_they_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [Numbered(number) for number in range(3)]
    replicas = Replicas(lambda number: engines[number], 1, 3)
    for _ in range(5):
        assert replicas.generate([[2]], Sampling(), [0]) == [0]
    assert [engine.asked for engine in engines] == [5, 0, 0]
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(replicas.generate, LONG, Sampling(), [0]) for _ in range(3)]
        while sum(engine.asked for engine in engines) < 8:
            pass
        for engine in engines:
            engine.go.set()
        assert sorted(made for wait in waits for made in wait.result()) == [0, 1, 2]
    monkeypatch.setattr("generators.backends.replicas.IDLE_S", 0.0)
    replicas.generate([[2]], Sampling(), [0])
    assert sum(engine.closed for engine in engines) == 1
    replicas.close()
    assert all(engine.closed for engine in engines)


def test_an_engine_that_has_to_wait_for_a_place_leaves_its_batch_to_another() -> None:
    class Homeless(Numbered):
        places = 1

        def generate(self, prompts: Any, sampling: Any, seeds: Any) -> Any:
            self.places -= 1
            if self.places < 0:
                raise NoRoom
            return super().generate(prompts, sampling, seeds)

    engines = [Homeless(0), Numbered(1)]
    replicas = Replicas(lambda number: engines[number], 2, 2)
    made = [made for _, made in in_flight([[[2]]] * 20, 4, lambda b: replicas.generate(b, Sampling(), [0]))]
    assert len(made) == 20 and engines[0].asked <= 1 and engines[1].asked >= 19


def test_an_engine_that_can_not_be_loaded_is_told() -> None:
    class Broken(Numbered):
        @property
        def max_model_len(self) -> int:  # pyright: ignore
            raise UserError("no such model")

    replicas = Replicas(Broken, 2, 2)
    with pytest.raises(UserError, match="no such model"):
        replicas.generate([[2]], Sampling(), [0])


def test_bounds_are_no_part_of_a_stages_key() -> None:
    stages = [Candidates.model_validate({"replicas": replicas}) for replicas in (1, 4, {"min": 1, "max": 8})]
    assert len({digest_json(stage.identity()) for stage in stages}) == 1
    assert [bounds(stage.replicas) for stage in stages] == [(1, 1), (4, 4), (1, 8)]
    for wrong in (0, {"min": 3, "max": 2}, {"least": 1}):
        with pytest.raises(ValidationError):
            Candidates.model_validate({"replicas": wrong})


def test_all_results_come_and_no_more_is_read_than_needed() -> None:
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

    come = list[int]()
    for piece, result in in_flight(pieces(), 4, work):  # pyright: ignore
        assert result == piece * piece
        assert len(read) <= len(come) + 5
        come.append(piece)
    assert most == 4 and sorted(come) == list(range(20))


def test_a_failure_is_raised_and_what_came_before_is_not_lost() -> None:
    def work(piece: int) -> int:
        if piece == 3:
            raise ValueError("three")
        return piece

    got = list[int]()
    with pytest.raises(ValueError, match="three"):
        for _, result in in_flight(range(100), 2, work):
            got.append(result)
    assert {0, 1, 2} <= {*got} <= {0, 1, 2, 4, 5}


def test_gpus_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert devices_of(1) == [None]
    assert devices_of(2) == ["4,5", "6,7"]
    with pytest.raises(UserError, match="can't share 4 GPUs evenly"):
        devices_of(3)
