"""Engines on the nodes of a Ray cluster: one actor each, with the GPUs that it needs on one node.

An actor is asked as an engine's process on this machine is (`process/watched.py`). One that died is started where there is room; until
there is, its batch goes to another (`replicas.py`). What an engine loads comes to its node by the store.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from engine.errors import FlywheelError, UserError
from engine.execution import threads
from engine.execution.executors.ray import PASSED
from engine.stage.executor import Effort
from engine.store.known_digests import Told, take_part, told
from generators.backends import adapters
from generators.backends.process.child import Loaded
from generators.backends.process.engine_process import EngineDied, NoRoom, Spec

if TYPE_CHECKING:
    from engine.store.artifact import Artifact
    from engine.store.store import Store

PATIENCE_S = 10.0  # for a place, before a batch goes to another engine
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


class Seat:
    """The actor: one engine, on a node."""

    _loaded: Loaded

    def __init__(self, digests: Told | None) -> None:
        take_part(digests)

    def where(self) -> tuple[str, int]:
        """Node and process. Answered as soon as there is a place."""
        return socket.gethostname(), os.getpid()

    def load(self, spec: Spec, model: Artifact, store: Store) -> tuple[str, Any]:
        """("done", the longest prompt plus completion) or ("refused", an error in our own words)."""
        try:
            here = "external" in model.manifest or model.store.local
            if here and "hub" not in model.manifest and not model.place.is_dir():
                raise UserError(
                    f"the node {socket.gethostname()} does not see {model.place}: a store in a folder, and a model that lies "
                    "outside of it, must be on a disk that all nodes share, under the same path; or use a store on `s3://`."
                )
            location, more = adapters.located(model, store)
            self._loaded = Loaded({**spec, "model": location, "options": {**spec["options"], **more}})
        except FlywheelError as error:
            return "refused", error
        return "done", self._loaded.max_model_len

    def answer(self, *message: Any) -> tuple[str, Any]:
        return self._loaded.answer(*message)


class ActorProcess:
    """An `EngineProcess` in an actor.

    Args:
        actor: of a `Seat` that has a place. spent: told what it has cost, in the end.
    """

    def __init__(self, actor: Any, place: tuple[str, int], max_model_len: int, spent: Callable[[Effort], None]) -> None:
        self._actor, self._spent, self._node = actor, spent, place[0]
        self._since = time.monotonic()
        self.pid: int | None = place[1]
        self.max_model_len = max_model_len

    def ask(self, *message: Any) -> Any:
        return answered(self._actor, self._actor.answer.remote(*message))

    def end(self) -> None:
        ray.kill(self._actor)

    def rest(self) -> None:
        try:
            cpu_s, peak_rss_mb = self.ask("effort")
        except EngineDied:
            return
        self._spent(Effort(f"{self._node}:{self.pid}", time.monotonic() - self._since, cpu_s, peak_rss_mb))
        self.end()


def answered(actor: Any, coming: Any) -> Any:
    """What an actor's answer says (see `child.Loaded`); an actor that has nothing more to say is ended.

    Raises:
        EngineDied, FlywheelError: as `EngineProcess.ask` does.
    """
    try:
        kind, value = ray.get(coming)
    except RayError as error:
        kind, value = "died", str(error).strip().split("\n")[0]
    if kind == "done":
        return value
    ray.kill(actor)
    if isinstance(value, FlywheelError):
        raise value
    raise EngineDied(str(value))


class EngineStarter:
    """Starts the actor of one replica, and starts it again.

    Args:
        model: is found on the node, by the store.
    """

    def __init__(
        self,
        model: Artifact,
        store: Store,
        options: dict[str, Any],
        spent: Callable[[Effort], None],
        say: Callable[[str], None],
    ) -> None:
        self._model, self._store, self._spent, self._say = model, store, spent, say
        ranks = 1
        for name in PARALLEL:
            ranks *= int(options.get(name, 1))
        self._gpus = ranks if ranks > 1 or ray.cluster_resources().get("GPU") else 0
        self._actor: Any = None  # that has no place yet
        self._placed: Any = None
        self._waited = False

    def __call__(self, spec: Spec) -> ActorProcess:
        """
        Raises:
            NoRoom: there is no place for it yet; ask again.
        """
        if not ray.is_initialized():  # it would look for another cluster
            raise EngineDied("this process has left the cluster")
        if self._actor is None:
            # Sums of floats depend on how many threads they are shared out to: as many on every node as here.
            count = os.environ.get("OMP_NUM_THREADS") or str(threads.cores())
            passed = {name: os.environ[name] for name in PASSED if name in os.environ}
            variables = {**passed, **threads.WAITING, "OMP_NUM_THREADS": count, "PYTHONHASHSEED": "0"}
            kind: Any = ray.remote(Seat)
            self._actor = kind.options(
                num_cpus=1, num_gpus=self._gpus, scheduling_strategy="SPREAD", runtime_env={"env_vars": variables},
            ).remote(told())  # fmt: skip
            self._placed = self._actor.where.remote()
        ready, _ = ray.wait([self._placed], timeout=PATIENCE_S)
        if not ready:
            if not self._waited:
                what = f"{self._gpus} GPU{'s' * (self._gpus > 1)} on one node" if self._gpus else "a CPU"
                self._say(f"An engine waits for {what} of the cluster.")
            self._waited = True
            raise NoRoom
        actor, self._actor = self._actor, None
        try:
            place: Any = ray.get(self._placed)
        except RayError as error:
            raise EngineDied(str(error).strip().split("\n")[0]) from None
        longest = answered(actor, actor.load.remote(spec, self._model, self._store))
        return ActorProcess(actor, place, longest, self._spent)
