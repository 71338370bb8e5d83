"""What holds a sandboxed process back: set in the process itself before the first foreign line, and never lifted.

1. Namespaces of its own (user, mounts), where the kernel gives them: its folder is a small file system in memory, which bounds all
   that it writes and vanishes with it. Where not, the process that watches it looks at folder and threads (`zygote.py`).
2. Limits (CPU, memory, a file's size, open files, no core dumps), no capabilities, no new privileges.
3. Landlock (Linux 5.13): it reads the standard library and what that needs of the system, and writes below its folder alone.
4. seccomp: an allow-list of system calls (`system_calls.py`): no processes, no network, no signals, no shared memory,
   no modes, owners, times or attributes of files.

Standard library alone: this runs in an interpreter that has nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys
import sysconfig
from pathlib import Path

from generators.rules.sandbox.system_calls import seccomp_filter

OPEN_FILES = 64
ENTRIES = 1024  # files and folders
READABLE = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo",
    "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random",
)  # fmt: skip

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_READ, _WRITE, _TRUNCATE, _REFER, _IOCTL = 0b1100, 0b1_1111_1111_0010, 1 << 14, 1 << 13, 1 << 15
_LINKS_AND_DEVICES = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12  # made nowhere: devices, sockets, FIFOs, links


class Refused(OSError):
    """The kernel refuses a part of the sandbox, in words."""


def die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def own_namespaces(network: bool = False) -> bool:
    """A user namespace of one's own, and in it mounts, or network and System V's objects; whether the kernel gives them."""
    user, group = os.geteuid(), os.getegid()
    if _LIBC.unshare(_NEWUSER | (_NEWNET | _NEWIPC if network else _NEWNS)):
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def own_disk(folder: str, size: int) -> bool:
    """A file system in memory at the folder, in mounts of one's own; whether there is one."""
    if not own_namespaces():
        return False
    options = f"size={size},nr_inodes={ENTRIES},mode=0700".encode()
    return not _LIBC.mount(b"tmpfs", folder.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)


def limit(cpu_s: int, memory: int, disk: int) -> None:
    """Args: memory, disk: bytes."""
    for what, soft, hard in (
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1), (resource.RLIMIT_AS, memory, memory), (resource.RLIMIT_FSIZE, disk, disk),
        (resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES), (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (soft, hard))


def confine(folder: str, weaker: bool = False) -> list[str]:
    """Give up, for this process and for good, what a program has no business doing.

    Args:
        folder: what it may write in, and it alone.
        weaker: go on without what the kernel refuses.

    Returns:
        What the kernel refused, in words.

    Raises:
        Refused: it refused something, and `weaker` is not set.
    """
    missing = list[str]()
    for part in (_drop_capabilities, lambda: _landlock(folder), _seccomp):
        try:
            part()
        except Refused as error:
            if not weaker:
                raise
            missing.append(str(error))
    return missing


def _drop_capabilities() -> None:
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Refused("no_new_privs: a program could gain rights by starting another")
    for capability in range(64):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if _LIBC.capset(header, none):
        raise Refused("capset: a program would keep the capabilities of its user")


def _landlock(folder: str) -> None:
    version = _LIBC.syscall(444, None, 0, 1)
    if version < 1:
        raise Refused("Landlock: a program could read the files of its user and write to them")
    within = _WRITE | _TRUNCATE * (version >= 3) | _REFER * (version >= 2)
    handled = within | _READ | 1 | _IOCTL * (version >= 5)
    attributes = struct.pack(
        "QQQ", handled, 0b11 * (version >= 4), 0b11 * (version >= 6)
    )  # TCP; abstract sockets, signals
    rules = _LIBC.syscall(444, attributes, 24 if version >= 6 else 16 if version >= 4 else 8, 0)
    if rules < 0:
        raise Refused("Landlock: the kernel refuses a ruleset")
    allowed = [(folder, (within | _READ) & ~_LINKS_AND_DEVICES), ("/dev/null", _READ & ~8 | 2)]
    allowed += [(path, _READ) for path in (*READABLE, *python_folders())]
    for path, access in allowed:
        try:
            held = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not every system has each of them
        if not Path(path).is_dir():
            access &= ~0b1_1111_1111_1000 & ~_REFER  # what is for folders
        refused = _LIBC.syscall(445, rules, 1, struct.pack("=Qi", access, held), 0)
        os.close(held)
        if refused:
            raise Refused(f"Landlock: the kernel refuses a rule for {path}")
    if _LIBC.syscall(446, rules, 0):
        raise Refused("Landlock: the kernel refuses a ruleset that it made")
    os.close(rules)


def python_folders() -> list[str]:
    """Where this Python has its standard library and what that is linked to."""
    library = {sysconfig.get_path(name, vars={"platbase": sys.base_exec_prefix}) for name in ("stdlib", "platstdlib")}
    linked = [str(path) for path in (Path(sys.base_prefix) / "lib").glob("lib*.so*")]
    return sorted(map(os.path.realpath, library)) + linked


def _seccomp() -> None:
    machine = platform.machine()
    try:
        program = seccomp_filter(machine, os.getpid())
    except KeyError:
        raise Refused(f"seccomp: the numbers of the system calls of {machine} are not known") from None
    held = ctypes.create_string_buffer(program)
    if _LIBC.prctl(_PR_SET_SECCOMP, 2, struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held)), 0, 0):
        raise Refused("seccomp: a program could start others, use the network, change modes and times of files")
