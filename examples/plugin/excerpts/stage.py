"""`excerpt`: documents -> their opening sentences. The front door: what can be configured, checked and planned."""

from __future__ import annotations

from pydantic import Field

from flywheel import Stage, port


class Excerpt(Stage):
    """Keep the opening sentences of each document. One with fewer is rejected as `too_few_sentences`."""

    takes = {"documents": port("Document", many=True)}
    gives = "Document"
    work = "excerpts.work:excerpt"  # imported when the stage runs: `flywheel plan` needs this file alone
    version = 1  # goes up when the same configuration and rows would give other bytes

    sentences: int = Field(2, ge=1, description="How many to keep.")

    def expected_rows(self, rows: dict[str, int]) -> int:
        return rows["documents"]
