"""How many requests this process has sent to object stores, by verb: their prices differ."""

from __future__ import annotations

from collections import Counter
from typing import Any

VERBS = {  # of operations whose names do not begin with theirs
    "CopyObject": "PUT",
    "CreateMultipartUpload": "PUT",
    "UploadPart": "PUT",
    "CompleteMultipartUpload": "PUT",
    "AbortMultipartUpload": "DELETE",
}
_sent: Counter[str] = Counter()


def count(event_name: str, **_: Any) -> None:
    """What botocore calls before each attempt: `before-send.s3.GetObject`."""
    operation = event_name.rpartition(".")[2]
    verb = VERBS.get(operation) or next(
        (verb for verb in ("Get", "Put", "Head", "List", "Delete") if operation.startswith(verb)), operation
    )
    _sent[verb.upper()] += 1


def sent() -> dict[str, int]:
    """GET, PUT, HEAD, LIST, DELETE -> requests so far."""
    return dict(sorted(_sent.items()))


def since(before: dict[str, int]) -> dict[str, int]:
    """Requests since `sent` gave `before`."""
    return {verb: number - before.get(verb, 0) for verb, number in sent().items() if number > before.get(verb, 0)}


def total(*told: dict[str, int]) -> dict[str, int]:
    """Sums by verb."""
    summed: Counter[str] = Counter()
    for one in told:
        summed.update(one)
    return dict(sorted(summed.items()))
