# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
# ruff: noqa: E402  the garbage collector is switched off before the heavy imports
"""Bring the database up to date, then serve Argilla's API and web UI on a socket that the supervisor holds.

    serve.py LISTENING_FD

Argilla's own command line is not used: it cannot be told to register a search engine, nor to serve a given
socket.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

# Importing Argilla makes a million objects and frees none: a fifth of the start went into looking.
gc.disable()

import alembic.config
import argilla_server.bulk.records_bulk as records_bulk
import argilla_server.models.database as database
import search  # noqa: F401  registers the engine
import uvicorn
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from argilla_server import app
from argilla_server.api.routes import api_v1
from argilla_server.contexts import accounts, datasets, distribution, webhooks
from argilla_server.database import ALEMBIC_CONFIG_FILE, AsyncSessionLocal, async_engine, sync_engine
from argilla_server.enums import RecordStatus, ResponseStatus, UserRole
from argilla_server.models import Dataset, Record, Response, User, WorkspaceUser
from argilla_server.settings import settings
from fastapi.responses import JSONResponse, RedirectResponse
from sqlalchemy import delete, event, func, select, text, update
from starlette.requests import Request
from starlette.routing import Route

# The first field is the prompt. It stays in view, over all of the width, while the answers below it are scrolled and ranked;
# those stand side by side, as many as there is room for. Argilla's custom fields could do it in a template, too: but they
# write the record into a script by a `replace` that takes "$'" in an answer for a command, in a frame that may do anything.
RECORD_STYLE = """<style>
.record__content .fields { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); align-items: start; }
.record__content .fields > * { min-width: 0; overflow-wrap: anywhere; }
.record__content .fields > :first-child { grid-column: 1 / -1; position: sticky; top: 0; z-index: 2; max-height: 25vh;
  overflow-y: auto; border-radius: 10px; background: var(--bg-accent-grey-1); }
</style>"""


def main(listening_fd: int) -> None:
    gc.freeze()
    gc.enable()
    style_web_ui()
    durable_sqlite()
    migrate()
    asyncio.run(prepare())
    # Argilla compiles the schema of every question and metadata property anew for every record: more than
    # half of a push.
    database.TypeAdapter = functools.cache(database.TypeAdapter)
    for module in (records_bulk, distribution, datasets):
        for name in ("notify_record_event_v1", "notify_response_event_v1"):
            if hasattr(module, name):
                setattr(module, name, unless_nobody_listens(getattr(module, name)))
    refuse_bounds_that_do_not_compare()
    accounts.delete_user = keep_judgements_of(accounts.delete_user)
    app.router.routes.insert(0, Route("/r/{digits}", short_link))
    config = uvicorn.Config(
        app,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listening_fd)])


def refuse_bounds_that_do_not_compare() -> None:
    """Argilla compares the bounds of a range before anything else, and fails (500) where one is a number, one a text."""

    async def refused(_: Any, error: Exception) -> JSONResponse:
        if not str(error).startswith("'>' not supported"):
            raise error
        detail = "The bounds of a range are a number and a text; expected two numbers, or two times."
        return JSONResponse({"detail": detail}, status_code=422)

    for mounted in (app, api_v1):
        mounted.add_exception_handler(TypeError, refused)


def keep_judgements_of(delete_user: Any) -> Any:
    """Argilla deletes what somebody judged together with the user. Who judged something is closed out instead.

    The account keeps its judgements under the name `NAME (deleted)`; it has no workspace, and nobody knows its key or password.
    """

    async def close_account(db: Any, user: User) -> User:
        if not await db.scalar(select(func.count(Response.id)).where(Response.user_id == user.id)):
            return await delete_user(db, user)
        name = f"{user.username} (deleted)"
        others = set(await db.scalars(select(User.username).where(User.username.startswith(name, autoescape=True))))
        numbered = (f"{user.username} (deleted {n})" for n in range(2, len(others) + 3))
        name = next(free for free in (name, *numbered) if free not in others)
        await db.execute(delete(WorkspaceUser).where(WorkspaceUser.user_id == user.id))
        closed = {"username": name, "api_key": secrets.token_urlsafe(48)}
        closed["password_hash"] = accounts.hash_password(secrets.token_urlsafe(48))
        await db.execute(update(User).where(User.id == user.id).values(**closed))
        await db.commit()
        await db.refresh(user)
        return user

    return close_account


async def short_link(request: Request) -> RedirectResponse:
    """From the first digits of a record's id to where an annotator who judged it finds it. Tells nothing of the record."""
    digits = request.path_params["digits"]
    if len(digits) < 8 or set(digits) - set("0123456789abcdef"):
        return RedirectResponse("/")
    low, high = (UUID(digits.ljust(32, end)[:32]) for end in "0f")
    async with AsyncSessionLocal() as db:
        dataset = await db.scalar(select(Record.dataset_id).where(Record.id.between(low, high)).limit(1))
    return RedirectResponse(f"/dataset/{dataset}/annotation-mode?status=submitted&search={digits}" if dataset else "/")


def style_web_ui() -> None:
    """In the copy of the web UI that importing Argilla has unpacked."""
    for page in Path(os.environ["TMPDIR"]).glob("*/statics/**/*.html"):
        html = page.read_text()
        if RECORD_STYLE not in html:  # an earlier server's copy
            page.write_text(html.replace("</head>", f"{RECORD_STYLE}</head>", 1))


def durable_sqlite() -> None:
    """What was answered with success is on the disk: a write-ahead log, synced at every commit."""
    if not settings.database_is_sqlite:
        return

    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(async_engine.sync_engine, "connect", configure)
    event.listen(sync_engine, "connect", configure)


def migrate() -> None:
    script = ScriptDirectory.from_config(alembic.config.Config(ALEMBIC_CONFIG_FILE))
    with sync_engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current != script.get_current_head():
        alembic.config.main(argv=["-c", ALEMBIC_CONFIG_FILE, "upgrade", "head"])
    with sync_engine.begin() as connection:
        # A page of a dataset in order, without sorting all of it; and whether a dataset has changed.
        for name, columns in (("order", "dataset_id, inserted_at, id"), ("changes", "dataset_id, updated_at, id")):
            connection.execute(text(f"CREATE INDEX IF NOT EXISTS flywheel_records_{name} ON records ({columns})"))
    sync_engine.dispose()


async def prepare() -> None:
    async with AsyncSessionLocal() as db:
        await create_owner(db)
        await settle_statuses(db)
    await async_engine.dispose()  # its connections belong to this event loop


async def create_owner(db: Any) -> None:
    username, password = os.environ["FLYWHEEL_OWNER"], os.environ["FLYWHEEL_OWNER_PASSWORD"]
    owner = await accounts.get_user_by_username(db, username)
    if owner is None:
        await User.create(
            db,
            first_name=username,
            username=username,
            role=UserRole.owner,
            api_key=os.environ["FLYWHEEL_OWNER_API_KEY"],
            password_hash=accounts.hash_password(password),
        )


async def settle_statuses(db: Any) -> None:
    """Argilla commits a response first and the record's status after it: a kill in between leaves the status
    behind.
    """
    submitted = func.count(Response.id)
    rows = await db.execute(
        select(Record.id, Record.status, submitted, Dataset.distribution)
        .join(Dataset, Dataset.id == Record.dataset_id)
        .join(Response, (Response.record_id == Record.id) & (Response.status == ResponseStatus.submitted))
        .group_by(Record.id, Record.status, Dataset.id)
    )
    for id, status, count, asked in rows.all():
        enough = count >= asked["min_submitted"]
        settled = RecordStatus.completed if enough else RecordStatus.pending
        if status is not settled:
            await db.execute(update(Record).where(Record.id == id).values(status=settled))
    await db.commit()


def unless_nobody_listens(notify: Any) -> Any:
    """A write loads six relations of a record for a webhook event, even with no webhook: skip those."""

    async def notify_if_heard(db: Any, kind: Any, subject: Any) -> Any:
        if "flywheel_webhooks" not in db.info:  # a session lives as long as one request
            db.info["flywheel_webhooks"] = bool(await webhooks.list_enabled_webhooks(db))
        return await notify(db, kind, subject) if db.info["flywheel_webhooks"] else []

    return notify_if_heard


if __name__ == "__main__":
    main(int(sys.argv[1]))
