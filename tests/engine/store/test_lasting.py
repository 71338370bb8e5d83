"""What was committed is on the disk; what could not be written leaves nothing and is said in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StageFailed, UserError
from engine.shortage import in_words, shortage
from engine.store import whole_file as whole
from engine.store.store import Store
from engine.store.whole_file import whole_file


@pytest.fixture
def touches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each sync and each rename, in order, with the name of what it was of."""
    seen: list[tuple[str, str]] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        seen.append(("sync", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        sync(descriptor)

    def rename(self: Path, target: Any) -> Path:
        seen.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    return seen


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at descriptors as Linux lists them")


def test_a_commit_is_synced_with_every_folder_that_names_it(store: Store, touches: list[tuple[str, str]]) -> None:
    store.put(b"rows", "artifacts", "read-0", "data", "a.parquet")
    partial = touches.index(("rename", "a.parquet")) - 1
    assert touches[partial][0] == "sync" and touches[partial][1].startswith(
        "read-0."
    )  # its bytes, under their name of the moment
    made = ["store", "artifacts", "read-0"]  # each new folder's name stands in the one above
    assert [name for what, name in touches[:partial] if what == "sync" and name in made] == [
        "store",
        "store",
        *made[1:],
    ]
    assert touches[partial + 2 :] == [("sync", "data")]
    touches.clear()
    store.put(b"rows", "artifacts", "read-0", "data", "b.parquet")
    assert [what for what, _ in touches] == ["sync", "rename", "sync"]


def test_a_file_that_is_moved_in_is_synced(store: Store, tmp_path: Path, touches: list[tuple[str, str]]) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    store.put_file(tmp_path / "weights", "artifacts", "sft-0", "weights")
    assert touches[-3:] == [("sync", "weights"), ("rename", "weights"), ("sync", "sft-0")]
    assert store.read("artifacts", "sft-0", "weights") == b"weights" and not (tmp_path / "weights").exists()


def test_a_file_that_was_not_written_to_its_end_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "old") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"


def test_file_systems_without_syncs_of_folders_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuses)
    whole.sync(tmp_path)
    assert shortage(OSError(2, "No such file")) is None  # not a disk's word


SMALL = """
import sys
from pathlib import Path
from engine.errors import FlywheelError
from engine.store.store import Store
from engine.store.whole_file import whole_file
store, said = Store(sys.argv[1]), []
def attempt(what):
    try:
        what()
    except FlywheelError as error:
        print(type(error).__name__, error)
    print(sorted(str(f.relative_to(store.root)) for f in Path(store.root).rglob("*") if f.is_file()))
if sys.argv[2] == "full":
    store.put(b"first", "artifacts", "a", "data", "1")
    attempt(lambda: store.put(bytes(10 << 20), "artifacts", "a", "data", "2"))
else:
    attempt(lambda: store.put(b"first", "artifacts", "a", "data", "1"))
    attempt(lambda: store.scratch("a"))
"""


def in_a_small_disk(tmp_path: Path, options: str, how: str) -> str:
    """What happens on a disk of its own of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=400k none {disk} && mount -o remount{options} none {disk}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this kernel gives a user no mounts of one's own")
    (tmp_path / "small.py").write_text(SMALL)
    script = f"{mount} && exec {sys.executable} {tmp_path / 'small.py'} {disk} {how}"
    told = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


def test_a_full_disk_is_said_and_leaves_what_was_committed(tmp_path: Path) -> None:
    first, second = in_a_small_disk(tmp_path, "", "full").splitlines()
    assert (
        first.startswith("StageFailed ")
        and "there is no space left on the disk: " in first
        and "artifacts/a/data/2. " in first
    )
    assert second == "['artifacts/a/data/1']"


def test_a_disk_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    lines = in_a_small_disk(tmp_path, ",ro", "closed").splitlines()
    assert [line.split(" ")[0] for line in lines[::2]] == ["UserError", "UserError"] and lines[1] == "[]"
    assert "the disk is read-only: " in lines[0] and "put the store elsewhere" in lines[0]


@pytest.mark.parametrize(
    ("number", "kind"), [(28, StageFailed), (122, StageFailed), (5, StageFailed), (30, UserError), (13, UserError)]
)
def test_what_disks_refuse_has_an_exit_code(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=": x/y\\. ") as told, in_words("x/y"):
        raise OSError(number, os.strerror(number))
    assert type(told.value) is kind
