"""A digest is worked out once a run, and again as soon as anybody touches the file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from engine.store import known_digests
from engine.store.known_digests import digest_of, note_written, shared_digests


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The digests that were worked out, and not known."""
    made: list[str] = []
    digest = known_digests._digest  # pyright: ignore[reportPrivateUsage]

    def counted(*given: object) -> str:
        made.append(digest(*given))  # pyright: ignore[reportArgumentType]
        return made[-1]

    monkeypatch.setattr(known_digests, "_digest", counted)
    with shared_digests():
        yield made


def settled(file: Path, data: bytes) -> Path:
    """A file that is a few ticks of the file system's clock old."""
    file.write_bytes(data)
    while time.time_ns() - file.stat().st_ctime_ns <= known_digests.TICK_NS:
        pass
    return file


def test_it_is_the_digest_and_worked_out_once(tmp_path: Path, looks: list[str]) -> None:
    data = os.urandom(3 << 20)
    file = settled(tmp_path / "a", data)
    with file.open("rb") as opened:
        opened.seek(7)
        assert digest_of(opened) == hashlib.sha256(data).hexdigest() and opened.tell() == 7
    assert [digest_of(file) for _ in range(3)] == looks * 3
    assert digest_of(file, "xxh3") == xxhash.xxh3_128_hexdigest(data) and len(looks) == 2


@pytest.mark.parametrize("how", ["edited", "edited, with its time set back", "exchanged", "longer"])
def test_a_touch_has_it_worked_out_again(tmp_path: Path, looks: list[str], how: str) -> None:
    file = settled(tmp_path / "a", b"before")
    told = file.stat()
    digest_of(file)
    if how == "exchanged":
        settled(tmp_path / "b", b"behind").replace(file)
    else:
        file.write_bytes(b"behind, and more" if how == "longer" else b"behind")
    if "back" in how or how == "exchanged":
        os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert digest_of(file) == hashlib.sha256(file.read_bytes()).hexdigest() and len(looks) == 2


def test_a_file_that_may_still_change_unseen_is_looked_at_again(
    tmp_path: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_digests, "TICK_NS", 3600 * 10**9)  # a clock that ticks once an hour
    (tmp_path / "a").write_bytes(b"x")
    assert [digest_of(tmp_path / "a") for _ in range(2)] == looks


def test_the_processes_of_a_run_know_what_one_found_out_and_the_next_run_does_not(
    tmp_path: Path, looks: list[str]
) -> None:
    file, written = settled(tmp_path / "a", b"rows"), settled(tmp_path / "b", b"more rows")
    digest_of(file)
    note_written(written, hashlib.sha256(b"more rows").hexdigest())
    script = (
        "import sys; from pathlib import Path; from engine.store import known_digests as known\n"
        "def refuse(*_): raise SystemExit('looked')\n"
        "known._digest = refuse\n"
        "print([known.digest_of(Path(p)) for p in sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, str(file), str(written)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str([hashlib.sha256(f.read_bytes()).hexdigest() for f in (file, written)])
    with shared_digests():
        assert subprocess.run(command, capture_output=True, text=True).stderr.strip() == "looked"


def test_a_descriptor_that_is_another_file_by_now_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that outlives its run has the run's variable; the number may be of any file that was opened since."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"not a digest in sight\n")
    with mine.open("r+b") as opened:
        monkeypatch.setenv(known_digests.SHARED, f"/proc/{os.getpid()}/fd/{opened.fileno()}")
        known_digests.note_written(mine, "0" * 64)
        assert known_digests.digest_of(mine, "xxh3")
    assert mine.read_bytes() == b"not a digest in sight\n"
