"""Rankings through Label Studio's REST API: a dataset is a project, a record a task, a judgement an annotation.

Label Studio's open source has no workspaces and no roles: whoever has an account sees all projects, and may do all.
It has no unique ids of our own, either: what is created is looked for before it is created once more.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from engine.errors import UserError
from labeling.label_studio.access import auth_of, email_of, name_of
from labeling.label_studio.accounts import sign_up
from labeling.label_studio.annotations import DELETED, read_task, write_result
from labeling.label_studio.config import PROMPT, instruction, labeling_config, refuse_other_config
from labeling.tool.connection import Connection, ServerRefusal, ServerUnreachable, ToolWords
from labeling.tool.passwords import flywheel_home, passwords
from labeling.tool.pushed_records import as_json, batches, fitting
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
    UserProgress,
    check_name,
)

SUGGESTED = "verdicts"  # what Label Studio calls the model behind suggested ranks
PAGE = 500
_BATCH_RECORDS = 250
_BATCH_BYTES = 4_000_000
_TITLE = (3, 50)  # characters that a project's title may have
_DEFAULT_WORKSPACE = "flywheel"
_START = (
    "Start one in an environment of its own: `uv venv ls && uv pip install --python ls/bin/python label-studio`,"
    " then `ls/bin/label-studio start`. Its address goes into LABEL_STUDIO_URL, a key of yours (Account & Settings >"
    " Personal Access Token) into LABEL_STUDIO_API_KEY."
)
_WORDS = ToolWords(
    "Label Studio",
    silent=f"Is LABEL_STUDIO_URL right, and does it run? {_START}",
    unknown_key="Check LABEL_STUDIO_API_KEY: under Account & Settings, 'Personal Access Token', or 'Legacy Token' where "
    "the organization allows those.",
)


def connect(url: str | None = None, api_key: str | None = None, *, patience: float = 60.0) -> LabelStudio:
    """A client for the server at `url`, else at LABEL_STUDIO_URL.

    `patience` is for how many seconds a request is tried again when the server doesn't answer. Raises UserError when
    none is named, it doesn't answer, or doesn't know the key.
    """
    named = url or os.environ.get("LABEL_STUDIO_URL")
    if not named:
        raise UserError(f"LABEL_STUDIO_URL does not say where Label Studio runs. {_START}")
    key = api_key or os.environ.get("LABEL_STUDIO_API_KEY")
    if not key:
        raise UserError(f"There is no key for Label Studio at {named}: set LABEL_STUDIO_API_KEY. {_START}")
    digest = sha256(named.rstrip("/").encode()).hexdigest()[:12]
    client = LabelStudio(named, key, flywheel_home() / f"label-studio-annotators-{digest}.json", patience)
    client.me()
    return client


class LabelStudio(Connection):
    """One user's view of a server. Safe to share between threads."""

    def __init__(
        self, url: str, api_key: str, annotators_file: Path, patience: float = 60.0, acting_for: int | None = None
    ) -> None:
        super().__init__(
            url, api_key, patience, words=_WORDS, path="api", auth=auth_of(url.rstrip("/"), api_key)
        )  # fmt: skip
        self.annotators_file = annotators_file
        self._acting_for = acting_for  # id of the user whose the annotations are that this client submits

    def me(self) -> str:
        """The name of the user that the key belongs to."""
        return name_of(self.user("current-user/whoami", "email"))

    def as_user(self, annotator: Annotator) -> LabelStudio:
        """The same server, for this annotator: with the same key, since in Label Studio whoever may annotate may say whose it is."""
        user = self._users()[annotator.name]
        return LabelStudio(self.url, self.api_key, self.annotators_file, self.patience, user["id"])

    # --- users ------------------------------------------------------------------------------------

    def ensure_users(self, names: Sequence[str], workspace: str) -> list[Annotator]:
        """Accounts by these names, signed up if they aren't there: a name without @ signs in as NAME@annotators.flywheel.invalid.

        Generated passwords are in `annotators_file` (mode 0600), by address, before an account is made. All of them
        see all projects: `workspace` keeps nobody out.
        """
        for name in names:
            check_name(name, "user")
        emails = {name: email_of(name) for name in names}
        existing = self._users()
        missing = [name for name in names if name not in existing]
        known = passwords(self.annotators_file, [emails[name] for name in missing])
        for name in missing:
            invited = self.call("GET", "invite")["token"]
            sign_up(self.url, invited, emails[name], known[emails[name]])
        existing = self._users() if missing else existing
        for name in names:
            if name not in existing:
                raise UserError(
                    f"Label Studio at {self.url} did not sign up {emails[name]}, or removed them from the organization:"
                    " add them under Organization > Members."
                )
        return [Annotator(name, "", known.get(emails[name])) for name in names]

    def _users(self) -> dict[str, dict[str, Any]]:
        return {name_of(user["email"]): user for user in self.call("GET", "users/")}

    # --- projects ---------------------------------------------------------------------------------

    def ensure_dataset(self, task: RankingTask) -> Dataset:
        """The project of this task, made if it isn't there.

        Raises UserError if a project of that name asks something else: what people answered there is not touched.
        """
        body = {
            "title": _title(task),
            "description": f"Made by Flywheel: {task.name} of {task.workspace}.",
            "label_config": labeling_config(task),
            "expert_instruction": instruction(task.guidelines),
            "show_instruction": True,
            "maximum_annotations": task.min_submitted,
            "enable_empty_annotation": False,
            "sampling": "Uniform sampling",  # attention checks are not the last ones
            "skip_queue": "REQUEUE_FOR_OTHERS",
            "show_collab_predictions": True,
            "model_version": SUGGESTED,
        }
        found = self._once(lambda: self._project(task), "projects/", body)
        refuse_other_config(task, found["label_config"])
        if found["maximum_annotations"] != task.min_submitted:
            self.call("PATCH", f"projects/{found['id']}/", json={"maximum_annotations": task.min_submitted})
        return Dataset(str(found["id"]), "", task, f"{self.url}/projects/{found['id']}/data?labeling=1")

    def holds_others(self, task: RankingTask, external_ids: Sequence[str]) -> bool:
        """Whether there is a project by the task's name with tasks, none of which is one of these."""
        found = self._project(task)
        if found is None:
            return False
        there = {_external_id(one) for one in self._tasks(str(found["id"]), "id,data")}
        return bool(there) and there.isdisjoint(external_ids)

    def _project(self, task: RankingTask) -> dict[str, Any] | None:
        """The eldest of this title, should two have been made at once."""
        wanted = {"title": _title(task), "include": "id,title", "page_size": PAGE}
        found = [one["id"] for one in self.call("GET", "projects", params=wanted)["results"]]
        exact = [self.call("GET", f"projects/{id}/") for id in sorted(found)]
        return next((one for one in exact if one["title"] == _title(task)), None)

    def _once(self, find: Callable[[], dict[str, Any] | None], path: str, body: Any) -> dict[str, Any]:
        """What is found, or else made by a POST: one that got no answer is looked for before it is repeated."""
        deadline = time.monotonic() + self.patience
        while True:
            if (found := find()) is not None:
                return found
            try:
                return self.call("POST", path, json=body, patience=0.0)
            except ServerUnreachable:
                if time.monotonic() > deadline:
                    raise

    # --- tasks ------------------------------------------------------------------------------------

    def push(self, dataset: Dataset, records: Sequence[RankingRecord]) -> PushCount:
        """Add the records whose `external_id` the project doesn't hold yet.

        All records are checked before the first is sent. A push that was killed goes on when repeated. Raises
        UserError for a record that can't be pushed, and when the project holds the same id with other answers.
        """
        items = {
            record.external_id: as_json(record, _task(dataset.task, record))
            for record in fitting(dataset.task, records)
        }
        present: int | None = None
        deadline = time.monotonic() + self.patience
        while True:
            there = self._present(dataset)
            for external_id, encoded in items.items():
                if external_id in there and there[external_id] != json.loads(encoded)["data"]:
                    raise UserError(
                        f"Dataset {dataset.task.name!r} already holds record {external_id!r} with"
                        " another prompt or other answers. Judgements of those would be taken for judgements of"
                        " these: give changed records new ids, or push to a dataset of another name."
                    )
            missing = [(external_id, encoded) for external_id, encoded in items.items() if external_id not in there]
            present = len(items) - len(missing) if present is None else present
            try:
                for batch in batches(missing, _BATCH_RECORDS, _BATCH_BYTES):
                    body = b"[" + b",".join(encoded for _, encoded in batch) + b"]"
                    path, headers = f"projects/{dataset.id}/import", {"Content-Type": "application/json"}
                    self.call("POST", path, content=body, headers=headers, patience=0.0)
                return PushCount(new=len(items) - present, present=present)
            except ServerUnreachable:  # it may have imported them all the same
                if time.monotonic() > deadline:
                    raise

    def _present(self, dataset: Dataset) -> dict[str, dict[str, Any]]:
        """External id -> what is shown. A second task of an id, of a request that was answered too late, is removed unless judged."""
        found: dict[str, dict[str, Any]] = {}
        for one in self._tasks(dataset.id, "id,data,annotations,draft_exists"):
            external_id = _external_id(one)
            if external_id in found and not one["annotations"] and not one["draft_exists"]:
                self.call("DELETE", f"tasks/{one['id']}/")
            else:
                found.setdefault(external_id, one["data"])
        return found

    def _tasks(self, project: str, include: str) -> Iterator[dict[str, Any]]:
        """Every task, by number; `include` are the fields that come along, those of annotations among them.

        Raises:
            UserError: the project is gone, or tasks vanish faster than they can be read.
        """
        seen: set[int] = set()
        total = 0
        for _ in range(3):  # pages shift while somebody deletes tasks: what they hid is found by another pass
            page, total = 1, 1
            while (page - 1) * PAGE < total:
                params = {
                    "project": project, "page": page, "page_size": PAGE, "fields": "all", "include": include,
                    "resolve_uri": False,
                }  # fmt: skip
                found = self.call("GET", "tasks", params=params)
                total, page = found["total"], page + 1
                for one in found["tasks"]:
                    if one["id"] not in seen:
                        seen.add(one["id"])
                        yield one
            if len(seen) >= total:
                return
        raise UserError(
            f"Project {project} at {self.url} is being changed faster than it can be read: {len(seen)} of {total}"
            " tasks were seen. Try again when nobody adds or deletes tasks."
        )

    # --- annotations ------------------------------------------------------------------------------

    def pull(self, dataset: Dataset) -> Iterator[RankingResponse]:
        """What every annotator made of every record: their last annotation of it, what they skipped, or their draft.

        Raises UserError if the project is gone, or its questions were changed on the server.
        """
        for _, responses in self.judged(dataset):
            yield from responses

    def judged(self, dataset: Dataset) -> list[tuple[dict[str, Any], list[RankingResponse]]]:
        """What is shown of every record (prompt, answers by label), and what annotators made of it."""
        self._same_questions(dataset)
        found: dict[str, tuple[dict[str, Any], dict[str, RankingResponse]]] = {}
        fields = "result,created_username,completed_by,was_cancelled,created_at,updated_at"
        for one in self._tasks(dataset.id, f"id,data,annotations,draft_exists,{fields}"):
            drafts = self.call("GET", f"tasks/{one['id']}/drafts") if one["draft_exists"] else []
            _, said = found.setdefault(
                _external_id(one), (one["data"], {})
            )  # may be there twice, of two pushes at once
            for response in read_task(dataset.task, one, drafts):
                by = f"{response.user} {response.record_id}" if response.user.startswith(DELETED) else response.user
                if by not in said or said[by].updated_at <= response.updated_at:
                    said[by] = response
        return [(shown, list(said.values())) for shown, said in found.values()]

    def _same_questions(self, dataset: Dataset) -> None:
        try:
            config = self.call("GET", f"projects/{dataset.id}/")["label_config"]
        except ServerRefusal as refused:
            if refused.status != 404:
                raise
            raise UserError(
                f"Project {_title(dataset.task)!r} is no longer at {self.url}: somebody deleted it, and the answers in it."
                " Running again asks anew."
            ) from refused
        refuse_other_config(dataset.task, config)

    def progress(self, dataset: Dataset) -> DatasetProgress:
        """Whom a record was judged by counts once, though Label Studio lets them annotate it several times."""
        judged = [responses for _, responses in self.judged(dataset)]
        of = dataset.task.min_submitted
        completed = sum(sum(one.status == "submitted" for one in responses) >= of for responses in judged)
        users: dict[str, dict[str, int]] = {}
        for one in chain.from_iterable(judged):
            users.setdefault(one.user, {"submitted": 0, "draft": 0, "discarded": 0})[one.status] += 1
        return DatasetProgress(len(judged), completed, {user: UserProgress(**counts) for user, counts in users.items()})

    def record_url(self, dataset: Dataset, record_id: str, prompt: str) -> str:
        """Where anybody with an account finds the task, with what everybody made of it."""
        return f"{self.url}/projects/{dataset.id}/data?task={record_id}"

    # --- as an annotator --------------------------------------------------------------------------

    def records(self, dataset: Dataset) -> Iterator[RecordView]:
        """Every record, in this user's own order, which stays the same while records are answered."""
        found = sorted(
            self._tasks(dataset.id, "id,data,annotations,completed_by"),
            key=lambda one: sha256(f"{self._acting_for} {_external_id(one)}".encode()).digest(),
        )
        for one in found:
            data = one["data"]
            answered = any(annotation["completed_by"] == self._acting_for for annotation in one["annotations"])
            answers = tuple(data[label] for label in dataset.task.labels)
            yield RecordView(str(one["id"]), _external_id(one), data[PROMPT], answers, answered)

    def submit(self, dataset: Dataset, submissions: Sequence[Submission]) -> None:
        """Store the answers of the annotator that this client acts for; submitting again replaces them.

        Raises UserError for a draft, which only the person can write, and for one the server refuses; those before it
        are stored.
        """
        for one in submissions:
            if one.status == "draft" or self._acting_for is None:
                raise UserError("Label Studio takes submitted and discarded judgements, of a user (`as_user`).")
            # The same id for the same task and user: a repeated request makes no second annotation.
            unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.url}/tasks/{one.record_id}/by/{self._acting_for}")
            body = {
                "result": write_result(dataset.task, one),
                "completed_by": self._acting_for,
                "was_cancelled": one.status == "discarded",
            }
            path = f"tasks/{one.record_id}/annotations/"
            try:
                self.call("POST", path, json={**body, "unique_id": str(unique)})
            except ServerRefusal as refused:
                if refused.status != 409:
                    raise
                params = {"project": dataset.id, "fields": "all"}
                shown = self.call("GET", f"tasks/{one.record_id}/", params=params)
                for annotation in shown["annotations"]:
                    if _id_of(annotation["completed_by"]) == self._acting_for:
                        self.call("PATCH", f"annotations/{annotation['id']}/", json=body)


def _id_of(user: Any) -> Any:
    return user["id"] if isinstance(user, dict) else user


def _external_id(shown: dict[str, Any]) -> str:
    return str(shown["data"].get("external_id"))


def _title(task: RankingTask) -> str:
    """What names the project: the dataset, and its workspace unless that is the usual one; cut where it is too long."""
    least, most = _TITLE
    plain = task.workspace == _DEFAULT_WORKSPACE and len(task.name) >= least
    title = task.name if plain else f"{task.name} ({task.workspace})"
    return title if len(title) <= most else f"{title[: most - 9]}-{sha256(title.encode()).hexdigest()[:8]}"


def _task(task: RankingTask, record: RankingRecord) -> dict[str, Any]:
    """A record as Label Studio takes it; texts are shown as they are, also where they look like tags or variables."""
    prompt: Any = [{"role": message["role"], "content": message["content"]} for message in record.prompt]
    if not task.chat:
        prompt = "\n\n".join(message["content"] for message in prompt)
    answers = dict(zip(task.labels, record.answers, strict=True))
    item: dict[str, Any] = {
        "data": {"external_id": record.external_id, PROMPT: prompt, **answers},
        "meta": {"external_id": record.external_id, **record.metadata},
    }
    if record.suggested is not None:
        result = write_result(task, Submission(record.external_id, record.suggested))
        item["predictions"] = [{"model_version": SUGGESTED, "result": result}]
    return item
