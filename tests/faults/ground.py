"""The ground that faults are tried on: a store that an undisturbed run has filled, and copies of it with one stage to make again.

ground = Ground(folder)
ground.prepare()                      # once, minutes
with ground.trial("chats") as trial:  # its artifact is gone
    process = trial.start()           # `flywheel run --only chats`
    ...
    assert trial.finish() is None     # run to the end: the digests of before, no traceback, no orphan, nothing left over
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.parts.moments import Moments
from engine.plan.plan import make_plan
from engine.plan.recipe import load_recipe
from engine.store.store import Store
from tests.faults.gate import Gate
from tests.faults.outcome import Came
from tests.faults.world import answer, make
from tests.generators.faulty_server import FaultyServer

ROOT = Path(__file__).parents[2]
FLYWHEEL = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
MARK = "FLYWHEEL_FAULT"
LONGEST = 3600  # seconds for one command; it is over long before, even on a busy machine, unless it hangs


LARGE = 2000  # MB: of stages that take more, vLLM's, one is tried at once


def processes(mark: str) -> list[int]:
    """Every process that was started with this mark in its environment, or works in the folder of this name: an engine that names
    itself (setproctitle) writes over its environment.
    """
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            ours = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes() or mark in str(
                (entry / "cwd").readlink()
            )
            if ours and alive(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def children(process: int) -> list[int]:
    with suppress(OSError):
        lists = [task / "children" for task in Path(f"/proc/{process}/task").iterdir()]
        return [int(one) for each in lists for one in each.read_text().split()]
    return []


def commandline(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@dataclass
class Trial:
    """One copy of the store, in which one stage is to be made again."""

    ground: Ground
    stage: str
    folder: Path
    mark: str
    extra: dict[str, str] = field(default_factory=lambda: {})
    said: str = ""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def artifact(self) -> Path:
        return self.store / "artifacts" / self.ground.folder_of[self.stage]

    @property
    def scratch(self) -> Path:
        return self.store / "work" / self.ground.folder_of[self.stage]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "FLYWHEEL_STORE": str(self.store),
            "FLYWHEEL_HOME": str(self.home),
            MARK: self.mark,
            "SPT_NOENV": "1",  # or what calls itself otherwise (vLLM) writes over its environment, and the mark with it
            **self.extra,
        }

    def start(self, *arguments: str, limits: tuple[int, int] | None = None) -> subprocess.Popen[str]:
        """A `flywheel` command, by default the run of the stage, in a session of its own.

        Args:
            limits: which resource (`resource.RLIMIT_...`), and how much of it.
        """
        words = arguments or ("run", str(self.ground.recipe), "--only", self.stage)
        return subprocess.Popen(
            [*FLYWHEEL, *words], env=self.environment(), cwd=self.folder, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            preexec_fn=(lambda: resource.setrlimit(limits[0], (limits[1], limits[1]))) if limits else None,
        )  # fmt: skip

    def end(self, process: subprocess.Popen[str]) -> int:
        """Wait for a command; what it said is added to `said`."""
        try:
            out, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            out += "\nHANGS"
        self.said += out
        return process.returncode

    def command(self, *arguments: str) -> int:
        return self.end(self.start(*arguments))

    def begun(self, process: subprocess.Popen[str]) -> bool:
        """Wait until there is a worker; False if the run is over before."""
        return self.wait(process, lambda: any(children(one) for one in children(process.pid)))

    def wait(self, process: subprocess.Popen[str], until: Any) -> bool:
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            if until():
                return True
            if process.poll() is not None:
                return bool(until())
            time.sleep(0.05)
        return False

    def keepers(self) -> list[int]:
        """The processes between the run and its workers."""
        found = self._between()
        return [one for one in found if parent(one) not in found]

    def workers(self) -> list[int]:
        found = self._between()
        return [one for one in found if parent(one) in found]

    def pool(self) -> list[int]:
        """The processes that a stage's tasks are spread over: what the fork server has forked."""
        found = [one for one in processes(self.mark) if "multiprocessing.forkserver" in commandline(one)]
        return [one for one in found if parent(one) in found]

    def _between(self) -> list[int]:
        return [one for one in processes(self.mark) if "engine.execution.keeper" in commandline(one)]

    def orphans(self) -> list[str]:
        """What still runs ten seconds after the command is gone, in words."""
        deadline = time.monotonic() + 10
        while (found := self._own()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for one in found:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        return [commandline(one)[:120] for one in found]

    def _own(self) -> list[int]:
        """Processes that should end with the command: all but Argilla's, which stays up for people."""
        return [one for one in processes(self.mark) if one not in self.argilla()]

    def argilla(self) -> list[int]:
        """Argilla's processes: what keeps it up, the server, its job worker, Redis."""
        return [one for one in processes(self.mark) if str(self.home) in commandline(one)]

    def finish(self, *options: str) -> tuple[Came, str]:
        """Run the stage to its end and look at what there is."""
        if orphans := self.orphans():
            return "orphan", "; ".join(orphans)
        code = self.command("run", str(self.ground.recipe), "--only", self.stage, *options)
        return self.judge(code)

    def judge(self, code: int) -> tuple[Came, str]:
        if "Traceback (most recent call last)" in self.said:
            return "traceback", self.said[-1500:]
        if orphans := self.orphans():
            return "orphan", "; ".join(orphans)
        if code:
            return "wrong", f"exit code {code}: {self.said[-800:]}"
        if wrong := self.differs():
            return "wrong", wrong
        left = [p for p in (self.store / "tmp").glob("*")] if (self.store / "tmp").exists() else []
        if self.scratch.exists():
            left.append(self.scratch)
        if left:
            return "leftover", ", ".join(str(p.relative_to(self.store)) for p in left[:5])
        return "same", ""

    def differs(self) -> str:
        """How the stage's artifact differs from the undisturbed one; empty if it does not."""
        found = Store(str(self.store)).get(self.ground.folder_of[self.stage])
        if found is None:
            return "there is no artifact"
        if found.verify():
            return f"damaged: {found.verify()}"
        if found.digest != self.ground.digest_of[self.stage]:
            return "another digest"
        return ""


class Ground:
    """A filled store, its recipe and the server it asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world, self.store, self.home = folder / "world", folder / "store", folder / "home"
        self.recipe = self.world / "everything.yaml"
        self.folder_of: dict[str, str] = {}
        self.digest_of: dict[str, str] = {}
        self.kind_of: dict[str, str] = {}
        self.cpu_of: dict[str, float] = {}
        self.memory_of: dict[str, float] = {}
        self.large = threading.Lock()
        self.seconds_of: dict[str, float] = {}
        self.server = FaultyServer(share=0, answer=answer, capacity=8)
        self.moments_of: dict[str, Moments] = {}
        self.looking = threading.Lock()
        self.opened = ExitStack()  # what families start for all of their faults

    @contextmanager
    def open(self, only: list[str] | None = None) -> Generator[Ground]:
        """Make the world and run its recipe to the end, undisturbed; the server is up inside.

        Args:
            only: these stages and what they need.
        """
        with self.server, self.opened:
            # `repair` asks where was asked: a store that was filled before knows the port of then.
            kept = self.folder / "gate"
            before = int(kept.read_text()) if kept.exists() else 0
            self.gate = Gate(int(self.server.url.rpartition(":")[2].split("/")[0]), before)
            kept.write_text(str(self.gate.port))
            url = f"http://127.0.0.1:{self.gate.port}/v1"
            if self.world.exists():
                shutil.rmtree(self.world)
            make(self.world, url, only)
            environment = {**os.environ, "FLYWHEEL_STORE": str(self.store), "FLYWHEEL_HOME": str(self.home)}
            done = subprocess.run([*FLYWHEEL, "run", str(self.recipe)], env=environment, cwd=self.folder)
            if done.returncode:
                raise SystemExit(f"the undisturbed run ended with {done.returncode}")
            store = Store(str(self.store))
            for planned in make_plan(load_recipe(self.recipe), store):
                found = store.get(planned.folder)
                assert found is not None
                self.folder_of[planned.name], self.kind_of[planned.name] = planned.folder, planned.step.kind
                self.digest_of[planned.name] = found.digest
                timings = found.manifest["timings"]
                self.cpu_of[planned.name] = timings["cpu_s"]
                self.memory_of[planned.name] = timings["peak_rss_mb"]
                # A busy machine, or Argilla's server that is installed the first time, make it longer than it will be.
                self.seconds_of[planned.name] = min(timings["wall_s"], 3 * timings["cpu_s"])
            try:
                yield self
            finally:
                subprocess.run(
                    [*FLYWHEEL, "argilla", "down"], env=environment, cwd=self.folder, capture_output=True, check=False
                )

    @contextmanager
    def trial(self, stage: str, gone: bool = True) -> Generator[Trial]:
        """A copy of the store.

        Args:
            gone: the stage's artifact is not there.
        """
        with self.large if self.memory_of[stage] > LARGE else nullcontext(), self._trial(stage, gone) as trial:
            yield trial

    @contextmanager
    def _trial(self, stage: str, gone: bool) -> Generator[Trial]:
        mark = uuid.uuid4().hex[:12]
        folder = self.folder / "trials" / mark
        folder.mkdir(parents=True)
        trial = Trial(self, stage, folder, mark)
        self.fill(trial.store, stage, gone)
        trial.home.mkdir()
        for environment in self.home.glob("argilla-env-*"):
            (trial.home / environment.name).symlink_to(environment)
        try:
            yield trial
        finally:
            trial.extra = {}
            if (trial.home / "argilla").exists():
                trial.command("argilla", "down")
            for one in processes(mark):
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)

    def fill(self, store: Path, stage: str, gone: bool = True) -> None:
        """Copy the filled store to a folder that may be there already."""
        shutil.copytree(self.store, store, dirs_exist_ok=True, ignore=shutil.ignore_patterns("work", "tmp"))
        if gone:
            shutil.rmtree(store / "artifacts" / self.folder_of[stage])

    def record(self) -> dict[str, Any]:
        return json.loads((self.store / "runs" / "everything.json").read_text())
