"""JSON files that tell whether they are whole: manifests and the records of runs.

The last field, `seal`, is the SHA-256 of everything before it. A file without one was written before there were seals (format 1).
"""

from __future__ import annotations

import json
from typing import Any, cast

from engine.errors import Damaged
from engine.store.digest import digest_json

SEAL = "seal"
FORMAT = 2  # since when there are seals


def sealed(record: dict[str, Any]) -> bytes:
    """A record as it is kept."""
    body = {**record, "format": FORMAT}
    body.pop(SEAL, None)
    return json.dumps({**body, SEAL: digest_json(body)}, indent=1).encode()


def unsealed(data: bytes, name: str) -> dict[str, Any]:
    """The record in these bytes.

    Args:
        name: what messages call the file.

    Raises:
        Damaged: it is no record, or not the one that was written.
    """
    try:
        record = json.loads(data)
    except ValueError as error:
        raise Damaged(f"{name} is damaged: {'it is empty' if not data else error}.") from None
    if not isinstance(record, dict):
        raise Damaged(f"{name} is damaged: it holds no record.")
    body = cast(dict[str, Any], record)
    told = body.pop(SEAL, None)
    if body.get("format", 1) == 1 and told is None:
        return body
    if body.get("format") != FORMAT or told != digest_json(body):
        raise Damaged(f"{name} is damaged: it is not what was written (its seal does not fit).")
    return body
