"""Answers by the digest of their request, on disk: what was answered once is never asked, or paid for, again.

One file serves every stage and run of a store, so that raising `n` or adding prompts pays for what is new alone. Each
answer is on disk before it is handed on, and stays there when the power fails. A row holds a digest of itself: one that is not
what was written, or that no server may answer, is dropped and asked for anew. A file that SQLite can't read is set aside under
another name, and what is whole in it goes on in a new one.

An answer that was no use (nothing in it, not the JSON asked for) is not kept: the next run asks again. What it took stays counted.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import StageFailed
from generators.backends.protocol import Answer, Failure
from generators.backends.server.checked_answer import BadAnswer, checked_logprobs, text_fault, token_ids

T = TypeVar("T")
PATIENCE = 60.0  # seconds to wait for a process that writes
TABLES = (
    "answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL, payer TEXT NOT NULL, tokens_in INTEGER NOT NULL, "
    "tokens_out INTEGER NOT NULL, seal TEXT) WITHOUT ROWID",
    "forgotten (payer TEXT, tokens_in INTEGER, tokens_out INTEGER)",  # what was paid for and is not kept
    "batches (requests TEXT PRIMARY KEY, batch TEXT NOT NULL)",
    "batches_read (batch TEXT PRIMARY KEY)",
)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
TEXTS = ("text", "finish_reason", "thought", "calls", "model")
# No stage was ever answered with as many tokens; a count with a flipped bit may say so.
MOST_TOKENS = 10**12


class AnswersCache:
    """A table of answers (SQLite, write-ahead log: several processes may share it; each thread has a connection of its own).

    Args:
        payer: who asks; what it has spent is counted apart.
        say: told what was damaged, in one line each.

    Raises:
        StageFailed: by every method: the file can't be used, in words.
    """

    def __init__(self, file: Path, payer: str = "", say: Callable[[str], None] = lambda text: None) -> None:
        self.file, self.payer, self._say = file, payer, say
        self._of_thread = threading.local()
        self._open_ones: list[sqlite3.Connection] = []
        self._replacing = threading.Lock()

    def get(self, request: str) -> Answer | None:
        row = self._do(lambda db: db.execute(f"SELECT {COLUMNS} FROM answers WHERE request = ?", (request,)).fetchone())
        if not row:
            return None
        try:
            return replace(whole(*row), request=request)
        except BadAnswer as fault:
            self._drop(request)
            self._say(f"An answer in {self.file.name} is no use ({fault}): it is asked for anew.")
            return None

    def put(self, request: str, result: Answer | Failure) -> Answer | Failure:
        """Count what came, and keep it if there is anything in it. Returns it, with what it is kept under."""
        return self.put_several([(request, result)])[0]

    def put_several(self, results: Sequence[tuple[str, Answer | Failure]]) -> list[Answer | Failure]:
        """As `put`, all at once: what costs time is that the disk has it, however much it is."""

        def put(db: sqlite3.Connection) -> None:
            with _transaction(db):
                for request, result in results:
                    self._put(db, request, result)

        self._do(put)
        return [kept(request, result) for request, result in results]

    def forget(self, answers: Iterable[Answer]) -> None:
        """Keep these no longer; whoever paid for them has."""
        requests = [answer.request for answer in answers if answer.request]
        if requests:
            self._drop(*requests)

    def put_all(
        self, results: Mapping[str, Answer | Failure], requests: str, batch: str
    ) -> dict[str, Answer | Failure]:
        """All that came of a batch, and that it is done with: at once or not at all. Returns them as `put` does."""

        def put(db: sqlite3.Connection) -> None:
            with _transaction(db):
                for request, result in results.items():
                    self._put(db, request, result)
                db.execute("DELETE FROM batches WHERE requests = ?", (requests,))
                db.execute("INSERT OR IGNORE INTO batches_read VALUES (?)", (batch,))

        self._do(put)
        return {request: kept(request, result) for request, result in results.items()}

    def spent(self) -> tuple[int, int]:
        """Tokens in and out that this payer was answered with."""
        paid = " UNION ALL ".join(
            f"SELECT tokens_in, tokens_out FROM {table} WHERE payer = ?" for table in ("answers", "forgotten")
        )
        sums = ", ".join(f"COALESCE(SUM({n}) FILTER (WHERE {n} BETWEEN 0 AND {MOST_TOKENS}), 0)" for n in COUNTS)
        query = f"SELECT {sums} FROM ({paid})"
        tokens_in, tokens_out = self._do(lambda db: db.execute(query, (self.payer, self.payer)).fetchone())
        return int(tokens_in), int(tokens_out)

    def batch(self, requests: str) -> str | None:
        """The provider's batch that these requests (by their digest) are in."""
        row = self._do(lambda db: db.execute("SELECT batch FROM batches WHERE requests = ?", (requests,)).fetchone())
        return row[0] if row else None

    def has_read(self, batch: str) -> bool:
        """Whether what came of this batch was taken: asking again takes another one."""
        return bool(self._do(lambda db: db.execute("SELECT 1 FROM batches_read WHERE batch = ?", (batch,)).fetchone()))

    def put_batch(self, requests: str, batch: str | None) -> None:
        """Note the batch of these requests; None forgets it."""

        def put(db: sqlite3.Connection) -> None:
            with _transaction(db):
                db.execute("DELETE FROM batches WHERE requests = ?", (requests,))
                if batch:
                    db.execute("INSERT INTO batches VALUES (?, ?)", (requests, batch))

        self._do(put)

    def close(self) -> None:
        while self._open_ones:
            self._open_ones.pop().close()
        self._of_thread = threading.local()

    def _put(self, db: sqlite3.Connection, request: str, result: Answer | Failure) -> None:
        if not keeps(result):
            db.execute("INSERT INTO forgotten VALUES (?, ?, ?)", (self.payer, result.tokens_in, result.tokens_out))
            return
        assert isinstance(result, Answer)
        row = (request, json.dumps(asdict(result)), self.payer, result.tokens_in, result.tokens_out)
        db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", (*row, seal(*row)))

    def _drop(self, *requests: str) -> None:
        def drop(db: sqlite3.Connection) -> None:
            with _transaction(db):
                kept = "SELECT payer, tokens_in, tokens_out FROM answers WHERE request = ?"
                db.executemany(f"INSERT INTO forgotten {kept}", [(request,) for request in requests])
                db.executemany("DELETE FROM answers WHERE request = ?", [(request,) for request in requests])

        self._do(drop)

    # -- the file --------------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Work on the database; where it turns out to be damaged, on a new one."""
        try:
            return self._tried(work)
        except sqlite3.DatabaseError as error:
            why = str(error)
        try:
            self._set_aside(why)
            return self._tried(work)
        except (sqlite3.Error, OSError) as error:
            raise StageFailed(f"{self.file} is damaged ({why}) and can't be replaced: {error}.") from None

    def _tried(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """
        Raises:
            sqlite3.DatabaseError: it is damaged.
        """
        try:
            return work(self._open())
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in DAMAGED or str(error).startswith(("no such", "table answers has")):
                raise
            busy = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            what = f"another process has held it for {PATIENCE:.0f} s" if busy else str(error)
            raise StageFailed(
                f"answers can't be kept in {self.file}: {what}. What was answered before is kept; run again to go on."
            ) from None

    def _open(self) -> sqlite3.Connection:
        """This thread's connection to the file that has the name now."""
        known: sqlite3.Connection | None
        known, inode = getattr(self._of_thread, "db", None), getattr(self._of_thread, "inode", 0)
        if known and _inode(self.file) == inode:
            return known
        db = sqlite3.connect(self.file, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        db.text_factory = lambda data: data.decode(errors="replace")  # what is no UTF-8 any more has no seal that fits
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            with _transaction(db):
                for table in TABLES:
                    db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
                if "seal" not in [column[1] for column in db.execute("PRAGMA table_info(answers)")]:
                    db.execute("ALTER TABLE answers ADD COLUMN seal TEXT")
        except BaseException:
            db.close()
            raise
        self._open_ones.append(db)
        self._of_thread.db, self._of_thread.inode = db, _inode(self.file)
        return db

    def _set_aside(self, why: str) -> None:
        """Give the damaged file another name, and take over what is whole in it; another process may have done it."""
        with self._replacing:
            if getattr(self._of_thread, "inode", _inode(self.file)) != _inode(self.file):
                return
            self._replace(why)

    def _replace(self, why: str) -> None:
        number = 1
        while (aside := self.file.with_name(f"{self.file.stem}.damaged-{number}{self.file.suffix}")).exists():
            number += 1
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.file}{end}").rename(f"{aside}{end}")
        with _transaction(fresh := self._open()):
            saved = _salvage(aside, fresh)
        self._say(
            f"{self.file.name} is damaged ({why}). It is kept as {aside.name}; {saved:,} answers could be read out of it."
        )


COUNTS = ("tokens_in", "tokens_out")
COLUMNS = "request, answer, payer, tokens_in, tokens_out, seal"


def _inode(file: Path) -> int:
    return file.stat().st_ino if file.exists() else 0


def kept(request: str, result: Answer | Failure) -> Answer | Failure:
    """A result with what it is kept under, if it is."""
    return replace(result, request=request) if isinstance(result, Answer) and keeps(result) else result


def keeps(result: Answer | Failure) -> bool:
    """Whether there is anything in it to keep."""
    return isinstance(result, Answer) and bool(result.text or result.token_ids)


def seal(request: str, answer: str, payer: str, tokens_in: int, tokens_out: int) -> str:
    """16 hexadecimal digits of SHA-256 of a row."""
    return hashlib.sha256(json.dumps([request, answer, payer, tokens_in, tokens_out]).encode()).hexdigest()[:16]


def whole(request: Any, answer: Any, payer: Any, tokens_in: Any, tokens_out: Any, sealed: Any) -> Answer:
    """The answer of a row. Rows of before there were seals have none.

    Raises:
        BadAnswer: the row is not what was written, or it is no answer that a server may give.
    """
    if sealed is not None and sealed != seal(request, answer, payer, tokens_in, tokens_out):
        raise BadAnswer("it is not what was written")
    try:
        held = json.loads(answer)
        made = Answer(**{name: value for name, value in held.items() if name in KNOWN})
        counts = all(type(n) is int and 0 <= n <= MOST_TOKENS for n in (made.tokens_in, made.tokens_out))
        for name in TEXTS:
            if fault := text_fault(getattr(made, name)):
                raise BadAnswer(f"it has {fault}")
        ids = token_ids(held, "token_ids")
        token_ids(held, "prompt_token_ids")
        if made.logprobs is not None:
            checked_logprobs(made.logprobs, None if ids is None else len(ids), len(made.logprobs))
    except BadAnswer:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadAnswer(f"it is no answer: {type(error).__name__}") from None
    if not counts:
        raise BadAnswer("it counts its tokens wrongly")
    return made


KNOWN = {field.name for field in fields(Answer)}


@contextmanager
def _transaction(db: sqlite3.Connection) -> Generator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _salvage(damaged: Path, into: sqlite3.Connection) -> int:
    """Copy what can still be read of a damaged file: rows whose seal fits, from both ends up to what is damaged."""
    saved = 0
    with suppress(sqlite3.Error), closing(sqlite3.connect(damaged)) as db:
        db.text_factory = lambda data: data.decode(errors="replace")
        for order in ("ASC", "DESC"):
            with suppress(sqlite3.DatabaseError):
                for row in db.execute(f"SELECT {COLUMNS} FROM answers ORDER BY request {order}"):
                    with suppress(BadAnswer, sqlite3.IntegrityError):
                        if row[5] is not None and whole(*row):
                            into.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
                            saved += 1
            with suppress(sqlite3.DatabaseError):
                for row in db.execute(
                    f"SELECT rowid, payer, tokens_in, tokens_out FROM forgotten ORDER BY rowid {order}"
                ):
                    into.execute(
                        "INSERT OR IGNORE INTO forgotten (rowid, payer, tokens_in, tokens_out) VALUES (?, ?, ?, ?)", row
                    )
    return saved
