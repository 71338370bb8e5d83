"""A recipe on Ray clusters of several sizes on this machine, with its tasks handed out in a drawn order.

python -m benchmarks.parts.ray_nodes RECIPE 1 2 4 7
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.execution.executors.choice import LEAST_SET
from engine.execution.executors.ray import SHUFFLE
from engine.store.store import Store

ROOT = Path(__file__).parents[2]
FLYWHEEL = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
STORE_BYTES = 80 << 20  # of a node's object store: what goes through it is small
# A node that stands still is taken for lost within seconds instead of half a minute.
HASTE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 3000}


@contextmanager
def ray_cluster(nodes: int, head_cpus: int = 1, **head: Any) -> Generator[Any]:
    """A cluster of `nodes` nodes with one CPU each, the head among them (`head_cpus` of it)."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": head_cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False, **head}
    made = Cluster(initialize_head=True, head_node_args=settings)
    try:
        for _ in range(nodes - 1):
            add_node(made)
        made.wait_for_nodes(120)
        yield made
    finally:
        made.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def command(
    recipe: Path, store: Path, address: str | None, log: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`flywheel run`, on a cluster or here, small stages spread, too. What it says goes to a file, or to who asks."""
    where = ["--executor", "ray", "--address", address] if address else []
    env = {**os.environ, "PYTHONPATH": str(ROOT), LEAST_SET: "0", **(environment or {})}
    with log.open("w") if log else contextlib.nullcontext(subprocess.PIPE) as told:
        return subprocess.Popen(
            [*FLYWHEEL, "run", str(recipe), "--store", str(store), "--json", *where],
            cwd=recipe.parent, env=env, stdout=told, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def store_digests(store: Path) -> dict[str, str]:
    return {artifact.id: artifact.digest for artifact in Store(str(store)).artifacts()}


def digests(
    nodes: Sequence[int] = (1, 2, 4, 7), recipe: Path | str = "", shuffle: int | None = 0, hash_seed: int = 0
) -> dict[str, str]:
    """By artifact, what a recipe made of it on clusters of these sizes: its digest, or all of them where they differ.

    Args:
        shuffle: seed of the order in which tasks are handed out, one more for each size; None: as they come.
        hash_seed: PYTHONHASHSEED of the command.

    Raises:
        RuntimeError: a run failed; its last words.
    """
    found: dict[str, list[str]] = {}
    for turn, count in enumerate(nodes):
        drawn = {} if shuffle is None else {SHUFFLE: str(shuffle + turn)}
        with tempfile.TemporaryDirectory() as folder, ray_cluster(count) as cluster:
            store = Path(folder) / "store"
            environment = {"PYTHONHASHSEED": str(hash_seed), **drawn}
            running = command(Path(recipe).resolve(), store, cluster.address, environment=environment)
            told = running.communicate()[0]
            if running.returncode:
                raise RuntimeError(f"on {count} nodes: {told[-2000:]}")
            for name, digest in store_digests(store).items():
                found.setdefault(name, []).append(digest)
    return {name: one[0] if one == [one[0]] * len(nodes) else ", ".join(one) for name, one in found.items()}


if __name__ == "__main__":
    for name, digest in digests([int(count) for count in sys.argv[2:]] or (1, 2, 4, 7), sys.argv[1]).items():
        print(f"{digest}  {name}")
