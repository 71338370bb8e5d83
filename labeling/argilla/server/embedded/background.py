# Runs inside Argilla's private environment, whose packages this project's type checker cannot see.
# pyright: basic, reportMissingImports=false
"""Argilla's background jobs (webhooks, statuses after a change of distribution), by one rq worker.

Most servers never queue a job, and a worker that has imported Argilla holds 250 MB: it waits for the first
job with nothing but a Redis connection.
"""

from __future__ import annotations

import os
import time

import redis

_QUEUES = ("high", "default")


def wait_for_a_job() -> None:
    connection = redis.from_url(os.environ["ARGILLA_REDIS_URL"])
    keys = [key for queue in _QUEUES for key in (f"rq:queue:{queue}", f"rq:scheduled:{queue}")]
    while True:
        try:
            if connection.exists(*keys):
                return
        except redis.exceptions.ConnectionError:
            pass  # it is being started
        time.sleep(0.5)


def work() -> None:
    import argilla_server.jobs.dataset_jobs
    import argilla_server.jobs.webhook_jobs  # noqa: F401
    import search  # noqa: F401  registers the engine
    from argilla_server.jobs.queues import REDIS_CONNECTION
    from rq import Worker
    from serve import durable_sqlite

    durable_sqlite()
    # The scheduler is what delivers a webhook again after a failure.
    Worker(_QUEUES, connection=REDIS_CONNECTION).work(logging_level="WARNING", with_scheduler=True)


if __name__ == "__main__":
    wait_for_a_job()
    work()
