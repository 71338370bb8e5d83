"""A program that misbehaves is stopped by the kernel, and told apart from one that is right. Where the kernel refuses, none is run."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from engine import doctor
from generators.judge.stage import Judge
from generators.rules.sandbox import programs as sandbox
from generators.rules.sandbox.programs import Limits, grade, run, together

QUICK = Limits(cpu_s=1, wall_s=5, memory_mb=128)
ROOT = Path(__file__).parents[3]


def elsewhere(parts: str, code: str) -> str:
    """What code prints on a machine whose kernel refuses these parts."""
    command = [sys.executable, "-m", "tests.generators.rules.refusing_kernel", *parts.split(), "--", code]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_what_it_says_comes_back() -> None:
    made = run("import sys, math\nprint(math.comb(10, 3), sys.stdin.read())", stdin="given")
    assert (made.status, made.stdout) == ("ok", "120 given\n")


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("while True: pass", "timeout", ""),
        ("x = bytearray(1 << 30)", "memory", "MemoryError"),
        ("assert 1 == 2, 'no'", "failed", "AssertionError: no"),
        ("def f(:", "failed", "SyntaxError"),
        ("exit(0)", "failed", "left before its last line"),
        ("import os; os._exit(0)", "failed", "left before its last line"),
        ("import os; os.fork()", "failed", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "failed", "PermissionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))", "failed", "ValueError"),
        ("open('big', 'wb').write(b'x' * (32 << 20))", "failed", "File too large"),
        ("import os; print(os.environ['SECRET'])", "failed", "KeyError"),
        ("import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(9,)).start()\ntime.sleep(9)", "failed", "threads"),
    ],
)  # fmt: skip
def test_misbehaviour(program: str, status: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "token")
    limits = Limits(cpu_s=1, wall_s=5, memory_mb=2048) if says == "threads" else QUICK
    made = run(program, limits)
    assert made.status == status and says in made.stderr, made


def test_no_connection_reaches_a_server_that_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        direct = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert run(direct).status == "failed"
        with pytest.raises(TimeoutError):
            server.accept()


def test_honest_programs_have_what_they_need() -> None:
    programs = [
        "open('own', 'w').write('x'); assert open('own').read() == 'x'",
        "import shutil; open('a', 'w').write('x'); shutil.copy2('a', 'b'); assert open('b').read() == 'x'",
        "import tempfile, os\nwith tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').close()\nassert os.listdir('.') == []",
        "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
        "from concurrent.futures import ThreadPoolExecutor as P\nassert list(P(4).map(abs, [-1])) == [1]",
        "import signal, os\nsignal.signal(signal.SIGUSR1, lambda *a: print('hit'))\nos.kill(os.getpid(), signal.SIGUSR1)",
        "import sqlite3\nsqlite3.connect('db').execute('create table t(x)')",
        "import zoneinfo, ssl, zlib, lzma, bz2, hashlib, decimal, xml.etree.ElementTree, email, csv, logging",
        "import mmap, os\nfd = os.open('m', os.O_CREAT | os.O_RDWR)\nos.ftruncate(fd, 4096)\nmmap.mmap(fd, 4096)[0] = 1",
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return n and f(n - 1)\nassert f(9000) == 0",
        "import time, random, uuid, secrets\ntime.sleep(.01); secrets.token_hex(); uuid.uuid4()",
        "import os\nassert os.listdir('.') == [] and os.getcwd()",
    ]
    outcomes = together([partial(run, program) for program in programs])
    assert [(program, made.stderr) for program, made in zip(programs, outcomes, strict=True) if not made.ok] == []


def test_nothing_is_left_of_a_program() -> None:
    places = (Path("/tmp"), Path("/dev/shm"))
    assert run("pass").ok
    before = {one for place in places for one in place.glob("sandbox-*")}
    assert run("for i in range(99): open(str(i), 'w').write('x')").ok
    assert not [one for one in before if one.exists() and any(one.iterdir())]
    assert run("import os; assert os.listdir('.') == []").ok


@pytest.mark.parametrize("refused", ["landlock", "seccomp"])
def test_where_the_kernel_refuses_a_part_nothing_is_run_unless_told(refused: str) -> None:
    code = """
from generators.rules.sandbox import programs as sandbox
from generators.rules.verify import verify
from engine.errors import UserError
print(sandbox.missing()[0])
for weaker in (False, True):
    try:
        print(sandbox.run("print(6 * 7)", weaker=weaker).stdout, sandbox.grade("x = 1", "assert x == 1", weaker=weaker).status)
    except sandbox.Unsafe as error:
        print("not run:", error)
try:
    verify("code", ["x = 1"], ["assert x == 1"])
except UserError as error:
    print("told:", error)
print(verify("code", ["x = 1"], ["assert x == 1"], weaker=True), sandbox.examine())
"""
    said = elsewhere(refused, code).splitlines()
    part = {"landlock": "Landlock: a program could read the files", "seccomp": "seccomp: a program could start others"}
    assert part[refused] in said[0]
    assert said[1].startswith("not run: this machine's kernel refuses a part of the sandbox: ") and "42" in said[2]
    assert said[3].strip() == "ok" and said[4].startswith(
        "told: the verifier `code` runs what a model wrote, and this machine's"
    )
    assert said[5].startswith("[1.0] (") and "`sandbox: weaker`" in said[5] and said[5].endswith("None)")


def test_without_namespaces_disk_and_threads_are_watched() -> None:
    code = """
from generators.rules.sandbox.programs import Limits, run, missing
limits = Limits(cpu_s=5, wall_s=9, memory_mb=2048, disk_mb=4)
print(missing())
print(run("import time\\nfor i in range(8):\\n with open(str(i), 'wb') as f: f.write(bytes(3 << 20))\\ntime.sleep(8)", limits).detail)
print(run("import time\\nfor i in range(3000): open(str(i), 'w').close()\\ntime.sleep(8)", limits).detail)
print(run("open('x', 'w').write('x'); print(open('x').read())", limits).stdout)
"""
    said = elsewhere("namespaces", code).splitlines()
    assert said[:4] == ["()", "failed: it used too much: disk", "failed: it used too much: disk", "x"]


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_in_bubblewrap_other_files_are_not_even_there() -> None:
    if not sandbox.bubblewrap():
        pytest.skip("bubblewrap does not work here")
    made = run(f"import os\nprint(os.path.exists({str(ROOT / 'pyproject.toml')!r}), os.path.exists('/etc/passwd'))")
    assert made.stdout == "False False\n"


def test_without_bubblewrap_the_same_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: ())
    monkeypatch.setattr(sandbox, "FORKS", sandbox.Forks())
    try:
        for file in (ROOT / "pyproject.toml", Path("/etc/passwd"), Path("/proc/self/environ")):
            assert "PermissionError" in run(f"open({str(file)!r})").stderr
        assert grade("def f(): return 1", "assert f() == 1").ok
    finally:
        sandbox.FORKS.close()


def test_the_doctor_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_gpu", lambda: ("not asked, for that takes seconds", None))
    (line,) = [finding for finding in doctor.examine() if finding["what"] == "sandbox"]
    assert line["ok"] is True and line["found"].startswith("holds everything")


def test_how_programs_are_run_is_no_identity_and_which_sandbox_is() -> None:
    whole, weaker = (
        Judge.model_validate(
            {"rules": {"works": {"kind": "tests", "sandbox": how}}, "verifiers": ["code"], "sandbox": how}
        )
        for how in ("whole", "weaker")
    )
    assert whole.identity() == weaker.identity() and "sandbox" not in str(whole.identity())
    assert "programs" in whole.identity() and "programs" not in Judge.model_validate({"verifiers": ["json"]}).identity()


def test_who_is_killed_takes_its_programs_along() -> None:
    code = "from generators.rules.sandbox.programs import Limits, run\nprint(1, flush=True)\nrun('import time\\ntime.sleep(50)', Limits(wall_s=60))"
    who = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert who.stdout and who.stdout.readline() == b"1\n"
    deadline = time.monotonic() + 20
    while not (children := _descendants(who.pid)) or len(children) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    who.send_signal(signal.SIGKILL)
    who.wait()
    who.stdout.close()
    while alive := [pid for pid in children if _alive(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    found = list[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
