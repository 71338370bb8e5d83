"""Run a program that a model wrote: with little CPU, memory and disk, no network, no other process, and nothing to write to but its own folder.

    outcome = run("print(6 * 7)", Limits(cpu_s=2))
    outcome.status, outcome.stdout            # "ok", "42\\n"

What holds it back is the kernel, not Python: rlimits (CPU, memory, file size), a seccomp filter (no sockets, no new
processes, no signals to others, no exec) and Landlock (no writing outside its folder, where the kernel has it). They are
set in the child, before the first line of the program, and can't be lifted. Wall time is the parent's: whatever of the
process group is alive when it is over is killed. It reads what its user can read, so it is for programs that are wrong
or greedy, not for a determined attacker.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNAVAILABLE = 97  # exit code of a child that could not be held back
SHOWN = 64 * 1024  # bytes of output that are kept
# Calls that are refused, by machine: number of each. `clone` is let through for threads, `tgkill` and `prlimit64` for oneself.
CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "socket": 41, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "io_uring_setup": 425, "setsid": 112, "setpgid": 109,
        "pidfd_open": 434, "pidfd_send_signal": 424, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "unshare": 272,
        "setns": 308, "mount": 165, "bpf": 321, "keyctl": 250, "clone": 56, "clone3": 435, "tgkill": 234,
        "prlimit64": 302,
    }),
    "aarch64": (0xC00000B7, {
        "socket": 198, "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "ptrace": 117,
        "process_vm_readv": 270, "process_vm_writev": 271, "io_uring_setup": 425, "setsid": 157, "setpgid": 154,
        "pidfd_open": 434, "pidfd_send_signal": 424, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "unshare": 97,
        "setns": 268, "mount": 40, "bpf": 280, "keyctl": 219, "clone": 220, "clone3": 435, "tgkill": 131,
        "prlimit64": 261,
    }),
}  # fmt: skip
CONDITIONAL = ("clone", "clone3", "tgkill", "prlimit64")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_s: seconds of CPU, of all its threads together.
        wall_s: seconds from start to end.
        memory_mb: address space, the interpreter's own 20 MB included.
        disk_mb: the largest file it may write.
    """

    cpu_s: int = 5
    wall_s: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 16


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "ok" (it ran to its last line), "failed" (an exception, or it left early), "timeout", or "memory".
        stdout, stderr: the first 64 KiB.
        seconds: wall time.
    """

    status: Literal["ok", "failed", "timeout", "memory"]
    stdout: str
    stderr: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def detail(self) -> str:
        """The last line it had to say, for a reason of rejection."""
        said = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return f"{self.status}: {said[-1][:200]}" if said else self.status


class Unsafe(RuntimeError):
    """This machine can't hold a program back (no seccomp), so none is run."""


def run(program: str | Sequence[str], limits: Limits | None = None, stdin: str = "") -> Outcome:
    """Run a Python program (standard library only) in a process of its own.

    Args:
        program: source code. Several are run one after the other in one namespace (a solution, then its tests). The
            outcome is "ok" only if the last line of the last one was reached: leaving early (`exit(0)`) is no way to
            pass.

    Raises:
        Unsafe: the kernel offers no way to keep the program from the network.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    order = {"programs": [program] if isinstance(program, str) else list(program), "token": token,
             "cpu_s": limits.cpu_s, "memory": limits.memory_mb << 20, "disk": limits.disk_mb << 20}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sandbox-") as name, contextlib.ExitStack() as opened:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        given, out, err = (opened.enter_context((folder / one).open("w+b")) for one in ("in", "out", "err"))
        given.write(stdin.encode())
        given.seek(0)
        # The source goes through a socket, so that no file holds the tests for the solution to read.
        ours, theirs = (opened.enter_context(one) for one in socket.socketpair())
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(Path(__file__).resolve()), str(theirs.fileno())],
            stdin=given, stdout=out, stderr=err, cwd=work, pass_fds=(theirs.fileno(),), start_new_session=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(work), "TMPDIR": str(work), "LANG": "C.UTF-8"},
        )  # fmt: skip
        theirs.close()
        late = False
        try:
            ours.settimeout(limits.wall_s)
            with contextlib.suppress(OSError):  # it is gone before it has read everything: its exit code tells
                ours.sendall(json.dumps(order).encode())
                ours.shutdown(socket.SHUT_WR)
            process.wait(max(0.0, limits.wall_s - (time.monotonic() - started)))
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        seconds = time.monotonic() - started
        said = b""
        with contextlib.suppress(OSError):
            said = ours.recv(64)
        shown = list[str]()
        for file in (out, err):
            file.seek(0)
            shown.append(file.read(SHOWN).decode("utf-8", "replace"))
    if code == UNAVAILABLE:
        raise Unsafe(f"programs can't be run safely on this machine: {shown[1].strip()}")
    if code == 0 and said == token.encode():
        return Outcome("ok", shown[0], shown[1], seconds)
    if late or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome("timeout", shown[0], shown[1], seconds)
    if "MemoryError" in shown[1]:
        return Outcome("memory", shown[0], shown[1], seconds)
    early = "" if code else "it left before its last line\n"
    return Outcome("failed", shown[0], shown[1] + early, seconds)


def run_all(programs: Sequence[str | Sequence[str]], limits: Limits | None = None, workers: int = 0) -> list[Outcome]:
    """`run` each, several at once (0: one a core), in order."""
    from engine.execution.threads import cores  # the child runs this file without this project on its path

    with ThreadPoolExecutor(workers or cores()) as pool:
        return list(pool.map(lambda program: run(program, limits), programs))


# -- in the child ----------------------------------------------------------------------------------------------------------


def _child(fd: int) -> None:
    control = socket.socket(fileno=fd)
    control.set_inheritable(False)
    data = b""
    while chunk := control.recv(1 << 16):
        data += chunk
    order = json.loads(data)
    for what, soft, hard in (
        (resource.RLIMIT_CPU, order["cpu_s"], order["cpu_s"] + 1), (resource.RLIMIT_AS, *2 * [order["memory"]]),
        (resource.RLIMIT_FSIZE, *2 * [order["disk"]]), (resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_NOFILE, 64, 64),
    ):  # fmt: skip
        resource.setrlimit(what, (soft, hard))
    try:
        _hold_back()
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(UNAVAILABLE)
    space = {"__name__": "__main__", "__builtins__": __builtins__, "exit": sys.exit, "quit": sys.exit}
    for number, source in enumerate(order["programs"]):
        exec(compile(source, f"program {number}" if number else "program", "exec"), space)
    sys.stdout.flush()
    control.sendall(order["token"].encode())


def _hold_back() -> None:
    """Give up, for this process and for good, what a program has no business doing.

    Raises:
        OSError: there is no seccomp here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError("the kernel refuses PR_SET_NO_NEW_PRIVS")
    # Landlock (Linux 5.13): writing, making and removing, only below the current folder. Bits 13 and 14 came later.
    version = libc.syscall(444, None, 0, 1)
    if version >= 1:
        changes = 0b1_1111_1111_0010 | (version >= 2) << 13 | (version >= 3) << 14
        rules = libc.syscall(444, struct.pack("Q", changes), 8, 0)
        for path, allowed in ((".", changes), ("/dev/null", 0b10)):
            held = os.open(path, os.O_PATH | os.O_CLOEXEC)
            libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, held), 0)
            os.close(held)
        if libc.syscall(446, rules, 0):
            raise OSError("the kernel refuses a Landlock ruleset that it made")
        os.close(rules)
    if platform.machine() not in CALLS:
        raise OSError(f"the numbers of the system calls of {platform.machine()} are not known")
    program = _filter(*CALLS[platform.machine()], os.getpid())
    held_by = ctypes.create_string_buffer(program)
    if libc.prctl(22, 2, struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held_by)), 0, 0):  # PR_SET_SECCOMP
        raise OSError("the kernel has no seccomp filters")


def _filter(arch: int, numbers: dict[str, int], pid: int) -> bytes:
    """The seccomp filter as classic BPF: code, jump if true, jump if false, operand."""
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse, missing = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # EPERM, ENOSYS
    nr, architecture, first_argument = 0, 4, 16  # offsets in `struct seccomp_data`
    code = [(load, 0, 0, architecture), (equal, 1, 0, arch), (answer, 0, 0, kill), (load, 0, 0, nr)]
    code += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse)]  # another numbering of the same calls (x32)
    for name, number in numbers.items():
        if name not in CONDITIONAL:
            code += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    code += [(equal, 0, 1, numbers["clone3"]), (answer, 0, 0, missing)]  # libc then takes `clone`, whose flags are seen
    code += [(equal, 0, 4, numbers["clone"]), (load, 0, 0, first_argument), (any_bit, 0, 1, 0x10000)]  # CLONE_THREAD
    code += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    for name, own in (("tgkill", pid), ("prlimit64", 0)):
        code += [(equal, 0, 4, numbers[name]), (load, 0, 0, first_argument), (equal, 0, 1, own)]
        code += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    code.append((answer, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *line) for line in code)


if __name__ == "__main__":
    _child(int(sys.argv[1]))
