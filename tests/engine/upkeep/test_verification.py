"""Whatever happens to a file of a store is told: what, where, and what heals it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import UserError
from engine.stage.stage import Stage, load, port
from engine.store.store import Store
from engine.store.writer import ArtifactWriter
from engine.upkeep.row_checks import ALL_ROWS, lost_parents, repeated_id
from engine.upkeep.verification import Verification, lines, verify
from tests.engine.upkeep.conftest import Command, at, change_manifest, flip


def told(found: Verification) -> str:
    return "\n".join(lines(found))


def test_a_whole_store_is_whole(kept: Store) -> None:
    found = verify(kept)
    assert found.whole and found.artifacts == 5 and not found.notes
    assert verify(kept, "toy").artifacts == 5 and verify(kept, "louder").artifacts == 3  # with what it rests on
    louder = kept.find("toy/louder")
    assert verify(kept, louder.id).artifacts == verify(kept, louder.key[:9]).artifacts == 3


def test_a_flipped_bit_anywhere_is_told_with_its_file_and_its_cure(kept: Store) -> None:
    """Every file, several bits of each, and never another file than that one."""
    random_ = random.Random(7)
    root = Path(kept.root)
    for file in sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size):
        whole, name = file.read_bytes(), file.relative_to(root).as_posix()
        for bit in random_.sample(range(len(whole) * 8), 2):
            flip(file, bit)
            found = verify(kept)
            assert not found.whole, (name, bit)
            assert {f"artifacts/{d.artifact}/{d.file}" if d.file else d.artifact for d in found.damage} == {name}
            assert all("flywheel repair" in d.heal for d in found.damage)
            file.write_bytes(whole)
    assert verify(kept).whole


@pytest.mark.parametrize("change", ["shorter", "empty", "gone"])
@pytest.mark.parametrize("what", ["data", "manifest.json", "record"])
def test_what_is_cut_or_gone_is_told(kept: Store, change: str, what: str) -> None:
    artifact = kept.find("toy/lines")
    names = {"data": f"artifacts/{artifact.id}/{artifact.parts()[0]}", "record": "runs/toy.json"}
    file = Path(kept.root) / names.get(what, f"artifacts/{artifact.id}/manifest.json")
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -9 if change == "shorter" else 0])
    found = verify(kept)
    if (what, change) == ("record", "gone"):
        assert found.whole and kept.folders()[0] in found.notes[0] and "the run's record is gone" in found.notes[0]
        return  # all are whole, and nobody names them
    (damage,) = found.damage
    assert damage.artifact == ("runs/toy.json" if what == "record" else artifact.id)
    assert f"flywheel repair {'toy' if what == 'record' else artifact.id}" in damage.heal
    if (what, change) == ("manifest.json", "gone"):
        assert "has no manifest" in damage.what


def test_a_change_after_the_end_has_its_time(kept: Store) -> None:
    artifact = kept.find("toy/lines")
    flip(at(artifact) / artifact.parts()[0])
    then = time.time() + 3600
    os.utime(at(artifact) / artifact.parts()[0], (then, then))
    (damage,) = verify(kept).damage
    assert damage.since == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then))


def test_a_file_too_many(kept: Store) -> None:
    artifact = kept.find("toy/model")
    (at(artifact) / "model.safetensors").write_bytes(b"planted")
    for litter in (".DS_Store", ".nfs0001", "._weights.json", "weights.json.0a0bpartial"):
        (at(artifact) / litter).write_bytes(b"x")
    (Path(kept.root) / "artifacts" / ".DS_Store").write_bytes(b"x")
    (Path(kept.root) / "runs" / "._toy.json").write_bytes(b"x")
    found = verify(kept)
    (damage,) = found.damage
    assert damage.file == "model.safetensors" and "no manifest names it" in damage.what
    assert len(found.notes) >= 4 and all("Remove it, or leave it" in note for note in found.notes)


def test_lineage_is_followed(kept: Store) -> None:
    louder, loud = kept.find("toy/louder"), kept.find("toy/loud")
    inputs = {"documents": [{"name": "loud", "artifact": loud.id, "digest": "0" * 64}]}
    change_manifest(kept, louder.id, inputs=inputs)
    (damage,) = verify(kept).damage
    assert damage.artifact == louder.id and "was made of other bytes of toy/loud than are there now" in damage.what
    kept.fs.rm(kept.path("artifacts", loud.id), recursive=True)
    (damage,) = verify(kept, "louder").damage
    assert damage.artifact == loud.id and "is not in the store, though" in damage.what and "louder" in damage.what


def test_counts(kept: Store) -> None:
    louder = kept.find("toy/louder")
    change_manifest(kept, louder.id, rows=22)
    assert "holds 23 rows; its manifest says 22" in [damage.what for damage in verify(kept, louder.id).damage]
    change_manifest(kept, louder.id, rows=23, rejected={"lost": 2})
    assert "rows that did not make it" in verify(kept).damage[0].what


def test_a_sieve_that_lets_a_row_fall_is_told(kept: Store) -> None:
    louder = kept.find("toy/louder")
    writer, first = ArtifactWriter(kept, louder.id), Path(louder.parts()[0]).stem
    writer.put_part(first, writer.read_part(first).slice(1), "Document")  # whole in itself, and one row short
    found = writer.contents()
    change_manifest(kept, louder.id, rows=22, files=found.files, digest=found.digest)
    told = [damage.what for damage in verify(kept, "louder").damage]
    assert told == ["23 rows came in as `documents`, and 22 were kept or rejected"]


@pytest.mark.parametrize(("kind", "port"), [("filter", "documents"), ("dedup", "documents"), ("decontaminate", "documents"),
                                            ("select", "candidates"), ("score", "candidates"), ("read", None), ("mix", None)])  # fmt: skip
def test_which_stages_promise_to_keep_or_reject_each_row(kind: str, port: str | None) -> None:
    assert load(kind).model_construct().sieve() == port


def test_ids_and_parents(store: Store, given: Callable[..., Any], build: Callable[..., Any]) -> None:
    rows = [{"id": f"{i:032x}", "parents": ["from elsewhere"], "text": str(i)} for i in range(4)]

    class Copies(Stage):
        takes = {"documents": port("Document", many=True)}
        ids: list[str]
        parents: list[str]

        def run(self, job: Any) -> None:
            made = {"id": self.ids, "parents": [[p] for p in self.parents], "text": self.ids}
            job.commit("00000", pa.table(made))

    def what(ids: list[str], parents: list[str], rows: list[dict[str, Any]]) -> list[str]:
        made = build(Copies, {"documents": given("Document", rows)}, ids=ids, parents=parents)
        return [d.what for d in verify(store, made.id).damage]

    assert what(["a", "b"], [rows[0]["id"], rows[3]["id"]], rows) == []
    assert what(["a", "b"], [rows[0]["id"], "from elsewhere"], rows) == []  # as a row that is passed on has it
    assert what(["a", "b"], [rows[0]["id"], "a"], rows) == []
    (lost,) = what(["a", "b"], [rows[0]["id"], "nobody"], rows)
    assert lost == "1 parents of its rows stand in nothing it was made of, nobody among them"
    (twice,) = what(["a", "a"], [rows[0]["id"]] * 2, rows)
    assert twice == "1 ids stand in several rows, a among them"
    assert what(["c", "c"], [rows[0]["id"]] * 2, [*rows, rows[0]]) == []  # as people brought it: a note


def test_of_many_rows_a_sample_is_followed(
    store: Store, given: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import engine.upkeep.row_checks

    assert ALL_ROWS >= 100_000
    monkeypatch.setattr(engine.upkeep.row_checks, "ALL_ROWS", 10)
    source = given("Document", [{"id": f"s{i}", "parents": [], "text": str(i)} for i in range(45)])
    made = given(
        "Document", [{"id": f"m{i}", "parents": [f"s{i}" if i % 5 else "lost"], "text": str(i)} for i in range(45)]
    )
    assert lost_parents(made, [source]) == (["lost"], False)  # rows 0, 5, 10, ...


def test_ids_of_many_rows_are_compared_by_their_hashes(
    given: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": f"{i % 45}", "parents": [], "text": str(i)} for i in range(50)]
    made, once = given("Document", rows), given("Document", rows[:45])
    exact = repeated_id(made)
    monkeypatch.setattr("engine.upkeep.row_checks.EXACT_ROWS", 10)
    assert repeated_id(made) == exact == "5 ids stand in several rows, 0 among them" and repeated_id(once) is None


def safetensors(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)), None),
        (safetensors({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)), "does not lie where"),
        (safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(12)), "end at byte"),
        (safetensors({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
                      "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]}}, bytes(12)), "does not lie where"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header would be"),
        (safetensors(b'{"w": ', bytes(8)), "can't be read"),
        (b"", "header would be"),
        (safetensors([], b""), "no table of tensors"),
    ],
)  # fmt: skip
def test_weights_that_no_loader_would_take(
    build: Callable[..., Any], store: Store, data: bytes, fault: str | None
) -> None:
    class Weights(Stage):
        gives = "Model"

        def run(self, job: Any) -> None:
            (job.output / "model.safetensors").write_bytes(data)

    build(Weights)
    found = [damage.what for damage in verify(store).damage]
    assert (not found) if fault is None else fault in found[0]
    real = pytest.importorskip("safetensors")
    if fault:
        with pytest.raises(Exception):  # noqa: B017  # each version has its own
            real.deserialize(data)
    else:
        real.deserialize(data)


def test_work_under_way(kept: Store) -> None:
    work = kept.workplace() / "toy_train-00ff00ff00ff00ff"
    work.mkdir(parents=True)
    (work / "spec.json").write_text("{}")
    (work / "metrics.jsonl").write_text('{"step": 1}\n{"st')  # as a kill leaves it
    answers = kept.workplace() / "answers"
    answers.mkdir()
    with sqlite3.connect(answers / "answers.sqlite") as opened:
        opened.execute("CREATE TABLE answers (request TEXT PRIMARY KEY, answer TEXT)")
        opened.executemany("INSERT INTO answers VALUES (?, ?)", [(str(i), "x" * 500) for i in range(200)])
    opened.close()
    before = {path: path.read_bytes() for path in kept.workplace().rglob("*") if path.is_file()}
    assert verify(kept).whole
    with contextlib.closing(
        sqlite3.connect(answers / "answers.sqlite")
    ) as asking:  # another process has it open, with a journal
        asking.execute("PRAGMA journal_mode=WAL")
        asking.execute("INSERT INTO answers VALUES ('new', 'x')")
        asking.commit()
        assert (answers / "answers.sqlite-wal").stat().st_size and verify(kept).whole
    assert verify(kept).whole and {*before} == {path for path in kept.workplace().rglob("*") if path.is_file()}
    (work / "checkpoint.json").write_text('{"step": 1, "wei')
    data = bytearray((answers / "answers.sqlite").read_bytes())
    data[4096:12288] = bytes(8192)
    (answers / "answers.sqlite").write_bytes(data)
    part = Path(kept.root) / "artifacts" / "toy_shout-00ff00ff00ff00ff" / "data" / "00000.parquet"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"PAR1 and nothing")
    damaged = {f"{d.artifact}/{d.file}": d for d in verify(kept).damage}
    assert set(damaged) == {
        "work/toy_train-00ff00ff00ff00ff/checkpoint.json", "work/answers/answers.sqlite", "toy_shout-00ff00ff00ff00ff/data/00000.parquet",
    }  # fmt: skip
    assert all("remove it" in d.heal for d in damaged.values())


def test_a_model_that_stays_outside(store: Store, tmp_path: Path) -> None:
    from engine.plan.inputs import resolve

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    made = resolve(str(model), tmp_path, ("Model",), store).adopt(store)
    assert verify(store).whole
    (model / "config.json").write_text('{"a": 1}')
    (damage,) = verify(store).damage
    assert damage.artifact == made.id and "is not what it was" in damage.what and str(model) in damage.heal


def test_what_is_no_store(tmp_path: Path, command: Command) -> None:
    with pytest.raises(UserError, match="there is no store"):
        verify(Store(str(tmp_path / "nowhere")))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is no store: it has none of artifacts/, runs/, work/; it holds cat\.jpg"):
        verify(Store(str(tmp_path / "pictures")))
    done = command("verify", "--store", tmp_path / "pictures")
    assert done.code == 2 and "is no store" in done.err and "Traceback" not in done.err


def test_the_command_and_its_exit_code(kept: Store, command: Command) -> None:
    assert command("verify").code == 0
    flip(Path(kept.root) / "runs" / "toy.json")
    done = command("verify", "toy", "--json")
    told = json.loads(done.out)
    assert done.code == 1 and not told["whole"] and told["damage"][0]["artifact"] == "runs/toy.json"
    assert "Did you mean `toy`?" in command("verify", "toi").err


def test_links_pipes_and_names_that_would_move_a_cursor(kept: Store, tmp_path: Path, command: Command) -> None:
    louder, loud = kept.find("toy/louder"), kept.find("toy/loud")
    shutil.move(at(louder), tmp_path / "disk2")
    at(louder).symlink_to(tmp_path / "disk2")
    (at(louder) / "data" / "round").symlink_to(at(louder))
    assert verify(kept, "louder").whole
    (at(loud) / loud.parts()[0]).unlink()
    os.mkfifo(at(loud) / loud.parts()[0])
    (at(loud) / "a\x1b[2Jb").write_bytes(b"x")
    assert {damage.what for damage in verify(kept, "loud").damage} == {
        "is no file any more",
        "no manifest names it: it was put here later",
    }
    said = command("verify", "loud").out
    assert "a\\x1b[2Jb" in said and "\x1b" not in said


def test_an_artifact_that_is_asked_for_and_has_no_manifest_is_told(kept: Store) -> None:
    made = kept.find("toy/loud")
    Path(kept.path("artifacts", made.id, "manifest.json")).unlink()
    for name in ("toy/loud", "toy/louder", "toy"):
        (damage,) = [one for one in verify(kept, name).damage if one.artifact == made.id]
        assert "has no manifest" in damage.what, name
