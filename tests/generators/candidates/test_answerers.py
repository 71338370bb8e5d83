"""By which name a model stands in the rows that it answered."""

from __future__ import annotations

from engine.stage.job import Job
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.candidates.stage import Candidates
from generators.candidates.work import _answerers


def test_models_from_outside_are_called_by_their_folders_and_told_apart(store: Store) -> None:
    def outside(id: str, place: str) -> Artifact:
        return Artifact(store, id, {"stage": {"kind": "external", "config": {"name": place}}, "external": place})

    made = Artifact(store, "sft-12", {"stage": {"kind": "sft", "config": {}}})
    smol, one, other = (
        outside("external-1", "/m/SmolLM2"),
        outside("external-2", "/a/final"),
        outside("external-3", "/b/final"),
    )
    given = {"model": {str(i): a for i, a in enumerate([smol, made, one, other])}}
    job = Job(store, "candidates-1", "Candidate", given, 0)
    names = [name for name, _ in _answerers(Candidates.model_validate({"n": 4}), job)]
    assert names == ["SmolLM2", "sft-12", "external-2", "external-3"]
