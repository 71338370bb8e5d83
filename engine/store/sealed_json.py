"""JSON files that tell whether they are whole: manifests and the records of runs.

The last field, `seal`, is the SHA-256 of every byte before it. A file without one was written before there were seals (format 1).
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, cast

from engine.errors import Damaged

SEAL = "seal"
FORMAT = 2  # since when there are seals
_END = re.compile(rb',\n "seal": "([0-9a-f]{64})"\n}')


def sealed(record: dict[str, Any]) -> bytes:
    """A record as it is kept."""
    body = {**record, "format": FORMAT}
    body.pop(SEAL, None)
    told = json.dumps(body, indent=1).encode()[:-2]  # without the last line's end and brace
    return told + f',\n "{SEAL}": "{hashlib.sha256(told).hexdigest()}"\n}}'.encode()


def unsealed(data: bytes, name: str) -> dict[str, Any]:
    """The record in these bytes.

    Args:
        name: what messages call the file.

    Raises:
        Damaged: it is no record, or not the one that was written.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{name} is damaged: {'it is empty' if not data else f'it is no JSON ({error})'}.") from None
    if not isinstance(record, dict):
        raise Damaged(f"{name} is damaged: it holds no record.")
    body = cast(dict[str, Any], record)
    told = body.pop(SEAL, None)
    if body.get("format", 1) == 1 and told is None:
        return body
    end = _END.search(data, max(0, len(data) - 100))
    fits = end and end.end() == len(data) and hashlib.sha256(data[: end.start()]).hexdigest().encode() == end[1]
    if body.get("format") != FORMAT or not fits:
        raise Damaged(f"{name} is damaged: it is not what was written (its seal does not fit).")
    return body
