"""The work of `excerpt`: row by row, a part at a time. What a killed run has committed is not done again."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from excerpts.stage import Excerpt
from flywheel import Job, row_id

END = re.compile(r"(?<=[.!?])\s+")  # of a sentence


def excerpt(stage: Excerpt, job: Job) -> None:
    for part in job.parts("documents", rows=10_000):
        kept = list[dict[str, Any]]()
        rejected = list[dict[str, Any]]()
        for row in part.table.to_pylist():
            text = opening(row["text"], stage.sentences)
            if text is None:
                rejected.append({**row, "reason": "too_few_sentences"})
            else:  # another text is another row; `flywheel trace` finds where it came from by its parents
                kept.append({**row, "id": row_id("Document", row["id"], text), "parents": [row["id"]], "text": text})
        part.commit(
            pa.Table.from_pylist(kept, part.table.schema),
            rejected=pa.Table.from_pylist(rejected, part.table.schema.append(pa.field("reason", pa.string()))),
        )


def opening(text: str, sentences: int) -> str | None:
    """The first sentences of a text, or None where there are fewer."""
    found = END.split(text.strip())
    return " ".join(found[:sentences]) if len(found) >= sentences else None
