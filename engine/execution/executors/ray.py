"""Tasks on the nodes of a Ray cluster: an actor a core, each with the work as it was pickled once, each given tasks as it gets done.

Ray knows nothing of partitions and keeps nothing of them: what tasks read and leave is in the store. So what a lost node was at is done
again by another, with the same bytes, and who only seemed lost and comes back commits the same, or is refused once the stage is over
(`engine.store.lease`).
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import random
import signal
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, cast

from engine import seeds
from engine.errors import StageFailed, UserError
from engine.execution.executors.task_worker import REACH, Raised, TaskWorker
from engine.execution.threads import COUNTS, WAITING
from engine.stage.executor import Done, Here, Work
from engine.store.known_digests import told

LIVES = 3  # of a task: so many processes may be lost while they are at it
AHEAD_S = 1.0  # a process whose tasks take less is handed the next one while it is at one
WINDOW = 8  # tasks for each process that may be done before those in front of them are
LOOK_S, PATIENCE_S, CONNECT_S = 2.0, 30.0, 10.0
IDLE_S = 10.0  # between phases; then their cores are for others, as for a model's engines
SHUFFLE = "FLYWHEEL_SHUFFLE_TASKS"  # for tests: tasks are handed out in the order that is drawn with this seed
# What a process on a node has from here; all else, credentials among it, from the node.
PASSED = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION", "FLYWHEEL_CACHE_GB", "FLYWHEEL_SCRATCH", "PYTHONPATH")


class RayExecutor:
    """On as many cores as the cluster has now, and has later: those of nodes that come are used, and nodes may go.

    Attributes:
        dashboard: where Ray's is, if there is one.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, least: int = 0) -> None:
        """
        Args:
            address: `host:port`; RAY_ADDRESS, or the cluster that this machine is a node of, if None.
            workers: processes, at most; a core each of the cluster if None.
            least: with less than so many bytes to look at, all is done in this process.

        Raises:
            UserError: Ray is not installed, there is no cluster, or it is of another version of Ray or Python.
        """
        self._ray, self.dashboard, self._ours = connect(address)
        self._workers, self._least = workers, least
        self._there: set[_Member] = set()  # all whom we hired
        self._resting: list[_Member] = []  # those who are in no phase
        self._counting = threading.Lock()
        self._leave: threading.Timer | None = None
        self._actor: Any = None

    @property
    def width(self) -> int:
        return self._workers or max(1, self._cores())

    def map(self, work: Work, tasks: Iterable[Any], width: int | None = None) -> Iterator[Done]:
        if 1 in (width, self._workers) or (work.size is not None and work.size < self._least):
            yield from Here().map(work, tasks)
            return
        drawn = iter(tasks)
        first = list(islice(drawn, 2))
        if len(first) < 2:
            yield from Here().map(work, chain(first, drawn))
            return
        yield from _Phase(self, work, chain(first, drawn), width).results()

    def close(self) -> None:
        """End all actors, and the connection."""
        self._stay()
        for member in list(self._there):
            self.dismiss(member)
        if self._ours:
            self._ray.shutdown()

    def limit(self, width: int | None) -> int:
        """How many processes there may be now."""
        return min(self.width, width or self.width)

    def take(self, count: int) -> list[_Member]:
        """So many for a phase; some may have to wait for room in the cluster."""
        self._stay()
        with self._counting:
            taken, self._resting = self._resting[:count], self._resting[count:]
        return taken + [self._hire() for _ in range(count - len(taken))]

    def give_back(self, members: list[_Member]) -> None:
        """They go to the next phase, or leave their cores to others if none comes soon."""
        with self._counting:
            self._resting += members
        self._stay()
        self._leave = threading.Timer(IDLE_S, self._dismiss_resting)
        self._leave.daemon = True
        self._leave.start()

    def dismiss(self, member: _Member) -> None:
        self._there.discard(member)
        self._ray.kill(member.actor)

    def _stay(self) -> None:
        if self._leave:
            self._leave.cancel()

    def _dismiss_resting(self) -> None:
        with self._counting:
            left, self._resting = self._resting, []
        for member in left:
            self.dismiss(member)

    @property
    def ray(self) -> Any:
        return self._ray

    def _hire(self) -> _Member:
        if self._actor is None:
            passed = {name: os.environ[name] for name in PASSED if name in os.environ}
            alone = {**WAITING, **dict.fromkeys(COUNTS, "1"), "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "true"}
            self._actor = self._ray.remote(
                num_cpus=1, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD",
                runtime_env={"env_vars": {**passed, **alone}},
            )(TaskWorker)  # fmt: skip
        actor = self._actor.remote(told())
        member = _Member(actor, joining=actor.place.remote())
        self._there.add(member)
        return member

    def _cores(self) -> int:
        return int(self._ray.cluster_resources().get("CPU", 0))


@dataclass(eq=False)
class _Member:
    """An actor.

    Attributes:
        joining: what it answers once it is there.
        ready: it has the work of this phase.
        under_way: the tasks it was given, by what will be the answer, in order.
        pace_s: what its last task took.
    """

    actor: Any
    joining: Any = None
    opening: Any = None
    place: str = ""
    ready: bool = False
    under_way: dict[Any, int] = field(default_factory=lambda: {})
    pace_s: float = AHEAD_S

    @property
    def room(self) -> bool:
        return self.ready and len(self.under_way) < (2 if self.pace_s < AHEAD_S else 1)

    def awaited(self) -> list[Any]:
        return [ref for ref in (self.joining, self.opening, *self.under_way) if ref is not None]


class _Phase:
    """The tasks of one `map`: which are drawn, under way, done, and lost."""

    def __init__(self, executor: RayExecutor, work: Work, tasks: Iterable[Any], width: int | None) -> None:
        self.executor, self.ray, self.work, self.width = executor, executor.ray, work, width
        self.waiting: Iterator[tuple[int, Any]] = enumerate(tasks)
        self.window: int | None = WINDOW
        if SHUFFLE in os.environ:
            everything = list(self.waiting)
            random.Random(seeds.derive(int(os.environ[SHUFFLE]), "tasks")).shuffle(everything)
            self.waiting, self.window = iter(everything), None
        self.drawn: dict[int, bytes] = {}  # and not done
        self.again: deque[int] = deque()
        self.done: dict[int, Done] = {}
        self.lost: Counter[int] = Counter()
        self.front, self.exhausted = 0, False
        self.failed_starts, self.failed_start = 0, 0.0
        self.looked, self.alone_since = 0.0, time.monotonic()
        self.crew: list[_Member] = []

    def results(self) -> Iterator[Done]:
        self.token = uuid.uuid4().hex.encode()
        self.work.job.store.put(self.token, "work", self.work.job.artifact, REACH)
        self.data = self.ray.put(self.work.dumps())
        try:
            while True:
                while self.front in self.done:
                    self.front += 1
                    yield self.done.pop(self.front - 1)
                self.hand_out()
                if self.exhausted and not self.drawn:
                    return
                self.hear()
        finally:
            for member in self.crew:
                if member.under_way:
                    self.executor.dismiss(member)  # what it is at has no other end
                elif member.ready or member.opening is not None:
                    member.actor.rest.remote()
                    member.ready, member.opening = False, None
            self.executor.give_back([member for member in self.crew if not member.under_way])

    def hand_out(self) -> None:
        if time.monotonic() - self.looked > LOOK_S or not self.crew:
            self.looked = time.monotonic()
            missing = self.executor.limit(self.width) - len(self.crew)
            self.crew += self.executor.take(max(missing, 0))
        for member in self.crew:
            if member.joining is None and member.opening is None and not member.ready:
                member.opening = member.actor.open.remote(self.data, self.token)
        for load in (0, 1):
            for member in self.crew:
                if member.room and len(member.under_way) == load and (index := self.next()) is not None:
                    member.under_way[member.actor.do.remote(self.drawn[index])] = index

    def next(self) -> int | None:
        """The task to be done next; None if there is none now."""
        if self.again:
            return self.again.popleft()
        most = max(32, WINDOW * len(self.crew))
        if self.exhausted or (self.window and len(self.drawn) + len(self.done) >= most):
            return None
        found = next(self.waiting, None)
        if found is None:
            self.exhausted = True
            return None
        index, task = found
        self.drawn[index] = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
        return index

    def hear(self) -> None:
        """Wait until somebody has something to tell, and hear all who have."""
        whose = {ref: member for member in self.crew for ref in member.awaited()}
        if not any(member.ready for member in self.crew) and time.monotonic() - self.alone_since > PATIENCE_S:
            cores = self.executor.width
            self.work.job.say(f"waits for room in the Ray cluster ({cores} workers wanted, all of its cores are taken)")
            self.alone_since = time.monotonic()
        ready, rest = self.ray.wait(list(whose), num_returns=1, timeout=LOOK_S)
        if rest:
            ready += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for ref in ready:
            member = whose[ref]
            if ref not in member.awaited():
                continue  # it was lost, and all that it was at with it
            try:
                answer = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                self.lose(member, error)
                continue
            self.take(member, ref, pickle.loads(answer))

    def take(self, member: _Member, ref: Any, answer: Any) -> None:
        if isinstance(answer, Raised):
            raise answer.again()
        if ref is member.joining:
            member.joining, member.place = None, cast(str, answer)
        elif ref is member.opening:
            member.opening, member.ready, self.failed_starts = None, True, 0
        else:
            done = cast(Done, answer)
            index = member.under_way.pop(ref)
            member.pace_s = done.effort.wall_s if done.effort else 0
            self.done[index] = done
            del self.drawn[index]
        if member.ready:
            self.alone_since = time.monotonic()

    def lose(self, member: _Member, error: Exception) -> None:
        """Have others do what it was at.

        Raises:
            StageFailed: a task has lost too many. UserError: nobody gets ready.
        """
        reason = reason_of(error)
        self.executor.dismiss(member)
        self.crew.remove(member)
        self.looked = 0
        where = f" on {member.place}" if member.place else ""
        if not member.ready:
            if time.monotonic() - self.failed_start > LOOK_S:  # those of one node are lost together
                self.failed_start = time.monotonic()
                self.failed_starts += 1
            if self.failed_starts >= LIVES:
                raise StageFailed(f"no process of the Ray cluster could begin its work: {hint(reason)}")
            return
        indexes = list(member.under_way.values())
        member.under_way.clear()
        if indexes:
            self.lost[indexes[0]] += 1  # the others waited behind it
            if self.lost[indexes[0]] >= LIVES:
                raise StageFailed(
                    f"{LIVES} processes of the Ray cluster were lost at the same task, the last one{where}: {reason} What is done "
                    "is kept, and running again goes on from here. If memory ran out, give a process less (`partition`, `memory_gb`)."
                )
        self.again.extendleft(reversed(indexes))
        self.work.job.say(f"a process{where} was lost: {reason} What it was at goes to others.")


def connect(address: str | None) -> tuple[Any, str | None, bool]:
    """Ray, connected with a cluster; its dashboard; whether it was connected here.

    Raises:
        UserError: as `RayExecutor` says.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("`executor: ray` needs Ray: install Flywheel with its extra `ray` (`flywheel[ray]`).") from None
    library = cast(Any, ray)
    if library.is_initialized():
        return library, None, False
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if "://" in address:
        raise UserError(
            f"{address} is not the address of a Ray cluster as its nodes know it (`host:6379`). From outside, submit the run: `ray job "
            "submit --address http://HEAD:8265 --working-dir . -- flywheel run RECIPE --executor ray`."
        )
    if address != "auto":
        _knock(address)
    mine = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        context = library.init(
            address=address,
            namespace="flywheel",
            logging_level=logging.ERROR,
            log_to_driver=True,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, library.exceptions.RayError) as error:
        raise UserError(_unconnected(address, error)) from error
    finally:
        if mine:
            signal.signal(signal.SIGTERM, handler)  # Ray's own leaves without closing what is open
    board = context.dashboard_url
    return library, f"http://{board}" if board and "://" not in board else board or None, True


def _knock(address: str) -> None:
    """Whether anybody is there; Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"`{address}` is not the address of a Ray cluster: expected `host:port`, as `ray start` told it."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise UserError(_unconnected(address, error)) from None


def _unconnected(address: str, error: BaseException) -> str:
    said = " ".join(str(error.__cause__ or error).split())
    if "Version mismatch" in said:
        return (
            f"the Ray cluster at {address} is of another version than what runs here (Python {platform.python_version()}): {said} "
            "Have all nodes the same Python and the same Ray."
        )
    if "AuthToken" in said or "Authentication" in said:
        return (
            f"the Ray cluster at {address} lets nobody in without its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH, as on its nodes. (Ray asks for one on a machine where a token lies in ~/.ray.)"
        )
    if address == "auto":
        return (
            "no Ray cluster runs on this machine. Start one (`ray start --head`), or name one: `--address HOST:6379`, or RAY_ADDRESS. "
            "From outside: `ray job submit --address http://HEAD:8265 --working-dir . -- flywheel run RECIPE --executor ray`."
        )
    return (
        f"there is no Ray cluster to be reached at {address} ({said}). It is `HOST:PORT` as `ray start --head` told it, and whoever "
        "connects must be a node of it, too (`ray start --address HOST:PORT`)."
    )


def reason_of(error: BaseException) -> str:
    """Why a process is gone, of what Ray says about it at length."""
    said = " ".join(str(error).split())
    if "running low on memory" in said:
        return "its node ran low on memory, and Ray ended it."
    if "node has died" in said or "node died" in said or "node failure" in said:
        return "its node is gone."
    if "worker process has died" in said or "worker exit" in said.lower():
        return "it was killed, or crashed; the kernel kills where memory runs out."
    told = said if len(said) <= 300 else f"{said[:297]}..."
    return told if told.endswith(".") else f"{told}."


def hint(reason: str) -> str:
    if "No module named" in reason or "ModuleNotFoundError" in reason or "failed to import" in reason:
        return (
            f"{reason} Every node needs Flywheel, the same version as here: install it there, or have it sent (`ray job submit "
            "--working-dir .`)."
        )
    return reason
