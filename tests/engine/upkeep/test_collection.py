"""What nobody needs goes, the oldest first, and nothing else does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.store.lease import lease
from engine.store.store import Store
from engine.upkeep.collection import Collection, find_unneeded, in_bytes, in_time, remove, seconds, size
from engine.upkeep.verification import verify
from tests.engine.upkeep.conftest import Command

DAY = 86400.0


def age(store: Store, place: str, days: float) -> None:
    then = time.time() - days * DAY
    root = Path(store.root) / place
    for path in [root, *root.rglob("*")]:
        os.utime(path, (then, then), follow_symlinks=False)


def places(found: Collection) -> list[str]:
    return [one.place for one in found.unneeded]


def forget(store: Store, *stages: str) -> dict[str, str]:
    """Have the run name these stages no longer. Returns all stages' folders."""
    record = store.run("toy")
    assert record
    folders = {name: entry["artifact"] for name, entry in record["stages"].items()}
    record["stages"] = {name: entry for name, entry in record["stages"].items() if name not in stages}
    from engine.store.sealed_json import sealed

    store.put(sealed(record), "runs", "toy.json")
    return folders


def collect(store: Store, **options: Any) -> Collection:
    found = find_unneeded(store, **options)
    assert all(remove(store, one) for one in found.unneeded)
    return found


def test_what_a_run_rests_on_stays(kept: Store) -> None:
    age(kept, ".", 30)
    assert places(find_unneeded(kept)) == []
    folders = forget(kept, "lines", "loud", "louder", "other")  # all but `other` are under the model
    age(kept, ".", 30)
    found = collect(kept)
    assert places(found) == [f"artifacts/{folders['other']}"]
    assert (
        kept.folders() == sorted(folder for name, folder in folders.items() if name != "other") and verify(kept).whole
    )


def test_what_is_young_stays_with_all_that_it_rests_on(kept: Store) -> None:
    folders = forget(kept, "lines", "loud", "louder", "model", "other")
    age(kept, ".", 30)
    age(kept, f"artifacts/{folders['louder']}", 2)
    found = collect(kept)
    assert set(places(found)) == {f"artifacts/{folders[name]}" for name in ("model", "other")}
    assert verify(kept).whole
    age(kept, f"artifacts/{folders['louder']}", 0.02)  # half an hour
    assert places(find_unneeded(kept, older=0)) == []  # whatever is asked for
    age(kept, f"artifacts/{folders['louder']}", -3)  # by a clock that was set back since
    assert places(find_unneeded(kept, older=0)) == []
    age(kept, f"artifacts/{folders['louder']}", 2)
    assert places(collect(kept, older=seconds("1d"))) == [
        f"artifacts/{folders[name]}" for name in ("louder", "loud", "lines")
    ]
    assert kept.folders() == [] and not kept.list("tmp")


def test_a_quota_takes_the_oldest_and_no_more_than_need_be(kept: Store) -> None:
    folders = forget(kept, "lines", "loud", "louder", "model", "other")
    for days, name in enumerate(("other", "model", "louder", "loud", "lines")):
        age(kept, f"artifacts/{folders[name]}", 2 + days)
    held = find_unneeded(kept).held
    assert places(find_unneeded(kept, quota=held)) == []
    # The inputs are older, and stay as long as what was made of them.
    assert places(find_unneeded(kept, quota=held - 1)) == [f"artifacts/{folders['model']}"]
    some = find_unneeded(kept, quota=held // 2)
    assert some.held - some.freed <= held // 2 < some.held - some.freed + some.unneeded[-1].size and not some.over
    for one in some.unneeded:
        assert remove(kept, one)
    assert verify(kept).whole and find_unneeded(kept).held == some.held - some.freed
    none = find_unneeded(kept, quota=0)
    assert none.over == none.held - none.freed > 0  # the record of the run is needed


def test_the_last_of_each_kind_may_stay(kept: Store) -> None:
    folders = forget(kept, "lines", "loud", "louder", "model", "other")
    for days, name in enumerate(("model", "other", "louder", "loud", "lines")):
        age(kept, f"artifacts/{folders[name]}", 20 + days)
    assert places(find_unneeded(kept, keep_last=1)) == [f"artifacts/{folders['other']}"]
    assert places(find_unneeded(kept, keep_last=2)) == []


def test_artifacts_stay_while_a_record_or_a_needed_manifest_cannot_be_read(kept: Store) -> None:
    folders = forget(kept, "other")
    age(kept, ".", 30)
    assert places(find_unneeded(kept)) == [f"artifacts/{folders['other']}"]
    record = Path(kept.path("runs", "toy.json"))
    text = record.read_text()
    record.write_text(text[:-9])
    found = find_unneeded(kept)
    assert places(found) == [] and "runs/toy.json can't be read" in found.notes[0]
    record.write_text(text)
    Path(kept.path("artifacts", folders["model"], "manifest.json")).write_text("{")
    assert places(find_unneeded(kept)) == []
    assert "`flywheel repair` comes first" in find_unneeded(kept).notes[0]


def test_work_copies_answers_and_leftovers(kept: Store) -> None:
    work, root = kept.workplace(), Path(kept.root)
    folders = {name: kept.find(f"toy/{name}").id for name in ("lines", "louder")}
    for place in (
        "toy_train-00ff00ff00ff00ff/checkpoint.json", "toy_train-11ff00ff00ff00ff/checkpoint.json",
        f"{folders['louder']}/old", f"inputs/{folders['lines']}/data/a.parquet", "answers/answers.sqlite", "toy_read-00ff00ff00ff00ff.lock",
        "toy_shout-22ff00ff00ff00ff/before/manifest.json",
    ):  # fmt: skip
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        (work / place).write_bytes(b"x" * 10)
    (root / "artifacts" / "toy_train-00ff00ff00ff00ff" / "data").mkdir(parents=True)
    (root / "artifacts" / "toy_train-00ff00ff00ff00ff" / "data" / "00000.parquet").write_bytes(b"x")
    for place in ("tmp/0a0b", "aside/toy_read-00ff00ff00ff00ff/manifest.json"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"x")
    assert places(find_unneeded(kept)) == []  # somebody may have only just written them
    age(kept, ".", 30)
    with lease(kept, "toy_train-11ff00ff00ff00ff"):  # under way
        found = find_unneeded(kept, answers=True)
    assert {one.place: one.what for one in found.unneeded} == {
        "artifacts/toy_train-00ff00ff00ff00ff": "unfinished", "work/toy_train-00ff00ff00ff00ff": "scratch",
        f"work/{folders['louder']}": "scratch", "work/toy_read-00ff00ff00ff00ff.lock": "lock", "tmp/0a0b": "leftover",
        "aside/toy_read-00ff00ff00ff00ff": "set aside",
    }  # fmt: skip
    assert any("stages that may ask are under way" in note for note in found.notes)
    assert any("toy_shout-22ff00ff00ff00ff holds an artifact that was being made anew" in note for note in found.notes)
    assert "work/answers" not in places(find_unneeded(kept))
    collect(kept, answers=True)
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and "artifacts" not in path.parts) == [
        "runs/toy.json", "work/toy_shout-22ff00ff00ff00ff/before/manifest.json",
    ]  # fmt: skip
    assert verify(kept).artifacts == 5


def test_what_is_being_made_or_is_named_by_now_stays(kept: Store) -> None:
    folders = forget(kept, "other")
    record = kept.read("runs", "toy.json")
    age(kept, ".", 30)
    (one,) = find_unneeded(kept).unneeded
    with lease(kept, folders["other"]):
        assert not remove(kept, one) and places(find_unneeded(kept)) == []
    forget(kept)
    stage = {"artifact": folders["other"], "kind": "toy_train", "identity": {}, "inputs": {}}
    kept.put(json.dumps({"stages": {"other": stage}}).encode(), "runs", "new.json")
    assert not remove(kept, one)
    kept.fs.rm(kept.path("runs", "new.json"))
    assert kept.read("runs", "toy.json") == record and remove(kept, one) and not remove(kept, one)


def test_what_a_stage_that_stopped_takes_stays(kept: Store) -> None:
    folders = forget(kept, "lines", "loud", "louder", "model", "other")
    work = kept.scratch("toy_train-00ff00ff00ff00ff")
    (work / "spec.json").write_text(json.dumps({"inputs": {"documents": [["louder", folders["louder"]]]}}))
    age(kept, "artifacts", 30)
    assert set(places(find_unneeded(kept))) == {f"artifacts/{folders[name]}" for name in ("model", "other")}


def test_words_for_times_and_sizes() -> None:
    assert [seconds(text) for text in ("7d", "12h", "1.5 m", "2w", "0s")] == [7 * DAY, DAY / 2, 90, 14 * DAY, 0]
    assert [size(text) for text in ("20GB", "500 MiB", "5kB", "7", "1.5T")] == [
        20 * 10**9,
        500 * 2**20,
        5000,
        7,
        1500 * 10**9,
    ]
    for wrong in ("7", "d", "-1d", "1y", "1e9d"):
        with pytest.raises(UserError, match="is no time"):
            seconds(wrong)
    for wrong in ("GB", "-1GB", "1QB"):
        with pytest.raises(UserError, match="is no size"):
            size(wrong)
    assert [in_bytes(n) for n in (0, 999, 1000, 2_500_000, 3 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "3.0 TB",
    ]
    assert [in_time(t) for t in (0, 59, 3601, 8 * DAY)] == ["0 s", "59 s", "1 h", "8 d"]


def test_the_command_asks_first(kept: Store, command: Command) -> None:
    folders = forget(kept, "other")
    age(kept, ".", 30)
    looked = command("gc", "--dry-run")
    assert looked.code == 0 and folders["other"] in looked.out and "30 d" in looked.out
    refused = command("gc")
    assert refused.code == 2 and "`--yes`" in refused.err and kept.get(folders["other"])
    done = command("gc", "--yes", "--json", "--quota", "1B")
    told = json.loads(done.out)
    assert done.code == 1 and told["over_quota"] > 0 and told["removed"] == [f"artifacts/{folders['other']}"]
    assert not kept.get(folders["other"]) and verify(kept).whole
