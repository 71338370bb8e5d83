"""What is decided about every document before one is written: kept, or which one stays in its place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.stage.job import Job
from pipelines.dedup.near import Sets
from pipelines.texts.columns import Array


@dataclass(frozen=True)
class Decision:
    """For each document, the one kept in its place (-1: itself).

    `near` are the removed ones, sorted, that are no exact copy, `likeness` how like the kept one each of them is. The first
    `fixed` documents are those of an index. `sets` holds the shingles of candidates, on disk.
    """

    kept_by: Array
    near: Array
    likeness: Array
    facts: dict[str, Any]
    fixed: int = 0
    sets: Sets | None = None

    def likeness_of(self, begin: int, end: int) -> Array:
        """(end - begin,) of these documents; 1 for copies."""
        made = np.ones(end - begin)
        low, high = np.searchsorted(self.near, [begin, end])
        made[self.near[low:high] - begin] = self.likeness[low:high]
        return made

    def save(self, job: Job, file: Path) -> None:
        facts = json.dumps({"facts": self.facts, "fixed": self.fixed})
        places: dict[str, Any] = {} if self.sets is None else self.sets.places()
        made: dict[str, Any] = {"kept_by": self.kept_by, "near": self.near, "likeness": self.likeness}
        with job.keep(file) as partial, partial.open("wb") as opened:
            np.savez(opened, facts=np.array(facts), **made, **places)

    @staticmethod
    def load(file: Path) -> Decision:
        with np.load(file) as known:
            said = json.loads(str(known["facts"]))
            sets = Sets.load(file.parent / "signatures", known) if "documents" in known else None
            return Decision(known["kept_by"], known["near"], known["likeness"], said["facts"], said["fixed"], sets)
