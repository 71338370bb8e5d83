"""A program that misbehaves is stopped by the kernel, and told apart from one that is right."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from generators.rules.sandbox import Limits, run, run_all

QUICK = Limits(cpu_s=1, wall_s=3, memory_mb=128)


def test_what_it_says_comes_back() -> None:
    made = run("import sys, math\nprint(math.comb(10, 3), sys.stdin.read())", stdin="given")
    assert (made.status, made.stdout) == ("ok", "120 given\n")


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("while True: pass", "timeout", ""),
        ("import time; time.sleep(60)", "timeout", ""),
        ("x = bytearray(1 << 30)", "memory", "MemoryError"),
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("def f(:", "failed", "SyntaxError"),
        ("exit(0)", "failed", "left before its last line"),
        ("import os; os._exit(0)", "failed", "left before its last line"),
        ("import socket; socket.socket()", "failed", "PermissionError"),
        ("import urllib.request as u; u.urlopen('http://127.0.0.1:1')", "failed", "Operation not permitted"),
        ("import os; os.fork()", "failed", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "failed", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "failed", "PermissionError"),
        ("import os; os.kill(os.getppid(), 0)", "failed", "PermissionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))", "failed", "ValueError"),
        ("open('big', 'wb').write(b'x' * (32 << 20))", "failed", "File too large"),
        ("import os; print(os.environ['SECRET'])", "failed", "KeyError"),
    ],
)
def test_misbehaviour(program: str, status: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    started = time.monotonic()
    made = run(program, QUICK)
    assert made.status == status and says in made.stderr, made
    assert time.monotonic() - started < 5


def test_no_connection_reaches_a_server_that_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        direct = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
        by_number = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall({41 if __import__("platform").machine() == "x86_64" else 198}, 2, 1, 0) == -1
assert ctypes.get_errno() == 1
"""
        assert run(direct).status == "failed" and run(by_number).ok
        with pytest.raises(TimeoutError):
            server.accept()


def test_it_writes_to_its_own_folder_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("here")
    assert run("open('own', 'w').write('x'); assert open('own').read() == 'x'").ok
    for program in (f"open({str(kept)!r}, 'w')", f"import os; os.remove({str(kept)!r})", "open('/tmp/escaped', 'w')"):
        assert "PermissionError" in run(program).stderr
    assert kept.read_text() == "here" and not Path("/tmp/escaped").exists()


def test_threads_run_and_tests_see_the_solution() -> None:
    assert run("from concurrent.futures import ThreadPoolExecutor as P\nassert list(P(4).map(abs, [-1])) == [1]").ok
    solution = "def double(x): return 2 * x"
    right, wrong, early = run_all(
        [[solution, "assert double(2) == 4"], [solution, "assert double(2) == 5"], ["exit(0)", "assert False"]]
    )
    assert [right.status, wrong.status, early.status] == ["ok", "failed", "failed"]
    assert wrong.detail == "failed: AssertionError"
