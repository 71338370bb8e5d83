"""Labelling without a recipe: records from a JSONL file to Argilla, judgements from Argilla to a JSONL file.

A line in: `{"id": "q1", "prompt": "..." or messages, "answers": ["...", "..."]}`; without an id, the line's content names it.
Other keys are columns of one's own: annotators don't see them.
A line out: one annotator's judgement, with the answers in the order of the line in, whatever order people saw, and the
line's own columns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from engine import seeds
from engine.errors import UserError, nearest
from engine.store.schema import messages_digest, row_id
from engine.store.whole_file import whole_file
from labeling.argilla.client import Argilla
from labeling.argilla.dataset_status import dataset_names, dataset_statuses
from labeling.tool.task import PushCount, RankingRecord, RankingTask, own_task

_READ = {"id", "prompt", "answers", "metadata"}
_WRITTEN = {
    "annotator", "status", "ranks", "ratings", "shown", "correction", "flags", "inserted_at", "updated_at",
}  # fmt: skip
_OWN = "columns"  # of a record's metadata: its line's own columns, as JSON
MOST_SHOWN = 5  # wrong lines told one by one


def read_records(file: Path) -> list[RankingRecord]:
    """Every line as a record, its answers shuffled by its id.

    Raises:
        UserError: the file can't be read, or lines are wrong; nothing is kept then.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} can't be read as UTF-8 text: {error}.") from error
    records: list[RankingRecord] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(_record(line))
            except ValueError as error:
                wrong.append(f"{file}:{number}: {error}")
    if wrong:
        more = f"\n  and {len(wrong) - MOST_SHOWN} more" if len(wrong) > MOST_SHOWN else ""
        raise UserError(
            f"{len(wrong)} of {len(wrong) + len(records)} lines are no records; nothing was pushed:\n  "
            + "\n  ".join(wrong[:MOST_SHOWN]) + more
            + '\nExpected {"id": "q1", "prompt": "text" or messages, "answers": ["text", "text", ...]}.'
        )  # fmt: skip
    if not records:
        raise UserError(f"{file} holds no record.")
    return records


def _record(line: str) -> RankingRecord:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object was expected, found {type(row).__name__}")
    fields = cast("dict[str, Any]", row)
    prompt, answers = fields.get("prompt"), fields.get("answers")
    own = {key: value for key, value in fields.items() if key not in _READ}
    if answers is None or prompt is None:
        missing = "answers" if answers is None else "prompt"
        unknown = next((key for key in own if nearest(key, (missing,))), None)
        raise ValueError(f"no `{missing}`" + ("" if unknown is None else f", but {unknown!r}: is that it?"))
    if taken := sorted(own.keys() & _WRITTEN):
        raise ValueError(f"{taken[0]!r} is a column of what comes back: call yours something else")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):  # pyright: ignore
        raise ValueError("`prompt` must be a text, or a list of messages with `role` and `content`")
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, str) for a in answers):  # pyright: ignore
        raise ValueError("`answers` must be a list of two texts or more")
    texts = cast("list[str]", answers)
    conversation = cast("list[dict[str, str]]", messages)
    key = str(fields.get("id") or row_id("Shown", messages_digest(conversation), *texts))
    order = _order(key, len(texts))
    metadata = {**(fields.get("metadata") or {}), **({_OWN: json.dumps(own, ensure_ascii=False)} if own else {})}
    return RankingRecord(key, conversation, [texts[i] for i in order], metadata)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))  # pyright: ignore


def _order(key: str, count: int) -> list[int]:
    """Which answer stands at each position shown."""
    return seeds.shuffled(range(count), "exchange", key)


def push(
    client: Argilla, task: RankingTask, records: Sequence[RankingRecord], annotators: Sequence[str] = ()
) -> tuple[PushCount, list[str]]:
    """Add what is new, to a dataset of this task for each number of answers; how many, and where they are.

    With annotators, every record is dealt to `task.min_submitted` of them, who have a workspace and a dataset each, by the
    same name, and see no other records. The same records go to the same people whatever else is pushed.

    Raises:
        UserError: a record can't be pushed, or goes to more annotators than there are.
    """
    if annotators and len(set(annotators)) < task.min_submitted:
        raise UserError(
            f"every record is to go to {task.min_submitted} annotators (--per-record), and {len(set(annotators))} are named:"
            " name more with --annotator, or leave --annotator out to let whoever has access judge."
        )
    sizes = sorted({len(record.answers) for record in records})
    new = present = 0
    urls: list[str] = []
    for size in sizes:
        name = task.name if len(sizes) == 1 else f"{task.name}-of-{size}"
        whole = replace(task, name=name, answers=size)
        some = [record for record in records if len(record.answers) == size]
        parts = [(whole, some, "")]
        if annotators:
            parts = [
                (own_task(whole, one), _dealt(some, annotators, task.min_submitted, one), one) for one in annotators
            ]
        for part, dealt, annotator in parts:
            if not dealt:
                continue
            dataset = client.ensure_dataset(part)
            done = client.push(dataset, dealt)
            if annotator:
                client.ensure_users([annotator], part.workspace)
            new, present = new + done.new, present + done.present
            urls.append(f"{annotator}: {dataset.url}" if annotator else dataset.url)
    return PushCount(new, present), urls


def _dealt(
    records: Sequence[RankingRecord], annotators: Sequence[str], per_record: int, annotator: str
) -> list[RankingRecord]:
    """The records that this annotator judges: each goes to those whom its id draws, whatever other records there are."""
    return [
        record
        for record in records
        if annotator in seeds.shuffled(sorted(set(annotators)), "dealt", record.external_id)[:per_record]
    ]


def pull(client: Argilla, name: str, to: Path, workspace: str | None = None) -> int:
    """Write every response of the datasets by this name to a file, whole or not at all; how many.

    Raises:
        UserError: there is no dataset of ours by this name.
    """
    known = dataset_statuses(client, name, judgements=False)
    ours = [dataset for f in known if workspace in (None, f.workspace) for dataset in f.datasets]
    if not ours:
        names = dataset_names(client)
        raise UserError(
            f"there is no dataset of answers {name!r} at {client.url}.{nearest(name, names)}"
            f" There are: {', '.join(names) or 'none'}."
        )
    lines: list[str] = []
    for dataset in ours:
        shown = {record.id: record for record in client.records(dataset)}
        for response in client.pull(dataset):
            if response.record_id not in shown:  # added meanwhile
                continue
            record = shown[response.record_id]
            places = sorted(range(len(record.answers)), key=_order(record.external_id, len(record.answers)).__getitem__)
            row = {
                **json.loads(record.metadata.get(_OWN, "{}")),
                "id": record.external_id, "prompt": record.prompt, "annotator": response.user, "status": response.status,
                "answers": [record.answers[i] for i in places], "ranks": [response.ranks[i] for i in places],
                "ratings": {aspect: [values[i] for i in places] for aspect, values in response.ratings.items()},
                "shown": places, "correction": response.correction, "flags": response.flags,
                "inserted_at": response.inserted_at.isoformat(), "updated_at": response.updated_at.isoformat(),
            }  # fmt: skip
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    with whole_file(to) as partial:
        partial.write_text("".join(sorted(lines)), "utf-8")
    return len(lines)
