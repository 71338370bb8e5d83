"""What was damaged before a stage was finished does not become part of what it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import StageFailed
from engine.execution.worker import carry_out
from engine.stage.stage import Stage
from engine.store.artifact import Artifact
from engine.store.journal import Journal
from engine.store.schema import row_id
from engine.store.store import Store


class Counting(Stage):
    """Three parts, and a file that is kept beside them; it may be stopped before the last."""

    gives = "Document"

    def run(self, job: Any) -> None:
        notes = job.scratch / "notes.txt"
        if not notes.exists():
            with job.keep(notes) as partial:
                partial.write_text("kept")
        for number in range(3):
            if number == 2:
                AT_THE_LAST(job)
            if f"{number:05d}" not in job.committed():
                rows = [
                    {"id": row_id("Document", number, i), "parents": [], "text": f"{number} {i}"} for i in range(50)
                ]
                job.commit(f"{number:05d}", pa.Table.from_pylist(rows))
        job.summary(notes=notes.read_text())


def go_on(job: Any) -> None:
    """Nothing happens."""


AT_THE_LAST = go_on


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def stop(job: Any) -> None:
    raise KeyboardInterrupt


def make(store: Store, said: list[dict[str, Any]] | None = None) -> Artifact:
    return carry_out(store, "counting", Counting(), {}, emit=(said if said is not None else []).append)


@pytest.fixture
def undisturbed(tmp_path: Path) -> str:
    return make(Store(str(tmp_path / "undisturbed"))).digest


@pytest.mark.parametrize("place", ["artifacts", "work"])
def test_a_flip_between_a_kill_and_the_next_run_has_it_start_over(
    store: Store, undisturbed: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setitem(globals(), "AT_THE_LAST", stop)
    with pytest.raises(KeyboardInterrupt):
        make(store)
    flip(next(Path(store.path(place)).rglob("00001.parquet" if place == "artifacts" else "notes.txt")))
    monkeypatch.setitem(globals(), "AT_THE_LAST", go_on)
    said: list[dict[str, Any]] = []
    assert make(store, said).digest == undisturbed
    assert [e["part"] for e in said if e["event"] == "commit"] == ["00000", "00001", "00002"]
    assert any("is damaged: what was begun is made anew" in e.get("text", "") for e in said)


def test_without_a_flip_it_goes_on(store: Store, undisturbed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "AT_THE_LAST", stop)
    with pytest.raises(KeyboardInterrupt):
        make(store)
    monkeypatch.setitem(globals(), "AT_THE_LAST", go_on)
    said: list[dict[str, Any]] = []
    assert make(store, said).digest == undisturbed
    assert [e["part"] for e in said if e["event"] == "commit"] == ["00002"]


def test_a_flip_while_a_stage_works_ends_it_in_words(
    store: Store, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(job: Any) -> None:
        flip(next(Path(store.path("artifacts")).rglob("00000.parquet")))

    monkeypatch.setitem(globals(), "AT_THE_LAST", damage)
    with pytest.raises(StageFailed, match=r"data/00000.parquet is not what was committed.*run again"):
        make(store)
    assert list(store.artifacts()) == []
    monkeypatch.setitem(globals(), "AT_THE_LAST", go_on)
    assert make(store).digest == undisturbed


def test_read_makes_a_part_that_is_gone_anew(
    store: Store, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark of a group of files says that its parts are committed; where one is gone, the mark is no proof."""
    from engine.execution import worker

    (tmp_path / "a.txt").write_text("a text")
    monkeypatch.setattr(worker, "finish", lambda *_: None)
    build("read", base=tmp_path, paths=["a.txt"])
    next(Path(store.path("artifacts")).rglob("*.parquet")).unlink()
    monkeypatch.undo()
    assert build("read", base=tmp_path, paths=["a.txt"]).to_table().column("text").to_pylist() == ["a text"]


def test_parts_of_an_artifact_whose_manifest_is_damaged_are_not_taken_over(store: Store, undisturbed: str) -> None:
    """The manifest was all that knew them."""
    made = make(store)
    assert made.digest == undisturbed
    flip(made.place / "data" / "00001.parquet")
    flip(made.place / "manifest.json")
    said: list[dict[str, Any]] = []
    assert make(store, said).digest == undisturbed
    assert [e["part"] for e in said if e["event"] == "commit"] == ["00000", "00001", "00002"]


@pytest.mark.parametrize("left", range(40))
def test_a_line_that_was_cut_off_takes_none_with_it(tmp_path: Path, left: int) -> None:
    file = tmp_path / "written.txt"
    Journal(file).note("data/00000.parquet", "5ae1")
    Journal(file).note("data/00001.parquet", "77c0")
    file.write_bytes(file.read_bytes()[:left])
    Journal(file).note("data/00001.parquet", "b41d")
    Journal(file).note("data/00002.parquet", "e29f")
    noted = Journal(file).noted()
    assert noted["data/00001.parquet"] == {"b41d"} and noted["data/00002.parquet"] == {"e29f"}


def test_what_a_killed_write_left_goes_when_its_artifact_is_made(store: Store) -> None:
    folder = make(store).id
    begun, other = Path(store.path("tmp", f"{folder}.5f2c")), Path(store.path("tmp", f"{folder}0.77aa"))
    for file in (begun, other):
        file.write_text("half of a part")
    store.fs.rm(store.path("artifacts", folder), recursive=True)
    make(store)
    assert not begun.exists() and other.exists()


def test_a_write_is_told_from_those_of_other_artifacts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def fence(*parts: str) -> None:
        seen.extend(file.name for file in Path(store.path("tmp")).iterdir())

    monkeypatch.setattr(store, "fence", fence)
    store.put(b"row", "artifacts", "read-1", "data", "0.parquet")
    store.put(b"run", "runs", "r.json")
    assert [name.partition(".")[0] for name in seen] == ["read-1", "r"]
