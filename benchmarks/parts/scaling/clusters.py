"""A Ray cluster of several nodes on this machine, for as long as something is measured on it."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager

from benchmarks.parts.scaling.bench import Missing
from benchmarks.parts.scaling.usage import spent

STORE_BYTES = 100 << 20  # of an object store: what goes through it is small
SETTLED_S = 3.0


@contextmanager
def cluster(nodes: int, cpus: int = 1) -> Generator[str]:
    """The address of a cluster of so many nodes with so many CPUs each, all of whose processes are below this one.

    Raises:
        Missing: there is no Ray.
    """
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        raise Missing("Ray is not installed (extra `ray`)") from None
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(nodes - 1):
            made.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES)
        made.wait_for_nodes()
        _settle()
        yield str(made.address)
    finally:
        made.shutdown()


def _settle(limit_s: float = 20) -> None:
    """Until the cluster's processes have started whatever they start: they take less than a tenth of a core."""
    until = time.monotonic() + limit_s
    before = spent(os.getpid())
    while time.monotonic() < until:
        time.sleep(SETTLED_S)
        now = spent(os.getpid())
        if now - before < 0.1 * SETTLED_S:
            return
        before = now
