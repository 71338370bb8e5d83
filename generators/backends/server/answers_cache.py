"""Answers by the digest of their request, on disk: what was answered once is never asked, or paid for, again.

One file serves every stage and run of a store, so that raising `n` or adding prompts pays for what is new alone. Each
answer is on disk before it is handed on; a process that is killed loses what was under way and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from generators.backends.protocol import Answer


class AnswersCache:
    """A table of answers (SQLite, write-ahead log: several processes may share it).

    Args:
        payer: who asks; what it has spent is counted apart.
    """

    def __init__(self, file: Path, payer: str = "") -> None:
        self.payer = payer
        self._db = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL, payer TEXT NOT NULL, "
            "tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS batches (requests TEXT PRIMARY KEY, batch TEXT NOT NULL)")

    def get(self, request: str) -> Answer | None:
        row = self._db.execute("SELECT answer FROM answers WHERE request = ?", (request,)).fetchone()
        return Answer(**json.loads(row[0])) if row else None

    def put(self, request: str, answer: Answer) -> None:
        row = (request, json.dumps(asdict(answer)), self.payer, answer.tokens_in, answer.tokens_out)
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)

    def put_all(self, answers: Mapping[str, Answer], batch: str) -> None:
        """All answers of a batch, and that it is done with: at once or not at all."""
        self._db.execute("BEGIN IMMEDIATE")
        for request, answer in answers.items():
            self.put(request, answer)
        self.put_batch(batch, None)
        self._db.execute("COMMIT")

    def spent(self) -> tuple[int, int]:
        """Tokens in and out that this payer was answered with."""
        query = "SELECT COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0) FROM answers WHERE payer = ?"
        tokens_in, tokens_out = self._db.execute(query, (self.payer,)).fetchone()
        return int(tokens_in), int(tokens_out)

    def batch(self, requests: str) -> str | None:
        """The provider's batch that these requests (by their digest) are in."""
        row = self._db.execute("SELECT batch FROM batches WHERE requests = ?", (requests,)).fetchone()
        return row[0] if row else None

    def put_batch(self, requests: str, batch: str | None) -> None:
        """Note the batch of these requests; None forgets it."""
        self._db.execute("DELETE FROM batches WHERE requests = ?", (requests,))
        if batch:
            self._db.execute("INSERT INTO batches VALUES (?, ?)", (requests, batch))

    def close(self) -> None:
        self._db.close()
