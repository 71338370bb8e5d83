"""What is kept of answers is what came, whatever happens to the file: a damaged answer is asked for anew, never told."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from engine.errors import StageFailed
from generators.backends.protocol import Answer, Failure
from generators.backends.server.answers_cache import AnswersCache

MANY = {f"{i:064x}": Answer(f"answer {i} " * 5, "stop", None, [i], [-0.5], 3, 4) for i in range(200)}


def put_many(file: Path) -> None:
    cache = AnswersCache(file, "me")
    cache.put_several(list(MANY.items()))
    cache.close()


def read_of(file: Path, told: list[str]) -> dict[str, Answer]:
    cache = AnswersCache(file, "me", told.append)
    read = {request: answer for request in MANY if (answer := cache.get(request))}
    cache.close()
    return read


def plain(answer: Answer) -> dict[str, object]:
    return {**asdict(answer), "request": None}


def test_no_flipped_bit_makes_another_answer(tmp_path: Path) -> None:
    put_many(tmp_path / "whole.sqlite")
    data, draw, asked_anew, set_aside = (tmp_path / "whole.sqlite").read_bytes(), random.Random(0), 0, 0
    for _ in range(25):
        flipped, file = bytearray(data), tmp_path / "a.sqlite"
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        told = list[str]()
        read = read_of(file, told)
        for request, answer in read.items():
            assert plain(answer) == asdict(MANY[request])
        asked_anew += len(read) < len(MANY)
        set_aside += len(list(tmp_path.glob("a.damaged-*.sqlite")))
        for left in tmp_path.glob("a.*"):
            left.unlink()
    assert asked_anew > 8 and set_aside > 0


@pytest.mark.parametrize("cut", [0, 10, 5000, 30_000])
def test_a_file_that_sqlite_cannot_read_is_set_aside_and_begun_anew(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "answers.sqlite"
    put_many(file)
    data = file.read_bytes()
    file.write_bytes(data[:cut] if cut else b"no database at all, of any kind " * 500)
    told = list[str]()
    read = read_of(file, told)
    assert all(plain(answer) == asdict(MANY[request]) for request, answer in read.items())
    assert len(told) == 1 and "is damaged" in told[0] and "kept as answers.damaged-1.sqlite" in told[0]
    assert (tmp_path / "answers.damaged-1.sqlite").read_bytes() == (
        data[:cut] if cut else b"no database at all, of any kind " * 500
    )
    put_many(file)
    assert len(read_of(file, told)) == len(MANY) and len(told) == 1


def test_what_is_whole_in_a_damaged_file_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    put_many(file)
    cache = AnswersCache(file, "me")
    cache.put("gone", Failure("empty_answer", "", 100, 100))
    cache.close()
    data = bytearray(file.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = b"\xff" * 4096
    file.write_bytes(data)
    told = list[str]()
    first = read_of(file, told)
    assert 100 < len(first) < len(MANY) and len(told) == 1
    taken = read_of(file, told)
    assert len(told) == 1 and taken.items() <= first.items() and len(taken) >= len(first) - 2  # the new file is whole
    assert AnswersCache(file, "me").spent()[0] == 100 + 3 * len(taken)


def test_answers_of_before_there_were_seals_are_read_and_bad_ones_are_not(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    db = sqlite3.connect(file, isolation_level=None)
    db.execute(
        "CREATE TABLE answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL, payer TEXT NOT NULL, "
        "tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL) WITHOUT ROWID"
    )
    db.execute("CREATE TABLE forgotten (payer TEXT, tokens_in INTEGER, tokens_out INTEGER)")
    old = {
        "text": "said before", "finish_reason": "stop", "prompt_token_ids": None, "token_ids": None, "logprobs": None,
        "tokens_in": 7, "tokens_out": 2, "thought": "", "calls": "", "request": None,
    }  # fmt: skip
    for request, more in {
        "good": {}, "surrogate": {"text": "a\ud800"}, "minus": {"tokens_in": -80_000_000_000}, "NUL": {"thought": "\0"},
        "NaN": {"logprobs": [float("nan")]}, "no text": {"text": 7}, "unknown": {"text": None},
    }.items():  # fmt: skip
        answer = {**old, **more}
        db.execute("INSERT INTO answers VALUES (?, ?, 'me', ?, 2)", (request, json.dumps(answer), answer["tokens_in"]))
    db.close()
    told = list[str]()
    cache = AnswersCache(file, "me", told.append)
    good = cache.get("good")
    assert good is not None and (good.text, good.tokens_in) == ("said before", 7)
    for request in ("surrogate", "minus", "NUL", "NaN", "no text", "unknown"):
        assert cache.get(request) is None and cache.get(request) is None
    assert len(told) == 6 and all("it is asked for anew" in line for line in told)
    assert cache.spent() == (42, 14)  # what can be counted was paid for
    kept = cache.put("surrogate", Answer("now fine", "stop", None, None, None, 7, 2))
    assert cache.get("surrogate") == kept
    cache.close()


def test_a_cache_that_cannot_be_written_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_many(tmp_path / "answers.sqlite")
    cache = AnswersCache(tmp_path / "answers.sqlite", "me")
    assert cache.get(next(iter(MANY)))
    cache._open().execute("PRAGMA max_page_count = 1")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(StageFailed, match=r"answers can't be kept in .*full.*run again to go on"):
        cache.put("big", Answer("x" * 100_000, "stop", None, None, None, 1, 1))
    monkeypatch.setattr("generators.backends.server.answers_cache.PATIENCE", 0.05)
    other = sqlite3.connect(tmp_path / "answers.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    hasty = AnswersCache(tmp_path / "answers.sqlite", "me")
    with pytest.raises(StageFailed, match="another process has held it"):
        hasty.put("r", Answer("x", "stop", None, None, None, 1, 1))
    other.execute("COMMIT")
    assert hasty.put("r", Answer("x", "stop", None, None, None, 1, 1)) == hasty.get("r")
    with pytest.raises(StageFailed, match="answers can't be kept in"):
        AnswersCache(tmp_path / "no" / "folder.sqlite").get("r")


def test_two_processes_share_a_file_and_an_answer_is_there_once_it_was_handed_on(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    put = (
        "import os, sys; from pathlib import Path; from generators.backends.protocol import Answer; "
        "from generators.backends.server.answers_cache import AnswersCache\n"
        "cache = AnswersCache(Path(sys.argv[1]), sys.argv[2])\n"
        "for i in range(50): cache.put(f'{sys.argv[2]} {i}', Answer('x', 'stop', None, None, None, 1, 1))\n"
        "os._exit(9)"
    )
    both = [subprocess.Popen([sys.executable, "-c", put, file, name]) for name in ("a", "b")]
    assert [one.wait() for one in both] == [9, 9]
    cache = AnswersCache(file, "a")
    assert all(cache.get(f"{name} {i}") for name in "ab" for i in range(50)) and cache.spent() == (50, 50)
    (level,) = cache._open().execute("PRAGMA synchronous").fetchone()  # pyright: ignore[reportPrivateUsage]
    assert level == 2  # FULL: each commit is on the disk
    cache.close()
