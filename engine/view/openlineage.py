"""A run's lineage as OpenLineage events (spec 2-0-2), for catalogues that collect them: Marquez, DataHub, OpenMetadata.

A stage is a job, an artifact a dataset, and so is a file or folder that a stage read. Ids are derived from what was made, so that
events that are sent twice are the same events.
"""

from __future__ import annotations

import importlib.metadata
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.redaction import redacted
from engine.store.artifact import Artifact, read_artifact
from engine.store.schema import DATASETS
from engine.store.store import Store
from engine.view.report.flow import Stop, stops_of
from engine.view.unfinished import failure

PRODUCER = f"urn:flywheel:{importlib.metadata.version('flywheel')}"
SPEC = "https://openlineage.io/spec"
FACETS = {
    "jobType": "2-0-4/JobTypeJobFacet",
    "parent": "1-2-0/ParentRunFacet",
    "errorMessage": "1-0-1/ErrorMessageRunFacet",
    "schema": "1-2-0/SchemaDatasetFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
}
Event = dict[str, Any]


def events(store: Store, run: str) -> Iterator[Event]:
    """START and COMPLETE of each finished stage, START and FAIL of one that failed; what is not begun is left out.

    Raises:
        UserError: there is no such run.
    """
    failed: dict[str, str] = (store.run(run) or {}).get("failed", {})
    for stop in stops_of(store, run):
        if stop.artifact:
            yield from _made(store, run, stop, stop.artifact)
        elif stop.name in failed and (told := failure(store, failed[stop.name])):
            facets = _facets(errorMessage={"message": redacted(told["error"]), "programmingLanguage": "Python"})
            at = datetime.fromtimestamp(told["at"], UTC)
            for kind, added in (("START", {}), ("FAIL", facets)):
                yield _event(store, run, stop, kind, at, failed[stop.name], [], [], added)


def _made(store: Store, run: str, stop: Stop, artifact: Artifact) -> Iterator[Event]:
    manifest = artifact.manifest
    given = dict.fromkeys(entry["artifact"] for port in manifest["inputs"].values() for entry in port)
    inputs = [_dataset(store, name, read_artifact(store, name)) for name in given]
    inputs += [{"namespace": "file", "name": name} for name in _files(artifact)]
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    statistics = {"rowCount": artifact.rows, "size": size} if artifact.kind in DATASETS else {"size": size}
    output = {**_dataset(store, artifact.id, artifact), "outputFacets": _facets(outputStatistics=statistics)}
    began = manifest["timings"].get("started", 0.0)
    ended = began + manifest["timings"].get("wall_s", 0.0)
    for kind, at, outputs in (("START", began, []), ("COMPLETE", ended, [output])):
        made = f"{artifact.id} {artifact.digest}"
        yield _event(store, run, stop, kind, datetime.fromtimestamp(at, UTC), made, inputs, outputs, {})


def _event(
    store: Store,
    run: str,
    stop: Stop,
    kind: str,
    at: datetime,
    made: str,
    inputs: list[Event],
    outputs: list[Event],
    facets: Event,
) -> Event:
    namespace, place = _place(store)
    parent = {"run": {"runId": _id(namespace, place, run)}, "job": {"namespace": "flywheel", "name": run}}
    job = {"processingType": "BATCH", "integration": "FLYWHEEL", "jobType": stop.kind}
    return {
        "eventType": kind,
        "eventTime": at.isoformat(),
        "producer": PRODUCER,
        "schemaURL": f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": _id(namespace, place, run, stop.name, made), "facets": {**_facets(parent=parent), **facets}},
        "job": {"namespace": "flywheel", "name": f"{run}.{stop.name}", "facets": _facets(jobType=job)},
        "inputs": inputs,
        "outputs": outputs,
    }


def _id(*parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(["flywheel", *parts])))


def _facets(**told: Event) -> Event:
    return {
        name: {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/facets/{FACETS[name]}.json", **facet}
        for name, facet in told.items()
    }


def _dataset(store: Store, name: str, artifact: Artifact | None) -> Event:
    """An artifact where it lies, with its digest and its columns; its name alone where the store has it no more."""
    namespace, place = _place(store)
    facets: Event = {}
    if artifact:
        facets |= _facets(version={"datasetVersion": artifact.digest})
    if artifact and artifact.kind in DATASETS:
        columns = [{"name": field.name, "type": str(field.type)} for field in DATASETS[artifact.kind]]
        facets |= _facets(schema={"fields": columns})
    return {"namespace": namespace, "name": f"{place}/artifacts/{name}", "facets": facets}


def _place(store: Store) -> tuple[str, str]:
    """Namespace and path of a store, as OpenLineage names datasets: `file` and a path, or `s3://BUCKET` and a key."""
    if store.local:
        return "file", str(Path(store.path()).resolve())
    parts = urlsplit(store.url)
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")


def _files(artifact: Artifact) -> list[str]:
    """Files, folders and patterns that a stage read, or that an input is."""
    config = artifact.manifest["stage"]["config"]
    stated = config.get("paths") or config.get("path") or artifact.manifest.get("external") or []
    base = Path(str(artifact.manifest.get("base") or "."))
    paths = [stated] if isinstance(stated, str) else stated
    return [str(path) if ":" in str(path) else str((base / str(path)).resolve()) for path in paths]
