"""A machine whose kernel refuses some system calls: a filter that this process and all that it starts have.

python -m tests.generators.rules.refusing_kernel landlock seccomp -- CODE
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

ENOSYS, EINVAL, EPERM = 38, 22, 1
_ON_X86 = platform.machine() == "x86_64"
# What a kernel without it answers: calls, the first argument that is meant (None: any), and the error.
PARTS: dict[str, tuple[tuple[int, ...], int | None, int]] = {
    "landlock": ((444, 445, 446), None, ENOSYS),
    "seccomp": ((157 if _ON_X86 else 167,), 22, EINVAL),  # prctl(PR_SET_SECCOMP)
    "namespaces": ((272 if _ON_X86 else 97,), None, EPERM),  # unshare, as in a container
}


def refuse(*parts: str) -> None:
    code: list[tuple[int, int, int, int]] = []
    for part in parts:
        calls, argument, error = PARTS[part]
        for call in calls:
            code.append((0x20, 0, 0, 0))
            if argument is None:
                code += [(0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | error)]
            else:
                code += [(0x15, 0, 3, call), (0x20, 0, 0, 16), (0x15, 0, 1, argument), (0x06, 0, 0, 0x50000 | error)]
    code.append((0x06, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.prctl(38, 1, 0, 0, 0)
    assert not libc.prctl(22, 2, struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)), 0, 0)


if __name__ == "__main__":
    where = sys.argv.index("--")
    refuse(*sys.argv[1:where])
    exec(sys.argv[where + 1])
