"""Every dataset of a server as it stands: progress, and what annotators make of the same records."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from labeling.argilla.client import PAGE, Argilla, UserNames
from labeling.argilla.questions import prompt_as_written, read_response, read_task
from labeling.tool import oversight
from labeling.tool.connection import unless
from labeling.tool.oversight import DatasetStatus, RecordJudgement, dataset_status
from labeling.tool.task import Dataset, DatasetProgress


def dataset_names(client: Argilla) -> list[str]:
    return sorted({about["name"] for about in client.call("GET", "me/datasets")["items"]})


def dataset_statuses(
    client: Argilla, name: str | None = None, *, ids: Collection[str] | None = None, judgements: bool = True
) -> Iterator[DatasetStatus]:
    """Every published dataset (by this name, or of these) that this user sees; with `judgements`, what was judged in ours is read.

    Where records are dealt out, each annotator has a dataset by that name: those are told as one, with what all make of the
    same records. The first of them stands for all.
    """
    workspaces = {w["id"]: w["name"] for w in client.call("GET", "me/workspaces")["items"]}
    groups: dict[tuple[str, str], list[_Found]] = {}
    for about in client.call("GET", "me/datasets")["items"]:
        if (
            about["status"] != "ready"
            or name not in (None, about["name"])
            or (ids is not None and about["id"] not in ids)
        ):
            continue
        found = _find(client, about, workspaces.get(about["workspace_id"], ""))
        of_all = _workspace_of_all(client, about["workspace_id"], found.workspace)
        groups.setdefault((about["name"], of_all), []).append(found)
    for (of_name, workspace), group in groups.items():
        judged = [one for found in group if found.dataset and judgements for one in _judged(client, found.dataset)]
        datasets = tuple(found.dataset for found in group if found.dataset)
        yield dataset_status(of_name, workspace, datasets, [found.progress for found in group], judged)


def _workspace_of_all(client: Argilla, workspace_id: str, name: str) -> str:
    """A workspace of an annotator's own (`own_task`) is called by the name of all and the annotator's."""
    members: list[dict[str, Any]] = []
    with unless(403):
        members = client.call("GET", f"workspaces/{workspace_id}/users")["items"]
    return next((name.removesuffix(f"-{m['username']}") for m in members if name.endswith(f"-{m['username']}")), name)


@dataclass(frozen=True)
class _Found:
    dataset: Dataset | None
    workspace: str
    progress: DatasetProgress


def _find(client: Argilla, about: dict[str, Any], workspace: str) -> _Found:
    path = f"datasets/{about['id']}"
    fields, questions = (client.call("GET", f"{path}/{part}")["items"] for part in ("fields", "questions"))
    task = read_task(about["name"], workspace, about, fields, questions)
    url = f"{client.url}/dataset/{about['id']}/annotation-mode"
    dataset = Dataset(about["id"], about["workspace_id"], task, url) if task else None
    overall = client.call("GET", f"{path}/progress")
    return _Found(
        dataset, workspace, DatasetProgress(overall["total"], overall["completed"], client.users_progress(about["id"]))
    )


def _judged(client: Argilla, dataset: Dataset) -> Iterator[RecordJudgement]:
    users = UserNames(client, dataset.workspace_id)
    offset, total = 0, 1
    while offset < total:
        params = {"include": "responses", "offset": offset, "limit": PAGE}
        page = client.call("GET", f"datasets/{dataset.id}/records", params=params)
        total, offset = page["total"], offset + PAGE
        for record in page["items"]:
            prompt = prompt_as_written(record["fields"]["prompt"])
            said = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
            for response in record["responses"]:
                if response["status"] == "submitted":
                    one = read_response(dataset.task, record, response, users.name)
                    key, ranks = oversight.same_for_all(record["fields"], one.ranks, dataset.task.labels)
                    link = client.record_url(dataset, record["id"], said)
                    yield RecordJudgement(key, one.user, ranks, one.updated_at, said, link)
