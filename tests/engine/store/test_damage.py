"""Nothing of a store that was damaged is read as if it were not: every byte of a small finished run is attacked."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cli import main
from engine.errors import Damaged, UserError
from engine.plan.inputs import resolve
from engine.store.artifact import Artifact
from engine.store.known_digests import shared_digests
from engine.store.store import Store


def read_all(store: Store) -> dict[str, object]:
    """All that can be read of a store, once more from the disk."""
    read: dict[str, object] = {}
    with shared_digests():
        for artifact in store.artifacts():
            read[artifact.id] = artifact.manifest
            for name in artifact.files():
                told = artifact.read_table(name).to_pylist() if name.endswith(".parquet") else artifact.read_file(name)
                read[f"{artifact.id}/{name}"] = told
            if artifact.kind == "Model":
                read[f"{artifact.id}/location"] = artifact.location
    return read


def outcome(store: Store, before: dict[str, object]) -> str:
    """Who tells that something is wrong with a store; `nobody`, where it reads as before or otherwise."""
    try:
        read = read_all(store)
    except Damaged as error:
        assert "is damaged (" in str(error) and "flywheel repair" in str(error)
        return "reading"
    if store.damage:
        assert all("is damaged" in why for why in store.damage.values())
        return "the manifest"
    bad = {artifact.id: artifact.verify() for artifact in store.artifacts()}
    assert read == before, "other rows were read without a word"
    return "verify" if any(bad.values()) else "nobody"


def test_every_flipped_bit_is_told(run_store: Store) -> None:
    """Of 150 random flips none goes unnoticed, over every file that a run leaves in `artifacts/`."""
    draw = random.Random(15)
    before = read_all(run_store)
    files = [f for f in sorted(Path(run_store.path("artifacts")).rglob("*")) if f.is_file()]
    assert {"manifest.json", "README.md", "weights.json"} <= {f.name for f in files} and len(files) > 15
    told = Counter[str]()
    for index in range(150):
        file = files[index % len(files)]
        data = file.read_bytes()
        if not data:
            continue
        at, bit = draw.randrange(len(data)), draw.randrange(8)
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        who = outcome(Store(run_store.url), before)
        told[who] += 1
        beside = "logs" in file.parts or file.name == "README.md"
        assert who == ("verify" if beside else "the manifest" if file.name == "manifest.json" else "reading"), file
        file.write_bytes(data)
    assert told["nobody"] == 0 and {"reading", "the manifest", "verify"} <= set(told)
    assert outcome(Store(run_store.url), before) == "nobody"


def damages(file: Path, other: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    data = file.read_bytes()
    yield "cut off", lambda: file.write_bytes(data[: len(data) // 2])
    yield "empty", lambda: file.write_bytes(b"")
    yield "longer", lambda: file.write_bytes(data + b"\0")
    yield "gone", file.unlink
    yield "another's", lambda: shutil.copyfile(other, file)
    yield "a folder", lambda: (file.unlink(), file.mkdir())


@pytest.mark.parametrize("name", ["louder", "model"])
def test_files_that_are_cut_off_gone_or_exchanged_are_told(run_store: Store, name: str) -> None:
    before = read_all(run_store)
    made = run_store.find(f"toy/{name}")
    twin = run_store.find({"louder": "toy/loud", "model": "toy/other"}[name])
    for file in [made.files()[0], "manifest.json"]:
        place, data = made.place / file, (made.place / file).read_bytes()
        for what, damage in damages(place, twin.place / (twin.files()[0] if file != "manifest.json" else file)):
            damage()
            store = Store(run_store.url)
            if file == "manifest.json":
                found = store.get(made.id)
                assert found is None and (what == "gone") == (made.id not in store.damage), what
            else:
                assert outcome(store, before) == "reading", what
                why = store.get(made.id).incomplete()  # pyright: ignore[reportOptionalMemberAccess]
                assert (why is None) == (what == "another's" and place.stat().st_size == len(data)), (what, why)
            place.rmdir() if place.is_dir() else place.unlink(missing_ok=True)
            place.write_bytes(data)
    assert outcome(Store(run_store.url), before) == "nobody"


def test_a_file_that_was_put_beside_a_models_own_is_told(run_store: Store) -> None:
    model = run_store.find("toy/model")
    (model.place / "adapter_config.json").write_text("{}")
    with pytest.raises(Damaged, match=r"adapter_config.json is damaged \(it is not of this artifact\)"):
        _ = model.location


def test_an_edit_that_hides_its_time_is_noticed(run_store: Store) -> None:
    """Size and time of modification are the old ones: the time of the inode's change can't be."""
    import os

    made = run_store.find("toy/louder")
    file = made.place / made.parts()[0]
    assert len(made.to_table()) == made.rows
    told = file.stat()
    with file.open("r+b") as opened:
        opened.seek(40)
        byte = opened.read(1)
        opened.seek(40)
        opened.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    with pytest.raises(Damaged):
        made.to_table()


def test_pages_tell_a_flip_that_comes_after_the_look(run_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_store.find("toy/louder")
    file = made.place / made.parts()[0]
    data = bytearray(file.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 8] ^= 16  # in the first page's compressed bytes
    file.write_bytes(data)
    monkeypatch.setattr(Artifact, "_compare", lambda *_: None)
    with pytest.raises(Damaged, match="CRC"):
        made.to_table()


@pytest.mark.parametrize("told", [b"", b"{", b"[]", b"null", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000], ids=repr)
def test_a_manifest_that_is_none_counts_as_not_finished(run_store: Store, told: bytes) -> None:
    made = run_store.find("toy/louder")
    (made.place / "manifest.json").write_bytes(told)
    assert run_store.get(made.id) is None
    assert f"artifacts/{made.id}/manifest.json is damaged" in run_store.damage[made.id]
    with pytest.raises(Damaged, match="flywheel repair"):
        run_store.find("toy/louder")
    assert len(list(run_store.artifacts())) == 4


def test_manifests_of_before_there_were_seals_are_read(run_store: Store) -> None:
    made = run_store.find("toy/louder")
    old = {**{k: v for k, v in made.manifest.items() if k != "beside"}, "format": 1}
    (made.place / "manifest.json").write_text(json.dumps(old, indent=1))
    again = run_store.get(made.id)
    assert again is not None and again.to_table().equals(made.to_table()) and again.verify() == []


def test_what_systems_leave_in_folders_is_none_of_ours(run_store: Store) -> None:
    made = run_store.find("toy/louder")
    before = run_store.folders()
    for place in (run_store.path("artifacts"), str(made.place), str(made.place / "data"), run_store.path("runs")):
        for name in (".DS_Store", ".nfs000000000180a", "._x.parquet", "._x.json", "Thumbs.db"):
            (Path(place) / name).write_bytes(b"\0\5\26\7")
    (Path(run_store.path("artifacts")) / "notes").mkdir()
    (Path(run_store.path("artifacts")) / "louder-0123456789abcdef").write_text("a file where a folder should be")
    assert run_store.folders() == sorted([*before, "louder-0123456789abcdef"])
    assert len(list(run_store.artifacts())) == 5 and run_store.damage == {} and run_store.runs() == ["toy"]
    assert made.verify() == [] and made.incomplete() is None


def test_commands_tell_it_in_words(run_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    made = run_store.find("toy/louder")
    row = made.to_table().column("id")[0].as_py()
    (made.place / made.parts()[0]).write_bytes(b"")
    out = str(tmp_path / "out")
    for command in (
        ["show", "toy/louder"],
        ["show", "toy/louder", "--json"],
        ["trace", row],
        ["export", "toy/louder", "--to", out],
    ):
        monkeypatch.setattr(sys, "argv", ["flywheel", *command, "--store", run_store.url])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 1, command
        assert f"{made.parts()[0]} is damaged (it has 0 bytes instead of" in said.err and "Traceback" not in said.err
    assert not Path(out).exists()


def test_a_model_outside_the_store_that_changed_is_not_loaded(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    planned = resolve("./mine", tmp_path, ("Model",), store)
    artifact = planned.adopt(store)
    assert artifact.location == str(folder) and artifact.verify() == []
    (folder / "model.safetensors").write_bytes((3).to_bytes(8, "little") + b"{ }")
    with pytest.raises(UserError, match="mine changed after this run was planned"):
        _ = artifact.location
    assert artifact.verify() == [str(folder)]
    shutil.rmtree(run := Path(store.path("artifacts", artifact.id)))
    with pytest.raises(UserError, match="mine changed after this run was planned"):
        planned.adopt(store)
    assert not (run / "manifest.json").exists()


def test_a_run_on_damaged_rows_says_what_heals_them(
    run_store: Store, recipe: Path, flywheel: Callable[..., Any]
) -> None:
    made = run_store.find("toy/lines")
    file = made.place / made.parts()[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 2
    file.write_bytes(data)
    told = flywheel("run", recipe, "--set", "loud.times=3", "--only", "loud")
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert f"{made.id}: {made.parts()[0]} is damaged" in told.stderr
    assert f"`flywheel repair {made.id}` makes it anew" in told.stderr
