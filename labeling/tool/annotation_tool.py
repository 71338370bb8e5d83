"""What `label` needs of a tool in which people judge. Argilla and Label Studio give it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, Self

from labeling.tool.task import (
    Annotator,
    Dataset,
    DatasetProgress,
    PushCount,
    RankingRecord,
    RankingResponse,
    RankingTask,
    RecordView,
    Submission,
)


class AnnotationTool(Protocol):
    """One user's view of a server. Safe to share between threads.

    Whatever is asked for outlives restarts of the server for as long as the client is patient, and may be asked for
    again: what is there already is left as it is.
    """

    @property
    def url(self) -> str: ...

    def close(self) -> None: ...

    def ensure_dataset(self, task: RankingTask) -> Dataset:
        """The dataset of this task, made if it isn't there. Raises UserError if one of that name asks something else."""
        ...

    def holds_others(self, task: RankingTask, external_ids: Sequence[str]) -> bool:
        """Whether there is a dataset by the task's name with records, none of which is one of these."""
        ...

    def push(self, dataset: Dataset, records: Sequence[RankingRecord]) -> PushCount:
        """Add the records whose `external_id` the dataset doesn't hold yet. Raises UserError for one that can't be pushed."""
        ...

    def ensure_users(self, names: Sequence[str], workspace: str) -> list[Annotator]:
        """Annotators by these names, made if they aren't there; passwords are kept before a user is made."""
        ...

    def progress(self, dataset: Dataset) -> DatasetProgress: ...

    def pull(self, dataset: Dataset) -> Iterator[RankingResponse]:
        """What every annotator made of every record, drafts and discarded ones too, each once."""
        ...

    def record_url(self, dataset: Dataset, record_id: str, prompt: str) -> str:
        """Where an annotator who judged the record finds it again."""
        ...

    def as_user(self, annotator: Annotator) -> Self:
        """The same server, as this annotator: what is submitted is theirs."""
        ...

    def records(self, dataset: Dataset) -> Iterator[RecordView]:
        """Every record, in this user's own order, which stays the same while records are answered."""
        ...

    def submit(self, dataset: Dataset, submissions: Sequence[Submission]) -> None:
        """Store this user's answers. Returns when the server has them; submitting again replaces them."""
        ...
