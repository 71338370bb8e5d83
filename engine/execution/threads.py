"""How many cores this process may use, and how the threads of numeric libraries share them.

A library starts a thread a core of the machine. In a container with a quota that is too many: they use it up together and
then stand still together. And a thread that waits for the others of its team spins, for milliseconds, on a core that
another process would use: for many small operations, on a machine that has other work, that is most of what it does, and
since the others of its team wait for that core, too, each waits for all. A thread that sleeps gives its core away.

Sleeping at once costs a machine that has nothing else to do a third of its speed on small models; spinning for some microseconds first
costs neither: a training step of 1.3M weights took 130 ms alone (130 with libgomp's 300,000 rounds, 171 without any), and .93 s beside
six busy processes on two cores (3.0 and .92). How a thread waits changes no byte of a result.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

# OpenMP's own names, which torch, MKL, oneDNN, OpenBLAS and vLLM go by, and those of the libraries that don't.
WAITING = {
    "GOMP_SPINCOUNT": "2000",  # GNU's OpenMP: rounds of a loop before a thread that waits goes to sleep
    "KMP_BLOCKTIME": "0",  # LLVM's and Intel's: milliseconds
}
COUNTS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")


def cores() -> int:
    """Cores that this process may use at once: those it may run on, and no more than its cgroups' quota, rounded up."""
    return max(1, math.ceil(min(_allowed(), quota())))


def environment() -> dict[str, str]:
    """What a process of ours starts with: `os.environ`, and where that says nothing, threads that share the machine.

    The number of threads is left to the libraries, which heed affinity, unless there is a quota, which not all of them heed.
    """
    counts = dict.fromkeys(COUNTS, str(cores())) if cores() < _allowed() else {}
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else WAITING
    return {**waiting, **counts, **os.environ}


def quota(root: Path = Path("/")) -> float:
    """Cores' worth of CPU time that this process's cgroups and all above them allow; infinite where none says.

    Version 2 says `cpu.max` ("150000 100000", or "max"), version 1 `cpu.cfs_quota_us` (or -1) and `cpu.cfs_period_us`.

    Args:
        root: where /proc and /sys are.
    """
    least = math.inf
    for folder in groups(root, "cpu"):
        try:
            if (both := folder / "cpu.max").exists():
                most, period = both.read_text().split()
            else:
                most, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            least = min(least, int(most) / int(period)) if most.strip() not in ("max", "-1") else least
        except (OSError, ValueError):  # this one limits no CPU time
            continue
    return least


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def groups(root: Path, controller: str) -> list[Path]:
    """The folders of the cgroups that this process is in and of those above them, as far as they can be seen from here
    (proc(5), cgroups(7)).

    Args:
        controller: what of version 1 counts ("cpu", "memory"); version 2 has one for all.
    """
    try:
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return []
    groups = {(names or "cgroup2"): path for _, names, path in (line.split(":", 2) for line in memberships)}
    folders: list[Path] = []
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        top, place = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        for names, path in groups.items():
            if kind == "cgroup2" == names or (
                kind == "cgroup" and controller in names.split(",") and controller in options.split(",")
            ):
                inside = Path(path)
                # In a container the mount's top may be the group itself, or the path one that only the host has.
                below = inside.relative_to(top) if inside.is_relative_to(top) else Path()
                shown = root / place.lstrip("/")
                folders += [shown / below, *(shown / above for above in below.parents)]
    return folders
