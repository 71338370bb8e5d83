# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
"""Argilla's background jobs (webhooks, statuses after a change of distribution, imports), one rq worker."""

from __future__ import annotations

import argilla_server.jobs.dataset_jobs
import argilla_server.jobs.webhook_jobs  # noqa: F401
import search  # noqa: F401  registers the engine
from argilla_server.database import async_engine
from argilla_server.jobs.queues import DEFAULT_QUEUE, HIGH_QUEUE, REDIS_CONNECTION
from rq import Worker
from serve import durable_sqlite


def main() -> None:
    durable_sqlite()
    async_engine.sync_engine.dispose(close=False)
    Worker([HIGH_QUEUE, DEFAULT_QUEUE], connection=REDIS_CONNECTION).work(logging_level="WARNING")


if __name__ == "__main__":
    main()
