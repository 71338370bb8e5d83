"""Every dataset of a server as it stands: progress, and what annotators make of the same records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from labeling.argilla import oversight
from labeling.argilla.client import PAGE, Argilla, UserNames
from labeling.argilla.questions import prompt_as_written, read_response, read_task
from labeling.argilla.task import Dataset, DatasetProgress


@dataclass(frozen=True)
class DatasetStatus:
    """A dataset as it stands; `tables` say who judged what, and how far they agree (empty if not asked for)."""

    dataset: Dataset | None
    name: str
    workspace: str
    progress: DatasetProgress
    tables: list[oversight.OversightTable]
    agreement: list[tuple[int, float]]


def dataset_names(client: Argilla) -> list[str]:
    return sorted({about["name"] for about in client.call("GET", "me/datasets")["items"]})


def dataset_statuses(client: Argilla, name: str | None = None, *, judgements: bool = True) -> Iterator[DatasetStatus]:
    """Every published dataset (by this name) that this user sees; with `judgements`, what was judged in ours is read."""
    workspaces = {w["id"]: w["name"] for w in client.call("GET", "me/workspaces")["items"]}
    for about in client.call("GET", "me/datasets")["items"]:
        if about["status"] != "ready" or name not in (None, about["name"]):
            continue
        path = f"datasets/{about['id']}"
        fields, questions = (client.call("GET", f"{path}/{part}")["items"] for part in ("fields", "questions"))
        workspace = workspaces.get(about["workspace_id"], "")
        task = read_task(about["name"], workspace, about, fields, questions)
        url = f"{client.url}/dataset/{about['id']}/annotation-mode"
        dataset = Dataset(about["id"], about["workspace_id"], task, url) if task else None
        overall = client.call("GET", f"{path}/progress")
        users = client.users_progress(about["id"])
        progress = DatasetProgress(overall["total"], overall["completed"], users)
        judged = list(_judged(client, dataset)) if dataset and judgements else []
        left = {name: {"draft": counts.draft, "discarded": counts.discarded} for name, counts in users.items()}
        tables = oversight.tables(judged, left) if judged else []
        yield DatasetStatus(
            dataset, about["name"], workspace, progress, tables, oversight.agreement_over_time(judged) if judged else []
        )


def _judged(client: Argilla, dataset: Dataset) -> Iterator[oversight.RecordJudgement]:
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
                    yield oversight.RecordJudgement(
                        record["id"], one.user, one.ranks, one.updated_at, said, dataset.url
                    )
