"""Projects as they stand: progress, and what annotators make of the same records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labeling.label_studio.config import PROMPT
from labeling.label_studio.studio_client import LabelStudio
from labeling.tool.oversight import DatasetStatus, RecordJudgement, dataset_status, same_for_all
from labeling.tool.task import Dataset


def project_statuses(client: LabelStudio, datasets: Sequence[Dataset]) -> Iterator[DatasetStatus]:
    """One for each name: where records are dealt out, each annotator has a project by that name."""
    groups: dict[str, list[Dataset]] = {}
    for dataset in datasets:
        groups.setdefault(dataset.task.name, []).append(dataset)
    for name, group in groups.items():
        judged = [one for dataset in group for one in _judged(client, dataset)]
        progress = [client.progress(dataset) for dataset in group]
        yield dataset_status(name, group[0].task.workspace, group, progress, judged)


def _judged(client: LabelStudio, dataset: Dataset) -> Iterator[RecordJudgement]:
    for shown, responses in client.judged(dataset):
        prompt = shown[PROMPT]
        said = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        for one in responses:
            if one.status == "submitted":
                key, ranks = same_for_all(shown, one.ranks, dataset.task.labels)
                link = client.record_url(dataset, one.record_id, said)
                yield RecordJudgement(key, one.user, ranks, one.updated_at, said, link)
