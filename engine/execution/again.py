"""A stage that is made again: after it failed, or though it is finished.

A stage that asks a server and failed starts from its answers and not from its partitions: what was good costs nothing, what was
bad is asked again. A finished artifact that is made anew under its key is set aside until the new one is there; where
that fails, it comes back.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from engine.errors import StageFailed, UserError
from engine.plan.plan import Planned
from engine.store.lease import Superseded
from engine.store.store import Store
from engine.store.whole_file import whole_file
from engine.store.writer import ArtifactWriter
from engine.view.unfinished import FAILED

BEFORE = "before"  # in the scratch folder, which goes when the new artifact is there


def prepare(store: Store, stage: Planned, anew: bool) -> None:
    """Make room for a stage.

    Args:
        anew: something is finished under its key, and to be replaced.
    """
    scratch = store.scratch(stage.folder)
    failed = scratch / FAILED
    if anew and store.local:
        shutil.rmtree(scratch / BEFORE, ignore_errors=True)
        Path(store.path("artifacts", stage.folder)).rename(scratch / BEFORE)
    elif anew or (failed.exists() and stage.step.config.asks()):
        ArtifactWriter(store, stage.folder).discard()
        shutil.rmtree(scratch / "output", ignore_errors=True)
    failed.unlink(missing_ok=True)


def note_failure(store: Store, run: str, stage: Planned, error: BaseException) -> None:
    """Bring back what was set aside, or note what went wrong, for `show` and `status`.

    Args:
        run: whose record the stage stands in; empty: none.
    """
    if isinstance(error, Superseded):
        return  # what is there is another's
    scratch = store.scratch(stage.folder)
    if (scratch / BEFORE).exists():
        ArtifactWriter(store, stage.folder).discard()
        (scratch / BEFORE).rename(store.path("artifacts", stage.folder))
        shutil.rmtree(scratch)
        return
    if not isinstance(error, StageFailed | UserError):
        return  # it was stopped, or waits for people
    with whole_file(scratch / FAILED) as partial:
        partial.write_text(json.dumps({"error": str(error), "at": time.time()}))
    if run:

        def change(record: dict[str, Any]) -> dict[str, Any]:
            return {**record, "failed": {**record.get("failed", {}), stage.name: stage.folder}}

        store.update_run(run, change)
