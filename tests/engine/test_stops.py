"""Signals, closed terminals and pipes: children end, what is done stays, one line says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.store.store import Store
from tests.engine.running import COMMAND, Ledger, all_gone, slow_recipe, start, until


def test_a_stopped_run_ends_its_children_says_how_to_go_on_and_goes_on(tmp_path: Path) -> None:
    slow_recipe(tmp_path, pause=0.3)
    ledger, seen = Ledger(tmp_path / "ledger"), 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        run = start(
            tmp_path, "run", "slow.yaml", start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests themselves may run under `nohup`
        )  # fmt: skip
        until(lambda seen=seen: len(ledger.parts) > seen)
        seen = len(ledger.parts)
        os.killpg(run.pid, number)  # as a terminal does, and systemd
        said = run.communicate()[1]
        assert run.returncode == 128 + number, said
        told = f"flywheel: stopped by {number.name}; what is done is kept: `flywheel run slow.yaml` goes on from here\n"
        assert said.endswith(told) and "Traceback" not in said and "failed" not in said
        until(lambda: all_gone(ledger.pids))
    assert start(tmp_path, "run", "slow.yaml").wait() == 0
    assert set(ledger.parts) == {f"{i:05d}{name[5:]}" for i, name in enumerate(sorted(set(ledger.parts)))}
    assert len(set(ledger.parts)) == 6
    store = Store(str(tmp_path / "store"))
    assert store.find("slow/loud").rows == 23
    assert not list(Path(store.path("work")).iterdir()) and not store.list("tmp")


def test_a_run_that_waits_for_another_is_stopped_too(tmp_path: Path) -> None:
    slow_recipe(tmp_path, pause=60)
    first = start(tmp_path, "run", "slow.yaml")
    until(lambda: list((tmp_path / "store" / "work").glob("toy_shout*.lock")))
    second = start(tmp_path, "run", "slow.yaml", stderr=(tmp_path / "said").open("w"))
    until(lambda: "waits for" in (tmp_path / "said").read_text())
    second.send_signal(signal.SIGTERM)
    assert second.wait() == 143 and "stopped by SIGTERM" in (tmp_path / "said").read_text()
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode == 130


def test_nohup_goes_on_when_the_terminal_is_closed(tmp_path: Path) -> None:
    slow_recipe(tmp_path)
    ledger = Ledger(tmp_path / "ledger")
    run = start(tmp_path, "run", "slow.yaml", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    until(lambda: ledger.parts)
    run.send_signal(signal.SIGHUP)
    run.communicate()
    assert run.returncode == 0


SCRIPT = """
import sys, time
from engine.execution import stops
stops.PATIENCE_S = int(sys.argv[2])
stops.listen()
if sys.argv[1] == "busy":
    stops.begin(lambda name: f"stopped by {name}; it goes on")
try:
    print("ready", flush=True)
    time.sleep(600)
finally:
    print("closing", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(("when", "signals"), [("importing", 1), ("busy", 2), ("busy", 1)])
def test_while_it_imports_told_twice_or_out_of_patience_a_process_says_so_and_ends(when: str, signals: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, when, str(60 if signals == 2 else 1)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    if signals == 2:
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert said == f"flywheel: stopped by SIGTERM{'.' if when == 'importing' else '; it goes on'}\n"


def test_whoever_stops_reading_is_no_error(tmp_path: Path) -> None:
    slow_recipe(tmp_path, pause=0)
    read, write = os.pipe()
    os.close(read)
    for arguments in (["stages"], ["run", "slow.yaml", "--json"], ["show", "slow/loud"], ["show", "nothing"]):
        done = start(tmp_path, *arguments, stdout=write, stderr=write if "nothing" in arguments else subprocess.PIPE)
        said = done.communicate()[1]
        assert done.returncode == (2 if "nothing" in arguments else 0) and not said, (arguments, said)
    os.close(write)
    assert Store(str(tmp_path / "store")).find("slow/loud").rows == 23


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_output_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "stages"], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "no space left" in done.stderr and "Traceback" not in done.stderr


def test_closed_streams_are_no_files(tmp_path: Path) -> None:
    command = " ".join([f"'{word}'" for word in COMMAND])
    done = subprocess.run(["sh", "-c", f"{command} stages <&- >&- 2>&-"], cwd=tmp_path)
    assert done.returncode == 0


def test_what_is_meant_to_outlive_a_run_does() -> None:
    """The Argilla server of this machine, which a stage may start."""
    script = """if True:
        import os, subprocess
        from engine.execution import keeper
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        ends = subprocess.Popen(["sleep", "600"], **nowhere)
        stays = subprocess.Popen(["sleep", "600"], env={**os.environ, keeper.OUTLIVES: "1"}, **nowhere)
        keeper.end_children()
        print(ends.pid, stays.pid)
    """
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    ends, stays = map(int, said.split())
    assert all_gone({ends}) and not all_gone({stays})
    os.kill(stays, signal.SIGKILL)
