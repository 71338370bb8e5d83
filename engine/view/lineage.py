"""Where a row came from, and what came from it.

Every row names its `parents`; every manifest names its inputs. Walking back looks for parents only among the artifacts that
the row's own artifact was made from, walking forward only among those made from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.store.store import Store

LONG = {"token_ids", "logprobs", "prompt_token_ids", "tokens", "starts", "parents", "id"}


def trace_back(store: Store, name: str) -> dict[str, Any]:
    """The ancestry of a row (by id or the start of one) or of an artifact, as a tree.

    A row's node: `{"id", "kind", "artifact", "row", "from": [nodes]}`. An artifact's: `{"artifact", "stage", "from": [...]}`.

    Raises:
        UserError: no row and no artifact has this name, or the start of the id fits several rows.
    """
    found = _locate(store, name)
    if found is None:
        return _artifact_node(store, store.find(name), set())
    artifact, row = found
    return _row_node(store, artifact, row)


def trace_forward(store: Store, name: str) -> dict[str, Any]:
    """Everything made from a row: rows by artifact, and the models trained on artifacts that hold them."""
    found = _locate(store, name)
    if found is None:
        raise UserError(f"no row with the id `{name}` in the store {store.url}; `flywheel show` prints ids.")
    return trace_row_forward(store, *found)


def trace_row(store: Store, artifact: Artifact, row: dict[str, Any]) -> dict[str, Any]:
    """The ancestry of a row of this artifact, as `trace_back` tells it."""
    return _row_node(store, artifact, row)


def trace_row_forward(store: Store, origin: Artifact, row: dict[str, Any]) -> dict[str, Any]:
    """Everything made from a row of this artifact, as `trace_forward` tells it."""
    artifacts = {a.id: a for a in store.artifacts()}
    touched: dict[str, set[str]] = {origin.id: {row["id"]}}
    reached: list[dict[str, Any]] = []
    for artifact in _downstream(origin, list(artifacts.values())):
        sources = [s for s in inputs_of(artifact) if s in touched]
        if not sources:
            continue
        ids = set[str]().union(*(touched[s] for s in sources))
        if artifact.kind not in DATASETS:
            touched[artifact.id] = set()
            reached.append({"artifact": artifact.id, "kind": artifact.kind, "trained_on": sources})
            continue
        made = _children(artifact, ids) | (_present(artifact, ids))
        if made or any(not touched[s] for s in sources):
            touched[artifact.id] = made
            reached.append({"artifact": artifact.id, "kind": artifact.kind, "rows": len(made), "ids": sorted(made)[:5]})
    return {"id": row["id"], "kind": origin.kind, "artifact": origin.id, "row": _readable(row), "touched": reached}


def inputs_of(artifact: Artifact) -> list[str]:
    """Names of the artifacts that it was made from."""
    return [entry["artifact"] for given in artifact.manifest["inputs"].values() for entry in given]


def _parents_of(store: Store, artifact: Artifact) -> list[Artifact]:
    return [found for name in dict.fromkeys(inputs_of(artifact)) if (found := store.get(name))]


def _downstream(origin: Artifact, artifacts: list[Artifact]) -> list[Artifact]:
    """Artifacts made from this one, however indirectly, inputs before what is made of them."""
    order, left = [origin.id], [a for a in artifacts if a.id != origin.id]
    found: list[Artifact] = []
    progress = True
    while progress:
        progress = False
        for artifact in list(left):
            waits = any(other.id in inputs_of(artifact) for other in left if other.id != artifact.id)
            if not waits:
                left.remove(artifact)
                progress = True
                if any(name in order for name in inputs_of(artifact)):
                    order.append(artifact.id)
                    found.append(artifact)
    return found


def _locate(store: Store, start: str) -> tuple[Artifact, dict[str, Any]] | None:
    """The row whose id is or begins with `start`, in the artifact that made it first."""
    if len(start) < 6 or not all(c in "0123456789abcdef" for c in start):
        return None
    hits: dict[str, tuple[Artifact, dict[str, Any]]] = {}
    for artifact in store.artifacts():
        if artifact.kind not in DATASETS:
            continue
        for table in _matching(artifact, lambda ids: pc.starts_with(ids, start)):  # pyright: ignore[reportAttributeAccessIssue]
            for row in table.to_pylist():
                older = hits.get(row["id"])
                if older is None or older[0].id not in _ancestry(store, artifact):
                    hits[row["id"]] = (artifact, row)
    if len(hits) > 1:
        raise UserError(f"`{start}` fits {len(hits)} rows: {', '.join(sorted(hits)[:4])}, ... Give more of the id.")
    return next(iter(hits.values()), None)


def _ancestry(store: Store, artifact: Artifact) -> set[str]:
    seen: set[str] = set()
    open_ = [artifact]
    while open_:
        for parent in _parents_of(store, open_.pop()):
            if parent.id not in seen:
                seen.add(parent.id)
                open_.append(parent)
    return seen


def _matching(artifact: Artifact, mask: Any) -> Iterable[pa.Table]:
    for name in artifact.parts():
        chosen = mask(artifact.read_table(name, ["id"]).column("id"))
        if pc.any(chosen).as_py():  # pyright: ignore[reportAttributeAccessIssue]
            yield artifact.read_table(name).filter(chosen)


def rows_by_id(artifact: Artifact, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Those of an artifact's rows that have one of these ids."""
    wanted = pa.array(sorted(ids), pa.string())
    mask = lambda column: pc.is_in(column, value_set=wanted)  # noqa: E731  # pyright: ignore
    return {row["id"]: row for table in _matching(artifact, mask) for row in table.to_pylist()}


def _present(artifact: Artifact, ids: set[str]) -> set[str]:
    return {i for name in artifact.parts() for i in artifact.read_table(name, ["id"]).column("id").to_pylist()} & ids


def _children(artifact: Artifact, ids: set[str]) -> set[str]:
    found: set[str] = set()
    for name in artifact.parts():
        table = artifact.read_table(name, ["id", "parents"])
        for row_id, parents in zip(table.column("id").to_pylist(), table.column("parents").to_pylist(), strict=True):
            if not ids.isdisjoint(parents or ()):
                found.add(row_id)
    return found


def _row_node(store: Store, artifact: Artifact, row: dict[str, Any]) -> dict[str, Any]:
    """A row and, recursively, the rows it names as parents, looked for in the artifact's own ancestry."""
    node: dict[str, Any] = {
        "id": row["id"],
        "kind": artifact.kind,
        "artifact": artifact.id,
        "stage": artifact.manifest["stage"]["kind"],
        "row": _readable(row),
        "from": [],
    }
    if artifact.kind == "Document" and not row["parents"]:
        config = artifact.manifest["stage"]["config"]
        node["file"] = {"source": row["source"], "offset": row["offset"], "paths": config.get("paths")}
    if artifact.kind == "Candidate" and row.get("model") and (model := store.get(row["model"])):
        node["made_by"] = _artifact_node(store, model, set())
    wanted = set(cast(list[str], row["parents"] or []))
    level, seen = [artifact], {artifact.id}
    while wanted and level:
        above = [p for a in level for p in _parents_of(store, a) if p.id not in seen]
        for parent in dict.fromkeys(a.id for a in above):
            seen.add(parent)
            source = store.get(parent)
            if source is None or source.kind not in DATASETS:
                continue
            for found_id, found in rows_by_id(source, wanted).items():
                node["from"].append(_row_node(store, source, found))
                wanted.discard(found_id)
        level = above
    node["lost"] = sorted(wanted)
    return node


def _artifact_node(store: Store, artifact: Artifact, seen: set[str]) -> dict[str, Any]:
    seen.add(artifact.id)
    parents = [p for p in _parents_of(store, artifact) if p.id not in seen]
    return {
        "artifact": artifact.id,
        "kind": artifact.kind,
        "stage": artifact.manifest["stage"]["kind"],
        "rows": artifact.rows,
        "from": [_artifact_node(store, p, seen) for p in parents if p.id not in seen],
    }


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, value in row.items():
        if name in LONG or value is None or value == []:
            continue
        if name == "metadata" and isinstance(value, str):
            value = json.loads(value)
        told[name] = value
    return told
