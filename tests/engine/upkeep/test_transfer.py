"""A run and all it rests on arrives whole, or not at all; what is no export of ours is refused before anything is written."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import Damaged, FlywheelError, UserError
from engine.execution.runner import run
from engine.plan.inputs import resolve
from engine.plan.recipe import load_recipe
from engine.store.sealed_json import sealed
from engine.store.store import Store
from engine.upkeep.transfer import INDEX, copy, export, gather, import_file
from engine.upkeep.verification import verify
from engine.view.lineage import trace_back
from engine.view.report.page import write_report
from engine.view.status import status_of
from tests.engine.upkeep.conftest import Command, at, change_manifest, contents, digests, flip


def elsewhere(tmp_path: Path, name: str = "elsewhere") -> Store:
    return Store(str(tmp_path / name))


def same(one: Store, other: Store) -> bool:
    return digests(one) == digests(other) and contents(Path(one.root) / "artifacts") == contents(
        Path(other.root) / "artifacts"
    )


def test_an_archive_is_the_same_wherever_it_is_made(kept: Store, tmp_path: Path) -> None:
    export(kept, "toy", tmp_path / "a.tar")
    moved = tmp_path / "moved"
    shutil.copytree(kept.root, moved, copy_function=shutil.copy)  # other times
    (moved / "artifacts" / ".DS_Store").write_bytes(b"x")
    export(Store(str(moved)), "toy", tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert not list(tmp_path.glob("*partial"))


def test_on_another_machine_everything_works(kept: Store, tmp_path: Path) -> None:
    export(kept, "toy", tmp_path / "a.tar")
    other = elsewhere(tmp_path)
    arrival = import_file(other, tmp_path / "a.tar")
    assert len(arrival.arrived) == 5 and same(kept, other) and verify(other).whole
    assert other.run("toy") == kept.run("toy") and {row["state"] for row in status_of(other)} == {"done"}
    row = other.find("toy/louder").to_table()["id"][0].as_py()
    assert trace_back(other, row)["from"][0]["from"][0]["kind"] == "Document"
    page = write_report(other, "toy", tmp_path / "toy.html")
    assert Path(page).exists()
    (tmp_path / "there").mkdir()
    for file in ("toy.yaml", "lines.txt"):
        shutil.copy(tmp_path / file, tmp_path / "there")
    made = run(tmp_path / "there" / "toy.yaml", store=other.url)  # no worker starts: all of it is there
    assert {a.id: a.digest for a in made.values()} == digests(kept) and load_recipe(
        tmp_path / "there" / "toy.yaml"
    ).name == "toy"
    assert not list(other.workplace().glob("*/spec.json"))


def test_an_artifact_comes_with_what_it_rests_on_and_no_more(kept: Store, tmp_path: Path) -> None:
    other = elsewhere(tmp_path)
    copy(kept, "toy/louder", other)
    assert (
        set(digests(other)) == {kept.find(f"toy/{name}").id for name in ("lines", "loud", "louder")}
        and other.runs() == []
    )
    arrival = copy(kept, "toy", other)
    assert len(arrival.there) == 3 and len(arrival.arrived) == 2 and same(kept, other) and verify(other).whole
    again = copy(kept, "toy", other)
    assert again.written == 0 and len(again.there) == 5


def test_what_arrived_before_a_kill_is_not_sent_again(
    kept: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, cargo = elsewhere(tmp_path), gather(kept, "toy")
    read: list[str] = []

    class Killed(BaseException):
        pass

    import engine.upkeep.transfer

    real = engine.upkeep.transfer._open

    def watched(store: Store, cargo: Any, path: str, most: int) -> Any:
        if len(read) == most:
            raise Killed
        read.append(path)
        return real(store, cargo, path)

    for most in (3, 7, 11):
        monkeypatch.setattr("engine.upkeep.transfer._open", lambda s, c, p, most=most: watched(s, c, p, most))
        read.clear()
        with pytest.raises(Killed):
            copy(kept, "toy", other)
        assert all(artifact.verify() == [] for artifact in other.artifacts())
    monkeypatch.setattr("engine.upkeep.transfer._open", real)
    arrival = copy(kept, "toy", other)
    assert arrival.written < cargo.bytes / 2 and same(kept, other) and verify(other).whole


def test_nothing_is_replaced(kept: Store, tmp_path: Path) -> None:
    other = elsewhere(tmp_path)
    copy(kept, "toy", other)
    louder = other.find("toy/louder")
    files = {name: {**entry, "sha256": "0" * 64} for name, entry in louder.manifest["files"].items()}
    from engine.store.digest import digest_json

    change_manifest(other, louder.id, files=files, digest=digest_json(dict.fromkeys(files, "0" * 64)))
    before = {path: path.read_bytes() for path in Path(other.root).rglob("*") if path.is_file()}
    export(kept, "toy", tmp_path / "a.tar")
    for send in (lambda: copy(kept, "toy", other), lambda: import_file(other, tmp_path / "a.tar")):
        with pytest.raises(UserError, match=r"with other contents .* never replaced by another"):
            send()
    assert before == {path: path.read_bytes() for path in Path(other.root).rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is the store that it would be copied from"):
        copy(kept, "toy", Store(kept.url))


def test_a_run_of_the_same_name_stays(kept: Store, tmp_path: Path) -> None:
    other = elsewhere(tmp_path)
    other.put(sealed({"recipe": "mine.yaml", "stages": {}}), "runs", "toy.json")
    with pytest.raises(UserError, match="has a run `toy` of its own"):
        copy(kept, "toy", other)
    copy(kept, "toy", other, as_="toy-2")
    assert sorted(other.runs()) == ["toy", "toy-2"] and other.run("toy-2") == kept.run("toy") and verify(other).whole
    with pytest.raises(UserError, match="a run can't be called"):
        copy(kept, "toy", elsewhere(tmp_path, "third"), as_="../toy")


def test_damage_is_not_sent(kept: Store, tmp_path: Path) -> None:
    other, part = elsewhere(tmp_path), at(kept.find("toy/loud")) / kept.find("toy/loud").parts()[1]
    whole = part.read_bytes()
    for data in (whole[:-1] + b"?", whole[:-20]):
        part.write_bytes(data)
        with pytest.raises(Damaged, match="flywheel repair"):
            export(kept, "toy", tmp_path / "a.tar")
        with pytest.raises(Damaged):
            copy(kept, "toy", other)
    assert not list(tmp_path.glob("a.tar*")) and kept.find("toy/loud").id not in digests(other) and verify(other).whole
    part.write_bytes(whole)
    copy(kept, "toy", other)
    assert same(kept, other)
    Path(kept.path("artifacts", kept.find("toy/loud").id, "manifest.json")).write_text("{")
    with pytest.raises(Damaged, match="comes first"):
        copy(kept, "toy", elsewhere(tmp_path, "third"))


def test_models_from_outside_come_along(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    made = resolve(str(model), tmp_path, ("Model",), store).adopt(store)
    other = elsewhere(tmp_path)
    copy(store, made.id, other)
    shutil.rmtree(model)
    there = other.get(made.id)
    assert there and there.digest == made.digest and there.path.is_relative_to(other.root)
    assert (there.place / "config.json").read_text() == "{}" and there.name == "model"
    with pytest.raises(Damaged, match="is gone, or not what it was"):
        copy(store, made.id, elsewhere(tmp_path, "third"))


# -- what is no export -----------------------------------------------------------------------------------------------------


def archive(file: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as opened:
        for member, data in members:
            opened.addfile(member, io.BytesIO(data))
    return file


def members_of(file: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(file) as opened:
        for member in opened:
            found = opened.extractfile(member)
            yield member, found.read() if found else b""


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def renamed(members: list[Any], at: int, name: str) -> list[Any]:
    """The file at this place under another name, in the table of contents, too."""
    index = json.loads(members[0][1])
    old = members[at][0].name
    index["files"] = {name if path == old else path: value for path, value in index["files"].items()}
    data = json.dumps(index).encode()
    changed = [*members]
    changed[0], changed[at] = entry(INDEX, data), entry(name, members[at][1])
    return changed


def with_index(members: list[Any], **fields: Any) -> list[Any]:
    return [entry(INDEX, json.dumps({**json.loads(members[0][1]), **fields}).encode()), *members[1:]]


HOSTILE: dict[str, Callable[[list[Any]], list[Any]]] = {
    "path outward": lambda m: renamed(m, 3, "artifacts/../../evil"),
    "path inside an artifact outward": lambda m: renamed(m, 2, m[2][0].name.replace("data/", "data/../../../x/")),
    "absolute path": lambda m: renamed(m, 3, "/tmp/evil"),
    "a place that no store has": lambda m: renamed(m, 3, "work/x/spec.json"),
    "backslashes": lambda m: renamed(m, 3, m[1][0].name.replace("manifest.json", "..\\..\\evil")),
    "NUL": lambda m: renamed(m, 3, m[1][0].name.replace("manifest.json", "a\0b")),
    "half a surrogate": lambda m: with_index(m, files={"artifacts/x-0123456789abcdef/\ud800": [1, "a"]}),
    "a link": lambda m: [*m[:2], entry(m[2][0].name, type=tarfile.SYMTYPE, linkname="/etc/passwd"), *m[3:]],
    "a hard link": lambda m: [*m[:2], entry(m[2][0].name, type=tarfile.LNKTYPE, linkname=m[1][0].name), *m[3:]],
    "a device": lambda m: [*m[:2], entry(m[2][0].name, type=tarfile.CHRTYPE, devmajor=1, devminor=5), *m[3:]],
    "a FIFO": lambda m: [*m[:2], entry(m[2][0].name, type=tarfile.FIFOTYPE), *m[3:]],
    "a folder": lambda m: [*m[:2], entry(m[2][0].name, type=tarfile.DIRTYPE), *m[3:]],
    "another size": lambda m: [*m[:2], entry(m[2][0].name, m[2][1] + b"x"), *m[3:]],
    "other bytes": lambda m: [*m[:2], entry(m[2][0].name, m[2][1][:-1] + b"?"), *m[3:]],
    "another order": lambda m: [m[0], m[2], m[1], *m[3:]],
    "one too many": lambda m: [*m, entry("artifacts/evil", b"x")],
    "one too few": lambda m: m[:-1],
    "sizes that are not there": lambda m: with_index(m, files={p: [10**15, s] for p, (_, s) in json.loads(m[0][1])["files"].items()}),
    "a size without end": lambda m: [entry(INDEX, m[0][1].replace(b'"files": {', b'"files": {"runs/toy.json": [1e999, "a"],'))],
    "no table": lambda m: m[1:],
    "a table that is none": lambda m: [entry(INDEX, b"[" * 100_000), *m[1:]],
    "a later version": lambda m: with_index(m, flywheel=99),
    "a strange artifact": lambda m: with_index(m, artifacts={"../x": "y"}),
    "a strange run": lambda m: with_index(m, run="../toy"),
    "a run that is a number": lambda m: with_index(m, run=7),
    "an artifact without its inputs": lambda m: with_index(
        [m[0], *(e for e in m[1:] if "toy_read" not in e[0].name)],
        artifacts={k: v for k, v in json.loads(m[0][1])["artifacts"].items() if "toy_read" not in k},
        files={k: v for k, v in json.loads(m[0][1])["files"].items() if "toy_read" not in k},
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_an_archive_that_is_not_ours(kept: Store, tmp_path: Path, how: str) -> None:
    export(kept, "toy", tmp_path / "a.tar")
    try:
        hostile = archive(tmp_path / "b.tar", HOSTILE[how](list(members_of(tmp_path / "a.tar"))))
    except (ValueError, UnicodeError):
        pytest.skip("tar can't hold it")
    before = {path for path in tmp_path.rglob("*")}
    other = elsewhere(tmp_path)
    with pytest.raises(FlywheelError):
        import_file(other, hostile)
    new = {path for path in tmp_path.rglob("*")} - before - {Path(other.root)}
    assert all(path.is_relative_to(other.root) and not path.is_symlink() for path in new)
    assert not other.exists("artifacts") or (digests(other).items() <= digests(kept).items() and all(
        artifact.verify() == [] for artifact in other.artifacts()))  # fmt: skip
    if how != "one too many":
        assert other.runs() == []


def test_a_manifest_that_points_outward_is_refused(kept: Store, tmp_path: Path) -> None:
    """An artifact whose files are wherever its maker says: `export` would hand out anybody's files."""
    cargo = gather(kept, "toy/lines")
    (folder,) = cargo.artifacts
    manifest = json.loads(cargo.sources[f"artifacts/{folder}/manifest.json"])  # pyright: ignore[reportArgumentType]
    change_manifest(kept, folder, external="/etc", **{"files": manifest["files"]})
    with pytest.raises(FlywheelError):
        copy(kept, "toy/lines", elsewhere(tmp_path))
    assert digests(elsewhere(tmp_path)) == {}


def test_what_is_no_archive(kept: Store, tmp_path: Path) -> None:
    other = elsewhere(tmp_path)
    export(kept, "toy", tmp_path / "a.tar")
    whole = (tmp_path / "a.tar").read_bytes()
    import gzip

    for name, data in {
        "empty": b"", "text": b"hello\n" * 1000, "cut": whole[: len(whole) // 2], "gzip": gzip.compress(whole), "zeros": bytes(10240),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FlywheelError) as told:
            import_file(other, tmp_path / name)
        assert str(tmp_path / name) in str(told.value)
    with pytest.raises(UserError, match="No such file"):
        import_file(other, tmp_path / "nowhere.tar")
    huge = tarfile.TarInfo("x" * 300)
    huge.type, huge.size = tarfile.GNUTYPE_LONGNAME, 10**12  # a header that is read whole
    (tmp_path / "huge").write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match="too large"):
        import_file(other, tmp_path / "huge")
    assert not Path(other.root).exists() or digests(other) == {}


def test_a_bit_of_an_archive_is_told(kept: Store, tmp_path: Path) -> None:
    import random

    export(kept, "toy", tmp_path / "a.tar")
    whole, random_ = (tmp_path / "a.tar").read_bytes(), random.Random(3)
    for number in range(16):
        (tmp_path / "b.tar").write_bytes(whole)
        flip(tmp_path / "b.tar", random_.randrange(len(whole) * 8))
        other = elsewhere(tmp_path, f"flipped-{number}")
        try:
            import_file(other, tmp_path / "b.tar")
        except FlywheelError:
            assert digests(other).items() <= digests(kept).items()
        else:  # padding, or a field of tar's that nobody reads
            assert same(kept, other) and other.run("toy") == kept.run("toy")
        assert not other.exists("artifacts") or verify(other).whole


# -- where nothing can be renamed ------------------------------------------------------------------------------------------


def test_to_an_object_store_and_back(
    kept: Store, tmp_path: Path, bucket: str, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.upkeep.collection import find_unneeded, remove
    from engine.upkeep.repair import repair

    monkeypatch.setenv("FLYWHEEL_SCRATCH", str(tmp_path / "scratch"))
    remote = Store(bucket)
    copy(kept, "toy", remote)
    assert digests(remote) == digests(kept)
    back = elsewhere(tmp_path)
    copy(remote, "toy", back)
    assert same(kept, back) and back.run("toy") == kept.run("toy")
    export(remote, "toy", tmp_path / "remote.tar")
    export(kept, "toy", tmp_path / "local.tar")
    assert (tmp_path / "remote.tar").read_bytes() == (tmp_path / "local.tar").read_bytes()

    louder = remote.find("toy/louder")
    data = remote.read("artifacts", louder.id, louder.parts()[0])
    remote.put(data[:-9] + b"?" + data[-8:], "artifacts", louder.id, louder.parts()[0])
    (mended,) = repair(remote, base=tmp_path)
    assert mended.told.endswith("it is what it was") and in_process == [louder.id]
    assert digests(remote) == digests(kept) and not remote.walk("aside")

    remote.fs.rm(remote.path("runs", "toy.json"))
    monkeypatch.setattr("engine.upkeep.collection.GRACE_S", 0.0)
    for one in find_unneeded(remote, older=0).unneeded:
        assert remove(remote, one)
    assert remote.walk("artifacts") == []
    import_file(remote, tmp_path / "local.tar")
    assert digests(remote) == digests(kept) and verify(remote).whole


def test_the_commands(kept: Store, tmp_path: Path, command: Command) -> None:
    done = command("store", "export", "toy", "--to", tmp_path / "toy.tar")
    assert done.code == 0 and "5 artifacts" in done.out
    done = command("store", "import", tmp_path / "toy.tar", "--store", tmp_path / "elsewhere")
    assert done.code == 0 and "5 artifacts arrived" in done.out
    done = command("store", "copy", "toy/louder", "--to", tmp_path / "elsewhere")
    assert done.code == 0 and "0 artifacts arrived, 3 were there" in done.out
    done = command("store", "import", tmp_path / "toy.yaml")
    assert done.code == 2 and "is no export" in done.err
    assert "Did you mean `toy/louder`?" in command("store", "export", "toy/lauder", "--to", tmp_path / "x.tar").err
