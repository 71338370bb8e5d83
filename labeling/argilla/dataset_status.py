"""Every dataset of a server as it stands: progress, and what annotators make of the same records."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from labeling.argilla import oversight
from labeling.argilla.client import PAGE, Argilla, UserNames
from labeling.argilla.questions import prompt_as_written, read_response, read_task
from labeling.tool.connection import unless
from labeling.tool.task import Dataset, DatasetProgress, UserProgress
from labeling.utilities.agreement import Agreement


@dataclass(frozen=True)
class DatasetStatus:
    """A dataset as it stands; `tables` say who judged what, and how far they agree (empty if not asked for), `alpha` is Krippendorff's.

    `datasets` are several where records were dealt out, each to a dataset of an annotator's own.
    """

    dataset: Dataset | None
    name: str
    workspace: str
    progress: DatasetProgress
    tables: list[oversight.OversightTable]
    agreement: list[tuple[int, float]]
    datasets: tuple[Dataset, ...] = ()
    alpha: Agreement | None = None


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
        users: dict[str, UserProgress] = {}
        for found in group:
            users |= found.progress.users
        total, done = (sum(getattr(found.progress, part) for found in group) for part in ("total", "completed"))
        left = {user: {"draft": counts.draft, "discarded": counts.discarded} for user, counts in users.items()}
        yield DatasetStatus(
            group[0].dataset,
            of_name,
            workspace,
            DatasetProgress(total, done, users),
            oversight.tables(judged, left) if judged else [],
            oversight.agreement_over_time(judged) if judged else [],
            tuple(found.dataset for found in group if found.dataset),
            oversight.alpha(judged) if judged else None,
        )


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
                    key, ranks = _same_for_all(record["fields"], one.ranks, dataset.task.labels)
                    link = client.record_url(dataset, record["id"], said)
                    yield oversight.RecordJudgement(key, one.user, ranks, one.updated_at, said, link)


def _same_for_all(fields: Mapping[str, Any], ranks: Sequence[int | None], labels: str) -> tuple[str, list[int | None]]:
    """What names a prompt with its answers in whatever order and dataset they are shown, and the ranks in one order."""
    order = sorted(range(len(labels)), key=lambda place: fields[labels[place]])
    shown = [fields["prompt"], *(fields[labels[place]] for place in order)]
    return sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest(), [ranks[place] for place in order]
