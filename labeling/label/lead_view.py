"""What whoever leads annotators wants to know of a `label` stage: from the tool while people are at work, from its rows after."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.redaction import redacted
from engine.stage.people import People
from engine.store.artifact import Artifact
from engine.store.whole_file import whole_file
from labeling.argilla import client as argilla
from labeling.argilla.dataset_status import dataset_statuses
from labeling.label_studio import studio_client as label_studio
from labeling.label_studio.project_status import project_statuses
from labeling.tool.oversight import DatasetStatus, RecordJudgement, alpha
from labeling.tool.passwords import flywheel_home
from labeling.tool.task import Dataset, RankingTask

PUSHED = "pushed.json"  # in the stage's scratch folder: which datasets it waits for, and on which server
URL_OF = {"argilla": "ARGILLA_API_URL", "label_studio": "LABEL_STUDIO_URL"}
KEY_OF = {"argilla": "ARGILLA_API_KEY", "label_studio": "LABEL_STUDIO_API_KEY"}
PATIENCE = 5.0  # seconds until a page is told that nobody answers


def note_pushed(folder: Path, tool: str, datasets: Sequence[Dataset]) -> None:
    """Write down where people find the records of a stage."""
    url = os.environ.get(URL_OF[tool])
    server = None if url is None else {"digest": _digest(url), "shown": redacted(url)}
    noted = {
        "tool": tool,
        "server": server,
        "datasets": [dataset.id for dataset in datasets],
        "tasks": [asdict(dataset.task) for dataset in datasets],
    }
    with whole_file(folder / PUSHED) as partial:
        partial.write_text(json.dumps(noted))


def _digest(url: str) -> str:
    return sha256(url.encode()).hexdigest()


def people(artifact: Artifact) -> list[People]:
    """How people do at a stage's records: a part for each number of answers while they are at work, one of all rows after.

    Raises:
        UserError: nothing is pushed yet, or the server does not answer.
    """
    if "unfinished" not in artifact.manifest:
        return [_of_rows(artifact)]
    file = artifact.store.workplace() / artifact.id / PUSHED
    if not file.exists():
        raise UserError("no record was pushed yet.")
    noted: dict[str, Any] = json.loads(file.read_text())
    if noted.get("tool") == "label_studio":
        return _in_label_studio(noted)
    return _in_argilla(noted)


def _in_argilla(noted: dict[str, Any]) -> list[People]:
    if noted["server"] is None:
        client = argilla.connect(home=flywheel_home() / "argilla", patience=PATIENCE)
    else:
        _same_server("argilla", noted["server"])
        client = argilla.connect(patience=PATIENCE)
    try:
        return [_at_work(one) for one in dataset_statuses(client, ids=noted["datasets"])]
    finally:
        client.close()


def _in_label_studio(noted: dict[str, Any]) -> list[People]:
    _same_server("label_studio", noted["server"])
    client = label_studio.connect(patience=PATIENCE)
    tasks: list[dict[str, Any]] = [
        {**task, "aspects": tuple(task["aspects"]), "flags": tuple(task["flags"])} for task in noted["tasks"]
    ]
    datasets = [Dataset(id, "", RankingTask(**task), "") for id, task in zip(noted["datasets"], tasks, strict=True)]
    try:
        return [_at_work(one) for one in project_statuses(client, datasets)]
    finally:
        client.close()


def _same_server(tool: str, pushed_to: dict[str, str]) -> None:
    """The key goes to no other server than the one that the stage pushed to."""
    named = URL_OF[tool]
    if _digest(os.environ.get(named, "")) != pushed_to["digest"]:
        url = pushed_to["shown"]
        raise UserError(f"the records are at {url}: start this with {named}={url} and {KEY_OF[tool]}.")


def _at_work(status: DatasetStatus) -> People:
    progress = status.progress
    told = f"{progress.completed:,} of {progress.total:,} records are judged by as many as were asked for."
    tables = [table.as_json() for table in status.tables]
    measures = {} if status.alpha is None else {"alpha": status.alpha.as_json()}
    return People(status.name, told, measures, status.agreement, tables)


def _of_rows(artifact: Artifact) -> People:
    kept = next((batch.schema.names for batch in artifact.batches(rows=1)), [])
    columns = [name for name in ("prompt_id", "ranks", "annotator", "planted") if name in kept]
    rows = [row for row in artifact.to_table(columns or None).to_pylist() if row.get("planted") is None]
    never = datetime(1970, 1, 1, tzinfo=UTC)  # when, agreement does not ask
    judged = [RecordJudgement(row["prompt_id"], row["annotator"], row["ranks"], never, "", "") for row in rows]
    by, of = len({one.annotator for one in judged}), len({one.record for one in judged})
    told = f"{len(judged):,} judgements of {of:,} prompts by {by:,} {'annotator' if by == 1 else 'annotators'}."
    metrics = artifact.metrics()
    over_time: list[tuple[int, float]] = []
    if metrics is not None and "agreement" in metrics.columns:
        over_time = list(metrics.select("step", "agreement").drop_nulls().iter_rows())
    return People(
        "", told, {"alpha": alpha(judged).as_json()}, over_time, json.loads(artifact.log("tables.json") or b"[]")
    )
