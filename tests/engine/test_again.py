"""A stage made again keeps its old artifact until the new one is there, and starts from its answers where a server is asked."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import StageFailed, Waiting
from engine.execution.again import BEFORE, note_failure, prepare
from engine.stage.job import Job
from engine.stage.stage import Stage
from engine.store.store import Store
from engine.store.writer import ArtifactWriter
from engine.view.status import status_of
from engine.view.unfinished import FAILED, failure, find


class Asking(Stage):
    """Gives a document; asks a server, as far as the engine can tell."""

    server: bool = True

    def asks(self) -> bool:
        return self.server

    def run(self, job: Job) -> None:
        job.commit("00000", pa.table({"id": ["a"], "text": ["said"]}))


def planned(folder: str, server: bool = True) -> Any:
    return SimpleNamespace(folder=folder, name="asking", step=SimpleNamespace(config=Asking(server=server)))


def test_an_old_artifact_comes_back_or_goes(store: Store, build: Any) -> None:
    made = build(Asking)
    stage = planned(made.id)
    for error in (StageFailed("no"), KeyboardInterrupt(), Waiting("people")):
        prepare(store, stage, anew=True)
        assert store.get(made.id) is None
        ArtifactWriter(store, made.id).put_part("00001", pa.table({"id": ["half"]}), "Document")
        note_failure(store, "run", stage, error)
        back = store.get(made.id)
        assert (
            back
            and back.digest == made.digest
            and back.verify() == []
            and back.to_table()["text"].to_pylist() == ["said"]
        )
        assert store.run("run") is None and not (store.workplace() / made.id).exists()
    prepare(store, stage, anew=True)  # killed here: the next run finds no artifact, and makes it
    prepare(store, stage, anew=False)
    assert build(Asking).digest == made.digest and not (store.workplace() / made.id / BEFORE).exists()


@pytest.mark.parametrize("server", [True, False])
def test_what_a_failed_stage_had_is_taken_again_unless_it_asks_a_server(store: Store, server: bool) -> None:
    stage, writer = planned("asking-1234", server), ArtifactWriter(store, "asking-1234")
    writer.put_part("00000", pa.table({"id": ["a"]}), "Document")
    prepare(store, stage, anew=False)  # killed, not failed: it goes on
    assert writer.parts() == {"00000"}
    note_failure(store, "run", stage, KeyboardInterrupt())
    assert failure(store, stage.folder) is None
    note_failure(store, "run", stage, StageFailed("too many"))
    told = failure(store, stage.folder)
    assert told and told["error"] == "too many" and told["log"].endswith("asking-1234/stage.log")
    assert store.run("run") == {"stages": {}, "failed": {"asking": "asking-1234"}}
    (row,) = status_of(store)
    assert (row["run"], row["stage"], row["state"], row["error"]) == ("run", "asking", "failed", "too many")
    prepare(store, stage, anew=False)
    assert writer.parts() == (set() if server else {"00000"}) and failure(store, stage.folder) is None


def test_a_failed_stage_is_found_by_its_name_and_by_its_key(store: Store, given: Any) -> None:
    folder = "asking-00ff00ff00ff00ff"
    source = given("Document", [{"id": "d", "parents": [], "text": "x"}])
    spec = {"kind": "asking", "config": {"server": True}, "identity": {}, "gives": "Document",
            "inputs": {"documents": [["given", source.id]]}}  # fmt: skip
    (store.scratch(folder) / "spec.json").write_text(json.dumps(spec))
    ArtifactWriter(store, folder).put_rejected("00000", pa.table({"id": ["a"], "reason": ["loop"], "failed": [True]}))
    note_failure(store, "run", planned(folder), StageFailed("no row came out: loop (1)."))
    for name in ("run/asking", "asking", "00ff00ff", folder):
        found = find(store, name)
        assert found.id == folder and found.manifest["rejected"] == {"loop": 1} and found.manifest["failed"] == 1
        rejected = found.rejected()
        assert rejected is not None and rejected["id"].to_pylist() == ["a"]
        assert found.manifest["unfinished"]["error"] == "no row came out: loop (1)."
    (store.scratch(folder) / FAILED).unlink()
    assert "error" not in find(store, folder).manifest["unfinished"]  # under way
    assert find(store, source.id).digest == source.digest
