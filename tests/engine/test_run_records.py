"""Runs' records: no change is lost, and a damaged record is named, set aside and takes nothing else down."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.store.sealed_json import unsealed
from engine.store.store import Store

ENTRY = {"artifact": "toy-0123456789abcdef", "kind": "toy", "identity": {}, "inputs": {}}


def note(url: str, first: int, count: int) -> None:
    store = Store(url)
    for number in range(first, first + count):

        def change(record: dict[str, Any], name: str = f"stage{number}") -> dict[str, Any]:
            return {**record, "stages": {**record["stages"], name: ENTRY}}

        store.update_run("toy", change)


def test_of_many_writers_none_loses_a_change(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=note, args=(store.url, 25 * i, 25)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    record = store.run("toy")
    assert record and set(record["stages"]) == {f"stage{i}" for i in range(100)}
    assert store.list("runs") == ["toy.json"] and not list(Path(store.path("work")).iterdir())


def test_on_s3_of_many_writers_none_loses_a_change(bucket: str) -> None:
    writers = [threading.Thread(target=note, args=(bucket, 5 * i, 5)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    record = Store(bucket).run("toy")
    assert record and set(record["stages"]) == {f"stage{i}" for i in range(15)}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data.replace(b"stage0", b"stage1"), "its seal does not fit"),
        (lambda data: b"[1]", "holds no record"),
        (lambda data: b'{"stages": 3}', "does not tell what the stages were"),
        (lambda data: b'{"stages": {"a": {"artifact": 1}}}', "does not tell what the stages were"),
        (lambda data: bytes([data[0] ^ 255]) + data[1:], "damaged"),
    ],
)
def test_a_damaged_record_is_named_and_set_aside(store: Store, damage: Any, says: str) -> None:
    note(store.url, 0, 1)
    store.update_run("other", lambda record: {**record, "stages": {"a": ENTRY}})
    file = Path(store.path("runs", "toy.json"))
    file.write_bytes(bad := damage(file.read_bytes()))
    assert store.run("toy") is None and says in store.damage["runs/toy.json"]
    assert store.run("other") == {"stages": {"a": ENTRY}} and store.runs() == ["other", "toy"]
    note(store.url, 5, 1)
    assert list((store.run("toy") or {})["stages"]) == ["stage5"] and not store.damage
    (aside,) = [name for name in store.list("runs") if "damaged" in name]
    assert aside.startswith("toy.json.damaged-") and store.read("runs", aside) == bad
    assert store.runs() == ["other", "toy"]


def test_records_of_before_are_read_and_sealed_when_they_change(store: Store) -> None:
    file = Path(store.path("runs", "toy.json"))
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"recipe": "toy.yaml", "stages": {"a": ENTRY}}))
    assert store.run("toy") == {"recipe": "toy.yaml", "stages": {"a": ENTRY}}
    note(store.url, 0, 1)
    kept = unsealed(file.read_bytes(), "toy.json")
    assert list(kept["stages"]) == ["a", "stage0"] and kept["recipe"] == "toy.yaml" and b'"seal"' in file.read_bytes()


def test_what_lies_beside_records_is_no_record(store: Store) -> None:
    note(store.url, 0, 1)
    runs = Path(store.path("runs"))
    for name in (".DS_Store", ".nfs000000000001", "._toy.json", "notes.txt"):
        (runs / name).write_text("x")
    (runs / "folder.json").mkdir()
    assert store.runs() == ["toy"] and store.run("folder") is None
    with pytest.raises(Exception, match="no finished artifact `nothing`"):
        store.find("nothing")
