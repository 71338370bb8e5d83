"""One at a time: who holds a lease writes, others wait and know for whom, and who lost it is refused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pickle
import subprocess
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import Busy
from engine.store.lease import Superseded, lease, lock_file, take_part
from engine.store.store import Store
from engine.store.versions import read_version
from engine.store.writer import ArtifactWriter

PART = pa.table({"id": ["a"], "parents": [[]], "text": ["x"], "source": ["s"], "offset": [0]})


def test_a_second_holder_is_refused_or_waits_and_is_told_for_whom(store: Store) -> None:
    others = [Store(store.url), Store(store.url)]
    said: list[str] = []
    with lease(store, "a-1"):
        with (
            pytest.raises(Busy, match=rf"\(process {os.getpid()} on .*since \d\d:\d\d\) is making a-1 right now"),
            lease(others[0], "a-1", no_wait=True),
        ):
            pass
        with lease(others[0], "b-2", no_wait=True):
            pass
        waits = threading.Event()

        def wait() -> None:
            with lease(others[1], "a-1", say=lambda text: (said.append(text), waits.set())):
                said.append("has it")

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert waits.wait(20)
    waiting.join(20)
    assert len(said) == 2 and said[0].startswith("waits for `") and said[1] == "has it"
    assert not list(Path(store.path("work")).glob("*.lock"))


def test_a_file_that_went_while_it_was_opened_is_no_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A opens the file and holds it; B opens it; A lets go, and the file goes; B locks what has no name any more; C makes the
    file anew and locks that: B and C must not both hold."""
    real = fcntl.flock
    calls: list[int] = []

    def flock(descriptor: Any, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:  # between B's opening and its locking
            lock_file(store, "a-1").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lease(store, "a-1"):
        monkeypatch.setattr(fcntl, "flock", real)
        with pytest.raises(Busy), lease(Store(store.url), "a-1", no_wait=True):
            pass
    assert len(calls) == 2


def test_a_lease_lives_as_long_as_any_process_that_has_a_part_in_it(store: Store) -> None:
    with lease(store, "a-1") as held:
        child = subprocess.Popen(["sleep", "600"], pass_fds=held.descriptors)
        os.dup2(
            os.open(os.devnull, os.O_RDONLY), held.descriptors[0]
        )  # as where the run is killed: only the child has it
        with pytest.raises(Busy), lease(Store(store.url), "a-1", no_wait=True):
            pass
        child.kill()
        child.wait()
        with lease(Store(store.url), "a-1", no_wait=True):
            pass


def test_who_lost_its_lease_writes_nothing_more_and_takes_away_nothing(store: Store, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with lease(store, "a-1") as held:
            worker = Store(store.url)
            worker.lease = pickle.loads(pickle.dumps(take_part(worker, held.told())))
            writer = ArtifactWriter(worker, "a-1")
            writer.put_part("00000", PART, "Document")
            lock_file(store, "a-1").unlink()  # by hand, or by a file server
            other = stack.enter_context(lease(Store(store.url), "a-1"))
            (tmp_path / "model").write_text("weights")
            for write in (
                lambda: writer.put_part("00001", PART, "Document"),
                lambda: writer.put_rejected("00001", pa.table({"id": ["a"], "reason": ["r"]})),
                lambda: writer.put_file(tmp_path / "model", "model"),
                lambda: writer.put_log("stage.log", b""),
                lambda: writer.seal({}),
            ):
                with pytest.raises(
                    Superseded, match=rf"lost its turn: `.*` \(process {os.getpid()} .* has taken over a-1"
                ):
                    write()
        other.check()  # who lost it has let go of nothing but its own
        assert writer.parts() == {"00000"} and not worker.list("tmp") and (tmp_path / "model").exists()


def test_a_file_system_that_can_not_lock_is_told_of_and_the_later_one_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with lease(store, "a-1", say=said.append) as held, lease(Store(store.url), "a-1", say=said.append) as later:
        later.check()
        with pytest.raises(Superseded):
            held.check()
    assert len(said) == 2 and all("can't lock files: start one run at a time" in text for text in said)


def test_on_s3_a_lease_that_is_kept_alive_holds_and_one_that_is_not_is_taken_over(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = Store(bucket), Store(bucket)
    monkeypatch.setenv("FLYWHEEL_LEASE_S", "0.6")
    with lease(store, "a-1") as held:
        before = read_version(store, "leases", "a-1.json")
        ArtifactWriter(store, "a-1").put_part("00000", PART, "Document")
        with pytest.raises(Busy, match=rf"process {os.getpid()}"), lease(other, "a-1", no_wait=True):
            pass
        threading.Event().wait(0.7)
        assert read_version(store, "leases", "a-1.json") != before
        held.rest()  # it stands still
        with lease(other, "a-1"):
            for write in (
                lambda: ArtifactWriter(store, "a-1").put_part("00001", PART, "Document"),
                lambda: ArtifactWriter(store, "a-1").seal({}),
            ):
                with pytest.raises(Superseded, match="has taken over a-1"):
                    write()
            writer = ArtifactWriter(other, "a-1")
            writer.put_part("00000", PART, "Document")  # over what the first wrote
            other.put(b"{}", "artifacts", "a-1", "manifest.json")
            with pytest.raises(Superseded):  # there is one manifest, ever
                other.put(b"{ }", "artifacts", "a-1", "manifest.json")
    assert store.list("leases") == [] and other.list("artifacts", "a-1", "data") == ["00000.parquet"]


@pytest.mark.parametrize("name", ["part", "model", "manifest.json"])
def test_on_s3_a_write_that_was_under_way_changes_nothing_after_a_takeover(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """A process may stand still between its look at the lease and its write."""
    store, other = Store(bucket), Store(bucket)
    monkeypatch.setenv("FLYWHEEL_LEASE_S", "0.3")
    with lease(store, "a-1") as held:
        looked: list[int] = []

        def fence(*parts: str) -> None:
            if looked:
                held.check()
                return
            looked.append(1)
            held.rest()
            with lease(other, "a-1"):
                if name != "manifest.json":  # as where the other has it to do yet
                    put(other, "new")
                assert other.get("a-1") is None and not other.damage

        def put(into: Store, text: str) -> None:
            if name == "model":
                (tmp_path / text).write_text(text)
                into.put_file(tmp_path / text, "artifacts", "a-1", name)
            else:
                into.put(text.encode(), "artifacts", "a-1", name)

        monkeypatch.setattr(store, "fence", fence)
        with pytest.raises(Superseded):
            put(store, "old")
    with lease(other, "a-1"):
        put(other, "new")
    assert other.read("artifacts", "a-1", name) == b"new"
