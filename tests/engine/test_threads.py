"""How many cores there are is what the kernel says, and threads of what Flywheel starts give theirs away while they wait."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flywheel
from engine.execution import threads
from generators.backends.process import spawn

V1 = "31 23 0:28 {top} /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "32 23 0:29 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def machine(root: Path, mounts: str, memberships: str, files: dict[str, str]) -> Path:
    """A folder with the files that a kernel would show."""
    for name, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": memberships, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("mounts", "memberships", "files", "expected"),
    [
        ("", "", {}, math.inf),
        (V2.format(top="/"), "0::/", {}, math.inf),
        (V2.format(top="/"), "0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, math.inf),
        (V2.format(top="/"), "0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        # the least of what the group and those above it may use
        (V2.format(top="/"), "0::/a/b", {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        # a container: its own group is all that it sees, under whatever name the host has for it
        (V2.format(top="/"), "0::/", {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (V2.format(top="/docker/1"), "0::/docker/1", {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        (V2.format(top="/docker/1"), "0::/docker/1/in", {"sys/fs/cgroup/in/cpu.max": "300000 100000"}, 3),
        (V2.format(top="/../1"), "0::/../2", {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        # version 1, and both beside each other
        (V1.format(top="/"), "4:memory:/m\n3:cpu,cpuacct:/c\n0::/", {
            "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "250000\n", "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1.format(top="/") + V2.format(top="/").replace("cgroup rw", "cgroup/unified rw"), "3:cpu,cpuacct:/\n0::/", {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        (V1.format(top="/docker/1"), "3:cpu,cpuacct:/docker/1", {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n"}, 2),
    ],
)  # fmt: skip
def test_a_quota_is_read_from_either_version(
    tmp_path: Path, mounts: str, memberships: str, files: dict[str, str], expected: float
) -> None:
    assert threads.quota(machine(tmp_path, mounts, memberships, files)) == expected


def test_cores_are_those_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    affinity = len(os.sched_getaffinity(0))
    for quota, expected in ((math.inf, affinity), (1000.0, affinity), (0.2, 1), (affinity - 0.5, affinity)):
        monkeypatch.setattr(threads, "quota", lambda quota=quota: quota)
        assert threads.cores() == expected
    counts = {name: None for name in threads.COUNTS}
    for name in counts:
        monkeypatch.delenv(name, raising=False)
    assert threads.environment().keys() & counts.keys() == set()  # libraries see affinity by themselves
    monkeypatch.setattr(threads, "_allowed", lambda: 8)
    monkeypatch.setattr(threads, "quota", lambda: 2.5)
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    assert {name: threads.environment()[name] for name in counts} == {
        "OMP_NUM_THREADS": "3", "NUMBA_NUM_THREADS": "3", "POLARS_MAX_THREADS": "3", "RAYON_NUM_THREADS": "7",
    }  # fmt: skip


def test_a_stage_runs_with_threads_that_sleep_while_they_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "30")  # what somebody set stays
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "name: r\nstages: {all: {kind: toy_environment, names: [GOMP_SPINCOUNT, KMP_BLOCKTIME, TOY_SETTING]}}\n"
    )
    made = flywheel.run(file, store=str(tmp_path / "store"))["all"]
    assert made.to_table()["text"].to_pylist() == ["2000", "30", "own"]  # and what the stage brings
    engine = spawn.environment()
    assert (engine["GOMP_SPINCOUNT"], engine["KMP_BLOCKTIME"]) == ("2000", "30")


def test_the_openmp_that_torch_loads_goes_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], env={**threads.environment(), "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "GOMP_SPINCOUNT = '2000'" in done.stderr
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # what somebody says of waiting is heeded whole
    assert "GOMP_SPINCOUNT" not in threads.environment()
