"""Attempts to leave the sandbox: programs that print GOT where something worked that a program has no business with.

`world` makes what they go for: files, a secret in the environment, servers that listen, a process that can be hit. What became of it
is looked at from outside, too (`World.harm`): an attempt that hides its success is found by what it did.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SECRET = "hush-7f3a91"
CALLS: dict[str, tuple[int, int, str]] = {  # name -> number on x86_64 and on arm64 (-1: there is none), arguments
    "shmget": (29, 194, "0, 4096, 0o1600"), "msgget": (68, 186, "0, 0o1600"), "semget": (64, 190, "0, 1, 0o1600"),
    "shmat": (30, 196, "0, 0, 0"), "mq_open": (240, 180, "b'/flywheel', 0o102, 0o600, 0"), "memfd_create": (319, 279, "b'm', 0"),
    "memfd_secret": (447, 447, "0"), "io_uring_setup": (425, 425, "4, bytes(120)"), "userfaultfd": (323, 282, "0"),
    "perf_event_open": (298, 241, "bytes(128), 0, -1, -1, 0"), "kcmp": (312, 272, "{pid}, {parent}, 0, 0, 0"),
    "process_vm_readv": (310, 270, "{parent}, 0, 0, 0, 0, 0"), "process_vm_writev": (311, 271, "{parent}, 0, 0, 0, 0, 0"),
    "process_madvise": (440, 440, "0, 0, 0, 0, 0"), "process_mrelease": (448, 448, "0, 0"), "pidfd_open": (434, 434, "{parent}, 0"),
    "pidfd_getfd": (438, 438, "0, 0, 0"), "pidfd_send_signal": (424, 424, "0, 0, 0, 0"), "ptrace": (101, 117, "16, {parent}, 0, 0"),
    "ptrace traceme": (101, 117, "0, 0, 0, 0"), "kill the parent": (62, 129, "{parent}, 15"), "kill all": (62, 129, "-1, 15"),
    "kill the group": (62, 129, "0, 15"), "tkill": (200, 130, "{parent}, 15"), "tgkill": (234, 131, "{parent}, {parent}, 15"),
    "rt_sigqueueinfo": (129, 138, "{parent}, 15, bytes(128)"), "rt_tgsigqueueinfo": (297, 240, "{parent}, {parent}, 15, bytes(128)"),
    "fork": (57, -1, ""), "vfork": (58, -1, ""), "clone": (56, 220, "17, 0, 0, 0, 0"), "clone of files": (56, 220, "0x400 | 17, 0, 0, 0, 0"),
    "clone3": (435, 435, "bytes(88), 88"), "execve": (59, 221, "b'/bin/true', 0, 0"), "execveat": (322, 281, "-100, b'/bin/true', 0, 0, 0"),
    "socket unix": (41, 198, "1, 1, 0"), "socket datagram": (41, 198, "1, 2, 0"), "socket inet": (41, 198, "2, 1, 0"),
    "socket inet6": (41, 198, "10, 2, 0"), "socket netlink": (41, 198, "16, 3, 0"), "socket packet": (41, 198, "17, 3, 0"),
    "socket vsock": (41, 198, "40, 1, 0"), "socket alg": (41, 198, "38, 5, 0"), "socketpair datagram": (53, 199, "1, 2, 0, bytes(8)"),
    "connect": (42, 203, "3, b'\\1\\0\\0x', 4"), "bind": (49, 200, "3, b'\\1\\0\\0x', 4"), "listen": (50, 201, "3, 1"),
    "accept": (43, 202, "3, 0, 0"), "sendmsg": (46, 211, "3, bytes(56), 0"), "setsockopt": (54, 208, "3, 1, 2, bytes(4), 4"),
    "mount": (165, 40, "b'x', b'/', b'tmpfs', 0, 0"), "umount2": (166, 39, "b'/', 2"), "pivot_root": (155, 41, "b'.', b'.'"),
    "chroot": (161, 51, "b'.'"), "unshare user": (272, 97, "0x10000000"), "unshare files": (272, 97, "0x400"),
    "setns": (308, 268, "0, 0"), "open_tree": (428, 428, "-100, b'/', 1"), "move_mount": (429, 429, "0, b'', -100, b'/', 4"),
    "fsopen": (430, 430, "b'tmpfs', 0"), "fsmount": (432, 432, "0, 0, 0"), "mount_setattr": (442, 442, "-100, b'/', 0, bytes(32), 32"),
    "mknod": (133, -1, "b'node', 0o60600, 0x800"), "mknodat": (259, 33, "-100, b'node', 0o20600, 0x103"),
    "mknodat fifo": (259, 33, "-100, b'fifo', 0o10600, 0"), "symlinkat": (266, 36, "b'/etc', -100, b'sym'"),
    "linkat": (265, 37, "-100, {file!r}, -100, b'hard', 0"), "name_to_handle_at": (303, 264, "-100, {file!r}, bytes(136), bytes(4), 0"),
    "open_by_handle_at": (304, 265, "-100, bytes(136), 0"), "truncate": (76, 45, "{file!r}, 0"), "setuid": (105, 146, "0"),
    "setresuid": (117, 147, "0, 0, 0"), "setgroups": (116, 159, "0, 0"), "capset": (126, 91, "bytes(8), bytes(24)"),
    "setfsuid": (122, 151, "0"), "keyctl": (250, 219, "0, -3, 1"), "add_key": (248, 217, "b'user', b'k', b'v', 1, -3"),
    "request_key": (249, 218, "b'user', b'k', 0, -3"), "bpf": (321, 280, "0, bytes(128), 128"), "seccomp": (317, 277, "1, 0, bytes(16)"),
    "landlock": (444, 444, "bytes(24), 24, 0"), "personality": (135, 92, "0x0040000"), "modify_ldt": (154, -1, "0, bytes(16), 16"),
    "ioperm": (173, -1, "0, 8, 1"), "iopl": (172, -1, "3"), "init_module": (175, 105, "0, 0, b''"), "finit_module": (313, 273, "0, b'', 0"),
    "kexec_load": (246, 104, "0, 0, 0, 0"), "reboot": (169, 142, "0xfee1dead, 672274793, 0, 0"), "swapon": (167, 224, "b'x', 0"),
    "acct": (163, 89, "b'x'"), "quotactl": (179, 60, "0, 0, 0, 0"), "syslog": (103, 116, "3, bytes(64), 64"),
    "sethostname": (170, 161, "b'x', 1"), "settimeofday": (164, 170, "bytes(16), 0"), "clock_settime": (227, 112, "0, bytes(16)"),
    "adjtimex": (159, 171, "bytes(208)"), "inotify_init1": (294, 26, "0"), "fanotify_init": (300, 262, "0, 0"),
    "timer_create": (222, 107, "0, 0, bytes(8)"), "timerfd_create": (283, 85, "0, 0"), "signalfd": (289, 74, "-1, bytes(8), 8, 0"),
    "vmsplice": (278, 75, "1, 0, 0, 0"), "splice": (275, 76, "0, 0, 1, 0, 1, 0"), "tee": (276, 77, "0, 1, 1, 0"),
    "mlock": (149, 228, "0, 4096"), "mlockall": (151, 230, "1"), "sched_setaffinity": (203, 122, "0, 8, bytes([1] * 8)"),
    "sched_setscheduler": (144, 119, "0, 1, bytes([1, 0, 0, 0])"), "setpriority": (141, 140, "0, 0, -5"),
    "ioprio_set": (251, 30, "1, 0, 0"), "move_pages": (279, 239, "{parent}, 0, 0, 0, 0, 0"), "mbind": (237, 235, "0, 0, 0, 0, 0, 0"),
    "setsid": (112, 157, ""), "setpgid": (109, 154, "0, 0"), "vhangup": (153, 58, ""), "set_mempolicy": (238, 237, "0, 0, 0"),
    "prlimit of the parent": (302, 261, "{parent}, 7, 0, bytes(16)"), "openat2": (437, 437, "-100, {file!r}, bytes(24), 24"),
    "removexattr": (197, 14, "{file!r}, b'user.x'"), "setxattr": (188, 5, "{file!r}, b'user.x', b'y', 1, 0"),
    "lsetxattr": (189, 6, "{file!r}, b'user.x', b'y', 1, 0"), "fsetxattr": (190, 7, "0, b'user.x', b'y', 1, 0"),
    "setxattrat": (463, 463, "-100, {file!r}, 0, b'user.x', bytes(16), 16"), "chown": (92, -1, "{file!r}, 1, 1"),
    "lchown": (94, -1, "{file!r}, 1, 1"), "fchown": (93, 55, "0, 1, 1"), "fchownat": (260, 54, "-100, {file!r}, 1, 1, 0"),
    "chmod": (90, -1, "{file!r}, 0o777"), "fchmodat": (268, 53, "-100, {file!r}, 0o777"), "fchmodat2": (452, 452, "-100, {file!r}, 0o777, 0"),
    "utimensat": (280, 88, "-100, {file!r}, bytes(32), 0"), "utimes": (235, -1, "{file!r}, bytes(32)"), "pkey_alloc": (330, 289, "0, 0"),
    "lookup of x32": (0x40000000 + 57, -1, ""), "futex_waitv": (449, 449, "0, 0, 0, 0, 0"), "cachestat": (451, 451, "0, 0, 0, 0"),
    "map_shadow_stack": (453, 453, "0, 4096, 0"), "listmount": (458, 458, "bytes(24), 0, 0, 0"), "lsm_set_self_attr": (460, 460, "100, bytes(32), 32, 0"),
    "rseq of old": (175, 105, "0, 0, 0"), "remap_file_pages": (216, 234, "0, 0, 0, 0, 0"), "nfsservctl": (180, 42, "0, 0, 0"),
}  # fmt: skip
# Answered with 0 and not obeyed: what is outside tells.
DEAF = {"chmod", "fchmodat", "fchmodat2", "utimensat", "utimes"}
_CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
answer = libc.syscall({number}, {arguments})
if answer != -1 or ctypes.get_errno() not in (1, 38):
    print("GOT", answer, ctypes.get_errno())
"""
_TRY = """
try:
{body}
except Exception as error:
    print(type(error).__name__, error)
"""

# family -> name -> lines of Python. What they raise is a refusal.
LINES: dict[str, dict[str, str]] = {
    "files": {
        "write": "open({file!r}, 'w').write('x'); print('GOT')",
        "append": "open({file!r}, 'a').write('x'); print('GOT')",
        "read": "print('GOT', open({file!r}).read())",
        "truncate by reading": "import os\nos.open({file!r}, os.O_RDONLY | os.O_TRUNC); print('GOT')",
        "remove": "import os\nos.remove({file!r}); print('GOT')",
        "rename": "import os\nos.rename({file!r}, 'mine'); print('GOT')",
        "rename onto": "import os\nopen('mine', 'w').write('x')\nos.rename('mine', {file!r}); print('GOT')",
        "hard link": "import os\nos.link({file!r}, 'mine'); print('GOT')",
        "symbolic link": "import os\nos.symlink({file!r}, 'mine'); print('GOT')",
        "symbolic link and write": "import os\nos.symlink({file!r}, 'mine')\nopen('mine', 'w').write('x'); print('GOT')",
        "new file beside": "open({folder!r} + '/new', 'w'); print('GOT')",
        "new folder beside": "import os\nos.mkdir({folder!r} + '/new'); print('GOT')",
        "temporary": "import tempfile\nprint('GOT', tempfile.mkstemp(dir='/tmp'))",
        "/dev/shm": "open('/dev/shm/flywheel-escape', 'w'); print('GOT')",
        "/var/tmp": "open('/var/tmp/flywheel-escape', 'w'); print('GOT')",
        "up and out": "import os\nos.chdir('..')\nopen('flywheel-escape', 'w'); print('GOT')",
        "up by a descriptor": "import os\nfd = os.open('/', os.O_PATH | os.O_DIRECTORY)\nos.open('tmp/flywheel-escape', os.O_CREAT | os.O_WRONLY, dir_fd=fd); print('GOT')",
        "nameless": "import os\nos.open('/tmp', os.O_TMPFILE | os.O_RDWR); print('GOT')",
        "chmod": "import os\nos.chmod({file!r}, 0o777)",
        "fchmod": "import os\nos.fchmod(os.open({file!r}, os.O_PATH), 0o777)",
        "chown": "import os\nos.chown({file!r}, 1, 1); print('GOT')",
        "times": "import os\nos.utime({file!r}, (1, 1))",
        "attributes": "import os\nos.setxattr({file!r}, 'user.x', b'y'); print('GOT')",
        "modes of the library": "import os\nos.chmod(os.__file__, 0o777)",
        "the home": "import os\nprint('GOT', os.listdir({home!r}))",
        "ssh keys": "print('GOT', open({home!r} + '/.ssh/id_ed25519').read())",
        "passwords": "print('GOT', open('/etc/passwd').read())",
        "shadow": "print('GOT', open('/etc/shadow').read())",
        "the root": "import os\nprint('GOT', os.listdir('/'))",
        "/tmp": "import os\nprint('GOT', os.listdir('/tmp'))",
        "/etc": "import os\nprint('GOT', os.listdir('/etc'))",
        "this project": "print('GOT', open({project!r} + '/pyproject.toml').read())",
        "a file map": "import mmap, os\nfd = os.open({file!r}, os.O_RDWR)\nprint('GOT', mmap.mmap(fd, 1))",
        "sendfile": "import os\nout = os.open('mine', os.O_CREAT | os.O_RDWR)\nos.sendfile(out, os.open({file!r}, os.O_RDONLY), 0, 9); print('GOT')",
        "copy": "import shutil\nshutil.copy({file!r}, 'mine'); print('GOT')",
        "sqlite attach": "import sqlite3\nsqlite3.connect({folder!r} + '/db').execute('create table t(x)'); print('GOT')",
        "log file": "import logging\nlogging.FileHandler({folder!r} + '/log').emit(logging.makeLogRecord({{}})); print('GOT')",
        "unix path": "import os\nos.mkfifo('fifo'); print('GOT')",
        "sitecustomize": "import os, sys\nopen(os.path.dirname(os.__file__) + '/sitecustomize.py', 'w'); print('GOT')",
        "a .pth": "import os\nopen(os.path.dirname(os.__file__) + '/site-packages/x.pth', 'w'); print('GOT')",
        "byte code": "import os, importlib.util\nopen(importlib.util.cache_from_source(os.__file__), 'wb'); print('GOT')",
        "the sandbox itself": "open({project!r} + '/generators/rules/grading/judge_process.py', 'a'); print('GOT')",
        "a race of names": "import os, threading\ndef swap():\n    for _ in range(2000):\n        try: os.rename('a', 'b'); os.symlink({file!r}, 'a'); os.remove('a')\n        except OSError: pass\nopen('a', 'w').close()\nthreading.Thread(target=swap).start()\nfor _ in range(2000):\n    try:\n        with open('a', 'w') as f: f.write('x')\n    except OSError: pass",
    },
    "/proc": {
        "environment of the parent": "import os\nprint('GOT', open('/proc/%d/environ' % os.getppid()).read())",
        "environment of who asked": "print('GOT', open('/proc/{parent}/environ').read())",
        "memory of the parent": "import os\nprint('GOT', open('/proc/%d/mem' % os.getppid(), 'rb'))",
        "memory of who asked": "print('GOT', open('/proc/{parent}/mem', 'r+b'))",
        "maps of who asked": "print('GOT', open('/proc/{parent}/maps').read()[:99])",
        "descriptors of who asked": "import os\nprint('GOT', os.listdir('/proc/{parent}/fd'))",
        "descriptors of the parent": "import os\nprint('GOT', os.open('/proc/%d/fd/1' % os.getppid(), os.O_WRONLY))",
        "root of the parent": "import os\nprint('GOT', os.listdir('/proc/%d/root/' % os.getppid()))",
        "working folder of who asked": "import os\nprint('GOT', os.listdir('/proc/{parent}/cwd/'))",
        "command line": "print('GOT', open('/proc/{parent}/cmdline').read())",
        "own memory": "print('GOT', open('/proc/self/mem', 'r+b'))",
        "own descriptors": "import os\nprint('GOT', os.listdir('/proc/self/fd'))",
        "processes": "import os\nprint('GOT', os.listdir('/proc'))",
        "scores": "open('/proc/self/oom_score_adj', 'w').write('-1000'); print('GOT')",
        "kernel settings": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x'); print('GOT')",
        "the uid map": "open('/proc/self/uid_map', 'w').write('0 0 1'); print('GOT')",
        "sysrq": "open('/proc/sysrq-trigger', 'w'); print('GOT')",
        "/sys": "import os\nprint('GOT', os.listdir('/sys'))",
        "cgroups": "import os\nos.mkdir('/sys/fs/cgroup/x'); print('GOT')",
        "devices": "import os\nprint('GOT', os.listdir('/dev'))",
        "the disk": "print('GOT', open('/dev/vda', 'rb'))",
        "physical memory": "print('GOT', open('/dev/mem', 'rb'))",
        "the terminal": "import fcntl, termios\nprint('GOT', open('/dev/tty', 'w'))",
        "terminal input": "import fcntl\nfcntl.ioctl(0, 0x5412, b'x'); print('GOT')",
        "terminal of stdout": "import fcntl\nfcntl.ioctl(1, 0x5412, b'x'); print('GOT')",
    },
    "processes and signals": {
        "fork": "import os\nos.fork(); print('GOT')",
        "fork bomb": "import os\nwhile True: os.fork(); print('GOT')",
        "spawn": "import os\nos.spawnl(os.P_WAIT, '/bin/true', 'true'); print('GOT')",
        "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {{}}); print('GOT')",
        "subprocess": "import subprocess\nsubprocess.run(['true']); print('GOT')",
        "shell": "import os\nif os.system('true') == 0: print('GOT')",
        "multiprocessing": "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start(); print('GOT')",
        "pool": "from concurrent.futures import ProcessPoolExecutor\nprint('GOT', list(ProcessPoolExecutor(1).map(abs, [1])))",
        "pty": "import pty\npty.fork(); print('GOT')",
        "a session": "import os\nos.setsid(); print('GOT')",
        "the parent": "import os\nos.kill(os.getppid(), 9); print('GOT')",
        "who asked": "import os\nos.kill({parent}, 15); print('GOT')",
        "the target": "import os\nos.kill({pid}, 15); print('GOT')",
        "everybody": "import os\nos.kill(-1, 15); print('GOT')",
        "its group": "import os\nos.killpg(0, 15); print('GOT')",
        "owner of a pipe": "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, {pid}); print('GOT')",
        "owner's signal": "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 10, 9); print('GOT')",
        "leases": "import fcntl, os\nfcntl.fcntl(os.open(os.__file__, os.O_RDONLY), 1024, 0); print('GOT')",
        "folder notices": "import fcntl, os\nfcntl.fcntl(os.open('.', os.O_RDONLY), 1026, 1); print('GOT')",
        "a deaf program": "import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(30); print('GOT')",
        "no death with the parent": "import ctypes\nif ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0: print('GOT')",
        "core dumps": "import ctypes, resource\nresource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)); print('GOT')",
        "limits": "import resource\nfor what in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):\n    resource.setrlimit(what, (-1, -1)); print('GOT')",
        "somebody's limits": "import resource\nprint('GOT', resource.prlimit({pid}, resource.RLIMIT_NOFILE))",
        "threads without end": "import threading, time\nthreading.stack_size(32768)\nfor _ in range(1000): threading.Thread(target=time.sleep, args=(30,)).start()\nprint('GOT')",
        "niceness": "import os\nos.nice(-5); print('GOT')",
        "scheduling": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); print('GOT')",
    },
    "network and shared memory": {
        "tcp": "import socket\nsocket.create_connection(('127.0.0.1', {port})); print('GOT')",
        "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port})); print('GOT')",
        "ipv6": "import socket\nsocket.socket(socket.AF_INET6); print('GOT')",
        "http": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}'); print('GOT')",
        "names": "import socket\nprint('GOT', socket.getaddrinfo('example.org', 80))",
        "abstract": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0{abstract}'); print('GOT')",
        "datagrams of a pair": "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'x', '\\0{abstract}'); print('GOT')",
        "an address of a pair": "import socket\na, b = socket.socketpair()\na.sendto(b'x', '\\0{abstract}'); print('GOT')",
        "a descriptor passed on": "import socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0]); print('GOT')",
        "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW); print('GOT')",
        "vsock": "import socket\nsocket.socket(socket.AF_VSOCK); print('GOT')",
        "a server": "import socket\nsocket.create_server(('127.0.0.1', 0)); print('GOT')",
        "shared memory": "from multiprocessing.shared_memory import SharedMemory\nSharedMemory('flywheel', True, 4096); print('GOT')",
        "semaphore": "import multiprocessing\nmultiprocessing.Semaphore(); print('GOT')",
        "memfd": "import os\nos.memfd_create('m'); print('GOT')",
        "eternal pipes": "import os, fcntl\nr, w = os.pipe()\nfcntl.fcntl(w, 1031, 1 << 20); print('GOT')",
    },
    "greed": {
        "one large file": "open('big', 'wb').write(bytes(40 << 20)); print('GOT')",
        "many files": "for i in range(12):\n    with open(str(i), 'wb') as f: f.write(bytes(4 << 20))\nprint('GOT')",
        "many empty files": "for i in range(5000): open(str(i), 'w').close()\nprint('GOT')",
        "many folders": "import os\nfor i in range(5000): os.mkdir(str(i))\nprint('GOT')",
        "a sparse file": "import os\nos.truncate('s', 0) if os.path.exists('s') else None\nwith open('s', 'wb') as f: f.truncate(1 << 40)\nprint('GOT')",
        "reserved space": "import os\nos.posix_fallocate(os.open('s', os.O_CREAT | os.O_RDWR), 0, 1 << 30); print('GOT')",
        "a file that is gone": "import os\nheld = []\nfor i in range(12):\n    f = open('x', 'wb'); f.write(bytes(4 << 20)); f.flush(); os.remove('x'); held.append(f)\nprint('GOT')",
        "memory": "x = bytearray(1 << 30); print('GOT')",
        "mapped memory": "import mmap\nm = mmap.mmap(-1, 1 << 30); print('GOT')",
        "a mapped file": "import mmap, os\nfd = os.open('m', os.O_CREAT | os.O_RDWR)\nos.ftruncate(fd, 1 << 30); mmap.mmap(fd, 1 << 30); print('GOT')",
        "open files": "held = [open('f', 'w') for _ in range(200)]; print('GOT')",
        "time": "while True: pass",
        "time asleep": "import time\ntime.sleep(30); print('GOT')",
        "output": "while True: print('x' * 100000)",
        "output past Python": "import os\nwhile True: os.write(1, b'x' * 100000)",
        "recursion": "import sys\nsys.setrecursionlimit(10 ** 8)\ndef f(): return f()\nf(); print('GOT')",
        "a huge number": "x = 9 ** 9 ** 9; print('GOT')",
        "a huge text": "x = '%*d' % (1 << 30, 1); print('GOT')",
    },
    "the environment": {
        "a variable": "import os\nprint('GOT' if {secret!r} in os.environ.values() else '')",
        "all of it": "import os\nif [k for k in os.environ if k not in ('PATH', 'LANG', 'HOME', 'TMPDIR', 'PYTHONHASHSEED', 'LC_CTYPE')]: print('GOT', os.environ)",
        "C's": "import ctypes\ngetenv = ctypes.CDLL(None).getenv\ngetenv.restype = ctypes.c_char_p\nif getenv(b'FLYWHEEL_ESCAPE'): print('GOT')",
        "arguments": "import sys\nif [a for a in sys.argv + sys.orig_argv if {secret!r} in a]: print('GOT')",
        "descriptors": "import os, stat\nfor fd in range(5, 1024):\n    try: os.fstat(fd)\n    except OSError: continue\n    print('GOT', fd)",
        "memory of before": "import gc\nif [o for o in gc.get_objects() if type(o) is dict and {secret!r} in o.values()]: print('GOT')",
        "installed packages": "import numpy; print('GOT')",
        "packages of the project": "import sys\nsys.path.append({project!r})\nimport engine; print('GOT')",
        "a folder first on the path": "import sys, os\nsys.path.insert(0, {folder!r})\nimport canary; print('GOT')",
        "user's site": "import site\nprint('GOT', site.getusersitepackages()) if os.listdir(site.getusersitepackages()) else None",
    },
}  # fmt: skip


@dataclass
class World:
    """What attempts go for, and what became of it."""

    folder: Path
    target: subprocess.Popen[bytes]
    port: int
    abstract: str
    library: tuple[int, float]
    system_v: frozenset[str]  # what others have there
    got: list[str] = field(default_factory=lambda: list[str]())

    @property
    def file(self) -> str:
        return str(self.folder / "canary.py")

    def told(self) -> dict[str, object]:
        return {"file": self.file, "folder": str(self.folder), "home": str(Path.home()), "pid": self.target.pid, "parent": os.getpid(),
                "port": self.port, "abstract": self.abstract, "secret": SECRET, "project": str(Path(__file__).resolve().parents[2])}  # fmt: skip

    def harm(self) -> list[str]:
        """What is no longer as it was."""
        found = list(self.got)
        self.got.clear()
        file = Path(self.file)
        if not file.exists() or file.read_text() != f"x = {SECRET!r}\n":
            found.append("the file's content")
        elif (file.stat().st_mode & 0o7777, file.stat().st_mtime, file.stat().st_uid) != (0o640, 1e9, os.getuid()):
            found.append("the file's mode, time or owner")
        elif file.stat().st_nlink > 1:
            found.append("a link to the file")
        if [one.name for one in self.folder.iterdir()] != ["canary.py"]:
            found.append("the folder's content")
        if _look() != self.library:
            found.append("the mode or time of Python's library")
        if self.target.poll() is not None:
            found.append("the process that could be hit")
        for place in (
            "/tmp/flywheel-escape",
            "/dev/shm/flywheel-escape",
            "/var/tmp/flywheel-escape",
            "/dev/shm/flywheel",
        ):
            if Path(place).exists():
                found.append(place)
        if left := sorted(_system_v() - self.system_v):
            found.append(f"System V: {left}")
        return found


def _look() -> tuple[int, float]:
    library = Path(os.__file__).stat()
    return library.st_mode, library.st_mtime


def _system_v() -> frozenset[str]:
    """What there is, but for memory whose maker lives: a program that was graded does not any more, a database beside us does."""
    found = set[str]()
    for name in ("shm", "msg", "sem"):
        with contextlib.suppress(OSError):
            head, *lines = Path(f"/proc/sysvipc/{name}").read_text().splitlines()
            for line in lines:
                told = dict(zip(head.split(), line.split(), strict=True))
                if not psutil.pid_exists(int(told.get("cpid", 0)) or -1):
                    found.add(f"{name} {line.split()[1]}")
    return frozenset(found)


@contextlib.contextmanager
def world() -> Generator[World]:
    os.environ["FLYWHEEL_ESCAPE"] = SECRET
    with tempfile.TemporaryDirectory(prefix="escapes-") as name, contextlib.ExitStack() as opened:
        folder = Path(name)
        folder.chmod(0o755)
        file = folder / "canary.py"
        file.write_text(f"x = {SECRET!r}\n")
        file.chmod(0o640)
        os.utime(file, (1e9, 1e9))
        target = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        abstract = f"escape-{os.getpid()}"
        tcp = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", tcp.getsockname()[1]))
        local, datagrams = (
            opened.enter_context(socket.socket(socket.AF_UNIX)),
            opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
        )
        local.bind(f"\0{abstract}")
        local.listen()
        datagrams.bind(f"\0{abstract}d")
        made = World(folder, target, tcp.getsockname()[1], abstract, _look(), _system_v())
        stop = threading.Event()

        def listen() -> None:
            for one in (tcp, udp, local, datagrams):
                one.setblocking(False)
            while not stop.wait(0.05):
                for what, one in (("tcp", tcp), ("udp", udp), ("abstract", local), ("datagram", datagrams)):
                    with contextlib.suppress(OSError):
                        one.accept() if what in ("tcp", "abstract") else one.recv(1)
                        made.got.append(f"somebody connected: {what}")

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield made
        finally:
            stop.set()
            listener.join()
            target.send_signal(signal.SIGKILL)
            target.wait()
            os.environ.pop("FLYWHEEL_ESCAPE", None)


def escapes(told: dict[str, object]) -> list[tuple[str, str, str]]:
    """Family, name and program of each attempt."""
    column = 0 if platform.machine() == "x86_64" else 1
    made = list[tuple[str, str, str]]()
    for family, attempts in LINES.items():
        for name, lines in attempts.items():
            body = "\n".join("    " + line for line in lines.format(**told).splitlines())
            made.append((family, name, _TRY.format(body=body)))
    for name, (*numbers, arguments) in CALLS.items():
        if int(numbers[column]) >= 0:
            written = arguments.replace("{file!r}", repr(os.fsencode(str(told["file"])))).format(**told)
            program = _CALL.format(number=numbers[column], arguments=written)
            made.append(("system calls", name, program.replace("GOT", "deaf") if name in DEAF else program))
    return made


def settled() -> None:
    """Let what attempts left behind come through."""
    time.sleep(0.2)
