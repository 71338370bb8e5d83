"""Kills by progress: as many as are asked for, wherever they fall and however fast the work is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.parts.moments import Moment, Moments

WORK = """
import pathlib, subprocess, sys
store = pathlib.Path(sys.argv[1])
if sys.argv[2:]:
    for i in range(5):
        done = store / f"{i}"
        if not done.exists():
            partial = store / "partial"
            partial.write_text("x")
            partial.open("a").close()
            partial.replace(done)
    print("worked")
else:
    store.mkdir(exist_ok=True)
    code = subprocess.run([sys.executable, __file__, str(store), "stage"]).returncode
    (store / "partial").write_text("x")
    (store / "partial").replace(store / "run")
    sys.exit(code)
"""


def run(moments: Moments) -> tuple[int, str]:
    script = moments.folder / "work.py"
    script.write_text(WORK)
    command = [sys.executable, str(script), str(moments.store)]
    env = {**os.environ, **moments.environment}
    done = subprocess.run(command, env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def test_every_moment_of_a_run_comes(tmp_path: Path) -> None:
    calm, stormy = Moments(tmp_path / "a", tmp_path / "calm"), Moments(tmp_path / "b", tmp_path / "stormy")
    assert run(calm) == (0, "worked\n")
    assert calm.trace == b"s" + 5 * b"..r" + b".r"  # the stage's two openings and rename each; the command's own
    moments = calm.draw(17, seed=1)
    assert moments == [*(Moment(r, t) for r in range(5) for t in range(3)), Moment(5, 0), Moment(5, 1)]
    with pytest.raises(ValueError, match="larger than population"):
        calm.draw(18, seed=1)
    assert calm.draw(5, seed=2) == calm.draw(5, seed=2) != calm.draw(5, seed=3)
    for moment in moments:
        stormy.arm(moment)
        assert run(stormy)[0] == -signal.SIGKILL
    assert stormy.kills == 17 and not (stormy.store / "run").exists()
    stormy.arm(None)
    assert run(stormy) == (0, "worked\n") and stormy.kills == 17
    assert {file.name for file in stormy.store.iterdir()} == {*"01234", "run"}


@pytest.mark.parametrize(
    ("victims", "code", "said", "left"),
    [
        ("stage", 247, "", {"0", "run"}),  # the command lives on and passes the stage's -9 on
        ("command", -9, "worked\n", {*"01234"}),  # the stage lives on
        ("both", -9, "", {"0", "partial"}),
        ("group", -9, "", {"0", "partial"}),
    ],
)
def test_who_is_killed(tmp_path: Path, victims: str, code: int, said: str, left: set[str]) -> None:
    moments = Moments(tmp_path / "moments", tmp_path / "store")
    moments.arm(Moment(1, 1), victims)
    assert run(moments) == (code, said)
    assert moments.kills == 1
    assert {file.name for file in moments.store.iterdir()} == left
