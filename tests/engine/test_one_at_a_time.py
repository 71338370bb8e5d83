"""Two runs at once, a run whose parts are killed alone, and a worker that comes back after another took over."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import flywheel
from engine.store.store import Store
from tests.engine.running import Ledger, all_gone, slow_recipe, start, until


def undisturbed(folder: Path) -> str:
    """The digest of what the slow recipe makes."""
    folder.mkdir()
    return flywheel.run(slow_recipe(folder, pause=0), store=str(folder / "store"))["loud"].digest


def test_a_second_run_waits_says_for_whom_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    slow_recipe(tmp_path)
    slow_recipe(tmp_path, "other")  # another recipe, the same stages
    ledger = Ledger(tmp_path / "ledger")
    first = start(tmp_path, "run", "slow.yaml")
    until(lambda: ledger.parts)
    second = start(tmp_path, "run", "other.yaml")
    third = start(tmp_path, "run", "slow.yaml", "--no-wait")
    refused = third.communicate()[1]
    assert third.returncode == 1 and "is making toy_shout-" in refused and "Traceback" not in refused
    assert f"(process {first.pid} on {os.uname().nodename}, since " in refused
    waited = second.communicate()[1]
    assert second.returncode == 0 and first.wait() == 0
    assert re.search(rf"waits for `flywheel run slow\.yaml` \(process {first.pid} on ", waited), waited
    assert re.search(r"loud .*cached, 23 rows", waited)
    assert len(ledger.parts) == len(set(ledger.parts)) == 6
    store = Store(str(tmp_path / "store"))
    assert {store.find(f"{run}/loud").id for run in ("slow", "other")} == {store.find("slow/loud").id}
    assert not list(Path(store.path("work")).iterdir())


def test_a_run_that_is_killed_alone_leaves_no_process_and_the_next_goes_on(tmp_path: Path) -> None:
    slow_recipe(tmp_path)
    ledger = Ledger(tmp_path / "ledger")
    for victim in ("run", "worker", "keeper"):
        before = len(ledger.parts)
        run = start(tmp_path, "run", "slow.yaml", start_new_session=True)
        until(lambda before=before: len(ledger.parts) > before)
        worker = ledger.worker
        keeper = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill({"run": run.pid, "keeper": keeper, "worker": worker}[victim], signal.SIGKILL)
        said = run.communicate()[1]
        assert run.returncode == (-signal.SIGKILL if victim == "run" else 1), said
        if victim != "run":
            assert "was killed (SIGKILL). The kernel does so where memory runs out" in said and "Traceback" not in said
        until(lambda worker=worker, keeper=keeper: all_gone({worker, keeper}))
        until(lambda: all_gone(ledger.pids))
    assert start(tmp_path, "run", "slow.yaml").wait() == 0
    made = Store(str(tmp_path / "store")).find("slow/loud")
    assert made.digest == undisturbed(tmp_path / "calm") and made.verify() == []


def test_a_worker_that_stood_still_while_another_took_over_is_refused(tmp_path: Path) -> None:
    slow_recipe(tmp_path)
    ledger = Ledger(tmp_path / "ledger")
    first = start(tmp_path, "run", "slow.yaml")
    until(lambda: ledger.parts)
    zombie = ledger.worker
    os.kill(zombie, signal.SIGSTOP)
    store = Store(str(tmp_path / "store"))
    (lock,) = Path(store.path("work")).glob("toy_shout*.lock")
    folder = lock.stem
    lock.unlink()
    second = start(tmp_path, "run", "slow.yaml")
    assert second.wait() == 0
    made = store.find("slow/loud")
    files = {name: (made.path / name).stat().st_mtime_ns for name in store.walk("artifacts", folder)}
    os.kill(zombie, signal.SIGCONT)
    said = first.communicate()[1]
    assert first.returncode == 1 and "this process lost its turn: another run has taken over" in said, said
    assert "Traceback" not in said
    assert {name: (made.path / name).stat().st_mtime_ns for name in store.walk("artifacts", folder)} == files
    assert made.verify() == [] and made.digest == undisturbed(tmp_path / "calm")
    assert "failed" not in (store.run("slow") or {}) and not store.list("tmp")
