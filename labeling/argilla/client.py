"""Rankings through Argilla's REST API: the same code for the local server and a remote one.

The Python SDK is not used: it drops the `rank` of every ranked option, and with it the order and all ties.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from engine.errors import UserError
from labeling.argilla import server as local_server
from labeling.argilla.questions import (
    as_utc,
    dataset_settings,
    read_record,
    read_response,
    refuse_other_questions,
    search_url,
    write_records,
    write_submission,
)
from labeling.tool.connection import Connection, ServerRefusal, ToolWords, unless
from labeling.tool.passwords import flywheel_home, passwords
from labeling.tool.pushed_records import batches
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

_BATCH_RECORDS = 250  # also the most values that one search filter takes
_BATCH_BYTES = 4_000_000
PAGE = 1000
_SUBMIT_AT_ONCE = 100
LINK_DIGITS = 12  # of a record's id, in its short link
_WORDS = ToolWords(
    "Argilla",
    silent="Is it running (`flywheel argilla status`), and is ARGILLA_API_URL right?",
    unknown_key="Check ARGILLA_API_KEY; a user's key is under 'My settings' in the web UI.",
)


def connect(
    url: str | None = None, api_key: str | None = None, home: Path | None = None, *, patience: float = 60.0
) -> Argilla:
    """A client for the server at `url`, else at ARGILLA_API_URL, else for the local server of `home`.

    `patience` is for how many seconds a request is tried again when the server doesn't answer. Raises
    UserError when there is no server, or it doesn't know the key.
    """
    named = url or (os.environ.get("ARGILLA_API_URL") if home is None else None)
    if named:
        key = api_key or os.environ.get("ARGILLA_API_KEY")
        if not key:
            raise UserError(f"There is no key for the Argilla server at {named}: set ARGILLA_API_KEY.")
        digest = sha256(named.rstrip("/").encode()).hexdigest()[:12]
        client = Argilla(named, key, flywheel_home() / f"argilla-annotators-{digest}.json", patience)
    else:
        running = local_server.status(home)
        if running is None:
            raise UserError(
                "No Argilla server runs on this machine. Start one with `flywheel argilla up`,"
                " or name a remote one with ARGILLA_API_URL and ARGILLA_API_KEY."
            )
        annotators_file = running.home / "annotators.json"
        client = Argilla(running.url, api_key or running.api_key, annotators_file, patience)
    client.me()
    return client


class Argilla(Connection):
    """One user's view of a server. Safe to share between threads."""

    def __init__(self, url: str, api_key: str, annotators_file: Path, patience: float = 60.0) -> None:
        super().__init__(url, api_key, patience, words=_WORDS, path="api/v1", headers={"X-Argilla-Api-Key": api_key})
        self.annotators_file = annotators_file
        self._ours: bool | None = None  # whether it is our own server; None until asked

    def as_user(self, annotator: Annotator) -> Argilla:
        """The same server, as this annotator."""
        return Argilla(self.url, annotator.api_key, self.annotators_file, self.patience)

    def me(self) -> str:
        """The name of the user that the key belongs to."""
        return self.user("me", "username")

    # --- workspaces and users ---------------------------------------------------------------------

    def ensure_workspace(self, name: str) -> str:
        """The id of the workspace, made if it isn't there."""
        check_name(name, "workspace", limit=200)
        found = self._workspace(name)
        if found is None:
            try:
                return self.call("POST", "workspaces", json={"name": name})["id"]
            except ServerRefusal as refused:
                if refused.status == 403:
                    raise ServerRefusal(
                        f"There is no workspace {name!r} at {self.url}, and this key may not make one:"
                        " ask an owner for it, or use an owner's key.",
                        403,
                    ) from refused
                found = self._workspace(name)  # made meanwhile by someone else
                if found is None:
                    raise
        return found

    def _workspace(self, name: str) -> str | None:
        items = self.call("GET", "me/workspaces")["items"]
        return next((item["id"] for item in items if item["name"] == name), None)

    def ensure_users(self, names: Sequence[str], workspace: str) -> list[Annotator]:
        """Annotators by these names, members of the workspace, made if they aren't there.

        Generated passwords are in `annotators_file` (mode 0600) before a user is made, so none is ever lost.
        """
        for name in names:
            check_name(name, "user")
        workspace_id = self.ensure_workspace(workspace)
        existing = {user["username"]: user for user in self.call("GET", "users")["items"]}
        known = passwords(self.annotators_file, [name for name in names if name not in existing])
        for name in names:
            if name in existing:
                continue
            created = {"username": name, "first_name": name, "role": "annotator", "password": known[name]}
            try:
                existing[name] = self.call("POST", "users", json=created)
            except ServerRefusal as refused:
                users = self.call("GET", "users")["items"] if refused.status == 409 else []
                existing |= {user["username"]: user for user in users}
                if name not in existing:
                    raise
        members = {user["username"] for user in self.call("GET", f"workspaces/{workspace_id}/users")["items"]}
        for name in names:
            if name not in members and existing[name]["role"] != "owner":
                with unless(409):
                    body = {"user_id": existing[name]["id"]}
                    self.call("POST", f"workspaces/{workspace_id}/users", json=body)
        return [Annotator(name, existing[name]["api_key"], known.get(name)) for name in names]

    # --- datasets ---------------------------------------------------------------------------------

    def ensure_dataset(self, task: RankingTask) -> Dataset:
        """The dataset of this task, made and published if it isn't there; one that was half made is finished.

        Raises UserError if a dataset of that name asks something else: what people answered there is not
        touched.
        """
        workspace_id = self.ensure_workspace(task.workspace)
        found = self._dataset(task.name, workspace_id)
        if found is None:
            body = {
                "name": task.name,
                "workspace_id": workspace_id,
                "guidelines": task.guidelines,
                "distribution": {"strategy": "overlap", "min_submitted": task.min_submitted},
            }
            try:
                found = self.call("POST", "datasets", json=body)
            except ServerRefusal as refused:
                found = self._dataset(task.name, workspace_id) if refused.status == 409 else None
                if found is None:
                    raise
        path = f"datasets/{found['id']}"
        wanted = dataset_settings(task)
        present = {part: self._part(path, part) for part in wanted}
        refuse_other_questions(task, present, wanted, complete=found["status"] == "ready")
        if found["status"] != "ready":
            for part, items in wanted.items():
                for item in items:
                    if not any(item["name"] == other["name"] for other in present[part]):
                        with unless(409):
                            self.call("POST", f"{path}/{part}", json=item)
            with unless(422):  # published meanwhile
                self.call("PUT", f"{path}/publish")
        if found["distribution"]["min_submitted"] != task.min_submitted:
            distribution = {"strategy": "overlap", "min_submitted": task.min_submitted}
            self.call("PATCH", path, json={"distribution": distribution})
        return Dataset(found["id"], workspace_id, task, f"{self.url}/dataset/{found['id']}/annotation-mode")

    def holds_others(self, task: RankingTask, external_ids: Sequence[str]) -> bool:
        """Whether there is a dataset by the task's name with records, none of which is one of these."""
        workspace_id = self._workspace(task.workspace)
        found = None if workspace_id is None else self._dataset(task.name, workspace_id)
        if found is None or found["status"] != "ready":
            return False
        scope = {"entity": "record", "property": "external_id"}
        ours = {"filters": {"and": [{"type": "terms", "scope": scope, "values": list(external_ids[:_BATCH_RECORDS])}]}}
        path = f"datasets/{found['id']}/records/search"
        every, mine = (self.call("POST", path, json=query, params={"limit": 1})["total"] for query in ({}, ours))
        return every > 0 and mine == 0

    def _dataset(self, name: str, workspace_id: str) -> dict[str, Any] | None:
        items = self.call("GET", "me/datasets", params={"workspace_id": workspace_id})["items"]
        return next((item for item in items if item["name"] == name), None)

    def _part(self, path: str, part: str) -> list[dict[str, Any]]:
        return self.call("GET", f"me/{path}/{part}" if part == "metadata-properties" else f"{path}/{part}")["items"]

    # --- records ----------------------------------------------------------------------------------

    def push(self, dataset: Dataset, records: Sequence[RankingRecord]) -> PushCount:
        """Add the records whose `external_id` the dataset doesn't hold yet.

        All records are checked before the first is sent. A push that was killed goes on when repeated. Raises
        UserError for a record that can't be pushed, and when the dataset holds the same id with other
        answers.
        """
        question_id = self._ranking_question(dataset) if any(record.suggested for record in records) else None
        items = write_records(dataset.task, records, question_id)
        present = 0
        for batch in batches(items, _BATCH_RECORDS, _BATCH_BYTES):
            try:
                self._create(dataset, batch)
            except ServerRefusal as refused:
                if "external ids" not in str(refused):
                    raise
                fresh = self._new_only(dataset, batch)
                present += len(batch) - len(fresh)
                if fresh:
                    self._create(dataset, fresh)
        return PushCount(new=len(items) - present, present=present)

    def _ranking_question(self, dataset: Dataset) -> str:
        questions = self._part(f"datasets/{dataset.id}", "questions")
        found = [question["id"] for question in questions if question["name"] == "ranking"]
        if not found:
            raise UserError(f"Dataset {dataset.task.name!r} asks for ratings: no ranking can be suggested in it.")
        return found[0]

    def _create(self, dataset: Dataset, batch: Sequence[tuple[str, bytes]]) -> None:
        body = b'{"items":[' + b",".join(encoded for _, encoded in batch) + b"]}"
        path = f"datasets/{dataset.id}/records/bulk"
        self.call("POST", path, content=body, headers={"Content-Type": "application/json"})

    def _new_only(self, dataset: Dataset, batch: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        ids = [external_id for external_id, _ in batch]
        scope = {"entity": "record", "property": "external_id"}
        query = {"filters": {"and": [{"type": "terms", "scope": scope, "values": ids}]}}
        path = f"datasets/{dataset.id}/records/search"
        found = self.call("POST", path, json=query, params={"limit": PAGE})["items"]
        there = {item["record"]["external_id"]: item["record"]["fields"] for item in found}
        for external_id, encoded in batch:
            if external_id in there and there[external_id] != json.loads(encoded)["fields"]:
                raise UserError(
                    f"Dataset {dataset.task.name!r} already holds record {external_id!r} with"
                    " another prompt or other answers. Judgements of those would be taken for judgements of"
                    " these: give changed records new ids, or push to a dataset of another name."
                )
        return [(external_id, encoded) for external_id, encoded in batch if external_id not in there]

    def pull(self, dataset: Dataset, since: datetime | None = None) -> Iterator[RankingResponse]:
        """Every response, drafts and discarded ones too, each once; with `since`, those changed at or after
        it.

        Streams page by page; with `since`, reads nothing where nothing happened. Raises UserError if the dataset is
        gone, its questions were changed on the server, or records vanish faster than they can be read.
        """
        wanted = dataset_settings(dataset.task)
        path = f"datasets/{dataset.id}"
        try:
            about = self.call("GET", path)
        except ServerRefusal as refused:
            if refused.status != 404:
                raise
            raise UserError(
                f"Dataset {dataset.task.name!r} is no longer at {self.url}: somebody deleted it, and the answers in it."
                " `flywheel argilla restore` brings them back from a backup; running again asks anew."
            ) from refused
        if since is not None and as_utc(about["last_activity_at"]) < since:
            return
        refuse_other_questions(dataset.task, {part: self._part(path, part) for part in wanted}, wanted, complete=True)
        users = UserNames(self, dataset.workspace_id)
        seen: set[str] = set()
        total = 0
        for _ in range(3):  # pages shift while somebody deletes records: what they hid is found by another pass
            offset, total = 0, 1
            while offset < total:
                params = {"include": "responses", "offset": offset, "limit": PAGE}
                page = self.call("GET", f"{path}/records", params=params)
                total = page["total"]
                for record in page["items"]:
                    if record["id"] not in seen:
                        seen.add(record["id"])
                        for response in record["responses"]:
                            pulled = read_response(dataset.task, record, response, users.name)
                            if since is None or pulled.updated_at >= since:
                                yield pulled
                offset += PAGE
            if len(seen) >= total:
                return
        raise UserError(
            f"Dataset {dataset.task.name!r} is being changed faster than it can be read:"
            f" {len(seen)} of {total} records were seen. Pull again when nobody adds or deletes records."
        )

    def progress(self, dataset: Dataset) -> DatasetProgress:
        path = f"datasets/{dataset.id}"
        overall = self.call("GET", f"{path}/progress")
        return DatasetProgress(overall["total"], overall["completed"], self.users_progress(dataset.id))

    def users_progress(self, dataset_id: str) -> dict[str, UserProgress]:
        users: dict[str, UserProgress] = {}
        for user in self.call("GET", f"datasets/{dataset_id}/users/progress")["users"]:
            parts = [user.get(status, {}) for status in ("completed", "pending")]
            counts = {
                status: sum(part.get(status, 0) for part in parts) for status in ("submitted", "draft", "discarded")
            }
            users[user["username"]] = UserProgress(**counts)
        return users

    def record_url(self, dataset: Dataset, record_id: str, prompt: str) -> str:
        """Where an annotator who judged the record finds it in the UI: on our own server, by the first digits of its id."""
        if self._ours is None:
            with unless(404):
                self._ours = self.call("GET", "status")["search_engine"].get("name") == "flywheel"
        if self._ours:
            return f"{self.url}/r/{record_id.replace('-', '')[:LINK_DIGITS]}"
        return search_url(dataset.url, prompt)

    # --- as an annotator --------------------------------------------------------------------------

    def pending(self, dataset: Dataset, limit: int = 100) -> list[RecordView]:
        """Records this user has not touched and that still need submissions, in this user's own order."""
        scopes = ({"entity": "response", "property": "status"}, {"entity": "record", "property": "status"})
        pending = [{"type": "terms", "scope": scope, "values": ["pending"]} for scope in scopes]
        return self._shown(dataset, {"filters": {"and": pending}}, offset=0, limit=limit)[0]

    def records(self, dataset: Dataset) -> Iterator[RecordView]:
        """Every record, in this user's own order, which stays the same while records are answered."""
        offset, total = 0, 1
        while offset < total:
            page, total = self._shown(dataset, {}, offset=offset, limit=PAGE)
            yield from page
            offset += PAGE

    def _shown(self, dataset: Dataset, query: dict[str, Any], offset: int, limit: int) -> tuple[list[RecordView], int]:
        params = {"offset": offset, "limit": limit, "include": "responses"}
        path = f"me/datasets/{dataset.id}/records/search"
        found = self.call("POST", path, json=query, params=params)
        records = [read_record(dataset.task, item["record"]) for item in found["items"]]
        return records, found["total"]

    def submit(self, dataset: Dataset, submissions: Sequence[Submission]) -> None:
        """Store this user's answers. Returns when the server has them on its disk; submitting again replaces
        them.

        Raises UserError for one the server refuses; those before it are stored.
        """
        for start in range(0, len(submissions), _SUBMIT_AT_ONCE):
            chunk = submissions[start : start + _SUBMIT_AT_ONCE]
            body = {"items": [write_submission(dataset.task, submission) for submission in chunk]}
            results = self.call("POST", "me/responses/bulk", json=body)["items"]
            for submission, result in zip(chunk, results, strict=True):
                if result["error"] is not None:
                    raise UserError(
                        f"The answer for record {submission.record_id} was not accepted: {result['error']['detail']}"
                    )


class UserNames:
    """Names of users by id, asked for once. Falls back to the id where the key may not see the name."""

    def __init__(self, client: Argilla, workspace_id: str) -> None:
        self._client = client
        members = client.call("GET", f"workspaces/{workspace_id}/users")["items"]
        self._names: dict[str, str] = {user["id"]: user["username"] for user in members}

    def name(self, user_id: str) -> str:
        if user_id not in self._names:
            try:
                self._names[user_id] = self._client.call("GET", f"users/{user_id}")["username"]
            except ServerRefusal:
                self._names[user_id] = user_id
        return self._names[user_id]
