"""`status` names what is damaged, in words, and tells everything else as if it were not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.store.store import Store
from engine.view.status import status_of
from tests.engine.upkeep.conftest import Command, at


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]", "null", "\x00" * 40, '{"format": 2, "seal": "y", "stages": {}}'])
def test_a_damaged_manifest_takes_nothing_down(kept: Store, damage: str) -> None:
    loud = kept.find("toy/loud")
    (at(loud) / "manifest.json").write_text(damage)
    again = Store(kept.url)
    rows = {row["stage"]: row for row in status_of(again)}
    assert {name: row["state"] for name, row in rows.items() if name != "loud"} == dict.fromkeys(
        ("lines", "louder", "model", "other"), "done"
    )
    assert rows["loud"]["state"] == "damaged" and loud.id in rows["loud"]["error"]
    assert rows["loud"]["heal"] == f"`flywheel repair {loud.id}` makes it anew."


def test_what_is_missing_or_cut_short_is_damaged(kept: Store) -> None:
    loud, louder = kept.find("toy/loud"), kept.find("toy/louder")
    (at(loud) / loud.parts()[2]).unlink()
    (at(louder) / louder.parts()[0]).write_bytes(b"")
    rows = {row["stage"]: row for row in status_of(Store(kept.url))}
    assert rows["loud"]["state"] == rows["louder"]["state"] == "damaged" and rows["model"]["state"] == "done"
    assert loud.parts()[2] in rows["loud"]["error"] and "is missing" in rows["loud"]["error"]
    assert "0 bytes instead of" in rows["louder"]["error"]


def test_a_damaged_record_takes_nothing_down(kept: Store, command: Command) -> None:
    root = Path(kept.root)
    (root / "runs" / "old.json").write_text("")
    for litter in (
        "runs/._toy.json",
        "runs/.nfs0001",
        "runs/.DS_Store",
        "artifacts/.DS_Store",
        "artifacts/.nfs0001",
        "artifacts/a-file",
    ):
        (root / litter).write_bytes(b"x")
    rows = status_of(Store(kept.url))
    (row,) = [row for row in rows if row["run"] == "old"]
    assert (row["state"], row["artifact"]) == ("damaged", "runs/old.json") and "it is empty" in row["error"]
    assert [row["state"] for row in rows if row["run"] == "toy"] == ["done"] * 5
    assert [row["artifact"] for row in rows if row["run"] == "" and row["state"] != "under way"] == []
    done = command("status")
    assert done.code == 0 and "`flywheel repair old`" in done.out and "Traceback" not in done.err
    assert json.loads(command("status", "--json").out) == rows
