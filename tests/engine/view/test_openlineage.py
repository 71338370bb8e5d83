"""Events of a run, held against OpenLineage's own schemas (`openlineage_spec/`: the project's, as of 2026-08-20, Apache-2.0)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

import flywheel
from engine.errors import StageFailed, UserError
from engine.store.store import Store
from engine.view.lineage import inputs_of
from engine.view.openlineage import FACETS, events
from tests.engine.view.ui.small_run import build as build_small
from tests.engine.view.ui.test_unfinished_page import RECIPE

SPEC = [json.loads(file.read_text()) for file in sorted((Path(__file__).parent / "openlineage_spec").glob("*.json"))]
KNOWN = Registry().with_resources([(one["$id"], Resource.from_contents(one)) for one in SPEC])


def validated(schema: str, value: Any) -> None:
    Draft202012Validator({"$ref": schema}, registry=KNOWN, format_checker=FormatChecker()).validate(value)


def facets(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every facet of an event, by its name."""
    for name, inner in value.items() if isinstance(value, dict) else ((None, one) for one in value):
        if name in ("facets", "outputFacets"):
            yield from inner.items()
        if isinstance(inner, dict | list):
            yield from facets(inner)


def test_events_are_what_the_schemas_say(store: Store, tmp_path: Path) -> None:
    made = build_small(store, tmp_path)
    told = list(events(store, "small"))
    seen = set[str]()
    for event in told:
        validated("https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent", event)
        for name, facet in facets(event):
            validated(facet["_schemaURL"], {name: facet})
            assert FACETS[name] in facet["_schemaURL"]
            seen.add(name)
    assert seen == set(FACETS) - {"errorMessage"}
    # Each stage starts and completes once, in that order, in a run of its own that is the same when it is told again.
    runs: dict[str, list[str]] = {}
    for event in told:
        runs.setdefault(event["run"]["runId"], []).append(event["eventType"])
    assert list(runs.values()) == [["START", "COMPLETE"]] * len(made) and list(events(store, "small")) == told
    # What comes from what, by names alone, is what the manifests say.
    ends = {one["job"]["name"]: one for one in told if one["eventType"] == "COMPLETE"}
    for stage, artifact in made.items():
        (output,) = ends[f"small.{stage}"]["outputs"]
        assert output["name"] == str(Path(store.path("artifacts", artifact.id)).resolve())
        assert output["facets"]["version"]["datasetVersion"] == artifact.digest
        names = {one["name"].rpartition("/")[2] for one in ends[f"small.{stage}"]["inputs"]}
        assert names == set(inputs_of(artifact))
    assert ends["small.pages"]["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 130


def test_files_and_a_stage_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo")
    (tmp_path / "broken.yaml").write_text(RECIPE)
    store = Store(str(tmp_path / "store"))
    with pytest.raises(StageFailed):
        flywheel.run(tmp_path / "broken.yaml", store=store.url)
    told = list(events(store, "broken"))
    for event in told:
        validated("https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent", event)
    assert [(one["job"]["name"], one["eventType"]) for one in told] == [
        ("broken.lines", "START"), ("broken.lines", "COMPLETE"), ("broken.bad", "START"), ("broken.bad", "FAIL"),
    ]  # fmt: skip
    assert [one["name"] for one in told[0]["inputs"]] == [str(tmp_path / "lines.txt")]
    error = told[-1]["run"]["facets"]["errorMessage"]
    validated(error["_schemaURL"], {"errorMessage": error})
    assert "planted" in error["message"]
    with pytest.raises(UserError, match="no run `brokn`"):
        list(events(store, "brokn"))
