"""A disk that is full, or can be read only, while a stage works: a small file system of its own for the store (needs root)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tests.faults.ground import Ground, Trial
from tests.faults.outcome import Outcome

Remount = Callable[[str], None]
FREE = {"full at once": 0, "full soon": 12 << 10, "full later": 40 << 10}


def possible() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def full(ground: Ground, stage: str, when: str) -> Outcome:
    """No space is left: words. With space it goes on, to the same digests."""
    fault, kind = f"disk {when}", ground.kind_of[stage]
    with ground.trial(stage) as trial, _mounted(trial) as mount:
        used = int(subprocess.run(["df", "--output=used", "-B1", trial.store], capture_output=True, text=True, check=True)
                   .stdout.splitlines()[1])  # fmt: skip
        mount(f"size={(used + FREE[when] + 4095) // 4096 * 4096}")
        code = trial.command()
        words = any(told in trial.said.lower() for told in ("no space", "full", "disk i/o error"))
        mount("size=2g")
        return _told(fault, kind, trial, code, words)


def read_only(ground: Ground, stage: str) -> Outcome:
    """Nothing can be written: words. Once it can, it goes on."""
    fault, kind = "read-only store", ground.kind_of[stage]
    with ground.trial(stage) as trial, _mounted(trial) as mount:
        mount("ro")
        code = trial.command()
        words = "read-only" in trial.said.lower()
        mount("rw")
        return _told(fault, kind, trial, code, words)


def _told(fault: str, kind: str, trial: Trial, code: int, words: bool) -> Outcome:
    if "Traceback (most recent call last)" in trial.said:
        return Outcome(fault, kind, "traceback", trial.said[-1500:])
    if code == 0:
        came, detail = trial.judge(code)
        return Outcome(fault, kind, "unhurt" if came == "same" else came, detail)
    if not words:
        return Outcome(fault, kind, "silent", trial.said[-800:])
    came, detail = trial.finish()
    return Outcome(fault, kind, "told" if came == "same" else came, detail)


@contextmanager
def _mounted(trial: Trial) -> Generator[Remount]:
    """The store on a file system of its own, in memory."""
    aside = trial.folder / "filled"
    trial.store.rename(aside)
    trial.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "faults", trial.store], check=True)
    subprocess.run(["cp", "-a", f"{aside}/.", trial.store], check=True)

    def mount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", trial.store], check=True)

    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", trial.store], check=True)
