"""A benchmark's lines of proof, and the rows it gives to stages."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.digest import digest_json
from engine.store.schema import DATASETS, conform
from engine.store.store import Store

Claim = dict[str, Any]


def claim(id: str, value: Any, bar: str, holds: bool, **more: Any) -> Claim:
    return {"id": id, "value": value, "bar": bar, "holds": bool(holds), **more}


class Rows(Stage):
    """Rows as they are."""

    tag: str

    def run(self, job: Job) -> None:
        job.commit("00000-rows", TABLES[self.tag])


TABLES: dict[str, pa.Table] = {}


def artifact(store: Store, kind: str, rows: list[dict[str, Any]]) -> Artifact:
    """An artifact of this kind with these rows."""
    tag = digest_json([kind, rows])
    wanted = DATASETS[kind]
    names = [name for name in wanted.names if any(name in row for row in rows)]
    table = pa.table({name: pa.array([row.get(name) for row in rows], wanted.field(name).type) for name in names})
    TABLES[tag] = conform(table, kind)
    stage = type("RowsOfKind", (Rows,), {"gives": kind})
    return carry_out(store, "rows", stage.model_validate({"tag": tag}), {})
