"""What was read is what the key was made of: a file that is edited while it is read leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.plan.identity import folder_of, identify, key_of
from engine.plan.inputs import resolve
from engine.reader.sources import find
from engine.stage.stage import load
from engine.store.store import Store
from engine.store.writer import ArtifactWriter

ROWS = 12_000  # two parts


def write(file: Path, word: str) -> None:
    rows = (
        json.dumps({"text": f"row {i} says {word}", "prompt": f"What does row {i} say, {word}?"}) for i in range(ROWS)
    )
    file.write_text("\n".join(rows))


def edit_the_end(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-200, 2)
        tail = opened.read()
        opened.seek(-200, 2)
        opened.write(tail.replace(b"first", b"other"))


@pytest.mark.parametrize("rows", [None, "Prompt"])
def test_a_source_that_is_edited_once_the_first_part_is_there_is_not_cached(
    store: Store, tmp_path: Path, rows: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, "first")
    config = load("read").model_validate({"paths": ["rows.jsonl"], "rows": rows})
    identity = identify("read", config, {}, tmp_path)
    commits = 0

    def emit(event: dict[str, Any]) -> None:
        nonlocal commits
        if event["event"] == "commit" and not (commits := commits + 1) > 1:
            edit_the_end(file)

    with pytest.raises(UserError, match=r"rows.jsonl changed .*while it was read. Nothing was made of it; run again"):
        carry_out(store, "read", config, {}, str(tmp_path), emit, identity=identity)
    assert commits == 1  # nothing of the edited file is there, under a name that says it were the old one
    assert store.get(folder_of("read", key_of(identity))) is None
    write(file, "first")  # as it was
    made = carry_out(store, "read", config, {}, str(tmp_path), identity=identity)
    assert made.rows == ROWS and not any("other" in str(row) for row in made.to_table().to_pylist()[-5:])


def test_a_source_that_is_edited_after_its_last_part_is_not_cached(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, "first")
    config = load("read").model_validate({"paths": ["rows.jsonl"]})
    told = list[str]()

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["done"] == event["total"]:
            told.append("end")
            edit_the_end(file)

    with pytest.raises(UserError, match="changed after this run was planned, or while it was read"):
        carry_out(store, "read", config, {}, str(tmp_path), emit, identity=identify("read", config, {}, tmp_path))
    assert told and list(store.artifacts()) == [] and not any(Path(store.path("artifacts")).rglob("*.parquet"))


def test_a_file_that_was_only_touched_is_read(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, "first")
    config = load("read").model_validate({"paths": ["rows.jsonl"]})

    def emit(event: dict[str, Any]) -> None:
        file.touch()

    assert carry_out(store, "read", config, {}, str(tmp_path), emit).rows == ROWS


def test_a_file_that_comes_while_others_are_read_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.txt").write_text("a text")
    config = load("read").model_validate({"paths": ["data"]})

    def emit(event: dict[str, Any]) -> None:
        (tmp_path / "data" / "a.txt").write_text("a new one")

    made = carry_out(store, "read", config, {}, str(tmp_path), emit)
    assert made.to_table().column("source").to_pylist() == ["b.txt"]


def test_a_plain_input_that_is_edited_while_it_is_read_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, "first")
    put = ArtifactWriter.put_part

    def put_and_edit(self: ArtifactWriter, name: str, table: Any, kind: str) -> None:
        put(self, name, table, kind)
        edit_the_end(file)

    planned = resolve("./rows.jsonl", tmp_path, ("Document",), store)
    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "put_part", put_and_edit)
        with pytest.raises(UserError, match=r"rows.jsonl changed after this run was planned, or while it was read"):
            planned.adopt(store)
    assert not any(Path(store.path("artifacts")).rglob("*.parquet"))
    write(file, "first")
    ArtifactWriter(store, planned.folder).put_part("00099", planned_rows(), "Document")  # of a try that was killed
    assert planned.adopt(store).rows == ROWS


def planned_rows() -> Any:
    import pyarrow as pa

    return pa.table({"id": ["x"], "parents": pa.array([[]], pa.list_(pa.string())), "text": ["of another file"]})


def test_a_folder_with_brackets_in_its_name_is_no_glob(tmp_path: Path) -> None:
    here = tmp_path / "my [vu] {a} folder"
    here.mkdir()
    (here / "rows.jsonl").write_text('{"text": "one"}\n')
    for pattern in ("*.jsonl", "rows.jsonl", ".", f"{here}/*.jsonl"):
        assert [file.name for file in find([pattern], str(here))] == ["rows.jsonl"]
