"""What did not make it, by example: some rows for each reason, and what each is held against.

Rooms take part by the columns of their rejected rows: `kept_id` and `touched` name another row (the one kept in its place,
the evaluation row it has something in common with), `evidence` quotes it, `jaccard` says how like the two are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from engine.store.artifact import Artifact, read_artifact
from engine.store.schema import DATASETS
from engine.view.lineage import rows_by_id

POINTERS = {"kept_id": "kept", "touched": "evaluation row"}


@dataclass(frozen=True)
class RejectedExample:
    """A rejected row and, where it names one, the row it is held against (`against` says as what)."""

    row: dict[str, Any]
    against: str | None = None
    other: dict[str, Any] | None = None


def rows_seen(artifact: Artifact) -> int | None:
    """The rows among which some did not make it: those that came out with them, or, of a model, those that came in.

    None where the store no longer has what a model was made from.
    """
    lost = sum(artifact.manifest["rejected"].values())
    if artifact.kind in DATASETS:
        return lost + artifact.rows
    entries = [entry for given in artifact.manifest["inputs"].values() for entry in given]
    sources = [read_artifact(artifact.store, entry["artifact"]) for entry in entries]
    if any(source is None for source in sources):
        return None
    return max(lost, sum(source.rows for source in sources if source and source.kind in DATASETS))


def examples(artifact: Artifact, each: int = 2) -> dict[str, list[RejectedExample]]:
    """Some rejected rows for each reason, the most frequent reason first."""
    wanted = dict(sorted(artifact.manifest["rejected"].items(), key=lambda item: -item[1]))
    rows: dict[str, list[dict[str, Any]]] = {reason: [] for reason in wanted}
    for name in artifact.rejected_parts():
        if all(len(rows[reason]) >= min(each, count) for reason, count in wanted.items()):
            break
        _take(artifact, name, "reason", rows, each)
    pointed = {
        (row[column], column) for found in rows.values() for row in found for column in POINTERS if row.get(column)
    }
    others = _find(artifact, {identity for identity, _ in pointed})
    return {reason: [_example(row, others) for row in found] for reason, found in rows.items()}


def _take(artifact: Artifact, name: str, column: str, into: dict[str, list[dict[str, Any]]], each: int) -> None:
    """Add rows of a file under the value they have in a column, until there are `each`; texts are read where one is wanted."""
    wanted: list[tuple[str, int]] = []
    room = {value: each - len(rows) for value, rows in into.items()}
    for index, value in enumerate(artifact.read_table(name, [column])[column].to_pylist()):
        if room.get(value, 0) > 0:
            room[value] -= 1
            wanted.append((value, index))
    if wanted:
        table = artifact.read_table(name)
        for value, index in wanted:
            into[value] += table.slice(index, 1).to_pylist()


def _example(row: dict[str, Any], others: dict[str, dict[str, Any]]) -> RejectedExample:
    for column, name in POINTERS.items():
        if identity := row.get(column):
            return RejectedExample(row, name, others.get(identity))
    return RejectedExample(row)


def _find(artifact: Artifact, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Rows by id, in this artifact and in what it was made from."""
    found: dict[str, dict[str, Any]] = {}
    above = [
        read_artifact(artifact.store, e["artifact"]) for given in artifact.manifest["inputs"].values() for e in given
    ]
    for source in [artifact, *above]:
        if source is not None and ids - found.keys():
            found |= rows_by_id(source, ids - found.keys())
    return found


@dataclass(frozen=True)
class Cluster:
    """A kept row and the rows that went because of it."""

    kept: dict[str, Any]
    size: int
    removed: list[dict[str, Any]]


def _columns(artifact: Artifact, name: str) -> list[str]:
    with artifact.parquet(name) as file:
        return file.schema_arrow.names


def largest_clusters(artifact: Artifact, count: int = 5, each: int = 3) -> list[Cluster]:
    """The kept rows that most others were removed for, if rejected rows name the row kept in their place (`kept_id`)."""
    names = artifact.rejected_parts()
    if not names or "kept_id" not in _columns(artifact, names[0]):
        return []
    sizes = (
        pl.concat([pl.DataFrame(pl.from_arrow(artifact.read_table(name, ["kept_id"]))) for name in names])
        .drop_nulls()
        .group_by("kept_id").len().sort(["len", "kept_id"], descending=[True, False]).head(count)
    )  # fmt: skip
    wanted = dict(sizes.iter_rows())
    members: dict[str, list[dict[str, Any]]] = {identity: [] for identity in wanted}
    for name in names:
        if all(len(found) >= min(each, wanted[identity]) for identity, found in members.items()):
            break
        _take(artifact, name, "kept_id", members, each)
    kept = rows_by_id(artifact, set(wanted))
    return [Cluster(kept[i], wanted[i] + 1, members[i]) for i in wanted if i in kept]
