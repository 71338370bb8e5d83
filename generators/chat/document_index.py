"""The index of a folder of documents: made when it is first asked for, and made anew, as far as something changed, when it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from engine.errors import UserError
from engine.execution.progress import Bars
from engine.execution.single import run_single
from engine.plan.inputs import External, resolve
from engine.retrieval.embedding import digest_of_model
from engine.retrieval.retrieval_index import FACTS, RetrievalIndex
from engine.store.artifact import Artifact
from engine.store.store import Store

KIND = "index"
Say = Callable[[str], None]


def index_of(documents: str, store: Store, embedding: str | None, say: Say) -> RetrievalIndex:
    """The index over documents, as they are now.

    Args:
        documents: a file, a folder, a glob, or `hub:NAME`; or an artifact with documents, or an index.
        embedding: as for `index`; None for full text alone.
        say: is told what was read, and what could not be.

    Raises:
        UserError: there is nothing to be read, or no embedding model of this name.
    """
    artifact = None if _is_path(documents) else _found(documents, store)
    if artifact is not None and artifact.kind == "Passage":
        return _opened(artifact, embedding)
    if artifact is None:
        external = resolve(documents, Path(), ("Document",), store, say)
        artifact = external.adopt(store, say)
        _tell_rejected(external, artifact, say)
    elif artifact.kind != "Document":
        raise UserError(f"{artifact.id} holds rows of {artifact.kind}; expected documents, an index, or a folder.")
    earlier = _made_so(store, embedding)
    if found := next((one for one in earlier if _documents(one) == [artifact.id]), None):
        return RetrievalIndex(found)
    given = [f"documents=store:{artifact.id}"]
    if old := next((one for one in earlier if _same_place(store, one, artifact)), None):
        given.append(f"index=store:{old.id}")
    settings = [f"embedding={json.dumps(embedding)}"] if embedding else []
    return RetrievalIndex(run_single(KIND, given, settings, store.url, None, None, Bars()))


def _found(name: str, store: Store) -> Artifact:
    try:
        return store.find(name)
    except UserError as error:
        raise UserError(f"there is no file or folder `{name}` here, and {error}") from None


def _is_path(name: str) -> bool:
    return (
        name.startswith("hub:")
        or "://" in name
        or any(mark in name for mark in "*?[")
        or Path(name).expanduser().exists()
    )


def _opened(artifact: Artifact, embedding: str | None) -> RetrievalIndex:
    opened = RetrievalIndex(artifact)
    made_by, base = artifact.manifest["stage"]["config"]["embedding"], "."
    if embedding and opened.facts["embedding"] != digest_of_model(embedding, base):
        raise UserError(
            f"{artifact.id} is an index of {f'the embedding model `{made_by}`' if made_by else 'full text alone'}, and `--embedding "
            f"{embedding}` is another; vectors of two models can't be compared. Leave the option out, or name the documents instead."
        )
    return opened


def _made_so(store: Store, embedding: str | None) -> list[Artifact]:
    """Indexes made as one would be made now, the newest first."""
    wanted = digest_of_model(embedding, ".") if embedding else None
    found = [store.get(name) for name in store.folders() if name.startswith(f"{KIND}-")]
    whole = [one for one in found if one is not None and one.kind == "Passage" and one.incomplete() is None]
    alike = [one for one in whole if _plain(one) and one.read_json(FACTS)["embedding"] == wanted]
    return sorted(alike, key=lambda one: one.manifest["timings"].get("started", 0), reverse=True)


def _plain(one: Artifact) -> bool:
    """Whether all but its embedding is as the stage has it when nothing is set."""
    from engine.stage.stage import load

    usual = load(KIND).model_validate({}).model_dump(mode="json")
    return {**one.manifest["stage"]["config"], "embedding": None} == usual


def _documents(one: Artifact) -> list[str]:
    return [given["artifact"] for given in one.manifest["inputs"].get("documents", [])]


def _same_place(store: Store, one: Artifact, documents: Artifact) -> bool:
    """Whether an index is of the documents that were in this place before."""
    places = [store.get(name) for name in _documents(one)]
    origin = documents.manifest.get("origin")
    return origin is not None and any(place is not None and place.manifest.get("origin") == origin for place in places)


def _tell_rejected(external: External, artifact: Artifact, say: Say) -> None:
    """What of the files could not be read, file by file, up to five."""
    rejected = artifact.rejected()
    if rejected is None:
        return
    rows = rejected.select(["source", "reason", "detail"]).to_pylist()
    for row in rows[:5]:
        say(f"not read: {row['detail'] or row['source']} ({row['reason']})")
    if len(rows) > 5:
        say(f"not read: {len(rows) - 5:,} more: flywheel show {artifact.id} --rejected")
