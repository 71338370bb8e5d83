"""Answers by the digest of their request, on disk: what was answered once is never asked, or paid for, again.

One file serves every stage and run of a store, so that raising `n` or adding prompts pays for what is new alone. Each
answer is on disk before it is handed on; a process that is killed loses what was under way and nothing else.

An answer that was no use (nothing in it, not the JSON asked for) is not kept: the next run asks again. What it took stays counted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from generators.backends.protocol import Answer, Failure


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
        # What was paid for and is not kept.
        self._db.execute("CREATE TABLE IF NOT EXISTS forgotten (payer TEXT, tokens_in INTEGER, tokens_out INTEGER)")
        self._db.execute("CREATE TABLE IF NOT EXISTS batches (requests TEXT PRIMARY KEY, batch TEXT NOT NULL)")
        self._db.execute("CREATE TABLE IF NOT EXISTS batches_read (batch TEXT PRIMARY KEY)")

    def get(self, request: str) -> Answer | None:
        row = self._db.execute("SELECT answer FROM answers WHERE request = ?", (request,)).fetchone()
        return replace(Answer(**json.loads(row[0])), request=request) if row else None

    def put(self, request: str, result: Answer | Failure) -> Answer | Failure:
        """Count what came, and keep it if there is anything in it. Returns it, with what it is kept under."""
        if isinstance(result, Failure) or not (result.text or result.token_ids):
            spent = (self.payer, result.tokens_in, result.tokens_out)
            self._db.execute("INSERT INTO forgotten VALUES (?, ?, ?)", spent)
            return result
        row = (request, json.dumps(asdict(result)), self.payer, result.tokens_in, result.tokens_out)
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)
        return replace(result, request=request)

    def forget(self, answers: Iterable[Answer]) -> None:
        """Keep these no longer; whoever paid for them has."""
        requests = [(answer.request,) for answer in answers if answer.request]
        if not requests:
            return
        self._db.execute("BEGIN IMMEDIATE")
        kept = "SELECT payer, tokens_in, tokens_out FROM answers WHERE request = ?"
        self._db.executemany(f"INSERT INTO forgotten {kept}", requests)
        self._db.executemany("DELETE FROM answers WHERE request = ?", requests)
        self._db.execute("COMMIT")

    def put_all(
        self, results: Mapping[str, Answer | Failure], requests: str, batch: str
    ) -> dict[str, Answer | Failure]:
        """All that came of a batch, and that it is done with: at once or not at all. Returns them as `put` does."""
        self._db.execute("BEGIN IMMEDIATE")
        put = {request: self.put(request, result) for request, result in results.items()}
        self.put_batch(requests, None)
        self._db.execute("INSERT OR IGNORE INTO batches_read VALUES (?)", (batch,))
        self._db.execute("COMMIT")
        return put

    def spent(self) -> tuple[int, int]:
        """Tokens in and out that this payer was answered with."""
        paid = " UNION ALL ".join(
            f"SELECT tokens_in, tokens_out FROM {table} WHERE payer = ?" for table in ("answers", "forgotten")
        )
        query = f"SELECT COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0) FROM ({paid})"
        tokens_in, tokens_out = self._db.execute(query, (self.payer, self.payer)).fetchone()
        return int(tokens_in), int(tokens_out)

    def batch(self, requests: str) -> str | None:
        """The provider's batch that these requests (by their digest) are in."""
        row = self._db.execute("SELECT batch FROM batches WHERE requests = ?", (requests,)).fetchone()
        return row[0] if row else None

    def has_read(self, batch: str) -> bool:
        """Whether what came of this batch was taken: asking again takes another one."""
        return bool(self._db.execute("SELECT 1 FROM batches_read WHERE batch = ?", (batch,)).fetchone())

    def put_batch(self, requests: str, batch: str | None) -> None:
        """Note the batch of these requests; None forgets it."""
        self._db.execute("DELETE FROM batches WHERE requests = ?", (requests,))
        if batch:
            self._db.execute("INSERT INTO batches VALUES (?, ?)", (requests, batch))

    def close(self) -> None:
        self._db.close()
