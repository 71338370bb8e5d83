"""A Ray cluster of several nodes on this machine that has come to rest, for as long as something is measured on it."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from benchmarks.parts.ray_nodes import ray_cluster
from benchmarks.parts.scaling.bench import Missing
from benchmarks.parts.scaling.usage import spent

SETTLED_S, PATIENCE_S = 3.0, 20.0


@contextmanager
def cluster(nodes: int) -> Generator[str]:
    """The address of a cluster of so many nodes with one CPU each, all of whose processes are below this one.

    Raises:
        Missing: there is no Ray.
    """
    try:
        import ray  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise Missing("Ray is not installed (extra `ray`)") from None
    with ray_cluster(nodes) as made:
        _settle()
        yield str(made.address)


def _settle() -> None:
    """Until the cluster's processes have started whatever they start: they take less than a tenth of a core."""
    until = time.monotonic() + PATIENCE_S
    before = spent()
    while time.monotonic() < until:
        time.sleep(SETTLED_S)
        now = spent()
        if now - before < 0.1 * SETTLED_S:
            return
        before = now
