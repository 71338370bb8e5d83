"""What annotators make of a task of Label Studio, in our terms, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from engine.errors import UserError
from labeling.label_studio.access import name_of
from labeling.label_studio.config import BETTER, CORRECTION, FLAGS, PROMPT, rank_of, rating_of
from labeling.tool.ranks import better_of_pair, ranks_of_pair, ranks_of_ratings, ranks_of_top, ranks_to_top
from labeling.tool.task import RankingResponse, RankingTask, Status, Submission

DELETED = "(deleted)"  # an annotator whose account is gone: Label Studio keeps what they said, and not who it was


def read_result(
    task: RankingTask, result: Sequence[Mapping[str, Any]]
) -> tuple[tuple[int | None, ...], str | None, tuple[str, ...], dict[str, tuple[int | None, ...]]]:
    """Ranks, correction, flags and ratings of what somebody answered."""
    values = {str(item.get("from_name")): item["value"] for item in result if "value" in item}

    def chosen(name: str) -> list[str]:
        return values.get(name, {}).get("choices", [])

    ratings = {
        aspect: tuple(values.get(rating_of(aspect, label), {}).get("rating") for label in task.labels)
        for aspect in task.aspects
    }
    if task.asked == "pairwise":
        ranks = ranks_of_pair(next(iter(chosen(BETTER)), None))
    elif task.asked == "rating":
        ranks = ranks_of_ratings(ratings)
    else:
        picked = [chosen(rank_of(label)) for label in task.labels]
        ranks = ranks_of_top(task, tuple(int(one[0]) if one else None for one in picked))
    texts = values.get(CORRECTION, {}).get("text", [])
    correction = texts if isinstance(texts, str) else "\n\n".join(texts)
    return ranks, correction or None, tuple(chosen(FLAGS)), ratings


def write_result(task: RankingTask, submission: Submission) -> list[dict[str, Any]]:
    """The inverse of `read_result`.

    Raises:
        UserError: there are more or fewer ranks or ratings than answers, or a rank that the form does not offer.
    """
    for what, entries in (
        ("ranks", submission.ranks),
        *((f"ratings of {k}", v) for k, v in submission.ratings.items()),
    ):
        if len(entries) != task.answers:
            raise UserError(f"Record {submission.record_id}: {len(entries)} {what} for {task.answers} answers.")
    result: list[dict[str, Any]] = []

    def put(name: str, to: str, kind: str, value: Any) -> None:
        result.append({"from_name": name, "to_name": to, "type": kind.lower(), "value": {kind: value}})

    if task.asked == "ranking":
        last = task.answers if task.top is None else task.top + 1
        ranks = ranks_to_top(task, submission.ranks) if submission.status == "submitted" else submission.ranks
        for label, rank in zip(task.labels, ranks, strict=True):
            if rank is not None:
                if not 1 <= rank <= last:
                    raise UserError(f"Record {submission.record_id}: rank {rank}, of 1 to {last}.")
                put(rank_of(label), label, "choices", [str(rank)])
    if task.asked == "pairwise" and (better := better_of_pair(task, submission.ranks)) is not None:
        put(BETTER, PROMPT, "choices", [better])
    for aspect in task.aspects:
        for label, rating in zip(task.labels, submission.ratings.get(aspect, [None] * task.answers), strict=True):
            if rating is not None:
                put(rating_of(aspect, label), label, "rating", rating)
    if submission.correction:
        result.append(
            {"from_name": CORRECTION, "to_name": PROMPT, "type": "textarea", "value": {"text": [submission.correction]}}
        )
    if submission.flags:
        put(FLAGS, PROMPT, "choices", list(submission.flags))
    return result


def read_task(
    task: RankingTask, shown: Mapping[str, Any], drafts: Sequence[Mapping[str, Any]] = ()
) -> list[RankingResponse]:
    """What each annotator made of a task: their last annotation, or their draft if there is no other.

    Label Studio lets a person annotate a task several times. What a person skipped is discarded. Of people who are
    deleted nobody knows how many they were: each annotation counts as one's.
    """
    found: dict[str, RankingResponse] = {}
    deleted = 0
    for annotation in sorted(shown["annotations"], key=lambda one: (one["updated_at"], one["id"])):
        if annotation["completed_by"] is None:
            deleted += 1
            user = DELETED if deleted == 1 else f"{DELETED} {deleted}"
        else:
            user = _annotator(annotation)
        found[user] = _response(
            task, shown, annotation, user, "discarded" if annotation["was_cancelled"] else "submitted"
        )
    for draft in sorted(drafts, key=lambda one: (one["updated_at"], one["id"])):
        user = name_of(draft["user"])
        if draft["annotation"] is None and (user not in found or found[user].status == "draft"):
            found[user] = _response(task, shown, draft, user, "draft")
    return list(found.values())


def _annotator(annotation: Mapping[str, Any]) -> str:
    """Who made it, also where the server no longer lists them: `created_username` is "First Last address, id"."""
    return name_of(annotation["created_username"].rpartition(",")[0].split(" ")[-1])


def _response(
    task: RankingTask, shown: Mapping[str, Any], annotation: Mapping[str, Any], user: str, status: Status
) -> RankingResponse:
    ranks, correction, flags, ratings = read_result(task, annotation["result"] or [])
    return RankingResponse(
        id=f"{'draft' if status == 'draft' else 'annotation'}-{annotation['id']}",
        record_id=str(shown["id"]),
        external_id=str(shown["data"].get("external_id")),
        user=user,
        status=status,
        ranks=ranks,
        correction=correction,
        flags=flags,
        inserted_at=datetime.fromisoformat(annotation["created_at"]),
        updated_at=datetime.fromisoformat(annotation["updated_at"]),
        ratings=ratings,
    )
