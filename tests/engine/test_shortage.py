"""A machine that runs out of something says so in words, leaves nothing half-written, and goes on when it has it again."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.shortage import killed, shortage
from engine.store.store import Store
from tests.engine.running import slow_recipe, start

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount(size="200k")`: a file system of its own; again with other options, the same."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def make(**options: str) -> Path:
        nonlocal mounted
        told = ",".join(name if not value else f"{name}={value}" for name, value in options.items())
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"remount,{told}" if mounted else told, "tmpfs", str(place)],
            capture_output=True,
        )
        if done.returncode:
            pytest.skip("may not mount")
        mounted = True
        return place

    if os.getuid():
        pytest.skip("may not mount")
    yield make
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def run(folder: Path, store: Path, *arguments: str, **options: Any) -> tuple[int, str]:
    done = start(folder, *arguments, env={"FLYWHEEL_STORE": str(store)}, **options)
    said = done.communicate()[1]
    assert "Traceback" not in said and "Errno" not in said, said
    return done.returncode, said


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path: Path, mount: Mount) -> None:
    slow_recipe(tmp_path, pause=0)
    disk = mount(size="1m")
    store = Store(str(disk / "store"))
    filler = disk / "filler"
    for free in (0, 4096, 16384, 40960):  # at the lock, the spec, the log, a part, ...
        filler.write_bytes(b"")
        with filler.open("ab") as file:
            file.truncate(0)
            room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            file.write(b"x" * max(0, room - free))
        code, said = run(tmp_path, disk / "store", "run", "slow.yaml")
        if code == 0:
            break
        assert code == 1 and ("no space left" in said.lower() or "there is no space" in said), said
        assert not store.list("tmp") and not list(store.workplace().glob("*.lock"))
    else:
        assert store.list("artifacts")  # it came further with more room
    filler.unlink()
    assert run(tmp_path, disk / "store", "run", "slow.yaml")[0] == 0
    assert store.find("slow/loud").verify() == [] and not list(store.workplace().iterdir())


def test_a_read_only_store_can_be_read_and_a_run_says_what_it_is(tmp_path: Path, mount: Mount) -> None:
    recipe = slow_recipe(tmp_path, pause=0)
    disk = mount(size="4m")
    assert run(tmp_path, disk / "store", "run", "slow.yaml")[0] == 0
    mount(ro="")
    for arguments in (["run", "slow.yaml"], ["status"], ["show", "slow/loud"], ["plan", "slow.yaml"]):
        assert run(tmp_path, disk / "store", *arguments) == (0, ANY), arguments
    recipe.write_text(recipe.read_text().replace("pause: 0", "times: 2"))
    code, said = run(tmp_path, disk / "store", "run", "slow.yaml")
    assert code in (1, 2) and "read-only" in said.lower() and "--store" in said, said


def test_a_file_that_may_not_grow_and_too_few_open_files_are_told(tmp_path: Path) -> None:
    slow_recipe(tmp_path, pause=0)
    for limit, value, says in (
        (resource.RLIMIT_FSIZE, 700, "would become larger than the limit (`ulimit -f`)"),
        (resource.RLIMIT_NOFILE, 7, "too many files are open"),
    ):
        code, said = run(
            tmp_path, tmp_path / "store", "run", "slow.yaml",
            preexec_fn=lambda limit=limit, value=value: resource.setrlimit(limit, (value, value)),
        )  # fmt: skip
        assert code == 1 and says in said, said
    assert run(tmp_path, tmp_path / "store", "run", "slow.yaml")[0] == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("memory", "memory ran out. Give the stage less at once"),
        ("killed", "was killed (SIGKILL). The kernel does so where"),
    ],
)
def test_a_stage_without_memory_says_what_to_lower(recipe: Path, tmp_path: Path, how: str, says: str) -> None:
    recipe.write_text(
        f"{recipe.read_text().partition('  loud:')[0]}  crash: {{kind: toy_crash, from: lines, how: {how}}}\n"
    )
    code, said = run(tmp_path, tmp_path / "store", "run", recipe.name)
    assert code == 1 and says in said and "goes on from here" in said, said
    assert "running again" in str(shortage(MemoryError(), ["micro_batch", "name"])) and "Lower `micro_batch`" in str(
        shortage(MemoryError(), ["micro_batch", "name"])
    )


def told(fails: Callable[[], Any]) -> str | None:
    try:
        fails()
    except Exception as error:
        return shortage(error)
    raise AssertionError("it did not fail")


def test_what_libraries_say_of_a_full_machine_is_understood(tmp_path: Path) -> None:
    import torch

    full = Path("/dev/full")

    def fill_database() -> None:
        with sqlite3.connect(tmp_path / "small.sqlite") as database:
            database.execute("pragma max_page_count = 2")
            database.execute("create table t (x)")
            database.execute("insert into t values (zeroblob(1000000))")

    def read_only_database() -> None:
        sqlite3.connect(tmp_path / "ro.sqlite").execute("create table t (x)")
        with sqlite3.connect(f"file:{tmp_path}/ro.sqlite?mode=ro", uri=True) as database:
            database.execute("insert into t values (1)")

    def arrow() -> None:  # by the descriptor: given a path, it would remove the device
        with pa.OSFile(os.open(full, os.O_WRONLY), "wb") as file:
            pq.write_table(pa.table({"x": np.arange(1_000_000)}), file)

    def rust() -> None:  # safetensors' words; it would put a plain file in the place of a device
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    def chained() -> None:
        try:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/home/me/x")
        except OSError as error:
            raise ValueError("a library's own words") from error

    for fails, says in (
        (lambda: full.write_text("x" * 100_000), "no space left on the disk"),
        (arrow, "no space left"),
        (fill_database, "no space left"),
        (read_only_database, "read-only"),
        (lambda: np.empty(1 << 50, np.int64), "memory ran out"),
        (lambda: torch.empty(1 << 50), "memory ran out"),
        (chained, "your quota of this disk is used up: /home/me/x"),
        (rust, "no space left"),
    ):
        assert says in (told(fails) or ""), says
    for plain in (
        ValueError("x"),
        FileNotFoundError(2, "no such file"),
        KeyError("memory"),
        ConnectionRefusedError(111, "no"),
    ):
        assert shortage(plain) is None
    assert "crashed (SIGSEGV)" in killed(11) and "killed by signal 64" in killed(64)


def test_a_clock_that_is_years_off_or_goes_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is shown to people; nothing waits for it or compares it."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(
        "import time, random\nreal = time.time\ntime.time = lambda: random.choice([0.0, real() - 4e7, real() + 4e7])\n"
    )
    path = os.pathsep.join([str(tmp_path / "clock"), os.environ["PYTHONPATH"]])
    slow_recipe(tmp_path, pause=0)
    done = start(tmp_path, "run", "slow.yaml", env={"PYTHONPATH": path})
    assert done.communicate() and done.returncode == 0
    assert Store(str(tmp_path / "store")).find("slow/loud").verify() == []
    shown = start(tmp_path, "show", "slow/loud", env={"PYTHONPATH": path})
    said = shown.communicate()[1]
    assert shown.returncode == 0 and not said
