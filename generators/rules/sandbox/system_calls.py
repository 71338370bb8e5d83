"""The system calls of a sandboxed program, and the filter that lets nothing else through.

An allow-list: what is not named here is refused with EPERM, so that a call which a later kernel brings is refused, too; calls from
424 on, where the numbers of all machines are the same, with ENOSYS, since libc then takes the older one. Some are looked at:

- `open`, `openat`: no truncation of a file that is opened for reading, which old Landlock does not see
- `clone`: threads alone; `kill`, `tgkill`: oneself alone; `prlimit64`: one's own limits alone
- `prctl`: names of threads; `ioctl`, `fcntl`: what the standard library asks; `socketpair`: streams, which reach nobody; `sendto`: no address
- modes and times of files (`chmod`, `utimensat`, ...) are answered with 0 and left as they are, so that `shutil.copy` works;
  their extended attributes are not there

Numbers: Linux's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (arm64).
"""

from __future__ import annotations

import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED: dict[str, dict[str, int]] = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
        "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
        "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23,
        "sched_yield": 24, "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28, "dup": 32, "dup2": 33,
        "pause": 34, "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "getpid": 39, "recvfrom": 45,
        "shutdown": 48, "getsockname": 51, "getpeername": 52, "getsockopt": 55, "exit": 60, "uname": 63, "flock": 73,
        "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82,
        "mkdir": 83, "rmdir": 84, "unlink": 87, "readlink": 89, "umask": 95, "gettimeofday": 96, "getrlimit": 97,
        "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
        "getppid": 110, "getpgrp": 111, "getpgid": 121, "getgroups": 115, "getsid": 124, "getresuid": 118,
        "getresgid": 120, "capget": 125, "sigaltstack": 131, "rt_sigpending": 127, "rt_sigtimedwait": 128,
        "rt_sigsuspend": 130, "statfs": 137, "fstatfs": 138, "getpriority": 140, "sched_getparam": 143,
        "sched_getscheduler": 145, "sched_get_priority_max": 146, "sched_get_priority_min": 147,
        "sched_getaffinity": 204, "arch_prctl": 158, "gettid": 186, "futex": 202, "time": 201, "getdents": 78,
        "getdents64": 217, "set_tid_address": 218, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229,
        "clock_nanosleep": 230, "exit_group": 231, "epoll_create": 213, "epoll_create1": 291, "epoll_wait": 232,
        "epoll_ctl": 233, "epoll_pwait": 281, "epoll_pwait2": 441, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263,
        "renameat": 264, "renameat2": 316, "readlinkat": 267, "faccessat": 269, "faccessat2": 439, "pselect6": 270,
        "ppoll": 271, "set_robust_list": 273, "get_robust_list": 274, "eventfd2": 290, "dup3": 292, "pipe2": 293,
        "preadv": 295, "pwritev": 296, "getcpu": 309, "getrandom": 318, "membarrier": 324, "copy_file_range": 326,
        "sendfile": 40, "statx": 332, "rseq": 334, "close_range": 436, "fallocate": 285,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "mmap": 222, "mprotect": 226, "munmap": 215,
        "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "pread64": 67, "pwrite64": 68,
        "readv": 65, "writev": 66, "sched_yield": 124, "mremap": 216, "msync": 227, "mincore": 232, "madvise": 233,
        "dup": 23, "nanosleep": 101, "getitimer": 102, "setitimer": 103, "getpid": 172, "recvfrom": 207,
        "shutdown": 210, "getsockname": 204, "getpeername": 205, "getsockopt": 209, "exit": 93, "uname": 160,
        "flock": 32, "fsync": 82, "fdatasync": 83, "ftruncate": 46, "getcwd": 17, "chdir": 49, "fchdir": 50,
        "umask": 166, "gettimeofday": 169, "getrlimit": 163, "getrusage": 165, "sysinfo": 179, "times": 153,
        "getuid": 174, "getgid": 176, "geteuid": 175, "getegid": 177, "getppid": 173, "getpgid": 155,
        "getgroups": 158, "getsid": 156, "getresuid": 148, "getresgid": 150, "capget": 90, "sigaltstack": 132,
        "rt_sigpending": 136, "rt_sigtimedwait": 137, "rt_sigsuspend": 133, "statfs": 43, "fstatfs": 44,
        "getpriority": 141, "sched_getparam": 121, "sched_getscheduler": 120, "sched_get_priority_max": 125,
        "sched_get_priority_min": 126, "sched_getaffinity": 123, "gettid": 178, "futex": 98, "getdents64": 61,
        "set_tid_address": 96, "fadvise64": 223, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
        "exit_group": 94, "epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "epoll_pwait2": 441, "mkdirat": 34,
        "newfstatat": 79, "unlinkat": 35, "renameat": 38, "renameat2": 276, "readlinkat": 78, "faccessat": 48,
        "faccessat2": 439, "pselect6": 72, "ppoll": 73, "set_robust_list": 99, "get_robust_list": 100, "eventfd2": 19,
        "dup3": 24, "pipe2": 59, "preadv": 69, "pwritev": 70, "getcpu": 168, "getrandom": 278, "membarrier": 283,
        "copy_file_range": 285, "sendfile": 71, "statx": 291, "rseq": 293, "close_range": 436, "fallocate": 47,
    },
}  # fmt: skip
# Allowed with some arguments, or answered with something else than EPERM.
JUDGED: dict[str, dict[str, int]] = {
    "x86_64": {
        "clone": 56, "tgkill": 234, "kill": 62, "prlimit64": 302, "prctl": 157, "ioctl": 16, "fcntl": 72,
        "socketpair": 53, "sendto": 44, "openat": 257, "open": 2, "creat": 85, "chmod": 90, "fchmod": 91,
        "fchmodat": 268, "fchmodat2": 452, "utime": 132, "utimes": 235, "utimensat": 280, "futimesat": 261,
        "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193, "listxattr": 194, "llistxattr": 195, "flistxattr": 196,
        "clone3": 435, "openat2": 437, "setrlimit": 160,
    },
    "aarch64": {
        "clone": 220, "tgkill": 131, "kill": 129, "prlimit64": 261, "prctl": 167, "ioctl": 29, "fcntl": 25,
        "socketpair": 199, "sendto": 206, "openat": 56, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452,
        "utimensat": 88, "getxattr": 8, "lgetxattr": 9, "fgetxattr": 10, "listxattr": 11, "llistxattr": 12,
        "flistxattr": 13, "clone3": 435, "openat2": 437, "setrlimit": 164,
    },
}  # fmt: skip
DEAF = ("chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "utimensat", "futimesat")  # answered with 0
WITHOUT = ("getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr")  # ENOTSUP: there are none
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)  # descriptors, their flags, locks
PRCTLS = (15, 16)  # PR_SET_NAME, PR_GET_NAME

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOTTY, _ENOSYS, _ENOTSUP = 1, 25, 38, 95
_O_TRUNC, _CLONE_THREAD = 0x200, 0x10000
_NEW_CALLS, _OTHER_NUMBERING = 424, 0x40000000  # x32's
_Code = list[tuple[int, int, int, int]]


def seccomp_filter(machine: str, pid: int) -> bytes:
    """The filter as classic BPF (`struct sock_filter`: code, jump if true, jump if false, operand).

    Args:
        machine: as `platform.machine` names it.
        pid: the process's own number, the only one it may send signals to.

    Raises:
        KeyError: the numbers of this machine's calls are not known.
    """
    judged = JUDGED[machine]
    code: _Code = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, 0), (_JUMP_AT_LEAST, 0, 1, _OTHER_NUMBERING), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    for number in ALLOWED[machine].values():
        code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for names, answer in ((DEAF, 0), (WITHOUT, _ENOTSUP), (("clone3", "openat2"), _ENOSYS)):
        for name in names:
            if name in judged:
                code += [(_JUMP_EQUAL, 0, 1, judged[name]), (_RETURN, 0, 0, _ERRNO | answer)]
    one_of = {"kill": (0, (pid,)), "tgkill": (0, (pid,)), "prlimit64": (0, (0, pid)), "prctl": (0, PRCTLS),
              "ioctl": (1, IOCTLS), "fcntl": (1, FCNTLS)}  # fmt: skip
    looks: dict[str, _Code] = {
        name: [_argument(place), *_accept(values, _ENOTTY if name == "ioctl" else _EPERM)]
        for name, (place, values) in one_of.items()
    }
    looks["setrlimit"] = [(_RETURN, 0, 0, _ALLOW)]
    looks["clone"] = [_argument(0), (_JUMP_BITS, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW), *_accept((), _EPERM)]
    looks["socketpair"] = [
        _argument(0), (_JUMP_EQUAL, 1, 0, 1), (_RETURN, 0, 0, _ERRNO | _EPERM),  # AF_UNIX
        _argument(1), (_AND, 0, 0, 0xF), *_accept((1,), _EPERM),  # SOCK_STREAM
    ]  # fmt: skip
    looks["sendto"] = [
        _argument(4), (_JUMP_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERRNO | _EPERM), _argument(4, upper=True), *_accept((0,), _EPERM),
    ]  # fmt: skip
    for name, flags in (("open", 1), ("openat", 2)):
        looks[name] = [
            _argument(flags), (_JUMP_BITS, 1, 0, _O_TRUNC), (_RETURN, 0, 0, _ALLOW), (_AND, 0, 0, 3), *_accept((1, 2), _EPERM),
        ]  # fmt: skip
    looks["creat"] = [(_RETURN, 0, 0, _ALLOW)]
    for name, look in looks.items():
        if name in judged:
            code += [(_JUMP_EQUAL, 0, len(look), judged[name]), *look]
    code += [(_JUMP_AT_LEAST, 0, 1, _NEW_CALLS), (_RETURN, 0, 0, _ERRNO | _ENOSYS), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return b"".join(struct.pack("HBBI", *line) for line in code)


def _argument(place: int, upper: bool = False) -> tuple[int, int, int, int]:
    """Load an argument of the call: its lower 32 bits, or the upper ones (`struct seccomp_data`)."""
    return (_LOAD, 0, 0, 16 + 8 * place + 4 * upper)


def _accept(values: tuple[int, ...], error: int) -> _Code:
    """Allow where what is loaded is one of these."""
    lines: _Code = []
    for value in values:
        lines += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*lines, (_RETURN, 0, 0, _ERRNO | error)]
